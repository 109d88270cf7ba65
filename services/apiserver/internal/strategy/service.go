package strategy

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// changeServiceType takes from a service what its former type had and its new one cannot have, when the user did not ask for it: a client that
// changes the type alone sends all the rest as it read it. The allocator does the same for addresses and node ports.
func changeServiceType(s, old *corev1.Service) {
	spec, was := &s.Spec, &old.Spec
	if spec.Type == was.Type {
		return
	}
	if spec.Type == corev1.ServiceTypeExternalName {
		if same(spec.InternalTrafficPolicy, was.InternalTrafficPolicy) {
			spec.InternalTrafficPolicy = nil
		}
	}
	external := spec.Type == corev1.ServiceTypeNodePort || spec.Type == corev1.ServiceTypeLoadBalancer || spec.Type == corev1.ServiceTypeClusterIP && len(spec.ExternalIPs) > 0
	if !external && spec.ExternalTrafficPolicy == was.ExternalTrafficPolicy {
		spec.ExternalTrafficPolicy = ""
	}
	if spec.Type == corev1.ServiceTypeLoadBalancer {
		return
	}
	if same(spec.AllocateLoadBalancerNodePorts, was.AllocateLoadBalancerNodePorts) {
		spec.AllocateLoadBalancerNodePorts = nil
	}
	if same(spec.LoadBalancerClass, was.LoadBalancerClass) {
		spec.LoadBalancerClass = nil
	}
	if slices.Equal(spec.LoadBalancerSourceRanges, was.LoadBalancerSourceRanges) {
		spec.LoadBalancerSourceRanges = nil
	}
	if was.Type == corev1.ServiceTypeLoadBalancer {
		s.Status.LoadBalancer = corev1.LoadBalancerStatus{}
	}
}

func same[T comparable](a, b *T) bool { return a == b || a != nil && b != nil && *a == *b }
