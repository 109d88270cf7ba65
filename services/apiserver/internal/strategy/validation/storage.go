package validation

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/diff"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// PersistentVolumeClaimSpec looks at a claim's wishes.
func PersistentVolumeClaimSpec(spec *corev1.PersistentVolumeClaimSpec, at *field.Path) field.ErrorList {
	errs := accessModes(at.Child("accessModes"), "at least 1 access mode is required", spec.AccessModes)
	errs = append(errs, metav1validation.ValidateLabelSelector(spec.Selector, metav1validation.LabelSelectorValidationOptions{}, at.Child("selector"))...)
	requests := at.Child("resources")
	if size, ok := spec.Resources.Requests[corev1.ResourceStorage]; !ok {
		errs = append(errs, field.Required(requests.Key(string(corev1.ResourceStorage)), ""))
	} else if size.Sign() <= 0 {
		errs = append(errs, field.Invalid(requests.Key(string(corev1.ResourceStorage)), size.String(), "must be greater than zero"))
	}
	if spec.StorageClassName != nil && *spec.StorageClassName != "" {
		errs = append(errs, dnsSubdomain(at.Child("storageClassName"), *spec.StorageClassName)...)
	}
	if spec.VolumeMode != nil {
		errs = append(errs, oneOf(at.Child("volumeMode"), *spec.VolumeMode, corev1.PersistentVolumeBlock, corev1.PersistentVolumeFilesystem)...)
	}
	errs = append(errs, dataSources(spec, at)...)
	if spec.VolumeAttributesClassName != nil && *spec.VolumeAttributesClassName != "" {
		errs = append(errs, dnsSubdomain(at.Child("volumeAttributesClassName"), *spec.VolumeAttributesClassName)...)
	}
	return errs
}

func accessModes(at *field.Path, missing string, modes []corev1.PersistentVolumeAccessMode) field.ErrorList {
	if len(modes) == 0 {
		return field.ErrorList{field.Required(at, missing)}
	}
	var errs field.ErrorList
	alone, others := false, false
	for _, mode := range modes {
		errs = append(errs, oneOf(at, mode, corev1.ReadOnlyMany, corev1.ReadWriteMany, corev1.ReadWriteOnce, corev1.ReadWriteOncePod)...)
		alone = alone || mode == corev1.ReadWriteOncePod
		others = others || mode != corev1.ReadWriteOncePod
	}
	if alone && others {
		errs = append(errs, field.Forbidden(at, "may not use ReadWriteOncePod with other access modes"))
	}
	return errs
}

// dataSources looks at what a volume is to be made of, which a claim says in an old and a new way.
func dataSources(spec *corev1.PersistentVolumeClaimSpec, at *field.Path) field.ErrorList {
	source := func(at *field.Path, group *string, kind, name string) field.ErrorList {
		errs := append(required(at.Child("name"), name), required(at.Child("kind"), kind)...)
		switch {
		case group == nil || *group == "":
			if kind != "PersistentVolumeClaim" {
				errs = append(errs, field.Invalid(at, kind, "must be 'PersistentVolumeClaim' when referencing the default apiGroup"))
			}
		default:
			errs = append(errs, dnsSubdomain(at.Child("apiGroup"), *group)...)
		}
		return errs
	}
	var errs field.ErrorList
	old, next := spec.DataSource, spec.DataSourceRef
	if old != nil {
		errs = append(errs, source(at.Child("dataSource"), old.APIGroup, old.Kind, old.Name)...)
	}
	if next == nil {
		return errs
	}
	errs = append(errs, source(at.Child("dataSourceRef"), next.APIGroup, next.Kind, next.Name)...)
	elsewhere := next.Namespace != nil && *next.Namespace != ""
	if elsewhere {
		errs = append(errs, each(at.Child("dataSourceRef", "namespace"), *next.Namespace, apivalidation.ValidateNamespaceName(*next.Namespace, false))...)
	}
	switch {
	case old == nil:
	case elsewhere:
		errs = append(errs, field.Invalid(at, at.Child("dataSource").String(), "may not be specified when dataSourceRef.namespace is specified"))
	case !apiequality.Semantic.DeepEqual(old.APIGroup, next.APIGroup) || old.Kind != next.Kind || old.Name != next.Name:
		errs = append(errs, field.Invalid(at, at.Child("dataSource").String(), "must match dataSourceRef"))
	}
	return errs
}

// PersistentVolumeClaim looks at a new claim.
func PersistentVolumeClaim(c *corev1.PersistentVolumeClaim) field.ErrorList {
	return PersistentVolumeClaimSpec(&c.Spec, field.NewPath("spec"))
}

