package controllermanager_test

import (
	"context"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	storagev1 "dhow.dev/gen/go/dhow/storage/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/object"
)

// volumeSpec is what differs between the volumes of these tests.
type volumeSpec struct {
	size, class, policy, mode, reservedFor string
	modes                                  []string
	labels                                 map[string]string
	source                                 *corev1.PersistentVolumeSource
}

func volume(name string, s volumeSpec) *corev1.PersistentVolume {
	if len(s.modes) == 0 {
		s.modes = []string{"ReadWriteOnce"}
	}
	if s.source == nil {
		s.source = corev1.PersistentVolumeSource_builder{HostPath: corev1.HostPathVolumeSource_builder{Path: proto.String("/data/" + name)}.Build()}.Build()
	}
	v := corev1.PersistentVolume_builder{
		Metadata: metav1.ObjectMeta_builder{Name: proto.String(name), Labels: s.labels}.Build(),
		Spec: corev1.PersistentVolumeSpec_builder{
			Capacity: quantities(map[string]string{"storage": s.size}), AccessModes: s.modes, StorageClassName: proto.String(s.class), PersistentVolumeSource: s.source,
		}.Build(),
	}.Build()
	if s.policy != "" {
		v.GetSpec().SetPersistentVolumeReclaimPolicy(s.policy)
	}
	if s.mode != "" {
		v.GetSpec().SetVolumeMode(s.mode)
	}
	if s.reservedFor != "" {
		v.GetSpec().SetClaimRef(corev1.ObjectReference_builder{Namespace: proto.String("default"), Name: proto.String(s.reservedFor)}.Build())
	}
	return v
}

// claim asks for a size of a class; a nil class is the default one.
func claim(name, size string, class *string, modes ...string) *corev1.PersistentVolumeClaim {
	if len(modes) == 0 {
		modes = []string{"ReadWriteOnce"}
	}
	return corev1.PersistentVolumeClaim_builder{Metadata: meta(name), Spec: corev1.PersistentVolumeClaimSpec_builder{
		AccessModes: modes, StorageClassName: class, Resources: corev1.VolumeResourceRequirements_builder{Requests: quantities(map[string]string{"storage": size})}.Build(),
	}.Build()}.Build()
}

func claimPhase(phase string) func(*corev1.PersistentVolumeClaim) bool {
	return func(c *corev1.PersistentVolumeClaim) bool { return c.GetStatus().GetPhase() == phase }
}

func volumePhase(phase string) func(*corev1.PersistentVolume) bool {
	return func(v *corev1.PersistentVolume) bool { return v.GetStatus().GetPhase() == phase }
}

// boundTo waits until a claim is bound and says to which volume.
func boundTo(c *cluster, name string) string {
	c.t.Helper()
	return eventuallyOne(c, "default", name, name+" is bound", claimPhase("Bound")).GetSpec().GetVolumeName()
}

// told waits for an event.
func told(c *cluster, namespace, name, reason string) *corev1.Event {
	c.t.Helper()
	var found *corev1.Event
	eventually(c, namespace, reason+" of "+name, func(all []*corev1.Event) bool {
		for _, e := range all {
			if e.GetInvolvedObject().GetName() == name && e.GetReason() == reason {
				found = e
				return true
			}
		}
		return false
	})
	return found
}

// noClass is the class of claims that want none.
func noClass() *string { return proto.String("") }

