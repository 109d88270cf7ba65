package allocator

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"

	storev1 "dhow.dev/gen/go/dhow/store/v1"
)

const (
	clusterIPPrefix = "/claims/clusterips/"
	nodePortPrefix  = "/claims/nodeports/"
	// maxAddresses bounds the memory of the hint; Kubernetes has the same bound.
	maxAddresses = 1 << 20
)

// ServicesConfig is what services share.
type ServicesConfig struct {
	Store storev1.StoreClient
	// Range is that of the cluster IPs.
	Range netip.Prefix
	// FirstNodePort and LastNodePort bound the node ports, both included.
	FirstNodePort, LastNodePort uint16
}

// Services gives services their cluster IPs and node ports.
type Services struct {
	network     netip.Prefix
	first, last int
	ips, ports  *pool
}

var _ Allocator = (*Services)(nil)

// NewServices returns the allocator of services.
func NewServices(cfg ServicesConfig) (*Services, error) {
	network := cfg.Range.Masked()
	if !network.IsValid() || network.Addr().BitLen()-network.Bits() < 2 {
		return nil, fmt.Errorf("service range %s is too small: it needs four addresses at least", cfg.Range)
	}
	if cfg.FirstNodePort == 0 || cfg.FirstNodePort > cfg.LastNodePort {
		return nil, fmt.Errorf("node port range %d-%d is empty", cfg.FirstNodePort, cfg.LastNodePort)
	}
	size := maxAddresses
	if host := network.Addr().BitLen() - network.Bits(); host < 20 {
		size = 1 << host
	}
	s := &Services{network: network, first: int(cfg.FirstNodePort), last: int(cfg.LastNodePort)}
	s.ips = newPool(cfg.Store, clusterIPPrefix, size, func(i int) string { return addressAt(network, i).String() }, s.parseIP)
	s.ports = newPool(cfg.Store, nodePortPrefix, s.last-s.first+1, func(i int) string { return strconv.Itoa(s.first + i) }, s.parsePort)
	return s, nil
}

func (s *Services) parseIP(text string) (int, bool) {
	address, err := netip.ParseAddr(text)
	if err != nil {
		return 0, false
	}
	return offsetOf(s.network, address, s.ips.size)
}

func (s *Services) parsePort(text string) (int, bool) {
	port, err := strconv.Atoi(text)
	return port - s.first, err == nil && port >= s.first && port <= s.last
}

// hasIPs says whether services of the type have cluster IPs (or are headless).
func hasIPs(svc *corev1.Service) bool {
	switch svc.Spec.Type {
	case corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer, "":
		return true
	}
	return false
}

func isHeadless(svc *corev1.Service) bool { return svc.Spec.ClusterIP == corev1.ClusterIPNone }

func hasNodePorts(svc *corev1.Service) bool {
	switch svc.Spec.Type {
	case corev1.ServiceTypeNodePort:
		return true
	case corev1.ServiceTypeLoadBalancer:
		return svc.Spec.AllocateLoadBalancerNodePorts == nil || *svc.Spec.AllocateLoadBalancerNodePorts
	}
	return false
}

func hasHealthCheckPort(svc *corev1.Service) bool {
	return svc.Spec.Type == corev1.ServiceTypeLoadBalancer && svc.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
}

// Prepare carries over what was allocated and the update left out, gives up what the new type does not have, and fills in the address family.
func (s *Services) Prepare(obj, old runtime.Object) {
	svc := obj.(*corev1.Service)
	if old != nil {
		before := old.(*corev1.Service)
		normalize(svc, before)
		dropForType(svc, before)
		keep(svc, before)
	}
	if svc.Spec.ClusterIP != "" && len(svc.Spec.ClusterIPs) == 0 {
		svc.Spec.ClusterIPs = []string{svc.Spec.ClusterIP}
	}
	if !hasIPs(svc) {
		return
	}
	if svc.Spec.IPFamilyPolicy == nil {
		single := corev1.IPFamilyPolicySingleStack
		svc.Spec.IPFamilyPolicy = &single
	}
	if len(svc.Spec.IPFamilies) == 0 {
		svc.Spec.IPFamilies = []corev1.IPFamily{s.family()}
	}
}

func (s *Services) family() corev1.IPFamily {
	if s.network.Addr().Is4() {
		return corev1.IPv4Protocol
	}
	return corev1.IPv6Protocol
}

// normalize lets clients that know clusterIP alone change it: clusterIPs follows.
func normalize(svc, before *corev1.Service) {
	if svc.Spec.ClusterIP == before.Spec.ClusterIP || !slices.Equal(svc.Spec.ClusterIPs, before.Spec.ClusterIPs) {
		return
	}
	svc.Spec.ClusterIPs = nil
	if svc.Spec.ClusterIP != "" {
		svc.Spec.ClusterIPs = []string{svc.Spec.ClusterIP}
	}
}

