package cgroup

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
)

// Usage returns the CPU time that a cgroup and those below it have used, and their working set in bytes: memory without what is only an inactive copy
// of files.
func (m *Manager) Usage(p string) (time.Duration, uint64, error) {
	if m.version == V2 {
		cpu, err := field(filepath.Join(m.mount, p, "cpu.stat"), "usage_usec")
		if err != nil {
			return 0, 0, err
		}
		memory, err := m.workingSet(p, "", "memory.current", "inactive_file")
		return time.Duration(cpu) * time.Microsecond, memory, err
	}
	// The accounting controller is mounted by its own name or together with cpu.
	accounting := "cpuacct"
	if i := slices.IndexFunc(m.controllers, func(c string) bool { return slices.Contains(strings.Split(c, ","), "cpuacct") }); i >= 0 {
		accounting = m.controllers[i]
	}
	cpu, err := numberOf(filepath.Join(m.mount, accounting, p, "cpuacct.usage"))
	if err != nil {
		return 0, 0, err
	}
	memory, err := m.workingSet(p, "memory", "memory.usage_in_bytes", "total_inactive_file")
	return time.Duration(cpu), memory, err
}

func (m *Manager) workingSet(p, controller, file, inactive string) (uint64, error) {
	dir := filepath.Join(m.mount, controller, p)
	used, err := numberOf(filepath.Join(dir, file))
	if err != nil {
		return 0, err
	}
	cache, err := field(filepath.Join(dir, "memory.stat"), inactive)
	if err != nil {
		return 0, err
	}
	return used - min(used, cache), nil
}

// Memory returns a pod's working set in bytes.
func (m *Manager) Memory(pod *corev1.Pod) (uint64, error) {
	p := m.Path(pod.GetMetadata().GetUid(), Class(pod))
	if m.version == V2 {
		return m.workingSet(p, "", "memory.current", "inactive_file")
	}
	return m.workingSet(p, "memory", "memory.usage_in_bytes", "total_inactive_file")
}

// Processes returns how many processes and threads a pod has; 0 where the kernel does not count them.
func (m *Manager) Processes(pod *corev1.Pod) (int64, error) {
	n, err := numberOf(filepath.Join(m.mount, m.of("pids"), m.Path(pod.GetMetadata().GetUid(), Class(pod)), "pids.current"))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	return int64(n), err
}

// ProcessesBelow returns how many processes and threads a cgroup and those below it have.
func (m *Manager) ProcessesBelow(p string) (int64, error) {
	n, err := numberOf(filepath.Join(m.mount, m.of("pids"), p, "pids.current"))
	return int64(n), err
}

// of returns a controller's folder below the mount.
func (m *Manager) of(controller string) string {
	if m.version == V2 {
		return ""
	}
	return controller
}

// MachineUsage returns what the whole machine has used. The root of cgroup v2 counts no memory, so that the kernel's own sums stand in.
func MachineUsage() (time.Duration, uint64, error) {
	// USER_HZ, which the kernel converts all times in /proc to, is 100 on every platform that Go runs on.
	const tick = time.Second / 100
	f, err := os.Open("/proc/stat")
	if err != nil {
		return 0, 0, fmt.Errorf("machine usage: %w", err)
	}
	defer f.Close()
	line := bufio.NewScanner(f)
	line.Scan()
	var cpu time.Duration
	// user nice system idle iowait irq softirq steal; guests are part of user.
	for i, field := range strings.Fields(line.Text()) {
		if n, err := strconv.ParseInt(field, 10, 64); err == nil && i <= 7 && i != 4 && i != 5 {
			cpu += time.Duration(n) * tick
		}
	}
	total, err := field("/proc/meminfo", "MemTotal:")
	if err != nil {
		return 0, 0, err
	}
	available, err := field("/proc/meminfo", "MemAvailable:")
	if err != nil {
		return 0, 0, err
	}
	return cpu, (total - min(total, available)) << 10, nil
}

func numberOf(name string) (uint64, error) {
	text, err := contents(name)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(string(bytes.TrimSpace(text)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("cgroup usage: %s: %w", name, err)
	}
	return n, nil
}

// field is one number of lines of a name and a number; 0 if it is not among them.
func field(file, name string) (uint64, error) {
	text, err := contents(file)
	if err != nil {
		return 0, err
	}
	for line := range bytes.Lines(text) {
		key, value, _ := bytes.Cut(line, []byte(" "))
		if string(key) != name {
			continue
		}
		value, _, _ = bytes.Cut(bytes.TrimSpace(value), []byte(" "))
		n, err := strconv.ParseUint(string(value), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("cgroup usage: %s: %s: %w", file, name, err)
		}
		return n, nil
	}
	return 0, nil
}

// contents reads one of the kernel's small files, with the fewest calls: a node's hundreds are read again and again.
func contents(name string) ([]byte, error) {
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("cgroup usage: %w", &fs.PathError{Op: "open", Path: name, Err: err})
	}
	defer unix.Close(fd) // nothing was written
	text := make([]byte, 0, 4<<10)
	for {
		n, err := unix.Read(fd, text[len(text):cap(text)])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("cgroup usage: %w", &fs.PathError{Op: "read", Path: name, Err: err})
		}
		// The kernel gives such a file whole where there is room for all of it.
		if text = text[:len(text)+n]; n == 0 || len(text) < cap(text) {
			return text, nil
		}
		text = slices.Grow(text, cap(text))
	}
}
