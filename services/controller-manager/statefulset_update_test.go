package controllermanager_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	appsv1 "dhow.dev/gen/go/dhow/apps/v1"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/object"
)

func rolling(partition int32, maxUnavailable *metav1.IntOrString) *appsv1.StatefulSetUpdateStrategy {
	r := &appsv1.RollingUpdateStatefulSetStrategy{}
	r.SetPartition(partition)
	if maxUnavailable != nil {
		r.SetMaxUnavailable(maxUnavailable)
	}
	return appsv1.StatefulSetUpdateStrategy_builder{Type: proto.String("RollingUpdate"), RollingUpdate: r}.Build()
}

// images returns the pods' ordinals and images: "0:image:1 1:image:2".
func images(pods []*corev1.Pod) string {
	var all []string
	for _, p := range pods {
		name := p.GetMetadata().GetName()
		all = append(all, name[strings.LastIndex(name, "-")+1:]+":"+image(p))
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

func setImage(c *cluster, name, image string) {
	c.t.Helper()
	edit(c, "default", name, func(s *appsv1.StatefulSet) { s.GetSpec().SetTemplate(template(name, image)) })
}

func TestStatefulSetPartition(t *testing.T) {
	c := newCluster(t, nil)
	c.startKubelet(nil, "n1")
	set := statefulSet("db", 3)
	set.GetSpec().SetUpdateStrategy(rolling(2, nil))
	create(c, set)
	first := eventuallyOne(c, "default", "db", "settled", settled).GetStatus().GetUpdateRevision()
	setImage(c, "db", "image:2")
	canary := func(updated int32) func(*appsv1.StatefulSet) bool {
		return func(s *appsv1.StatefulSet) bool {
			status := s.GetStatus()
			return status.GetObservedGeneration() == s.GetMetadata().GetGeneration() && status.GetAvailableReplicas() == 3 && status.GetReplicas() == 3 &&
				status.GetUpdatedReplicas() == updated && status.GetCurrentReplicas() == 3-updated && status.GetCurrentRevision() == first && status.GetUpdateRevision() != first
		}
	}
	eventuallyOne(c, "default", "db", "one is new", canary(1))
	if got := images(list[*corev1.Pod](c, "default", "")); got != "0:image:1 1:image:1 2:image:2" {
		t.Fatalf("pods %s", got)
	}
	// What is deleted comes back as what it was.
	for _, name := range []string{"db-0", "db-2"} {
		before := get[*corev1.Pod](c, "default", name).GetMetadata().GetUid()
		remove[*corev1.Pod](c, "default", name, nil)
		eventuallyOne(c, "default", name, "replaced", func(p *corev1.Pod) bool { return p.GetMetadata().GetUid() != before && ready(p) })
	}
	eventuallyOne(c, "default", "db", "one is new", canary(1))
	if got := images(list[*corev1.Pod](c, "default", "")); got != "0:image:1 1:image:1 2:image:2" {
		t.Fatalf("pods %s", got)
	}
	edit(c, "default", "db", func(s *appsv1.StatefulSet) { s.GetSpec().GetUpdateStrategy().GetRollingUpdate().SetPartition(1) })
	eventuallyOne(c, "default", "db", "two are new", canary(2))
	edit(c, "default", "db", func(s *appsv1.StatefulSet) { s.GetSpec().GetUpdateStrategy().GetRollingUpdate().SetPartition(0) })
	eventuallyOne(c, "default", "db", "settled", settled)
	eventually(c, "default", "all new", podsWith(3, "image:2"))
}

func TestStatefulSetOnDeleteWaitsForSomebody(t *testing.T) {
	c := newCluster(t, nil)
	c.startKubelet(nil, "n1")
	set := statefulSet("db", 2)
	set.GetSpec().SetUpdateStrategy(appsv1.StatefulSetUpdateStrategy_builder{Type: proto.String("OnDelete")}.Build())
	create(c, set)
	eventuallyOne(c, "default", "db", "settled", settled)
	setImage(c, "db", "image:2")
	eventuallyOne(c, "default", "db", "seen, and nothing done", func(s *appsv1.StatefulSet) bool {
		return s.GetStatus().GetObservedGeneration() == s.GetMetadata().GetGeneration() && s.GetStatus().GetUpdatedReplicas() == 0 && s.GetStatus().GetCurrentReplicas() == 2
	})
	if got := images(list[*corev1.Pod](c, "default", "")); got != "0:image:1 1:image:1" {
		t.Fatalf("pods %s", got)
	}
	remove[*corev1.Pod](c, "default", "db-0", nil)
	eventually(c, "default", "the deleted one is new", func(pods []*corev1.Pod) bool { return images(pods) == "0:image:2 1:image:1" })
}

func TestStatefulSetParallel(t *testing.T) {
	c := newCluster(t, nil)
	// Nobody becomes ready: it does not matter.
	c.startKubelet(func(*corev1.Pod) bool { return false }, "n1")
	set := statefulSet("db", 4)
	set.GetSpec().SetPodManagementPolicy("Parallel")
	create(c, set)
	eventually(c, "default", "all four", podsWith(4, "image:1"))
	edit(c, "default", "db", func(s *appsv1.StatefulSet) { s.GetSpec().SetReplicas(1) })
	eventually(c, "default", "one", func(pods []*corev1.Pod) bool { return sortedNames(pods) == "db-0" })
	// A template that never worked is replaced by one that may.
	setImage(c, "db", "image:2")
	eventually(c, "default", "replaced", podsWith(1, "image:2"))
}

func TestStatefulSetMaxUnavailable(t *testing.T) {
	c := newCluster(t, nil)
	c.startKubelet(nil, "n1", "n2")
	set := statefulSet("db", 5)
	set.GetSpec().SetPodManagementPolicy("Parallel")
	// Rounded up: two.
	set.GetSpec().SetUpdateStrategy(rolling(0, percent("30%")))
	create(c, set)
	eventuallyOne(c, "default", "db", "settled", settled)
	most := 0
	observe(c, "default", func(pods []*corev1.Pod) error {
		missing := 5
		for _, p := range pods {
			if ready(p) && !object.IsDeleted(p) {
				missing--
			}
		}
		if most = max(most, missing); missing > 2 {
			return fmt.Errorf("%d pods are missing", missing)
		}
		return nil
	})
	setImage(c, "db", "image:2")
	eventuallyOne(c, "default", "db", "settled", settled)
	eventually(c, "default", "all new", podsWith(5, "image:2"))
}

func TestStatefulSetMinReadySeconds(t *testing.T) {
	c := newCluster(t, nil)
	c.startKubelet(nil, "n1")
	set := statefulSet("db", 2)
	set.GetSpec().SetMinReadySeconds(3600)
	create(c, set)
	eventuallyOne(c, "default", "db", "one is ready, and not for long enough", func(s *appsv1.StatefulSet) bool {
		return s.GetStatus().GetReadyReplicas() == 1 && s.GetStatus().GetAvailableReplicas() == 0
	})
	if got := sortedNames(list[*corev1.Pod](c, "default", "")); got != "db-0" {
		t.Fatalf("pods %s: the second waits for the first to be available", got)
	}
	edit(c, "default", "db", func(s *appsv1.StatefulSet) { s.GetSpec().SetMinReadySeconds(1) })
	// Time alone makes them available now.
	eventuallyOne(c, "default", "db", "settled", settled)
}

func TestStatefulSetReplacesFailedPods(t *testing.T) {
	c := newCluster(t, nil)
	c.startKubelet(nil, "n1", "n2")
	create(c, statefulSet("db", 2))
	eventuallyOne(c, "default", "db", "settled", settled)
	for _, phase := range []string{"Failed", "Succeeded"} {
		before := get[*corev1.Pod](c, "default", "db-1").GetMetadata().GetUid()
		editPod(c, "db-1", func(s *corev1.PodStatus) { s.SetPhase(phase) })
		eventuallyOne(c, "default", "db-1", "another in its place", func(p *corev1.Pod) bool { return p.GetMetadata().GetUid() != before && ready(p) })
	}
	eventuallyOne(c, "default", "db", "settled", settled)
}

// Kubernetes' forced rollback: an ordered update that gets stuck is not undone by the template alone; the pod that is stuck must be deleted.
func TestStatefulSetBrokenUpdateStopsAndRollsBack(t *testing.T) {
	c := newCluster(t, nil)
	c.startKubelet(func(p *corev1.Pod) bool { return image(p) != "broken" }, "n1")
	create(c, statefulSet("db", 3))
	first := eventuallyOne(c, "default", "db", "settled", settled).GetStatus().GetUpdateRevision()
	setImage(c, "db", "broken")
	eventuallyOne(c, "default", "db", "stuck at the last", func(s *appsv1.StatefulSet) bool {
		status := s.GetStatus()
		return status.GetUpdateRevision() != first && status.GetUpdatedReplicas() == 1 && status.GetReadyReplicas() == 2 && status.GetReplicas() == 3
	})
	setImage(c, "db", "image:1")
	eventuallyOne(c, "default", "db", "the old revision is the one to go to", func(s *appsv1.StatefulSet) bool {
		return s.GetStatus().GetObservedGeneration() == s.GetMetadata().GetGeneration() && s.GetStatus().GetUpdateRevision() == first
	})
	if got := images(list[*corev1.Pod](c, "default", "")); got != "0:image:1 1:image:1 2:broken" {
		t.Fatalf("pods %s", got)
	}
	remove[*corev1.Pod](c, "default", "db-2", nil)
	eventuallyOne(c, "default", "db", "settled", settled)
	eventually(c, "default", "all old", podsWith(3, "image:1"))
	for _, r := range list[*appsv1.ControllerRevision](c, "default", "") {
		if want := map[bool]int64{true: 3, false: 2}[r.GetMetadata().GetName() == first]; r.GetRevision() != want {
			t.Errorf("revision %s has number %d, want %d", r.GetMetadata().GetName(), r.GetRevision(), want)
		}
	}
}

func TestStatefulSetScaleDownHaltsAtAnUnhealthyPod(t *testing.T) {
	c := newCluster(t, nil)
	c.startKubelet(nil, "n1")
	create(c, statefulSet("db", 3))
	eventuallyOne(c, "default", "db", "settled", settled)
	becomeReady(c, "db-0", false)
	eventuallyOne(c, "default", "db", "one is not ready", func(s *appsv1.StatefulSet) bool { return s.GetStatus().GetReadyReplicas() == 2 })
	edit(c, "default", "db", func(s *appsv1.StatefulSet) { s.GetSpec().SetReplicas(1) })
	eventuallyOne(c, "default", "db", "seen, and nothing done", func(s *appsv1.StatefulSet) bool {
		return s.GetStatus().GetObservedGeneration() == s.GetMetadata().GetGeneration()
	})
	if got := sortedNames(list[*corev1.Pod](c, "default", "")); got != "db-0 db-1 db-2" {
		t.Errorf("pods %s", got)
	}
	becomeReady(c, "db-0", true)
	eventually(c, "default", "one", func(pods []*corev1.Pod) bool { return sortedNames(pods) == "db-0" })
}

func TestStatefulSetForgetsOldRevisions(t *testing.T) {
	c := newCluster(t, nil)
	c.startKubelet(nil, "n1")
	set := statefulSet("db", 1)
	set.GetSpec().SetRevisionHistoryLimit(2)
	create(c, set)
	for i := 1; i <= 5; i++ {
		setImage(c, "db", fmt.Sprintf("image:%d", i))
		eventuallyOne(c, "default", "db", "settled", settled)
	}
	eventually(c, "default", "the current one and two before it", func(all []*appsv1.ControllerRevision) bool {
		var numbers []int64
		for _, r := range all {
			numbers = append(numbers, r.GetRevision())
		}
		slices.Sort(numbers)
		return slices.Equal(numbers, []int64{3, 4, 5})
	})
}

func TestStatefulSetAdopts(t *testing.T) {
	c := newCluster(t, nil)
	c.startKubelet(nil, "n1")
	create(c, statefulSet("db", 2))
	eventuallyOne(c, "default", "db", "settled", settled)
	before := map[string]string{}
	for _, p := range list[*corev1.Pod](c, "default", "") {
		before[p.GetMetadata().GetName()] = p.GetMetadata().GetUid()
	}
	remove[*appsv1.StatefulSet](c, "default", "db", metav1.DeletionOptions_builder{PropagationPolicy: metav1.PropagationPolicy_PROPAGATION_POLICY_ORPHAN}.Build())
	gone[*appsv1.StatefulSet](c, "default", "db")
	// A pod of the selector with a name of its own is nobody's.
	stranger := corev1.Pod_builder{Metadata: meta("stranger"), Spec: template("db", "image:1").GetSpec()}.Build()
	stranger.GetMetadata().SetLabels(map[string]string{"app": "db"})
	create(c, stranger)
	create(c, statefulSet("db", 2))
	eventuallyOne(c, "default", "db", "settled", settled)
	for _, p := range list[*corev1.Pod](c, "default", "") {
		name := p.GetMetadata().GetName()
		if owner := object.ControllerOf(p); (owner != nil) != (name != "stranger") {
			t.Errorf("pod %s: owner %v", name, owner)
		}
		if uid := before[name]; uid != "" && uid != p.GetMetadata().GetUid() {
			t.Errorf("pod %s was replaced", name)
		}
	}
	if revisions := list[*appsv1.ControllerRevision](c, "default", ""); len(revisions) != 1 {
		t.Errorf("revisions %v", names(revisions))
	}
	// One that matches no longer is released, and its place is taken again when it is gone.
	edit(c, "default", "db-1", func(p *corev1.Pod) { p.GetMetadata().SetLabels(map[string]string{"app": "other"}) })
	eventuallyOne(c, "default", "db-1", "released", func(p *corev1.Pod) bool { return object.ControllerOf(p) == nil })
	remove[*corev1.Pod](c, "default", "db-1", nil)
	eventuallyOne(c, "default", "db", "settled", settled)
}

// A name that another owner's revision has already is a collision, counted in the status.
func TestStatefulSetRevisionNamesCollide(t *testing.T) {
	c := newCluster(t, nil)
	c.startKubelet(nil, "n1")
	create(c, statefulSet("db", 1))
	first := eventuallyOne(c, "default", "db", "settled", settled).GetStatus().GetUpdateRevision()
	remove[*appsv1.StatefulSet](c, "default", "db", nil)
	gone[*appsv1.StatefulSet](c, "default", "db")
	eventually(c, "default", "no revisions left", func(all []*appsv1.ControllerRevision) bool { return len(all) == 0 })
	data := &metav1.RawExtension{}
	data.SetRaw([]byte(`{"spec":{"template":{"metadata":{"labels":{"app":"somebody"}}}}}`))
	create(c, appsv1.ControllerRevision_builder{Metadata: meta(first), Data: data, Revision: proto.Int64(1)}.Build())
	create(c, statefulSet("db", 1))
	set := eventuallyOne(c, "default", "db", "settled", settled)
	if set.GetStatus().GetCollisionCount() != 1 || set.GetStatus().GetUpdateRevision() == first {
		t.Errorf("status %v", set.GetStatus())
	}
}
