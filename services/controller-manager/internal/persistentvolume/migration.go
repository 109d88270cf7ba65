package persistentvolume

import (
	"cmp"
	"context"
	"slices"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/pkg/csimigration"
	"dhow.dev/pkg/object"
)

// inTreeProtection is the finalizer that Kubernetes' own plugins put on volumes which they had made; a driver's provisioner has one of its own.
const inTreeProtection = "kubernetes.io/pv-controller"

// migrateClaim says on a claim whose provisioner is a plugin that Kubernetes had built in which driver serves it now.
func (b *binding) migrateClaim(ctx context.Context, claim *corev1.PersistentVolumeClaim) (*corev1.PersistentVolumeClaim, error) {
	a := claim.GetMetadata().GetAnnotations()
	provisioner := cmp.Or(a[storageProvisioner], a[betaProvisioner])
	if provisioner == "" {
		return claim, nil
	}
	return b.editClaim(ctx, claim, func(next *corev1.PersistentVolumeClaim) { migrate(next, provisioner) })
}

// migrateVolume says it on a volume that such a plugin has made.
func (b *binding) migrateVolume(ctx context.Context, v *corev1.PersistentVolume) (*corev1.PersistentVolume, error) {
	provisioner := v.GetMetadata().GetAnnotations()[provisionedBy]
	if provisioner == "" {
		return v, nil
	}
	return b.editVolume(ctx, v, func(next *corev1.PersistentVolume) {
		if migrate(next, provisioner) {
			m := next.GetMetadata()
			m.SetFinalizers(slices.DeleteFunc(slices.Clone(m.GetFinalizers()), func(f string) bool { return f == inTreeProtection }))
		}
	})
}

// migrate names the driver in an object's annotations, or takes the name away where there is none. It returns whether there is one.
func migrate(o object.Object, provisioner string) bool {
	driver, ok := csimigration.Driver(provisioner)
	switch had := o.GetMetadata().GetAnnotations()[csimigration.AnnotationMigratedTo]; {
	case ok && had != driver:
		annotate(o, csimigration.AnnotationMigratedTo, driver)
	case !ok && had != "":
		without(o, csimigration.AnnotationMigratedTo)
	}
	return ok
}
