package pod

import (
	"bufio"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/services/node-agent/internal/cgroup"
	"dhow.dev/services/node-agent/internal/cri"
)

// The resolver's bounds in glibc that Kubernetes holds to.
const (
	maxNameservers   = 3
	maxSearches      = 32
	clusterDNSOption = "ndots:5"
)

// DNS is what pods resolve names with.
type DNS struct {
	// Servers are the cluster's; empty: pods get the node's resolver.
	Servers []string
	Domain  string
	// ResolvConf is the node's file, usually /etc/resolv.conf.
	ResolvConf string
}

// config returns the resolver of a pod by its dnsPolicy and dnsConfig.
func (d DNS) config(pod *corev1.Pod) (*runtimev1.DNSConfig, error) {
	spec := pod.GetSpec()
	host, err := readResolvConf(d.ResolvConf)
	if err != nil {
		return nil, err
	}
	var c *runtimev1.DNSConfig
	switch policy := spec.GetDnsPolicy(); {
	case policy == "None":
		c = &runtimev1.DNSConfig{}
	case policy == "Default", len(d.Servers) == 0, policy == "ClusterFirst" && spec.GetHostNetwork():
		c = host
	default: // ClusterFirst, ClusterFirstWithHostNet
		c = &runtimev1.DNSConfig{Servers: slices.Clone(d.Servers), Options: []string{clusterDNSOption}, Searches: append([]string{
			pod.GetMetadata().GetNamespace() + ".svc." + d.Domain, "svc." + d.Domain, d.Domain}, host.Searches...)}
	}
	if extra := spec.GetDnsConfig(); extra != nil {
		c.Servers = append(c.Servers, extra.GetNameservers()...)
		c.Searches = append(c.Searches, extra.GetSearches()...)
		for _, o := range extra.GetOptions() {
			// An option of the pod replaces one of the same name.
			c.Options = slices.DeleteFunc(c.Options, func(have string) bool { return optionName(have) == o.GetName() })
			text := o.GetName()
			if o.HasValue() {
				text += ":" + o.GetValue()
			}
			c.Options = append(c.Options, text)
		}
	}
	c.Servers = unique(c.Servers, maxNameservers)
	c.Searches = unique(c.Searches, maxSearches)
	return c, nil
}

func optionName(option string) string {
	name, _, _ := strings.Cut(option, ":")
	return name
}

func unique(list []string, bound int) []string {
	seen := map[string]bool{}
	kept := slices.DeleteFunc(slices.Clone(list), func(s string) bool {
		twice := seen[s]
		seen[s] = true
		return twice
	})
	return kept[:min(len(kept), bound)]
}

func readResolvConf(path string) (*runtimev1.DNSConfig, error) {
	c := &runtimev1.DNSConfig{}
	if path == "" {
		return c, nil
	}
	f, err := os.Open(path)
	if os.IsNotExist(err) {
		return c, nil
	}
	if err != nil {
		return nil, fmt.Errorf("the node's resolver: %w", err)
	}
	defer func() { _ = f.Close() }()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 {
			continue
		}
		switch fields[0] {
		case "nameserver":
			c.Servers = append(c.Servers, fields[1])
		case "search", "domain":
			c.Searches = slices.DeleteFunc(fields[1:], func(s string) bool { return s == "." })
		case "options":
			c.Options = fields[1:]
		}
	}
	return c, lines.Err()
}

// hostname returns a pod's host name, and its fully qualified one when it has a subdomain.
func (d DNS) hostname(pod *corev1.Pod) (short, full string) {
	spec, m := pod.GetSpec(), pod.GetMetadata()
	if o := spec.GetHostnameOverride(); o != "" {
		return o, ""
	}
	short = m.GetName()
	if spec.GetHostname() != "" {
		short = spec.GetHostname()
	}
	// Linux takes 64 bytes; Kubernetes cuts to a DNS label.
	if len(short) > 63 {
		short = strings.TrimRight(short[:63], "-.")
	}
	if spec.GetSubdomain() != "" {
		full = short + "." + spec.GetSubdomain() + "." + m.GetNamespace() + ".svc." + d.Domain
	}
	return short, full
}

// hostsFile returns the contents of a pod's /etc/hosts.
func (d DNS) hostsFile(pod *corev1.Pod, ips []string) (string, error) {
	var b strings.Builder
	if pod.GetSpec().GetHostNetwork() {
		b.WriteString("# Kubernetes-managed hosts file (host network).\n")
		host, err := os.ReadFile("/etc/hosts")
		if err != nil && !os.IsNotExist(err) {
			return "", fmt.Errorf("the node's hosts file: %w", err)
		}
		b.Write(host)
	} else {
		b.WriteString("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\nfe00::\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n")
		short, full := d.hostname(pod)
		for _, ip := range ips {
			b.WriteString(ip + "\t")
			if full != "" {
				b.WriteString(full + "\t")
			}
			b.WriteString(short + "\n")
		}
	}
	if aliases := pod.GetSpec().GetHostAliases(); len(aliases) > 0 {
		b.WriteString("\n# Entries added by HostAliases.\n")
		for _, a := range aliases {
			b.WriteString(a.GetIp() + "\t" + strings.Join(a.GetHostnames(), "\t") + "\n")
		}
	}
	return b.String(), nil
}

