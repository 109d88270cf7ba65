package store

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"

	"dhow.dev/services/store/internal/etcd"
)

// RestoreConfig configures Restore.
type RestoreConfig struct {
	// File is what `dhow backup` wrote.
	File string
	// DataDir is the data folder to make, as Config's. It may not hold a database.
	DataDir string
	// Members, when several stores are to keep the data: each restores from the same file, with the same addresses and token. Listen and TLS are not used.
	Members *Members
	// Logger gets warnings. Nil discards them.
	Logger *slog.Logger
}

// Restore makes the data folder of a store out of a backup. It is a new database: resource versions begin beyond all that the old one had, and
// whoever comes with one of those is told to list again.
func Restore(ctx context.Context, config RestoreConfig) error {
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	if err := etcd.Restore(ctx, etcd.RestoreConfig{File: config.File, Dir: config.DataDir, Members: config.Members, Logger: config.Logger}); err != nil {
		return fmt.Errorf("store: %w", err)
	}
	return nil
}

// mainRestore is the command `dhow-store restore`.
func mainRestore(ctx context.Context, arguments []string, stderr io.Writer) error {
	var config RestoreConfig
	var member memberFlags
	flags := flag.NewFlagSet("dhow-store restore", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&config.File, "from", "", "file that `dhow backup` wrote")
	flags.StringVar(&config.DataDir, "data-dir", "", "folder of the embedded etcd to make")
	member.add(flags)
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if config.File == "" || config.DataDir == "" {
		return errors.New("give --from and --data-dir")
	}
	var err error
	if config.Members, err = member.members(); err != nil {
		return err
	}
	return Restore(ctx, config)
}
