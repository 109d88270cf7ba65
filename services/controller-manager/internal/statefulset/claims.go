package statefulset

import (
	"context"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/pkg/event"
	"dhow.dev/pkg/object"
	"dhow.dev/services/controller-manager/internal/podcontrol"
)

// This file writes volume claims.

// existing returns the claims that exist of those that a pod of an ordinal should have.
func (u *update) existing(ordinal int) []*corev1.PersistentVolumeClaim {
	var claims []*corev1.PersistentVolumeClaim
	for _, t := range u.set.GetSpec().GetVolumeClaimTemplates() {
		if claim, ok := u.stores.PersistentVolumeClaims.Get(u.turn.Key.Namespace, claimName(u.set, t, ordinal)); ok {
			claims = append(claims, claim)
		}
	}
	return claims
}

// ensureClaims makes the claims that a pod lacks.
func (u *update) ensureClaims(ctx context.Context, pod *corev1.Pod) error {
	ordinal, _ := ordinalOf(u.set, pod)
	for _, wanted := range claimsOf(u.set, ordinal) {
		m := wanted.GetMetadata()
		if claim, ok := u.stores.PersistentVolumeClaims.Get(m.GetNamespace(), m.GetName()); ok {
			if object.IsDeleted(claim) && pod.GetMetadata().GetUid() == "" {
				return fmt.Errorf("claim %s of pod %s is being deleted", object.KeyOf(claim), pod.GetMetadata().GetName())
			}
			continue
		}
		wanted, _ = owned(wanted, u.set, pod, false)
		created, err := u.volumeClaims.Create(ctx, wanted, nil)
		name, set := pod.GetMetadata().GetName(), u.set.GetMetadata().GetName()
		switch {
		case apierrors.IsAlreadyExists(err):
			continue // the cache will know it soon
		case podcontrol.Terminating(err):
			return err
		case err != nil:
			u.events.Report(u.set, event.Warning, "FailedCreate", "create Claim %s for Pod %s in StatefulSet %s failed error: %v", m.GetName(), name, set, err)
			return fmt.Errorf("create claim %s/%s: %w", m.GetNamespace(), m.GetName(), err)
		}
		u.turn.Wrote(created)
		u.events.Report(u.set, event.Normal, "SuccessfulCreate", "create Claim %s Pod %s in StatefulSet %s success", m.GetName(), name, set)
	}
	return nil
}

// setOwners gives a pod's claims the owners that they should have.
func (u *update) setOwners(ctx context.Context, pod *corev1.Pod) error {
	ordinal, _ := ordinalOf(u.set, pod)
	_, within := index(u.set, ordinal)
	for _, claim := range u.existing(ordinal) {
		wanted, changed := owned(claim, u.set, pod, !within)
		if !changed {
			continue
		}
		if foreign(claim, u.set, pod.GetMetadata().GetName()) {
			u.events.Report(u.set, event.Warning, "ConflictingController",
				"PersistentVolumeClaim %s has a conflicting OwnerReference that acts as a managing controller, the retention policy is ignored for this claim",
				claim.GetMetadata().GetName())
			continue
		}
		updated, err := u.volumeClaims.Update(ctx, wanted, nil)
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return fmt.Errorf("owners of claim %s: %w", object.KeyOf(claim), err)
		}
		u.turn.Wrote(updated)
	}
	return nil
}
