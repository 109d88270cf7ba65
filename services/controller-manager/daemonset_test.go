package controllermanager_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	appsv1 "dhow.dev/gen/go/dhow/apps/v1"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/object"
)

func daemonSet(name string) *appsv1.DaemonSet {
	return appsv1.DaemonSet_builder{
		Metadata: meta(name),
		Spec:     appsv1.DaemonSetSpec_builder{Selector: selector(name), Template: template(name, "image:1")}.Build(),
	}.Build()
}

// onNodes says that the set's newest pods are available on so many nodes, and that there are no others.
func onNodes(n int32) func(*appsv1.DaemonSet) bool {
	return func(ds *appsv1.DaemonSet) bool {
		s := ds.GetStatus()
		return s.GetObservedGeneration() == ds.GetMetadata().GetGeneration() && s.GetDesiredNumberScheduled() == n && s.GetCurrentNumberScheduled() == n &&
			s.GetUpdatedNumberScheduled() == n && s.GetNumberReady() == n && s.GetNumberAvailable() == n && s.GetNumberUnavailable() == 0 && s.GetNumberMisscheduled() == 0
	}
}

// perNode returns the nodes of the pods that are not being deleted, in order.
func perNode(pods []*corev1.Pod) string {
	var nodes []string
	for _, p := range pods {
		if !object.IsDeleted(p) {
			nodes = append(nodes, p.GetSpec().GetNodeName())
		}
	}
	slices.Sort(nodes)
	return strings.Join(nodes, " ")
}

// editPod changes a pod's status, again until nobody is in between.
func editPod(c *cluster, name string, change func(*corev1.PodStatus)) {
	c.t.Helper()
	for {
		p := get[*corev1.Pod](c, "default", name)
		change(p.GetStatus())
		_, err := client.For[*corev1.Pod](c.conn).UpdateStatus(c.ctx, p)
		if apierrors.IsConflict(err) {
			continue
		}
		if err != nil {
			c.t.Fatalf("status of pod %s: %v", name, err)
		}
		return
	}
}

// becomeReady makes a running pod ready or not.
func becomeReady(c *cluster, name string, ready bool) {
	c.t.Helper()
	value := map[bool]string{true: "True", false: "False"}[ready]
	editPod(c, name, func(s *corev1.PodStatus) {
		now := &metav1.Time{}
		now.SetSeconds(time.Now().Unix())
		for _, condition := range s.GetConditions() {
			if condition.GetType() == "Ready" {
				condition.SetStatus(value)
				condition.SetLastTransitionTime(now)
			}
		}
	})
}

func TestDaemonSetRunsOnEveryNode(t *testing.T) {
	c := newCluster(t, nil)
	k := c.startKubelet(nil, "n1", "n2", "n3")
	ds := create(c, daemonSet("agent"))
	eventuallyOne(c, "default", "agent", "on three nodes", onNodes(3))
	pods := list[*corev1.Pod](c, "default", "")
	if got := perNode(pods); got != "n1 n2 n3" {
		t.Fatalf("pods on %s", got)
	}
	revisions := list[*appsv1.ControllerRevision](c, "default", "")
	if len(revisions) != 1 || revisions[0].GetRevision() != 1 {
		t.Fatalf("revisions %v", revisions)
	}
	hash := revisions[0].GetMetadata().GetLabels()["controller-revision-hash"]
	for _, p := range pods {
		if p.GetMetadata().GetLabels()["controller-revision-hash"] != hash || hash == "" || object.ControllerOf(p).GetUid() != ds.GetMetadata().GetUid() {
			t.Errorf("pod %s: labels %v, owner %v", p.GetMetadata().GetName(), p.GetMetadata().GetLabels(), object.ControllerOf(p))
		}
		field := p.GetSpec().GetAffinity().GetNodeAffinity().GetRequiredDuringSchedulingIgnoredDuringExecution().GetNodeSelectorTerms()[0].GetMatchFields()[0]
		if field.GetKey() != "metadata.name" || field.GetValues()[0] != p.GetSpec().GetNodeName() {
			t.Errorf("pod %s: affinity %v", p.GetMetadata().GetName(), field)
		}
		var tolerated []string
		for _, o := range p.GetSpec().GetTolerations() {
			if o.GetOperator() == "Exists" && !o.HasTolerationSeconds() {
				tolerated = append(tolerated, strings.TrimPrefix(o.GetKey(), "node.kubernetes.io/")+":"+o.GetEffect())
			}
		}
		slices.Sort(tolerated)
		if got := strings.Join(tolerated, " "); got != "disk-pressure:NoSchedule memory-pressure:NoSchedule not-ready:NoExecute pid-pressure:NoSchedule unreachable:NoExecute unschedulable:NoSchedule" {
			t.Errorf("pod %s tolerates %s", p.GetMetadata().GetName(), got)
		}
	}

	// A pod that somebody deletes is replaced, on its node.
	victim := pods[0]
	remove[*corev1.Pod](c, "default", victim.GetMetadata().GetName(), nil)
	eventually(c, "default", "the deleted pod is replaced", func(pods []*corev1.Pod) bool {
		return perNode(pods) == "n1 n2 n3" && !slices.Contains(names(pods), victim.GetMetadata().GetName())
	})
	// A node that comes gets a pod, and one that is lost keeps its own: it tolerates that.
	k.mu.Lock()
	k.nodes = append(slices.Clone(k.nodes), "n4")
	k.mu.Unlock()
	create(c, corev1.Node_builder{
		Metadata: metav1.ObjectMeta_builder{Name: proto.String("n4")}.Build(),
		Status:   corev1.NodeStatus_builder{Conditions: []*corev1.NodeCondition{nodeReady("True")}}.Build(),
	}.Build())
	eventuallyOne(c, "default", "agent", "on four nodes", onNodes(4))
	edit(c, "", "n4", func(n *corev1.Node) { n.GetSpec().SetUnschedulable(true) })
	eventuallyOne(c, "", "n4", "the node is tainted", func(n *corev1.Node) bool { return len(n.GetSpec().GetTaints()) > 0 })
	// A node that is deleted takes its pod along.
	remove[*corev1.Node](c, "", "n4", nil)
	eventuallyOne(c, "default", "agent", "on three nodes", onNodes(3))
	remove[*appsv1.DaemonSet](c, "default", "agent", nil)
	eventually(c, "default", "no pods left", func(pods []*corev1.Pod) bool { return len(pods) == 0 })
	eventually(c, "default", "no revisions left", func(all []*appsv1.ControllerRevision) bool { return len(all) == 0 })
}

