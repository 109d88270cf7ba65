package proxy

import (
	"cmp"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	discoveryv1 "dhow.dev/gen/go/dhow/discovery/v1"
	"dhow.dev/pkg/object"
)

// Labels with which a Service declines this proxy (Kubernetes' well-known labels).
const (
	labelHeadless  = "service.kubernetes.io/headless"
	labelProxyName = "service.kubernetes.io/service-proxy-name"
)

const defaultAffinitySeconds = 10800 // the API's default for sessionAffinityConfig.clientIP.timeoutSeconds

// plan is what one Service or pod wants in the kernel. Chains and sets carry the owner's name and belong to it alone; elements sit in
// maps and sets that all owners share, so two owners may want the same one.
type plan struct {
	chains map[string][]string
	// affinity sets by name, with the seconds that a client stays.
	sets     map[string]int
	elements map[slot]string
	// udp: the addresses that clients send to, and the backends that may answer. Connection tracking remembers UDP flows that no
	// packet ends, so those to other backends have to be forgotten.
	udp map[netip.AddrPort]map[netip.AddrPort]bool
}

// slot is a place for an element: the name of a map or set, and the element's key.
type slot struct {
	container, key string
}

func newPlan() plan {
	return plan{chains: map[string][]string{}, sets: map[string]int{}, elements: map[slot]string{}, udp: map[netip.AddrPort]map[netip.AddrPort]bool{}}
}

// compiler turns objects into plans. It is pure.
type compiler struct {
	locality
	nodeIPs      []netip.Addr
	clusterCIDRs []netip.Prefix
	nodeLocal    []netip.Addr
}

// proxied says whether a Service has anything to do here.
func proxied(svc *corev1.Service) bool {
	labels := svc.GetMetadata().GetLabels()
	_, headless := labels[labelHeadless]
	_, other := labels[labelProxyName]
	ip := svc.GetSpec().GetClusterIp()
	return !headless && !other && svc.GetSpec().GetType() != "ExternalName" && ip != "" && ip != "None"
}

// service compiles one Service with all its EndpointSlices.
func (c *compiler) service(key object.Key, svc *corev1.Service, all []*discoveryv1.EndpointSlice) plan {
	p := newPlan()
	if svc == nil || !proxied(svc) {
		return p
	}
	clusterIPs := c.clusterIPs(svc)
	for _, ip := range clusterIPs {
		p.elements[slot{setClusterIPs, ip.String()}] = ""
	}
	for _, port := range svc.GetSpec().GetPorts() {
		if !validPort(port) {
			continue
		}
		b := portPlan{compiler: c, plan: p, spec: svc.GetSpec(), port: port, protocol: strings.ToLower(protocolOf(port))}
		b.name = fmt.Sprintf("%s/%s/%s/%s", key.Namespace, key.Name, b.protocol, port.GetName())
		b.compile(endpointsOf(port, all, c.locality), clusterIPs, publicIPs(svc))
	}
	return p
}

var portName = regexp.MustCompile(`^[a-z0-9-]*$`)

func validPort(port *corev1.ServicePort) bool {
	switch protocolOf(port) {
	case "TCP", "UDP", "SCTP":
	default:
		return false
	}
	return port.GetPort() > 0 && port.GetPort() < 1<<16 && portName.MatchString(port.GetName())
}

func (c *compiler) clusterIPs(svc *corev1.Service) []netip.Addr {
	given := svc.GetSpec().GetClusterIps()
	if len(given) == 0 {
		given = []string{svc.GetSpec().GetClusterIp()}
	}
	var ips []netip.Addr
	for _, ip := range parse4(given) {
		if !slices.Contains(c.nodeLocal, ip) {
			ips = append(ips, ip)
		}
	}
	return ips
}

type public struct {
	ip netip.Addr
	// ranges are the only sources that may use the address; empty: all may.
	ranges []netip.Prefix
}

// publicIPs are a Service's addresses besides its cluster IPs.
func publicIPs(svc *corev1.Service) []public {
	var list []public
	for _, ip := range parse4(svc.GetSpec().GetExternalIps()) {
		list = append(list, public{ip: ip})
	}
	if svc.GetSpec().GetType() != "LoadBalancer" {
		return list
	}
	var ranges []netip.Prefix
	for _, r := range svc.GetSpec().GetLoadBalancerSourceRanges() {
		if prefix, err := netip.ParsePrefix(strings.TrimSpace(r)); err == nil && prefix.Addr().Is4() {
			ranges = append(ranges, prefix.Masked())
		}
	}
	for _, ingress := range svc.GetStatus().GetLoadBalancer().GetIngress() {
		if cmp.Or(ingress.GetIpMode(), "VIP") != "VIP" {
			continue
		}
		for _, ip := range parse4([]string{ingress.GetIp()}) {
			list = append(list, public{ip: ip, ranges: ranges})
		}
	}
	return list
}

