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

// affine gives a pod terms about the pods of its own app within a topology: required or preferred, near or far.
func affine(o *corev1.Pod, required, far bool, topology string) *corev1.Pod {
	term := corev1.PodAffinityTerm_builder{
		LabelSelector: metav1.LabelSelector_builder{MatchLabels: o.GetMetadata().GetLabels()}.Build(), TopologyKey: proto.String(topology),
	}.Build()
	var musts []*corev1.PodAffinityTerm
	var wishes []*corev1.WeightedPodAffinityTerm
	if required {
		musts = append(musts, term)
	} else {
		wishes = append(wishes, corev1.WeightedPodAffinityTerm_builder{Weight: proto.Int32(1), PodAffinityTerm: term}.Build())
	}
	affinity := &corev1.Affinity{}
	if far {
		affinity.SetPodAntiAffinity(corev1.PodAntiAffinity_builder{RequiredDuringSchedulingIgnoredDuringExecution: musts, PreferredDuringSchedulingIgnoredDuringExecution: wishes}.Build())
	} else {
		affinity.SetPodAffinity(corev1.PodAffinity_builder{RequiredDuringSchedulingIgnoredDuringExecution: musts, PreferredDuringSchedulingIgnoredDuringExecution: wishes}.Build())
	}
	o.GetSpec().SetAffinity(affinity)
	return o
}

// BenchmarkPlan is the harness of the decision alone and with the bookkeeping around it: pods arrive, are planned in batches, assumed, and seen bound.
func BenchmarkPlan(b *testing.B) {
	for _, size := range []struct{ nodes, pods, owners int }{{1000, 10000, 20}, {5000, 10000, 20}, {5000, 10000, 10000}} {
		benchmark(b, "", size.nodes, size.pods, size.owners, pod)
	}
}

// BenchmarkAffinity is the shapes of Kubernetes' scheduler-perf (SchedulingPodAntiAffinity, SchedulingPodAffinity and the preferred ones, on 5,000 nodes).
func BenchmarkAffinity(b *testing.B) {
	const host, zone = "kubernetes.io/hostname", "topology.kubernetes.io/zone"
	for _, shape := range []struct {
		name          string
		pods, owners  int
		required, far bool
		topology      string
	}{
		{"apart-on-hosts", 2000, 1, true, true, host}, {"apart-on-hosts", 10000, 20, true, true, host},
		{"together-in-zone", 10000, 1, true, false, zone}, {"together-in-zone", 10000, 20, true, false, zone},
		{"rather-together-on-hosts", 10000, 1, false, false, host}, {"rather-apart-on-hosts", 10000, 20, false, true, host},
	} {
		benchmark(b, shape.name+"/", 5000, shape.pods, shape.owners, func(i, owner int) *corev1.Pod {
			return affine(pod(i, owner), shape.required, shape.far, shape.topology)
		})
	}
}

func benchmark(b *testing.B, name string, nodes, pods, owners int, pod func(i, owner int) *corev1.Pod) {
	b.Run(fmt.Sprintf("%snodes=%d/pods=%d/classes=%d", name, nodes, pods, owners), func(b *testing.B) {
		objects := make([]*corev1.Pod, pods)
		for i := range objects {
			objects[i] = pod(i, i%owners)
		}
		b.ReportAllocs()
		placed := 0
		for b.Loop() {
			b.StopTimer()
			c := cluster.New(func(string) []*corev1.Service { return nil })
			for i := range nodes {
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
