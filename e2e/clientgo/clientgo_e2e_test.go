//go:build e2e

// Package clientgo runs programs of client-go and controller-runtime against a running cluster that is killed and started again under them.
package clientgo

import (
	"path/filepath"
	"testing"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"dhow.dev/e2e/cluster"
)

// program uses a cluster as programs do.
type program struct {
	name string
	run  func(*testing.T, *cluster.Cluster)
}

func TestClientGo(t *testing.T) {
	run(t, cluster.Options{Nodes: 1}, []program{{"informers", informers}, {"leader election", election}, {"controller-runtime", manager}})
}

// TestClientGoSeparate runs what the number of API servers and processes could matter to: what an informer sees when all of them are killed.
func TestClientGoSeparate(t *testing.T) {
	run(t, cluster.Options{Nodes: 1, Separate: true}, []program{{"informers", informers}})
}

func run(t *testing.T, options cluster.Options, programs []program) {
	c := cluster.Start(t, options)
	for _, p := range programs {
		t.Run(p.name, func(t *testing.T) { p.run(t, c) })
	}
}

// connect reads the kubeconfig that `dhow up` wrote. An empty content type is client-go's default.
func connect(t *testing.T, c *cluster.Cluster, contentType string) *rest.Config {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", filepath.Join(c.DataDir, "kubeconfig"))
	if err != nil {
		t.Fatal(err)
	}
	config.ContentType, config.QPS = contentType, -1
	return config
}
