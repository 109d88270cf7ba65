package cluster_test

import (
	"fmt"
	"testing"

	"google.golang.org/protobuf/proto"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/object"
	"dhow.dev/services/scheduler/internal/cluster"
	"dhow.dev/services/scheduler/internal/plan"
)

func quantities(pairs ...string) map[string]*metav1.Quantity {
	out := map[string]*metav1.Quantity{}
	for i := 0; i < len(pairs); i += 2 {
		q := &metav1.Quantity{}
		q.SetString(pairs[i+1])
		out[pairs[i]] = q
	}
	return out
}

func node(i int) *corev1.Node {
	name := fmt.Sprintf("node-%d", i)
	return corev1.Node_builder{
		Metadata: metav1.ObjectMeta_builder{Name: &name, Labels: map[string]string{
			"kubernetes.io/hostname": name, "topology.kubernetes.io/zone": fmt.Sprintf("z%d", i%3),
		}}.Build(),
		Spec:   &corev1.NodeSpec{},
		Status: corev1.NodeStatus_builder{Allocatable: quantities("cpu", "32", "memory", "128Gi", "pods", "110")}.Build(),
	}.Build()
}

func pod(i, owner int) *corev1.Pod {
	return corev1.Pod_builder{
		Metadata: metav1.ObjectMeta_builder{
			Namespace: proto.String("default"), Name: proto.String(fmt.Sprintf("pod-%d", i)), Uid: proto.String(fmt.Sprintf("uid-%d", i)),
			Labels: map[string]string{"app": fmt.Sprintf("app-%d", owner)},
			OwnerReferences: []*metav1.OwnerReference{metav1.OwnerReference_builder{
				Kind: proto.String("ReplicaSet"), Name: proto.String("rs"), Uid: proto.String(fmt.Sprintf("owner-%d", owner)), Controller: proto.Bool(true),
			}.Build()},
		}.Build(),
		Spec: corev1.PodSpec_builder{Containers: []*corev1.Container{corev1.Container_builder{
			Name:      proto.String("app"),
			Resources: corev1.ResourceRequirements_builder{Requests: quantities("cpu", "100m", "memory", "128Mi")}.Build(),
		}.Build()}}.Build(),
	}.Build()
}

// BenchmarkPlan is the harness of the decision alone and with the bookkeeping around it: pods arrive, are planned in batches, assumed, and seen bound.
func BenchmarkPlan(b *testing.B) {
	for _, size := range []struct{ nodes, pods, owners int }{{1000, 10000, 20}, {5000, 10000, 20}, {5000, 10000, 10000}} {
		b.Run(fmt.Sprintf("nodes=%d/pods=%d/classes=%d", size.nodes, size.pods, size.owners), func(b *testing.B) {
			objects := make([]*corev1.Pod, size.pods)
			for i := range objects {
				objects[i] = pod(i, i%size.owners)
			}
			b.ReportAllocs()
			placed := 0
			for b.Loop() {
				b.StopTimer()
				c := cluster.New(func(string) []*corev1.Service { return nil })
				for i := range size.nodes {
					c.SetNode(node(i))
				}
				b.StartTimer()
				const batch = 512
				for start := 0; start < len(objects); start += batch {
					some := objects[start:min(start+batch, len(objects))]
					pending := make([]plan.Pod, len(some))
					for i, o := range some {
						p, _, _, err := c.SetPod(o)
						if err != nil {
							b.Fatal(err)
						}
						pending[i] = plan.Pod{Key: p.Key.String(), Class: p.Class()}
					}
					for i, d := range plan.Make(c.Snapshot(), pending, 1) {
						if d.Slot < 0 || !c.Assume(object.KeyOf(some[i]), pending[i].Class, d.Node) {
							b.Fatalf("pod %s not placed", pending[i].Key)
						}
						placed++
					}
				}
			}
			b.ReportMetric(float64(placed)/b.Elapsed().Seconds(), "pods/s")
		})
	}
}
