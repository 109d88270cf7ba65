package preemption_test

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	policyv1 "dhow.dev/gen/go/dhow/policy/v1"
	"dhow.dev/pkg/object"
	"dhow.dev/services/scheduler/internal/cluster"
	"dhow.dev/services/scheduler/internal/filter"
	"dhow.dev/services/scheduler/internal/fixture"
	"dhow.dev/services/scheduler/internal/plan"
	"dhow.dev/services/scheduler/internal/preemption"
)

func noServices(string) []*corev1.Service { return nil }

// model is a cluster as objects. Pods are by name; the budget covers the pods of one app.
type model struct {
	t       *rapid.T
	nodes   []*corev1.Node
	pods    map[string]*corev1.Pod
	pod     *corev1.Pod
	app     string
	allowed int32
}

func prioritized(t *rapid.T, name string, lowest, highest int32) *corev1.Pod {
	o := fixture.RandomPod(t, name)
	o.GetSpec().SetPriority(rapid.Int32Range(lowest, highest).Draw(t, "priority"))
	o.GetSpec().SetSchedulingGates(nil)
	started := &metav1.Time{}
	started.SetSeconds(rapid.Int64Range(1, 5).Draw(t, "started"))
	o.SetStatus(corev1.PodStatus_builder{StartTime: started}.Build())
	return o
}

func drawModel(t *rapid.T) *model {
	m := &model{t: t, pods: map[string]*corev1.Pod{}, app: "web", allowed: rapid.Int32Range(0, 2).Draw(t, "allowed")}
	nodes := rapid.IntRange(1, 4).Draw(t, "nodes")
	for i := range nodes {
		m.nodes = append(m.nodes, fixture.RandomNode(t, fmt.Sprintf("n%d", i)))
	}
	for i := range rapid.IntRange(0, 10).Draw(t, "placed") {
		name := fmt.Sprintf("placed-%d", i)
		o := prioritized(t, name, -1, 4)
		o.GetSpec().SetNodeName(fmt.Sprintf("n%d", rapid.IntRange(0, nodes-1).Draw(t, "on")))
		m.pods[name] = o
	}
	m.pod = prioritized(t, "asks", 1, 5)
	return m
}

func (m *model) picture(without map[string]bool) (*cluster.Cluster, *cluster.Pod) {
	c := cluster.New(noServices)
	for _, n := range m.nodes {
		c.SetNode(n)
	}
	for _, name := range slices.Sorted(maps.Keys(m.pods)) {
		if without[name] {
			continue
		}
		if _, _, _, err := c.SetPod(m.pods[name]); err != nil {
			m.t.Fatal(err)
		}
	}
	p, _, _, err := c.SetPod(m.pod)
	if err != nil {
		m.t.Fatal(err)
	}
	return c, p
}

// fits asks the rules about one node of a cluster that is made anew, without some pods.
func (m *model) fits(node string, without map[string]bool) bool {
	c, p := m.picture(without)
	s := c.Snapshot()
	_, rejected := filter.First(filter.All(), filter.NewContext(s, p.Class()), s.Find(node), nil)
	return !rejected
}

func (m *model) budgets() []*policyv1.PodDisruptionBudget {
	return []*policyv1.PodDisruptionBudget{policyv1.PodDisruptionBudget_builder{
		Metadata: metav1.ObjectMeta_builder{Namespace: proto.String("default"), Name: proto.String("budget")}.Build(),
		Spec:     policyv1.PodDisruptionBudgetSpec_builder{Selector: metav1.LabelSelector_builder{MatchLabels: map[string]string{"app": m.app}}.Build()}.Build(),
		Status:   policyv1.PodDisruptionBudgetStatus_builder{DisruptionsAllowed: proto.Int32(m.allowed)}.Build(),
	}.Build()}
}

// harm is what Kubernetes compares, in its order; less is better.
type harm [5]int64

// victims repeats the documented procedure for one node on clusters made anew at every step.
func (m *model) victims(node string) ([]string, harm, bool) {
	var lower []string
	for name, o := range m.pods {
		if o.GetSpec().GetNodeName() == node && o.GetSpec().GetPriority() < m.pod.GetSpec().GetPriority() {
			lower = append(lower, name)
		}
	}
	priority := func(name string) int64 { return int64(m.pods[name].GetSpec().GetPriority()) }
	started := func(name string) int64 { return m.pods[name].GetStatus().GetStartTime().GetSeconds() }
	slices.SortFunc(lower, func(a, b string) int {
		return cmp.Or(cmp.Compare(priority(b), priority(a)), cmp.Compare(started(a), started(b)), cmp.Compare(a, b))
	})
	gone := map[string]bool{}
	for _, name := range lower {
		gone[name] = true
	}
	if len(lower) == 0 || !m.fits(node, gone) {
		return nil, harm{}, false
	}
	allowed := m.allowed
	var protected, free []string
	for _, name := range lower {
		if m.pods[name].GetMetadata().GetLabels()["app"] == m.app {
			if allowed--; allowed < 0 {
				protected = append(protected, name)
				continue
			}
		}
		free = append(free, name)
	}
	h := harm{1: math.MinInt32, 4: -math.MaxInt64}
	for i, name := range append(slices.Clone(protected), free...) {
		delete(gone, name)
		if m.fits(node, gone) {
			continue
		}
		gone[name] = true
		if i < len(protected) {
			h[0]++
		}
	}
	victims := slices.Sorted(maps.Keys(gone))
	for _, name := range victims {
		h[1] = max(h[1], priority(name))
		h[2] += priority(name) + math.MaxInt32 + 1
		h[3]++
	}
	for _, name := range victims {
		if priority(name) == h[1] {
			h[4] = max(h[4], -started(name))
		}
	}
	return victims, h, true
}

