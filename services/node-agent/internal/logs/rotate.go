package logs

import (
	"cmp"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"dhow.dev/pkg/telemetry/logkey"
)

// Kubernetes' bounds of a container's log.
const (
	MaxSize  = 10 << 20
	MaxFiles = 5
	// interval is how often sizes are looked at. A log grows without any event that could tell.
	interval = 10 * time.Second
	// packed is the end of the name of a file that is compressed; unfinished of one that is being.
	packed     = ".gz"
	unfinished = ".tmp"
)

// Rotator keeps the logs of running containers within bounds. The file before the one that is written to stays as it is, for its readers; older ones are compressed.
type Rotator struct {
	// Running returns the log paths of running containers by ID.
	Running func() map[string]string
	// Reopen makes the runtime write to a new file.
	Reopen func(ctx context.Context, id string) error
	// MaxSize is in bytes, MaxFiles counts the one that is written to; 0: the constants of their names.
	MaxSize  int64
	MaxFiles int
	Logger   *slog.Logger
}

// Run rotates until ctx ends.
func (r *Rotator) Run(ctx context.Context) error {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		for id, path := range r.Running() {
			if err := r.rotate(ctx, id, path); err != nil {
				r.Logger.WarnContext(ctx, "container log not rotated", logkey.ContainerID(id), logkey.Err(err))
			}
		}
	}
}

func (r *Rotator) rotate(ctx context.Context, id, path string) error {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil || info.Size() < cmp.Or(r.MaxSize, MaxSize) {
		return err
	}
	if err := tidy(path, max(cmp.Or(r.MaxFiles, MaxFiles), 2)-2); err != nil {
		return err
	}
	old := path + "." + time.Now().UTC().Format("20060102-150405")
	if err := os.Rename(path, old); err != nil {
		return err
	}
	if err := r.Reopen(ctx, id); err != nil {
		// Without a new file the runtime goes on writing to the old one: give it its name back.
		return errors.Join(fmt.Errorf("reopen: %w", err), os.Rename(old, path))
	}
	return nil
}

// tidy leaves at most so many old files of a log, all of them compressed.
func tidy(path string, keep int) error {
	rotated, err := filepath.Glob(path + ".*")
	if err != nil {
		return err
	}
	slices.Sort(rotated)
	// What a crash has left half compressed is done again.
	rotated = slices.DeleteFunc(rotated, func(name string) bool {
		if strings.HasSuffix(name, unfinished) {
			_ = os.Remove(name) // it only takes space, and the next round tries again
			return true
		}
		return false
	})
	for len(rotated) > keep {
		if err := os.Remove(rotated[0]); err != nil {
			return err
		}
		rotated = rotated[1:]
	}
	for _, name := range rotated {
		if strings.HasSuffix(name, packed) {
			continue
		}
		if err := compress(name); err != nil {
			return fmt.Errorf("compress %s: %w", name, err)
		}
	}
	return nil
}

// Remove removes a log with all that was rotated of it.
func Remove(path string) error {
	parts, err := filepath.Glob(path + "*")
	if err != nil {
		return err
	}
	for _, name := range parts {
		if name != path && !strings.HasPrefix(name, path+".") {
			continue
		}
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func compress(name string) (err error) {
	from, err := os.Open(name)
	if err != nil {
		return err
	}
	defer func() { _ = from.Close() }()
	to, err := os.OpenFile(name+unfinished, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o640)
	if err != nil {
		return err
	}
	w := gzip.NewWriter(to)
	_, err = io.Copy(w, from)
	if err := errors.Join(err, w.Close(), to.Close()); err != nil {
		return errors.Join(err, os.Remove(name+unfinished))
	}
	if err := os.Rename(name+unfinished, name+packed); err != nil {
		return err
	}
	return os.Remove(name)
}
