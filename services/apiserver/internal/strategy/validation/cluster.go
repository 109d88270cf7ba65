package validation

import (
	"slices"

	"fmt"
	"net/netip"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Namespace looks at a namespace, new or changed.
func Namespace(ns *corev1.Namespace) field.ErrorList {
	var errs field.ErrorList
	for i, finalizer := range ns.Spec.Finalizers {
		errs = append(errs, apivalidation.ValidateFinalizerName(string(finalizer), field.NewPath("spec", "finalizers").Index(i))...)
	}
	return errs
}

// NamespaceStatusUpdate looks at a namespace's phase: it ends when it is deleted, and not before.
func NamespaceStatusUpdate(ns, _ *corev1.Namespace) field.ErrorList {
	at := field.NewPath("status", "phase")
	switch deleted := ns.DeletionTimestamp != nil; {
	case !deleted && ns.Status.Phase != corev1.NamespaceActive:
		return field.ErrorList{field.Invalid(at, ns.Status.Phase, "may only be 'Active' if `deletionTimestamp` is empty")}
	case deleted && ns.Status.Phase != corev1.NamespaceTerminating:
		return field.ErrorList{field.Invalid(at, ns.Status.Phase, "may only be 'Terminating' if `deletionTimestamp` is not empty")}
	}
	return nil
}

// Node looks at a new node.
func Node(n *corev1.Node) field.ErrorList {
	at := field.NewPath("spec")
	errs := nodeTaints(at.Child("taints"), n.Spec.Taints)
	errs = append(errs, nodeResources(n)...)
	return append(errs, podCIDRs(at, n)...)
}

func podCIDRs(at *field.Path, n *corev1.Node) field.ErrorList {
	var errs field.ErrorList
	if len(n.Spec.PodCIDRs) > 0 {
		at := at.Child("podCIDRs")
		for i, value := range n.Spec.PodCIDRs {
			errs = append(errs, utilvalidation.IsValidCIDRForLegacyField(at.Index(i), value, false, nil)...)
		}
		if len(n.Spec.PodCIDRs) > 2 {
			errs = append(errs, field.Invalid(at, n.Spec.PodCIDRs, "may specify no more than one CIDR for each IP family"))
		}
		if n.Spec.PodCIDR != "" && n.Spec.PodCIDR != n.Spec.PodCIDRs[0] {
			errs = append(errs, field.Invalid(at.Index(0), n.Spec.PodCIDRs[0], "must match `podCIDR`"))
		}
	} else if n.Spec.PodCIDR != "" {
		errs = append(errs, utilvalidation.IsValidCIDRForLegacyField(at.Child("podCIDR"), n.Spec.PodCIDR, false, nil)...)
	}
	return errs
}

func nodeTaints(at *field.Path, taints []corev1.Taint) field.ErrorList {
	var errs field.ErrorList
	seen := names{}
	for i, taint := range taints {
		at := at.Index(i)
		errs = append(errs, metav1validation.ValidateLabelName(taint.Key, at.Child("key"))...)
		if messages := utilvalidation.IsValidLabelValue(taint.Value); len(messages) > 0 {
			errs = append(errs, field.Invalid(at.Child("value"), taint.Value, messages[0]))
		}
		if taint.Effect == "" {
			errs = append(errs, field.Required(at.Child("effect"), ""))
		} else {
			errs = append(errs, taintEffect(at.Child("effect"), taint.Effect)...)
		}
		if seen.taken(string(taint.Effect) + "/" + taint.Key) {
			err := field.Duplicate(at, taint)
			err.Detail = "taints must be unique by key and effect pair"
			errs = append(errs, err)
		}
	}
	return errs
}

func nodeResources(n *corev1.Node) field.ErrorList {
	var errs field.ErrorList
	for _, list := range []struct {
		name      string
		resources corev1.ResourceList
	}{{"capacity", n.Status.Capacity}, {"allocatable", n.Status.Allocatable}} {
		for _, name := range sortedNames(list.resources) {
			at := field.NewPath("status", list.name).Key(string(name))
			errs = append(errs, resourceName(at, name)...)
			errs = append(errs, ResourceQuantity(at, name, list.resources[name])...)
		}
	}
	return errs
}

// NodeUpdate looks at a changed node. Its range of addresses is the allocator's.
func NodeUpdate(n, old *corev1.Node) field.ErrorList {
	at := field.NewPath("spec")
	errs := nodeTaints(at.Child("taints"), n.Spec.Taints)
	errs = append(errs, podCIDRs(at, n)...)
	if len(old.Spec.PodCIDRs) > 0 && !slices.Equal(n.Spec.PodCIDRs, old.Spec.PodCIDRs) {
		errs = append(errs, field.Forbidden(at.Child("podCIDRs"), "node updates may not change podCIDR except from \"\" to valid"))
	}
	if old.Spec.ProviderID != "" && n.Spec.ProviderID != old.Spec.ProviderID {
		errs = append(errs, field.Forbidden(at.Child("providerID"), "node updates may not change providerID except from \"\" to valid"))
	}
	return errs
}

// NodeStatusUpdate looks at a node's reported state.
func NodeStatusUpdate(n, _ *corev1.Node) field.ErrorList {
	errs := nodeResources(n)
	type key struct {
		kind    corev1.NodeAddressType
		address string
	}
	seen := map[key]bool{}
	for i, address := range n.Status.Addresses {
		k := key{address.Type, address.Address}
		if seen[k] {
			errs = append(errs, field.Duplicate(field.NewPath("status", "addresses").Index(i), address))
		}
		seen[k] = true
	}
	return errs
}

// Endpoints looks at the addresses of a service.
func Endpoints(e *corev1.Endpoints) field.ErrorList {
	var errs field.ErrorList
	for i := range e.Subsets {
		subset, at := &e.Subsets[i], field.NewPath("subsets").Index(i)
		if len(subset.Addresses)+len(subset.NotReadyAddresses) == 0 {
			errs = append(errs, field.Required(at, "must specify `addresses` or `notReadyAddresses`"))
		}
		for _, list := range []struct {
			name      string
			addresses []corev1.EndpointAddress
		}{{"addresses", subset.Addresses}, {"notReadyAddresses", subset.NotReadyAddresses}} {
			for j, address := range list.addresses {
				at := at.Child(list.name).Index(j)
				problems := utilvalidation.IsValidIPForLegacyField(at.Child("ip"), address.IP, false, nil)
				if len(problems) == 0 {
					problems = outsideAddress(at.Child("ip"), address.IP)
				}
				errs = append(errs, problems...)
				if address.Hostname != "" {
					errs = append(errs, dnsLabel(at.Child("hostname"), address.Hostname)...)
				}
				if address.NodeName != nil {
					errs = append(errs, dnsSubdomain(at.Child("nodeName"), *address.NodeName)...)
				}
			}
		}
		for j, port := range subset.Ports {
			at := at.Child("ports").Index(j)
			switch {
			case port.Name == "" && len(subset.Ports) > 1:
				errs = append(errs, field.Required(at.Child("name"), ""))
			case port.Name != "":
				errs = append(errs, dnsLabel(at.Child("name"), port.Name)...)
			}
			errs = append(errs, portNumber(at.Child("port"), port.Port)...)
			errs = append(errs, requiredOneOf(at.Child("protocol"), port.Protocol, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)...)
			if port.AppProtocol != nil {
				errs = append(errs, qualifiedName(at.Child("appProtocol"), *port.AppProtocol)...)
			}
		}
	}
	return errs
}

// Bounds of an endpoint slice; Kubernetes' own.
const (
	maxSliceAddresses = 100
	maxSlicePorts     = 20000
	maxSliceEndpoints = 1000
	maxZoneHints      = 8
)

// EndpointSlice looks at a slice of the addresses of a service.
func EndpointSlice(s *discoveryv1.EndpointSlice) field.ErrorList {
	addressType := field.NewPath("addressType")
	errs := requiredOneOf(addressType, s.AddressType, discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6, discoveryv1.AddressTypeFQDN)
	endpoints, ports := field.NewPath("endpoints"), field.NewPath("ports")
	if len(s.Endpoints) > maxSliceEndpoints {
		return append(errs, field.TooMany(endpoints, len(s.Endpoints), maxSliceEndpoints))
	}
	for i := range s.Endpoints {
		errs = append(errs, sliceEndpoint(endpoints.Index(i), &s.Endpoints[i], s.AddressType)...)
	}
	if len(s.Ports) > maxSlicePorts {
		return append(errs, field.TooMany(ports, len(s.Ports), maxSlicePorts))
	}
	seen := names{}
	for i, port := range s.Ports {
		at := ports.Index(i)
		if port.Name != nil {
			if *port.Name != "" {
				errs = append(errs, dnsLabel(at.Child("name"), *port.Name)...)
			}
			if seen.taken(*port.Name) {
				errs = append(errs, field.Duplicate(at.Child("name"), *port.Name))
			}
		}
		if port.Protocol == nil {
			errs = append(errs, field.Required(at.Child("protocol"), ""))
		} else {
			errs = append(errs, oneOf(at.Child("protocol"), *port.Protocol, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)...)
		}
		if port.Port != nil {
			errs = append(errs, portNumber(at.Child("port"), *port.Port)...)
		}
		if port.AppProtocol != nil {
			errs = append(errs, qualifiedName(at.Child("appProtocol"), *port.AppProtocol)...)
		}
	}
	return errs
}

func sliceEndpoint(at *field.Path, e *discoveryv1.Endpoint, addressType discoveryv1.AddressType) field.ErrorList {
	var errs field.ErrorList
	addresses := at.Child("addresses")
	switch {
	case len(e.Addresses) == 0:
		errs = append(errs, field.Required(addresses, ""))
	case len(e.Addresses) > maxSliceAddresses:
		errs = append(errs, field.TooMany(addresses, len(e.Addresses), maxSliceAddresses))
	}
	for i, address := range e.Addresses {
		at := addresses.Index(i)
		if addressType == discoveryv1.AddressTypeFQDN {
			errs = append(errs, utilvalidation.IsFullyQualifiedDomainName(at, address)...)
			continue
		}
		problems := utilvalidation.IsValidIPForLegacyField(at, address, false, nil)
		if ip, err := netip.ParseAddr(address); err == nil && len(problems) == 0 {
			if is6 := ip.Is6() && !ip.Is4In6(); is6 != (addressType == discoveryv1.AddressTypeIPv6) {
				problems = append(problems, field.Invalid(at, address, fmt.Sprintf("must be an %s address", addressType)))
			} else {
				problems = outsideAddress(at, address)
			}
		}
		errs = append(errs, problems...)
	}
	if e.NodeName != nil {
		errs = append(errs, dnsSubdomain(at.Child("nodeName"), *e.NodeName)...)
	}
	if e.Hostname != nil {
		errs = append(errs, dnsLabel(at.Child("hostname"), *e.Hostname)...)
	}
	errs = append(errs, metav1validation.ValidateLabels(e.DeprecatedTopology, at.Child("deprecatedTopology"))...)
	if e.Hints != nil {
		zones := at.Child("hints", "forZones")
		if len(e.Hints.ForZones) > maxZoneHints {
			errs = append(errs, field.TooMany(zones, len(e.Hints.ForZones), maxZoneHints))
		}
		seen := names{}
		for i, zone := range e.Hints.ForZones {
			if seen.taken(zone.Name) {
				errs = append(errs, field.Duplicate(zones.Index(i).Child("name"), zone.Name))
			}
			errs = append(errs, each(zones.Index(i).Child("name"), zone.Name, utilvalidation.IsValidLabelValue(zone.Name))...)
		}
	}
	return errs
}

// EndpointSliceUpdate looks at a changed slice.
func EndpointSliceUpdate(s, old *discoveryv1.EndpointSlice) field.ErrorList {
	return append(EndpointSlice(s), immutable(field.NewPath("addressType"), s.AddressType, old.AddressType)...)
}

// Lease looks at a lease, new or changed.
func Lease(l *coordinationv1.Lease) field.ErrorList {
	at := field.NewPath("spec")
	var errs field.ErrorList
	if s := l.Spec.LeaseDurationSeconds; s != nil && *s <= 0 {
		errs = append(errs, field.Invalid(at.Child("leaseDurationSeconds"), *s, "must be greater than 0"))
	}
	errs = append(errs, nonNegativePointer(at.Child("leaseTransitions"), l.Spec.LeaseTransitions)...)
	if s := l.Spec.Strategy; s != nil {
		errs = append(errs, qualifiedName(at.Child("strategy"), string(*s))...)
	}
	if p := l.Spec.PreferredHolder; p != nil && *p != "" && (l.Spec.Strategy == nil || *l.Spec.Strategy == "") {
		errs = append(errs, field.Forbidden(at.Child("preferredHolder"), "may only be specified when `strategy` is defined"))
	}
	return errs
}
