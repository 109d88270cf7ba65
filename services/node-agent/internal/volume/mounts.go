package volume

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// mountPoint is a line of the kernel's table of mounts.
type mountPoint struct {
	path   string
	shared bool
	// options are the mount's and its file system's.
	options []string
}

// mountTable reads the table of mounts of the agent's namespace; later mounts come later.
func mountTable() ([]mountPoint, error) {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var all []mountPoint
	for line := range strings.Lines(string(table)) {
		fields := strings.Fields(line)
		if len(fields) < 7 {
			continue
		}
		// Optional fields stand between the sixth and a hyphen.
		optional := fields[6:max(6, slices.Index(fields, "-"))]
		options := strings.Split(fields[5], ",")
		if at := slices.Index(fields, "-"); at >= 0 && len(fields) > at+3 {
			options = append(options, strings.Split(fields[at+3], ",")...)
		}
		all = append(all, mountPoint{options: options, path: unescape(fields[4]), shared: slices.ContainsFunc(optional, func(f string) bool { return strings.HasPrefix(f, "shared:") })})
	}
	return all, nil
}

// isMountPoint says whether something is mounted at a path, a bind mount of the same file system among them.
func isMountPoint(path string) (bool, error) {
	all, err := mountTable()
	if err != nil {
		return false, err
	}
	real, err := filepath.EvalSymlinks(filepath.Dir(path))
	if err != nil {
		if os.IsNotExist(err) {
			return false, nil
		}
		return false, err
	}
	path = filepath.Join(real, filepath.Base(path))
	return slices.ContainsFunc(all, func(m mountPoint) bool { return m.path == path }), nil
}

// labelled says whether files of the mount at a path have SELinux labels of their own.
func labelled(path string) (bool, error) {
	all, err := mountTable()
	if err != nil {
		return false, err
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return false, err
	}
	for _, m := range slices.Backward(all) {
		if m.path == real {
			return slices.Contains(m.options, "seclabel"), nil
		}
	}
	return false, nil
}

// Share makes a folder a mount of its own that shares its mounts, unless it is in one already: only then what a CSI driver mounts in its container
// appears on the node, and what appears on the node can be seen in containers that ask for it. Most machines share everything; containers and small
// systems do not.
func Share(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return err
	}
	all, err := mountTable()
	if err != nil {
		return err
	}
	var over mountPoint
	for _, m := range all {
		if (m.path == real || m.path == "/" || strings.HasPrefix(real, m.path+"/")) && len(m.path) >= len(over.path) {
			over = m
		}
	}
	if over.shared {
		return nil
	}
	if over.path != real {
		if err := unix.Mount(real, real, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("make %s a mount of its own: %w", real, err)
		}
	}
	if err := unix.Mount("", real, "", unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("share the mounts below %s: %w", real, err)
	}
	return nil
}

// Unshare undoes Share when nothing runs any more.
func Unshare(dir string) error {
	real, err := filepath.EvalSymlinks(dir)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return err
	}
	is, err := isMountPoint(real)
	if err != nil || !is {
		return err
	}
	return unmount(real)
}

// mountsBelow returns the mounts below a folder, deepest last.
func mountsBelow(dir string) ([]string, error) {
	all, err := mountTable()
	if err != nil {
		return nil, err
	}
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dir = real
	}
	var below []string
	for _, m := range all {
		if strings.HasPrefix(m.path, dir+"/") {
			below = append(below, m.path)
		}
	}
	return below, nil
}
