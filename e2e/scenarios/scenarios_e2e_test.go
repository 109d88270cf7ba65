//go:build e2e

package scenarios

import (
	"slices"
	"testing"

	"dhow.dev/e2e/cluster"
)

// here are the scenarios that kill, cut off, stop or back up what the cluster is made of, make machines beside it, or look for one folder on all nodes: they need its processes on this machine, and run one
// after the other, before the others.
var here = []struct {
	name string
	run  func(*testing.T, *cluster.Cluster)
}{
	{"agents restart", agents},
	{"nodes are lost", lostNode},
	{"the control plane restarts", restarts},
	{"backups are restored", backups},
	{"machines join", joining},
	{"access modes", accessModes},
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
	wanted := func(name string) bool {
		left = slices.DeleteFunc(left, func(one string) bool { return one == name })
		return len(names) == 0 || slices.Contains(names, name)
	}
	for _, s := range anywhere {
		if wanted(s.name) {
			s.on(t, &c.Any)
		}
	}
	for _, s := range here {
		if wanted(s.name) {
			t.Run(s.name, func(t *testing.T) { s.run(t, c) })
		}
	}
	if len(left) > 0 {
		t.Errorf("there are no scenarios %q", left)
	}
}
