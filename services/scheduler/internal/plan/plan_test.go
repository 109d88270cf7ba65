package plan_test

import (
	"fmt"
	"maps"
	"reflect"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/pkg/object"
	"dhow.dev/services/scheduler/internal/cluster"
	"dhow.dev/services/scheduler/internal/filter"
	"dhow.dev/services/scheduler/internal/fixture"
	"dhow.dev/services/scheduler/internal/plan"
	"dhow.dev/services/scheduler/internal/score"
	"dhow.dev/services/scheduler/internal/snapshot"
)

func noServices(string) []*corev1.Service { return nil }

// draw makes a cluster with pods on it and pods to place.
func draw(t *rapid.T) (*cluster.Cluster, []plan.Pod, []*cluster.Pod) {
	c := cluster.New(noServices)
	nodes := rapid.IntRange(0, 6).Draw(t, "nodes")
	for i := range nodes {
		c.SetNode(fixture.RandomNode(t, fmt.Sprintf("n%d", i)))
	}
	if nodes > 0 {
		for i := range rapid.IntRange(0, 5).Draw(t, "placed") {
			o := fixture.RandomPod(t, fmt.Sprintf("placed-%d", i))
			o.GetSpec().SetNodeName(fmt.Sprintf("n%d", rapid.IntRange(0, nodes-1).Draw(t, "on")))
			if _, _, _, err := c.SetPod(o); err != nil {
				t.Fatal(err)
			}
		}
	}
	var pods []plan.Pod
	var known []*cluster.Pod
	for i := range rapid.IntRange(1, 12).Draw(t, "pending") {
		p, _, _, err := c.SetPod(fixture.RandomPod(t, fmt.Sprintf("p%d", i)))
		if err != nil {
			t.Fatal(err)
		}
		pods, known = append(pods, plan.Pod{Key: p.Key.String(), Class: p.Class()}), append(known, p)
	}
	return c, pods, known
}

// dump is all that can be read from a snapshot.
func dump(s *snapshot.Snapshot) map[string]any {
	out := map[string]any{}
	for slot := range s.Slots() {
		n := s.Node(slot)
		if n == nil {
			continue
		}
		has, allowed := s.Pods(slot)
		row := []any{has, allowed, s.Ports(slot), s.Disks(slot), s.Uses(slot), s.Weighed(0, slot), s.Weighed(1, slot)}
		for column := range s.Columns() {
			row = append(row, s.Allocatable(column, slot), s.Requested(column, slot))
		}
		for group := range s.Groups() {
			row = append(row, s.PerNode(int32(group))[slot])
		}
		out[n.Name] = row
	}
	return out
}

func TestPlanIsPureAndDeterministic(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c, pods, _ := draw(t)
		s := c.Snapshot()
		before := dump(s)
		first := plan.Make(s, pods, 7)
		if after := dump(s); !reflect.DeepEqual(before, after) {
			t.Fatalf("the plan changed the snapshot from %v to %v", before, after)
		}
		if second := plan.Make(c.Snapshot(), pods, 7); !reflect.DeepEqual(first, second) {
			t.Fatalf("same input, decisions %v and %v", first, second)
		}
	})
}

// After a plan nothing is overcommitted by it, and no pod that it left out fits anywhere.
func TestPlanIsValidAndComplete(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c, pods, known := draw(t)
		before := c.Snapshot()
		decisions := plan.Make(before, pods, 7)
		for i, d := range decisions {
			if d.Slot >= 0 && !c.Assume(known[i].Key, pods[i].Class, d.Node) {
				t.Fatalf("pod %s: decision for %s cannot be assumed", pods[i].Key, d.Node)
			}
		}
		after := c.Snapshot()
		for slot := range after.Slots() {
			placed := false
			for _, d := range decisions {
				placed = placed || d.Slot == slot
			}
			if !placed {
				continue
			}
			for column := range after.Columns() {
				more := after.Requested(column, slot) - before.Requested(column, slot)
				if more > 0 && after.Requested(column, slot) > after.Allocatable(column, slot) {
					t.Fatalf("node %s: %s is overcommitted", after.Node(slot).Name, after.Column(column))
				}
			}
			if has, allowed := after.Pods(slot); has > allowed {
				t.Fatalf("node %s: %d pods of %d", after.Node(slot).Name, has, allowed)
			}
		}
		for i, d := range decisions {
			if d.Slot >= 0 {
				n := after.Node(d.Slot)
				if n.Unschedulable || !pods[i].Class.MatchesNode(n) || pods[i].Class.Untolerated(n) != nil {
					t.Fatalf("pod %s on %s, which does not take it", pods[i].Key, n.Name)
				}
				continue
			}
			context := filter.NewContext(after, pods[i].Class)
			for slot := range after.Slots() {
				if _, rejected := filter.First(filter.All(), context, slot, nil); !rejected {
					t.Fatalf("pod %s was left out (%s) and fits on %s", pods[i].Key, d.Failure.Message(), after.Node(slot).Name)
				}
			}
			if diagnosis := plan.Diagnose(context, filter.All()); !maps.Equal(diagnosis.Reasons, d.Failure.Reasons) {
				t.Fatalf("pod %s: told %q, now %q", pods[i].Key, d.Failure.Message(), diagnosis.Message())
			}
		}
	})
}

