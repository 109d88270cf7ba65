package explain_test

import (
	"fmt"
	"testing"

	"google.golang.org/protobuf/proto"
	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	kcorev1 "k8s.io/api/core/v1"
	"pgregory.net/rapid"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	schedulerv1 "dhow.dev/gen/go/dhow/scheduler/v1"
	"dhow.dev/pkg/object"
	"dhow.dev/services/scheduler/internal/cluster"
	"dhow.dev/services/scheduler/internal/explain"
	"dhow.dev/services/scheduler/internal/fixture"
	"dhow.dev/services/scheduler/internal/loop"
	"dhow.dev/services/scheduler/internal/plan"
)

const seed = 7

// model is the objects of a cluster.
type model struct {
	nodes []*corev1.Node
	pods  []*corev1.Pod
	pod   *corev1.Pod
	// claim and volume may be nil.
	claim  *corev1.PersistentVolumeClaim
	volume *corev1.PersistentVolume
}

func noServices(string) []*corev1.Service { return nil }

// picture makes a cluster of the objects, from nothing.
func (m *model) picture() (*cluster.Cluster, *cluster.Pod, error) {
	c := cluster.New(noServices)
	for _, n := range m.nodes {
		c.SetNode(n)
	}
	c.SetStorageClass("waits", fixture.StorageClass(`{"metadata":{"name":"waits"},"provisioner":"kubernetes.io/no-provisioner","volumeBindingMode":"WaitForFirstConsumer"}`))
	if m.claim != nil {
		c.SetClaim(m.claim)
	}
	if m.volume != nil {
		c.SetVolume(m.volume)
	}
	for _, p := range m.pods {
		if _, _, _, err := c.SetPod(p); err != nil {
			return nil, nil, err
		}
	}
	p, _, _, err := c.SetPod(m.pod)
	return c, p, err
}

func (m *model) answer() (*schedulerv1.ExplainResponse, error) {
	c, p, err := m.picture()
	if err != nil {
		return nil, err
	}
	return explain.Answer(loop.View{Pod: m.pod, Class: p.Class(), NodeName: p.NodeName, Mine: true, Snapshot: c.Snapshot()}, seed), nil
}

func (m *model) plan() (plan.Decision, error) {
	c, p, err := m.picture()
	if err != nil {
		return plan.Decision{}, err
	}
	if len(p.Class().Gates) > 0 {
		return plan.Decision{}, fmt.Errorf("the pod still has gates")
	}
	return plan.Make(c.Snapshot(), []plan.Pod{{Key: p.Key.String(), Class: p.Class()}}, seed)[0], nil
}

// apply makes a suggested change through the object's Kubernetes JSON, as a user's tool would.
func (m *model) apply(s *schedulerv1.Suggestion) error {
	patch, err := jsonpatch.DecodePatch(s.GetJsonPatch())
	if err != nil {
		return err
	}
	change := func(o proto.Message, before, after interface {
		Marshal() ([]byte, error)
		Unmarshal([]byte) error
	}) error {
		text, err := fixture.ToJSON(o, before)
		if err != nil {
			return err
		}
		changed, err := patch.Apply(text)
		if err != nil {
			return fmt.Errorf("%w: %s on %s", err, s.GetJsonPatch(), text)
		}
		proto.Reset(o)
		return fixture.FromJSON(string(changed), after, o)
	}
	switch s.GetResource() {
	case "pods":
		if key := (object.Key{Namespace: s.GetNamespace(), Name: s.GetName()}); key != object.KeyOf(m.pod) {
			return fmt.Errorf("a change of pod %s", key)
		}
		return change(m.pod, &kcorev1.Pod{}, &kcorev1.Pod{})
	case "nodes":
		for _, n := range m.nodes {
			if n.GetMetadata().GetName() == s.GetName() {
				return change(n, &kcorev1.Node{}, &kcorev1.Node{})
			}
		}
	}
	return fmt.Errorf("a change of unknown %s %s", s.GetResource(), s.GetName())
}

func (m *model) clone() *model {
	out := &model{pod: proto.CloneOf(m.pod), claim: m.claim, volume: m.volume}
	for _, n := range m.nodes {
		out.nodes = append(out.nodes, proto.CloneOf(n))
	}
	for _, p := range m.pods {
		out.pods = append(out.pods, proto.CloneOf(p))
	}
	return out
}

