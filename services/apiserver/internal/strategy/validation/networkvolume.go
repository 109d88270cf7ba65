package validation

import (
	"maps"
	"regexp"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Names of iSCSI nodes (RFC 3720, 3.2.6.3), as Kubernetes takes them.
var iscsiNames = map[string]*regexp.Regexp{
	"iqn": regexp.MustCompile(`iqn\.\d{4}-\d{2}\.([[:alnum:]-.]+)(:[^,;*&$|\s]+)$`),
	"eui": regexp.MustCompile(`^eui.[[:alnum:]]{16}$`),
	"naa": regexp.MustCompile(`^naa.[[:alnum:]]{32}$`),
}

const (
	largestLUN = 255
	// longestInterface is how long the name may be of an initiator's interface that a volume has for itself.
	longestInterface = 64
)

func iscsiName(at *field.Path, name string) field.ErrorList {
	for kind, is := range iscsiNames {
		if strings.HasPrefix(name, kind) {
			if is.MatchString(name) {
				return nil
			}
			return field.ErrorList{field.Invalid(at, name, "must be valid format")}
		}
	}
	return field.ErrorList{field.Invalid(at, name, "must be valid format starting with iqn, eui, or naa")}
}

// iscsi is for volumes in pods and, with a name, for PersistentVolumes.
func iscsi(at *field.Path, v *corev1.ISCSIPersistentVolumeSource, name string) field.ErrorList {
	errs := required(at.Child("targetPortal"), v.TargetPortal)
	if v.IQN == "" {
		errs = append(errs, field.Required(at.Child("iqn"), ""))
	} else {
		errs = append(errs, iscsiName(at.Child("iqn"), v.IQN)...)
	}
	errs = append(errs, lun(at.Child("lun"), v.Lun)...)
	if (v.DiscoveryCHAPAuth || v.SessionCHAPAuth) && v.SecretRef == nil {
		errs = append(errs, field.Required(at.Child("secretRef"), ""))
	}
	if name != "" && v.SecretRef != nil {
		errs = append(errs, required(at.Child("secretRef", "name"), v.SecretRef.Name)...)
	}
	if v.InitiatorName != nil {
		errs = append(errs, iscsiName(at.Child("initiatorname"), *v.InitiatorName)...)
		if name != "" && len(name+":"+v.TargetPortal) > longestInterface {
			errs = append(errs, field.Invalid(at.Child("targetportal"), v.TargetPortal,
				"Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters if iscsi.initiatorName is specified."))
		}
	}
	return errs
}

// iscsiInPod is what a PersistentVolume would say.
func iscsiInPod(v *corev1.ISCSIVolumeSource) *corev1.ISCSIPersistentVolumeSource {
	out := &corev1.ISCSIPersistentVolumeSource{
		TargetPortal: v.TargetPortal, IQN: v.IQN, Lun: v.Lun, DiscoveryCHAPAuth: v.DiscoveryCHAPAuth, SessionCHAPAuth: v.SessionCHAPAuth, InitiatorName: v.InitiatorName,
	}
	if v.SecretRef != nil {
		out.SecretRef = &corev1.SecretReference{Name: v.SecretRef.Name}
	}
	return out
}

func lun(at *field.Path, number int32) field.ErrorList {
	if number < 0 || number > largestLUN {
		return field.ErrorList{field.Invalid(at, number, validation.InclusiveRangeError(0, largestLUN))}
	}
	return nil
}

func fibreChannel(at *field.Path, v *corev1.FCVolumeSource) field.ErrorList {
	var errs field.ErrorList
	switch ports, names := len(v.TargetWWNs), len(v.WWIDs); {
	case ports == 0 && names == 0:
		errs = append(errs, field.Required(at.Child("targetWWNs"), "must specify either targetWWNs or wwids, but not both"))
	case ports > 0 && names > 0:
		errs = append(errs, field.Invalid(at.Child("targetWWNs"), v.TargetWWNs, "targetWWNs and wwids can not be specified simultaneously"))
	}
	switch {
	case len(v.TargetWWNs) == 0:
	case v.Lun == nil:
		errs = append(errs, field.Required(at.Child("lun"), "lun is required if targetWWNs is specified"))
	default:
		errs = append(errs, lun(at.Child("lun"), *v.Lun)...)
	}
	return errs
}

// flexVolume keeps users from saying what the node says to drivers.
func flexVolume(at *field.Path, driver string, options map[string]string) field.ErrorList {
	errs := required(at.Child("driver"), driver)
	for _, key := range slices.Sorted(maps.Keys(options)) {
		namespace, _, _ := strings.Cut(key, "/")
		namespace = "." + strings.ToLower(namespace)
		if strings.HasSuffix(namespace, ".kubernetes.io") || strings.HasSuffix(namespace, ".k8s.io") {
			errs = append(errs, field.Invalid(at.Child("options").Key(key), key, "kubernetes.io and k8s.io namespaces are reserved"))
		}
	}
	return errs
}