// crowd draws a cluster with room, and many pods of few classes.
func crowd(t *rapid.T) (*cluster.Cluster, []plan.Pod) {
	c := cluster.New(noServices)
	for i := range rapid.IntRange(2, 8).Draw(t, "nodes") {
		o := fixture.RandomNode(t, fmt.Sprintf("n%d", i))
		if rapid.IntRange(0, 3).Draw(t, "roomy") > 0 {
			roomy := fixture.Node(fmt.Sprintf(`{"status":{"allocatable":{"cpu":"%d","memory":"16Gi","pods":"20"}}}`, rapid.IntRange(2, 16).Draw(t, "cores")))
			o.SetStatus(roomy.GetStatus())
			o.SetSpec(&corev1.NodeSpec{})
		}
		c.SetNode(o)
	}
	templates := make([]*corev1.Pod, rapid.IntRange(1, 4).Draw(t, "templates"))
	for i := range templates {
		templates[i] = fixture.RandomPod(t, "template")
	}
	var pods []plan.Pod
	for i := range rapid.IntRange(1, 30).Draw(t, "pending") {
		o := proto.CloneOf(rapid.SampledFrom(templates).Draw(t, "template"))
		o.GetMetadata().SetName(fmt.Sprintf("p%d", i))
		p, _, _, err := c.SetPod(o)
		if err != nil {
			t.Fatal(err)
		}
		pods = append(pods, plan.Pod{Key: p.Key.String(), Class: p.Class()})
	}
	return c, pods
}

// reference is the plan without its shortcuts: for each pod it asks all rules about all nodes on a state made anew.
type reference struct {
	t        *rapid.T
	state    *snapshot.Snapshot
	rankings map[*snapshot.Class]*score.Ranking
}

// best returns the points of the nodes that can take a pod now, by slot.
func (r *reference) best(p plan.Pod) map[int]int64 {
	context := filter.NewContext(r.state, p.Class)
	var static []int32
	var now []int
	for slot := range r.state.Slots() {
		if r.state.Node(slot) == nil {
			continue
		}
		rejection, rejected := filter.First(filter.All(), context, slot, nil)
		if !rejected {
			now = append(now, slot)
		}
		// A ranking is made over the nodes that only the counts of spreading may exclude.
		if !rejected || filter.All()[rejection.Filter].Shared && !context.Excluded(slot) {
			static = append(static, int32(slot))
		}
	}
	if r.rankings[p.Class] == nil {
		r.rankings[p.Class] = score.New(r.state, p.Class, static)
	}
	ranking := r.rankings[p.Class]
	out := map[int]int64{}
	for _, slot := range now {
		out[slot] = ranking.Node(slot) + ranking.Shared(slot)
	}
	return out
}

// place checks that a decision is one of the best, and makes it.
func (r *reference) place(p plan.Pod, slot int) {
	points := r.best(p)
	got, ok := points[slot]
	if !ok {
		r.t.Fatalf("pod %s: %s cannot take it", p.Key, r.state.Node(slot).Name)
	}
	for other, more := range points {
		if more > got {
			r.t.Fatalf("pod %s: %s has %d points, %s %d", p.Key, r.state.Node(slot).Name, got, r.state.Node(other).Name, more)
		}
	}
	r.state.AddPod(slot, p.Class, p.Key)
	r.state.Count(slot, p.Class, 1)
	for _, ranking := range r.rankings {
		ranking.Add(slot, p.Class)
	}
}