func TestClaimsGetTheSmallestVolumeThatFits(t *testing.T) {
	c := newCluster(t, nil)
	for name, s := range map[string]volumeSpec{
		"too-small": {size: "1Gi"}, "fits": {size: "5Gi"}, "larger": {size: "50Gi"}, "other-class": {size: "2Gi", class: "fast"},
		"block": {size: "2Gi", mode: "Block"}, "shared": {size: "3Gi", modes: []string{"ReadOnlyMany"}},
		"labelled": {size: "100Gi", labels: map[string]string{"disk": "old"}}, "kept": {size: "500Gi", reservedFor: "owner"},
	} {
		create(c, volume(name, s))
		eventuallyOne(c, "", name, "is there for all", volumePhase("Available"))
	}
	create(c, claim("first", "2Gi", noClass()))
	if got := boundTo(c, "first"); got != "fits" {
		t.Errorf("first has %s", got)
	}
	picky := claim("picky", "2Gi", noClass())
	picky.GetSpec().SetSelector(metav1.LabelSelector_builder{MatchLabels: map[string]string{"disk": "old"}}.Build())
	create(c, picky)
	create(c, claim("fast", "1Gi", proto.String("fast")))
	raw := claim("raw", "1Gi", noClass())
	raw.GetSpec().SetVolumeMode("Block")
	create(c, raw)
	create(c, claim("readers", "1Gi", noClass(), "ReadOnlyMany"))
	create(c, claim("owner", "1Gi", noClass()))
	for name, want := range map[string]string{"picky": "labelled", "fast": "other-class", "raw": "block", "readers": "shared", "owner": "kept"} {
		if got := boundTo(c, name); got != want {
			t.Errorf("%s has %s, want %s", name, got, want)
		}
	}
	// What is bound says so on both sides.
	v := eventuallyOne(c, "", "fits", "is bound", volumePhase("Bound"))
	first := get[*corev1.PersistentVolumeClaim](c, "default", "first")
	if ref := v.GetSpec().GetClaimRef(); ref.GetUid() != first.GetMetadata().GetUid() || v.GetMetadata().GetAnnotations()["pv.kubernetes.io/bound-by-controller"] != "yes" {
		t.Errorf("volume: %v", v)
	}
	if a := first.GetMetadata().GetAnnotations(); a["pv.kubernetes.io/bind-completed"] != "yes" || a["pv.kubernetes.io/bound-by-controller"] != "yes" {
		t.Errorf("claim: %v", first)
	}
	if s := first.GetStatus(); s.GetCapacity()["storage"].GetString() != "5Gi" || !slices.Equal(s.GetAccessModes(), []string{"ReadWriteOnce"}) {
		t.Errorf("claim's status: %v", s)
	}
	// What fits nobody waits and is told why; it gets the first volume that does.
	create(c, claim("waits", "200Gi", noClass()))
	told(c, "default", "waits", "FailedBinding")
	create(c, volume("late", volumeSpec{size: "200Gi"}))
	if got := boundTo(c, "waits"); got != "late" {
		t.Errorf("waits has %s", got)
	}
	// A volume that is asked for by name has to fit.
	create(c, volume("named", volumeSpec{size: "1Gi"}))
	big := claim("big", "2Gi", noClass())
	big.GetSpec().SetVolumeName("named")
	create(c, big)
	told(c, "default", "big", "VolumeMismatch")
	small := claim("small", "1Gi", noClass())
	small.GetSpec().SetVolumeName("named")
	create(c, small)
	if got := boundTo(c, "small"); got != "named" {
		t.Errorf("small has %s", got)
	}
}

func TestVolumesOfGoneClaims(t *testing.T) {
	c := newCluster(t, nil)
	for _, policy := range []string{"Retain", "Delete", "Recycle"} {
		name := map[string]string{"Retain": "retain", "Delete": "delete", "Recycle": "recycle"}[policy]
		create(c, volume(name, volumeSpec{size: "1Gi", policy: policy, reservedFor: name}))
		create(c, claim(name, "1Gi", noClass()))
		boundTo(c, name)
		remove[*corev1.PersistentVolumeClaim](c, "default", name, nil)
	}
	eventuallyOne(c, "", "retain", "is released", volumePhase("Released"))
	eventuallyOne(c, "", "delete", "has nobody who deletes it", volumePhase("Failed"))
	told(c, "default", "delete", "VolumeFailedDelete")
	eventuallyOne(c, "", "recycle", "cannot be recycled", volumePhase("Failed"))
	told(c, "default", "recycle", "VolumeFailedRecycle")
	// A released volume is not for another claim, also not of the same name, until somebody frees it.
	create(c, claim("retain", "1Gi", noClass()))
	told(c, "default", "retain", "FailedBinding")
	edit(c, "", "retain", func(v *corev1.PersistentVolume) { v.GetSpec().ClearClaimRef() })
	if got := boundTo(c, "retain"); got != "retain" {
		t.Errorf("retain has %s", got)
	}
	// A volume that is taken away leaves its claim lost.
	remove[*corev1.PersistentVolume](c, "", "retain", nil)
	edit(c, "", "retain", func(v *corev1.PersistentVolume) { v.GetMetadata().SetFinalizers(nil) })
	eventuallyOne(c, "default", "retain", "is lost", claimPhase("Lost"))
	told(c, "default", "retain", "ClaimLost")
}

