package admission

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/sets"
)

// subject is the pod that is looked at, by the rules of a minor version.
type subject struct {
	meta    *metav1.ObjectMeta
	spec    *corev1.PodSpec
	version int
}

// violation is what a check found.
type violation struct{ reason, detail string }

// check is one control of the Pod Security Standards (https://kubernetes.io/docs/concepts/security/pod-security-standards/).
type check struct {
	level level
	// since is the minor version from which the control is part of the level; replaced is the one from which a stricter control of the level restricted
	// covers it, 0 for never.
	since, replaced int
	check           func(subject) *violation
}

// checks are in the order in which Kubernetes names violations.
var checks = []check{
	{baseline, 0, 0, appArmorProfile},
	{baseline, 0, 22, baselineCapabilities},
	{baseline, 0, 0, hostNamespaces},
	{baseline, 0, 1, hostPathVolumes},
	{baseline, 0, 0, hostPorts},
	{baseline, 34, 0, probeHosts},
	{baseline, 0, 0, privilegedContainers},
	{baseline, 0, 35, baselineProcMount},
	{baseline, 0, 0, seLinuxOptions},
	{baseline, 0, 19, baselineSeccomp},
	{baseline, 0, 0, sysctls},
	{baseline, 0, 0, windowsHostProcess},
	{restricted, 8, 0, privilegeEscalation},
	{restricted, 22, 0, restrictedCapabilities},
	{restricted, 35, 0, procMount},
	{restricted, 0, 0, restrictedVolumes},
	{restricted, 0, 0, runAsNonRoot},
	{restricted, 23, 0, runAsUser},
	{restricted, 19, 0, restrictedSeccomp},
}

// eachContainer visits all containers: init containers, those that run, and ephemeral ones.
func eachContainer(spec *corev1.PodSpec, visit func(*corev1.Container)) {
	for i := range spec.InitContainers {
		visit(&spec.InitContainers[i])
	}
	for i := range spec.Containers {
		visit(&spec.Containers[i])
	}
	for i := range spec.EphemeralContainers {
		c := corev1.Container(spec.EphemeralContainers[i].EphemeralContainerCommon)
		visit(&c)
	}
}

// where returns the names of the containers that a condition holds for.
func (s subject) where(condition func(*corev1.Container) bool) []string {
	var names []string
	eachContainer(s.spec, func(c *corev1.Container) {
		if condition(c) {
			names = append(names, c.Name)
		}
	})
	return names
}

// windows says whether the pod is one for which rules of Linux do not count.
func (s subject) windows() bool {
	return s.version >= 25 && s.spec.OS != nil && s.spec.OS.Name == corev1.Windows
}

// userNamespace says whether the pod's root is nobody on its node, for which the newer versions relax what a pod may be inside.
func (s subject) userNamespace() bool {
	return s.version >= 35 && s.spec.HostUsers != nil && !*s.spec.HostUsers
}

func quoted(names []string) string {
	all := make([]string, len(names))
	for i, name := range names {
		all[i] = strconv.Quote(name)
	}
	return strings.Join(all, ", ")
}

// quotedOnce quotes as Kubernetes does, without escaping quotes that the values have.
func quotedOnce(values []string) string { return `"` + strings.Join(values, `", "`) + `"` }

func plural(word string, n int) string {
	if n == 1 {
		return word
	}
	return word + "s"
}

// named is `container "a"` or `containers "a", "b"`.
func named(word string, names []string) string { return plural(word, len(names)) + " " + quoted(names) }

// setters names who set something: the pod, containers, or both.
func setters(pod bool, containers []string) string {
	var all []string
	if pod {
		all = append(all, "pod")
	}
	if len(containers) > 0 {
		all = append(all, named("container", containers))
	}
	return strings.Join(all, " and ")
}

func (s subject) security() *corev1.PodSecurityContext {
	if s.spec.SecurityContext == nil {
		return &corev1.PodSecurityContext{}
	}
	return s.spec.SecurityContext
}

func securityOf(c *corev1.Container) *corev1.SecurityContext {
	if c.SecurityContext == nil {
		return &corev1.SecurityContext{}
	}
	return c.SecurityContext
}

const appArmorAnnotation = corev1.DeprecatedAppArmorBetaContainerAnnotationKeyPrefix

