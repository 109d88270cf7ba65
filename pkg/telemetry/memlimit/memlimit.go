// Package memlimit tells Go's garbage collector how much memory the process may have, from the limit of its control group. Without
// that the heap may grow to twice what lives and the kernel kills a process that had garbage to free.
package memlimit

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"

	"dhow.dev/pkg/telemetry/logkey"
)

const (
	// share of the limit for Go's heap; the rest is for stacks of cgo, the page cache of mapped files (etcd's), and the kernel.
	share = 0.9
	// none is above any real limit: cgroup v1 says "no limit" with the largest multiple of a page.
	none = int64(1) << 60
)

// Set applies the limit of the process's control group, unless GOMEMLIMIT is set or there is no limit. A limit that cannot be read
// is logged: the process runs as well without.
func Set(logger *slog.Logger) {
	if _, ok := os.LookupEnv("GOMEMLIMIT"); ok {
		return
	}
	limit, err := Read(os.DirFS("/"))
	switch {
	case err != nil:
		logger.Warn("memory limit of the control group not read", logkey.Err(err))
	case limit > 0:
		debug.SetMemoryLimit(int64(float64(limit) * share))
		logger.Debug("memory limit taken from the control group", logkey.Bytes(limit))
	}
}

// Read returns the memory limit in bytes that applies to this process, the smallest on the way up from its control group, of
// cgroup v2 and v1 alike; 0 when there is none. The file system is the machine's root.
func Read(root fs.FS) (int64, error) {
	memberships, err := fs.ReadFile(root, "proc/self/cgroup")
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil // not Linux
	}
	if err != nil {
		return 0, err
	}
	mounts, err := readMounts(root)
	if err != nil {
		return 0, err
	}
	smallest := int64(math.MaxInt64)
	for line := range strings.Lines(string(memberships)) {
		// hierarchy-id:controllers:path, see cgroups(7); v2 is the line without controllers.
		fields := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(fields) != 3 {
			continue
		}
		file, v2 := "memory.max", fields[1] == ""
		if !v2 {
			if !slices.Contains(strings.Split(fields[1], ","), "memory") {
				continue
			}
			file = "memory.limit_in_bytes"
		}
		for _, m := range mounts {
			if m.v2 != v2 || !m.memory {
				continue
			}
			limit, err := m.limit(root, fields[2], file)
			if err != nil {
				return 0, err
			}
			smallest = min(smallest, limit)
		}
	}
	if smallest >= none {
		return 0, nil
	}
	return smallest, nil
}

// mount is where a hierarchy with the memory controller can be seen.
type mount struct {
	root, point string
	v2, memory  bool
}

func readMounts(root fs.FS) ([]mount, error) {
	data, err := fs.ReadFile(root, "proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var mounts []mount
	scanner := bufio.NewScanner(bytes.NewReader(data))
	scanner.Buffer(nil, 1<<20) // overlay mounts have long options
	for scanner.Scan() {
		// id parent major:minor root point options [optional...] - type source superoptions, see proc_pid_mountinfo(5)
		before, after, ok := strings.Cut(scanner.Text(), " - ")
		left, right := strings.Fields(before), strings.Fields(after)
		if !ok || len(left) < 5 || len(right) < 3 {
			continue
		}
		m := mount{root: left[3], point: left[4]}
		switch right[0] {
		case "cgroup2":
			m.v2, m.memory = true, true
		case "cgroup":
			m.memory = slices.Contains(strings.Split(right[2], ","), "memory")
		default:
			continue
		}
		mounts = append(mounts, m)
	}
	return mounts, scanner.Err()
}

// limit returns the smallest limit from the group up to the mount's root. In a container without a cgroup namespace the group's
// path begins with the mount's root; when it lies outside of what is mounted, the mount's root is the best known.
func (m mount) limit(root fs.FS, group, file string) (int64, error) {
	relative := "/"
	if m.root == "/" {
		relative = group
	} else if inside, ok := strings.CutPrefix(group, m.root); ok && (inside == "" || inside[0] == '/') {
		relative = inside
	}
	smallest := int64(math.MaxInt64)
	for at := path.Clean("/" + relative); ; at = path.Dir(at) {
		data, err := fs.ReadFile(root, strings.TrimPrefix(path.Join(m.point, at, file), "/"))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			// The root group of v2 has no limit file, nor have groups without the controller.
		case err != nil:
			return 0, err
		case strings.TrimSpace(string(data)) != "max":
			value, err := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
			if err != nil {
				return 0, fmt.Errorf("%s of control group %s: %w", file, at, err)
			}
			smallest = min(smallest, value)
		}
		if at == "/" {
			return smallest, nil
		}
	}
}
