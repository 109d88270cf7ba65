package proxy

import (
	"cmp"
	"net/netip"
	"slices"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	discoveryv1 "dhow.dev/gen/go/dhow/discovery/v1"
)

// endpoint is one backend of a service port.
type endpoint struct {
	addr netip.AddrPort
	// local: the endpoint runs on this node.
	local                       bool
	ready, serving, terminating bool
	// hintNode and hintZone: the endpoint's hints name this node, or this node's zone. hasNodeHints and hasZoneHints: it has any.
	hintNode, hintZone         bool
	hasNodeHints, hasZoneHints bool
}

// locality is what the choice of endpoints depends on besides the endpoints.
type locality struct {
	node, zone string
}

// endpointsOf returns the endpoints of one service port, in the order of their addresses. While an endpoint moves from one slice to
// another it can be in both: the one that takes more traffic counts.
func endpointsOf(port *corev1.ServicePort, all []*discoveryv1.EndpointSlice, where locality) []endpoint {
	byAddr := map[netip.AddrPort]endpoint{}
	for _, slice := range all {
		if slice.GetAddressType() != "IPv4" {
			continue
		}
		number := portNumber(slice, port)
		if number == 0 {
			continue
		}
		for _, e := range slice.GetEndpoints() {
			// Only the first address is used; the API keeps further ones fungible with it and says that proxies may ignore them.
			if len(e.GetAddresses()) == 0 {
				continue
			}
			ip, err := netip.ParseAddr(e.GetAddresses()[0])
			if err != nil || !ip.Is4() || !routable(ip) {
				continue
			}
			made := makeEndpoint(netip.AddrPortFrom(ip, number), e, where)
			if known, ok := byAddr[made.addr]; !ok || rank(made) > rank(known) {
				byAddr[made.addr] = made
			}
		}
	}
	list := make([]endpoint, 0, len(byAddr))
	for _, e := range byAddr {
		list = append(list, e)
	}
	slices.SortFunc(list, func(a, b endpoint) int { return a.addr.Compare(b.addr) })
	return list
}

func portNumber(slice *discoveryv1.EndpointSlice, port *corev1.ServicePort) uint16 {
	for _, p := range slice.GetPorts() {
		if p.GetName() == port.GetName() && cmp.Or(p.GetProtocol(), "TCP") == protocolOf(port) {
			if n := p.GetPort(); n > 0 && n < 1<<16 {
				return uint16(n)
			}
		}
	}
	return 0
}

func protocolOf(port *corev1.ServicePort) string { return cmp.Or(port.GetProtocol(), "TCP") }

// routable is false for addresses that would lead to the node itself or to nowhere: whoever may write EndpointSlices must not reach a
// node's loopback services through them.
func routable(ip netip.Addr) bool {
	return !ip.IsLoopback() && !ip.IsUnspecified() && !ip.IsMulticast() && !ip.IsLinkLocalUnicast()
}

// makeEndpoint fills in conditions as the API defines their absence: ready unless it says no, serving as ready, not terminating.
func makeEndpoint(addr netip.AddrPort, e *discoveryv1.Endpoint, where locality) endpoint {
	c := e.GetConditions()
	made := endpoint{
		addr:        addr,
		local:       where.node != "" && e.GetNodeName() == where.node,
		ready:       !c.HasReady() || c.GetReady(),
		terminating: c.GetTerminating(),
	}
	made.serving = made.ready
	if c.HasServing() {
		made.serving = c.GetServing()
	}
	for _, n := range e.GetHints().GetForNodes() {
		made.hasNodeHints = true
		made.hintNode = made.hintNode || n.GetName() == where.node
	}
	for _, z := range e.GetHints().GetForZones() {
		made.hasZoneHints = true
		made.hintZone = made.hintZone || (where.zone != "" && z.GetName() == where.zone)
	}
	return made
}

func rank(e endpoint) int {
	switch {
	case e.ready:
		return 2
	case e.serving:
		return 1
	}
	return 0
}

// usable returns those that take traffic: the ready ones, or when none is ready those that still serve while they terminate.
func usable(all []endpoint) []endpoint {
	ready := filter(all, func(e endpoint) bool { return e.ready })
	if len(ready) > 0 {
		return ready
	}
	return filter(all, func(e endpoint) bool { return e.serving && e.terminating })
}

// near narrows down ready endpoints by their hints. A hint counts only when every endpoint has one and at least one of them is for
// this node or zone: otherwise traffic would be lost or piled on one endpoint while hints are being written.
func near(all []endpoint) []endpoint {
	for _, hint := range []struct{ has, here func(endpoint) bool }{
		{func(e endpoint) bool { return e.hasNodeHints }, func(e endpoint) bool { return e.hintNode }},
		{func(e endpoint) bool { return e.hasZoneHints }, func(e endpoint) bool { return e.hintZone }},
	} {
		if slices.ContainsFunc(all, func(e endpoint) bool { return !e.ready || !hint.has(e) }) {
			continue
		}
		if here := filter(all, hint.here); len(here) > 0 {
			return here
		}
	}
	return all
}

func localOnly(all []endpoint) []endpoint {
	return filter(all, func(e endpoint) bool { return e.local })
}

func filter(all []endpoint, keep func(endpoint) bool) []endpoint {
	var kept []endpoint
	for _, e := range all {
		if keep(e) {
			kept = append(kept, e)
		}
	}
	return kept
}