func parse4(given []string) []netip.Addr {
	var ips []netip.Addr
	for _, s := range given {
		if ip, err := netip.ParseAddr(s); err == nil && ip.Is4() {
			ips = append(ips, ip)
		}
	}
	return ips
}

// portPlan builds the part of a plan that belongs to one service port.
type portPlan struct {
	*compiler
	plan
	spec     *corev1.ServiceSpec
	port     *corev1.ServicePort
	protocol string
	// name is namespace/service/protocol/port: unique, because none of the four can hold a slash.
	name string
}

func (b *portPlan) compile(all []endpoint, clusterIPs []netip.Addr, publics []public) {
	everywhere := usable(all)
	here := usable(localOnly(all))
	spread := near(everywhere)
	internal, external := spread, spread
	internalChain, externalSpread := "svc-"+b.name, "svc-"+b.name
	if b.spec.GetInternalTrafficPolicy() == "Local" {
		internal, internalChain = here, "loc-"+b.name
	}
	externalLocal := b.spec.GetExternalTrafficPolicy() == "Local"
	if externalLocal {
		external = here
	}
	nodePort := uint16(b.port.GetNodePort())
	exposed := nodePort != 0 || len(publics) > 0

	for _, ip := range clusterIPs {
		b.frontend(slot{mapServices, b.key(ip)}, slot{mapNoEndpoints, b.key(ip)}, internal, everywhere, internalChain)
		b.track(netip.AddrPortFrom(ip, uint16(b.port.GetPort())), internal)
	}
	externalChain := "ext-" + b.name
	for _, p := range publics {
		target := externalChain
		if len(p.ranges) > 0 {
			target = "fw-" + b.name
			b.chains[target] = []string{fmt.Sprintf("ip saddr != { %s } drop", join(p.ranges)), "goto " + externalChain}
		}
		b.frontend(slot{mapServices, b.key(p.ip)}, slot{mapNoEndpoints, b.key(p.ip)}, external, everywhere, target)
		b.track(netip.AddrPortFrom(p.ip, uint16(b.port.GetPort())), external, spread)
	}
	if nodePort != 0 {
		key := fmt.Sprintf("%s . %d", b.protocol, nodePort)
		b.frontend(slot{mapNodePorts, key}, slot{mapNoEndpointNodePorts, key}, external, everywhere, externalChain)
		for _, ip := range b.nodeIPs {
			b.track(netip.AddrPortFrom(ip, nodePort), external, spread)
		}
	}

	// Chains exist exactly when something leads to them: an empty chain would let packets pass unchanged.
	usesExternal := exposed && len(external) > 0
	if (len(clusterIPs) > 0 && internalChain == externalSpread || usesExternal) && len(spread) > 0 {
		b.balance("svc-"+b.name, spread)
	}
	if (len(clusterIPs) > 0 && internalChain == "loc-"+b.name || usesExternal && externalLocal) && len(here) > 0 {
		b.balance("loc-"+b.name, here)
	}
	if usesExternal {
		b.chains[externalChain] = b.externalRules(externalLocal)
	}
	if !usesExternal {
		delete(b.chains, "fw-"+b.name)
	}
}

// externalRules lead from a public address to the endpoints. Sources are hidden behind this node's address, because an endpoint
// elsewhere would answer the client directly; policy Local keeps the source and so may use only endpoints of this node, except
// for the cluster's own clients, which are served as if they had asked the cluster IP.
func (b *portPlan) externalRules(local bool) []string {
	if !local {
		return []string{"jump " + chainMark, "goto svc-" + b.name}
	}
	rules := []string{}
	if len(b.clusterCIDRs) > 0 {
		rules = append(rules, fmt.Sprintf("ip saddr { %s } goto svc-%s", join(b.clusterCIDRs), b.name))
	}
	return append(rules,
		"fib saddr type local jump "+chainMark,
		"fib saddr type local goto svc-"+b.name,
		"goto loc-"+b.name)
}

// frontend leads an address to its chain, or says what becomes of packets that nobody serves: refused when there is no endpoint at
// all, dropped when there are some but none on this node (so that a client or load balancer tries another node).
func (b *portPlan) frontend(serving, missing slot, usable, everywhere []endpoint, chain string) {
	switch {
	case len(usable) > 0:
		b.elements[serving] = "goto " + chain
	case len(everywhere) > 0:
		b.elements[missing] = "drop"
	default:
		b.elements[missing] = "goto " + chainReject
	}
}

func (b *portPlan) track(front netip.AddrPort, sets ...[]endpoint) {
	if b.protocol != "udp" {
		return
	}
	backends := map[netip.AddrPort]bool{}
	for _, set := range sets {
		for _, e := range set {
			backends[e.addr] = true
		}
	}
	b.udp[front] = backends
}

