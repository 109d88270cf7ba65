package persistentvolume

import (
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/api/resource"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/object"
	"dhow.dev/services/controller-manager/internal/inventory"
	"dhow.dev/services/controller-manager/internal/ownership"
)

// storageOf returns how much storage a list of quantities has; nothing when it says none.
func storageOf(list map[string]*metav1.Quantity) resource.Quantity {
	q, err := resource.ParseQuantity(list["storage"].GetString())
	if err != nil {
		return resource.Quantity{}
	}
	return q
}

func requested(claim *corev1.PersistentVolumeClaim) resource.Quantity {
	return storageOf(claim.GetSpec().GetResources().GetRequests())
}

// mode returns a volume mode, that of files when none is said.
func mode(m string) string {
	if m == "" {
		return "Filesystem"
	}
	return m
}

// classOfVolume returns the name of a volume's class, also where only the old annotation says it.
func classOfVolume(v *corev1.PersistentVolume) string {
	if name, ok := v.GetMetadata().GetAnnotations()[betaClass]; ok {
		return name
	}
	return v.GetSpec().GetStorageClassName()
}

// isReservedFor says whether a volume is bound to a claim, or was made for it and no other.
func isReservedFor(v *corev1.PersistentVolume, claim *corev1.PersistentVolumeClaim) bool {
	ref, m := v.GetSpec().GetClaimRef(), claim.GetMetadata()
	return ref != nil && ref.GetNamespace() == m.GetNamespace() && ref.GetName() == m.GetName() && (ref.GetUid() == "" || ref.GetUid() == m.GetUid())
}

// mismatch says why a volume that a claim names cannot serve it; nil when it can.
func mismatch(v *corev1.PersistentVolume, claim *corev1.PersistentVolumeClaim) error {
	have, want := storageOf(v.GetSpec().GetCapacity()), requested(claim)
	switch {
	case have.Cmp(want) < 0:
		return fmt.Errorf("requested PV is too small")
	case classOfVolume(v) != inventory.ClassOf(claim):
		return fmt.Errorf("storageClassName does not match")
	case mode(v.GetSpec().GetVolumeMode()) != mode(claim.GetSpec().GetVolumeMode()):
		return fmt.Errorf("incompatible volumeMode")
	case !hasModes(v, claim):
		return fmt.Errorf("incompatible accessMode")
	case v.GetSpec().GetVolumeAttributesClassName() != claim.GetSpec().GetVolumeAttributesClassName():
		return fmt.Errorf("VolumeAttributesClassName does not match")
	}
	return nil
}

func hasModes(v *corev1.PersistentVolume, claim *corev1.PersistentVolumeClaim) bool {
	return !slices.ContainsFunc(claim.GetSpec().GetAccessModes(), func(m string) bool { return !slices.Contains(v.GetSpec().GetAccessModes(), m) })
}

// match returns the volume that serves a claim best: the one that is reserved for it, or else the smallest that is free, large enough and of its
// kind; nil when there is none. When delayed, only one that is reserved counts: the scheduler chooses.
func match(claim *corev1.PersistentVolumeClaim, volumes []*corev1.PersistentVolume, delayed bool) (*corev1.PersistentVolume, error) {
	want := requested(claim)
	selector, err := ownership.Selector(claim.GetSpec().GetSelector())
	if err != nil {
		return nil, fmt.Errorf("selector: %w", err)
	}
	var best *corev1.PersistentVolume
	var bestSize resource.Quantity
	for _, v := range volumes {
		spec := v.GetSpec()
		size := storageOf(spec.GetCapacity())
		if spec.GetClaimRef() != nil && !isReservedFor(v, claim) || size.Cmp(want) < 0 || object.IsDeleted(v) ||
			mode(spec.GetVolumeMode()) != mode(claim.GetSpec().GetVolumeMode()) ||
			spec.GetVolumeAttributesClassName() != claim.GetSpec().GetVolumeAttributesClassName() {
			continue
		}
		if isReservedFor(v, claim) {
			return v, nil
		}
		if delayed || v.GetStatus().GetPhase() != available || classOfVolume(v) != inventory.ClassOf(claim) || !hasModes(v, claim) {
			continue
		}
		if claim.GetSpec().HasSelector() && !selector.Matches(labels(v.GetMetadata().GetLabels())) {
			continue
		}
		// The smallest; of equals the one with the fewest modes beyond those that are needed, then the first by name.
		if best != nil {
			if c := size.Cmp(bestSize); c > 0 || c == 0 && !before(v, best) {
				continue
			}
		}
		best, bestSize = v, size
	}
	return best, nil
}

// before orders volumes of one size.
func before(a, b *corev1.PersistentVolume) bool {
	if x, y := len(a.GetSpec().GetAccessModes()), len(b.GetSpec().GetAccessModes()); x != y {
		return x < y
	}
	return a.GetMetadata().GetName() < b.GetMetadata().GetName()
}

// labels are a map that selectors can look into.
type labels map[string]string

func (l labels) Has(key string) bool   { _, ok := l[key]; return ok }
func (l labels) Get(key string) string { return l[key] }

func (l labels) Lookup(key string) (string, bool) {
	v, ok := l[key]
	return v, ok
}
