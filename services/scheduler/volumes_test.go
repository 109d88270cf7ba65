package scheduler_test

import (
	"fmt"
	"testing"

	"google.golang.org/protobuf/proto"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	storagev1 "dhow.dev/gen/go/dhow/storage/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/object"
	"dhow.dev/services/scheduler/internal/fixture"
)

const usesData = `{"containers":[{"name":"app","image":"app"}],"volumes":[{"name":"data","persistentVolumeClaim":{"claimName":"data"}}]}`

// waits makes a storage class whose claims wait for their first pod.
func (w *world) waits(provisioner string) {
	w.t.Helper()
	o := fixture.StorageClass(fmt.Sprintf(`{"metadata":{"name":"waits"},"provisioner":%q,"volumeBindingMode":"WaitForFirstConsumer"}`, provisioner))
	if _, err := client.For[*storagev1.StorageClass](w.admin).Create(w.ctx, o, nil); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) claims() *client.Client[*corev1.PersistentVolumeClaim] {
	return client.For[*corev1.PersistentVolumeClaim](w.admin)
}

func (w *world) volumes() *client.Client[*corev1.PersistentVolume] {
	return client.For[*corev1.PersistentVolume](w.admin)
}

func (w *world) claim() {
	w.t.Helper()
	o := fixture.Claim(`{"metadata":{"namespace":"default","name":"data"},"spec":{"storageClassName":"waits","accessModes":["ReadWriteOnce"],"resources":{"requests":{"storage":"1Gi"}}}}`)
	if _, err := w.claims().Create(w.ctx, o, nil); err != nil {
		w.t.Fatal(err)
	}
}