func appArmorProfile(s subject) *violation {
	values := sets.New[string]()
	bad := func(p *corev1.AppArmorProfile) bool {
		if p == nil || p.Type == corev1.AppArmorProfileTypeRuntimeDefault || p.Type == corev1.AppArmorProfileTypeLocalhost {
			return false
		}
		values.Insert(string(p.Type))
		return true
	}
	pod := bad(s.security().AppArmorProfile)
	containers := s.where(func(c *corev1.Container) bool { return bad(securityOf(c).AppArmorProfile) })
	var annotations []string
	for key, value := range s.meta.Annotations {
		if strings.HasPrefix(key, appArmorAnnotation) && value != "" && value != corev1.DeprecatedAppArmorBetaProfileRuntimeDefault &&
			!strings.HasPrefix(value, corev1.DeprecatedAppArmorBetaProfileNamePrefix) {
			annotations = append(annotations, fmt.Sprintf("%s=%q", key, value))
		}
	}
	slices.Sort(annotations)
	var who []string
	if all := setters(pod, containers); all != "" {
		who = append(who, all)
	}
	if len(annotations) > 0 {
		who = append(who, plural("annotation", len(annotations)))
	}
	if len(who) == 0 {
		return nil
	}
	what := append(sets.List(values), annotations...)
	return &violation{plural("forbidden AppArmor profile", len(what)), fmt.Sprintf("%s must not set AppArmor profile type to %s", strings.Join(who, " and "), quotedOnce(what))}
}

// defaultCapabilities are those that containers may add because they have them anyway.
var defaultCapabilities = []corev1.Capability{
	"AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE", "SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT",
}

// adds returns the containers that add capabilities other than those allowed, and these.
func (s subject) adds(allowed []corev1.Capability) (containers, capabilities []string) {
	found := sets.New[string]()
	containers = s.where(func(c *corev1.Container) bool {
		bad := false
		if caps := securityOf(c).Capabilities; caps != nil {
			for _, add := range caps.Add {
				if !slices.Contains(allowed, add) {
					found.Insert(string(add))
					bad = true
				}
			}
		}
		return bad
	})
	return containers, sets.List(found)
}

func baselineCapabilities(s subject) *violation {
	containers, capabilities := s.adds(defaultCapabilities)
	if len(containers) == 0 {
		return nil
	}
	return &violation{"non-default capabilities", fmt.Sprintf("%s must not include %s in securityContext.capabilities.add", named("container", containers), quoted(capabilities))}
}

func restrictedCapabilities(s subject) *violation {
	if s.windows() {
		return nil
	}
	keep := s.where(func(c *corev1.Container) bool {
		caps := securityOf(c).Capabilities
		return caps == nil || !slices.Contains(caps.Drop, "ALL")
	})
	add, capabilities := s.adds([]corev1.Capability{"NET_BIND_SERVICE"})
	var details []string
	if len(keep) > 0 {
		details = append(details, named("container", keep)+` must set securityContext.capabilities.drop=["ALL"]`)
	}
	if len(add) > 0 {
		details = append(details, fmt.Sprintf("%s must not include %s in securityContext.capabilities.add", named("container", add), quoted(capabilities)))
	}
	if len(details) == 0 {
		return nil
	}
	return &violation{"unrestricted capabilities", strings.Join(details, "; ")}
}

func hostNamespaces(s subject) *violation {
	var all []string
	for _, n := range []struct {
		set  bool
		name string
	}{{s.spec.HostNetwork, "hostNetwork=true"}, {s.spec.HostPID, "hostPID=true"}, {s.spec.HostIPC, "hostIPC=true"}} {
		if n.set {
			all = append(all, n.name)
		}
	}
	if len(all) == 0 {
		return nil
	}
	return &violation{"host namespaces", strings.Join(all, ", ")}
}

func hostPathVolumes(s subject) *violation {
	var names []string
	for i := range s.spec.Volumes {
		if s.spec.Volumes[i].HostPath != nil {
			names = append(names, s.spec.Volumes[i].Name)
		}
	}
	if len(names) == 0 {
		return nil
	}
	return &violation{"hostPath volumes", named("volume", names)}
}

