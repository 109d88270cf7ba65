package plan_test

import (
	"fmt"
	"testing"

	kcorev1 "k8s.io/api/core/v1"
	"pgregory.net/rapid"

	"dhow.dev/services/scheduler/internal/affinity"
	"dhow.dev/services/scheduler/internal/cluster"
	"dhow.dev/services/scheduler/internal/filter"
	"dhow.dev/services/scheduler/internal/fixture"
	"dhow.dev/services/scheduler/internal/plan"
)

var namespaces = map[string]map[string]string{"default": {"team": "blue"}, "elsewhere": {"team": "red"}, "new": nil}

// Pods that are planned in one go, or one by one, are only where a look at all pods by the API's words lets them be, and are left out only where it does not.
func TestAffinityIsAsWritten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := cluster.New(noServices)
		w := &fixture.World{Namespaces: map[string]map[string]string{}}
		for name, labels := range namespaces {
			if rapid.Bool().Draw(t, "swapped") {
				labels = map[string]string{"team": "green"}
			}
			w.Namespaces[name] = labels
			c.SetNamespace(name, labels)
		}
		for i := range rapid.IntRange(1, 6).Draw(t, "nodes") {
			o := fixture.RandomNode(t, fmt.Sprintf("n%d", i))
			o.SetStatus(fixture.Node(`{"status":{"allocatable":{"cpu":"64","memory":"64Gi","pods":"100"}}}`).GetStatus())
			if rapid.IntRange(0, 3).Draw(t, "twin") == 0 {
				// Two nodes of one host name are one domain.
				o.GetMetadata().GetLabels()["kubernetes.io/hostname"] = "twin"
			}
			c.SetNode(o)
			w.Nodes = append(w.Nodes, fixture.KubeNode(o))
		}
		var pods []plan.Pod
		var known []*cluster.Pod
		for i := range rapid.IntRange(1, 10).Draw(t, "pods") {
			o := fixture.RandomPod(t, fmt.Sprintf("p%d", i))
			o.GetMetadata().SetNamespace(rapid.SampledFrom([]string{"default", "default", "elsewhere", "new"}).Draw(t, "namespace"))
			o.GetSpec().SetSchedulingGates(nil)
			p, _, _, err := c.SetPod(o)
			if err != nil {
				t.Fatal(err)
			}
			pods, known = append(pods, plan.Pod{Key: p.Key.String(), Class: p.Class()}), append(known, p)
		}
		step := len(pods)
		if rapid.Bool().Draw(t, "singly") {
			step = 1
		}
		for start := 0; start < len(pods); start += step {
			batch := pods[start : start+step]
			decisions := plan.Make(c.Snapshot(), batch, 7)
			var left []int
			for i, d := range decisions {
				if d.Slot < 0 {
					left = append(left, i)
					continue
				}
				p := known[start+i]
				// A plan may place a pod after those behind it; alone, each must have been let in when it came.
				if o := fixture.KubePod(p.Object); step == 1 && !w.PodAffinityAllows(o, nodeOf(t, w, d.Node)) {
					t.Fatalf("pod %s on %s", o.Name, d.Node)
				}
				c.Assume(p.Key, p.Class(), d.Node)
				o := fixture.KubePod(p.Object)
				o.Spec.NodeName = d.Node
				w.Pods = append(w.Pods, o)
			}
			for _, i := range left {
				agree(t, c, w, known[start+i])
			}
		}
		agree(t, c, w, known[rapid.IntRange(0, len(known)-1).Draw(t, "asked")])
	})
}

func nodeOf(t *rapid.T, w *fixture.World, name string) *kcorev1.Node {
	for _, n := range w.Nodes {
		if n.Name == name {
			return n
		}
	}
	t.Fatalf("no node %s", name)
	return nil
}

// agree compares the rule's verdicts, and the weights, with the look at all pods.
func agree(t *rapid.T, c *cluster.Cluster, w *fixture.World, p *cluster.Pod) {
	s := c.Snapshot()
	context := filter.NewContext(s, p.Class())
	weights := affinity.NewPreferred(s, p.Class())
	o := fixture.KubePod(p.Object)
	for _, n := range w.Nodes {
		slot := s.Find(n.Name)
		if got, want := context.Affinity.Verdict(slot) == affinity.Free, w.PodAffinityAllows(o, n); got != want {
			t.Fatalf("pod %s on %s: %v, want %v", o.Name, n.Name, got, want)
		}
		if got, want := weights.Local(slot)+weights.Shared(slot), w.PodAffinityWeight(o, n); got != want {
			t.Fatalf("pod %s on %s: weight %d, want %d", o.Name, n.Name, got, want)
		}
	}
}
