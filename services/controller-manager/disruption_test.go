package controllermanager_test

import (
	"testing"

	"google.golang.org/protobuf/proto"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	policyv1 "dhow.dev/gen/go/dhow/policy/v1"
	"dhow.dev/pkg/client"
)

// A budget counts its pods as they become ready and go.
func TestDisruptionBudget(t *testing.T) {
	c := newCluster(t, nil)
	create(c, corev1.Node_builder{Metadata: metav1.ObjectMeta_builder{Name: proto.String("node-1")}.Build()}.Build())
	create(c, policyv1.PodDisruptionBudget_builder{Metadata: meta("web"), Spec: policyv1.PodDisruptionBudgetSpec_builder{
		MinAvailable: metav1.IntOrString_builder{Type: proto.Int64(0), IntVal: proto.Int32(1)}.Build(),
		Selector:     metav1.LabelSelector_builder{MatchLabels: map[string]string{"app": "web"}}.Build(),
	}.Build()}.Build())
	allows := func(what string, healthy, allowed int32) {
		t.Helper()
		eventuallyOne(c, "default", "web", what, func(b *policyv1.PodDisruptionBudget) bool {
			s := b.GetStatus()
			return s.GetObservedGeneration() == b.GetMetadata().GetGeneration() && s.GetCurrentHealthy() == healthy && s.GetDisruptionsAllowed() == allowed && s.GetDesiredHealthy() == 1
		})
	}
	allows("nothing is there", 0, 0)
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
	allows("both are ready", 2, 1)
	remove[*corev1.Pod](c, "default", "a", metav1.DeletionOptions_builder{GracePeriodSeconds: proto.Int64(0)}.Build())
	allows("one is left", 1, 0)
}
