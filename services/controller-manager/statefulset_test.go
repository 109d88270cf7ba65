package controllermanager_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	appsv1 "dhow.dev/gen/go/dhow/apps/v1"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/pkg/object"
)

func statefulSet(name string, replicas int32) *appsv1.StatefulSet {
	return appsv1.StatefulSet_builder{
		Metadata: meta(name),
		Spec: appsv1.StatefulSetSpec_builder{
			Replicas: proto.Int32(replicas), Selector: selector(name), Template: template(name, "image:1"), ServiceName: proto.String("peers"),
		}.Build(),
	}.Build()
}

// settled says that all pods of the set are there, available and of its newest revision.
func settled(set *appsv1.StatefulSet) bool {
	s, n := set.GetStatus(), set.GetSpec().GetReplicas()
	return s.GetObservedGeneration() == set.GetMetadata().GetGeneration() && s.GetReplicas() == n && s.GetReadyReplicas() == n && s.GetAvailableReplicas() == n &&
		s.GetUpdatedReplicas() == n && s.GetCurrentReplicas() == n && s.GetCurrentRevision() == s.GetUpdateRevision() && s.GetUpdateRevision() != ""
}

// image returns the image of a pod's first container.
func image(p *corev1.Pod) string { return p.GetSpec().GetContainers()[0].GetImage() }

// names returns the pods' names in order.
func sortedNames(pods []*corev1.Pod) string {
	all := names(pods)
	slices.Sort(all)
	return strings.Join(all, " ")
}

func TestStatefulSetGivesPodsIdentities(t *testing.T) {
	c := newCluster(t, nil)
	c.startKubelet(nil, "n1", "n2")
	set := statefulSet("db", 3)
	set.GetSpec().SetOrdinals(appsv1.StatefulSetOrdinals_builder{Start: proto.Int32(5)}.Build())
	create(c, set)
	set = eventuallyOne(c, "default", "db", "settled", settled)
	pods := list[*corev1.Pod](c, "default", "app=db")
	if got := sortedNames(pods); got != "db-5 db-6 db-7" {
		t.Fatalf("pods %s", got)
	}
	for _, p := range pods {
		name := p.GetMetadata().GetName()
		l := p.GetMetadata().GetLabels()
		if l["statefulset.kubernetes.io/pod-name"] != name || "db-"+l["apps.kubernetes.io/pod-index"] != name || l["controller-revision-hash"] != set.GetStatus().GetUpdateRevision() {
			t.Errorf("pod %s: labels %v", name, l)
		}
		if p.GetSpec().GetHostname() != name || p.GetSpec().GetSubdomain() != "peers" {
			t.Errorf("pod %s: hostname %q, subdomain %q", name, p.GetSpec().GetHostname(), p.GetSpec().GetSubdomain())
		}
		if owner := object.ControllerOf(p); owner.GetKind() != "StatefulSet" || owner.GetUid() != set.GetMetadata().GetUid() {
			t.Errorf("pod %s: owner %v", name, owner)
		}
	}
	revisions := list[*appsv1.ControllerRevision](c, "default", "")
	if len(revisions) != 1 || revisions[0].GetMetadata().GetName() != set.GetStatus().GetUpdateRevision() || revisions[0].GetRevision() != 1 ||
		object.ControllerOf(revisions[0]).GetUid() != set.GetMetadata().GetUid() || revisions[0].GetMetadata().GetLabels()["controller.kubernetes.io/hash"] == "" {
		t.Errorf("revisions %v", revisions)
	}
	// A label that somebody takes away comes back.
	edit(c, "default", "db-6", func(p *corev1.Pod) { delete(p.GetMetadata().GetLabels(), "apps.kubernetes.io/pod-index") })
	eventuallyOne(c, "default", "db-6", "the label is back", func(p *corev1.Pod) bool {
		return p.GetMetadata().GetLabels()["apps.kubernetes.io/pod-index"] == "6"
	})
	eventually(c, "default", "events tell of it", func(events []*corev1.Event) bool {
		return slices.ContainsFunc(events, func(e *corev1.Event) bool {
			return e.GetReason() == "SuccessfulCreate" && e.GetMessage() == "create Pod db-7 in StatefulSet db successful"
		})
	})
	// Other numbers: the new ones first, then the old ones go.
	edit(c, "default", "db", func(s *appsv1.StatefulSet) { s.GetSpec().GetOrdinals().SetStart(6) })
	eventually(c, "default", "renumbered", func(pods []*corev1.Pod) bool { return sortedNames(pods) == "db-6 db-7 db-8" })
}

// watchPods calls a function with all pods of the namespace at every change, until the test ends.
func watchPods(c *cluster, check func(pods []*corev1.Pod) error) {
	c.t.Helper()
	observe(c, "default", check)
}

func TestStatefulSetOrdered(t *testing.T) {
	c := newCluster(t, nil)
	k := c.startKubelet(nil, "n1")
	_ = k
	watchPods(c, func(pods []*corev1.Pod) error {
		waiting := 0
		for _, p := range pods {
			if !ready(p) || object.IsDeleted(p) {
				waiting++
			}
		}
		if waiting > 1 {
			return fmt.Errorf("%d pods are made, updated or deleted at once", waiting)
		}
		for i := range pods {
			if !slices.Contains(names(pods), fmt.Sprintf("db-%d", i)) {
				return nil // an update is under way
			}
		}
		return nil
	})
	create(c, statefulSet("db", 3))
	eventuallyOne(c, "default", "db", "settled", settled)
	edit(c, "default", "db", func(s *appsv1.StatefulSet) { s.GetSpec().SetTemplate(template("db", "image:2")) })
	eventuallyOne(c, "default", "db", "updated", func(s *appsv1.StatefulSet) bool { return settled(s) })
	eventually(c, "default", "all new", podsWith(3, "image:2"))
	edit(c, "default", "db", func(s *appsv1.StatefulSet) { s.GetSpec().SetReplicas(1) })
	eventually(c, "default", "one left", func(pods []*corev1.Pod) bool { return sortedNames(pods) == "db-0" })
	eventuallyOne(c, "default", "db", "settled", settled)
}

func ready(p *corev1.Pod) bool {
	return slices.ContainsFunc(p.GetStatus().GetConditions(), func(c *corev1.PodCondition) bool { return c.GetType() == "Ready" && c.GetStatus() == "True" })
}
