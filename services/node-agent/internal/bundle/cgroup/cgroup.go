// Package cgroup creates, empties and removes subtrees of the machine's control groups, of version 1 and 2. It sets no limits: the
// container runtime does that; this package makes the parents that the runtime's groups live in, and clears them away.
//
// A path here is absolute below the mount points, as in /proc/PID/cgroup: "/dhow/demo/node-1".
package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Version is the cgroup version that controllers are used through.
type Version int

const (
	V1 Version = 1
	V2 Version = 2
)

func (v Version) String() string { return "v" + strconv.Itoa(int(v)) }

// root is where every distribution mounts the hierarchies, and where runc looks for them.
const root = "/sys/fs/cgroup"

// mount is one hierarchy.
type mount struct {
	dir         string
	version     Version
	controllers []string // v1 only
}

// Hierarchies are the machine's mounted cgroup hierarchies.
type Hierarchies struct {
	version Version
	mounts  []mount
}

// Open finds the mounted hierarchies. On a machine with both versions ("hybrid") the version is 1, as for runc.
func Open() (*Hierarchies, error) {
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("find cgroups: %w", err)
	}
	mounts := parseMounts(string(info))
	if len(mounts) == 0 {
		return nil, fmt.Errorf("no cgroup hierarchy is mounted below %s: mount cgroup2 there (mount -t cgroup2 none %s)", root, root)
	}
	h := &Hierarchies{version: V1, mounts: mounts}
	if slices.ContainsFunc(mounts, func(m mount) bool { return m.version == V2 && m.dir == root }) {
		h.version = V2
	}
	return h, nil
}

func parseMounts(mountinfo string) []mount {
	var mounts []mount
	for line := range strings.Lines(mountinfo) {
		// Fields before " - " end with the mount point's options, see proc_pid_mountinfo(5).
		before, after, ok := strings.Cut(strings.TrimSpace(line), " - ")
		left, right := strings.Fields(before), strings.Fields(after)
		if !ok || len(left) < 5 || len(right) < 3 {
			continue
		}
		dir := left[4]
		if dir != root && !strings.HasPrefix(dir, root+"/") || slices.ContainsFunc(mounts, func(m mount) bool { return m.dir == dir }) {
			continue
		}
		switch right[0] {
		case "cgroup2":
			mounts = append(mounts, mount{dir: dir, version: V2})
		case "cgroup":
			mounts = append(mounts, mount{dir: dir, version: V1, controllers: strings.Split(right[2], ",")})
		}
	}
	return mounts
}

// Version is the one that containers' limits are set through.
func (h *Hierarchies) Version() Version { return h.version }

// Controllers lists the controllers that containers can be limited by.
func (h *Hierarchies) Controllers() ([]string, error) {
	var names []string
	for _, m := range h.mounts {
		if h.version == V1 {
			names = append(names, m.controllers...)
		} else if m.dir == root {
			data, err := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
			if err != nil {
				return nil, err
			}
			names = strings.Fields(string(data))
		}
	}
	return names, nil
}

// Create makes the group and its parents in every hierarchy, ready to hold processes and groups below it.
func (h *Hierarchies) Create(path string) error {
	steps, err := split(path)
	if err != nil {
		return err
	}
	for _, m := range h.mounts {
		if m.version != h.version {
			continue // the second hierarchy of a hybrid machine has no controllers
		}
		dir := m.dir
		for _, step := range steps {
			parent := dir
			dir = filepath.Join(dir, step)
			if m.version == V2 {
				if err := delegate(parent); err != nil {
					return fmt.Errorf("cgroup %s: %w", path, err)
				}
			}
			if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("create cgroup: %w", err)
			}
			if slices.Contains(m.controllers, "cpuset") {
				if err := inheritCPUSet(parent, dir); err != nil {
					return fmt.Errorf("cgroup %s: %w", path, err)
				}
			}
		}
	}
	return nil
}

// delegate lets the children of a v2 group use every controller that the group itself may use.
func delegate(dir string) error {
	available, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return err
	}
	enabled, err := os.ReadFile(filepath.Join(dir, "cgroup.subtree_control"))
	if err != nil {
		return err
	}
	for _, controller := range strings.Fields(string(available)) {
		if slices.Contains(strings.Fields(string(enabled)), controller) {
			continue
		}
		err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+controller), 0o644)
		// Some controllers refuse in some places (a realtime process under cpu, a threaded parent); the runtime reports those that
		// a container really needs.
		if errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("group %s holds processes, so its children cannot have limits: choose a cgroup parent without processes of its own", dir)
		}
		if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EOPNOTSUPP) {
			return err
		}
	}
	return nil
}

