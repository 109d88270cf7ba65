package usage

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"syscall"
)

// shares is the folder of a pod that has its shares of NFS servers. They are not even looked at: a server that is gone would keep who does that waiting for ever.
const shares = "kubernetes.io~nfs"

// Tree measures what a folder takes on its disk, in bytes and inodes. What is mounted below it is not on its disk; files that vanish meanwhile do not count.
func Tree(ctx context.Context, dir string) (bytes, inodes int64, err error) {
	var device uint64
	linked := map[uint64]bool{}
	err = filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if entry.IsDir() && entry.Name() == shares {
			return fs.SkipDir
		}
		info, err := entry.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		stat, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return nil
		}
		switch {
		case path == dir:
			device = stat.Dev
		case stat.Dev != device && entry.IsDir():
			return fs.SkipDir
		case stat.Dev != device:
			return nil
		}
		if stat.Nlink > 1 && !entry.IsDir() {
			if linked[stat.Ino] {
				return nil
			}
			linked[stat.Ino] = true
		}
		bytes += stat.Blocks * 512 // the unit of st_blocks, whatever the disk's is
		inodes++
		return nil
	})
	return bytes, inodes, err
}
