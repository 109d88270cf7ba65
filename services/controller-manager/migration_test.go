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
)

// ebsUser is a pod whose spec has a volume of a plugin that Kubernetes had built in.
func ebsUser(name, node string) *corev1.Pod {
	p := onNode(user(name, ""), node)
	p.GetSpec().GetVolumes()[0].SetVolumeSource(corev1.VolumeSource_builder{AwsElasticBlockStore: corev1.AWSElasticBlockStoreVolumeSource_builder{VolumeId: proto.String("aws://us-east-1a/vol-1")}.Build()}.Build())
	return p
}

func gceDisk(name string) *corev1.PersistentVolumeSource {
	return corev1.PersistentVolumeSource_builder{GcePersistentDisk: corev1.GCEPersistentDiskVolumeSource_builder{PdName: proto.String(name)}.Build()}.Build()
}

func attachmentNameOf(handle, driver, node string) string {
	return fmt.Sprintf("csi-%x", sha256.Sum256([]byte(handle+driver+node)))
}

// Volumes of plugins that Kubernetes had built in are attached by the drivers that serve them now. Of one that only a pod's spec has, the attachment says what it is.
func TestMigratedVolumesAreAttachedByTheirDrivers(t *testing.T) {
	c := newCluster(t, nil)
	for _, n := range []string{"n1", "n2"} {
		create(c, corev1.Node_builder{Metadata: metav1.ObjectMeta_builder{Name: proto.String(n)}.Build(), Status: corev1.NodeStatus_builder{Conditions: []*corev1.NodeCondition{nodeReady("True")}}.Build()}.Build())
	}
	create(c, volume("disk", volumeSpec{size: "1Gi", reservedFor: "disk", labels: map[string]string{"topology.kubernetes.io/zone": "z1"}, source: gceDisk("d1")}))
	create(c, claim("disk", "1Gi", noClass()))
	boundTo(c, "disk")
	create(c, onNode(user("claiming", "disk"), "n2"))
	all := eventually(c, "", "the claimed one is attached", attachmentsTo("n2", 1))
	const handle = "projects/UNSPECIFIED/zones/z1/disks/d1"
	if a := all[0]; a.GetMetadata().GetName() != attachmentNameOf(handle, "pd.csi.storage.gke.io", "n2") || a.GetSpec().GetAttacher() != "pd.csi.storage.gke.io" ||
		a.GetSpec().GetSource().GetPersistentVolumeName() != "disk" || a.GetSpec().GetSource().HasInlineVolumeSpec() {
		t.Errorf("attachment %v", a)
	}

	const unique = "kubernetes.io/csi/ebs.csi.aws.com^vol-1"
	create(c, ebsUser("first", "n1"))
	eventually(c, "", "the one of the pod's spec is attached", attachmentsTo("n1", 1))
	a := get[*storagev1.VolumeAttachment](c, "", attachmentNameOf("vol-1", "ebs.csi.aws.com", "n1"))
	inline := a.GetSpec().GetSource().GetInlineVolumeSpec()
	if csi := inline.GetPersistentVolumeSource().GetCsi(); a.GetSpec().GetSource().HasPersistentVolumeName() || a.GetSpec().GetAttacher() != "ebs.csi.aws.com" ||
		csi.GetDriver() != "ebs.csi.aws.com" || csi.GetVolumeHandle() != "vol-1" || !slices.Equal(inline.GetAccessModes(), []string{"ReadWriteOnce"}) {
		t.Errorf("attachment %v", a)
	}
	setInUse(c, "n1", unique)
	setAttached(c, a.GetMetadata().GetName())
	eventuallyOne(c, "", "n1", "the node knows", func(n *corev1.Node) bool {
		list := n.GetStatus().GetVolumesAttached()
		return len(list) == 1 && list[0].GetName() == unique
	})
	// One node at a time, as for claims; when the first lets go, the second has its turn.
	create(c, ebsUser("second", "n2"))
	if e := told(c, "default", "second", "FailedAttachVolume"); !strings.HasPrefix(e.GetMessage(), `Multi-Attach error for volume "ebs.csi.aws.com-vol-1"`) {
		t.Errorf("told %q", e.GetMessage())
	}
	remove[*corev1.Pod](c, "default", "first", metav1.DeletionOptions_builder{GracePeriodSeconds: proto.Int64(0)}.Build())
	setInUse(c, "n1")
	eventually(c, "", "detached from n1", attachmentsTo("n1", 0))
	eventually(c, "", "attached to n2", attachmentsTo("n2", 2))
}