func TestClassesOfAttributesStayWhileTheyAreUsed(t *testing.T) {
	c := newCluster(t, nil)
	class := func(name string) *storagev1.VolumeAttributesClass {
		return storagev1.VolumeAttributesClass_builder{Metadata: metav1.ObjectMeta_builder{Name: proto.String(name)}.Build(), DriverName: proto.String("d.example.com"),
			Parameters: map[string]string{"speed": name}}.Build()
	}
	for _, name := range []string{"wanted", "had", "idle"} {
		create(c, class(name))
	}
	wants := claim("wants", "1Gi", noClass())
	wants.GetSpec().SetVolumeAttributesClassName("wanted")
	create(c, wants)
	driven := volume("has", volumeSpec{size: "1Gi", source: corev1.PersistentVolumeSource_builder{Csi: corev1.CSIPersistentVolumeSource_builder{
		Driver: proto.String("d.example.com"), VolumeHandle: proto.String("h")}.Build()}.Build()})
	driven.GetSpec().SetVolumeAttributesClassName("had")
	create(c, driven)
	for _, name := range []string{"wanted", "had", "idle"} {
		remove[*storagev1.VolumeAttributesClass](c, "", name, nil)
	}
	left := func(want ...string) {
		t.Helper()
		eventually(c, "", strings.Join(want, " and ")+" are left", func(all []*storagev1.VolumeAttributesClass) bool {
			var names []string
			for _, class := range all {
				names = append(names, class.GetMetadata().GetName())
			}
			slices.Sort(names)
			return slices.Equal(names, want)
		})
	}
	left("had", "wanted")
	remove[*corev1.PersistentVolumeClaim](c, "default", "wants", nil)
	left("had")
	remove[*corev1.PersistentVolume](c, "", "has", nil)
	left()
}

func TestClaimsGetADefaultClassThatComesLater(t *testing.T) {
	c := newControlPlane(t)
	create(c, storagev1.StorageClass_builder{Metadata: metav1.ObjectMeta_builder{Name: proto.String("plain")}.Build(), Provisioner: proto.String("example.com/disks")}.Build())
	c.startControllers(nil)
	create(c, claim("early", "1Gi", nil))
	create(c, claim("none", "1Gi", noClass()))
	told(c, "default", "early", "FailedBinding")
	create(c, storagev1.StorageClass_builder{
		Metadata:    metav1.ObjectMeta_builder{Name: proto.String("standard"), Annotations: map[string]string{"storageclass.kubernetes.io/is-default-class": "true"}}.Build(),
		Provisioner: proto.String("example.com/disks"),
	}.Build())
	early := eventuallyOne(c, "default", "early", "has a provisioner", func(c *corev1.PersistentVolumeClaim) bool {
		a := c.GetMetadata().GetAnnotations()
		return a["volume.kubernetes.io/storage-provisioner"] == "example.com/disks" && a["volume.beta.kubernetes.io/storage-provisioner"] == "example.com/disks"
	})
	if got := early.GetSpec().GetStorageClassName(); got != "standard" {
		t.Errorf("class %q", got)
	}
	told(c, "default", "early", "ExternalProvisioning")
	if got := get[*corev1.PersistentVolumeClaim](c, "default", "none").GetSpec(); !got.HasStorageClassName() || got.GetStorageClassName() != "" {
		t.Errorf("a claim that wants no class got %q", got.GetStorageClassName())
	}
	// The cluster had a class: none was made.
	if all := list[*storagev1.StorageClass](c, "", ""); len(all) != 2 {
		t.Errorf("classes %v", names(all))
	}
	create(c, claim("nowhere", "1Gi", proto.String("missing")))
	told(c, "default", "nowhere", "ProvisioningFailed")
}

