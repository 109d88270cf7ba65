package controllermanager_test

import (
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	appsv1 "dhow.dev/gen/go/dhow/apps/v1"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	policyv1 "dhow.dev/gen/go/dhow/policy/v1"
	"dhow.dev/pkg/client"
)

func budget(app string, spec *policyv1.PodDisruptionBudgetSpec) *policyv1.PodDisruptionBudget {
	spec.SetSelector(selector(app))
	return policyv1.PodDisruptionBudget_builder{Metadata: meta(app), Spec: spec}.Build()
}

// allows waits until a budget of the default namespace is counted so.
func allows(c *cluster, name, what string, expected, desired, healthy, allowed int32, reason string) *policyv1.PodDisruptionBudget {
	c.t.Helper()
	return eventuallyOne(c, "default", name, what, func(b *policyv1.PodDisruptionBudget) bool {
		s := b.GetStatus()
		return s.GetObservedGeneration() == b.GetMetadata().GetGeneration() && len(s.GetConditions()) == 1 && s.GetConditions()[0].GetReason() == reason &&
			s.GetExpectedPods() == expected && s.GetDesiredHealthy() == desired && s.GetCurrentHealthy() == healthy && s.GetDisruptionsAllowed() == allowed
	})
}

// A budget counts its pods as they become ready and go.
func TestDisruptionBudget(t *testing.T) {
	c := newCluster(t, nil)
	create(c, corev1.Node_builder{Metadata: metav1.ObjectMeta_builder{Name: proto.String("node-1")}.Build()}.Build())
	create(c, budget("web", policyv1.PodDisruptionBudgetSpec_builder{MinAvailable: metav1.IntOrString_builder{Type: proto.Int64(0), IntVal: proto.Int32(1)}.Build()}.Build()))
	allows(c, "web", "nothing is there", 0, 1, 0, 0, "InsufficientPods")
	for _, name := range []string{"a", "b"} {
		m := meta(name)
		m.SetLabels(map[string]string{"app": "web"})
		p := create(c, corev1.Pod_builder{Metadata: m, Spec: corev1.PodSpec_builder{
			NodeName: proto.String("node-1"), Containers: []*corev1.Container{corev1.Container_builder{Name: proto.String("c"), Image: proto.String("i")}.Build()},
		}.Build()}.Build())
		p.SetStatus(corev1.PodStatus_builder{Phase: proto.String("Running"), Conditions: []*corev1.PodCondition{
			corev1.PodCondition_builder{Type: proto.String("Ready"), Status: proto.String("True")}.Build(),
		}}.Build())
		if _, err := client.For[*corev1.Pod](c.conn).UpdateStatus(c.ctx, p); err != nil {
			t.Fatal(err)
		}
	}
	allows(c, "web", "both are ready", 2, 1, 2, 1, "SufficientPods")
	remove[*corev1.Pod](c, "default", "a", metav1.DeletionOptions_builder{GracePeriodSeconds: proto.Int64(0)}.Build())
	allows(c, "web", "one is left", 1, 1, 1, 0, "InsufficientPods")
}

// A share is of what the deployment wants, not of the pods that are there.
func TestDisruptionBudgetOfDeployment(t *testing.T) {
	c := newCluster(t, nil)
	c.startKubelet(nil, "n1")
	create(c, deployment("web", 4))
	create(c, budget("web", policyv1.PodDisruptionBudgetSpec_builder{MaxUnavailable: metav1.IntOrString_builder{Type: proto.Int64(1), StrVal: proto.String("50%")}.Build()}.Build()))
	allows(c, "web", "half of four", 4, 2, 4, 2, "SufficientPods")
	edit(c, "default", "web", func(d *appsv1.Deployment) { d.GetSpec().SetReplicas(6) })
	allows(c, "web", "half of six", 6, 3, 6, 3, "SufficientPods")

	// A pod of a kind without scale cannot be counted: nothing may be evicted until it is out of the way.
	m := meta("stray")
	m.SetLabels(map[string]string{"app": "web"})
	m.SetOwnerReferences([]*metav1.OwnerReference{metav1.OwnerReference_builder{
		ApiVersion: proto.String("v1"), Kind: proto.String("ConfigMap"), Name: proto.String("d"), Uid: proto.String(create(c, configMap("d")).GetMetadata().GetUid()), Controller: proto.Bool(true),
	}.Build()})
	create(c, corev1.Pod_builder{Metadata: m, Spec: template("web", "image:1").GetSpec()}.Build())
	b := allows(c, "web", "it cannot be counted", 6, 3, 6, 0, "SyncFailed")
	if message := b.GetStatus().GetConditions()[0].GetMessage(); message != "configmaps does not implement the scale subresource" {
		t.Error(message)
	}
	eventually(c, "default", "an event says so", func(all []*corev1.Event) bool {
		for _, e := range all {
			if e.GetInvolvedObject().GetKind() == "PodDisruptionBudget" && e.GetReason() == "CalculateExpectedPodCountFailed" {
				return true
			}
		}
		return false
	})
	edit(c, "default", "stray", func(p *corev1.Pod) { p.GetMetadata().SetLabels(nil) })
	allows(c, "web", "counted again", 6, 3, 6, 3, "SufficientPods")
}

// A pod that was to be disrupted long ago, and is not, says so no more; what its node's agent says stays.
func TestStaleDisruptionTarget(t *testing.T) {
	c := newCluster(t, nil)
	create(c, corev1.Node_builder{Metadata: metav1.ObjectMeta_builder{Name: proto.String("node-1")}.Build()}.Build())
	mark := func(name, reason string, ago time.Duration) {
		t.Helper()
		at := &metav1.Time{}
		at.SetSeconds(time.Now().Add(-ago).Unix())
		spec := template("web", "image:1").GetSpec()
		spec.SetNodeName("node-1")
		p := create(c, corev1.Pod_builder{Metadata: meta(name), Spec: spec}.Build())
		p.SetStatus(corev1.PodStatus_builder{Phase: proto.String("Running"), Conditions: []*corev1.PodCondition{corev1.PodCondition_builder{
			Type: proto.String("DisruptionTarget"), Status: proto.String("True"), Reason: proto.String(reason), LastTransitionTime: at,
		}.Build()}}.Build())
		if _, err := client.For[*corev1.Pod](c.conn).UpdateStatus(c.ctx, p); err != nil {
			t.Fatal(err)
		}
	}
	status := func(p *corev1.Pod) string {
		for _, condition := range p.GetStatus().GetConditions() {
			if condition.GetType() == "DisruptionTarget" {
				return condition.GetStatus()
			}
		}
		return ""
	}
	mark("by-agent", "TerminationByKubelet", time.Hour)
	mark("just-now", "EvictionByEvictionAPI", 0)
	mark("long-ago", "EvictionByEvictionAPI", time.Hour)
	eventuallyOne(c, "default", "long-ago", "the condition is taken back", func(p *corev1.Pod) bool { return status(p) == "False" })
	for _, name := range []string{"by-agent", "just-now"} {
		if got := status(get[*corev1.Pod](c, "default", name)); got != "True" {
			t.Errorf("%s: %s", name, got)
		}
	}
}
