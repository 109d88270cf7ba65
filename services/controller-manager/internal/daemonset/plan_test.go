package daemonset

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	appsv1 "dhow.dev/gen/go/dhow/apps/v1"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/object"
)

func number(n int32) *metav1.IntOrString {
	v := &metav1.IntOrString{}
	v.SetType(0)
	v.SetIntVal(n)
	return v
}

func node(name string, labels map[string]string, taints ...*corev1.Taint) *corev1.Node {
	return corev1.Node_builder{
		Metadata: metav1.ObjectMeta_builder{Name: proto.String(name), Labels: labels}.Build(), Spec: corev1.NodeSpec_builder{Taints: taints}.Build(),
	}.Build()
}

// world is a set with its pods, changed by plans and by what pods do.
type world struct {
	situation
	hash string
	all  []*corev1.Pod
}

func (w *world) look() {
	w.pods, w.hashes = map[string][]*corev1.Pod{}, map[string]bool{w.hash: true}
	for _, p := range w.all {
		w.pods[target(p)] = append(w.pods[target(p)], p)
	}
}

func (w *world) step() (idle bool) {
	w.look()
	p := w.place()
	if p.empty() {
		p = w.roll()
	}
	for _, n := range p.create {
		pod := podOf(w.ds, n, w.hash)
		pod.GetMetadata().SetName(fmt.Sprint("p", len(w.all), w.hash, n))
		pod.SetStatus(corev1.PodStatus_builder{Phase: proto.String("Pending")}.Build())
		w.all = append(w.all, pod)
	}
	for _, pod := range p.remove {
		at := &metav1.Time{}
		at.SetSeconds(1000)
		pod.GetMetadata().SetDeletionTimestamp(at)
	}
	w.look()
	return p.empty()
}

func (w *world) progress(which func(*corev1.Pod) bool) (idle bool) {
	idle = true
	w.all = slices.DeleteFunc(w.all, func(p *corev1.Pod) bool {
		if !object.IsDeleted(p) || !which(p) {
			return false
		}
		idle = false
		return true
	})
	for _, p := range w.all {
		if p.GetStatus().GetPhase() == "Pending" && which(p) {
			idle = false
			p.GetSpec().SetNodeName(target(p))
			p.SetStatus(corev1.PodStatus_builder{Phase: proto.String("Running"), Conditions: []*corev1.PodCondition{
				corev1.PodCondition_builder{Type: proto.String("Ready"), Status: proto.String("True")}.Build(),
			}}.Build())
		}
	}
	w.look()
	return idle
}

// served counts the nodes with an available pod that is to stay.
func (w *world) served() int {
	nodes := map[string]bool{}
	for _, p := range w.all {
		if !object.IsDeleted(p) && w.available(p) {
			nodes[target(p)] = true
		}
	}
	return len(nodes)
}

