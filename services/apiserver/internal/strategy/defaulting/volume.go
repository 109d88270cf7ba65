package defaulting

import corev1 "k8s.io/api/core/v1"

// fileMode is what files of a volume that is made of objects may be used for, unless the volume says it.
const fileMode int32 = 0o644

// tokenSeconds is how long a projected token is valid.
const tokenSeconds int64 = 3600

func volume(v *corev1.Volume) {
	if v.VolumeSource == (corev1.VolumeSource{}) {
		v.EmptyDir = &corev1.EmptyDirVolumeSource{}
	}
	switch {
	case v.HostPath != nil:
		orPointer(&v.HostPath.Type, corev1.HostPathUnset)
	case v.Secret != nil:
		orPointer(&v.Secret.DefaultMode, fileMode)
	case v.ConfigMap != nil:
		orPointer(&v.ConfigMap.DefaultMode, fileMode)
	case v.DownwardAPI != nil:
		orPointer(&v.DownwardAPI.DefaultMode, fileMode)
		fieldVersions(v.DownwardAPI.Items)
	case v.Projected != nil:
		projected(v.Projected)
	case v.Ephemeral != nil && v.Ephemeral.VolumeClaimTemplate != nil:
		PersistentVolumeClaimSpec(&v.Ephemeral.VolumeClaimTemplate.Spec)
	case v.Image != nil:
		orDefault(&v.Image.PullPolicy, pullPolicy(v.Image.Reference))
	default:
		removedVolume(v)
	}
}

func projected(p *corev1.ProjectedVolumeSource) {
	orPointer(&p.DefaultMode, fileMode)
	for i := range p.Sources {
		if token := p.Sources[i].ServiceAccountToken; token != nil {
			orPointer(&token.ExpirationSeconds, tokenSeconds)
		}
		if d := p.Sources[i].DownwardAPI; d != nil {
			fieldVersions(d.Items)
		}
	}
}

func fieldVersions(files []corev1.DownwardAPIVolumeFile) {
	for i := range files {
		if files[i].FieldRef != nil {
			orDefault(&files[i].FieldRef.APIVersion, "v1")
		}
	}
}

// removedVolume completes the kinds of volumes that Kubernetes itself has taken out or handed to CSI drivers, and still accepts.
func removedVolume(v *corev1.Volume) {
	switch {
	case v.ISCSI != nil:
		orDefault(&v.ISCSI.ISCSIInterface, "default")
	case v.RBD != nil:
		orDefault(&v.RBD.RBDPool, "rbd")
		orDefault(&v.RBD.RadosUser, "admin")
		orDefault(&v.RBD.Keyring, "/etc/ceph/keyring")
	case v.ScaleIO != nil:
		orDefault(&v.ScaleIO.StorageMode, "ThinProvisioned")
		orDefault(&v.ScaleIO.FSType, "xfs")
	case v.AzureDisk != nil:
		caching, kind := corev1.AzureDataDiskCachingReadWrite, corev1.AzureSharedBlobDisk
		orPointer(&v.AzureDisk.CachingMode, caching)
		orPointer(&v.AzureDisk.Kind, kind)
		orPointer(&v.AzureDisk.FSType, "ext4")
		orPointer(&v.AzureDisk.ReadOnly, false)
	}
}

// PersistentVolumeClaimSpec completes a claim's wishes.
func PersistentVolumeClaimSpec(spec *corev1.PersistentVolumeClaimSpec) {
	orPointer(&spec.VolumeMode, corev1.PersistentVolumeFilesystem)
}
