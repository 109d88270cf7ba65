// dhow is the command line of Dhow and its one-process mode.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"dhow.dev/cli/internal/command"
	"dhow.dev/cli/internal/local"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	streams := command.Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}
	os.Exit(command.Main(ctx, os.Args[1:], streams, append(local.Commands(streams), command.NewRelease(streams))...))
}
