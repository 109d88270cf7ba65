package validation

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// source is one kind of volume, whether it is set, and what has to be looked at in it.
type source struct {
	name string
	set  bool
	look func(*field.Path) field.ErrorList
}

// cloudVolumes are the kinds of plugins that Kubernetes had built in and that CSI drivers serve now, which are the same in pods and in PersistentVolumes.
func cloudVolumes(gce *corev1.GCEPersistentDiskVolumeSource, ebs *corev1.AWSElasticBlockStoreVolumeSource, disk *corev1.AzureDiskVolumeSource,
	vsphere *corev1.VsphereVirtualDiskVolumeSource, portworx *corev1.PortworxVolumeSource,
) []source {
	return []source{
		{"gcePersistentDisk", gce != nil, func(at *field.Path) field.ErrorList {
			return append(required(at.Child("pdName"), gce.PDName), diskPartition(at, gce.Partition)...)
		}},
		{"awsElasticBlockStore", ebs != nil, func(at *field.Path) field.ErrorList {
			return append(required(at.Child("volumeID"), ebs.VolumeID), diskPartition(at, ebs.Partition)...)
		}},
		{"azureDisk", disk != nil, func(at *field.Path) field.ErrorList { return azureDisk(at, disk) }},
		{"vsphereVolume", vsphere != nil, func(at *field.Path) field.ErrorList { return required(at.Child("volumePath"), vsphere.VolumePath) }},
		{"portworxVolume", portworx != nil, func(at *field.Path) field.ErrorList { return required(at.Child("volumeID"), portworx.VolumeID) }},
	}
}

func diskPartition(at *field.Path, n int32) field.ErrorList {
	if n < 0 || n > 255 {
		return field.ErrorList{field.Invalid(at.Child("partition"), n, "must be between 0 and 255, inclusive")}
	}
	return nil
}

func azureDisk(at *field.Path, d *corev1.AzureDiskVolumeSource) field.ErrorList {
	errs := append(required(at.Child("diskName"), d.DiskName), required(at.Child("diskURI"), d.DataDiskURI)...)
	if d.CachingMode != nil {
		errs = append(errs, requiredOneOf(at.Child("cachingMode"), *d.CachingMode, corev1.AzureDataDiskCachingNone, corev1.AzureDataDiskCachingReadOnly, corev1.AzureDataDiskCachingReadWrite)...)
	}
	if d.Kind == nil {
		return errs
	}
	errs = append(errs, requiredOneOf(at.Child("kind"), *d.Kind, corev1.AzureDedicatedBlobDisk, corev1.AzureManagedDisk, corev1.AzureSharedBlobDisk)...)
	prefix, form := "https://", "https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd"
	if *d.Kind == corev1.AzureManagedDisk {
		prefix, form = "/subscriptions/", "/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}"
	}
	if !strings.HasPrefix(d.DataDiskURI, prefix) {
		errs = append(errs, field.NotSupported(at.Child("diskURI"), d.DataDiskURI, []string{form}))
	}
	return errs
}

// podCloudVolumes are those of a pod.
func podCloudVolumes(v *corev1.Volume) []source {
	return append(cloudVolumes(v.GCEPersistentDisk, v.AWSElasticBlockStore, v.AzureDisk, v.VsphereVolume, v.PortworxVolume),
		source{"azureFile", v.AzureFile != nil, func(at *field.Path) field.ErrorList {
			return append(required(at.Child("secretName"), v.AzureFile.SecretName), required(at.Child("shareName"), v.AzureFile.ShareName)...)
		}},
		source{"cinder", v.Cinder != nil, func(at *field.Path) field.ErrorList {
			errs := required(at.Child("volumeID"), v.Cinder.VolumeID)
			if ref := v.Cinder.SecretRef; ref != nil {
				errs = append(errs, required(at.Child("secretRef", "name"), ref.Name)...)
			}
			return errs
		}})
}

// persistentCloudVolumes are those of a PersistentVolume.
func persistentCloudVolumes(v *corev1.PersistentVolumeSource) []source {
	return append(cloudVolumes(v.GCEPersistentDisk, v.AWSElasticBlockStore, v.AzureDisk, v.VsphereVolume, v.PortworxVolume),
		source{"azureFile", v.AzureFile != nil, func(at *field.Path) field.ErrorList {
			errs := append(required(at.Child("secretName"), v.AzureFile.SecretName), required(at.Child("shareName"), v.AzureFile.ShareName)...)
			if n := v.AzureFile.SecretNamespace; n != nil {
				errs = append(errs, required(at.Child("secretNamespace"), *n)...)
			}
			return errs
		}},
		source{"cinder", v.Cinder != nil, func(at *field.Path) field.ErrorList {
			errs := required(at.Child("volumeID"), v.Cinder.VolumeID)
			if ref := v.Cinder.SecretRef; ref != nil {
				errs = append(append(errs, required(at.Child("secretRef", "name"), ref.Name)...), required(at.Child("secretRef", "namespace"), ref.Namespace)...)
			}
			return errs
		}})
}