// Whatever happens in whatever order: an update never leaves more nodes without a pod than it may, a surge never more than one beside another on more nodes than it
// may, and both end with one new pod on each node.
func TestUpdatesKeepTheirBounds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.IntRange(1, 6).Draw(t, "nodes")
		surge := rapid.Int32Range(0, 3).Draw(t, "maxSurge")
		unavailable := int32(0)
		if surge == 0 {
			unavailable = rapid.Int32Range(1, 4).Draw(t, "maxUnavailable")
		}
		w := &world{hash: "one", situation: situation{
			ds: appsv1.DaemonSet_builder{
				Metadata: metav1.ObjectMeta_builder{Namespace: proto.String("default"), Name: proto.String("agent"), Uid: proto.String("set")}.Build(),
				Spec: appsv1.DaemonSetSpec_builder{Template: &corev1.PodTemplateSpec{}, UpdateStrategy: appsv1.DaemonSetUpdateStrategy_builder{
					Type: proto.String(rollingUpdate), RollingUpdate: appsv1.RollingUpdateDaemonSet_builder{MaxUnavailable: number(unavailable), MaxSurge: number(surge)}.Build(),
				}.Build()}.Build(),
			}.Build(),
			nodes: map[string]*corev1.Node{}, backoff: func(string) time.Duration { return 0 }, now: time.Unix(1000, 0),
		}}
		for i := range size {
			name := fmt.Sprint("n", i)
			w.nodes[name] = node(name, nil)
		}
		check := func() {}
		settle := func() {
			for range 1000 {
				stepped := w.step()
				check()
				if progressed := w.progress(func(*corev1.Pod) bool { return true }); stepped && progressed {
					return
				}
				check()
			}
			t.Fatal("it does not come to an end")
		}
		settle()
		check = func() {
			if n := size - w.served(); n > int(unavailable) {
				t.Fatalf("%d nodes without a pod, at most %d may be", n, unavailable)
			}
			doubled := 0
			for _, pods := range w.pods {
				staying := slices.DeleteFunc(slices.Clone(pods), func(p *corev1.Pod) bool { return object.IsDeleted(p) })
				if len(staying) > 2 || len(staying) == 2 && surge == 0 {
					t.Fatalf("%d pods on one node", len(staying))
				}
				if len(staying) == 2 && !(w.available(staying[0]) && w.available(staying[1])) {
					doubled++
				}
			}
			if doubled > int(surge) {
				t.Fatalf("%d nodes have a new pod beside the old one, at most %d may", doubled, surge)
			}
		}
		w.hash = "two"
		for range rapid.IntRange(0, 40).Draw(t, "steps") {
			w.step()
			check()
			lucky := fmt.Sprint("n", rapid.IntRange(0, size).Draw(t, "lucky"))
			w.progress(func(p *corev1.Pod) bool { return target(p) == lucky })
			check()
		}
		settle()
		if len(w.all) != size {
			t.Fatalf("%d pods on %d nodes", len(w.all), size)
		}
		for _, p := range w.all {
			if !w.updated(p) {
				t.Fatalf("a pod of %s is old", target(p))
			}
		}
		status, _ := w.status(0)
		if n := int32(size); status.GetDesiredNumberScheduled() != n || status.GetUpdatedNumberScheduled() != n || status.GetNumberAvailable() != n || status.GetNumberUnavailable() != 0 {
			t.Fatalf("status %v", status)
		}
	})
}