func hostPorts(s subject) *violation {
	ports := sets.New[int]()
	containers := s.where(func(c *corev1.Container) bool {
		bad := false
		for _, p := range c.Ports {
			if p.HostPort != 0 {
				ports.Insert(int(p.HostPort))
				bad = true
			}
		}
		return bad
	})
	if len(containers) == 0 {
		return nil
	}
	var list []string
	for _, p := range sets.List(ports) {
		list = append(list, strconv.Itoa(p))
	}
	uses := "uses"
	if len(containers) > 1 {
		uses = "use"
	}
	return &violation{"hostPort", fmt.Sprintf("%s %s %s %s", named("container", containers), uses, plural("hostPort", len(list)), strings.Join(list, ", "))}
}

// probeHosts forbids probes and hooks that make the node call other hosts.
func probeHosts(s subject) *violation {
	hosts := sets.New[string]()
	containers := s.where(func(c *corev1.Container) bool {
		var found []string
		for _, p := range []*corev1.Probe{c.LivenessProbe, c.ReadinessProbe, c.StartupProbe} {
			if p != nil && p.HTTPGet != nil {
				found = append(found, p.HTTPGet.Host)
			}
			if p != nil && p.TCPSocket != nil {
				found = append(found, p.TCPSocket.Host)
			}
		}
		if c.Lifecycle != nil {
			for _, h := range []*corev1.LifecycleHandler{c.Lifecycle.PostStart, c.Lifecycle.PreStop} {
				if h != nil && h.HTTPGet != nil {
					found = append(found, h.HTTPGet.Host)
				}
				if h != nil && h.TCPSocket != nil {
					found = append(found, h.TCPSocket.Host)
				}
			}
		}
		found = slices.DeleteFunc(found, func(host string) bool { return host == "" })
		hosts.Insert(found...)
		return len(found) > 0
	})
	if len(containers) == 0 {
		return nil
	}
	slices.Sort(containers)
	uses := "uses"
	if len(containers) > 1 {
		uses = "use"
	}
	return &violation{"probe or lifecycle host", fmt.Sprintf("%s %s probe or lifecycle %s %s", named("container", containers), uses, plural("host", hosts.Len()), quoted(sets.List(hosts)))}
}

func privilegedContainers(s subject) *violation {
	containers := s.where(func(c *corev1.Container) bool { p := securityOf(c).Privileged; return p != nil && *p })
	if len(containers) == 0 {
		return nil
	}
	return &violation{"privileged", named("container", containers) + " must not set securityContext.privileged=true"}
}

func baselineProcMount(s subject) *violation {
	if s.userNamespace() {
		return nil
	}
	return procMount(s)
}

func procMount(s subject) *violation {
	types := sets.New[string]()
	containers := s.where(func(c *corev1.Container) bool {
		p := securityOf(c).ProcMount
		if p == nil || *p == corev1.DefaultProcMount {
			return false
		}
		types.Insert(string(*p))
		return true
	})
	if len(containers) == 0 {
		return nil
	}
	return &violation{"procMount", fmt.Sprintf("%s must not set securityContext.procMount to %s", named("container", containers), quoted(sets.List(types)))}
}

func seLinuxOptions(s subject) *violation {
	allowed := []string{"", "container_t", "container_init_t", "container_kvm_t"}
	if s.version >= 31 {
		allowed = append(allowed, "container_engine_t")
	}
	types := sets.New[string]()
	user, role := false, false
	bad := func(o *corev1.SELinuxOptions) bool {
		if o == nil {
			return false
		}
		isBad := false
		if !slices.Contains(allowed, o.Type) {
			types.Insert(o.Type)
			isBad = true
		}
		user, role = user || o.User != "", role || o.Role != ""
		return isBad || o.User != "" || o.Role != ""
	}
	pod := bad(s.security().SELinuxOptions)
	containers := s.where(func(c *corev1.Container) bool { return bad(securityOf(c).SELinuxOptions) })
	if !pod && len(containers) == 0 {
		return nil
	}
	var data []string
	if types.Len() > 0 {
		data = append(data, named("type", sets.List(types)))
	}
	if user {
		data = append(data, "user may not be set")
	}
	if role {
		data = append(data, "role may not be set")
	}
	return &violation{"seLinuxOptions", fmt.Sprintf("%s set forbidden securityContext.seLinuxOptions: %s", setters(pod, containers), strings.Join(data, "; "))}
}

// Annotations that said the profile before there was a field.
const (
	seccompPodAnnotation = corev1.SeccompPodAnnotationKey
	seccompAnnotation    = corev1.SeccompContainerAnnotationKeyPrefix
)