// Classes, heaps, buckets and the journal change nothing about the decisions.
func TestShortcutsDecideLikeTheReference(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c, pods := crowd(t)
		decisions := plan.Make(c.Snapshot(), pods, 7)
		r := &reference{t: t, state: c.Snapshot().Fork(), rankings: map[*snapshot.Class]*score.Ranking{}}
		var waiting []int
		for i, d := range decisions {
			if len(r.best(pods[i])) == 0 {
				waiting = append(waiting, i)
				continue
			}
			if d.Slot < 0 {
				t.Fatalf("pod %s was left out: %s", pods[i].Key, d.Failure.Message())
			}
			r.place(pods[i], d.Slot)
		}
		for progress := true; progress; {
			progress = false
			left := waiting[:0]
			for _, i := range waiting {
				if len(r.best(pods[i])) == 0 {
					left = append(left, i)
					continue
				}
				if decisions[i].Slot < 0 {
					t.Fatalf("pod %s was left out after others made room: %s", pods[i].Key, decisions[i].Failure.Message())
				}
				r.place(pods[i], decisions[i].Slot)
				progress = true
			}
			waiting = left
		}
		for _, i := range waiting {
			if decisions[i].Slot >= 0 {
				t.Fatalf("pod %s: the plan says %s, the reference knows no node", pods[i].Key, decisions[i].Node)
			}
		}
	})
}

// A pod that spreads hard gets its node when a later pod fills the emptiest zone.
func TestLaterPodsCanMakeRoomForEarlierOnes(t *testing.T) {
	c := cluster.New(noServices)
	for zone, spec := range map[string]string{"a": `{}`, "b": `{"taints":[{"key":"b","effect":"NoSchedule"}]}`} {
		c.SetNode(fixture.Node(fmt.Sprintf(`{"metadata":{"name":%q,"labels":{"topology.kubernetes.io/zone":%q}},"spec":%s,"status":{"allocatable":{"cpu":"4","memory":"4Gi","pods":"10"}}}`, zone, zone, spec)))
	}
	const spread = `"topologySpreadConstraints":[{"maxSkew":1,"topologyKey":"topology.kubernetes.io/zone","whenUnsatisfiable":"DoNotSchedule","labelSelector":{"matchLabels":{"app":"web"}}}]`
	var pods []plan.Pod
	for i, spec := range []string{spread, spread, `"nodeSelector":{"topology.kubernetes.io/zone":"b"},"tolerations":[{"key":"b","operator":"Exists"}]`} {
		p, _, _, err := c.SetPod(fixture.Pod(fmt.Sprintf(`{"metadata":{"namespace":"default","name":"p%d","labels":{"app":"web"}},"spec":{%s}}`, i, spec)))
		if err != nil {
			t.Fatal(err)
		}
		pods = append(pods, plan.Pod{Key: p.Key.String(), Class: p.Class()})
	}
	for i, want := range []string{"a", "a", "b"} {
		if d := plan.Make(c.Snapshot(), pods, 7)[i]; d.Node != want {
			t.Errorf("pod %d: %+v, want %s", i, d, want)
		}
	}
}

// One class that spreads hard over zones is never further apart than its skew.
func TestHardSpreadHoldsAtEveryStep(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := cluster.New(noServices)
		zones := rapid.IntRange(1, 4).Draw(t, "zones")
		zoneOf := map[string]int{}
		for i := range rapid.IntRange(zones, 8).Draw(t, "nodes") {
			name := fmt.Sprintf("n%d", i)
			zoneOf[name] = i % zones
			c.SetNode(fixture.Node(fmt.Sprintf(`{"metadata":{"name":%q,"labels":{"kubernetes.io/hostname":%q,"topology.kubernetes.io/zone":"z%d"}},
				"status":{"allocatable":{"cpu":"4","memory":"8Gi","pods":"%d"}}}`, name, name, i%zones, rapid.IntRange(1, 4).Draw(t, "room"))))
		}
		skew := rapid.IntRange(1, 3).Draw(t, "skew")
		counts := make([]int, zones)
		for i := range 20 {
			p, _, _, err := c.SetPod(fixture.Pod(fmt.Sprintf(`{"metadata":{"namespace":"default","name":"p%d","labels":{"app":"web"}},"spec":{"topologySpreadConstraints":[
				{"maxSkew":%d,"topologyKey":"topology.kubernetes.io/zone","whenUnsatisfiable":"DoNotSchedule","labelSelector":{"matchLabels":{"app":"web"}}}]}}`, i, skew)))
			if err != nil {
				t.Fatal(err)
			}
			d := plan.Make(c.Snapshot(), []plan.Pod{{Key: p.Key.String(), Class: p.Class()}}, 7)[0]
			if d.Slot < 0 {
				continue
			}
			c.Assume(p.Key, p.Class(), d.Node)
			counts[zoneOf[d.Node]]++
			low, high := counts[0], counts[0]
			for _, n := range counts {
				low, high = min(low, n), max(high, n)
			}
			if high-low > skew {
				t.Fatalf("zones have %v pods with a skew of %d", counts, skew)
			}
		}
	})
}