// inheritCPUSet fills in a new v1 cpuset, which starts empty and then accepts no process.
func inheritCPUSet(parent, dir string) error {
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		have, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			return err
		}
		if strings.TrimSpace(string(have)) != "" {
			continue
		}
		value, err := os.ReadFile(filepath.Join(parent, file))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, file), value, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// Processes lists the processes in the group and below it, over all hierarchies. A group that does not exist has none.
func (h *Hierarchies) Processes(path string) ([]int, error) {
	if _, err := split(path); err != nil {
		return nil, err
	}
	found := map[int]bool{}
	for _, m := range h.mounts {
		err := walk(filepath.Join(m.dir, path), func(dir string) error {
			data, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
			if err != nil {
				return ignoreGone(err)
			}
			for field := range strings.FieldsSeq(string(data)) {
				// 0 stands for a process of another pid namespace.
				if pid, err := strconv.Atoi(field); err == nil && pid > 0 {
					found[pid] = true
				}
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	pids := make([]int, 0, len(found))
	for pid := range found {
		pids = append(pids, pid)
	}
	slices.Sort(pids)
	return pids, nil
}

// Kill ends every process in the group and below it with SIGKILL, those too that are born meanwhile, and waits until they are gone.
func (h *Hierarchies) Kill(ctx context.Context, path string) error {
	for {
		pids, err := h.Processes(path)
		if err != nil || len(pids) == 0 {
			return err
		}
		if slices.Contains(pids, os.Getpid()) {
			return fmt.Errorf("cgroup %s holds this process itself: not killing", path)
		}
		if err := h.thaw(path); err != nil {
			return err
		}
		for _, pid := range pids {
			if err := killAndWait(ctx, pid); err != nil {
				return fmt.Errorf("cgroup %s: %w", path, err)
			}
		}
	}
}

// thaw wakes paused containers: a frozen v1 process does not die.
func (h *Hierarchies) thaw(path string) error {
	for _, m := range h.mounts {
		if !slices.Contains(m.controllers, "freezer") {
			continue
		}
		if err := walk(filepath.Join(m.dir, path), func(dir string) error {
			return ignoreGone(os.WriteFile(filepath.Join(dir, "freezer.state"), []byte("THAWED"), 0o644))
		}); err != nil {
			return fmt.Errorf("thaw cgroup %s: %w", path, err)
		}
	}
	return nil
}

// killAndWait holds the process by a file descriptor, so that the signal cannot reach another one with the same number.
func killAndWait(ctx context.Context, pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open process %d: %w", pid, err)
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill process %d: %w", pid, err)
	}
	for ctx.Err() == nil {
		// The timeout only bounds how late an ended context is noticed.
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 100)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for process %d: %w", pid, err)
		}
		if n > 0 {
			return nil
		}
	}
	return fmt.Errorf("process %d does not end: %w", pid, ctx.Err())
}

// Remove deletes the group, everything below it, and parents that are empty then. It must hold no processes.
func (h *Hierarchies) Remove(path string) error {
	steps, err := split(path)
	if err != nil {
		return err
	}
	for _, m := range h.mounts {
		var dirs []string
		if err := walk(filepath.Join(m.dir, path), func(dir string) error {
			dirs = append(dirs, dir)
			return nil
		}); err != nil {
			return err
		}
		for _, dir := range slices.Backward(dirs) {
			if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("remove cgroup %s: %w", dir, err)
			}
		}
		for i := len(steps) - 1; i > 0; i-- {
			parent := filepath.Join(m.dir, filepath.Join(steps[:i]...))
			if err := unix.Rmdir(parent); err != nil {
				break // still in use by others, or never made here
			}
		}
	}
	return nil
}

// split refuses paths that would reach the whole machine.
func split(path string) ([]string, error) {
	if !strings.HasPrefix(path, "/") || filepath.Clean(path) != path || path == "/" {
		return nil, fmt.Errorf("cgroup path %q: must be absolute, clean and below the root", path)
	}
	return strings.Split(path[1:], "/"), nil
}

// walk visits the group's directory and those below, parents first. Groups vanish while it goes; that is no error.
func walk(dir string, visit func(dir string) error) error {
	err := filepath.WalkDir(dir, func(p string, entry fs.DirEntry, err error) error {
		if err != nil {
			if ignoreGone(err) == nil {
				return nil
			}
			return err
		}
		if !entry.IsDir() {
			return nil
		}
		return visit(p)
	})
	return ignoreGone(err)
}

func ignoreGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}
