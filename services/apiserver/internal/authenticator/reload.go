package authenticator

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/fsnotify/fsnotify"

	"dhow.dev/pkg/telemetry/logkey"
)

// Run applies the configuration file whenever it changes, until ctx ends. A file that cannot be applied changes nothing, and is complained about.
func (v *Verifier) Run(ctx context.Context) error {
	if v.file == "" {
		return nil
	}
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch %s: %w", v.file, err)
	}
	defer watcher.Close()
	// The directory is watched: files are replaced by renames, and in volumes of ConfigMaps it is a link beside them that changes.
	if err := watcher.Add(filepath.Dir(v.file)); err != nil {
		return fmt.Errorf("watch %s: %w", v.file, err)
	}
	// What was written between the start and now is found here.
	last := v.reload(ctx, nil)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-watcher.Events:
			last = v.reload(ctx, last)
		case err := <-watcher.Errors:
			// Events may have been lost.
			v.logger.LogAttrs(ctx, slog.LevelWarn, "authentication configuration cannot be watched well", logkey.Err(err))
			last = v.reload(ctx, last)
		}
	}
}

// reload applies the file if it is not what it was last, and returns what it is.
func (v *Verifier) reload(ctx context.Context, last []byte) []byte {
	data, err := os.ReadFile(v.file)
	if err == nil && bytes.Equal(data, last) {
		return last
	}
	var next Rules
	if err == nil {
		next, err = parseConfiguration(data)
	}
	if err == nil {
		err = v.Apply(next)
	}
	if err != nil {
		v.logger.LogAttrs(ctx, slog.LevelError, "authentication configuration not applied, the former one counts", logkey.Path(v.file), logkey.Err(err))
		return data
	}
	v.logger.LogAttrs(ctx, slog.LevelInfo, "authentication configuration applied", logkey.Path(v.file))
	return data
}
