package logs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"dhow.dev/pkg/telemetry/logkey"
)

// Kubernetes' bounds of a container's log.
const (
	maxSize  = 10 << 20
	maxFiles = 5
	// interval is how often sizes are looked at. A log grows without any event that could tell.
	interval = 10 * time.Second
)

// Rotator keeps the logs of running containers within bounds.
type Rotator struct {
	// Running returns the log paths of running containers by ID.
	Running func() map[string]string
	// Reopen makes the runtime write to a new file.
	Reopen func(ctx context.Context, id string) error
	Logger *slog.Logger
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
	if err != nil || info.Size() < maxSize {
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
	rotated, err := filepath.Glob(path + ".*")
	if err != nil {
		return err
	}
	slices.Sort(rotated)
	for len(rotated) > maxFiles-1 {
		if err := os.Remove(rotated[0]); err != nil {
			return err
		}
		rotated = rotated[1:]
	}
	return nil
}
