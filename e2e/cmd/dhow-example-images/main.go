// dhow-example-images builds the examples' images and serves them to the nodes of a cluster of this machine, until Ctrl-C.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"dhow.dev/e2e/evidence"
	"dhow.dev/e2e/images"
)

func main() {
	repository := flag.String("repository", ".", "this repository")
	dataDir := flag.String("data-dir", "/var/lib/dhow", "the cluster's data directory")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *repository, *dataDir); err != nil {
		fmt.Fprintln(os.Stderr, "dhow-example-images:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, repository, dataDir string) error {
	machine, err := evidence.Read(dataDir)
	if err != nil {
		return fmt.Errorf("%w: start a cluster with `dhow up` first", err)
	}
	dir, err := os.MkdirTemp("", "dhow-example-images-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	registry, err := images.Build(ctx, repository, dir)
	if err != nil {
		return err
	}
	stop, err := registry.Start(machine.Gateway)
	if err != nil {
		return err
	}
	fmt.Printf("%s/tools:v1, guestbook:v1 and guestbook:v2 are served to the nodes. Ctrl-C ends it.\n", images.Name)
	<-ctx.Done()
	return stop()
}
