package cluster

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"google.golang.org/protobuf/proto"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/object"
	"dhow.dev/services/scheduler/internal/filter"
	"dhow.dev/services/scheduler/internal/fixture"
	"dhow.dev/services/scheduler/internal/score"
)

func noServices(string) []*corev1.Service { return nil }

// opinion is what rules and scores say of a pod on every node.
func opinion(t *rapid.T, c *Cluster, o *corev1.Pod) map[string]any {
	p, _, _, err := c.SetPod(o)
	if err != nil {
		t.Fatal(err)
	}
	s := c.Snapshot()
	context := filter.NewContext(s, p.Class())
	out := map[string]any{}
	var feasible []int32
	for slot := range s.Slots() {
		if s.Node(slot) == nil {
			continue
		}
		rejections := filter.Every(filter.All(), context, slot)
		if len(rejections) == 0 {
			feasible = append(feasible, int32(slot))
		}
		out[s.Node(slot).Name] = rejections
	}
	ranking := score.New(s, p.Class(), feasible)
	for _, slot := range feasible {
		out[s.Node(int(slot)).Name] = ranking.Points(int(slot))
	}
	c.DeletePod(p.Key)
	return out
}

// However a picture came about, it says the same as one that is made of the final objects at once.
func TestDeltasAgreeWithAFreshStart(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := New(noServices)
		nodes, pods := map[string]*corev1.Node{}, map[string]*corev1.Pod{}
		var labels map[string]string
		nodeNames, podNames := []string{"n0", "n1", "n2", "n3"}, []string{"p0", "p1", "p2", "p3", "p4", "p5"}
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			node, pod := rapid.SampledFrom(nodeNames).Draw(t, "node"), rapid.SampledFrom(podNames).Draw(t, "pod")
			key := object.Key{Namespace: "default", Name: pod}
			switch rapid.IntRange(0, 8).Draw(t, "step") {
			case 8:
				labels = rapid.SampledFrom([]map[string]string{nil, {"team": "blue"}, {"team": "red"}}).Draw(t, "labels")
				c.SetNamespace("default", labels)
			case 0, 1:
				nodes[node] = fixture.RandomNode(t, node)
				c.SetNode(nodes[node])
			case 2:
				delete(nodes, node)
				c.DeleteNode(node)
			case 3:
				o := fixture.RandomPod(t, pod)
				if rapid.Bool().Draw(t, "bound") {
					o.GetSpec().SetNodeName(node)
				}
				if rapid.Bool().Draw(t, "another") {
					o.GetMetadata().SetUid("another")
				}
				c.DeletePod(key)
				pods[pod] = o
				set(t, c, o)
			case 4:
				delete(pods, pod)
				c.DeletePod(key)
			case 5:
				if p, ok := c.Pod(key); ok && c.Assume(key, p.Class(), node) {
					if rapid.Bool().Draw(t, "fails") {
						if !c.Forget(key, p.UID) {
							t.Fatalf("pod %s: the assumption cannot be taken back", pod)
						}
						break
					}
					bound := proto.CloneOf(pods[pod])
					bound.GetSpec().SetNodeName(node)
					pods[pod] = bound
					set(t, c, bound)
				}
			case 6:
				if o := pods[pod]; o != nil && !object.IsDeleted(o) {
					o = proto.CloneOf(o)
					at := &metav1.Time{}
					at.SetSeconds(1)
					o.GetMetadata().SetDeletionTimestamp(at)
					pods[pod] = o
					set(t, c, o)
				}
			case 7:
				if o := pods[pod]; o != nil {
					o = proto.CloneOf(o)
					o.GetMetadata().GetLabels()["app"] = "other"
					pods[pod] = o
					set(t, c, o)
				}
			}
		}
		fresh := New(noServices)
		fresh.SetNamespace("default", labels)
		for _, o := range nodes {
			fresh.SetNode(o)
		}
		for _, o := range pods {
			set(t, fresh, o)
		}
		for i := range 3 {
			asked := fixture.RandomPod(t, fmt.Sprintf("asked-%d", i))
			if a, b := opinion(t, c, asked), opinion(t, fresh, asked); !reflect.DeepEqual(a, b) {
				t.Fatalf("by deltas %v, from a fresh start %v", a, b)
			}
		}
		for _, name := range slices.Collect(maps.Keys(pods)) {
			c.DeletePod(object.Key{Namespace: "default", Name: name})
		}
		if len(c.classes)+len(c.groups)+len(c.holders)+len(c.wide)+len(c.pods)+len(c.byNode)+len(c.namespaces) > 0 {
			t.Fatalf("without pods there are left: %d classes, %d groups, %d pods", len(c.classes), len(c.groups), len(c.pods))
		}
		for slot := range c.snapshot.Slots() {
			for column := range c.snapshot.Columns() {
				if n := c.snapshot.Requested(column, slot); n != 0 {
					t.Fatalf("without pods there is %d of %s requested", n, c.snapshot.Column(column))
				}
			}
		}
	})
}

func set(t *rapid.T, c *Cluster, o *corev1.Pod) {
	if _, _, _, err := c.SetPod(o); err != nil {
		t.Fatal(err)
	}
}

func TestChangesNameWhatTheyMayHelp(t *testing.T) {
	c := New(noServices)
	node := func(text string) filter.Event {
		return c.SetNode(fixture.Node(`{"metadata":{"name":"n1"` + text + `,"capacity":{}}}`))
	}
	steps := []struct {
		what string
		got  filter.Event
		want filter.Event
	}{
		{"a new node", node(`},"spec":{"unschedulable":true},"status":{"allocatable":{"cpu":"1"}`), filter.NodeAdded},
		{"the same", node(`},"spec":{"unschedulable":true},"status":{"allocatable":{"cpu":"1"}`), 0},
		{"uncordoned", node(`},"spec":{},"status":{"allocatable":{"cpu":"1"}`), filter.NodeSchedulable},
		{"grown", node(`},"spec":{},"status":{"allocatable":{"cpu":"2"}`), filter.NodeAllocatable},
		{"labeled", node(`,"labels":{"a":"b"}},"spec":{},"status":{"allocatable":{"cpu":"2"}`), filter.NodeLabels},
		{"tainted", node(`,"labels":{"a":"b"}},"spec":{"taints":[{"key":"x","effect":"NoSchedule"}]},"status":{"allocatable":{"cpu":"2"}`), filter.NodeTaints},
		{"gone", c.DeleteNode("n1"), filter.NodeGone},
	}
	for _, s := range steps {
		if s.got != s.want {
			t.Errorf("%s: events %b, want %b", s.what, s.got, s.want)
		}
	}
}
