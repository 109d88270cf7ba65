package volume

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// file is one file of a volume made from objects.
type file struct {
	data []byte
	mode os.FileMode
}

// payload maps relative paths to files.
type payload map[string]file

// put adds a file. Paths are validated by the API server; this is the last guard before the disk.
func (p payload) put(path string, f file) error {
	if !filepath.IsLocal(path) || strings.HasPrefix(filepath.Clean(path), "..") {
		return fmt.Errorf("path %q must be relative and stay inside the volume", path)
	}
	p[filepath.Clean(path)] = f
	return nil
}

// digest identifies contents and modes.
func (p payload) digest(gid int64) string {
	h := sha256.New()
	for _, path := range slices.Sorted(maps.Keys(p)) {
		fmt.Fprintf(h, "%q %o %d %d\n", path, p[path].mode, gid, len(p[path].data))
		h.Write(p[path].data)
	}
	return hex.EncodeToString(h.Sum(nil))[:32]
}

// Links and folders of the layout that Kubernetes' users know: what a pod sees as VOLUME/key is a link to ..data/key, and ..data is a link to a
// folder of one version, so that all files change at once when ..data is replaced.
const (
	dataLink    = "..data"
	newDataLink = "..data_tmp"
)

// write makes dir hold exactly the payload, atomically for readers. It does nothing when dir holds it already, and says whether it wrote.
func (p payload) write(dir string, gid int64) (bool, error) {
	version := "..v" + p.digest(gid)
	current, err := os.Readlink(filepath.Join(dir, dataLink))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	if current == version {
		return false, p.link(dir) // finishes what a crash may have left between the links
	}
	target := filepath.Join(dir, version)
	if err := os.RemoveAll(target); err != nil {
		return false, err
	}
	if err := os.Mkdir(target, 0o755); err != nil {
		return false, err
	}
	for path, f := range p {
		name := filepath.Join(target, path)
		if gid >= 0 {
			// As Kubernetes does with a pod's fsGroup: what it owns it may read.
			f.mode |= 0o440
		}
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return false, err
		}
		if err := os.WriteFile(name, f.data, f.mode); err != nil {
			return false, err
		}
		// The process' umask must not take bits that the user asked for.
		if err := os.Chmod(name, f.mode); err != nil {
			return false, err
		}
		if gid >= 0 {
			if err := os.Chown(name, -1, int(gid)); err != nil {
				return false, err
			}
		}
	}
	tmp := filepath.Join(dir, newDataLink)
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	if err := os.Symlink(version, tmp); err != nil {
		return false, err
	}
	if err := os.Rename(tmp, filepath.Join(dir, dataLink)); err != nil {
		return false, err
	}
	if err := p.link(dir); err != nil {
		return false, err
	}
	return true, p.clean(dir, version)
}

// link makes the visible entries, one per first path element.
func (p payload) link(dir string) error {
	for path := range p {
		top, _, _ := strings.Cut(path, string(filepath.Separator))
		name, want := filepath.Join(dir, top), filepath.Join(dataLink, top)
		if got, err := os.Readlink(name); err == nil && got == want {
			continue
		}
		if err := os.RemoveAll(name); err != nil {
			return err
		}
		if err := os.Symlink(want, name); err != nil {
			return err
		}
	}
	return nil
}

// clean removes entries and versions that are not the payload's.
func (p payload) clean(dir, version string) error {
	tops := map[string]bool{dataLink: true, version: true}
	for path := range p {
		top, _, _ := strings.Cut(path, string(filepath.Separator))
		tops[top] = true
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !tops[e.Name()] {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// mounted says whether something is mounted at dir.
func mounted(dir string) (bool, error) {
	var here, above unix.Stat_t
	if err := unix.Lstat(dir, &here); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		return false, err
	}
	if err := unix.Lstat(filepath.Dir(dir), &above); err != nil {
		return false, err
	}
	return here.Dev != above.Dev, nil
}

// mountMemory mounts a tmpfs at dir unless there is one. Size 0 is the kernel's default.
func mountMemory(dir string, size int64, mode os.FileMode) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	is, err := mounted(dir)
	if err != nil || is {
		return err
	}
	options := fmt.Sprintf("mode=%o", mode.Perm())
	if size > 0 {
		options += fmt.Sprintf(",size=%d", size)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		return fmt.Errorf("mount a tmpfs on %s: %w", dir, err)
	}
	return nil
}

// unmount unmounts dir if something is mounted there. A busy mount is detached: its last user frees it.
func unmount(dir string) error {
	err := unix.Unmount(dir, unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EBUSY) {
		err = unix.Unmount(dir, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
	}
	if errors.Is(err, unix.EINVAL) || errors.Is(err, fs.ErrNotExist) {
		return nil // nothing is mounted there
	}
	if err != nil {
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	return nil
}
