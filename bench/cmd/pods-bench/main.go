// pods-bench measures what a cluster of `dhow up` adds to its container runtime: starts, removals, killed containers, and what it uses while nothing happens.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"k8s.io/client-go/tools/clientcmd"

	"dhow.dev/bench/pods"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "pods-bench:", err)
		os.Exit(1)
	}
}

func run() error {
	dataDir := flag.String("data-dir", "/var/lib/dhow", "the cluster's data directory, as `dhow up` has it")
	kubeconfig := flag.String("kubeconfig", "", "the file that says how to reach the cluster; empty: kubeconfig in the data directory")
	runtime := flag.String("runtime", "", "another container runtime's address (unix:///…), for a cluster that is not one of `dhow up`; needs --node, --kubeconfig and --processes")
	node := flag.String("node", "", "the node; empty: the first one")
	folders := flag.String("processes", "", "texts by which the command lines of the cluster's processes are known, separated by commas; empty: its data directory and its runtime's folder")
	most := flag.Duration("timeout", 30*time.Minute, "when to give up")
	c := pods.Config{Out: os.Stdout}
	flag.StringVar(&c.Image, "image", "registry.dhow:5000/tools:v1", "an image with a shell that the node can get; bin/dhow-example-images serves the default")
	flag.IntVar(&c.Pods, "pods", 100, "how many pods")
	flag.IntVar(&c.AtOnce, "at-once", 4, "how many pods the bare runtime starts at once")
	flag.IntVar(&c.Rounds, "rounds", 3, "how often all is measured")
	flag.IntVar(&c.Kills, "kills", 5, "how many containers are killed in each round")
	flag.DurationVar(&c.Idle, "idle", time.Minute, "how long the cluster is left alone with all pods in each round; 0: not at all")
	flag.Parse()
	if c.Pods < 1 || c.AtOnce < 1 || c.Rounds < 1 {
		return errors.New("--pods, --at-once and --rounds: want at least 1")
	}
	if *runtime == "" {
		var machine struct {
			Nodes []struct{ Name, CRI string }
		}
		data, err := os.ReadFile(filepath.Join(*dataDir, "cluster.json"))
		if err != nil {
			return fmt.Errorf("%w: start a cluster with `dhow up` first, or give --runtime", err)
		}
		if err := json.Unmarshal(data, &machine); err != nil {
			return fmt.Errorf("cluster.json: %w", err)
		}
		for _, n := range machine.Nodes {
			if *node == "" || *node == n.Name {
				c.Node, c.Runtime = n.Name, n.CRI
				break
			}
		}
		if c.Runtime == "" {
			return fmt.Errorf("the cluster has no node %q", *node)
		}
		c.Folders = []string{*dataDir, filepath.Dir(strings.TrimPrefix(c.Runtime, "unix://"))}
	} else {
		c.Node, c.Runtime = *node, *runtime
	}
	if *folders != "" {
		c.Folders = strings.Split(*folders, ",")
	}
	if *kubeconfig == "" {
		*kubeconfig = filepath.Join(*dataDir, "kubeconfig")
	}
	var err error
	if c.API, err = clientcmd.BuildConfigFromFlags("", *kubeconfig); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, *most)
	defer cancel()
	return pods.Run(ctx, c)
}
