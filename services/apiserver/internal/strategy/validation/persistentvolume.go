package validation

import (
	"fmt"
	"path"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/util/diff"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// PersistentVolume looks at a new volume.
func PersistentVolume(v *corev1.PersistentVolume) field.ErrorList {
	at, spec := field.NewPath("spec"), &v.Spec
	errs := accessModes(at.Child("accessModes"), "", spec.AccessModes)
	capacity := at.Child("capacity")
	if len(spec.Capacity) == 0 {
		errs = append(errs, field.Required(capacity, ""))
	}
	if _, ok := spec.Capacity[corev1.ResourceStorage]; !ok || len(spec.Capacity) > 1 {
		errs = append(errs, field.NotSupported(capacity, spec.Capacity, []corev1.ResourceName{corev1.ResourceStorage}))
	}
	for name, size := range spec.Capacity {
		if size.Sign() <= 0 {
			errs = append(errs, field.Invalid(capacity.Key(string(name)), size.String(), mustBePositive))
		}
	}
	if p := spec.PersistentVolumeReclaimPolicy; p != "" {
		errs = append(errs, oneOf(at.Child("persistentVolumeReclaimPolicy"), p, corev1.PersistentVolumeReclaimDelete, corev1.PersistentVolumeReclaimRecycle, corev1.PersistentVolumeReclaimRetain)...)
	}
	if a := spec.NodeAffinity; a != nil {
		at := at.Child("nodeAffinity", "required")
		if a.Required == nil {
			errs = append(errs, field.Required(at, "must specify required node constraints"))
		} else {
			errs = append(errs, nodeSelector(at, a.Required)...)
		}
	}
	errs = append(errs, persistentVolumeSource(spec, v.Name, at)...)
	if spec.HostPath != nil && path.Clean(spec.HostPath.Path) == "/" && spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimRecycle {
		errs = append(errs, field.Forbidden(at.Child("persistentVolumeReclaimPolicy"), "may not be 'recycle' for a hostPath mount of '/'"))
	}
	if spec.StorageClassName != "" {
		errs = append(errs, dnsSubdomain(at.Child("storageClassName"), spec.StorageClassName)...)
	}
	if spec.VolumeMode != nil {
		errs = append(errs, oneOf(at.Child("volumeMode"), *spec.VolumeMode, corev1.PersistentVolumeBlock, corev1.PersistentVolumeFilesystem)...)
	}
	if class := spec.VolumeAttributesClassName; class != nil {
		at := at.Child("volumeAttributesClassName")
		if *class == "" {
			errs = append(errs, field.Required(at, "an empty string is disallowed"))
		} else {
			errs = append(errs, dnsSubdomain(at, *class)...)
		}
		if spec.CSI == nil {
			errs = append(errs, field.Required(field.NewPath("spec", "csi"), "has to be specified when using volumeAttributesClassName"))
		}
	}
	return errs
}

// persistentVolumeSource wants exactly one kind of volume. Of the kinds that nodes mount it looks at what is in them.
func persistentVolumeSource(spec *corev1.PersistentVolumeSpec, name string, at *field.Path) field.ErrorList {
	var errs field.ErrorList
	count := 0
	take := func(name string, set bool, look func(*field.Path) field.ErrorList) {
		switch {
		case !set:
			return
		case count > 0:
			errs = append(errs, field.Forbidden(at.Child(name), "may not specify more than 1 volume type"))
			return
		}
		count++
		if look != nil {
			errs = append(errs, look(at.Child(name))...)
		}
	}
	s := &spec.PersistentVolumeSource
	take("hostPath", s.HostPath != nil, func(at *field.Path) field.ErrorList { return hostPath(at, s.HostPath) })
	for _, c := range persistentCloudVolumes(s) {
		take(c.name, c.set, c.look)
	}
	for _, other := range []flag{
		{"glusterfs", s.Glusterfs != nil}, {"flocker", s.Flocker != nil}, {"rbd", s.RBD != nil}, {"quobyte", s.Quobyte != nil}, {"cephfs", s.CephFS != nil},
		{"photonPersistentDisk", s.PhotonPersistentDisk != nil},
		{"scaleIO", s.ScaleIO != nil}, {"storageos", s.StorageOS != nil},
	} {
		take(other.name, other.set, nil)
	}
	take("nfs", s.NFS != nil, func(at *field.Path) field.ErrorList {
		errs := append(required(at.Child("server"), s.NFS.Server), required(at.Child("path"), s.NFS.Path)...)
		if !path.IsAbs(s.NFS.Path) {
			errs = append(errs, field.Invalid(at.Child("path"), s.NFS.Path, "must be an absolute path"))
		}
		return errs
	})
	take("iscsi", s.ISCSI != nil, func(at *field.Path) field.ErrorList { return iscsi(at, s.ISCSI, name) })
	take("fc", s.FC != nil, func(at *field.Path) field.ErrorList { return fibreChannel(at, s.FC) })
	take("flexVolume", s.FlexVolume != nil, func(at *field.Path) field.ErrorList { return flexVolume(at, s.FlexVolume.Driver, s.FlexVolume.Options) })
	take("local", s.Local != nil, func(at *field.Path) field.ErrorList {
		if s.Local.Path == "" {
			return field.ErrorList{field.Required(at.Child("path"), "")}
		}
		errs := noBacksteps(at.Child("path"), s.Local.Path)
		if spec.NodeAffinity == nil {
			errs = append(errs, field.Required(field.NewPath("spec", "nodeAffinity"), "Local volume requires node affinity"))
		}
		return errs
	})
	take("csi", s.CSI != nil, func(at *field.Path) field.ErrorList {
		errs := append(csiDriverName(at.Child("driver"), s.CSI.Driver), required(at.Child("volumeHandle"), s.CSI.VolumeHandle)...)
		for _, secret := range []struct {
			name string
			ref  *corev1.SecretReference
		}{
			{"controllerPublishSecretRef", s.CSI.ControllerPublishSecretRef}, {"controllerExpandSecretRef", s.CSI.ControllerExpandSecretRef},
			{"nodePublishSecretRef", s.CSI.NodePublishSecretRef}, {"nodeExpandSecretRef", s.CSI.NodeExpandSecretRef},
		} {
			if secret.ref != nil {
				errs = append(errs, secretReference(at.Child(secret.name), secret.ref)...)
			}
		}
		return errs
	})
	if count == 0 {
		errs = append(errs, field.Required(at, "must specify a volume type"))
	}
	return errs
}

func secretReference(at *field.Path, ref *corev1.SecretReference) field.ErrorList {
	errs := required(at.Child("name"), ref.Name)
	if ref.Name != "" {
		errs = dnsSubdomain(at.Child("name"), ref.Name)
	}
	if ref.Namespace == "" {
		return append(errs, field.Required(at.Child("namespace"), ""))
	}
	return append(errs, dnsLabel(at.Child("namespace"), ref.Namespace)...)
}

// PersistentVolumeUpdate looks at a changed volume: what it is and where it can be stays. A secret for growing and a place may be given once.
func PersistentVolumeUpdate(v, old *corev1.PersistentVolume) field.ErrorList {
	errs := PersistentVolume(v)
	is, was := v.Spec.PersistentVolumeSource.DeepCopy(), &old.Spec.PersistentVolumeSource
	if is.CSI != nil && was.CSI != nil && was.CSI.ControllerExpandSecretRef == nil {
		is.CSI.ControllerExpandSecretRef = nil
	}
	if !apiequality.Semantic.DeepEqual(is, was) {
		errs = append(errs, field.Forbidden(field.NewPath("spec", "persistentvolumesource"), fmt.Sprintf("spec.persistentvolumesource is immutable after creation\n%v", diff.Diff(was, is))))
	}
	errs = append(errs, immutable(field.NewPath("volumeMode"), v.Spec.VolumeMode, old.Spec.VolumeMode)...)
	if old.Spec.NodeAffinity != nil {
		errs = append(errs, immutable(field.NewPath("nodeAffinity"), v.Spec.NodeAffinity, old.Spec.NodeAffinity)...)
	}
	if old.Spec.VolumeAttributesClassName != nil && v.Spec.VolumeAttributesClassName == nil {
		errs = append(errs, field.Forbidden(field.NewPath("spec", "volumeAttributesClassName"), "update from non-nil value to nil is forbidden"))
	}
	return errs
}
