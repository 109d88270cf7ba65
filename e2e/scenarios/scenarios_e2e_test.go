//go:build e2e

// Package scenarios is the one body of end-to-end tests; every scenario passes on every way that Dhow runs.
package scenarios

import (
	"slices"
	"testing"

	"dhow.dev/e2e/cluster"
)

// scenario uses a cluster as a user would. Scenarios of one cluster run one after the other, in namespaces of their own, and leave it as they found it.
type scenario struct {
	name string
	run  func(*testing.T, *cluster.Cluster)
}

var all = []scenario{
	{"containers", containers},
	{"configuration", configuration},
	{"probes", probes},
	{"volumes", volumes},
	{"services", services},
	{"rollouts", rollouts},
	{"stateful sets", sets},
	{"daemon sets", daemons},
	{"jobs", jobs},
	{"healing", healing},
	{"deletion", deletion},
	{"pending pods explain themselves", why},
	{"resources that others count", resources},
	{"changes can be followed", traces},
	{"pods keep apart, and important ones make their way", placement},
	{"a client in another language", python},
	{"agents restart", agents},
	{"nodes are lost", lostNode},
	{"the control plane restarts", restarts},
	{"backups are restored", backups},
	{"machines join", joining},
}

func TestOneProcess(t *testing.T) { run(t, cluster.Options{Nodes: 3}) }

func TestSeparateProcesses(t *testing.T) { run(t, cluster.Options{Nodes: 3, Separate: true}) }

// TestControlPlaneHosts runs what several stores, elections and hosts could matter to: calls into containers by either API server, restarts of everything, nodes that are lost or come, and
// backups, which are restored into all stores.
func TestControlPlaneHosts(t *testing.T) {
	run(t, cluster.Options{Nodes: 3, Hosts: 3}, "containers", "nodes are lost", "the control plane restarts", "backups are restored", "machines join")
}

// run runs the named scenarios; without names all of them.
func run(t *testing.T, options cluster.Options, names ...string) {
	c := cluster.Start(t, options)
	c.Images(t)
	left := slices.Clone(names)
	for _, s := range all {
		if len(names) > 0 && !slices.Contains(names, s.name) {
			continue
		}
		left = slices.DeleteFunc(left, func(name string) bool { return name == s.name })
		t.Run(s.name, func(t *testing.T) { s.run(t, c) })
	}
	if len(left) > 0 {
		t.Errorf("there are no scenarios %q", left)
	}
}
