package admission

import (
	"cmp"
	"context"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"dhow.dev/pkg/resource"
	"dhow.dev/services/apiserver/internal/codec"
)

var (
	storageClasses = resource.Lookup("storage.k8s.io", "storageclasses")
	ingressClasses = resource.Lookup("networking.k8s.io", "ingressclasses")
)

const (
	isDefaultClass = "storageclass.kubernetes.io/is-default-class"
	// isDefaultClassBeta is the former name, which Kubernetes still reads.
	isDefaultClassBeta = "storageclass.beta.kubernetes.io/is-default-class"
	legacyIngressClass = "kubernetes.io/ingress.class"
	claimProtection    = "kubernetes.io/pvc-protection"
	volumeProtection   = "kubernetes.io/pv-protection"
	classProtection    = "kubernetes.io/vac-protection"
)

// defaultClass returns the name of the class that one of the annotations makes the default; of several the newest, or the first by name.
func defaultClass(ctx context.Context, view View, res *resource.Resource, annotations ...string) (string, error) {
	var all []metav1.Object
	err := view.List(ctx, res, "", func(o codec.Object) bool {
		if slices.ContainsFunc(annotations, func(a string) bool { return o.GetAnnotations()[a] == "true" }) {
			all = append(all, o)
		}
		return true
	})
	if err != nil || len(all) == 0 {
		return "", err
	}
	newest := slices.MinFunc(all, func(a, b metav1.Object) int {
		return cmp.Or(b.GetCreationTimestamp().Compare(a.GetCreationTimestamp().Time), cmp.Compare(a.GetName(), b.GetName()))
	})
	return newest.GetName(), nil
}

// defaultStorageClass gives claims that name no class the cluster's default one.
type defaultStorageClass struct{}

func (defaultStorageClass) mutate(ctx context.Context, q *Request) error {
	claim, ok := q.Object.(*corev1.PersistentVolumeClaim)
	if !ok || !q.is("", "persistentvolumeclaims") || q.Operation != Create || claim.Spec.StorageClassName != nil {
		return nil
	}
	if _, legacy := claim.Annotations[corev1.BetaStorageClassAnnotation]; legacy {
		return nil
	}
	name, err := defaultClass(ctx, q.View, storageClasses, isDefaultClass, isDefaultClassBeta)
	if err == nil && name != "" {
		claim.Spec.StorageClassName = &name
	}
	return err
}

// storageProtection holds volumes, claims and classes of attributes while they are used: a controller of the controller manager takes the finalizers away.
type storageProtection struct{}

func (storageProtection) mutate(_ context.Context, q *Request) error {
	if q.Operation != Create || q.Subresource != "" {
		return nil
	}
	finalizer := ""
	switch q.Object.(type) {
	case *corev1.PersistentVolumeClaim:
		finalizer = claimProtection
	case *corev1.PersistentVolume:
		finalizer = volumeProtection
	case *storagev1.VolumeAttributesClass:
		finalizer = classProtection
	default:
		return nil
	}
	if o, ok := q.Object.(metav1.Object); ok && !slices.Contains(o.GetFinalizers(), finalizer) {
		o.SetFinalizers(append(o.GetFinalizers(), finalizer))
	}
	return nil
}

// claimResize lets only claims grow whose class can.
type claimResize struct{}

func (claimResize) validate(ctx context.Context, q *Request) error {
	claim, ok := q.Object.(*corev1.PersistentVolumeClaim)
	if !ok || !q.is("", "persistentvolumeclaims") || q.Operation != Update {
		return nil
	}
	old, ok := q.Old.(*corev1.PersistentVolumeClaim)
	if !ok || claim.Spec.Resources.Requests.Storage().Cmp(*old.Spec.Resources.Requests.Storage()) == 0 {
		return nil
	}
	if old.Status.Phase != corev1.ClaimBound {
		return q.forbidden("Only bound persistent volume claims can be expanded")
	}
	name := ""
	if claim.Spec.StorageClassName != nil {
		name = *claim.Spec.StorageClassName
	}
	if legacy, ok := claim.Annotations[corev1.BetaStorageClassAnnotation]; ok {
		name = legacy
	}
	class, found, err := get[*storagev1.StorageClass](ctx, q.View, storageClasses, "", name)
	if err != nil {
		return err
	}
	if !found || class.AllowVolumeExpansion == nil || !*class.AllowVolumeExpansion {
		return q.forbidden("only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize")
	}
	return nil
}

// defaultIngressClass gives ingresses that name no class the cluster's default one.
type defaultIngressClass struct{}

func (defaultIngressClass) mutate(ctx context.Context, q *Request) error {
	ingress, ok := q.Object.(*networkingv1.Ingress)
	if !ok || !q.is("networking.k8s.io", "ingresses") || q.Operation != Create || ingress.Spec.IngressClassName != nil {
		return nil
	}
	if _, legacy := ingress.Annotations[legacyIngressClass]; legacy {
		return nil
	}
	name, err := defaultClass(ctx, q.View, ingressClasses, networkingv1.AnnotationIsDefaultIngressClass)
	if err == nil && name != "" {
		ingress.Spec.IngressClassName = &name
	}
	return err
}
