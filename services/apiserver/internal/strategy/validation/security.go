package validation

import (
	"fmt"
	"regexp"
	"strings"

	corev1 "k8s.io/api/core/v1"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// securityContext looks at a container's own rights.
func (p *pod) securityContext(at *field.Path, s *corev1.SecurityContext) field.ErrorList {
	if s == nil {
		return nil
	}
	errs := userAndGroup(at, s.RunAsUser, s.RunAsGroup)
	if s.ProcMount != nil {
		errs = append(errs, oneOf(at.Child("procMount"), *s.ProcMount, corev1.DefaultProcMount, corev1.UnmaskedProcMount)...)
		if (p.spec.HostUsers == nil || *p.spec.HostUsers) && *s.ProcMount == corev1.UnmaskedProcMount {
			errs = append(errs, field.Invalid(at.Child("procMount"), *s.ProcMount, "`hostUsers` must be false to use `Unmasked`"))
		}
	}
	errs = append(errs, seccomp(at.Child("seccompProfile"), s.SeccompProfile)...)
	errs = append(errs, appArmor(at.Child("appArmorProfile"), s.AppArmorProfile)...)
	if s.AllowPrivilegeEscalation != nil && !*s.AllowPrivilegeEscalation {
		if s.Privileged != nil && *s.Privileged {
			errs = append(errs, field.Invalid(at, "<container security context>", "cannot set `allowPrivilegeEscalation` to false and `privileged` to true"))
		}
		if s.Capabilities != nil {
			for _, c := range s.Capabilities.Add {
				if c == "CAP_SYS_ADMIN" {
					errs = append(errs, field.Invalid(at, "<container security context>", "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN"))
				}
			}
		}
	}
	return append(errs, windows(at.Child("windowsOptions"), s.WindowsOptions)...)
}

func userAndGroup(at *field.Path, user, group *int64) field.ErrorList {
	var errs field.ErrorList
	if user != nil {
		errs = append(errs, each(at.Child("runAsUser"), *user, utilvalidation.IsValidUserID(*user))...)
	}
	if group != nil {
		errs = append(errs, each(at.Child("runAsGroup"), *group, utilvalidation.IsValidGroupID(*group))...)
	}
	return errs
}

// podSecurityContext looks at what holds for all containers.
func (p *pod) podSecurityContext(at *field.Path, s *corev1.PodSecurityContext) field.ErrorList {
	errs := p.hostNamespaces(at)
	if s == nil {
		return errs
	}
	if s.FSGroup != nil {
		errs = append(errs, each(at.Child("fsGroup"), *s.FSGroup, utilvalidation.IsValidGroupID(*s.FSGroup))...)
	}
	errs = append(errs, userAndGroup(at, s.RunAsUser, s.RunAsGroup)...)
	for i, group := range s.SupplementalGroups {
		errs = append(errs, each(at.Child("supplementalGroups").Index(i), group, utilvalidation.IsValidGroupID(group))...)
	}
	if s.SupplementalGroupsPolicy != nil {
		errs = append(errs, oneOf(at.Child("supplementalGroupsPolicy"), *s.SupplementalGroupsPolicy, corev1.SupplementalGroupsPolicyMerge, corev1.SupplementalGroupsPolicyStrict)...)
	}
	if s.FSGroupChangePolicy != nil {
		errs = append(errs, oneOf(at.Child("fsGroupChangePolicy"), *s.FSGroupChangePolicy, corev1.FSGroupChangeOnRootMismatch, corev1.FSGroupChangeAlways)...)
	}
	if s.SELinuxChangePolicy != nil {
		errs = append(errs, oneOf(at.Child("seLinuxChangePolicy"), *s.SELinuxChangePolicy, corev1.SELinuxChangePolicyMountOption, corev1.SELinuxChangePolicyRecursive)...)
	}
	errs = append(errs, seccomp(at.Child("seccompProfile"), s.SeccompProfile)...)
	errs = append(errs, appArmor(at.Child("appArmorProfile"), s.AppArmorProfile)...)
	errs = append(errs, windows(at.Child("windowsOptions"), s.WindowsOptions)...)
	return append(errs, p.sysctls(at.Child("sysctls"), s.Sysctls)...)
}

// hostNamespaces looks at what shares the host's namespaces.
func (p *pod) hostNamespaces(at *field.Path) field.ErrorList {
	var errs field.ErrorList
	if p.spec.HostNetwork {
		for _, list := range []struct {
			name       string
			containers []corev1.Container
		}{{"initContainers", p.spec.InitContainers}, {"containers", p.spec.Containers}} {
			for i, c := range list.containers {
				for j, port := range c.Ports {
					if port.HostPort != port.ContainerPort && (port.HostPort != 0 || !p.template) {
						errs = append(errs, field.Invalid(p.path.Child(list.name).Index(i).Child("ports").Index(j).Child("containerPort"), port.ContainerPort,
							"must match `hostPort` when `hostNetwork` is true"))
					}
				}
			}
		}
	}
	if p.spec.ShareProcessNamespace != nil && *p.spec.ShareProcessNamespace && p.spec.HostPID {
		errs = append(errs, field.Invalid(at.Child("shareProcessNamespace"), *p.spec.ShareProcessNamespace,
			"ShareProcessNamespace and HostPID cannot both be enabled"))
	}
	if p.spec.HostUsers != nil && !*p.spec.HostUsers {
		for _, f := range []flag{
			{"hostNetwork", p.spec.HostNetwork},
			{"hostPID", p.spec.HostPID},
			{"hostIPC", p.spec.HostIPC},
		} {
			if f.set {
				errs = append(errs, field.Forbidden(p.path.Child(f.name), "when `hostUsers` is false"))
			}
		}
	}
	return errs
}

func seccomp(at *field.Path, s *corev1.SeccompProfile) field.ErrorList {
	if s == nil {
		return nil
	}
	if s.Type == corev1.SeccompProfileTypeLocalhost {
		if s.LocalhostProfile == nil {
			return field.ErrorList{field.Required(at.Child("localhostProfile"), "must be set when seccomp type is Localhost")}
		}
		return descending(at.Child("localhostProfile"), *s.LocalhostProfile)
	}
	var errs field.ErrorList
	if s.LocalhostProfile != nil {
		errs = append(errs, field.Invalid(at.Child("localhostProfile"), *s.LocalhostProfile, "can only be set when seccomp type is Localhost"))
	}
	if s.Type == "" {
		return append(errs, field.Required(at.Child("type"), "type is required when seccompProfile is set"))
	}
	return append(errs, oneOf(at.Child("type"), s.Type, corev1.SeccompProfileTypeLocalhost, corev1.SeccompProfileTypeRuntimeDefault, corev1.SeccompProfileTypeUnconfined)...)
}

func appArmor(at *field.Path, a *corev1.AppArmorProfile) field.ErrorList {
	if a == nil {
		return nil
	}
	if a.Type == corev1.AppArmorProfileTypeLocalhost {
		if a.LocalhostProfile == nil {
			return field.ErrorList{field.Required(at.Child("localhostProfile"), "must be set when AppArmor type is Localhost")}
		}
		profile := strings.TrimSpace(*a.LocalhostProfile)
		switch {
		case profile != *a.LocalhostProfile:
			return field.ErrorList{field.Invalid(at.Child("localhostProfile"), *a.LocalhostProfile, "must not be padded with whitespace")}
		case profile == "":
			return field.ErrorList{field.Required(at.Child("localhostProfile"), "must be set when AppArmor type is Localhost")}
		}
		return nil
	}
	var errs field.ErrorList
	if a.LocalhostProfile != nil {
		errs = append(errs, field.Invalid(at.Child("localhostProfile"), *a.LocalhostProfile, "can only be set when AppArmor type is Localhost"))
	}
	if a.Type == "" {
		return append(errs, field.Required(at.Child("type"), "type is required when appArmorProfile is set"))
	}
	return append(errs, oneOf(at.Child("type"), a.Type, corev1.AppArmorProfileTypeLocalhost, corev1.AppArmorProfileTypeRuntimeDefault, corev1.AppArmorProfileTypeUnconfined)...)
}

func windows(at *field.Path, w *corev1.WindowsSecurityContextOptions) field.ErrorList {
	if w == nil {
		return nil
	}
	var errs field.ErrorList
	if w.GMSACredentialSpecName != nil {
		errs = append(errs, dnsSubdomain(at.Child("gmsaCredentialSpecName"), *w.GMSACredentialSpecName)...)
	}
	if w.GMSACredentialSpec != nil && *w.GMSACredentialSpec == "" {
		errs = append(errs, field.Invalid(at.Child("gmsaCredentialSpec"), *w.GMSACredentialSpec, "gmsaCredentialSpec cannot be an empty string"))
	}
	if w.RunAsUserName != nil && *w.RunAsUserName == "" {
		errs = append(errs, field.Invalid(at.Child("runAsUserName"), *w.RunAsUserName, "runAsUserName cannot be an empty string"))
	}
	return errs
}

// sysctlPattern is Kubernetes': words of lower case, in parts that dots or slashes divide.
const sysctlPattern = `([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?`

const maxSysctl = 253

var sysctlName = regexp.MustCompile("^" + sysctlPattern + "$")

func (p *pod) sysctls(at *field.Path, list []corev1.Sysctl) field.ErrorList {
	var errs field.ErrorList
	seen := names{}
	for i, s := range list {
		at := at.Index(i).Child("name")
		switch {
		case s.Name == "":
			errs = append(errs, field.Required(at, ""))
			continue
		case len(s.Name) > maxSysctl || !sysctlName.MatchString(s.Name):
			errs = append(errs, field.Invalid(at, s.Name, fmt.Sprintf("must have at most %d characters and match regex %s", maxSysctl, sysctlPattern)))
			continue
		}
		if seen.taken(s.Name) {
			errs = append(errs, field.Duplicate(at, s.Name))
		}
		name := strings.ReplaceAll(s.Name, "/", ".")
		if p.spec.HostNetwork && strings.HasPrefix(name, "net.") {
			errs = append(errs, field.Invalid(at, s.Name, "may not be specified when 'hostNetwork' is true"))
		}
		if p.spec.HostIPC && (strings.HasPrefix(name, "kernel.shm") || strings.HasPrefix(name, "kernel.msg") || strings.HasPrefix(name, "fs.mqueue.") || name == "kernel.sem") {
			errs = append(errs, field.Invalid(at, s.Name, "may not be specified when 'hostIPC' is true"))
		}
	}
	return errs
}
