// dhow-demo tells Dhow's whole story on this machine and checks every step of it.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"dhow.dev/e2e/demo"
)

func main() {
	config := demo.Config{Nodes: 3, Out: os.Stdout}
	flag.StringVar(&config.Dhow, "dhow", filepath.Join("bin", "dhow"), "the dhow program")
	flag.StringVar(&config.Repository, "repository", ".", "this repository")
	flag.StringVar(&config.DataDir, "data-dir", "/var/lib/dhow-demo", "the cluster's data directory, which must not exist")
	flag.StringVar(&config.Listen, "listen", "127.0.0.1:7450", "the gRPC API's address")
	flag.StringVar(&config.Kubernetes, "kubernetes-listen", "127.0.0.1:6450", "the Kubernetes API's address")
	flag.IntVar(&config.Replicas, "replicas", 100, "how far the web tier is scaled")
	flag.BoolVar(&config.Separate, "separate", false, "run the five services as five processes")
	flag.StringVar(&config.Without, "without", "", "leave one service out, to see the demo fail")
	flag.DurationVar(&config.StepTimeout, "step-timeout", 5*time.Minute, "bound on each step")
	flag.BoolVar(&config.Keep, "keep", false, "leave the cluster up")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := demo.Run(ctx, config); err != nil {
		fmt.Fprintln(os.Stderr, "\ndemo failed:", err)
		os.Exit(1)
	}
}
