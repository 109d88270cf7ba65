// Package servicepods is what the two controllers of a Service's endpoints have in common: which pods stand behind it, with which addresses and
// ports, and which changes of pods and Services matter.
package servicepods

import (
	"maps"
	"net/netip"
	"slices"

	"google.golang.org/protobuf/proto"
	"k8s.io/apimachinery/pkg/labels"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/pkg/informer"
	"dhow.dev/pkg/object"
	"dhow.dev/services/controller-manager/internal/inventory"
	"dhow.dev/services/controller-manager/internal/podstate"
)

// Address families, as Services name them.
const (
	IPv4 = "IPv4"
	IPv6 = "IPv6"
)

// Labels that this service's controllers set and that are not copied from a Service.
const (
	LabelHeadless = "service.kubernetes.io/headless"
	headless      = "None"
)

// Watch calls add with each Service whose endpoints a change may concern.
func Watch(stores *inventory.Stores, add func(object.Key, *informer.Trace)) {
	stores.Services.OnChangeTraced(func(old, svc *corev1.Service, cause *informer.Trace) {
		if svc == nil {
			svc = old
		}
		add(object.KeyOf(svc), cause)
	})
	stores.Pods.OnChangeTraced(func(old, pod *corev1.Pod, cause *informer.Trace) {
		labelsChanged := old == nil || pod == nil || !maps.Equal(old.GetMetadata().GetLabels(), pod.GetMetadata().GetLabels())
		if !labelsChanged && !concerns(old, pod) {
			return
		}
		for _, p := range []*corev1.Pod{old, pod} {
			if p == nil || (p == pod && old != nil && !labelsChanged) {
				continue // with equal labels, both are behind the same Services
			}
			for _, svc := range stores.Services.ByIndex(inventory.ByNamespace, p.GetMetadata().GetNamespace()) {
				if Selects(svc, p) {
					add(object.KeyOf(svc), cause)
				}
			}
		}
	})
}

// concerns says whether endpoints of the pod can look different after a change.
func concerns(old, pod *corev1.Pod) bool {
	return podstate.IsReady(old) != podstate.IsReady(pod) || podstate.IsFinished(old) != podstate.IsFinished(pod) ||
		object.IsDeleted(old) != object.IsDeleted(pod) || old.GetMetadata().GetUid() != pod.GetMetadata().GetUid() ||
		!slices.Equal(IPs(old), IPs(pod)) || old.GetSpec().GetNodeName() != pod.GetSpec().GetNodeName() ||
		old.GetSpec().GetHostname() != pod.GetSpec().GetHostname() || old.GetSpec().GetSubdomain() != pod.GetSpec().GetSubdomain()
}

// Managed says whether a Service's endpoints are made from pods: it has a selector and is no mere alias.
func Managed(svc *corev1.Service) bool {
	return len(svc.GetSpec().GetSelector()) > 0 && svc.GetSpec().GetType() != "ExternalName"
}

// Selects says whether a managed Service selects a pod.
func Selects(svc *corev1.Service, pod *corev1.Pod) bool {
	return Managed(svc) && labels.SelectorFromSet(svc.GetSpec().GetSelector()).Matches(labels.Set(pod.GetMetadata().GetLabels()))
}

// Of returns the pods that a Service selects, those that can have an endpoint: with an address, not finished.
func Of(stores *inventory.Stores, svc *corev1.Service) []*corev1.Pod {
	selector := labels.SelectorFromSet(svc.GetSpec().GetSelector())
	var pods []*corev1.Pod
	for _, p := range stores.Pods.ByIndex(inventory.ByNamespace, svc.GetMetadata().GetNamespace()) {
		if selector.Matches(labels.Set(p.GetMetadata().GetLabels())) && !podstate.IsFinished(p) && len(IPs(p)) > 0 {
			pods = append(pods, p)
		}
	}
	return pods
}

// IPs returns a pod's addresses.
func IPs(p *corev1.Pod) []string {
	var ips []string
	for _, ip := range p.GetStatus().GetPodIps() {
		if ip.GetIp() != "" {
			ips = append(ips, ip.GetIp())
		}
	}
	if ip := p.GetStatus().GetPodIp(); ip != "" && len(ips) == 0 {
		ips = []string{ip}
	}
	return ips
}

// Family returns the family of an address, or "".
func Family(ip string) string {
	addr, err := netip.ParseAddr(ip)
	switch {
	case err != nil:
		return ""
	case addr.Unmap().Is4():
		return IPv4
	}
	return IPv6
}

// Families returns the families that a Service has endpoints in, the first one being its main one.
func Families(svc *corev1.Service) []string {
	if families := svc.GetSpec().GetIpFamilies(); len(families) > 0 {
		return families
	}
	if family := Family(svc.GetSpec().GetClusterIp()); family != "" {
		return []string{family}
	}
	return []string{IPv4}
}

// IsHeadless says that the Service has no address of its own.
func IsHeadless(svc *corev1.Service) bool { return svc.GetSpec().GetClusterIp() == headless }

// Hostname returns the name that a pod has in the domain of a Service, or "".
func Hostname(svc *corev1.Service, p *corev1.Pod) string {
	if p.GetSpec().GetSubdomain() != svc.GetMetadata().GetName() {
		return ""
	}
	return p.GetSpec().GetHostname()
}

// Port returns the number of a pod's port that a Service's port leads to, and false when the pod has no port of that name.
func Port(port *corev1.ServicePort, p *corev1.Pod) (int32, bool) {
	target := port.GetTargetPort()
	if target.GetType() == 0 {
		if target.GetIntVal() == 0 {
			return port.GetPort(), true
		}
		return target.GetIntVal(), true
	}
	containers := p.GetSpec().GetContainers()
	for _, c := range p.GetSpec().GetInitContainers() {
		if c.GetRestartPolicy() == "Always" {
			containers = append(slices.Clip(containers), c)
		}
	}
	for _, c := range containers {
		for _, have := range c.GetPorts() {
			if have.GetName() == target.GetStrVal() && protocol(have.GetProtocol()) == protocol(port.GetProtocol()) {
				return have.GetContainerPort(), true
			}
		}
	}
	return 0, false
}

func protocol(p string) string {
	if p == "" {
		return "TCP"
	}
	return p
}

// Protocol returns a Service port's protocol.
func Protocol(port *corev1.ServicePort) string { return protocol(port.GetProtocol()) }

// Reference names a pod as the target of an endpoint. Fields that Kubernetes' structs always encode are set even when empty: what is compared with
// a stored object must look like one.
func Reference(p *corev1.Pod) *corev1.ObjectReference {
	m := p.GetMetadata()
	return corev1.ObjectReference_builder{
		Kind: proto.String("Pod"), Namespace: proto.String(m.GetNamespace()), Name: proto.String(m.GetName()), Uid: proto.String(m.GetUid()),
		ApiVersion: proto.String(""), ResourceVersion: proto.String(""), FieldPath: proto.String(""),
	}.Build()
}