func TestDaemonSetFollowsLabelsAndTaints(t *testing.T) {
	c := newCluster(t, nil)
	c.startKubelet(nil, "n1", "n2", "n3")
	ds := daemonSet("agent")
	ds.GetSpec().GetTemplate().GetSpec().SetNodeSelector(map[string]string{"disk": "fast"})
	create(c, ds)
	eventuallyOne(c, "default", "agent", "nowhere", func(ds *appsv1.DaemonSet) bool { return ds.GetStatus().GetObservedGeneration() > 0 && onNodes(0)(ds) })
	label := func(node, value string) {
		edit(c, "", node, func(n *corev1.Node) { n.GetMetadata().GetLabels()["disk"] = value })
	}
	label("n1", "fast")
	label("n2", "fast")
	eventuallyOne(c, "default", "agent", "on two nodes", onNodes(2))
	label("n2", "slow")
	eventually(c, "default", "one left", func(pods []*corev1.Pod) bool { return perNode(pods) == "n1" && len(pods) == 1 })
	// The template chooses other nodes, by affinity.
	edit(c, "default", "agent", func(ds *appsv1.DaemonSet) {
		spec := ds.GetSpec().GetTemplate().GetSpec()
		spec.SetNodeSelector(nil)
		spec.SetAffinity(corev1.Affinity_builder{NodeAffinity: corev1.NodeAffinity_builder{
			RequiredDuringSchedulingIgnoredDuringExecution: corev1.NodeSelector_builder{NodeSelectorTerms: []*corev1.NodeSelectorTerm{corev1.NodeSelectorTerm_builder{
				MatchExpressions: []*corev1.NodeSelectorRequirement{corev1.NodeSelectorRequirement_builder{
					Key: proto.String("disk"), Operator: proto.String("NotIn"), Values: []string{"fast"},
				}.Build()},
			}.Build()}}.Build(),
		}.Build()}.Build())
	})
	eventuallyOne(c, "default", "agent", "on the two others", onNodes(2))
	eventually(c, "default", "moved", func(pods []*corev1.Pod) bool { return perNode(pods) == "n2 n3" && len(pods) == 2 })

	// A taint against scheduling keeps new pods away and leaves those that are there, which do not belong there any more; one against running drives them out.
	taint := func(effect string) func(*corev1.Node) {
		return func(n *corev1.Node) {
			n.GetSpec().SetTaints([]*corev1.Taint{corev1.Taint_builder{Key: proto.String("example.com/full"), Effect: proto.String(effect)}.Build()})
		}
	}
	edit(c, "", "n3", taint("NoSchedule"))
	eventuallyOne(c, "default", "agent", "misscheduled on one", func(ds *appsv1.DaemonSet) bool {
		return ds.GetStatus().GetNumberMisscheduled() == 1 && ds.GetStatus().GetDesiredNumberScheduled() == 1
	})
	if got := perNode(list[*corev1.Pod](c, "default", "")); got != "n2 n3" {
		t.Errorf("pods on %s", got)
	}
	edit(c, "", "n3", taint("NoExecute"))
	eventually(c, "default", "driven out", func(pods []*corev1.Pod) bool { return perNode(pods) == "n2" })
	edit(c, "default", "agent", func(ds *appsv1.DaemonSet) {
		ds.GetSpec().GetTemplate().GetSpec().SetTolerations([]*corev1.Toleration{corev1.Toleration_builder{Key: proto.String("example.com/full"), Operator: proto.String("Exists")}.Build()})
	})
	eventually(c, "default", "tolerated", func(pods []*corev1.Pod) bool { return perNode(pods) == "n2 n3" })
	eventuallyOne(c, "default", "agent", "on two nodes", onNodes(2))
}

