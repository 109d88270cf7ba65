package strategy

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// newNamespace makes the namespace active, and holds it with the finalizer by which the namespace controller empties it before it goes.
func newNamespace(ns *corev1.Namespace) {
	ns.Status = corev1.NamespaceStatus{Phase: corev1.NamespaceActive}
	if !slices.Contains(ns.Spec.Finalizers, corev1.FinalizerKubernetes) {
		ns.Spec.Finalizers = append(ns.Spec.Finalizers, corev1.FinalizerKubernetes)
	}
}

// keepFinalizers keeps the namespace's finalizers: they change through the subresource `finalize` alone.
func keepFinalizers(ns, old *corev1.Namespace) { ns.Spec.Finalizers = old.Spec.Finalizers }