// LogDirectory is where the runtime writes a pod's logs; the layout is the one that log collectors for Kubernetes expect.
func LogDirectory(root string, pod *corev1.Pod) string {
	m := pod.GetMetadata()
	return filepath.Join(root, m.GetNamespace()+"_"+m.GetName()+"_"+m.GetUid())
}

// labels are those of everything that belongs to the pod.
func labels(pod *corev1.Pod) map[string]string {
	m := pod.GetMetadata()
	return map[string]string{cri.LabelPodName: m.GetName(), cri.LabelPodNamespace: m.GetNamespace(), cri.LabelPodUID: m.GetUid()}
}

// sandboxConfig returns what a pod's sandbox is run with.
func (c *Config) sandboxConfig(pod *corev1.Pod, attempt uint32, cgroupParent string, users uint32) (*runtimev1.PodSandboxConfig, error) {
	m, spec := pod.GetMetadata(), pod.GetSpec()
	dns, err := c.DNS.config(pod)
	if err != nil {
		return nil, err
	}
	config := &runtimev1.PodSandboxConfig{
		Metadata:     &runtimev1.PodSandboxMetadata{Name: m.GetName(), Namespace: m.GetNamespace(), Uid: m.GetUid(), Attempt: attempt},
		LogDirectory: LogDirectory(c.LogDir, pod), DnsConfig: dns, Labels: labels(pod), Annotations: m.GetAnnotations(),
	}
	for k, v := range m.GetLabels() {
		if _, own := config.Labels[k]; !own {
			config.Labels[k] = v
		}
	}
	if !spec.GetHostNetwork() {
		short, full := c.DNS.hostname(pod)
		config.Hostname = short
		if spec.GetSetHostnameAsFqdn() && full != "" {
			if len(full) > 64 {
				return nil, fmt.Errorf("setHostnameAsFQDN: %q is longer than the 64 bytes that Linux takes", full)
			}
			config.Hostname = full
		}
	}
	amount := cgroup.OfPod(pod)
	security := &runtimev1.LinuxSandboxSecurityContext{
		NamespaceOptions: namespaces(pod, users), Privileged: slices.ContainsFunc(slices.Concat(spec.GetInitContainers(), spec.GetContainers()),
			func(c *corev1.Container) bool { return c.GetSecurityContext().GetPrivileged() }),
		Seccomp: &runtimev1.SecurityProfile{ProfileType: runtimev1.SecurityProfile_RuntimeDefault},
	}
	if sc := spec.GetSecurityContext(); sc != nil {
		if sc.HasRunAsUser() {
			security.RunAsUser = &runtimev1.Int64Value{Value: sc.GetRunAsUser()}
			if sc.HasRunAsGroup() {
				security.RunAsGroup = &runtimev1.Int64Value{Value: sc.GetRunAsGroup()}
			}
		}
		security.SupplementalGroups = groups(pod)
	}
	config.Linux = &runtimev1.LinuxPodSandboxConfig{
		CgroupParent: cgroupParent, SecurityContext: security,
		Resources: &runtimev1.LinuxContainerResources{CpuShares: cgroup.Shares(amount.CPURequest), CpuQuota: cgroup.Quota(amount.CPULimit),
			CpuPeriod: cgroup.Period, MemoryLimitInBytes: amount.MemoryLimit},
	}
	if sysctls := spec.GetSecurityContext().GetSysctls(); len(sysctls) > 0 {
		config.Linux.Sysctls = map[string]string{}
		for _, s := range sysctls {
			config.Linux.Sysctls[strings.ReplaceAll(s.GetName(), "/", ".")] = s.GetValue()
		}
	}
	return config, nil
}

func namespaces(pod *corev1.Pod, users uint32) *runtimev1.NamespaceOption {
	spec := pod.GetSpec()
	n := &runtimev1.NamespaceOption{Network: runtimev1.NamespaceMode_POD, Ipc: runtimev1.NamespaceMode_POD, Pid: runtimev1.NamespaceMode_CONTAINER,
		UsernsOptions: userNamespace(users)}
	if spec.GetHostNetwork() {
		n.Network = runtimev1.NamespaceMode_NODE
	}
	if spec.GetHostIpc() {
		n.Ipc = runtimev1.NamespaceMode_NODE
	}
	switch {
	case spec.GetHostPid():
		n.Pid = runtimev1.NamespaceMode_NODE
	case spec.GetShareProcessNamespace():
		n.Pid = runtimev1.NamespaceMode_POD
	}
	return n
}

// groups are the supplemental groups of all containers.
func groups(pod *corev1.Pod) []int64 {
	sc := pod.GetSpec().GetSecurityContext()
	list := slices.Clone(sc.GetSupplementalGroups())
	if sc.HasFsGroup() {
		list = append(list, sc.GetFsGroup())
	}
	return list
}

// containerLabels returns a container's labels.
func containerLabels(pod *corev1.Pod, name string) map[string]string {
	l := maps.Clone(labels(pod))
	l[cri.LabelContainerName] = name
	return l
}
