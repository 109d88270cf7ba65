package persistentvolume

import (
	"context"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/pkg/csimigration"
	"dhow.dev/pkg/object"
)

// volume says what became of a volume: free, bound, or left by its claim.
func (b *binding) volume(ctx context.Context, v *corev1.PersistentVolume) error {
	ref := v.GetSpec().GetClaimRef()
	if ref == nil || ref.GetUid() == "" {
		// Also one that is kept for a claim that does not exist yet.
		_, err := b.setVolumePhase(ctx, v, available, "")
		return err
	}
	claim, err := b.claimOf(ctx, ref)
	if err != nil {
		return err
	}
	switch {
	case claim == nil:
		return b.release(ctx, v)
	case claim.GetSpec().GetVolumeName() == "":
		// The claim's own turn goes on with the binding.
		b.Add(object.KeyOf(claim), nil)
		return nil
	case claim.GetSpec().GetVolumeName() == v.GetMetadata().GetName():
		_, err := b.setVolumePhase(ctx, v, bound, "")
		return err
	}
	return b.otherwiseBound(ctx, v)
}

// claimOf returns the claim that a volume is bound to, nil when it is gone for certain: another claim of the same name is none.
func (b *binding) claimOf(ctx context.Context, ref *corev1.ObjectReference) (*corev1.PersistentVolumeClaim, error) {
	if claim, ok := b.stores.PersistentVolumeClaims.Get(ref.GetNamespace(), ref.GetName()); ok && claim.GetMetadata().GetUid() == ref.GetUid() {
		return claim, nil
	}
	claim, err := b.claims.Get(ctx, ref.GetNamespace(), ref.GetName())
	switch {
	case apierrors.IsNotFound(err):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("claim %s/%s: %w", ref.GetNamespace(), ref.GetName(), err)
	case claim.GetMetadata().GetUid() != ref.GetUid():
		return nil, nil
	}
	return claim, nil
}

// otherwiseBound deals with a volume whose claim has got another one.
func (b *binding) otherwiseBound(ctx context.Context, v *corev1.PersistentVolume) error {
	a := v.GetMetadata().GetAnnotations()
	if a[provisionedBy] != "" && v.GetSpec().GetPersistentVolumeReclaimPolicy() == "Delete" {
		// It was made for this claim and is not needed.
		return b.release(ctx, v)
	}
	v, err := b.editVolume(ctx, v, func(next *corev1.PersistentVolume) {
		if a[boundByController] != "" {
			next.GetSpec().ClearClaimRef()
			without(next, boundByController)
			return
		}
		// A user has kept it for a claim of this name: for whichever comes next.
		next.GetSpec().GetClaimRef().ClearUid()
		next.GetSpec().GetClaimRef().ClearResourceVersion()
	})
	if err != nil {
		return err
	}
	_, err = b.setVolumePhase(ctx, v, available, "")
	return err
}

// release does with a volume whose claim is gone what its policy says. Volumes that a provisioner made are deleted by it, data first.
func (b *binding) release(ctx context.Context, v *corev1.PersistentVolume) error {
	if phase := v.GetStatus().GetPhase(); phase != released && phase != failed {
		var err error
		if v, err = b.setVolumePhase(ctx, v, released, ""); err != nil {
			return err
		}
	}
	if object.IsDeleted(v) {
		return nil
	}
	if v.GetMetadata().GetAnnotations()[csimigration.AnnotationMigratedTo] != "" {
		return nil // the driver's provisioner carries the policy out
	}
	switch v.GetSpec().GetPersistentVolumeReclaimPolicy() {
	case "Delete":
		if v.GetMetadata().GetAnnotations()[provisionedBy] != "" {
			return nil
		}
		return b.fail(ctx, v, "VolumeFailedDelete", fmt.Sprintf("error getting deleter volume plugin for volume %q: no deletable volume plugin matched", v.GetMetadata().GetName()))
	case "Recycle":
		return b.fail(ctx, v, "VolumeFailedRecycle", "recycling volumes is not supported: use the policy Retain, or Delete with a class that provisions volumes")
	}
	return nil
}

// fail says once that a policy cannot be carried out.
func (b *binding) fail(ctx context.Context, v *corev1.PersistentVolume, reason, message string) error {
	if v.GetStatus().GetPhase() == failed && v.GetStatus().GetMessage() == message {
		return nil
	}
	v, err := b.setVolumePhase(ctx, v, failed, message)
	if err != nil {
		return err
	}
	b.events.Report(v, "Warning", reason, "%s", message)
	return nil
}
