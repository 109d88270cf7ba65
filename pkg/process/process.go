// Package process starts programs that outlive their parent and finds them again.
//
// A detached process has its own session, so that neither Ctrl-C nor `kill -9` of its parent reaches it. A small file says which process it is: the
// pid, the kernel's start time of that pid and the machine's boot, which together name one process for ever; a pid that was given to another
// process is never taken for it.
package process

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Process is one detached process.
type Process struct {
	identity
	file string
	// exited is closed when a process that this one started has been reaped; nil for a process that was found.
	exited chan struct{}
}

type identity struct {
	PID int `json:"pid"`
	// Start is field 22 of /proc/PID/stat, in clock ticks since the boot.
	Start uint64 `json:"start"`
	Boot  string `json:"boot"`
}

// Spec says what to start.
type Spec struct {
	// File is where the process is written down, to be found again.
	File string
	// Log gets standard output and error, appended.
	Log string
	// NetNS is the network namespace to run in, a path; empty: this process' own.
	NetNS string
	Path  string
	Args  []string
	// Env is added to this process' environment.
	Env []string
}

// Start starts a process and writes it down. It fails when the one that File names is still alive.
func Start(spec Spec) (*Process, error) {
	if running, err := Find(spec.File); err != nil {
		return nil, err
	} else if running != nil {
		return nil, fmt.Errorf("start %s: it runs already, as process %d", filepath.Base(spec.Path), running.PID())
	}
	for _, file := range []string{spec.File, spec.Log} {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return nil, err
		}
	}
	log, err := os.OpenFile(spec.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("start %s: log: %w", spec.Path, err)
	}
	defer log.Close()
	path, args := spec.Path, spec.Args
	if spec.NetNS != "" {
		// Not `ip netns exec`: it remounts /sys and hides the cgroups.
		args = append([]string{"--net=" + spec.NetNS, path}, args...)
		if path, err = exec.LookPath("nsenter"); err != nil {
			return nil, fmt.Errorf("start %s in %s: %w: install util-linux", spec.Path, spec.NetNS, err)
		}
	}
	cmd := exec.Command(path, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), spec.Env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", spec.Path, err)
	}
	exited := make(chan struct{})
	// Reaped here, or it would stay a zombie that looks alive.
	go func() {
		cmd.Wait()
		close(exited)
	}()
	id, err := identify(cmd.Process.Pid)
	if err == nil {
		err = writeFile(spec.File, id)
	}
	if err != nil {
		cmd.Process.Kill()
		<-exited
		return nil, fmt.Errorf("start %s: %w", spec.Path, err)
	}
	return &Process{identity: id, file: spec.File, exited: exited}, nil
}

// Find returns the process that a file names, or nil when there is none or it has ended.
func Find(file string) (*Process, error) {
	content, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	p := &Process{file: file}
	if err := json.Unmarshal(content, &p.identity); err != nil {
		return nil, fmt.Errorf("%s: %w: delete it if its process has ended", file, err)
	}
	if !p.Alive() {
		return nil, nil
	}
	return p, nil
}

// PID is the process' id.
func (p *Process) PID() int { return p.identity.PID }

// Alive says whether the process still runs.
func (p *Process) Alive() bool {
	now, err := identify(p.identity.PID)
	return err == nil && now == p.identity
}

// Signal sends a signal, unless the process has ended.
func (p *Process) Signal(signal syscall.Signal) error {
	fd, err := p.open()
	if fd < 0 {
		return err
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, signal, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signal process %d: %w", p.PID(), err)
	}
	return nil
}

// open returns a pidfd, or -1 when the process has ended.
func (p *Process) open() (int, error) {
	fd, err := unix.PidfdOpen(p.PID(), 0)
	if errors.Is(err, unix.ESRCH) {
		return -1, nil
	}
	if err != nil {
		return -1, fmt.Errorf("open process %d: %w", p.PID(), err)
	}
	// Checked after opening: from here on the descriptor means this process and no later one.
	if !p.Alive() {
		unix.Close(fd)
		return -1, nil
	}
	return fd, nil
}

// Wait waits until the process has ended.
func (p *Process) Wait(ctx context.Context) error {
	fd, err := p.open()
	if fd < 0 {
		return err
	}
	defer unix.Close(fd)
	for ctx.Err() == nil {
		// A pidfd is readable once its process has ended. The time-out is how often the context is looked at.
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 50)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for process %d: %w", p.PID(), err)
		}
		if n > 0 {
			if p.exited != nil {
				<-p.exited
			}
			return nil
		}
	}
	return fmt.Errorf("wait for process %d: %w", p.PID(), ctx.Err())
}

// Stop asks the process to end, kills it when it has not ended after the grace, and forgets it.
func (p *Process) Stop(ctx context.Context, grace time.Duration) error {
	if err := p.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	patient, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	if err := p.Wait(patient); err != nil {
		if err := p.Signal(syscall.SIGKILL); err != nil {
			return err
		}
		if err := p.Wait(ctx); err != nil {
			return err
		}
	}
	if err := os.Remove(p.file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// identify reads what names a process for ever. A zombie has ended: its start time is read as an error.
func identify(pid int) (identity, error) {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return identity{}, err
	}
	// The command's name is in parentheses and may itself hold spaces and parentheses.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 20 {
		return identity{}, fmt.Errorf("/proc/%d/stat: %d fields", pid, len(fields))
	}
	if fields[0] == "Z" || fields[0] == "X" {
		return identity{}, fmt.Errorf("process %d has ended", pid)
	}
	start, err := strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return identity{}, fmt.Errorf("/proc/%d/stat: start time: %w", pid, err)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return identity{}, err
	}
	return identity{PID: pid, Start: start, Boot: string(bytes.TrimSpace(boot))}, nil
}

// writeFile writes the whole file or nothing.
func writeFile(file string, id identity) error {
	content, err := json.Marshal(id)
	if err != nil {
		return err
	}
	temporary := file + ".new"
	if err := os.WriteFile(temporary, append(content, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(temporary, file)
}