// Every suggestion, made on the objects themselves, lets the scheduler's own plan bind the pod to the node that it names.
func TestSuggestionsWork(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := &model{}
		nodes := rapid.IntRange(1, 4).Draw(t, "nodes")
		for i := range nodes {
			m.nodes = append(m.nodes, fixture.RandomNode(t, fmt.Sprintf("n%d", i)))
		}
		for i := range rapid.IntRange(0, 5).Draw(t, "placed") {
			p := fixture.RandomPod(t, fmt.Sprintf("placed-%d", i))
			p.GetSpec().SetNodeName(fmt.Sprintf("n%d", rapid.IntRange(0, nodes-1).Draw(t, "on")))
			m.pods = append(m.pods, p)
		}
		m.pod = fixture.RandomPod(t, "asked")
		m.store(t)
		answer, err := m.answer()
		if err != nil {
			t.Fatal(err)
		}
		if answer.GetState() != schedulerv1.PodState_POD_STATE_PENDING {
			t.Fatalf("state %v", answer.GetState())
		}
		if decision, err := m.plan(); err == nil && (decision.Slot >= 0) != (len(answer.GetRejections()) == 0 || fits(answer, nodes)) {
			t.Fatalf("the plan says %v, the answer %v", decision, answer)
		}
		for _, s := range answer.GetSuggestions() {
			after := m.clone()
			if err := after.apply(s); err != nil {
				t.Fatalf("%s: %v", s.GetText(), err)
			}
			decision, err := after.plan()
			if err != nil {
				t.Fatalf("%s: %v", s.GetText(), err)
			}
			if decision.Slot < 0 {
				t.Fatalf("%s (%s): still pending: %s", s.GetText(), s.GetJsonPatch(), decision.Failure.Message())
			}
			if decision.Node != s.GetNodeName() {
				t.Fatalf("%s (%s): bound to %s, not %s", s.GetText(), s.GetJsonPatch(), decision.Node, s.GetNodeName())
			}
		}
	})
}

// store lets the pod use a claim now and then, which may be missing, unbound, or bound to a volume of one zone.
func (m *model) store(t *rapid.T) {
	if rapid.IntRange(0, 2).Draw(t, "stored") > 0 {
		return
	}
	m.pod.GetSpec().SetVolumes(fixture.Pod(`{"spec":{"volumes":[{"name":"v","persistentVolumeClaim":{"claimName":"data"}}]}}`).GetSpec().GetVolumes())
	if rapid.IntRange(0, 5).Draw(t, "claim") > 0 {
		bound := rapid.SampledFrom([]string{"", `"annotations":{"pv.kubernetes.io/bind-completed":"yes"}`}).Draw(t, "bound")
		name := ""
		if bound != "" {
			bound, name = ","+bound, "pv"
		}
		m.claim = fixture.Claim(fmt.Sprintf(`{"metadata":{"namespace":"default","name":"data"%s},"spec":{"volumeName":%q,"storageClassName":"waits","accessModes":["ReadWriteOnce"],"resources":{"requests":{"storage":"1Gi"}}}}`, bound, name))
	}
	if rapid.IntRange(0, 5).Draw(t, "volume") > 0 {
		m.volume = fixture.Volume(fmt.Sprintf(`{"metadata":{"name":"pv"},"spec":{"storageClassName":"waits","accessModes":["ReadWriteOnce"],"capacity":{"storage":"1Gi"},
			"nodeAffinity":{"required":{"nodeSelectorTerms":[{"matchExpressions":[{"key":"topology.kubernetes.io/zone","operator":"In","values":[%q]}]}]}}},"status":{"phase":"Available"}}`,
			rapid.SampledFrom([]string{"a", "b"}).Draw(t, "zone")))
	}
}

// fits says whether some node rejected nothing.
func fits(answer *schedulerv1.ExplainResponse, nodes int) bool {
	rejecting := map[string]bool{}
	for _, r := range answer.GetRejections() {
		for _, n := range r.GetNodes() {
			rejecting[n] = true
		}
	}
	return len(rejecting) < nodes
}