// balance fills a chain that sends each new connection to one of the endpoints. Without affinity that is one rule, whatever the
// number of endpoints. With affinity each endpoint keeps its clients in a set of its own: it survives changes of the
// others and vanishes with the endpoint.
func (b *portPlan) balance(chain string, endpoints []endpoint) {
	for _, e := range endpoints {
		if e.local && !slices.Contains(b.nodeIPs, e.addr.Addr()) {
			ip := e.addr.Addr().String()
			b.elements[slot{setHairpin, ip + " . " + ip}] = ""
		}
	}
	if b.spec.GetSessionAffinity() != "ClientIP" {
		b.chains[chain] = []string{b.dnat(endpoints)}
		return
	}
	seconds := int(b.spec.GetSessionAffinityConfig().GetClientIp().GetTimeoutSeconds())
	if seconds <= 0 {
		seconds = defaultAffinitySeconds
	}
	var rules, choices []string
	for i, e := range endpoints {
		id := fmt.Sprintf("%s/%s/%d", b.name, e.addr.Addr(), e.addr.Port())
		// The time is part of the name because a set's timeout cannot be changed.
		set := fmt.Sprintf("aff-%d/%s", seconds, id)
		b.sets[set] = seconds
		b.chains["ep-"+id] = []string{fmt.Sprintf("update @%s { ip saddr }", set), b.dnat([]endpoint{e})}
		rules = append(rules, fmt.Sprintf("ip saddr @%s goto ep-%s", set, id))
		choices = append(choices, fmt.Sprintf("%d : goto ep-%s", i, id))
	}
	b.chains[chain] = append(rules, fmt.Sprintf("numgen random mod %d vmap { %s }", len(endpoints), strings.Join(choices, " , ")))
}

func (b *portPlan) dnat(endpoints []endpoint) string {
	if len(endpoints) == 1 {
		return fmt.Sprintf("meta l4proto %s dnat to %s", b.protocol, endpoints[0].addr)
	}
	choices := make([]string, len(endpoints))
	for i, e := range endpoints {
		choices[i] = fmt.Sprintf("%d : %s . %d", i, e.addr.Addr(), e.addr.Port())
	}
	return fmt.Sprintf("meta l4proto %s dnat ip addr . port to numgen random mod %d map { %s }", b.protocol, len(endpoints), strings.Join(choices, " , "))
}

func (b *portPlan) key(ip netip.Addr) string {
	return fmt.Sprintf("%s . %s . %d", ip, b.protocol, b.port.GetPort())
}

// pod compiles the host ports of a pod of this node.
func (c *compiler) pod(pod *corev1.Pod) plan {
	p := newPlan()
	if pod == nil || pod.GetSpec().GetHostNetwork() || finished(pod) {
		return p
	}
	ip, err := netip.ParseAddr(pod.GetStatus().GetPodIp())
	if err != nil || !ip.Is4() {
		return p
	}
	for _, container := range slices.Concat(pod.GetSpec().GetInitContainers(), pod.GetSpec().GetContainers()) {
		for _, port := range container.GetPorts() {
			c.hostPort(p, ip, port)
		}
	}
	return p
}

func finished(pod *corev1.Pod) bool {
	phase := pod.GetStatus().GetPhase()
	return phase == "Succeeded" || phase == "Failed"
}

func (c *compiler) hostPort(p plan, ip netip.Addr, port *corev1.ContainerPort) {
	number := port.GetHostPort()
	if number <= 0 || number >= 1<<16 || port.GetContainerPort() <= 0 {
		return
	}
	protocol := strings.ToLower(cmp.Or(port.GetProtocol(), "TCP"))
	backend := netip.AddrPortFrom(ip, uint16(port.GetContainerPort()))
	value := fmt.Sprintf("%s . %d", backend.Addr(), backend.Port())
	key := fmt.Sprintf("%s . %d", protocol, number)
	fronts := c.nodeIPs
	hostIP, err := netip.ParseAddr(port.GetHostIp())
	switch {
	case err == nil && hostIP.Is4() && !hostIP.IsUnspecified():
		p.elements[slot{mapHostIPPorts, hostIP.String() + " . " + key}] = value
		fronts = []netip.Addr{hostIP}
	case port.GetHostIp() == "" || err == nil && hostIP.IsUnspecified():
		p.elements[slot{mapHostPorts, key}] = value
	default:
		return
	}
	p.elements[slot{setHairpin, fmt.Sprintf("%s . %s", ip, ip)}] = ""
	if protocol == "udp" {
		for _, front := range fronts {
			p.udp[netip.AddrPortFrom(front, uint16(number))] = map[netip.AddrPort]bool{backend: true}
		}
	}
}

// join writes the elements of an anonymous set.
func join[T fmt.Stringer](values []T) string {
	texts := make([]string, len(values))
	for i, v := range values {
		texts[i] = v.String()
	}
	return strings.Join(texts, ", ")
}