// user is a pod that uses a claim.
func user(name, claimName string) *corev1.Pod {
	return corev1.Pod_builder{Metadata: meta(name), Spec: corev1.PodSpec_builder{
		Containers: []*corev1.Container{corev1.Container_builder{Name: proto.String("c"), Image: proto.String("i")}.Build()},
		Volumes: []*corev1.Volume{corev1.Volume_builder{Name: proto.String("v"), VolumeSource: corev1.VolumeSource_builder{
			PersistentVolumeClaim: corev1.PersistentVolumeClaimVolumeSource_builder{ClaimName: proto.String(claimName)}.Build(),
		}.Build()}.Build()},
	}.Build()}.Build()
}

// selectNode does what the scheduler does with a claim whose volume is made for a pod.
func selectNode(c *cluster, name, node string) {
	edit(c, "default", name, func(claim *corev1.PersistentVolumeClaim) {
		claim.GetMetadata().SetAnnotations(map[string]string{"volume.kubernetes.io/selected-node": node})
	})
}

// playLocalPath does what agents do with the data of volumes: it deletes it, and says so.
func playLocalPath(c *cluster) {
	c.start("agents", func(ctx context.Context) error {
		nodes := client.For[*corev1.Node](c.conn)
		watch, err := nodes.Watch(ctx, &metav1.WatchRequest{})
		for err == nil {
			var batch client.Batch[*corev1.Node]
			if batch, err = watch.Next(); err != nil {
				break
			}
			for _, change := range batch.Changes {
				n := change.Object
				kept := map[string]string{}
				for k, v := range n.GetMetadata().GetAnnotations() {
					if !strings.HasPrefix(k, "local-path.dhow.dev/") {
						kept[k] = v
					}
				}
				if len(kept) == len(n.GetMetadata().GetAnnotations()) || change.Type == metav1.EventType_EVENT_TYPE_DELETED {
					continue
				}
				n.GetMetadata().SetAnnotations(kept)
				// Who changes the node meanwhile brings it back here.
				if _, err := nodes.Update(ctx, n, nil); err != nil && !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) && ctx.Err() == nil {
					return err
				}
			}
		}
		if ctx.Err() != nil {
			return nil
		}
		return err
	})
}

