package controllermanager_test

import (
	"testing"

	"google.golang.org/protobuf/proto"

	appsv1 "dhow.dev/gen/go/dhow/apps/v1"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/object"
)

// withClaims returns a set whose pods have one claim each, with what becomes of it.
func withClaims(name string, replicas int32, whenDeleted, whenScaled string) *appsv1.StatefulSet {
	set := statefulSet(name, replicas)
	set.GetSpec().SetVolumeClaimTemplates([]*corev1.PersistentVolumeClaim{corev1.PersistentVolumeClaim_builder{
		Metadata: metav1.ObjectMeta_builder{Name: proto.String("data"), Labels: map[string]string{"kind": "data"}, Annotations: map[string]string{"note": "kept"}}.Build(),
		Spec: corev1.PersistentVolumeClaimSpec_builder{
			AccessModes: []string{"ReadWriteOnce"}, StorageClassName: proto.String("nobodys"),
			Resources: corev1.VolumeResourceRequirements_builder{Requests: map[string]*metav1.Quantity{"storage": metav1.Quantity_builder{String: proto.String("1Mi")}.Build()}}.Build(),
		}.Build(),
	}.Build()})
	c := set.GetSpec().GetTemplate().GetSpec().GetContainers()[0]
	c.SetVolumeMounts([]*corev1.VolumeMount{corev1.VolumeMount_builder{Name: proto.String("data"), MountPath: proto.String("/data")}.Build()})
	set.GetSpec().SetPersistentVolumeClaimRetentionPolicy(appsv1.StatefulSetPersistentVolumeClaimRetentionPolicy_builder{
		WhenDeleted: proto.String(whenDeleted), WhenScaled: proto.String(whenScaled),
	}.Build())
	return set
}

func owner(o object.Object) string { return object.ControllerOf(o).GetKind() }

func TestStatefulSetClaimsStay(t *testing.T) {
	c := newCluster(t, nil)
	c.startKubelet(nil, "n1")
	create(c, withClaims("db", 2, "Retain", "Retain"))
	eventuallyOne(c, "default", "db", "settled", settled)
	claim := get[*corev1.PersistentVolumeClaim](c, "default", "data-db-1")
	m := claim.GetMetadata()
	if m.GetLabels()["app"] != "db" || m.GetLabels()["kind"] != "data" || m.GetAnnotations()["note"] != "kept" || len(m.GetOwnerReferences()) != 0 {
		t.Errorf("claim %v", m)
	}
	pod := get[*corev1.Pod](c, "default", "db-1")
	if got := pod.GetSpec().GetVolumes()[0].GetVolumeSource().GetPersistentVolumeClaim().GetClaimName(); got != "data-db-1" {
		t.Errorf("claim of the pod's volume: %q", got)
	}
	edit(c, "default", "db", func(s *appsv1.StatefulSet) { s.GetSpec().SetReplicas(1) })
	eventuallyOne(c, "default", "db", "settled", settled)
	edit(c, "default", "db", func(s *appsv1.StatefulSet) { s.GetSpec().SetReplicas(2) })
	eventuallyOne(c, "default", "db", "settled", settled)
	remove[*appsv1.StatefulSet](c, "default", "db", nil)
	gone[*corev1.Pod](c, "default", "db-0")
	gone[*corev1.Pod](c, "default", "db-1")
	for _, name := range []string{"data-db-0", "data-db-1"} {
		if again := get[*corev1.PersistentVolumeClaim](c, "default", name); object.IsDeleted(again) || name == "data-db-1" && again.GetMetadata().GetUid() != m.GetUid() {
			t.Errorf("claim %s did not stay: %v", name, again.GetMetadata())
		}
	}
}

func TestStatefulSetClaimsGoWithTheirPods(t *testing.T) {
	c := newCluster(t, nil)
	c.startKubelet(nil, "n1")
	create(c, withClaims("db", 3, "Retain", "Delete"))
	eventuallyOne(c, "default", "db", "settled", settled)
	first := get[*corev1.PersistentVolumeClaim](c, "default", "data-db-2").GetMetadata().GetUid()
	if got := owner(get[*corev1.PersistentVolumeClaim](c, "default", "data-db-2")); got != "" {
		t.Errorf("the claim is owned by a %s before its pod is to go", got)
	}
	// A pod that is only replaced keeps its claim.
	before := get[*corev1.Pod](c, "default", "db-2").GetMetadata().GetUid()
	remove[*corev1.Pod](c, "default", "db-2", nil)
	eventuallyOne(c, "default", "db-2", "replaced", func(p *corev1.Pod) bool { return p.GetMetadata().GetUid() != before && ready(p) })
	if got := get[*corev1.PersistentVolumeClaim](c, "default", "data-db-2").GetMetadata().GetUid(); got != first {
		t.Errorf("another claim for the replaced pod")
	}
	edit(c, "default", "db", func(s *appsv1.StatefulSet) { s.GetSpec().SetReplicas(1) })
	gone[*corev1.PersistentVolumeClaim](c, "default", "data-db-1")
	gone[*corev1.PersistentVolumeClaim](c, "default", "data-db-2")
	edit(c, "default", "db", func(s *appsv1.StatefulSet) { s.GetSpec().SetReplicas(3) })
	eventuallyOne(c, "default", "db", "settled", settled)
	if got := get[*corev1.PersistentVolumeClaim](c, "default", "data-db-2").GetMetadata().GetUid(); got == first {
		t.Errorf("the claim of before is back")
	}
	remove[*appsv1.StatefulSet](c, "default", "db", nil)
	gone[*corev1.Pod](c, "default", "db-0")
	if claim := get[*corev1.PersistentVolumeClaim](c, "default", "data-db-0"); object.IsDeleted(claim) {
		t.Error("the claim goes with the set, though it should stay")
	}
}

func TestStatefulSetClaimsGoWithTheSet(t *testing.T) {
	c := newCluster(t, nil)
	c.startKubelet(nil, "n1")
	create(c, withClaims("db", 2, "Retain", "Retain"))
	eventuallyOne(c, "default", "db", "settled", settled)
	edit(c, "default", "db", func(s *appsv1.StatefulSet) {
		s.GetSpec().GetPersistentVolumeClaimRetentionPolicy().SetWhenDeleted("Delete")
	})
	for _, name := range []string{"data-db-0", "data-db-1"} {
		eventuallyOne(c, "default", name, "owned by the set", func(claim *corev1.PersistentVolumeClaim) bool { return owner(claim) == "StatefulSet" })
	}
	// One that somebody else cares for is left alone.
	other := create(c, configMap("other"))
	edit(c, "default", "data-db-1", func(claim *corev1.PersistentVolumeClaim) {
		claim.GetMetadata().SetOwnerReferences([]*metav1.OwnerReference{metav1.OwnerReference_builder{
			ApiVersion: proto.String("v1"), Kind: proto.String("ConfigMap"), Name: proto.String("other"), Uid: proto.String(other.GetMetadata().GetUid()), Controller: proto.Bool(true),
		}.Build()})
	})
	remove[*appsv1.StatefulSet](c, "default", "db", nil)
	gone[*corev1.PersistentVolumeClaim](c, "default", "data-db-0")
	if claim := get[*corev1.PersistentVolumeClaim](c, "default", "data-db-1"); object.IsDeleted(claim) {
		t.Error("the claim of somebody else goes with the set")
	}
}
