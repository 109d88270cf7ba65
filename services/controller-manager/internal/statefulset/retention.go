package statefulset

import (
	"slices"

	"google.golang.org/protobuf/proto"

	appsv1 "dhow.dev/gen/go/dhow/apps/v1"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/object"
	"dhow.dev/services/controller-manager/internal/ownership"
)

// This file is when claims go with what they belong to. Nothing here deletes them: they get an owner, the set or the pod, and go with it as garbage.

const retentionDelete = "Delete"

// owners says who should own a claim: the set, which then takes it along when it is deleted, or its pod, when that goes because the set shrank.
func owners(set *appsv1.StatefulSet, scaledDown bool) (ofSet, ofPod bool) {
	policy := set.GetSpec().GetPersistentVolumeClaimRetentionPolicy()
	whenDeleted, whenScaled := policy.GetWhenDeleted() == retentionDelete, policy.GetWhenScaled() == retentionDelete
	ofPod = whenScaled && scaledDown
	return whenDeleted && !ofPod, ofPod
}

// foreign says that somebody else controls the claim, who then decides when it goes.
func foreign(claim *corev1.PersistentVolumeClaim, set *appsv1.StatefulSet, pod string) bool {
	c := object.ControllerOf(claim)
	return c != nil && !refersTo(c, "apps/v1", "StatefulSet", set.GetMetadata().GetName()) && !refersTo(c, "v1", "Pod", pod)
}

func refersTo(r *metav1.OwnerReference, version, kind, name string) bool {
	return r.GetApiVersion() == version && r.GetKind() == kind && r.GetName() == name
}

// owned returns the claim with the owners that it should have, and whether that changes anything. Pod is the claim's pod; one without UID is not there
// yet and owns nothing.
func owned(claim *corev1.PersistentVolumeClaim, set *appsv1.StatefulSet, pod *corev1.Pod, scaledDown bool) (*corev1.PersistentVolumeClaim, bool) {
	ofSet, ofPod := owners(set, scaledDown)
	var want []*metav1.OwnerReference
	for _, r := range claim.GetMetadata().GetOwnerReferences() {
		if !refersTo(r, "apps/v1", "StatefulSet", set.GetMetadata().GetName()) && !refersTo(r, "v1", "Pod", pod.GetMetadata().GetName()) {
			want = append(want, r)
		}
	}
	if ofSet {
		want = append(want, ownership.Reference(set))
	}
	if ofPod && pod.GetMetadata().GetUid() != "" {
		want = append(want, ownership.Reference(pod))
	}
	same := slices.EqualFunc(want, claim.GetMetadata().GetOwnerReferences(), func(a, b *metav1.OwnerReference) bool {
		return a.GetUid() == b.GetUid() && a.GetKind() == b.GetKind() && a.GetName() == b.GetName()
	})
	if same {
		return claim, false
	}
	claim = proto.Clone(claim).(*corev1.PersistentVolumeClaim)
	claim.GetMetadata().SetOwnerReferences(want)
	return claim, true
}

// stale says that a claim is about to go with a former pod of the name, so that a new pod must wait for another claim.
func stale(claim *corev1.PersistentVolumeClaim, pod string) bool {
	return slices.ContainsFunc(claim.GetMetadata().GetOwnerReferences(), func(r *metav1.OwnerReference) bool { return refersTo(r, "v1", "Pod", pod) })
}
