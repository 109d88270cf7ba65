package table

import (
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

func networkKinds() map[schema.GroupKind]definition {
	const networking = "networking.k8s.io"
	return map[schema.GroupKind]definition{
		{Kind: "Service"}:   serviceTable(),
		{Kind: "Endpoints"}: endpointsTable(),
		{Group: "discovery.k8s.io", Kind: "EndpointSlice"}: endpointSliceTable(),
		{Group: networking, Kind: "Ingress"}:               ingressTable(),
		{Group: networking, Kind: "IngressClass"}:          ingressClassTable(),
		{Group: networking, Kind: "NetworkPolicy"}:         networkPolicyTable(),
		{Group: networking, Kind: "ServiceCIDR"}:           serviceCIDRTable(),
		{Group: networking, Kind: "IPAddress"}:             ipAddressTable(),
	}
}

func serviceTable() definition {
	spec := corev1.ServiceSpec{}
	columns := []metav1.TableColumnDefinition{
		name(), text("Type", doc(spec, "type")), text("Cluster-IP", doc(spec, "clusterIP")), text("External-IP", doc(spec, "externalIPs")), text("Port(s)", doc(spec, "ports")), age(),
		wide(text("Selector", doc(spec, "selector"))),
	}
	return define(columns, func(s *corev1.Service, now time.Time) []any {
		clusterIP := s.Spec.ClusterIP
		if len(s.Spec.ClusterIPs) > 0 {
			clusterIP = s.Spec.ClusterIPs[0]
		}
		return []any{s.Name, string(s.Spec.Type), orNone(clusterIP), externalIP(s), servicePorts(s.Spec.Ports), Age(s.CreationTimestamp, now), labels.FormatLabels(s.Spec.Selector)}
	})
}

func externalIP(s *corev1.Service) string {
	switch s.Spec.Type {
	case corev1.ServiceTypeExternalName:
		return s.Spec.ExternalName
	case corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort:
		return orNone(strings.Join(s.Spec.ExternalIPs, ","))
	case corev1.ServiceTypeLoadBalancer:
		ingress := map[string]bool{}
		for _, i := range s.Status.LoadBalancer.Ingress {
			if at := orElse(i.IP, i.Hostname); at != "" {
				ingress[at] = true
			}
		}
		return orElse(strings.Join(append(sortedKeys(ingress), s.Spec.ExternalIPs...), ","), "<pending>")
	default:
		return "<unknown>"
	}
}

func servicePorts(ports []corev1.ServicePort) string {
	var list []string
	for _, p := range ports {
		if p.NodePort > 0 {
			list = append(list, fmt.Sprintf("%d:%d/%s", p.Port, p.NodePort, p.Protocol))
		} else {
			list = append(list, fmt.Sprintf("%d/%s", p.Port, p.Protocol))
		}
	}
	return orNone(strings.Join(list, ","))
}

func endpointsTable() definition {
	columns := []metav1.TableColumnDefinition{name(), text("Endpoints", doc(corev1.Endpoints{}, "subsets")), age()}
	return define(columns, func(e *corev1.Endpoints, now time.Time) []any {
		var list []string
		for _, subset := range e.Subsets {
			if len(subset.Ports) == 0 {
				for _, address := range subset.Addresses {
					list = append(list, address.IP)
				}
			}
			for _, port := range subset.Ports {
				for _, address := range subset.Addresses {
					list = append(list, net.JoinHostPort(address.IP, strconv.Itoa(int(port.Port))))
				}
			}
		}
		empty := ""
		if len(e.Subsets) == 0 {
			empty = "<none>"
		}
		return []any{e.Name, someOf(list, empty), Age(e.CreationTimestamp, now)}
	})
}

func endpointSliceTable() definition {
	of := discoveryv1.EndpointSlice{}
	columns := []metav1.TableColumnDefinition{name(), text("AddressType", doc(of, "addressType")), text("Ports", doc(of, "ports")), text("Endpoints", doc(of, "endpoints")), age()}
	return define(columns, func(s *discoveryv1.EndpointSlice, now time.Time) []any {
		var ports, endpoints []string
		for _, p := range s.Ports {
			switch {
			case p.Port != nil:
				ports = append(ports, strconv.Itoa(int(*p.Port)))
			case p.Name != nil:
				// A port without number and name is any port.
				ports = append(ports, orElse(*p.Name, "*"))
			default:
				ports = append(ports, "*")
			}
		}
		for _, e := range s.Endpoints {
			endpoints = append(endpoints, e.Addresses...)
		}
		return []any{s.Name, string(s.AddressType), someOf(ports, "<unset>"), someOf(endpoints, "<unset>"), Age(s.CreationTimestamp, now)}
	})
}

func ingressTable() definition {
	columns := []metav1.TableColumnDefinition{
		name(),
		text("Class", "The name of the IngressClass resource that should be used for additional configuration"),
		text("Hosts", "Hosts that incoming requests are matched against before the ingress rule"),
		text("Address", "Address is a list containing ingress points for the load-balancer"),
		text("Ports", "Ports of TLS configurations that open"),
		age(),
	}
	return define(columns, func(i *networkingv1.Ingress, now time.Time) []any {
		ports := "80"
		if len(i.Spec.TLS) > 0 {
			ports = "80, 443"
		}
		addresses := map[string]bool{}
		for _, at := range i.Status.LoadBalancer.Ingress {
			if a := orElse(at.IP, at.Hostname); a != "" {
				addresses[a] = true
			}
		}
		return []any{i.Name, valueOr(i.Spec.IngressClassName, "<none>"), ingressHosts(i.Spec.Rules), strings.Join(sortedKeys(addresses), ","), ports, Age(i.CreationTimestamp, now)}
	})
}

// ingressHosts shows the first hosts, and how many rules come after the third.
func ingressHosts(rules []networkingv1.IngressRule) string {
	var hosts []string
	more := false
	for _, r := range rules {
		if len(hosts) == shown {
			more = true
			break
		}
		if r.Host != "" {
			hosts = append(hosts, r.Host)
		}
	}
	if more {
		return fmt.Sprintf("%s + %d more...", strings.Join(hosts, ","), len(rules)-shown)
	}
	return orElse(strings.Join(hosts, ","), "*")
}

func ingressClassTable() definition {
	columns := []metav1.TableColumnDefinition{
		name(), text("Controller", "Controller that is responsible for handling this class"), text("Parameters", "A reference to a resource with additional parameters"), age(),
	}
	return define(columns, func(c *networkingv1.IngressClass, now time.Time) []any {
		parameters := "<none>"
		if p := c.Spec.Parameters; p != nil {
			parameters = p.Kind
			if p.APIGroup != nil {
				parameters += "." + *p.APIGroup
			}
			parameters += "/" + p.Name
		}
		return []any{c.Name, c.Spec.Controller, parameters, Age(c.CreationTimestamp, now)}
	})
}

func networkPolicyTable() definition {
	columns := []metav1.TableColumnDefinition{name(), text("Pod-Selector", doc(networkingv1.NetworkPolicySpec{}, "podSelector")), age()}
	return define(columns, func(p *networkingv1.NetworkPolicy, now time.Time) []any {
		return []any{p.Name, metav1.FormatLabelSelector(&p.Spec.PodSelector), Age(p.CreationTimestamp, now)}
	})
}

func serviceCIDRTable() definition {
	columns := []metav1.TableColumnDefinition{name(), text("CIDRs", doc(networkingv1.ServiceCIDRSpec{}, "cidrs")), age()}
	return define(columns, func(c *networkingv1.ServiceCIDR, now time.Time) []any {
		return []any{c.Name, strings.Join(c.Spec.CIDRs, ","), Age(c.CreationTimestamp, now)}
	})
}

func ipAddressTable() definition {
	columns := []metav1.TableColumnDefinition{name(), text("ParentRef", doc(networkingv1.IPAddressSpec{}, "parentRef"))}
	return define(columns, func(a *networkingv1.IPAddress, _ time.Time) []any {
		parent := "<none>"
		if ref := a.Spec.ParentRef; ref != nil {
			parent = strings.ToLower(schema.GroupResource{Group: ref.Group, Resource: ref.Resource}.String())
			if ref.Namespace != "" {
				parent += "/" + ref.Namespace
			}
			parent += "/" + ref.Name
		}
		return []any{a.Name, parent}
	})
}
