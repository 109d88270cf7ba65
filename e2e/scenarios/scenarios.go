// Package scenarios is the one body of end-to-end tests; every scenario passes on every way that Dhow runs.
package scenarios

import (
	"testing"

	"dhow.dev/e2e/cluster"
)

// scenario uses a cluster as a user would, in namespaces of its own, and leaves it as it found it.
type scenario struct {
	name string
	run  func(*testing.T, *cluster.Any)
	// alone is for those that take from the others what they need, as places on nodes.
	alone bool
}

// anywhere are the scenarios that need of a cluster what every cluster has. Those that need its processes on this machine are in the table `here`.
var anywhere = []scenario{
	{name: "containers", run: containers},
	{name: "configuration", run: configuration},
	{name: "probes", run: probes},
	{name: "volumes", run: volumes},
	{name: "services", run: services},
	{name: "rollouts", run: rollouts},
	{name: "stateful sets", run: sets},
	{name: "daemon sets", run: daemons},
	{name: "jobs", run: jobs},
	{name: "healing", run: healing},
	{name: "deletion", run: deletion},
	{name: "pending pods explain themselves", run: why, alone: true},
	{name: "resources that others count", run: resources},
	{name: "changes can be followed", run: traces},
	{name: "pods keep apart, and important ones make their way", run: placement},
	{name: "a client in another language", run: python},
}

// Run runs the scenarios of any cluster, several at once where they do not disturb each other. The cluster's nodes have to find images.Name.
func Run(t *testing.T, c *cluster.Any) {
	if len(c.Nodes) == 0 {
		t.Fatal("the cluster has no nodes")
	}
	for _, s := range anywhere {
		s.on(t, c)
	}
}

// on runs the scenario, beside others when what runs alone has ended.
func (s scenario) on(t *testing.T, c *cluster.Any) {
	t.Run(s.name, func(t *testing.T) {
		if !s.alone {
			t.Parallel()
		}
		s.run(t, c)
	})
}