func TestLocalPathVolumesLiveAndGoWithTheirClaims(t *testing.T) {
	c := newCluster(t, nil)
	class := eventuallyOne(c, "", "local-path", "is made", func(*storagev1.StorageClass) bool { return true })
	if class.GetMetadata().GetAnnotations()["storageclass.kubernetes.io/is-default-class"] != "true" || class.GetVolumeBindingMode() != "WaitForFirstConsumer" {
		t.Errorf("class %v", class)
	}
	create(c, corev1.Node_builder{Metadata: metav1.ObjectMeta_builder{Name: proto.String("n1"), Labels: map[string]string{"kubernetes.io/hostname": "host-1"}}.Build()}.Build())
	playLocalPath(c)
	create(c, claim("data", "1Gi", nil))
	told(c, "default", "data", "WaitForFirstConsumer")
	create(c, user("pod", "data"))
	told(c, "default", "data", "WaitForPodScheduled")
	// A node that is gone is not waited for: the scheduler chooses anew.
	selectNode(c, "data", "gone")
	eventuallyOne(c, "default", "data", "its node is forgotten", func(c *corev1.PersistentVolumeClaim) bool {
		return c.GetMetadata().GetAnnotations()["volume.kubernetes.io/selected-node"] == ""
	})
	selectNode(c, "data", "n1")
	name := boundTo(c, "data")
	v := get[*corev1.PersistentVolume](c, "", name)
	spec := v.GetSpec()
	terms := spec.GetNodeAffinity().GetRequired().GetNodeSelectorTerms()
	if len(terms) != 1 || !slices.Equal(terms[0].GetMatchExpressions()[0].GetValues(), []string{"host-1"}) ||
		spec.GetPersistentVolumeSource().GetLocal().GetPath() != "/var/lib/kubelet/local-path/"+name || spec.GetPersistentVolumeReclaimPolicy() != "Delete" {
		t.Errorf("volume %v", v)
	}
	edit(c, "default", "data", func(claim *corev1.PersistentVolumeClaim) {
		claim.GetSpec().GetResources().SetRequests(quantities(map[string]string{"storage": "2Gi"}))
	})
	eventuallyOne(c, "default", "data", "has grown", func(c *corev1.PersistentVolumeClaim) bool {
		return c.GetStatus().GetCapacity()["storage"].GetString() == "2Gi"
	})
	if got := get[*corev1.PersistentVolume](c, "", name).GetSpec().GetCapacity()["storage"].GetString(); got != "2Gi" {
		t.Errorf("the volume has %s", got)
	}
	zero := metav1.DeletionOptions_builder{GracePeriodSeconds: proto.Int64(0)}.Build()
	remove[*corev1.Pod](c, "default", "pod", zero)
	remove[*corev1.PersistentVolumeClaim](c, "default", "data", nil)
	gone[*corev1.PersistentVolume](c, "", name)
	eventuallyOne(c, "", "n1", "was told and has done it", func(n *corev1.Node) bool { return len(n.GetMetadata().GetAnnotations()) == 0 })
	// What a folder cannot be is said.
	create(c, claim("shared", "1Gi", nil, "ReadWriteMany"))
	selectNode(c, "shared", "n1")
	told(c, "default", "shared", "ProvisioningFailed")
}

func TestLocalPathConvergesWhereverItsControllerDies(t *testing.T) {
	killBetweenWrites(t, func(c *cluster) {
		eventuallyOne(c, "", "local-path", "is made", func(*storagev1.StorageClass) bool { return true })
		create(c, corev1.Node_builder{Metadata: metav1.ObjectMeta_builder{Name: proto.String("n1"), Labels: map[string]string{"kubernetes.io/hostname": "n1"}}.Build()}.Build())
		playLocalPath(c)
		create(c, claim("data", "1Gi", nil))
		selectNode(c, "data", "n1")
		name := boundTo(c, "data")
		eventuallyOne(c, "", name, "is bound", volumePhase("Bound"))
		remove[*corev1.PersistentVolumeClaim](c, "default", "data", nil)
		gone[*corev1.PersistentVolumeClaim](c, "default", "data")
		gone[*corev1.PersistentVolume](c, "", name)
		eventuallyOne(c, "", "n1", "was told and has done it", func(n *corev1.Node) bool { return len(n.GetMetadata().GetAnnotations()) == 0 })
	})
}

