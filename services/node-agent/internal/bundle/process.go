package bundle

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// process is a running containerd, a child of this process or one that an earlier agent left behind.
type process struct {
	pid    int
	handle *os.File // a pidfd: it means this process even after its number is given to another
	done   chan struct{}
}

// record is what the pid file says, enough to never take another process for containerd.
type record struct {
	PID int `json:"pid"`
	// StartTime is field 22 of /proc/PID/stat, in clock ticks since boot; with BootID it tells reused numbers apart.
	StartTime uint64 `json:"startTime"`
	BootID    string `json:"bootID"`
	// Config is the digest of the binary and of the configuration that it was started with.
	Config string `json:"config"`
}

// startProcess starts the command in a session of its own, so that neither a terminal's signals nor this process's end reach it.
func startProcess(argv, env []string, output *os.File) (*process, error) {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = env, "/", output, output
	fd := -1
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, PidFD: &fd}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{pid: cmd.Process.Pid, handle: os.NewFile(uintptr(fd), "pidfd"), done: make(chan struct{})}
	go func() {
		// The exit status tells nothing that the log does not; what counts is that it is gone, and reaped.
		_ = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// adoptProcess holds a process that is no child of this one.
func adoptProcess(pid int) (*process, error) {
	// Non-blocking, so that Go's poller waits for its end, not a thread.
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	p := &process{pid: pid, handle: os.NewFile(uintptr(fd), "pidfd"), done: make(chan struct{})}
	conn, err := p.handle.SyscallConn()
	if err != nil {
		p.handle.Close()
		return nil, fmt.Errorf("watch process %d: %w", pid, err)
	}
	go func() {
		defer close(p.done)
		// A pidfd becomes readable when its process ends. Read returns early only when the handle is closed.
		_ = conn.Read(func(fd uintptr) bool {
			n, _ := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
			return n > 0
		})
	}()
	return p, nil
}

// signal reaches this process or none.
func (p *process) signal(sig unix.Signal) error {
	select {
	case <-p.done:
		return nil
	default:
	}
	conn, err := p.handle.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	if err := conn.Control(func(fd uintptr) { sent = unix.PidfdSendSignal(int(fd), sig, nil, 0) }); err != nil {
		return err
	}
	if errors.Is(sent, unix.ESRCH) {
		return nil
	}
	return sent
}

// release lets go of the process without ending it.
func (p *process) release() { p.handle.Close() }

// findProcess returns the containerd that runs for this configuration, and the digest that it was started with; nil when there is none.
func findProcess(cfg Config) (*process, string, error) {
	data, err := os.ReadFile(recordFile(cfg))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, "", err
	}
	var rec record
	// A damaged record is as good as none.
	if err == nil && json.Unmarshal(data, &rec) == nil && rec.PID > 0 {
		boot, err := bootID()
		if err != nil {
			return nil, "", err
		}
		if rec.BootID == boot && startTime(rec.PID) == rec.StartTime && runsConfig(rec.PID, configFile(cfg)) {
			p, err := verified(rec.PID, rec.StartTime)
			if p != nil || err != nil {
				return p, rec.Config, err
			}
		}
	}
	// An agent that was killed between starting containerd and writing the record leaves one behind that would hold the database.
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, "", err
	}
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || !runsConfig(pid, configFile(cfg)) {
			continue
		}
		p, err := verified(pid, startTime(pid))
		if p != nil || err != nil {
			return p, "", err
		}
	}
	return nil, "", nil
}

// verified adopts the process, then looks again: between the first look and the handle, the number may have changed hands.
func verified(pid int, start uint64) (*process, error) {
	p, err := adoptProcess(pid)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if start == 0 || startTime(pid) != start {
		p.release()
		return nil, nil
	}
	return p, nil
}

func writeRecord(cfg Config, pid int, digest string) error {
	boot, err := bootID()
	if err != nil {
		return err
	}
	data, err := json.Marshal(record{PID: pid, StartTime: startTime(pid), BootID: boot, Config: digest})
	if err != nil {
		return err
	}
	return writeFile(recordFile(cfg), data)
}

func bootID() (string, error) {
	data, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(data)), err
}

// startTime is 0 when the process does not exist or is a zombie.
func startTime(pid int) uint64 {
	data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return 0
	}
	// The command, field 2, is in parentheses and may hold anything, parentheses too.
	_, rest, ok := cutLast(string(data), ") ")
	fields := strings.Fields(rest)
	if !ok || len(fields) < 20 || fields[0] == "Z" || fields[0] == "X" {
		return 0
	}
	ticks, err := strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return 0
	}
	return ticks
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// runsConfig reports whether the process is a containerd with this configuration file, or nsenter about to become it.
func runsConfig(pid int, config string) bool {
	args := commandLine(pid)
	i := slices.Index(args, "--config")
	return i > 0 && i+1 < len(args) && args[i+1] == config && filepath.Base(args[i-1]) == "containerd"
}

func commandLine(pid int) []string {
	data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
	if err != nil {
		return nil
	}
	return strings.Split(strings.TrimSuffix(string(data), "\x00"), "\x00")
}