func fineSeccomp(p *corev1.SeccompProfile) bool {
	return p.Type == corev1.SeccompProfileTypeRuntimeDefault || p.Type == corev1.SeccompProfileTypeLocalhost
}

// badSeccomp finds profiles that are set and switch the filter off.
func (s subject) badSeccomp() (pod bool, containers []string, detail string) {
	types := sets.New[string]()
	bad := func(p *corev1.SeccompProfile) bool {
		if p == nil || fineSeccomp(p) {
			return false
		}
		types.Insert(string(p.Type))
		return true
	}
	pod = bad(s.security().SeccompProfile)
	containers = s.where(func(c *corev1.Container) bool { return bad(securityOf(c).SeccompProfile) })
	if pod || len(containers) > 0 {
		detail = fmt.Sprintf("%s must not set securityContext.seccompProfile.type to %s", setters(pod, containers), quoted(sets.List(types)))
	}
	return pod, containers, detail
}

func baselineSeccomp(s subject) *violation {
	if s.version < 19 {
		return annotatedSeccomp(s)
	}
	_, _, detail := s.badSeccomp()
	if detail == "" {
		return nil
	}
	return &violation{"seccompProfile", detail}
}

// annotatedSeccomp is the rule of the versions in which annotations said it.
func annotatedSeccomp(s subject) *violation {
	var bad []string
	look := func(key string) {
		value, ok := s.meta.Annotations[key]
		if ok && value != corev1.SeccompProfileRuntimeDefault && value != corev1.DeprecatedSeccompProfileDockerDefault && !strings.HasPrefix(value, corev1.SeccompLocalhostProfileNamePrefix) {
			bad = append(bad, fmt.Sprintf("%s=%q", key, value))
		}
	}
	look(seccompPodAnnotation)
	eachContainer(s.spec, func(c *corev1.Container) { look(seccompAnnotation + c.Name) })
	if len(bad) == 0 {
		return nil
	}
	slices.Sort(bad)
	return &violation{"seccompProfile", "forbidden " + plural("annotation", len(bad)) + " " + strings.Join(bad, ", ")}
}

func restrictedSeccomp(s subject) *violation {
	if s.windows() {
		return nil
	}
	if _, _, detail := s.badSeccomp(); detail != "" {
		return &violation{"seccompProfile", detail}
	}
	if p := s.security().SeccompProfile; p != nil {
		return nil
	}
	unset := s.where(func(c *corev1.Container) bool { return securityOf(c).SeccompProfile == nil })
	if len(unset) == 0 {
		return nil
	}
	return &violation{"seccompProfile", fmt.Sprintf(`pod or %s must set securityContext.seccompProfile.type to "RuntimeDefault" or "Localhost"`, named("container", unset))}
}

// safeSysctls are those that touch nothing but the pod, by the minor version since which they count as such.
var safeSysctls = map[string]int{
	"kernel.shm_rmid_forced": 0, "net.ipv4.ip_local_port_range": 0, "net.ipv4.tcp_syncookies": 0, "net.ipv4.ping_group_range": 0,
	"net.ipv4.ip_unprivileged_port_start": 0, "net.ipv4.ip_local_reserved_ports": 27, "net.ipv4.tcp_keepalive_time": 29, "net.ipv4.tcp_fin_timeout": 29,
	"net.ipv4.tcp_keepalive_intvl": 29, "net.ipv4.tcp_keepalive_probes": 29, "net.ipv4.tcp_rmem": 32, "net.ipv4.tcp_wmem": 32,
}

func sysctls(s subject) *violation {
	var bad []string
	for _, sysctl := range s.security().Sysctls {
		if since, ok := safeSysctls[sysctl.Name]; !ok || s.version < since {
			bad = append(bad, sysctl.Name)
		}
	}
	if len(bad) == 0 {
		return nil
	}
	return &violation{"forbidden sysctls", strings.Join(bad, ", ")}
}

func windowsHostProcess(s subject) *violation {
	set := func(o *corev1.WindowsSecurityContextOptions) bool {
		return o != nil && o.HostProcess != nil && *o.HostProcess
	}
	pod := set(s.security().WindowsOptions)
	containers := s.where(func(c *corev1.Container) bool { return set(securityOf(c).WindowsOptions) })
	if !pod && len(containers) == 0 {
		return nil
	}
	return &violation{"hostProcess", setters(pod, containers) + " must not set securityContext.windowsOptions.hostProcess=true"}
}

