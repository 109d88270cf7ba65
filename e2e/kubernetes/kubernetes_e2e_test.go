//go:build e2e

// Package kubernetes runs the scenarios on control planes that helm installs on Kubernetes clusters that are no part of this machine. `make e2e CLUSTER=…` chooses one;
// TestSelfHosting in e2e/charts goes the same way on a cluster of Dhow's own.
package kubernetes

import (
	"context"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"dhow.dev/e2e/cluster"
	"dhow.dev/e2e/images"
	"dhow.dev/e2e/kind"
	"dhow.dev/e2e/scenarios"
	"dhow.dev/pkg/image"
)

// TestKind makes a cluster of kind's, loads the images that `make images` has made, and runs the scenarios.
func TestKind(t *testing.T) {
	kind.Documented(t)
	archives, err := filepath.Glob(filepath.Join(root, "dist", "images", "*_linux_"+runtime.GOARCH+".tar"))
	if err != nil || len(archives) == 0 {
		t.Fatalf("no archives in dist/images (%v): `make images` makes them", err)
	}
	carrier := filepath.Join(t.TempDir(), images.Carrier+".tar")
	if err := image.WriteArchive(carrier, "dhow.dev/"+images.Carrier+":"+needed(t, "VERSION"), carry(t)); err != nil {
		t.Fatal(err)
	}
	c := kind.Create(t, "dhow-e2e")
	c.Load(t, append(archives, carrier)...)
	run(t, cluster.ReleaseConfig{Kubeconfig: c.Kubeconfig})
}

// TestKubeconfig runs the scenarios on the cluster of KUBECONFIG, with the images that `make images` has pushed to the registry PUSH.
func TestKubeconfig(t *testing.T) {
	registry := needed(t, "PUSH")
	ctx, cancel := context.WithTimeout(t.Context(), 5*cluster.Deadline)
	defer cancel()
	if err := image.Push(ctx, registry+"/"+images.Carrier+":"+needed(t, "VERSION"), carry(t), image.PushOptions{PlainHTTP: os.Getenv("PLAIN_HTTP") != ""}); err != nil {
		t.Fatal(err)
	}
	run(t, cluster.ReleaseConfig{Kubeconfig: needed(t, "KUBECONFIG"), Registry: registry})
}

// run installs the charts that `make charts` has made, makes the cluster's machines nodes by the chart's DaemonSet, and runs the scenarios.
func run(t *testing.T, config cluster.ReleaseConfig) {
	config.Namespace, config.Stores, config.Tag = "dhow-e2e", 1, needed(t, "VERSION")
	config.Chart = filepath.Join(root, "dist", "charts", "dhow-0.1.0.tgz")
	config.GRPCPort, config.KubernetesPort, config.ImagesPort = 31443, 31643, 31500
	r := cluster.Install(t, config)
	registry := r.Images(t)
	r.Inner.Nodes = r.Agents(t, cluster.AgentsConfig{Data: "/var/lib/dhow-e2e", State: "/run/dhow-e2e"}, registry)
	scenarios.Run(t, r.Inner)
}

var root = filepath.Join("..", "..")

func needed(t *testing.T, variable string) string {
	t.Helper()
	value := os.Getenv(variable)
	if value == "" {
		t.Fatalf("%s is not set: run this test by `make e2e CLUSTER=kind` or CLUSTER=kubeconfig", variable)
	}
	return value
}

// carry makes the image that carries those of the scenarios.
func carry(t *testing.T) v1.Image {
	t.Helper()
	dir := t.TempDir()
	registry, err := images.Build(t.Context(), root, dir)
	if err != nil {
		t.Fatal(err)
	}
	carrier, err := registry.Image(t.Context(), root, dir)
	if err != nil {
		t.Fatal(err)
	}
	return carrier
}
