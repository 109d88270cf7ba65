package defaulting

import (
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Service completes a service. Its addresses with their families and its node ports are the allocator's, which knows the cluster's network.
func Service(service *corev1.Service) {
	spec := &service.Spec
	orDefault(&spec.SessionAffinity, corev1.ServiceAffinityNone)
	orDefault(&spec.Type, corev1.ServiceTypeClusterIP)
	switch spec.SessionAffinity {
	case corev1.ServiceAffinityNone:
		spec.SessionAffinityConfig = nil
	case corev1.ServiceAffinityClientIP:
		if c := spec.SessionAffinityConfig; c == nil || c.ClientIP == nil || c.ClientIP.TimeoutSeconds == nil {
			seconds := corev1.DefaultClientIPServiceAffinitySeconds
			spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &seconds}}
		}
	}
	for i := range spec.Ports {
		p := &spec.Ports[i]
		orDefault(&p.Protocol, corev1.ProtocolTCP)
		if p.TargetPort == intstr.FromInt32(0) || p.TargetPort == intstr.FromString("") {
			p.TargetPort = intstr.FromInt32(p.Port)
		}
	}
	if external(spec) {
		orDefault(&spec.ExternalTrafficPolicy, corev1.ServiceExternalTrafficPolicyCluster)
	}
	if spec.Type == corev1.ServiceTypeLoadBalancer {
		orPointer(&spec.AllocateLoadBalancerNodePorts, true)
	}
	if spec.Type != corev1.ServiceTypeExternalName {
		orPointer(&spec.InternalTrafficPolicy, corev1.ServiceInternalTrafficPolicyCluster)
	}
	for i := range service.Status.LoadBalancer.Ingress {
		if in := &service.Status.LoadBalancer.Ingress[i]; in.IP != "" {
			orPointer(&in.IPMode, corev1.LoadBalancerIPModeVIP)
		}
	}
}

// external says whether a service takes traffic from outside the cluster.
func external(spec *corev1.ServiceSpec) bool {
	return spec.Type == corev1.ServiceTypeLoadBalancer || spec.Type == corev1.ServiceTypeNodePort ||
		spec.Type == corev1.ServiceTypeClusterIP && len(spec.ExternalIPs) > 0
}

// Endpoints completes the addresses of a service.
func Endpoints(endpoints *corev1.Endpoints) {
	for i := range endpoints.Subsets {
		for j := range endpoints.Subsets[i].Ports {
			orDefault(&endpoints.Subsets[i].Ports[j].Protocol, corev1.ProtocolTCP)
		}
	}
}

// EndpointSlice completes a slice of the addresses of a service.
func EndpointSlice(slice *discoveryv1.EndpointSlice) {
	for i := range slice.Ports {
		orPointer(&slice.Ports[i].Name, "")
		orPointer(&slice.Ports[i].Protocol, corev1.ProtocolTCP)
	}
}
