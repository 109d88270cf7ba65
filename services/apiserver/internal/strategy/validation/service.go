package validation

import (
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// maxAffinitySeconds is a day.
const maxAffinitySeconds = 86400

// Service looks at a new service, before addresses and ports are allocated.
func Service(s *corev1.Service) field.ErrorList {
	at := field.NewPath("spec")
	spec := &s.Spec
	errs := servicePorts(at.Child("ports"), spec)
	errs = append(errs, metav1validation.ValidateLabels(spec.Selector, at.Child("selector"))...)
	errs = append(errs, requiredOneOf(at.Child("type"), spec.Type,
		corev1.ServiceTypeClusterIP, corev1.ServiceTypeExternalName, corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeNodePort)...)
	errs = append(errs, sessionAffinity(at, spec)...)
	errs = append(errs, clusterIPs(at, spec)...)
	for i, ip := range spec.ExternalIPs {
		at := at.Child("externalIPs").Index(i)
		if problems := utilvalidation.IsValidIPForLegacyField(at, ip, false, nil); len(problems) > 0 {
			errs = append(errs, problems...)
		} else {
			errs = append(errs, outsideAddress(at, ip)...)
		}
	}
	if spec.Type == corev1.ServiceTypeExternalName {
		if spec.ExternalName == "" {
			errs = append(errs, field.Required(at.Child("externalName"), ""))
		} else {
			errs = append(errs, dnsSubdomain(at.Child("externalName"), strings.TrimSuffix(spec.ExternalName, "."))...)
		}
	}
	errs = append(errs, trafficPolicies(at, spec)...)
	return append(errs, loadBalancer(at, s)...)
}

func headless(spec *corev1.ServiceSpec) bool { return spec.ClusterIP == corev1.ClusterIPNone }

func servicePorts(at *field.Path, spec *corev1.ServiceSpec) field.ErrorList {
	var errs field.ErrorList
	if len(spec.Ports) == 0 && !headless(spec) && spec.Type != corev1.ServiceTypeExternalName {
		errs = append(errs, field.Required(at, ""))
	}
	type key struct {
		protocol corev1.Protocol
		port     int32
	}
	seen, ports, nodePorts := names{}, map[key]bool{}, map[key]bool{}
	for i := range spec.Ports {
		p, at := &spec.Ports[i], at.Index(i)
		switch {
		case p.Name == "" && len(spec.Ports) > 1:
			errs = append(errs, field.Required(at.Child("name"), ""))
		case p.Name != "":
			errs = append(errs, dnsLabel(at.Child("name"), p.Name)...)
			if seen.taken(p.Name) {
				errs = append(errs, field.Duplicate(at.Child("name"), p.Name))
			}
		}
		errs = append(errs, portNumber(at.Child("port"), p.Port)...)
		errs = append(errs, requiredOneOf(at.Child("protocol"), p.Protocol, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)...)
		errs = append(errs, portNumberOrName(at.Child("targetPort"), p.TargetPort)...)
		if p.AppProtocol != nil {
			errs = append(errs, qualifiedName(at.Child("appProtocol"), *p.AppProtocol)...)
		}
		if p.NodePort != 0 {
			errs = append(errs, nodePort(at.Child("nodePort"), spec, p.NodePort)...)
			k := key{p.Protocol, p.NodePort}
			if nodePorts[k] {
				errs = append(errs, field.Duplicate(at.Child("nodePort"), p.NodePort))
			}
			nodePorts[k] = true
		}
		k := key{p.Protocol, p.Port}
		if ports[k] {
			errs = append(errs, field.Duplicate(at, corev1.ServicePort{Protocol: p.Protocol, Port: p.Port}))
		}
		ports[k] = true
	}
	return errs
}

// nodePort says where a port of the nodes makes no sense. Its range is the allocator's.
func nodePort(at *field.Path, spec *corev1.ServiceSpec, port int32) field.ErrorList {
	switch spec.Type {
	case corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer:
		return portNumber(at, port)
	case corev1.ServiceTypeExternalName:
		return field.ErrorList{field.Forbidden(at, "may not be used when `type` is 'ExternalName'")}
	}
	return field.ErrorList{field.Forbidden(at, "may not be used when `type` is 'ClusterIP'")}
}

func sessionAffinity(at *field.Path, spec *corev1.ServiceSpec) field.ErrorList {
	errs := requiredOneOf(at.Child("sessionAffinity"), spec.SessionAffinity, corev1.ServiceAffinityClientIP, corev1.ServiceAffinityNone)
	config := spec.SessionAffinityConfig
	path := at.Child("sessionAffinityConfig")
	switch {
	case spec.SessionAffinity == corev1.ServiceAffinityNone && config != nil:
		errs = append(errs, field.Forbidden(path, "must not be set when session affinity is None"))
	case spec.SessionAffinity == corev1.ServiceAffinityClientIP:
		path := path.Child("clientIP", "timeoutSeconds")
		if config == nil || config.ClientIP == nil || config.ClientIP.TimeoutSeconds == nil {
			return append(errs, field.Required(path, "when session affinity type is ClientIP"))
		}
		if s := *config.ClientIP.TimeoutSeconds; s <= 0 || s > maxAffinitySeconds {
			errs = append(errs, field.Invalid(path, s, "must be greater than 0 and less than 86400"))
		}
	}
	return errs
}

// clusterIPs looks at the addresses that the user chose, and their families.
func clusterIPs(at *field.Path, spec *corev1.ServiceSpec) field.ErrorList {
	var errs field.ErrorList
	if spec.Type == corev1.ServiceTypeExternalName {
		for _, f := range []flag{
			{"clusterIP", spec.ClusterIP != ""},
			{"clusterIPs", len(spec.ClusterIPs) > 0},
			{"ipFamilies", len(spec.IPFamilies) > 0},
			{"ipFamilyPolicy", spec.IPFamilyPolicy != nil},
		} {
			if f.set {
				errs = append(errs, field.Forbidden(at.Child(f.name), "may not be set when `type` is 'ExternalName'"))
			}
		}
		return errs
	}
	if headless(spec) && (spec.Type == corev1.ServiceTypeNodePort || spec.Type == corev1.ServiceTypeLoadBalancer) {
		errs = append(errs, field.Invalid(at.Child("clusterIPs").Index(0), spec.ClusterIP, "may not be set to 'None' for "+string(spec.Type)+" services"))
	}
	if len(spec.ClusterIPs) > 0 && spec.ClusterIPs[0] != spec.ClusterIP {
		errs = append(errs, field.Invalid(at.Child("clusterIPs"), spec.ClusterIPs, "first value must match `clusterIP`"))
	}
	if len(spec.ClusterIPs) > 2 {
		errs = append(errs, field.Invalid(at.Child("clusterIPs"), spec.ClusterIPs, "may only hold up to 2 values"))
	}
	for i, ip := range spec.ClusterIPs {
		at := at.Child("clusterIPs").Index(i)
		if ip == corev1.ClusterIPNone {
			if i > 0 || len(spec.ClusterIPs) > 1 {
				errs = append(errs, field.Invalid(at, ip, "must be alone: a headless service has no address"))
			}
			continue
		}
		problems := utilvalidation.IsValidIPForLegacyField(at, ip, false, nil)
		errs = append(errs, problems...)
		if len(problems) == 0 && i < len(spec.IPFamilies) && spec.IPFamilies[i] != familyOf(ip) {
			errs = append(errs, field.Invalid(at, ip, "expected an "+string(spec.IPFamilies[i])+" value as indicated by `ipFamilies["+itoa(int64(i))+"]`"))
		}
	}
	return append(errs, families(at, spec)...)
}

func familyOf(ip string) corev1.IPFamily {
	if a, err := netip.ParseAddr(ip); err == nil && a.Is6() && !a.Is4In6() {
		return corev1.IPv6Protocol
	}
	return corev1.IPv4Protocol
}

func families(at *field.Path, spec *corev1.ServiceSpec) field.ErrorList {
	var errs field.ErrorList
	if spec.IPFamilyPolicy != nil {
		errs = append(errs, oneOf(at.Child("ipFamilyPolicy"), *spec.IPFamilyPolicy,
			corev1.IPFamilyPolicySingleStack, corev1.IPFamilyPolicyPreferDualStack, corev1.IPFamilyPolicyRequireDualStack)...)
	}
	seen := names{}
	for i, family := range spec.IPFamilies {
		at := at.Child("ipFamilies").Index(i)
		if problems := oneOf(at, family, corev1.IPv4Protocol, corev1.IPv6Protocol); len(problems) > 0 {
			errs = append(errs, problems...)
		} else if seen.taken(string(family)) {
			errs = append(errs, field.Duplicate(at, family))
		}
	}
	return errs
}

// outsideAddress complains about addresses that no client outside can mean.
func outsideAddress(at *field.Path, ip string) field.ErrorList {
	a, err := netip.ParseAddr(ip)
	if err != nil {
		return nil
	}
	for _, bad := range []struct {
		is    bool
		words string
	}{
		{a.IsUnspecified(), "may not be unspecified (" + ip + ")"},
		{a.IsLoopback(), "may not be in the loopback range (127.0.0.0/8, ::1/128)"},
		{a.IsLinkLocalUnicast(), "may not be in the link-local range (169.254.0.0/16, fe80::/10)"},
		{a.IsLinkLocalMulticast(), "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)"},
	} {
		if bad.is {
			return field.ErrorList{field.Invalid(at, ip, bad.words)}
		}
	}
	return nil
}

// externallyAccessible says whether a service takes traffic from outside the cluster.
func externallyAccessible(spec *corev1.ServiceSpec) bool {
	return spec.Type == corev1.ServiceTypeLoadBalancer || spec.Type == corev1.ServiceTypeNodePort ||
		spec.Type == corev1.ServiceTypeClusterIP && len(spec.ExternalIPs) > 0
}

func trafficPolicies(at *field.Path, spec *corev1.ServiceSpec) field.ErrorList {
	var errs field.ErrorList
	external := at.Child("externalTrafficPolicy")
	if externallyAccessible(spec) {
		if spec.ExternalTrafficPolicy == "" {
			errs = append(errs, field.Required(external, ""))
		} else {
			errs = append(errs, oneOf(external, spec.ExternalTrafficPolicy, corev1.ServiceExternalTrafficPolicyCluster, corev1.ServiceExternalTrafficPolicyLocal)...)
		}
	} else if spec.ExternalTrafficPolicy != "" {
		errs = append(errs, field.Invalid(external, spec.ExternalTrafficPolicy, "may only be set for externally-accessible services"))
	}
	health := at.Child("healthCheckNodePort")
	if spec.HealthCheckNodePort != 0 {
		if spec.Type != corev1.ServiceTypeLoadBalancer || spec.ExternalTrafficPolicy != corev1.ServiceExternalTrafficPolicyLocal {
			errs = append(errs, field.Invalid(health, spec.HealthCheckNodePort, "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'"))
		} else {
			errs = append(errs, portNumber(health, spec.HealthCheckNodePort)...)
		}
	}
	internal := at.Child("internalTrafficPolicy")
	if spec.InternalTrafficPolicy == nil {
		if spec.Type != corev1.ServiceTypeExternalName {
			errs = append(errs, field.Required(internal, ""))
		}
	} else {
		errs = append(errs, oneOf(internal, *spec.InternalTrafficPolicy, corev1.ServiceInternalTrafficPolicyCluster, corev1.ServiceInternalTrafficPolicyLocal)...)
	}
	if d := spec.TrafficDistribution; d != nil {
		errs = append(errs, oneOf(at.Child("trafficDistribution"), *d,
			corev1.ServiceTrafficDistributionPreferClose, corev1.ServiceTrafficDistributionPreferSameZone, corev1.ServiceTrafficDistributionPreferSameNode)...)
	}
	return errs
}

func loadBalancer(at *field.Path, s *corev1.Service) field.ErrorList {
	var errs field.ErrorList
	spec := &s.Spec
	balanced := spec.Type == corev1.ServiceTypeLoadBalancer
	ranges := at.Child("loadBalancerSourceRanges")
	if len(spec.LoadBalancerSourceRanges) > 0 && !balanced {
		errs = append(errs, field.Forbidden(ranges, "may only be used when `type` is 'LoadBalancer'"))
	}
	for i, value := range spec.LoadBalancerSourceRanges {
		errs = append(errs, utilvalidation.IsValidCIDRForLegacyField(ranges.Index(i), strings.TrimSpace(value), false, nil)...)
	}
	switch allocate := at.Child("allocateLoadBalancerNodePorts"); {
	case balanced && spec.AllocateLoadBalancerNodePorts == nil:
		errs = append(errs, field.Required(allocate, ""))
	case !balanced && spec.AllocateLoadBalancerNodePorts != nil:
		errs = append(errs, field.Forbidden(allocate, "may only be used when `type` is 'LoadBalancer'"))
	}
	if spec.LoadBalancerClass != nil {
		class := at.Child("loadBalancerClass")
		if !balanced {
			errs = append(errs, field.Forbidden(class, "may only be used when `type` is 'LoadBalancer'"))
		} else {
			errs = append(errs, qualifiedName(class, *spec.LoadBalancerClass)...)
		}
	}
	return errs
}

// ServiceUpdate looks at a changed service.
func ServiceUpdate(s, old *corev1.Service) field.ErrorList {
	at := field.NewPath("spec")
	var errs field.ErrorList
	wasAddressed := old.Spec.Type != corev1.ServiceTypeExternalName
	isAddressed := s.Spec.Type != corev1.ServiceTypeExternalName
	if wasAddressed && isAddressed {
		for i, was := range old.Spec.ClusterIPs {
			at := at.Child("clusterIPs").Index(i)
			switch {
			case i == 0 && (len(s.Spec.ClusterIPs) == 0 || s.Spec.ClusterIPs[0] == ""):
				errs = append(errs, field.Invalid(at, s.Spec.ClusterIPs, "primary clusterIP can not be unset"))
			case i < len(s.Spec.ClusterIPs) && s.Spec.ClusterIPs[i] != was && was != "":
				errs = append(errs, field.Invalid(at, s.Spec.ClusterIPs, "may not change once set"))
			}
		}
		if len(old.Spec.IPFamilies) > 0 && len(s.Spec.IPFamilies) > 0 && old.Spec.IPFamilies[0] != s.Spec.IPFamilies[0] && old.Spec.ClusterIP != "" && !headless(&old.Spec) {
			errs = append(errs, field.Invalid(at.Child("ipFamilies").Index(0), s.Spec.IPFamilies[0], "primary ipFamily can not be unset"))
		}
	}
	if old.Spec.Type == corev1.ServiceTypeLoadBalancer && s.Spec.Type == corev1.ServiceTypeLoadBalancer {
		errs = append(errs, immutable(at.Child("loadBalancerClass"), s.Spec.LoadBalancerClass, old.Spec.LoadBalancerClass)...)
	}
	return append(errs, Service(s)...)
}

// ServiceStatusUpdate looks at what a load balancer reports.
func ServiceStatusUpdate(s, _ *corev1.Service) field.ErrorList {
	var errs field.ErrorList
	at := field.NewPath("status", "loadBalancer", "ingress")
	if len(s.Status.LoadBalancer.Ingress) > 0 && s.Spec.Type != corev1.ServiceTypeLoadBalancer {
		errs = append(errs, field.Forbidden(at, "may only be used when `spec.type` is 'LoadBalancer'"))
	}
	for i, ingress := range s.Status.LoadBalancer.Ingress {
		at := at.Index(i)
		if ingress.IP != "" {
			errs = append(errs, utilvalidation.IsValidIPForLegacyField(at.Child("ip"), ingress.IP, false, nil)...)
		}
		switch mode := at.Child("ipMode"); {
		case ingress.IPMode == nil && ingress.IP != "":
			errs = append(errs, field.Required(mode, "must be specified when `ip` is set"))
		case ingress.IPMode != nil && ingress.IP == "":
			errs = append(errs, field.Forbidden(mode, "may not be specified when `ip` is not set"))
		case ingress.IPMode != nil:
			errs = append(errs, oneOf(mode, *ingress.IPMode, corev1.LoadBalancerIPModeVIP, corev1.LoadBalancerIPModeProxy)...)
		}
		if ingress.Hostname != "" {
			errs = append(errs, dnsSubdomain(at.Child("hostname"), ingress.Hostname)...)
			if _, err := netip.ParseAddr(ingress.Hostname); err == nil {
				errs = append(errs, field.Invalid(at.Child("hostname"), ingress.Hostname, "must be a DNS name, not an IP address"))
			}
		}
	}
	return errs
}

// podIPs looks at a pod's addresses.
func podIPs(at *field.Path, p *corev1.Pod) field.ErrorList {
	ips := p.Status.PodIPs
	var errs field.ErrorList
	for i, ip := range ips {
		errs = append(errs, utilvalidation.IsValidIPForLegacyField(at.Index(i), ip.IP, false, nil)...)
		if slices.ContainsFunc(ips[:i], func(o corev1.PodIP) bool { return o.IP == ip.IP }) {
			errs = append(errs, field.Duplicate(at.Index(i), ip))
		}
	}
	if len(ips) > 1 && len(errs) == 0 && (len(ips) > 2 || familyOf(ips[0].IP) == familyOf(ips[1].IP)) {
		errs = append(errs, field.Invalid(at, ips, "may specify no more than one IP for each IP family"))
	}
	return errs
}
