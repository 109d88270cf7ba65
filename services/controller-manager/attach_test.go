package controllermanager_test

import (
	"crypto/sha256"
	"fmt"
	"testing"

	"google.golang.org/protobuf/proto"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	storagev1 "dhow.dev/gen/go/dhow/storage/v1"
	"dhow.dev/pkg/client"
)

const disk = "kubernetes.io/csi/disks.example.com^handle-1"

// csiVolume is a volume of a driver that attaches.
func csiVolume(driver string) *corev1.PersistentVolumeSource {
	return corev1.PersistentVolumeSource_builder{Csi: corev1.CSIPersistentVolumeSource_builder{
		Driver: proto.String(driver), VolumeHandle: proto.String("handle-1")}.Build()}.Build()
}

// setAttached does what a driver's attacher does.
func setAttached(c *cluster, name string) {
	c.t.Helper()
	a := get[*storagev1.VolumeAttachment](c, "", name)
	a.SetStatus(storagev1.VolumeAttachmentStatus_builder{Attached: proto.Bool(true)}.Build())
	if _, err := client.For[*storagev1.VolumeAttachment](c.conn).UpdateStatus(c.ctx, a); err != nil {
		c.t.Fatal(err)
	}
}

// setInUse does what an agent does.
func setInUse(c *cluster, node string, volumes ...string) {
	c.t.Helper()
	k := &kubelet{c: c}
	for {
		n := get[*corev1.Node](c, "", node)
		n.GetStatus().SetVolumesInUse(volumes)
		if k.updateStatus(n) {
			return
		}
	}
}

func onNode(p *corev1.Pod, node string) *corev1.Pod {
	p.GetSpec().SetNodeName(node)
	return p
}

func attachmentsTo(node string, n int) func([]*storagev1.VolumeAttachment) bool {
	return func(all []*storagev1.VolumeAttachment) bool {
		found := 0
		for _, a := range all {
			if a.GetSpec().GetNodeName() == node {
				found++
			}
		}
		return found == n
	}
}