// The victims are those that the procedure gives when every step asks a cluster made anew, and the node is one of the least harm.
func TestVictimsAreThoseOfTheReference(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := drawModel(t)
		c, p := m.picture(nil)
		if plan.Make(c.Snapshot(), []plan.Pod{{Key: p.Key.String(), Class: p.Class()}}, 7)[0].Slot >= 0 {
			return
		}
		w := &preemption.World{Snapshot: c.Snapshot(), Seed: 7}
		w.Residents, w.Allowed = c.Residents(p.Priority(), m.budgets())
		before := counts(w)
		out := w.Find(p.Key.String(), p.Class(), p.Priority())
		if after := counts(w); before != after {
			t.Fatalf("the search changed the picture from %s to %s", before, after)
		}
		best, any := harm{}, false
		for _, n := range m.nodes {
			if _, h, ok := m.victims(n.GetMetadata().GetName()); ok && (!any || slices.Compare(h[:], best[:]) < 0) {
				best, any = h, true
			}
		}
		if any != (out.Choice != nil) {
			t.Fatalf("choice %v, the reference finds some: %t (%v)", out.Choice, any, out.Reasons)
		}
		if !any {
			return
		}
		want, h, ok := m.victims(out.Choice.Node)
		if !ok || h != best {
			t.Fatalf("node %s does %v harm, the least is %v", out.Choice.Node, h, best)
		}
		var got []string
		for _, v := range out.Choice.Victims {
			got = append(got, v.Key[len("default/"):])
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Fatalf("node %s: victims %v, want %v", out.Choice.Node, got, want)
		}
		// And it helps.
		w.Carry(out.Choice, p.Key.String(), p.Class())
		for _, v := range out.Choice.Victims {
			c.DeletePod(object.Key{Namespace: "default", Name: v.Key[len("default/"):]})
		}
		if d := plan.Make(c.Snapshot(), []plan.Pod{{Key: p.Key.String(), Class: p.Class(), Nominated: out.Choice.Node}}, 7)[0]; d.Node != out.Choice.Node {
			t.Fatalf("without the victims the pod goes to %q, not %s", d.Node, out.Choice.Node)
		}
	})
}

// counts is what the snapshot says of its pods.
func counts(w *preemption.World) string {
	var out []any
	s := w.Snapshot
	for slot := range s.Slots() {
		has, _ := s.Pods(slot)
		ports := slices.Clone(s.Ports(slot))
		out = append(out, has, len(ports))
		for column := range s.Columns() {
			out = append(out, s.Requested(column, slot))
		}
		for group := range s.Groups() {
			out = append(out, s.PerNode(int32(group))[slot])
		}
		for holder := range s.Holders() {
			out = append(out, s.Held(int32(holder))[slot])
		}
	}
	return fmt.Sprint(out)
}

func TestPodsThatGoAnywayAreAskedFirst(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := &model{t: t, pods: map[string]*corev1.Pod{}}
		m.nodes = append(m.nodes, fixture.Node(`{"metadata":{"name":"n0"},"status":{"allocatable":{"cpu":"2","memory":"1Gi","pods":"10"}}}`))
		const cpu = `"containers":[{"name":"app","resources":{"requests":{"cpu":"1"}}}]`
		going, staying := `"deletionTimestamp":"2020-01-01T00:00:00Z",`, ""
		if rapid.Bool().Draw(t, "swapped") {
			going, staying = staying, going
		}
		for name, deleted := range map[string]string{"a": going, "b": staying} {
			m.pods[name] = fixture.Pod(fmt.Sprintf(`{"metadata":{%s"namespace":"default","name":%q},"spec":{"nodeName":"n0",%s}}`, deleted, name, cpu))
		}
		m.pod = fixture.Pod(`{"metadata":{"namespace":"default","name":"asks"},"spec":{"priority":1,` + cpu + `}}`)
		c, p := m.picture(nil)
		w := &preemption.World{Snapshot: c.Snapshot()}
		w.Residents, w.Allowed = c.Residents(1, nil)
		choice := w.Find("default/asks", p.Class(), 1).Choice
		if choice == nil || len(choice.Victims) != 1 || !choice.Victims[0].Terminating {
			t.Fatalf("choice %+v", choice)
		}
	})
}

