package validation

import (
	"path"
	"strings"

	corev1 "k8s.io/api/core/v1"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

const (
	maxFileMode = 0o777
	badFileMode = "must be a number between 0 and 0777 (octal), both inclusive"
)

// podVolumes looks at the volumes, and remembers them for those that mount them.
func (p *pod) podVolumes(at *field.Path) field.ErrorList {
	var errs field.ErrorList
	for i := range p.spec.Volumes {
		v, at := &p.spec.Volumes[i], at.Index(i)
		problems := volumeSource(at, v)
		switch {
		case v.Name == "":
			problems = append(problems, field.Required(at.Child("name"), ""))
		case p.volumes[v.Name] != nil:
			problems = append(problems, field.Duplicate(at.Child("name"), v.Name))
		default:
			problems = append(problems, dnsLabel(at.Child("name"), v.Name)...)
		}
		if len(problems) == 0 {
			p.volumes[v.Name] = v
		}
		errs = append(errs, problems...)
	}
	return errs
}

// volumeSource wants exactly one source.
func volumeSource(at *field.Path, v *corev1.Volume) field.ErrorList {
	var errs field.ErrorList
	count := 0
	take := func(name string, set bool, check func(*field.Path) field.ErrorList) {
		if !set {
			return
		}
		if count++; count > 1 {
			errs = append(errs, field.Forbidden(at.Child(name), "may not specify more than 1 volume type"))
			return
		}
		if check != nil {
			errs = append(errs, check(at.Child(name))...)
		}
	}
	take("emptyDir", v.EmptyDir != nil, func(at *field.Path) field.ErrorList { return emptyDir(at, v.EmptyDir) })
	take("hostPath", v.HostPath != nil, func(at *field.Path) field.ErrorList { return hostPath(at, v.HostPath) })
	take("gitRepo", v.GitRepo != nil, func(at *field.Path) field.ErrorList { return required(at.Child("repository"), v.GitRepo.Repository) })
	take("secret", v.Secret != nil, func(at *field.Path) field.ErrorList {
		errs := required(at.Child("secretName"), v.Secret.SecretName)
		return append(errs, keyFiles(at, v.Secret.DefaultMode, v.Secret.Items)...)
	})
	take("configMap", v.ConfigMap != nil, func(at *field.Path) field.ErrorList {
		errs := required(at.Child("name"), v.ConfigMap.Name)
		return append(errs, keyFiles(at, v.ConfigMap.DefaultMode, v.ConfigMap.Items)...)
	})
	take("downwardAPI", v.DownwardAPI != nil, func(at *field.Path) field.ErrorList {
		errs := fileMode(at.Child("defaultMode"), v.DownwardAPI.DefaultMode)
		for _, item := range v.DownwardAPI.Items {
			errs = append(errs, downwardFile(at, &item)...)
		}
		return errs
	})
	take("projected", v.Projected != nil, func(at *field.Path) field.ErrorList { return projected(at, v.Projected) })
	take("persistentVolumeClaim", v.PersistentVolumeClaim != nil, func(at *field.Path) field.ErrorList {
		return required(at.Child("claimName"), v.PersistentVolumeClaim.ClaimName)
	})
	take("nfs", v.NFS != nil, func(at *field.Path) field.ErrorList {
		errs := required(at.Child("server"), v.NFS.Server)
		errs = append(errs, required(at.Child("path"), v.NFS.Path)...)
		if !path.IsAbs(v.NFS.Path) {
			errs = append(errs, field.Invalid(at.Child("path"), v.NFS.Path, "must be an absolute path"))
		}
		return errs
	})
	take("iscsi", v.ISCSI != nil, func(at *field.Path) field.ErrorList { return iscsi(at, iscsiInPod(v.ISCSI), "") })
	take("fc", v.FC != nil, func(at *field.Path) field.ErrorList { return fibreChannel(at, v.FC) })
	take("flexVolume", v.FlexVolume != nil, func(at *field.Path) field.ErrorList { return flexVolume(at, v.FlexVolume.Driver, v.FlexVolume.Options) })
	take("csi", v.CSI != nil, func(at *field.Path) field.ErrorList { return csiDriverName(at.Child("driver"), v.CSI.Driver) })
	take("ephemeral", v.Ephemeral != nil, func(at *field.Path) field.ErrorList {
		if v.Ephemeral.VolumeClaimTemplate == nil {
			return field.ErrorList{field.Required(at.Child("volumeClaimTemplate"), "")}
		}
		return PersistentVolumeClaimSpec(&v.Ephemeral.VolumeClaimTemplate.Spec, at.Child("volumeClaimTemplate", "spec"))
	})
	take("image", v.Image != nil, func(at *field.Path) field.ErrorList {
		return requiredOneOf(at.Child("pullPolicy"), v.Image.PullPolicy, corev1.PullAlways, corev1.PullIfNotPresent, corev1.PullNever)
	})
	for _, c := range podCloudVolumes(v) {
		take(c.name, c.set, c.look)
	}
	removed := []struct {
		name string
		set  bool
	}{
		{"glusterfs", v.Glusterfs != nil}, {"flocker", v.Flocker != nil}, {"rbd", v.RBD != nil}, {"cephfs", v.CephFS != nil}, {"quobyte", v.Quobyte != nil},
		{"photonPersistentDisk", v.PhotonPersistentDisk != nil}, {"storageos", v.StorageOS != nil}, {"scaleIO", v.ScaleIO != nil},
	}
	for _, r := range removed {
		take(r.name, r.set, nil)
	}
	if count == 0 {
		errs = append(errs, field.Required(at, "must specify a volume type"))
	}
	return errs
}

func emptyDir(at *field.Path, e *corev1.EmptyDirVolumeSource) field.ErrorList {
	if e.SizeLimit != nil && e.SizeLimit.Sign() < 0 {
		return field.ErrorList{field.Forbidden(at.Child("sizeLimit"), "SizeLimit field must be a valid resource quantity")}
	}
	return nil
}

func hostPath(at *field.Path, h *corev1.HostPathVolumeSource) field.ErrorList {
	if h.Path == "" {
		return field.ErrorList{field.Required(at.Child("path"), "")}
	}
	errs := noBacksteps(at.Child("path"), h.Path)
	if h.Type != nil {
		errs = append(errs, oneOf(at.Child("type"), *h.Type, corev1.HostPathUnset, corev1.HostPathDirectoryOrCreate, corev1.HostPathDirectory,
			corev1.HostPathFileOrCreate, corev1.HostPathFile, corev1.HostPathSocket, corev1.HostPathCharDev, corev1.HostPathBlockDev)...)
	}
	return errs
}

func csiDriverName(at *field.Path, name string) field.ErrorList {
	if name == "" {
		return field.ErrorList{field.Required(at, "")}
	}
	var errs field.ErrorList
	if len(name) > 63 {
		errs = append(errs, field.TooLong(at, name, 63))
	}
	return append(errs, each(at, name, utilvalidation.IsDNS1123Subdomain(strings.ToLower(name)))...)
}

func fileMode(at *field.Path, mode *int32) field.ErrorList {
	if mode != nil && (*mode < 0 || *mode > maxFileMode) {
		return field.ErrorList{field.Invalid(at, *mode, badFileMode)}
	}
	return nil
}

// keyFiles looks at the files that are made of an object's keys.
func keyFiles(at *field.Path, mode *int32, items []corev1.KeyToPath) field.ErrorList {
	errs := fileMode(at.Child("defaultMode"), mode)
	for i, item := range items {
		at := at.Child("items").Index(i)
		errs = append(errs, required(at.Child("key"), item.Key)...)
		errs = append(errs, required(at.Child("path"), item.Path)...)
		errs = append(errs, localPath(at.Child("path"), item.Path, false)...)
		errs = append(errs, fileMode(at.Child("mode"), item.Mode)...)
	}
	return errs
}

func downwardFile(at *field.Path, file *corev1.DownwardAPIVolumeFile) field.ErrorList {
	errs := required(at.Child("path"), file.Path)
	errs = append(errs, localPath(at.Child("path"), file.Path, false)...)
	switch {
	case file.FieldRef != nil && file.ResourceFieldRef != nil:
		errs = append(errs, field.Invalid(at, "resource", "fieldRef and resourceFieldRef can not be specified simultaneously"))
	case file.FieldRef != nil:
		errs = append(errs, fieldRef(at.Child("fieldRef"), file.FieldRef, volumeFields)...)
	case file.ResourceFieldRef != nil:
		errs = append(errs, resourceFieldRef(at.Child("resourceFieldRef"), file.ResourceFieldRef, true)...)
	default:
		errs = append(errs, field.Required(at, "one of fieldRef and resourceFieldRef is required"))
	}
	return append(errs, fileMode(at.Child("mode"), file.Mode)...)
}

// minTokenSeconds and maxTokenSeconds are the bounds of a projected token's life.
const (
	minTokenSeconds = 10 * 60
	maxTokenSeconds = 1 << 32
)

func projected(at *field.Path, p *corev1.ProjectedVolumeSource) field.ErrorList {
	errs := fileMode(at.Child("defaultMode"), p.DefaultMode)
	paths := names{}
	once := func(at *field.Path, file string) {
		if file != "" && paths.taken(file) {
			errs = append(errs, field.Invalid(at, file, "conflicting duplicate paths"))
		}
	}
	for i := range p.Sources {
		source, at := &p.Sources[i], at.Child("sources").Index(i)
		count := 0
		if s := source.Secret; s != nil {
			count++
			errs = append(errs, required(at.Child("secret", "name"), s.Name)...)
			errs = append(errs, keyFiles(at.Child("secret"), nil, s.Items)...)
			for _, item := range s.Items {
				once(at.Child("secret"), item.Path)
			}
		}
		if c := source.ConfigMap; c != nil {
			count++
			errs = append(errs, required(at.Child("configMap", "name"), c.Name)...)
			errs = append(errs, keyFiles(at.Child("configMap"), nil, c.Items)...)
			for _, item := range c.Items {
				once(at.Child("configMap"), item.Path)
			}
		}
		if d := source.DownwardAPI; d != nil {
			count++
			for j := range d.Items {
				errs = append(errs, downwardFile(at.Child("downwardAPI"), &d.Items[j])...)
				once(at.Child("downwardAPI"), d.Items[j].Path)
			}
		}
		if token := source.ServiceAccountToken; token != nil {
			count++
			errs = append(errs, projectedToken(at.Child("serviceAccountToken"), token)...)
			once(at.Child("serviceAccountToken"), token.Path)
		}
		if source.ClusterTrustBundle != nil {
			count++
		}
		if source.PodCertificate != nil {
			count++
		}
		// None is valid, as in Kubernetes: what is off there was taken out before.
		if count > 1 {
			errs = append(errs, field.Forbidden(at, "may not specify more than 1 volume type per source"))
		}
	}
	return errs
}

func projectedToken(at *field.Path, token *corev1.ServiceAccountTokenProjection) field.ErrorList {
	var errs field.ErrorList
	if s := token.ExpirationSeconds; s != nil {
		if *s < minTokenSeconds {
			errs = append(errs, field.Invalid(at.Child("expirationSeconds"), *s, "may not specify a duration less than 10 minutes"))
		}
		if *s > maxTokenSeconds {
			errs = append(errs, field.Invalid(at.Child("expirationSeconds"), *s, "may not specify a duration larger than 2^32 seconds"))
		}
	}
	errs = append(errs, required(at.Child("path"), token.Path)...)
	if token.Path != "" {
		errs = append(errs, localPath(at.Child("path"), token.Path, false)...)
	}
	return errs
}

// localPath looks at a path inside a volume. Where strict, the volume's own files are not to be named.
func localPath(at *field.Path, file string, strict bool) field.ErrorList {
	if path.IsAbs(file) {
		return field.ErrorList{field.Invalid(at, file, "must be a relative path")}
	}
	errs := noBacksteps(at, file)
	if strings.HasPrefix(file, "..") && len(errs) == 0 && !strict {
		errs = append(errs, field.Invalid(at, file, "must not start with '..'"))
	}
	return errs
}

func noBacksteps(at *field.Path, file string) field.ErrorList {
	for part := range strings.SplitSeq(file, "/") {
		if part == ".." {
			return field.ErrorList{field.Invalid(at, file, "must not contain '..'")}
		}
	}
	return nil
}

func (p *pod) volumeMounts(at *field.Path, c *corev1.Container, devices names) field.ErrorList {
	var errs field.ErrorList
	seen := names{}
	for i := range c.VolumeMounts {
		m, at := &c.VolumeMounts[i], at.Index(i)
		errs = append(errs, required(at.Child("name"), m.Name)...)
		volume := p.volumes[m.Name]
		if m.Name != "" && volume == nil {
			errs = append(errs, field.NotFound(at.Child("name"), m.Name))
		}
		errs = append(errs, required(at.Child("mountPath"), m.MountPath)...)
		if seen.taken(m.MountPath) {
			errs = append(errs, field.Invalid(at.Child("mountPath"), m.MountPath, "must be unique"))
		}
		if devices[m.MountPath] {
			errs = append(errs, field.Invalid(at.Child("mountPath"), m.MountPath, "must not already exist as a path in volumeDevices"))
		}
		for _, d := range c.VolumeDevices {
			if m.Name != "" && d.Name == m.Name {
				errs = append(errs, field.Invalid(at.Child("name"), m.Name, "must not already exist in volumeDevices"))
			}
		}
		if m.SubPath != "" && m.SubPathExpr != "" {
			errs = append(errs, field.Invalid(at.Child("subPathExpr"), m.SubPathExpr, "subPathExpr and subPath are mutually exclusive"))
		}
		if m.SubPath != "" {
			errs = append(errs, descending(at.Child("subPath"), m.SubPath)...)
		}
		if m.SubPathExpr != "" {
			errs = append(errs, descending(at.Child("subPathExpr"), m.SubPathExpr)...)
		}
		errs = append(errs, mountPropagation(at.Child("mountPropagation"), m, c)...)
		errs = append(errs, recursiveReadOnly(at.Child("recursiveReadOnly"), m)...)
	}
	return errs
}

// descending looks at a path that may not leave where it begins.
func descending(at *field.Path, file string) field.ErrorList {
	var errs field.ErrorList
	if path.IsAbs(file) {
		errs = append(errs, field.Invalid(at, file, "must be a relative path"))
	}
	return append(errs, noBacksteps(at, file)...)
}

func mountPropagation(at *field.Path, m *corev1.VolumeMount, c *corev1.Container) field.ErrorList {
	if m.MountPropagation == nil {
		return nil
	}
	errs := oneOf(at, *m.MountPropagation, corev1.MountPropagationBidirectional, corev1.MountPropagationHostToContainer, corev1.MountPropagationNone)
	privileged := c.SecurityContext != nil && c.SecurityContext.Privileged != nil && *c.SecurityContext.Privileged
	if *m.MountPropagation == corev1.MountPropagationBidirectional && !privileged {
		errs = append(errs, field.Forbidden(at, "Bidirectional mount propagation is available only to privileged containers"))
	}
	return errs
}

func recursiveReadOnly(at *field.Path, m *corev1.VolumeMount) field.ErrorList {
	if m.RecursiveReadOnly == nil {
		return nil
	}
	mode := *m.RecursiveReadOnly
	errs := oneOf(at, mode, corev1.RecursiveReadOnlyDisabled, corev1.RecursiveReadOnlyEnabled, corev1.RecursiveReadOnlyIfPossible)
	if len(errs) > 0 || mode == corev1.RecursiveReadOnlyDisabled {
		return errs
	}
	if !m.ReadOnly {
		errs = append(errs, field.Forbidden(at, "may only be specified when readOnly is true"))
	}
	if m.MountPropagation != nil && *m.MountPropagation != corev1.MountPropagationNone {
		errs = append(errs, field.Forbidden(at, "may only be specified when mountPropagation is None or not specified"))
	}
	return errs
}

func (p *pod) volumeDevices(at *field.Path, c *corev1.Container) field.ErrorList {
	var errs field.ErrorList
	byPath, byName := names{}, names{}
	mounted := names{}
	for _, m := range c.VolumeMounts {
		mounted[m.Name], mounted["path "+m.MountPath] = true, true
	}
	for i, d := range c.VolumeDevices {
		at := at.Index(i)
		errs = append(errs, required(at.Child("name"), d.Name)...)
		if byName.taken(d.Name) {
			errs = append(errs, field.Invalid(at.Child("name"), d.Name, "must be unique"))
		}
		if d.Name != "" {
			volume := p.volumes[d.Name]
			if volume == nil {
				errs = append(errs, field.NotFound(at.Child("name"), d.Name))
			} else if volume.PersistentVolumeClaim == nil && volume.Ephemeral == nil {
				errs = append(errs, field.Invalid(at.Child("name"), d.Name, "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode"))
			}
		}
		if d.DevicePath == "" {
			errs = append(errs, field.Required(at.Child("devicePath"), ""))
		}
		if byPath.taken(d.DevicePath) {
			errs = append(errs, field.Invalid(at.Child("devicePath"), d.DevicePath, "must be unique"))
		}
		if d.DevicePath != "" {
			errs = append(errs, noBacksteps(at.Child("devicePath"), d.DevicePath)...)
		}
		if mounted["path "+d.DevicePath] {
			errs = append(errs, field.Invalid(at.Child("devicePath"), d.DevicePath, "must not already exist as a path in volumeMounts"))
		}
		if mounted[d.Name] {
			errs = append(errs, field.Invalid(at.Child("name"), d.Name, "must not already exist in volumeMounts"))
		}
	}
	return errs
}