// dropForType empties the fields that the old type had and the new one does not, unless the user changed them too.
func dropForType(svc, before *corev1.Service) {
	if hasIPs(before) && !hasIPs(svc) && svc.Spec.ClusterIP == before.Spec.ClusterIP && slices.Equal(svc.Spec.ClusterIPs, before.Spec.ClusterIPs) {
		svc.Spec.ClusterIP, svc.Spec.ClusterIPs = "", nil
		svc.Spec.IPFamilies, svc.Spec.IPFamilyPolicy = nil, nil
	}
	if hasNodePorts(before) && !hasNodePorts(svc) {
		had := nodePorts(before)
		for i := range svc.Spec.Ports {
			if slices.Contains(had, svc.Spec.Ports[i].NodePort) {
				svc.Spec.Ports[i].NodePort = 0
			}
		}
	}
	if hasHealthCheckPort(before) && !hasHealthCheckPort(svc) && svc.Spec.HealthCheckNodePort == before.Spec.HealthCheckNodePort {
		svc.Spec.HealthCheckNodePort = 0
	}
}

// keep carries over what a client that sends its own manifest again does not know.
func keep(svc, before *corev1.Service) {
	if hasIPs(before) && hasIPs(svc) {
		if svc.Spec.ClusterIP == "" {
			svc.Spec.ClusterIP = before.Spec.ClusterIP
		}
		if len(svc.Spec.ClusterIPs) == 0 && svc.Spec.ClusterIP == before.Spec.ClusterIP {
			svc.Spec.ClusterIPs = before.Spec.ClusterIPs
		}
	}
	if hasNodePorts(before) && hasNodePorts(svc) {
		used := nodePorts(svc)
		for i := range svc.Spec.Ports {
			p := &svc.Spec.Ports[i]
			if p.NodePort != 0 {
				continue
			}
			for _, was := range before.Spec.Ports {
				if was.Name == p.Name && was.NodePort != 0 && !slices.Contains(used, was.NodePort) {
					p.NodePort = was.NodePort
					used = append(used, was.NodePort)
					break
				}
			}
		}
	}
	if hasHealthCheckPort(before) && hasHealthCheckPort(svc) && svc.Spec.HealthCheckNodePort == 0 {
		svc.Spec.HealthCheckNodePort = before.Spec.HealthCheckNodePort
	}
}

func nodePorts(svc *corev1.Service) []int32 {
	var ports []int32
	for _, p := range svc.Spec.Ports {
		if p.NodePort != 0 {
			ports = append(ports, p.NodePort)
		}
	}
	return ports
}

// Allocate is of Allocator.
func (s *Services) Allocate(ctx context.Context, claims Claims, obj, old runtime.Object) field.ErrorList {
	heldIPs, heldPorts := map[int]bool{}, map[int]bool{}
	if old != nil {
		heldIPs, heldPorts = s.holds(old.(*corev1.Service))
	}
	var errs field.ErrorList
	keptIPs, keptPorts := map[int]bool{}, map[int]bool{}
	if obj != nil {
		svc := obj.(*corev1.Service)
		errs = append(errs, s.allocateIPs(ctx, claims, svc, heldIPs)...)
		errs = append(errs, s.allocatePorts(ctx, claims, svc, heldPorts)...)
		keptIPs, keptPorts = s.holds(svc)
	}
	for i := range heldIPs {
		if !keptIPs[i] {
			s.ips.release(claims, i)
		}
	}
	for i := range heldPorts {
		if !keptPorts[i] {
			s.ports.release(claims, i)
		}
	}
	return errs
}

// holds returns the numbers of the addresses and ports that a service has.
func (s *Services) holds(svc *corev1.Service) (ips, ports map[int]bool) {
	ips, ports = map[int]bool{}, map[int]bool{}
	if hasIPs(svc) && !isHeadless(svc) {
		for _, ip := range svc.Spec.ClusterIPs {
			if i, ok := s.parseIP(ip); ok {
				ips[i] = true
			}
		}
	}
	for _, port := range append(nodePorts(svc), svc.Spec.HealthCheckNodePort) {
		if i, ok := s.parsePort(strconv.Itoa(int(port))); ok {
			ports[i] = true
		}
	}
	return ips, ports
}

func holder(resource string, o interface {
	GetNamespace() string
	GetName() string
},
) []byte {
	return []byte(resource + "/" + o.GetNamespace() + "/" + o.GetName())
}