// PersistentVolumeClaimUpdate looks at a changed claim. A claim is given its volume once and its class late; what is bound may grow, shrink back to what it
// has not got yet, and change its attributes.
func PersistentVolumeClaimUpdate(c, old *corev1.PersistentVolumeClaim) field.ErrorList {
	at := field.NewPath("spec")
	errs := PersistentVolumeClaim(c)
	is, was := c.Spec.DeepCopy(), old.Spec.DeepCopy()
	if was.VolumeName == "" {
		was.VolumeName = is.VolumeName
	}
	legacy, hadLegacy := old.Annotations[corev1.BetaStorageClassAnnotation]
	nextLegacy, hasLegacy := c.Annotations[corev1.BetaStorageClassAnnotation]
	// From the annotation of old to the field: the annotation may go with it.
	moved := hadLegacy && was.StorageClassName == nil && is.StorageClassName != nil && *is.StorageClassName == legacy && (!hasLegacy || nextLegacy == legacy)
	if !moved && legacy != nextLegacy {
		errs = append(errs, field.Invalid(field.NewPath("metadata").Key(corev1.BetaStorageClassAnnotation), nextLegacy, fieldImmutable))
	}
	if was.StorageClassName == nil && is.StorageClassName != nil && (!hadLegacy || *is.StorageClassName == legacy) {
		was.StorageClassName = is.StorageClassName
	}
	if c.Status.Phase == corev1.ClaimBound {
		if is.Resources.Requests != nil {
			is.Resources.Requests[corev1.ResourceStorage] = was.Resources.Requests[corev1.ResourceStorage]
		}
		if is.VolumeAttributesClassName != nil {
			is.VolumeAttributesClassName = was.VolumeAttributesClassName
		}
	}
	if !apiequality.Semantic.DeepEqual(is, was) {
		errs = append(errs, field.Forbidden(at, fmt.Sprintf("spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims\n%v", diff.Diff(was, is))))
	}
	size, before, have := c.Spec.Resources.Requests[corev1.ResourceStorage], old.Spec.Resources.Requests[corev1.ResourceStorage], old.Status.Capacity[corev1.ResourceStorage]
	if size.Cmp(before) < 0 && size.Cmp(have) <= 0 {
		errs = append(errs, field.Forbidden(at.Child("resources", "requests", "storage"), "field can not be less than status.capacity"))
	}
	errs = append(errs, immutable(field.NewPath("volumeMode"), c.Spec.VolumeMode, old.Spec.VolumeMode)...)
	if class := c.Spec.VolumeAttributesClassName; old.Spec.VolumeAttributesClassName != nil {
		at := at.Child("volumeAttributesClassName")
		switch {
		case class == nil:
			errs = append(errs, field.Forbidden(at, "update from non-nil value to nil is forbidden"))
		case *class == "" && *old.Spec.VolumeAttributesClassName != "":
			errs = append(errs, field.Forbidden(at, "update from non-nil value to an empty string is forbidden"))
		}
	}
	return errs
}

// PersistentVolumeClaimStatusUpdate looks at a claim's changed status.
func PersistentVolumeClaimStatusUpdate(c, _ *corev1.PersistentVolumeClaim) field.ErrorList {
	at := field.NewPath("status")
	var errs field.ErrorList
	for name, quantity := range c.Status.Capacity {
		errs = append(errs, notNegativeQuantity(at.Child("capacity").Key(string(name)), quantity)...)
	}
	for name, state := range c.Status.AllocatedResourceStatuses {
		at := at.Child("allocatedResourceStatus")
		errs = append(errs, claimResource(at, name)...)
		errs = append(errs, oneOf(at, state, corev1.PersistentVolumeClaimControllerResizeInProgress, corev1.PersistentVolumeClaimControllerResizeInfeasible,
			corev1.PersistentVolumeClaimNodeResizePending, corev1.PersistentVolumeClaimNodeResizeInProgress, corev1.PersistentVolumeClaimNodeResizeInfeasible)...)
	}
	for name, quantity := range c.Status.AllocatedResources {
		at := at.Child("allocatedResources")
		errs = append(errs, claimResource(at, name)...)
		errs = append(errs, notNegativeQuantity(at.Key(string(name)), quantity)...)
	}
	return errs
}

// claimResource holds the names of resources in a claim's status to storage, and to what others have named with a domain of theirs.
func claimResource(at *field.Path, name corev1.ResourceName) field.ErrorList {
	if errs := qualifiedName(at, string(name)); len(errs) > 0 {
		return errs
	}
	if native(name) && name != corev1.ResourceStorage {
		return field.ErrorList{field.NotSupported(at, name, []corev1.ResourceName{corev1.ResourceStorage})}
	}
	return nil
}