func TestDaemonSetReplacesEndedPods(t *testing.T) {
	c := newCluster(t, nil)
	c.startKubelet(nil, "n1")
	create(c, daemonSet("agent"))
	for _, phase := range []string{"Failed", "Succeeded", "Failed"} {
		eventuallyOne(c, "default", "agent", "on the node", onNodes(1))
		pods := eventually(c, "default", "one pod", podsWith(1, "image:1"))
		name := pods[0].GetMetadata().GetName()
		editPod(c, name, func(s *corev1.PodStatus) { s.SetPhase(phase) })
		gone[*corev1.Pod](c, "default", name)
	}
	eventuallyOne(c, "default", "agent", "on the node", onNodes(1))
	eventually(c, "default", "events tell of it", func(events []*corev1.Event) bool {
		reasons := map[string]bool{}
		for _, e := range events {
			reasons[e.GetReason()] = true
		}
		return reasons["FailedDaemonPod"] && reasons["SucceededDaemonPod"]
	})
}

func TestDaemonSetRollsOut(t *testing.T) {
	c := newCluster(t, nil)
	c.startKubelet(nil, "n1", "n2", "n3", "n4")
	ds := daemonSet("agent")
	ds.GetSpec().SetUpdateStrategy(appsv1.DaemonSetUpdateStrategy_builder{
		Type: proto.String("RollingUpdate"), RollingUpdate: appsv1.RollingUpdateDaemonSet_builder{MaxUnavailable: percent("50%")}.Build(),
	}.Build())
	create(c, ds)
	eventuallyOne(c, "default", "agent", "on four nodes", onNodes(4))
	observe(c, "default", func(pods []*corev1.Pod) error {
		serving := 0
		for _, p := range pods {
			if ready(p) && !object.IsDeleted(p) {
				serving++
			}
		}
		if serving < 2 || len(pods) > 4 {
			return fmt.Errorf("%d pods serve, of %d", serving, len(pods))
		}
		return nil
	})
	edit(c, "default", "agent", func(ds *appsv1.DaemonSet) { ds.GetSpec().SetTemplate(template("agent", "image:2")) })
	eventuallyOne(c, "default", "agent", "rolled out", onNodes(4))
	eventually(c, "default", "all new", podsWith(4, "image:2"))
	// Back: the first revision is the newest again.
	edit(c, "default", "agent", func(ds *appsv1.DaemonSet) { ds.GetSpec().SetTemplate(template("agent", "image:1")) })
	eventuallyOne(c, "default", "agent", "rolled back", onNodes(4))
	eventually(c, "default", "all old again", podsWith(4, "image:1"))
	eventually(c, "default", "two revisions, 2 and 3", func(all []*appsv1.ControllerRevision) bool {
		var numbers []int64
		for _, r := range all {
			numbers = append(numbers, r.GetRevision())
		}
		slices.Sort(numbers)
		return slices.Equal(numbers, []int64{2, 3})
	})
}

func percent(text string) *metav1.IntOrString {
	v := &metav1.IntOrString{}
	v.SetType(1)
	v.SetStrVal(text)
	return v
}

func number(n int32) *metav1.IntOrString {
	v := &metav1.IntOrString{}
	v.SetType(0)
	v.SetIntVal(n)
	return v
}

func TestDaemonSetSurges(t *testing.T) {
	c := newCluster(t, nil)
	c.startKubelet(nil, "n1", "n2", "n3")
	ds := daemonSet("agent")
	ds.GetSpec().SetUpdateStrategy(appsv1.DaemonSetUpdateStrategy_builder{
		Type:          proto.String("RollingUpdate"),
		RollingUpdate: appsv1.RollingUpdateDaemonSet_builder{MaxUnavailable: number(0), MaxSurge: number(1)}.Build(),
	}.Build())
	create(c, ds)
	eventuallyOne(c, "default", "agent", "on three nodes", onNodes(3))
	observe(c, "default", func(pods []*corev1.Pod) error {
		serving, fresh := map[string]bool{}, 0
		for _, p := range pods {
			if object.IsDeleted(p) {
				continue
			}
			if ready(p) {
				serving[p.GetSpec().GetNodeName()] = true
			} else {
				fresh++
			}
		}
		if len(serving) < 3 || fresh > 1 {
			return fmt.Errorf("%d nodes are served, %d pods start", len(serving), fresh)
		}
		return nil
	})
	edit(c, "default", "agent", func(ds *appsv1.DaemonSet) { ds.GetSpec().SetTemplate(template("agent", "image:2")) })
	eventuallyOne(c, "default", "agent", "rolled out", onNodes(3))
	eventually(c, "default", "all new", podsWith(3, "image:2"))
}