func (s *Services) allocateIPs(ctx context.Context, claims Claims, svc *corev1.Service, held map[int]bool) field.ErrorList {
	if !hasIPs(svc) {
		return nil
	}
	spec := field.NewPath("spec")
	for i, family := range svc.Spec.IPFamilies {
		if family != s.family() {
			return field.ErrorList{field.Invalid(spec.Child("ipFamilies").Index(i), family, "not configured on this cluster")}
		}
	}
	if p := svc.Spec.IPFamilyPolicy; p != nil && *p == corev1.IPFamilyPolicyRequireDualStack {
		return field.ErrorList{field.Invalid(spec.Child("ipFamilyPolicy"), *p, "this cluster is not configured for dual-stack services")}
	}
	if isHeadless(svc) {
		return nil
	}
	if len(svc.Spec.ClusterIPs) > 0 {
		for _, ip := range svc.Spec.ClusterIPs {
			if reason := s.claimIP(claims, ip, held, svc); reason != "" {
				return field.ErrorList{field.Invalid(spec.Child("clusterIPs"), svc.Spec.ClusterIPs, fmt.Sprintf("failed to allocate IP %s: %s", ip, reason))}
			}
		}
		return nil
	}
	i, ok, err := s.pickIP(ctx, claims, holder("services", svc))
	if err != nil {
		return field.ErrorList{field.InternalError(spec.Child("clusterIP"), err)}
	}
	if !ok {
		return field.ErrorList{field.InternalError(spec.Child("clusterIP"), fmt.Errorf("failed to allocate a serviceIP: range is full"))}
	}
	svc.Spec.ClusterIP = s.ips.name(i)
	svc.Spec.ClusterIPs = []string{svc.Spec.ClusterIP}
	return nil
}

// claimIP claims an address that the service asks for, and returns why it cannot have it.
func (s *Services) claimIP(claims Claims, ip string, held map[int]bool, svc *corev1.Service) string {
	i, ok := s.parseIP(ip)
	if !ok || i == 0 || s.isBroadcast(i) {
		return fmt.Sprintf("the provided IP (%s) is not in the valid range. The range of valid IPs is %s", ip, s.network)
	}
	if !held[i] && !s.ips.claim(claims, i, holder("services", svc)) {
		return "provided IP is already allocated"
	}
	return ""
}

func (s *Services) isBroadcast(i int) bool { return s.network.Addr().Is4() && i == s.ips.size-1 }

// pickIP chooses an address at random: out of the upper part first, since people choose addresses by hand out of the lower one (Kubernetes keeps it
// free in the same way).
func (s *Services) pickIP(ctx context.Context, claims Claims, holder []byte) (int, bool, error) {
	end := s.ips.size
	if s.network.Addr().Is4() {
		end-- // the broadcast address
	}
	low := min(max(16, s.ips.size/16), 256)
	if low < end {
		i, ok, err := s.ips.pick(ctx, claims, low, end, random(low, end), holder)
		if ok || err != nil {
			return i, ok, err
		}
	}
	low = min(low, end)
	return s.ips.pick(ctx, claims, 1, low, random(1, low), holder)
}

func (s *Services) allocatePorts(ctx context.Context, claims Claims, svc *corev1.Service, held map[int]bool) field.ErrorList {
	var errs field.ErrorList
	mine := map[int]bool{}
	ask := func(path *field.Path, port int32) {
		i, ok := s.parsePort(strconv.Itoa(int(port)))
		switch {
		case !ok:
			errs = append(errs, field.Invalid(path, port, fmt.Sprintf("provided port is not in the valid range. The range of valid ports is %d-%d", s.first, s.last)))
		case held[i] || mine[i]:
		case !s.ports.claim(claims, i, holder("services", svc)):
			errs = append(errs, field.Invalid(path, port, "provided port is already allocated"))
		}
		mine[i] = true
	}
	choose := func(path *field.Path, port *int32) {
		start := random(0, s.ports.size)
		i, ok, err := s.ports.pick(ctx, claims, 0, s.ports.size, start, holder("services", svc))
		switch {
		case err != nil:
			errs = append(errs, field.InternalError(path, err))
		case !ok:
			errs = append(errs, field.InternalError(path, fmt.Errorf("failed to allocate a nodePort: range is full")))
		default:
			*port = int32(s.first + i)
			mine[i] = true
		}
	}
	ports := field.NewPath("spec", "ports")
	for i := range svc.Spec.Ports {
		if p := svc.Spec.Ports[i].NodePort; p != 0 {
			ask(ports.Index(i).Child("nodePort"), p)
		}
	}
	if hasNodePorts(svc) {
		for i := range svc.Spec.Ports {
			p := &svc.Spec.Ports[i]
			if p.NodePort != 0 {
				continue
			}
			if p.NodePort = sharedPort(svc, i); p.NodePort == 0 {
				choose(ports.Index(i).Child("nodePort"), &p.NodePort)
			}
		}
	}
	if hasHealthCheckPort(svc) {
		path := field.NewPath("spec", "healthCheckNodePort")
		if svc.Spec.HealthCheckNodePort != 0 {
			ask(path, svc.Spec.HealthCheckNodePort)
		} else {
			choose(path, &svc.Spec.HealthCheckNodePort)
		}
	}
	return errs
}

// sharedPort returns the node port of the same port with another protocol: both are reached at one number.
func sharedPort(svc *corev1.Service, index int) int32 {
	mine := svc.Spec.Ports[index]
	for i, p := range svc.Spec.Ports {
		if i == index || p.Port != mine.Port || p.Protocol == mine.Protocol || p.NodePort == 0 {
			continue
		}
		taken := slices.ContainsFunc(svc.Spec.Ports, func(q corev1.ServicePort) bool { return q.NodePort == p.NodePort && q.Protocol == mine.Protocol })
		if !taken {
			return p.NodePort
		}
	}
	return 0
}
