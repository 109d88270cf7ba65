package controllermanager_test

import (
	"testing"

	"google.golang.org/protobuf/proto"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
)

// A claim that is deleted goes with the last pod on a node that uses it, a volume when it is bound no more.
func TestStorageStaysWhileItIsUsed(t *testing.T) {
	c := newCluster(t, nil)
	protected := func(name, finalizer string) *metav1.ObjectMeta {
		m := meta(name)
		m.SetFinalizers([]string{finalizer})
		return m
	}
	claim := func(name string) {
		m := protected(name, "kubernetes.io/pvc-protection")
		create(c, corev1.PersistentVolumeClaim_builder{Metadata: m, Spec: corev1.PersistentVolumeClaimSpec_builder{
			AccessModes: []string{"ReadWriteOnce"},
			Resources:   corev1.VolumeResourceRequirements_builder{Requests: quantities(map[string]string{"storage": "1Gi"})}.Build(),
		}.Build()}.Build())
	}
	create(c, corev1.Node_builder{Metadata: metav1.ObjectMeta_builder{Name: proto.String("node-1")}.Build()}.Build())
	claim("used")
	claim("unused")
	create(c, corev1.Pod_builder{Metadata: meta("user"), Spec: corev1.PodSpec_builder{
		NodeName:   proto.String("node-1"),
		Containers: []*corev1.Container{corev1.Container_builder{Name: proto.String("c"), Image: proto.String("i")}.Build()},
		Volumes: []*corev1.Volume{corev1.Volume_builder{Name: proto.String("v"), VolumeSource: corev1.VolumeSource_builder{
			PersistentVolumeClaim: corev1.PersistentVolumeClaimVolumeSource_builder{ClaimName: proto.String("used")}.Build(),
		}.Build()}.Build()},
	}.Build()}.Build())
	remove[*corev1.PersistentVolumeClaim](c, "default", "used", nil)
	remove[*corev1.PersistentVolumeClaim](c, "default", "unused", nil)
	left := eventually(c, "default", "the unused claim is gone", func(all []*corev1.PersistentVolumeClaim) bool { return len(all) == 1 })
	if left[0].GetMetadata().GetName() != "used" {
		t.Errorf("%v is left", left)
	}
	zero := metav1.DeletionOptions_builder{GracePeriodSeconds: proto.Int64(0)}.Build()
	remove[*corev1.Pod](c, "default", "user", zero)
	eventually(c, "default", "the claim goes with its last user", func(all []*corev1.PersistentVolumeClaim) bool { return len(all) == 0 })
}
