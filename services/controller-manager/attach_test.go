package controllermanager_test

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
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

// direct are the kinds of volumes that no driver attaches, as sources and as nodes' statuses call them.
var direct = []struct {
	kind, unique string
	source       *corev1.PersistentVolumeSource
}{
	{"iscsi", "kubernetes.io/iscsi/192.0.2.1:iqn.2026-11.test:store:3", corev1.PersistentVolumeSource_builder{Iscsi: corev1.ISCSIPersistentVolumeSource_builder{
		TargetPortal: proto.String("192.0.2.1"), Iqn: proto.String("iqn.2026-11.test:store"), Lun: proto.Int32(3)}.Build()}.Build()},
	{"fc", "kubernetes.io/fc/[500a0982991b8dc5 500a0981891b8dc5]:2", corev1.PersistentVolumeSource_builder{Fc: corev1.FCVolumeSource_builder{
		TargetWwns: []string{"500a0982991b8dc5", "500a0981891b8dc5"}, Lun: proto.Int32(2)}.Build()}.Build()},
	{"fc-by-name", "kubernetes.io/fc/[3600 3601]", corev1.PersistentVolumeSource_builder{Fc: corev1.FCVolumeSource_builder{Wwids: []string{"3600", "3601"}}.Build()}.Build()},
}

// hasVolumes waits until a node's status names exactly some volumes as attached.
func hasVolumes(c *cluster, node string, want ...string) {
	c.t.Helper()
	eventuallyOne(c, "", node, fmt.Sprintf("it has %v", want), func(n *corev1.Node) bool {
		var have []string
		for _, v := range n.GetStatus().GetVolumesAttached() {
			have = append(have, v.GetName())
		}
		return slices.Equal(have, want)
	})
}

func twoNodes(c *cluster) {
	for _, n := range []string{"n1", "n2"} {
		create(c, corev1.Node_builder{Metadata: metav1.ObjectMeta_builder{Name: proto.String(n)}.Build(), Status: corev1.NodeStatus_builder{Conditions: []*corev1.NodeCondition{nodeReady("True")}}.Build()}.Build())
	}
}

func removeAtOnce(c *cluster, pod string) {
	c.t.Helper()
	remove[*corev1.Pod](c, "default", pod, metav1.DeletionOptions_builder{GracePeriodSeconds: proto.Int64(0)}.Build())
}

func TestDisksWithoutADriverAreOnOneNode(t *testing.T) {
	for _, k := range direct {
		t.Run(k.kind, func(t *testing.T) {
			c := newCluster(t, nil)
			twoNodes(c)
			create(c, volume("disk", volumeSpec{size: "1Gi", reservedFor: "disk", source: k.source}))
			create(c, claim("disk", "1Gi", noClass()))
			boundTo(c, "disk")
			create(c, onNode(user("first", "disk"), "n1"))
			hasVolumes(c, "n1", k.unique)
			if e := told(c, "default", "first", "SuccessfulAttachVolume"); e.GetMessage() != `AttachVolume.Attach succeeded for volume "disk" ` {
				t.Errorf("told %q", e.GetMessage())
			}
			setInUse(c, "n1", k.unique)
			create(c, onNode(user("second", "disk"), "n2"))
			if e := told(c, "default", "second", "FailedAttachVolume"); !strings.HasPrefix(e.GetMessage(), `Multi-Attach error for volume "disk"`) {
				t.Errorf("told %q", e.GetMessage())
			}
			removeAtOnce(c, "first")
			// A third one has the controller look again after the first is gone: n1 still uses the disk.
			create(c, onNode(user("third", "disk"), "n2"))
			told(c, "default", "third", "FailedAttachVolume")
			hasVolumes(c, "n1", k.unique)
			hasVolumes(c, "n2")
			setInUse(c, "n1")
			hasVolumes(c, "n2", k.unique)
			hasVolumes(c, "n1")
			if all := list[*storagev1.VolumeAttachment](c, "", ""); len(all) != 0 {
				t.Errorf("attachments: %v", names(all))
			}
			// A node that is gone has nothing.
			setInUse(c, "n2", k.unique)
			create(c, onNode(user("fourth", "disk"), "n1"))
			told(c, "default", "fourth", "FailedAttachVolume")
			remove[*corev1.Node](c, "", "n2", nil)
			hasVolumes(c, "n1", k.unique)
		})
	}
}

// Volumes that several nodes may have are attached to all of them. As in Kubernetes, that goes for those that only pods' own specs describe.
func TestDisksWithoutADriverThatNodesShare(t *testing.T) {
	c := newCluster(t, nil)
	twoNodes(c)
	create(c, volume("disk", volumeSpec{size: "1Gi", reservedFor: "disk", modes: []string{"ReadWriteOnce", "ReadOnlyMany"}, source: direct[0].source}))
	create(c, claim("disk", "1Gi", noClass()))
	boundTo(c, "disk")
	own := func(name, node string) *corev1.Pod {
		p := onNode(user(name, ""), node)
		p.GetSpec().GetVolumes()[0].SetVolumeSource(corev1.VolumeSource_builder{Fc: direct[1].source.GetFc()}.Build())
		return p
	}
	for _, node := range []string{"n1", "n2"} {
		create(c, onNode(user("claiming-"+node, "disk"), node))
		create(c, own("own-"+node, node))
	}
	for _, node := range []string{"n1", "n2"} {
		hasVolumes(c, node, direct[1].unique, direct[0].unique)
	}
	removeAtOnce(c, "own-n1")
	hasVolumes(c, "n1", direct[0].unique)
}

func TestDisksWithoutADriverConvergeWhereverTheirControllerDies(t *testing.T) {
	killBetweenWrites(t, func(c *cluster) {
		twoNodes(c)
		create(c, volume("disk", volumeSpec{size: "1Gi", reservedFor: "disk", source: direct[0].source}))
		create(c, claim("disk", "1Gi", noClass()))
		create(c, onNode(user("pod", "disk"), "n1"))
		hasVolumes(c, "n1", direct[0].unique)
		create(c, onNode(user("next", "disk"), "n2"))
		removeAtOnce(c, "pod")
		hasVolumes(c, "n2", direct[0].unique)
		hasVolumes(c, "n1")
	})
}
