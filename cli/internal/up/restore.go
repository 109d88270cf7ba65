package up

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"dhow.dev/services/store"
)

// RestoreConfig configures Restore.
type RestoreConfig struct {
	// File is what `dhow backup` wrote.
	File    string
	DataDir string
	Out     io.Writer
}

// Restore gives a data directory the data of a backup, for the next Run.
func Restore(ctx context.Context, config RestoreConfig) error {
	absolute, err := filepath.Abs(config.DataDir)
	if err != nil {
		return err
	}
	dir := directory(absolute)
	running, err := dir.locked()
	if err != nil {
		return err
	}
	if running {
		return fmt.Errorf("a cluster runs in %s: stop it with `dhow down`", dir)
	}
	if _, err := os.Stat(dir.keyFile()); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s is missing: Secrets in the backup are encrypted with it, so put the old cluster's folder pki into %s first", dir.keyFile(), dir)
	} else if err != nil {
		return err
	}
	m, _, err := dir.load()
	if err != nil {
		return err
	}
	again := "dhow up"
	if len(m.Hosts) == 0 {
		err = store.Restore(ctx, store.RestoreConfig{File: config.File, DataDir: dir.path("store")})
	} else {
		again = fmt.Sprintf("dhow up --hosts %d", len(m.Hosts))
	}
	for _, h := range m.Hosts {
		if err == nil {
			err = store.Restore(ctx, store.RestoreConfig{File: config.File, DataDir: m.storeDir(dir, h), Members: m.storeMembers(h)})
		}
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(config.Out, "Restored into %s: start the cluster with `%s`.\n", dir, again)
	return nil
}
