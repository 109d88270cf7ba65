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

func TestClientGo(t *testing.T) {
	c := cluster.Start(t, cluster.Options{Nodes: 1})
	for _, s := range []struct {
		name string
		run  func(*testing.T, *cluster.Cluster)
	}{
		{"informers", informers},
		{"leader election", election},
		{"controller-runtime", manager},
	} {
		t.Run(s.name, func(t *testing.T) { s.run(t, c) })
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
