// Package timerslack makes Go's monitor thread wake up less often.
//
// The Go runtime has a thread that watches over the others (sysmon). While a process does anything at all it sleeps for 20 µs at a time, and each time it wakes costs a switch of context: a
// sixth to a quarter of the processor time of a service that is busy a little all the time (decision 13). Linux lets a thread say by how much its sleeps may be late, its timer slack: 50 µs
// unless it is told otherwise. With a millisecond the monitor does its work all the same, a little later: it takes processors away from goroutines that block in system calls or run for 10 ms.
package timerslack

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

const (
	monitor = time.Millisecond
	// usual is Linux's default.
	usual = 50 * time.Microsecond
)

// Monitor gives this process's monitor thread its slack. It is called once, at the beginning. It needs CAP_SYS_NICE, as the kernel wants it for threads other than the calling one; a process
// without it runs as well, with more wake-ups.
func Monitor() error {
	entries, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return fmt.Errorf("threads of this process: %w", err)
	}
	var threads []int
	for _, e := range entries {
		if id, err := strconv.Atoi(e.Name()); err == nil {
			threads = append(threads, id)
		}
	}
	id, err := monitorOf(os.Getpid(), threads)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join("/proc", strconv.Itoa(id), "timerslack_ns"), strconv.AppendInt(nil, int64(monitor), 10), 0)
}

var errUnknown = errors.New("the thread that the Go runtime started first is not known: thread IDs began anew meanwhile")

// monitorOf returns the monitor among a process's threads: the runtime starts it before all others, and the kernel counts thread IDs up.
func monitorOf(process int, threads []int) (int, error) {
	first := 0
	for _, id := range threads {
		if id < process {
			return 0, errUnknown
		}
		if id != process && (first == 0 || id < first) {
			first = id
		}
	}
	if first == 0 {
		return 0, errUnknown
	}
	return first, nil
}

// Usual calls f on a thread with Linux's usual slack. Programs are started so: they inherit the slack of the thread that starts them, which may be one that the monitor has made.
func Usual(f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(usual), 0, 0, 0); err != nil {
		return fmt.Errorf("timer slack: %w", err)
	}
	return f()
}
