package validation

import (
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

const notInline = "may not be specified in the context of inline volumes"

// VolumeAttachment looks at a new attachment.
func VolumeAttachment(a *storagev1.VolumeAttachment) field.ErrorList {
	at := field.NewPath("spec")
	errs := csiDriverName(at.Child("attacher"), a.Spec.Attacher)
	source := at.Child("source")
	switch s := a.Spec.Source; {
	case s.InlineVolumeSpec == nil && s.PersistentVolumeName == nil:
		errs = append(errs, field.Required(source, "must specify exactly one of inlineVolumeSpec and persistentVolumeName"))
	case s.InlineVolumeSpec != nil && s.PersistentVolumeName != nil:
		errs = append(errs, field.Forbidden(source, "must specify exactly one of inlineVolumeSpec and persistentVolumeName"))
	case s.InlineVolumeSpec != nil:
		errs = append(errs, inlineVolume(source.Child("inlineVolumeSpec"), s.InlineVolumeSpec)...)
	case *s.PersistentVolumeName == "":
		errs = append(errs, field.Required(source.Child("persistentVolumeName"), "must specify non empty persistentVolumeName"))
	default:
		errs = append(errs, dnsSubdomain(source.Child("persistentVolumeName"), *s.PersistentVolumeName)...)
	}
	return append(errs, dnsSubdomain(at.Child("nodeName"), a.Spec.NodeName)...)
}

// inlineVolume looks at what stands for a volume of a pod's own spec.
func inlineVolume(at *field.Path, spec *corev1.PersistentVolumeSpec) field.ErrorList {
	var errs field.ErrorList
	if spec.ClaimRef != nil {
		errs = append(errs, field.Forbidden(at.Child("claimRef"), notInline))
	}
	if len(spec.Capacity) > 0 {
		errs = append(errs, field.Forbidden(at.Child("capacity"), notInline))
	}
	if spec.CSI == nil {
		errs = append(errs, field.Required(at.Child("csi"), "has to be specified in the context of inline volumes"))
	}
	errs = append(errs, accessModes(at.Child("accessModes"), "", spec.AccessModes)...)
	if p := spec.PersistentVolumeReclaimPolicy; p != "" && p != corev1.PersistentVolumeReclaimRetain {
		errs = append(errs, field.Forbidden(at.Child("persistentVolumeReclaimPolicy"), "may only be Retain in the context of inline volumes"))
	}
	if spec.NodeAffinity != nil {
		errs = append(errs, field.Forbidden(at.Child("nodeAffinity"), notInline))
	}
	errs = append(errs, persistentVolumeSource(spec, "", at)...)
	if spec.StorageClassName != "" {
		errs = append(errs, field.Forbidden(at.Child("storageClassName"), notInline))
	}
	if m := spec.VolumeMode; m != nil && *m != corev1.PersistentVolumeFilesystem {
		errs = append(errs, field.Forbidden(at.Child("volumeMode"), "may not specify volumeMode other than Filesystem in the context of inline volumes"))
	}
	return errs
}

// VolumeAttachmentUpdate looks at a changed attachment: only metadata may change.
func VolumeAttachmentUpdate(a, old *storagev1.VolumeAttachment) field.ErrorList {
	return append(VolumeAttachment(a), immutable(field.NewPath("spec"), a.Spec, old.Spec)...)
}