func TestDaemonSetOnDeleteWaitsForSomebody(t *testing.T) {
	c := newCluster(t, nil)
	c.startKubelet(nil, "n1", "n2")
	ds := daemonSet("agent")
	ds.GetSpec().SetUpdateStrategy(appsv1.DaemonSetUpdateStrategy_builder{Type: proto.String("OnDelete")}.Build())
	create(c, ds)
	eventuallyOne(c, "default", "agent", "on two nodes", onNodes(2))
	edit(c, "default", "agent", func(ds *appsv1.DaemonSet) { ds.GetSpec().SetTemplate(template("agent", "image:2")) })
	eventuallyOne(c, "default", "agent", "seen, and nothing done", func(ds *appsv1.DaemonSet) bool {
		return ds.GetStatus().GetObservedGeneration() == ds.GetMetadata().GetGeneration() && ds.GetStatus().GetUpdatedNumberScheduled() == 0
	})
	pods := list[*corev1.Pod](c, "default", "")
	if !podsWith(2, "image:1")(pods) {
		t.Fatalf("pods %v", names(pods))
	}
	remove[*corev1.Pod](c, "default", pods[0].GetMetadata().GetName(), nil)
	eventuallyOne(c, "default", "agent", "one is new", func(ds *appsv1.DaemonSet) bool {
		return ds.GetStatus().GetUpdatedNumberScheduled() == 1 && ds.GetStatus().GetNumberAvailable() == 2
	})
}

func TestDaemonSetBrokenUpdateStopsAndRollsBack(t *testing.T) {
	c := newCluster(t, nil)
	c.startKubelet(func(p *corev1.Pod) bool { return image(p) != "broken" }, "n1", "n2", "n3")
	create(c, daemonSet("agent"))
	eventuallyOne(c, "default", "agent", "on three nodes", onNodes(3))
	before := names(list[*corev1.Pod](c, "default", ""))
	edit(c, "default", "agent", func(ds *appsv1.DaemonSet) { ds.GetSpec().SetTemplate(template("agent", "broken")) })
	eventuallyOne(c, "default", "agent", "stuck at the first", func(ds *appsv1.DaemonSet) bool {
		return ds.GetStatus().GetUpdatedNumberScheduled() == 1 && ds.GetStatus().GetNumberUnavailable() == 1 && ds.GetStatus().GetNumberAvailable() == 2
	})
	// Back, and only the broken pod is replaced.
	edit(c, "default", "agent", func(ds *appsv1.DaemonSet) { ds.GetSpec().SetTemplate(template("agent", "image:1")) })
	eventuallyOne(c, "default", "agent", "rolled back", onNodes(3))
	pods := eventually(c, "default", "all old", podsWith(3, "image:1"))
	kept := 0
	for _, name := range names(pods) {
		if slices.Contains(before, name) {
			kept++
		}
	}
	if kept != 2 {
		t.Errorf("%d pods were kept, want 2", kept)
	}
}

func TestDaemonSetAdopts(t *testing.T) {
	c := newCluster(t, nil)
	c.startKubelet(nil, "n1", "n2")
	create(c, daemonSet("agent"))
	eventuallyOne(c, "default", "agent", "on two nodes", onNodes(2))
	before := sortedNames(list[*corev1.Pod](c, "default", ""))
	remove[*appsv1.DaemonSet](c, "default", "agent", metav1.DeletionOptions_builder{PropagationPolicy: metav1.PropagationPolicy_PROPAGATION_POLICY_ORPHAN}.Build())
	gone[*appsv1.DaemonSet](c, "default", "agent")
	again := create(c, daemonSet("agent"))
	eventuallyOne(c, "default", "agent", "on two nodes", onNodes(2))
	pods := list[*corev1.Pod](c, "default", "")
	if got := sortedNames(pods); got != before {
		t.Errorf("pods %s, want those of before: %s", got, before)
	}
	revisions := list[*appsv1.ControllerRevision](c, "default", "")
	if len(revisions) != 1 || object.ControllerOf(revisions[0]).GetUid() != again.GetMetadata().GetUid() {
		t.Errorf("revisions %v", revisions)
	}
}