// The first pods in the order take what there is.
func TestOrderDecides(t *testing.T) {
	c := cluster.New(noServices)
	c.SetNode(fixture.Node(`{"metadata":{"name":"n1"},"status":{"allocatable":{"cpu":"1","memory":"1Gi","pods":"10"}}}`))
	var pods []plan.Pod
	for _, name := range []string{"first", "second", "small"} {
		cpu := "800m"
		if name == "small" {
			cpu = "200m"
		}
		p, _, _, err := c.SetPod(fixture.Pod(fmt.Sprintf(`{"metadata":{"namespace":"default","name":%q},"spec":{"containers":[{"name":"app","resources":{"requests":{"cpu":%q}}}]}}`, name, cpu)))
		if err != nil {
			t.Fatal(err)
		}
		pods = append(pods, plan.Pod{Key: p.Key.String(), Class: p.Class()})
	}
	decisions := plan.Make(c.Snapshot(), pods, 7)
	if decisions[0].Node != "n1" || decisions[1].Slot >= 0 || decisions[2].Node != "n1" {
		t.Fatalf("decisions %v", decisions)
	}
	if message := decisions[1].Failure.Message(); message != "0/1 nodes are available: 1 Insufficient cpu." {
		t.Errorf("message %q", message)
	}
	c.DeletePod(object.Key{Namespace: "default", Name: "small"})
}

func TestMessageIsKubernetes(t *testing.T) {
	c := cluster.New(noServices)
	p, _, _, err := c.SetPod(fixture.Pod(`{"metadata":{"namespace":"default","name":"p"},"spec":{"containers":[{"name":"app","resources":{"requests":{"cpu":"2"}}}]}}`))
	if err != nil {
		t.Fatal(err)
	}
	ask := func() string {
		return plan.Make(c.Snapshot(), []plan.Pod{{Key: "default/p", Class: p.Class()}}, 7)[0].Failure.Message()
	}
	if got := ask(); got != "no nodes available to schedule pods" {
		t.Errorf("without nodes: %q", got)
	}
	for i, spec := range []string{`{}`, `{"taints":[{"key":"team","value":"blue","effect":"NoSchedule"}]}`, `{"taints":[{"key":"team","value":"blue","effect":"NoSchedule"}]}`} {
		c.SetNode(fixture.Node(fmt.Sprintf(`{"metadata":{"name":"n%d"},"spec":%s,"status":{"allocatable":{"cpu":"1","memory":"1Gi","pods":"10"}}}`, i, spec)))
	}
	if got, want := ask(), "0/3 nodes are available: 1 Insufficient cpu, 2 node(s) had untolerated taint {team: blue}."; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// A pod goes where the scores say, as they are computed for all nodes at once.
func TestBestNodeWins(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c, pods, _ := draw(t)
		s := c.Snapshot()
		for _, p := range pods {
			context := filter.NewContext(s, p.Class)
			var feasible []int32
			for slot := range s.Slots() {
				rejected := s.Node(slot) == nil
				if !rejected {
					_, rejected = filter.First(filter.All(), context, slot, nil)
				}
				if !rejected {
					feasible = append(feasible, int32(slot))
				}
			}
			d := plan.Make(s, []plan.Pod{p}, 7)[0]
			if (d.Slot < 0) != (len(feasible) == 0) {
				t.Fatalf("pod %s: decision %v with %d nodes", p.Key, d, len(feasible))
			}
			if d.Slot < 0 {
				continue
			}
			// Scores are relative to the nodes that all rules but spreading allow, so only their order among these is the plan's.
			if p.Class.Social() {
				continue
			}
			ranking := score.New(s, p.Class, feasible)
			chosen := ranking.Points(d.Slot)
			for _, slot := range feasible {
				if other := ranking.Points(int(slot)); other.Total() > chosen.Total() {
					t.Fatalf("pod %s: %s has %v, %s would have %v", p.Key, d.Node, chosen, s.Node(int(slot)).Name, other)
				}
			}
		}
	})
}
