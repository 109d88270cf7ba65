// Carrier is the program of the image that end-to-end tests run in a cluster that they know by its kubeconfig alone.
//
//	carrier serve ADDRESS   serves the images in the working directory as a registry
//	carrier dial SOCKET     connects its standard streams with a Unix socket, for who may run programs in a pod and nothing else
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"syscall"

	"dhow.dev/pkg/image"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "carrier:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) != 2 {
		return errors.New("usage: carrier serve ADDRESS | carrier dial SOCKET")
	}
	switch args[0] {
	case "serve":
		return serve(ctx, args[1])
	case "dial":
		return dial(ctx, args[1], os.Stdin, os.Stdout)
	default:
		return fmt.Errorf("unknown command %q", args[0])
	}
}

func serve(ctx context.Context, address string) error {
	registry, err := image.NewRegistry(image.RegistryConfig{Dir: "."})
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	return registry.Serve(ctx, listener)
}

// dial returns when either side has nothing more to say.
func dial(ctx context.Context, socket string, in io.Reader, out io.Writer) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	ended := make(chan error, 2)
	go func() {
		_, err := io.Copy(conn, in)
		ended <- err
	}()
	go func() {
		_, err := io.Copy(out, conn)
		ended <- err
	}()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		return nil
	}
}
