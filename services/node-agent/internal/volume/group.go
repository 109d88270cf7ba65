package volume

import (
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
)

// What a group gets of a volume that is its own.
const (
	groupWrites = 0o660
	groupReads  = 0o440
	groupEnters = 0o110
)

// setGroup gives everything below a folder to the pod's fsGroup, if it has one, as Kubernetes does: owned by the group, read and written by it, and new
// files inherit it. With the policy OnRootMismatch a folder that looks right is trusted to be right below.
func setGroup(pod *corev1.Pod, root string, readOnly bool) error {
	gid := fsGroup(pod)
	if gid < 0 {
		return nil
	}
	if pod.GetSpec().GetSecurityContext().GetFsGroupChangePolicy() == "OnRootMismatch" {
		info, err := os.Stat(root)
		if err != nil {
			return err
		}
		need := fs.FileMode(groupWrites | groupEnters)
		if readOnly {
			need = groupReads | groupEnters
		}
		if stat, ok := info.Sys().(*syscall.Stat_t); ok && int64(stat.Gid) == gid && info.Mode().Perm()&need == need && info.Mode()&fs.ModeSetgid != 0 {
			return nil
		}
	}
	return filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			if os.IsNotExist(err) {
				return nil // another pod has removed it meanwhile
			}
			return err
		}
		if err := os.Lchown(path, -1, int(gid)); err != nil && !os.IsNotExist(err) {
			return err
		}
		if info.Mode()&fs.ModeSymlink != 0 {
			return nil
		}
		mode := info.Mode().Perm() | groupWrites
		if readOnly {
			mode = info.Mode().Perm() | groupReads
		}
		mode |= info.Mode() & (fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky)
		if info.IsDir() {
			mode |= fs.ModeSetgid | groupEnters
		}
		if err := os.Chmod(path, mode); err != nil && !os.IsNotExist(err) {
			return err
		}
		return nil
	})
}
