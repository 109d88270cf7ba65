//go:build e2e

// Package scenarios is the one body of end-to-end tests; every scenario passes on every way that Dhow runs.
package scenarios

import (
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
	{"services", services},
	{"rollouts", rollouts},
	{"stateful sets", sets},
	{"daemon sets", daemons},
	{"healing", healing},
	{"deletion", deletion},
	{"pending pods explain themselves", why},
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

func run(t *testing.T, options cluster.Options) {
	c := cluster.Start(t, options)
	c.Images(t)
	for _, s := range all {
		t.Run(s.name, func(t *testing.T) { s.run(t, c) })
	}
}