func TestEligible(t *testing.T) {
	requirement := func(key, operator string, values ...string) *corev1.NodeSelectorRequirement {
		return corev1.NodeSelectorRequirement_builder{Key: proto.String(key), Operator: proto.String(operator), Values: values}.Build()
	}
	required := func(terms ...*corev1.NodeSelectorTerm) *corev1.PodSpec {
		return corev1.PodSpec_builder{Affinity: corev1.Affinity_builder{NodeAffinity: corev1.NodeAffinity_builder{
			RequiredDuringSchedulingIgnoredDuringExecution: corev1.NodeSelector_builder{NodeSelectorTerms: terms}.Build(),
		}.Build()}.Build()}.Build()
	}
	expressions := func(r ...*corev1.NodeSelectorRequirement) *corev1.NodeSelectorTerm {
		return corev1.NodeSelectorTerm_builder{MatchExpressions: r}.Build()
	}
	tainted := func(key, effect string) *corev1.Taint {
		return corev1.Taint_builder{Key: proto.String(key), Effect: proto.String(effect)}.Build()
	}
	plain := node("n", map[string]string{"disk": "fast", "cores": "8"})
	for name, c := range map[string]struct {
		spec            *corev1.PodSpec
		node            *corev1.Node
		should, mayStay bool
	}{
		"any":                    {&corev1.PodSpec{}, plain, true, true},
		"by name":                {corev1.PodSpec_builder{NodeName: proto.String("n")}.Build(), plain, true, true},
		"by another name":        {corev1.PodSpec_builder{NodeName: proto.String("m")}.Build(), plain, false, false},
		"selected":               {corev1.PodSpec_builder{NodeSelector: map[string]string{"disk": "fast"}}.Build(), plain, true, true},
		"not selected":           {corev1.PodSpec_builder{NodeSelector: map[string]string{"disk": "slow"}}.Build(), plain, false, false},
		"greater":                {required(expressions(requirement("cores", "Gt", "4"))), plain, true, true},
		"less":                   {required(expressions(requirement("cores", "Lt", "4"))), plain, false, false},
		"one of two terms":       {required(expressions(requirement("gpu", "Exists")), expressions(requirement("disk", "NotIn", "slow"))), plain, true, true},
		"one of two expressions": {required(expressions(requirement("gpu", "Exists"), requirement("disk", "Exists"))), plain, false, false},
		"by field":               {required(corev1.NodeSelectorTerm_builder{MatchFields: []*corev1.NodeSelectorRequirement{requirement("metadata.name", "NotIn", "n")}}.Build()), plain, false, false},
		"an empty term":          {required(&corev1.NodeSelectorTerm{}), plain, false, false},
		"an unknown operator":    {required(expressions(requirement("disk", "Like", "f"))), plain, false, false},
		"not ready":              {&corev1.PodSpec{}, node("n", nil, tainted("node.kubernetes.io/not-ready", "NoExecute")), true, true},
		"cordoned":               {&corev1.PodSpec{}, node("n", nil, tainted("node.kubernetes.io/unschedulable", "NoSchedule")), true, true},
		"without network":        {&corev1.PodSpec{}, node("n", nil, tainted("node.kubernetes.io/network-unavailable", "NoSchedule")), false, true},
		"on the host's network":  {corev1.PodSpec_builder{HostNetwork: proto.Bool(true)}.Build(), node("n", nil, tainted("node.kubernetes.io/network-unavailable", "NoSchedule")), true, true},
		"full":                   {&corev1.PodSpec{}, node("n", nil, tainted("full", "NoSchedule")), false, true},
		"rather not":             {&corev1.PodSpec{}, node("n", nil, tainted("busy", "PreferNoSchedule")), true, true},
		"driven out":             {&corev1.PodSpec{}, node("n", nil, tainted("broken", "NoExecute")), false, false},
	} {
		ds := appsv1.DaemonSet_builder{Spec: appsv1.DaemonSetSpec_builder{Template: corev1.PodTemplateSpec_builder{Spec: c.spec}.Build()}.Build()}.Build()
		if should, mayStay := eligible(ds, c.node); should != c.should || mayStay != c.mayStay {
			t.Errorf("%s: should %t, may stay %t", name, should, mayStay)
		}
	}
}

// A failed pod stays for its back-off, one that succeeded does not.
func TestEndedPods(t *testing.T) {
	ended := func(phase string) *corev1.Pod {
		return corev1.Pod_builder{
			Metadata: metav1.ObjectMeta_builder{Name: proto.String(phase)}.Build(), Spec: corev1.PodSpec_builder{NodeName: proto.String(phase)}.Build(),
			Status: corev1.PodStatus_builder{Phase: proto.String(phase)}.Build(),
		}.Build()
	}
	wait := time.Minute
	s := situation{
		ds: &appsv1.DaemonSet{}, nodes: map[string]*corev1.Node{"Failed": node("Failed", nil), "Succeeded": node("Succeeded", nil)},
		pods:    map[string][]*corev1.Pod{"Failed": {ended("Failed")}, "Succeeded": {ended("Succeeded")}},
		backoff: func(string) time.Duration { return wait }, now: time.Unix(1000, 0),
	}
	if p := s.place(); len(p.remove) != 1 || len(p.succeeded) != 1 || p.again != time.Minute {
		t.Errorf("%+v", p)
	}
	wait = 0
	if p := s.place(); len(p.remove) != 2 || len(p.failed) != 1 || p.again != 0 {
		t.Errorf("%+v", p)
	}
}