func TestMigratedAttachmentConvergesWhereverItsControllerDies(t *testing.T) {
	killBetweenWrites(t, func(c *cluster) {
		create(c, corev1.Node_builder{Metadata: metav1.ObjectMeta_builder{Name: proto.String("n1")}.Build()}.Build())
		create(c, ebsUser("pod", "n1"))
		a := eventually(c, "", "attached", attachmentsTo("n1", 1))
		setAttached(c, a[0].GetMetadata().GetName())
		eventuallyOne(c, "", "n1", "the node knows", func(n *corev1.Node) bool { return len(n.GetStatus().GetVolumesAttached()) == 1 })
		remove[*corev1.Pod](c, "default", "pod", metav1.DeletionOptions_builder{GracePeriodSeconds: proto.Int64(0)}.Build())
		eventually(c, "", "detached", attachmentsTo("n1", 0))
		eventuallyOne(c, "", "n1", "the node knows", func(n *corev1.Node) bool { return len(n.GetStatus().GetVolumesAttached()) == 0 })
	})
}

// Classes, claims and volumes of such plugins are the drivers' business: their provisioners and resizers find their names.
func TestMigratedProvisioningGoesToDrivers(t *testing.T) {
	c := newCluster(t, nil)
	create(c, storagev1.StorageClass_builder{Metadata: metav1.ObjectMeta_builder{Name: proto.String("ebs")}.Build(), Provisioner: proto.String("kubernetes.io/aws-ebs")}.Build())
	create(c, claim("new", "1Gi", proto.String("ebs")))
	annotation := func(key, value string) func(*corev1.PersistentVolumeClaim) bool {
		return func(claim *corev1.PersistentVolumeClaim) bool {
			return claim.GetMetadata().GetAnnotations()[key] == value
		}
	}
	for _, key := range []string{"volume.kubernetes.io/storage-provisioner", "volume.beta.kubernetes.io/storage-provisioner"} {
		eventuallyOne(c, "default", "new", key, annotation(key, "ebs.csi.aws.com"))
	}
	if e := told(c, "default", "new", "ExternalProvisioning"); !strings.Contains(e.GetMessage(), "'ebs.csi.aws.com'") {
		t.Errorf("told %q", e.GetMessage())
	}
	// A claim from a time when the plugin was built in.
	older := claim("older", "1Gi", proto.String("none"))
	older.GetMetadata().SetAnnotations(map[string]string{"volume.beta.kubernetes.io/storage-provisioner": "kubernetes.io/aws-ebs"})
	create(c, older)
	eventuallyOne(c, "default", "older", "its driver", annotation("pv.kubernetes.io/migrated-to", "ebs.csi.aws.com"))

	create(c, storagev1.StorageClass_builder{Metadata: metav1.ObjectMeta_builder{Name: proto.String("pd")}.Build(), Provisioner: proto.String("kubernetes.io/gce-pd"),
		AllowVolumeExpansion: proto.Bool(true)}.Build())
	v := volume("made", volumeSpec{size: "2Gi", class: "pd", reservedFor: "grows", policy: "Delete", source: gceDisk("d1")})
	v.GetMetadata().SetAnnotations(map[string]string{"pv.kubernetes.io/provisioned-by": "kubernetes.io/gce-pd"})
	v.GetMetadata().SetFinalizers([]string{"kubernetes.io/pv-controller", "example.com/other"})
	create(c, v)
	eventuallyOne(c, "", "made", "its driver, and none but its finalizer", func(v *corev1.PersistentVolume) bool {
		return v.GetMetadata().GetAnnotations()["pv.kubernetes.io/migrated-to"] == "pd.csi.storage.gke.io" && slices.Contains(v.GetMetadata().GetFinalizers(), "example.com/other") &&
			!slices.Contains(v.GetMetadata().GetFinalizers(), "kubernetes.io/pv-controller")
	})
	create(c, claim("grows", "2Gi", proto.String("pd")))
	boundTo(c, "grows")
	edit(c, "default", "grows", func(claim *corev1.PersistentVolumeClaim) {
		claim.GetSpec().GetResources().SetRequests(quantities(map[string]string{"storage": "3Gi"}))
	})
	eventuallyOne(c, "default", "grows", "its resizer", annotation("volume.kubernetes.io/storage-resizer", "pd.csi.storage.gke.io"))
	if e := told(c, "default", "grows", "ExternalExpanding"); e.GetMessage() != "CSI migration enabled for kubernetes.io/gce-pd; waiting for external resizer to expand the pvc" {
		t.Errorf("told %q", e.GetMessage())
	}
}