func TestVolumesAreAttachedWhereTheyAreUsed(t *testing.T) {
	c := newCluster(t, nil)
	for _, n := range []string{"n1", "n2"} {
		create(c, corev1.Node_builder{Metadata: metav1.ObjectMeta_builder{Name: proto.String(n)}.Build(), Status: corev1.NodeStatus_builder{Conditions: []*corev1.NodeCondition{nodeReady("True")}}.Build()}.Build())
	}
	create(c, storagev1.CSIDriver_builder{Metadata: metav1.ObjectMeta_builder{Name: proto.String("folders.example.com")}.Build(), Spec: storagev1.CSIDriverSpec_builder{AttachRequired: proto.Bool(false)}.Build()}.Build())
	// An attachment that somebody else made is left alone.
	create(c, storagev1.VolumeAttachment_builder{Metadata: metav1.ObjectMeta_builder{Name: proto.String("foreign")}.Build(), Spec: storagev1.VolumeAttachmentSpec_builder{
		Attacher: proto.String("disks.example.com"), NodeName: proto.String("n1"), Source: storagev1.VolumeAttachmentSource_builder{PersistentVolumeName: proto.String("nothing")}.Build()}.Build()}.Build())
	create(c, volume("disk", volumeSpec{size: "1Gi", reservedFor: "disk", source: csiVolume("disks.example.com")}))
	create(c, volume("folder", volumeSpec{size: "1Gi", reservedFor: "folder", source: csiVolume("folders.example.com")}))
	for _, name := range []string{"folder", "disk"} {
		create(c, claim(name, "1Gi", noClass()))
		boundTo(c, name)
	}
	create(c, onNode(user("needs-none", "folder"), "n1"))
	create(c, onNode(user("first", "disk"), "n1"))
	all := eventually(c, "", "attached to n1", attachmentsTo("n1", 2))
	var a *storagev1.VolumeAttachment
	for _, one := range all {
		if one.GetMetadata().GetName() != "foreign" {
			a = one
		}
	}
	// Kubernetes' agents compute the name in the same way: sha256 of handle, driver and node.
	if want := fmt.Sprintf("csi-%x", sha256.Sum256([]byte("handle-1"+"disks.example.com"+"n1"))); a.GetMetadata().GetName() != want ||
		a.GetSpec().GetAttacher() != "disks.example.com" || a.GetSpec().GetSource().GetPersistentVolumeName() != "disk" {
		t.Errorf("attachment %v", a)
	}
	if n := get[*corev1.Node](c, "", "n1"); len(n.GetStatus().GetVolumesAttached()) != 0 {
		t.Errorf("attached before it is: %v", n.GetStatus().GetVolumesAttached())
	}
	setInUse(c, "n1", disk)
	setAttached(c, a.GetMetadata().GetName())
	eventuallyOne(c, "", "n1", "the node knows", func(n *corev1.Node) bool {
		list := n.GetStatus().GetVolumesAttached()
		return len(list) == 1 && list[0].GetName() == disk
	})
	// One node at a time.
	create(c, onNode(user("second", "disk"), "n2"))
	told(c, "default", "second", "FailedAttachVolume")
	// The node still uses it after its pod: only when it lets go it is detached, and attached to the other.
	remove[*corev1.Pod](c, "default", "first", metav1.DeletionOptions_builder{GracePeriodSeconds: proto.Int64(0)}.Build())
	if n := list[*storagev1.VolumeAttachment](c, "", ""); len(n) != 2 {
		t.Errorf("%d attachments", len(n))
	}
	setInUse(c, "n1")
	eventually(c, "", "attached to n2", attachmentsTo("n2", 1))
	eventually(c, "", "not to n1", attachmentsTo("n1", 1))
	eventuallyOne(c, "", "n1", "the node knows", func(n *corev1.Node) bool { return len(n.GetStatus().GetVolumesAttached()) == 0 })
	// A node that is declared out of service has lost its volumes.
	setInUse(c, "n2", disk)
	remove[*corev1.Pod](c, "default", "second", metav1.DeletionOptions_builder{GracePeriodSeconds: proto.Int64(0)}.Build())
	edit(c, "", "n2", func(n *corev1.Node) {
		n.GetSpec().SetTaints([]*corev1.Taint{corev1.Taint_builder{Key: proto.String("node.kubernetes.io/out-of-service"), Effect: proto.String("NoExecute")}.Build()})
	})
	left := eventually(c, "", "detached from n2", attachmentsTo("n2", 0))
	if len(left) != 1 || left[0].GetMetadata().GetName() != "foreign" {
		t.Errorf("left: %v", names(left))
	}
}

func TestAttachmentConvergesWhereverItsControllerDies(t *testing.T) {
	killBetweenWrites(t, func(c *cluster) {
		create(c, corev1.Node_builder{Metadata: metav1.ObjectMeta_builder{Name: proto.String("n1")}.Build()}.Build())
		create(c, volume("disk", volumeSpec{size: "1Gi", reservedFor: "disk", source: csiVolume("disks.example.com")}))
		create(c, claim("disk", "1Gi", noClass()))
		create(c, onNode(user("pod", "disk"), "n1"))
		a := eventually(c, "", "attached", attachmentsTo("n1", 1))
		setAttached(c, a[0].GetMetadata().GetName())
		eventuallyOne(c, "", "n1", "the node knows", func(n *corev1.Node) bool { return len(n.GetStatus().GetVolumesAttached()) == 1 })
		remove[*corev1.Pod](c, "default", "pod", metav1.DeletionOptions_builder{GracePeriodSeconds: proto.Int64(0)}.Build())
		eventually(c, "", "detached", attachmentsTo("n1", 0))
		eventuallyOne(c, "", "n1", "the node knows", func(n *corev1.Node) bool { return len(n.GetStatus().GetVolumesAttached()) == 0 })
	})
}
