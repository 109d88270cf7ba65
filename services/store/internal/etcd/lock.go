package etcd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ErrInUse: another process has the data folder.
var ErrInUse = errors.New("the data is in use")

// dirLock keeps other processes off a data folder. The kernel lets go of it when the process ends, however it ends.
type dirLock struct{ file *os.File }

// lockDir locks a data folder. etcd's own lock would wait for ever, without a word; this one waits a while and says who has it.
func lockDir(ctx context.Context, dir string, wait time.Duration) (*dirLock, error) {
	if dir == "" {
		return nil, errors.New("no data folder: give one")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create the data folder: %w", err)
	}
	path := filepath.Join(dir, "lock")
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the data folder's lock: %w", err)
	}
	deadline := time.NewTimer(wait)
	defer deadline.Stop()
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	for {
		err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			if err := writeOwner(file); err != nil {
				file.Close()
				return nil, err
			}
			return &dirLock{file: file}, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			file.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		select {
		case <-again.C:
		case <-deadline.C:
			owner := readOwner(file)
			file.Close()
			return nil, fmt.Errorf("%s: %w by %s: stop it, or choose another data folder", dir, ErrInUse, owner)
		case <-ctx.Done():
			file.Close()
			return nil, fmt.Errorf("lock %s: %w", path, ctx.Err())
		}
	}
}

// writeOwner notes who has the lock, for the message of whoever does not get it.
func writeOwner(file *os.File) error {
	if err := file.Truncate(0); err != nil {
		return fmt.Errorf("write %s: %w", file.Name(), err)
	}
	if _, err := file.WriteAt(fmt.Appendf(nil, "%d\n", os.Getpid()), 0); err != nil {
		return fmt.Errorf("write %s: %w", file.Name(), err)
	}
	return nil
}

func readOwner(file *os.File) string {
	content := make([]byte, 20)
	n, _ := file.ReadAt(content, 0)
	if pid := strings.TrimSpace(string(content[:n])); pid != "" {
		return "process " + pid
	}
	return "another process"
}

func (l *dirLock) release() error {
	if err := l.file.Close(); err != nil {
		return fmt.Errorf("unlock %s: %w", l.file.Name(), err)
	}
	return nil
}
