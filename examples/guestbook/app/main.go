// Guestbook is a small two-tier application: `guestbook data` keeps entries, `guestbook web` shows them and takes new ones. `guestbook` is both, for a first try.
// It uses nothing but what its manifests give it: environment, files, DNS names and probes.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// version is set by the linker, so that two builds of the image can be told apart.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		slog.Error("guestbook ended", "error", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) > 1 {
		return errors.New("usage: guestbook [web|data]; without an argument it is both tiers")
	}
	var handler http.Handler
	switch tier := append(args, "both")[0]; tier {
	case "both":
		w, end, err := both()
		if err != nil {
			return err
		}
		defer end()
		handler = w
	case "web":
		w, err := newWeb(os.Getenv, os.ReadFile)
		if err != nil {
			return err
		}
		handler = w
	case "data":
		d, err := newData(os.Getenv("DATA_FILE"), os.Getenv("TOKEN"))
		if err != nil {
			return err
		}
		handler = d
	default:
		return fmt.Errorf("unknown tier %q: use web or data", tier)
	}
	return serve(ctx, ":8080", handler)
}

// serve answers requests until ctx ends, then lets those under way finish.
func serve(ctx context.Context, address string, handler http.Handler) error {
	server := &http.Server{Addr: address, Handler: handler, ReadHeaderTimeout: 5 * time.Second}
	failed := make(chan error, 1)
	go func() { failed <- server.ListenAndServe() }()
	slog.Info("serving", "address", address, "version", version)
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	slog.Info("shutting down")
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	return server.Shutdown(grace)
}