// growFlex has a volume of a FlexVolume driver that is to grow. What its node does with it is no controller's business.
func growFlex(c *cluster) {
	create(c, storagev1.StorageClass_builder{Metadata: metav1.ObjectMeta_builder{Name: proto.String("flex")}.Build(), Provisioner: proto.String("example.com/flex"), AllowVolumeExpansion: proto.Bool(true)}.Build())
	source := corev1.PersistentVolumeSource_builder{FlexVolume: corev1.FlexPersistentVolumeSource_builder{Driver: proto.String("example.com/flex")}.Build()}.Build()
	v := volume("made", volumeSpec{size: "1Gi", class: "flex", reservedFor: "data", policy: "Retain", source: source})
	v.GetMetadata().SetAnnotations(map[string]string{"pv.kubernetes.io/provisioned-by": "example.com/flex"})
	create(c, v)
	create(c, claim("data", "1Gi", proto.String("flex")))
	boundTo(c, "data")
	edit(c, "default", "data", func(claim *corev1.PersistentVolumeClaim) {
		claim.GetSpec().GetResources().SetRequests(quantities(map[string]string{"storage": "2Gi"}))
	})
	got := eventuallyOne(c, "default", "data", "waits for its node", func(claim *corev1.PersistentVolumeClaim) bool {
		s := claim.GetStatus()
		return s.GetAllocatedResources()["storage"].GetString() == "2Gi" && s.GetAllocatedResourceStatuses()["storage"] == "NodeResizePending" &&
			len(s.GetConditions()) == 1 && s.GetConditions()[0].GetType() == "FileSystemResizePending"
	})
	if size := got.GetStatus().GetCapacity()["storage"].GetString(); size != "1Gi" {
		c.t.Errorf("the claim says that it has %s", size)
	}
	if size := get[*corev1.PersistentVolume](c, "", "made").GetSpec().GetCapacity()["storage"].GetString(); size != "2Gi" {
		c.t.Errorf("the volume is to have %s", size)
	}
}

func TestFlexVolumesGrowOnTheirNodes(t *testing.T) {
	c := newCluster(t, nil)
	growFlex(c)
	if e := told(c, "default", "data", "FileSystemResizeRequired"); e.GetMessage() != "Require file system resize of volume on node" {
		t.Errorf("told %q", e.GetMessage())
	}
}

func TestFlexVolumesGrowWhereverTheirControllerDies(t *testing.T) { killBetweenWrites(t, growFlex) }

func TestBindingConvergesWhereverItsControllerDies(t *testing.T) {
	killBetweenWrites(t, func(c *cluster) {
		create(c, volume("a", volumeSpec{size: "1Gi", policy: "Retain"}))
		create(c, volume("b", volumeSpec{size: "1Gi", policy: "Retain"}))
		create(c, claim("one", "1Gi", noClass()))
		create(c, claim("two", "1Gi", noClass()))
		one, two := boundTo(c, "one"), boundTo(c, "two")
		if one == two {
			c.t.Errorf("both have %s", one)
		}
		for _, name := range []string{one, two} {
			eventuallyOne(c, "", name, "is bound", volumePhase("Bound"))
		}
		remove[*corev1.PersistentVolumeClaim](c, "default", "one", nil)
		eventuallyOne(c, "", one, "is released", volumePhase("Released"))
	})
}

func TestEphemeralVolumesGetClaimsOfTheirPods(t *testing.T) {
	c := newCluster(t, nil)
	create(c, claim("other-taken", "1Gi", noClass()))
	pod := func(name, volumeName string) *corev1.Pod {
		p := user(name, "unused")
		p.GetSpec().SetVolumes([]*corev1.Volume{corev1.Volume_builder{Name: proto.String(volumeName), VolumeSource: corev1.VolumeSource_builder{
			Ephemeral: corev1.EphemeralVolumeSource_builder{VolumeClaimTemplate: corev1.PersistentVolumeClaimTemplate_builder{
				Metadata: metav1.ObjectMeta_builder{Labels: map[string]string{"a": "b"}}.Build(), Spec: claim("", "1Gi", noClass()).GetSpec(),
			}.Build()}.Build(),
		}.Build()}.Build()})
		return p
	}
	p := create(c, pod("own", "scratch"))
	made := eventuallyOne(c, "default", "own-scratch", "the claim", func(*corev1.PersistentVolumeClaim) bool { return true })
	if object.ControllerOf(made).GetUid() != p.GetMetadata().GetUid() || made.GetMetadata().GetLabels()["a"] != "b" {
		t.Errorf("claim %v", made)
	}
	create(c, pod("other", "taken"))
	told(c, "default", "other", "FailedBinding")
	remove[*corev1.Pod](c, "default", "own", metav1.DeletionOptions_builder{GracePeriodSeconds: proto.Int64(0)}.Build())
	gone[*corev1.PersistentVolumeClaim](c, "default", "own-scratch")
}