// volume makes a free volume that only one node can use.
func (w *world) volume(name, node string) {
	w.t.Helper()
	o := fixture.Volume(fmt.Sprintf(`{"metadata":{"name":%q},"spec":{"storageClassName":"waits","accessModes":["ReadWriteOnce"],"capacity":{"storage":"1Gi"},"local":{"path":"/data"},
		"nodeAffinity":{"required":{"nodeSelectorTerms":[{"matchExpressions":[{"key":"kubernetes.io/hostname","operator":"In","values":[%q]}]}]}}},"status":{"phase":"Available"}}`, name, node))
	created, err := w.volumes().Create(w.ctx, o, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	created.SetStatus(o.GetStatus())
	if _, err := w.volumes().UpdateStatus(w.ctx, created); err != nil {
		w.t.Fatal(err)
	}
}

// awaited watches the objects of a kind until one is as wanted.
func awaited[T object.Object](w *world, c *client.Client[T], wanted func(T) bool) T {
	w.t.Helper()
	watch, err := c.Watch(w.ctx, &metav1.WatchRequest{})
	if err != nil {
		w.t.Fatal(err)
	}
	for {
		batch, err := watch.Next()
		if err != nil {
			w.t.Fatalf("no %s was as wanted: %v", c.Resource().Kind, err)
		}
		for _, change := range batch.Changes {
			if any(change.Object) != nil && change.Object.HasMetadata() && wanted(change.Object) {
				return change.Object
			}
		}
	}
}

// bind does what the volume controller does with a claim.
func (w *world) bind(volume string) {
	w.t.Helper()
	claim, err := w.claims().Get(w.ctx, "default", "data")
	if err != nil {
		w.t.Fatal(err)
	}
	claim.GetMetadata().SetAnnotations(map[string]string{"pv.kubernetes.io/bind-completed": "yes"})
	claim.GetSpec().SetVolumeName(volume)
	claim.GetMetadata().ClearResourceVersion()
	if _, err := w.claims().Update(w.ctx, claim, nil); err != nil {
		w.t.Fatal(err)
	}
}

func TestPodWaitsForTheVolumeThatWasThere(t *testing.T) {
	w := newWorld(t)
	w.schedule(nil)
	w.node("node-1", "2")
	w.node("node-2", "2")
	w.waits("kubernetes.io/no-provisioner")
	w.claim()
	w.pod("app", usesData)
	p := w.until("app", func(p *corev1.Pod) bool { return scheduled(p).GetReason() == "Unschedulable" })
	const want = "0/2 nodes are available: 2 node(s) didn't find available persistent volumes to bind. preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling."
	if got := scheduled(p).GetMessage(); got != want {
		t.Errorf("message %q, want %q", got, want)
	}
	w.volume("pv", "node-2")
	v := awaited(w, w.volumes(), func(v *corev1.PersistentVolume) bool { return v.GetSpec().HasClaimRef() })
	claim, err := w.claims().Get(w.ctx, "default", "data")
	if err != nil {
		t.Fatal(err)
	}
	if ref := v.GetSpec().GetClaimRef(); ref.GetUid() != claim.GetMetadata().GetUid() || ref.GetName() != "data" || ref.GetNamespace() != "default" || ref.GetKind() != "PersistentVolumeClaim" {
		t.Errorf("the volume is reserved for %v", ref)
	}
	if v.GetMetadata().GetAnnotations()["pv.kubernetes.io/bound-by-controller"] != "yes" {
		t.Errorf("annotations %v", v.GetMetadata().GetAnnotations())
	}
	if p, err := w.pods.Get(w.ctx, "default", "app"); err != nil || bound(p) {
		t.Errorf("bound before its claim: %v, %v", p.GetSpec().GetNodeName(), err)
	}
	w.bind("pv")
	if p := w.until("app", bound); p.GetSpec().GetNodeName() != "node-2" {
		t.Errorf("bound to %s", p.GetSpec().GetNodeName())
	}
}

func TestPodWaitsForTheVolumeThatIsMade(t *testing.T) {
	w := newWorld(t)
	w.schedule(nil)
	w.node("node-1", "1")
	w.waits("csi.example.com")
	w.pod("app", usesData)
	p := w.until("app", func(p *corev1.Pod) bool { return scheduled(p).GetReason() == "Unschedulable" })
	const want = `0/1 nodes are available: persistentvolumeclaim "data" not found. preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.`
	if got := scheduled(p).GetMessage(); got != want {
		t.Errorf("message %q, want %q", got, want)
	}
	w.claim()
	selected := func(node string) func(*corev1.PersistentVolumeClaim) bool {
		return func(c *corev1.PersistentVolumeClaim) bool {
			return c.GetMetadata().GetAnnotations()["volume.kubernetes.io/selected-node"] == node
		}
	}
	claim := awaited(w, w.claims(), selected("node-1"))
	// The provisioner gives up there. The pod's place is given up with it, and another attempt begins: on a node with more room.
	w.node("node-2", "64")
	claim.GetMetadata().SetAnnotations(nil)
	claim.GetMetadata().ClearResourceVersion()
	w.cordon("node-1")
	if _, err := w.claims().Update(w.ctx, claim, nil); err != nil {
		t.Fatal(err)
	}
	awaited(w, w.claims(), selected("node-2"))
	w.event("app", "FailedScheduling")
	w.volume("made", "node-2")
	w.bind("made")
	if p := w.until("app", bound); p.GetSpec().GetNodeName() != "node-2" {
		t.Errorf("bound to %s", p.GetSpec().GetNodeName())
	}
}

func (w *world) cordon(name string) {
	w.t.Helper()
	o, err := w.nodes.Get(w.ctx, "", name)
	if err != nil {
		w.t.Fatal(err)
	}
	o.GetSpec().SetUnschedulable(true)
	o.GetMetadata().ClearResourceVersion()
	if _, err := w.nodes.Update(w.ctx, o, nil); err != nil {
		w.t.Fatal(err)
	}
}

// A claim's place is kept by what was written, whatever becomes of the scheduler.
func TestVolumesOutliveTheScheduler(t *testing.T) {
	w := newWorld(t)
	stop := w.schedule(nil)
	w.node("node-1", "2")
	w.node("node-2", "2")
	w.waits("csi.example.com")
	w.claim()
	w.pod("app", usesData)
	claim := awaited(w, w.claims(), func(c *corev1.PersistentVolumeClaim) bool {
		return c.GetMetadata().GetAnnotations()["volume.kubernetes.io/selected-node"] != ""
	})
	node := claim.GetMetadata().GetAnnotations()["volume.kubernetes.io/selected-node"]
	stop()
	w.volume("made", node)
	w.bind("made")
	w.schedule(nil)
	if p := w.until("app", bound); p.GetSpec().GetNodeName() != node {
		t.Errorf("bound to %s, not %s", p.GetSpec().GetNodeName(), node)
	}
}

// Two pods that may not use a claim at once take turns.
func TestClaimsOfOnePodTakeTurns(t *testing.T) {
	w := newWorld(t)
	w.schedule(nil)
	w.node("node-1", "2")
	w.volume("pv", "node-1")
	o := fixture.Claim(`{"metadata":{"namespace":"default","name":"data"},"spec":{"storageClassName":"","accessModes":["ReadWriteOncePod"],"resources":{"requests":{"storage":"1Gi"}}}}`)
	if _, err := w.claims().Create(w.ctx, o, nil); err != nil {
		t.Fatal(err)
	}
	w.bind("pv")
	w.pod("one", usesData)
	w.until("one", bound)
	w.pod("two", usesData)
	p := w.until("two", func(p *corev1.Pod) bool { return scheduled(p).GetReason() == "Unschedulable" })
	const want = "0/1 nodes are available: 1 node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode. " +
		"preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod."
	if got := scheduled(p).GetMessage(); got != want {
		t.Errorf("message %q, want %q", got, want)
	}
	if _, err := w.pods.Delete(w.ctx, "default", "one", metav1.DeletionOptions_builder{GracePeriodSeconds: proto.Int64(0)}.Build()); err != nil {
		t.Fatal(err)
	}
	w.until("two", bound)
}