func TestSuggestions(t *testing.T) {
	const room = `"status":{"allocatable":{"cpu":"2","memory":"4Gi","pods":"10"}}`
	tests := []struct {
		name, node, pod string
		texts           []string
		patches         []string
	}{
		{"cordoned", `{"metadata":{"name":"n1"},"spec":{"unschedulable":true},` + room + `}`, `{}`,
			[]string{"uncordon node n1"}, []string{`[{"op":"replace","path":"/spec/unschedulable","value":false}]`}},
		{"tainted", `{"metadata":{"name":"n1"},"spec":{"taints":[{"key":"example.com/team","value":"blue","effect":"NoSchedule"}]},` + room + `}`, `{}`,
			[]string{"add a toleration of the taint example.com/team=blue:NoSchedule", "remove the taint example.com/team=blue:NoSchedule from node n1"},
			[]string{`[{"op":"add","path":"/spec/tolerations","value":[{"effect":"NoSchedule","key":"example.com/team","operator":"Equal","value":"blue"}]}]`,
				`[{"op":"test","path":"/spec/taints/0/key","value":"example.com/team"},{"op":"test","path":"/spec/taints/0/effect","value":"NoSchedule"},{"op":"remove","path":"/spec/taints/0"}]`}},
		{"selector", `{"metadata":{"name":"n1","labels":{"a":"b"}},` + room + `}`, `{"nodeSelector":{"example.com/disk":"ssd"}}`,
			[]string{"label node n1 with example.com/disk=ssd", "remove example.com/disk=ssd from the node selector"},
			[]string{`[{"op":"add","path":"/metadata/labels/example.com~1disk","value":"ssd"}]`, `[{"op":"remove","path":"/spec/nodeSelector/example.com~1disk"}]`}},
		{"memory", `{"metadata":{"name":"n1"},` + room + `}`, `{"containers":[{"name":"app","resources":{"requests":{"memory":"5Gi"}}}]}`,
			[]string{"lower the memory request of container app from 5Gi to 4Gi"}, []string{`[{"op":"replace","path":"/spec/containers/0/resources/requests/memory","value":"4Gi"}]`}},
		{"far from those it must be near to", `{"metadata":{"name":"n1","labels":{"zone":"a"}},` + room + `}`, `{"affinity":{"podAffinity":{"requiredDuringSchedulingIgnoredDuringExecution":[
			{"topologyKey":"zone","labelSelector":{"matchLabels":{"app":"db"}}}]}}}`,
			[]string{"make the required pod affinity a preference"},
			[]string{`[{"op":"remove","path":"/spec/affinity/podAffinity/requiredDuringSchedulingIgnoredDuringExecution"},{"op":"add","path":"/spec/affinity/podAffinity/preferredDuringSchedulingIgnoredDuringExecution","value":[]},{"op":"add","path":"/spec/affinity/podAffinity/preferredDuringSchedulingIgnoredDuringExecution/-","value":{"weight":100,"podAffinityTerm":{"labelSelector":{"matchLabels":{"app":"db"}},"topologyKey":"zone"}}}]`}},
		{"a node that is down", `{"metadata":{"name":"n1"},"spec":{"taints":[{"key":"node.kubernetes.io/not-ready","effect":"NoExecute"}]},` + room + `}`, `{}`, nil, nil},
		{"an extended resource's limit goes with its request", `{"metadata":{"name":"n1"},"status":{"allocatable":{"cpu":"2","memory":"4Gi","pods":"10","example.com/gpu":"1"}}}`,
			`{"containers":[{"name":"app","resources":{"requests":{"example.com/gpu":"2"},"limits":{"example.com/gpu":"2"}}}]}`,
			[]string{"lower the example.com/gpu request of container app from 2 to 1"},
			[]string{`[{"op":"replace","path":"/spec/containers/0/resources/requests/example.com~1gpu","value":"1"},{"op":"replace","path":"/spec/containers/0/resources/limits/example.com~1gpu","value":"1"}]`}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			m := &model{nodes: []*corev1.Node{fixture.Node(test.node)}, pod: fixture.Pod(`{"metadata":{"namespace":"default","name":"p"},"spec":` + test.pod + `}`)}
			answer, err := m.answer()
			if err != nil {
				t.Fatal(err)
			}
			got := answer.GetSuggestions()
			if len(got) != len(test.texts) {
				t.Fatalf("suggestions %v, want %q", got, test.texts)
			}
			for i, s := range got {
				if s.GetText() != test.texts[i] || string(s.GetJsonPatch()) != test.patches[i] {
					t.Errorf("suggestion %q %s, want %q %s", s.GetText(), s.GetJsonPatch(), test.texts[i], test.patches[i])
				}
			}
		})
	}
}
