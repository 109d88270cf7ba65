// Package process starts programs that outlive their parent and finds them again.
//
// A detached process has its own session, so that neither Ctrl-C nor `kill -9` of its parent reaches it. A small file says which process it is: the
// pid, the kernel's start time of that pid and the machine's boot, which together name one process for ever; a pid that was given to another
// process is never taken for it. What is done to a process goes through its pidfd, which means that process and no later one.
package process

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"dhow.dev/pkg/timerslack"
)

// killLimit is how long a process may take to end after SIGKILL: only one in uninterruptible sleep takes any time.
const killLimit = 10 * time.Second

// Process is one detached process.
type Process struct {
	record
	file string
	// handle is the pidfd.
	handle *os.File
	// ended is closed when the process has ended. For one that was found it is watched from the first call of Done on.
	ended chan struct{}
	watch func()
}

// Spec says what to start.
type Spec struct {
	// File is where the process is written down, to be found again, with a Note.
	File, Note string
	// Log gets standard output and error, appended.
	Log string
	// NetNS is the network namespace to run in, a path; empty: this process' own.
	NetNS string
	Path  string
	Args  []string
	// Env is added to this process' environment; with Bare it is all that the process gets.
	Env  []string
	Bare bool
	// Dir is the working folder; empty: this process' own.
	Dir string
}

// Start starts a process and writes it down. It fails when the one that File names is still alive.
func Start(spec Spec) (*Process, error) {
	if running, err := Find(spec.File); err != nil && !errors.Is(err, ErrDamaged) {
		return nil, err
	} else if running != nil {
		running.Release()
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
		args = append([]string{"--net=" + spec.NetNS, "--", path}, args...)
		if path, err = exec.LookPath("nsenter"); err != nil {
			return nil, fmt.Errorf("start %s in %s: %w: install util-linux", spec.Path, spec.NetNS, err)
		}
	}
	cmd := exec.Command(path, args...)
	cmd.Stdout, cmd.Stderr, cmd.Dir = log, log, spec.Dir
	if cmd.Env = spec.Env; !spec.Bare {
		cmd.Env = append(os.Environ(), spec.Env...)
	}
	fd := -1
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, PidFD: &fd}
	if err := timerslack.Usual(cmd.Start); err != nil {
		return nil, fmt.Errorf("start %s: %w", spec.Path, err)
	}
	p := &Process{file: spec.File, handle: os.NewFile(uintptr(fd), "pidfd"), ended: make(chan struct{}), watch: func() {}}
	// Before it is reaped: it may have ended already.
	p.identity, _, err = look(cmd.Process.Pid)
	// Reaped here, or it would stay a zombie. How it ended tells nothing that its log does not.
	go func() {
		_ = cmd.Wait()
		close(p.ended)
	}()
	if err == nil {
		p.Text = spec.Note
		err = p.record.write(spec.File)
	}
	if err != nil {
		_ = p.Signal(unix.SIGKILL)
		<-p.ended
		return nil, fmt.Errorf("start %s: %w", spec.Path, err)
	}
	return p, nil
}

// Find returns the process that a file names, or nil when there is none or it has ended.
func Find(file string) (*Process, error) {
	r, err := read(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	p, err := adopt(r.identity)
	if p != nil {
		p.file, p.Text = file, r.Text
	}
	return p, err
}

// Search returns the processes whose command lines match.
func Search(match func(args []string) bool) ([]*Process, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var found []*Process
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || !match(CommandLine(pid)) {
			continue
		}
		id, err := identify(pid)
		if err != nil {
			continue // it has ended meanwhile
		}
		p, err := adopt(id)
		if err != nil {
			return nil, err
		}
		if p != nil {
			found = append(found, p)
		}
	}
	return found, nil
}

// CommandLine returns a process' arguments, the program first; none when it has ended.
func CommandLine(pid int) []string {
	data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
	if err != nil || len(data) == 0 {
		return nil
	}
	return strings.Split(strings.TrimSuffix(string(data), "\x00"), "\x00")
}

// adopt holds a process that is no child of this one; nil when it has ended.
func adopt(id identity) (*Process, error) {
	// Non-blocking, so that Go's poller waits for its end, not a thread.
	fd, err := unix.PidfdOpen(id.PID, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", id.PID, err)
	}
	p := &Process{record: record{identity: id}, handle: os.NewFile(uintptr(fd), "pidfd"), ended: make(chan struct{})}
	p.watch = sync.OnceFunc(func() { go p.awaitEnd() })
	// Looked at after opening: from here on the descriptor means this process and no later one.
	if !p.Alive() {
		p.Release()
		return nil, nil
	}
	return p, nil
}

// awaitEnd waits until the pidfd is readable, which it is when its process has ended. A release ends the wait, too.
func (p *Process) awaitEnd() {
	conn, err := p.handle.SyscallConn()
	if err != nil {
		return
	}
	if conn.Read(func(fd uintptr) bool {
		n, _ := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		return n > 0
	}) == nil {
		close(p.ended)
	}
}

// PID is the process' id.
func (p *Process) PID() int { return p.identity.PID }

// Note is what was written down with the process when it was started.
func (p *Process) Note() string { return p.Text }

// Alive says whether the process still runs.
func (p *Process) Alive() bool {
	now, err := identify(p.PID())
	return err == nil && now == p.identity
}

// Done is closed when the process has ended. It stays open when the process is released before.
func (p *Process) Done() <-chan struct{} {
	p.watch()
	return p.ended
}

// Release lets go of the process without ending it. Nothing else may be asked of it then, but its id and its note.
func (p *Process) Release() { p.handle.Close() }

// Signal sends a signal, unless the process has ended.
func (p *Process) Signal(signal syscall.Signal) error {
	conn, err := p.handle.SyscallConn()
	if err != nil {
		return fmt.Errorf("signal process %d: %w", p.PID(), err)
	}
	var sent error
	err = conn.Control(func(fd uintptr) { sent = unix.PidfdSendSignal(int(fd), signal, nil, 0) })
	if err = errors.Join(err, sent); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signal process %d: %w", p.PID(), err)
	}
	return nil
}

// Wait waits until the process has ended.
func (p *Process) Wait(ctx context.Context) error {
	select {
	case <-p.Done():
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for process %d: %w", p.PID(), ctx.Err())
	}
}

// Stop asks the process to end, kills it when it has not ended after the grace or when ctx ends, and forgets it.
func (p *Process) Stop(ctx context.Context, grace time.Duration) error {
	if err := p.Signal(unix.SIGTERM); err != nil {
		return err
	}
	patient, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	if p.Wait(patient) != nil {
		if err := p.Signal(unix.SIGKILL); err != nil {
			return err
		}
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), killLimit)
		defer cancel()
		if p.Wait(last) != nil {
			return fmt.Errorf("process %d does not end after SIGKILL: look at its state with ps", p.PID())
		}
	}
	p.Release()
	if p.file == "" {
		return nil
	}
	if err := os.Remove(p.file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