func TestWhereNobodyHelpsItSaysWhy(t *testing.T) {
	m := &model{pods: map[string]*corev1.Pod{}}
	for i, spec := range []string{`{}`, `{"unschedulable":true}`, `{}`} {
		m.nodes = append(m.nodes, fixture.Node(fmt.Sprintf(`{"metadata":{"name":"n%d"},"spec":%s,"status":{"allocatable":{"cpu":"2","memory":"1Gi","pods":"10"}}}`, i, spec)))
	}
	pod := func(name, node string, priority int) *corev1.Pod {
		return fixture.Pod(fmt.Sprintf(`{"metadata":{"namespace":"default","name":%q},"spec":{"nodeName":%q,"priority":%d,"containers":[{"name":"app","resources":{"requests":{"cpu":"1"}}}]}}`, name, node, priority))
	}
	m.pods["a"], m.pods["b"], m.pods["c"], m.pods["d"] = pod("a", "n0", 5), pod("b", "n0", 5), pod("c", "n2", 5), pod("d", "n2", 0)
	m.pod = fixture.Pod(`{"metadata":{"namespace":"default","name":"asks"},"spec":{"priority":5,"containers":[{"name":"app","resources":{"requests":{"cpu":"2"}}}]}}`)
	c, p := m.picture(nil)
	w := &preemption.World{Snapshot: c.Snapshot()}
	w.Residents, w.Allowed = c.Residents(5, nil)
	out := w.Find("default/asks", p.Class(), 5)
	want := "0/3 nodes are available: 1 Insufficient cpu, 1 No preemption victims found for incoming pod, 1 Preemption is not helpful for scheduling."
	if got := plan.Message(out.Nodes, out.Reasons); out.Choice != nil || got != want {
		t.Errorf("%q, choice %v, want %q", got, out.Choice, want)
	}
}

// Each row is two nodes with one pod each (the second may have two): the first differs by what Kubernetes compares, everything before it being equal.
func TestLeastHarm(t *testing.T) {
	type placed struct {
		node, app string
		priority  int
		started   int
		cpu       string
	}
	tests := []struct {
		name    string
		allowed int32
		pods    []placed
		want    string
	}{
		{"a budget before priority", 0, []placed{{"n0", "web", 1, 1, "2"}, {"n1", "db", 5, 1, "2"}}, "n1"},
		{"a budget that has room protects nobody", 1, []placed{{"n0", "web", 1, 1, "2"}, {"n1", "db", 5, 1, "2"}}, "n0"},
		{"the lowest highest priority", 0, []placed{{"n0", "db", 5, 1, "2"}, {"n1", "db", 1, 1, "1"}, {"n1", "db", 1, 1, "1"}}, "n1"},
		{"the lower sum", 0, []placed{{"n0", "db", 5, 1, "1"}, {"n0", "db", 4, 1, "1"}, {"n1", "db", 5, 1, "1"}, {"n1", "db", 1, 1, "1"}}, "n1"},
		{"fewer pods", 0, []placed{{"n0", "db", 5, 1, "1"}, {"n0", "db", math.MinInt32, 1, "1"}, {"n1", "db", 5, 1, "2"}}, "n1"},
		{"the younger", 0, []placed{{"n0", "db", 5, 1, "2"}, {"n1", "db", 5, 2, "2"}}, "n1"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			m := &model{pods: map[string]*corev1.Pod{}, app: "web", allowed: test.allowed}
			for i := range 2 {
				m.nodes = append(m.nodes, fixture.Node(fmt.Sprintf(`{"metadata":{"name":"n%d"},"status":{"allocatable":{"cpu":"2","memory":"1Gi","pods":"10"}}}`, i)))
			}
			for i, p := range test.pods {
				name := fmt.Sprintf("p%d", i)
				m.pods[name] = fixture.Pod(fmt.Sprintf(`{"metadata":{"namespace":"default","name":%q,"labels":{"app":%q}},"status":{"startTime":"2020-01-01T00:00:%02dZ"},
					"spec":{"nodeName":%q,"priority":%d,"containers":[{"name":"app","resources":{"requests":{"cpu":%q}}}]}}`, name, p.app, p.started, p.node, p.priority, p.cpu))
			}
			m.pod = fixture.Pod(`{"metadata":{"namespace":"default","name":"asks"},"spec":{"priority":10,"containers":[{"name":"app","resources":{"requests":{"cpu":"2"}}}]}}`)
			c, p := m.picture(nil)
			w := &preemption.World{Snapshot: c.Snapshot()}
			w.Residents, w.Allowed = c.Residents(10, m.budgets())
			if choice := w.Find("default/asks", p.Class(), 10).Choice; choice == nil || choice.Node != test.want {
				t.Errorf("choice %+v, want %s", choice, test.want)
			}
		})
	}
}
