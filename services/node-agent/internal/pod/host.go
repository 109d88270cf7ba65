package pod

import (
	"fmt"
	"slices"
	"strings"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/services/node-agent/internal/status"
)

// safeSysctls are those that Kubernetes lets every pod set: they count in the pod's namespaces only and cannot harm other pods.
func safeSysctls() []string {
	return []string{
		"kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range",
		"net.ipv4.ip_unprivileged_port_start", "net.ipv4.ip_local_reserved_ports", "net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_fin_timeout",
		"net.ipv4.tcp_keepalive_intvl", "net.ipv4.tcp_keepalive_probes", "net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem",
	}
}

// Host is what the machine can do for pods.
type Host struct {
	// Sysctls are unsafe ones that the node's administrator allows, a * at the end standing for any rest.
	Sysctls []string
	// AppArmor says that the kernel enforces AppArmor profiles.
	AppArmor bool
}

// refuse says why the machine cannot run a pod, whatever else it runs.
func (h Host) refuse(p *corev1.Pod) *status.End {
	spec := p.GetSpec()
	if os := spec.GetOs().GetName(); os != "" && os != "linux" {
		return &status.End{Reason: "PodOSNotSupported", Message: "Pod was rejected: Failed to admit pod as the OS field doesn't match node OS"}
	}
	for _, s := range spec.GetSecurityContext().GetSysctls() {
		if why := h.sysctl(spec, strings.ReplaceAll(s.GetName(), "/", ".")); why != "" {
			return &status.End{Reason: "SysctlForbidden", Message: fmt.Sprintf("Pod was rejected: forbidden sysctl: %q %s", s.GetName(), why)}
		}
	}
	if !h.AppArmor && wantsAppArmor(p) {
		return &status.End{Reason: "AppArmor", Message: "Pod was rejected: Cannot enforce AppArmor: AppArmor is not enabled on the host"}
	}
	return nil
}

// sysctl says why a pod may not set a sysctl, empty when it may.
func (h Host) sysctl(spec *corev1.PodSpec, name string) string {
	allowed := slices.Contains(safeSysctls(), name) || slices.ContainsFunc(h.Sysctls, func(pattern string) bool {
		pattern = strings.ReplaceAll(pattern, "/", ".")
		prefix, any := strings.CutSuffix(pattern, "*")
		return name == pattern || any && strings.HasPrefix(name, prefix)
	})
	switch {
	case !allowed:
		return "not allowlisted"
	case spec.GetHostNetwork() && strings.HasPrefix(name, "net."):
		return "not allowed with host net enabled"
	case spec.GetHostIpc() && (strings.HasPrefix(name, "kernel.shm") || strings.HasPrefix(name, "kernel.msg") || strings.HasPrefix(name, "fs.mqueue.") || name == "kernel.sem"):
		return "not allowed with host ipc enabled"
	}
	return ""
}

func wantsAppArmor(p *corev1.Pod) bool {
	confined := func(profile *corev1.AppArmorProfile) bool {
		return profile.GetType() == "RuntimeDefault" || profile.GetType() == "Localhost"
	}
	ofPod := p.GetSpec().GetSecurityContext().GetAppArmorProfile()
	return slices.ContainsFunc(slices.Concat(p.GetSpec().GetInitContainers(), p.GetSpec().GetContainers()), func(c *corev1.Container) bool {
		if c.GetSecurityContext().HasAppArmorProfile() {
			return confined(c.GetSecurityContext().GetAppArmorProfile())
		}
		return confined(ofPod)
	})
}