func privilegeEscalation(s subject) *violation {
	if s.windows() {
		return nil
	}
	containers := s.where(func(c *corev1.Container) bool { a := securityOf(c).AllowPrivilegeEscalation; return a == nil || *a })
	if len(containers) == 0 {
		return nil
	}
	return &violation{"allowPrivilegeEscalation != false", named("container", containers) + " must set securityContext.allowPrivilegeEscalation=false"}
}

// volumeType names the source of a volume that the level restricted does not allow, empty for those that it does.
func volumeType(v *corev1.Volume) string {
	if v.ConfigMap != nil || v.CSI != nil || v.DownwardAPI != nil || v.EmptyDir != nil || v.Ephemeral != nil || v.PersistentVolumeClaim != nil || v.Projected != nil || v.Secret != nil {
		return ""
	}
	for _, source := range []struct {
		set  bool
		name string
	}{
		{v.HostPath != nil, "hostPath"}, {v.GCEPersistentDisk != nil, "gcePersistentDisk"}, {v.AWSElasticBlockStore != nil, "awsElasticBlockStore"}, {v.GitRepo != nil, "gitRepo"},
		{v.NFS != nil, "nfs"}, {v.ISCSI != nil, "iscsi"}, {v.Glusterfs != nil, "glusterfs"}, {v.RBD != nil, "rbd"}, {v.FlexVolume != nil, "flexVolume"}, {v.Cinder != nil, "cinder"},
		{v.CephFS != nil, "cephfs"}, {v.Flocker != nil, "flocker"}, {v.FC != nil, "fc"}, {v.AzureFile != nil, "azureFile"}, {v.VsphereVolume != nil, "vsphereVolume"},
		{v.Quobyte != nil, "quobyte"}, {v.AzureDisk != nil, "azureDisk"}, {v.PhotonPersistentDisk != nil, "photonPersistentDisk"}, {v.PortworxVolume != nil, "portworxVolume"},
		{v.ScaleIO != nil, "scaleIO"}, {v.StorageOS != nil, "storageos"},
	} {
		if source.set {
			return source.name
		}
	}
	// What no version of the level knows is not in it.
	return "unknown"
}

func restrictedVolumes(s subject) *violation {
	types := sets.New[string]()
	var names []string
	for i := range s.spec.Volumes {
		if kind := volumeType(&s.spec.Volumes[i]); kind != "" {
			types.Insert(kind)
			names = append(names, s.spec.Volumes[i].Name)
		}
	}
	if len(names) == 0 {
		return nil
	}
	uses := "uses"
	if len(names) > 1 {
		uses = "use"
	}
	return &violation{"restricted volume types", fmt.Sprintf("%s %s restricted volume %s %s", named("volume", names), uses, plural("type", types.Len()), quoted(sets.List(types)))}
}

func runAsNonRoot(s subject) *violation {
	if s.userNamespace() {
		return nil
	}
	const reason = "runAsNonRoot != true"
	podSays := s.security().RunAsNonRoot
	explicit := s.where(func(c *corev1.Container) bool { r := securityOf(c).RunAsNonRoot; return r != nil && !*r })
	if podBad := podSays != nil && !*podSays; podBad || len(explicit) > 0 {
		return &violation{reason, setters(podBad, explicit) + " must not set securityContext.runAsNonRoot=false"}
	}
	if podSays != nil {
		return nil
	}
	silent := s.where(func(c *corev1.Container) bool { return securityOf(c).RunAsNonRoot == nil })
	if len(silent) == 0 {
		return nil
	}
	return &violation{reason, fmt.Sprintf("pod or %s must set securityContext.runAsNonRoot=true", named("container", silent))}
}

func runAsUser(s subject) *violation {
	if s.userNamespace() {
		return nil
	}
	root := func(id *int64) bool { return id != nil && *id == 0 }
	pod := root(s.security().RunAsUser)
	containers := s.where(func(c *corev1.Container) bool { return root(securityOf(c).RunAsUser) })
	if !pod && len(containers) == 0 {
		return nil
	}
	return &violation{"runAsUser=0", setters(pod, containers) + " must not set runAsUser=0"}
}
