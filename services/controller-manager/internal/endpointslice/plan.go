package endpointslice

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	discoveryv1 "dhow.dev/gen/go/dhow/discovery/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/services/controller-manager/internal/ownership"
	"dhow.dev/services/controller-manager/internal/podstate"
	"dhow.dev/services/controller-manager/internal/servicepods"
)

const (
	labelService   = "kubernetes.io/service-name"
	labelManagedBy = "endpointslice.kubernetes.io/managed-by"
	manager        = "endpointslice-controller.k8s.io"

	// maxEndpoints bounds a slice, as in Kubernetes by default.
	maxEndpoints = 100
)

// group is what all endpoints of a slice have in common.
type group struct {
	family string
	ports  []*discoveryv1.EndpointPort
	// endpoints by identity.
	endpoints map[string]*discoveryv1.Endpoint
}

// wanted returns the endpoints that a Service should have, by a key of their family and ports. Each family has at least one group, so that a
// Service without endpoints has an empty slice rather than none.
func wanted(svc *corev1.Service, pods []*corev1.Pod, zoneOf func(node string) string) map[string]*group {
	groups := map[string]*group{}
	for _, family := range servicepods.Families(svc) {
		found := false
		for _, p := range pods {
			var addresses []string
			for _, ip := range servicepods.IPs(p) {
				if servicepods.Family(ip) == family {
					addresses = append(addresses, ip)
				}
			}
			if len(addresses) == 0 {
				continue
			}
			found = true
			ports := portsOf(svc, p)
			key := groupKey(family, ports)
			if groups[key] == nil {
				groups[key] = &group{family: family, ports: ports, endpoints: map[string]*discoveryv1.Endpoint{}}
			}
			// Kubernetes too publishes one address of a family only.
			e := endpointOf(svc, p, addresses[:1], zoneOf)
			groups[key].endpoints[identity(e)] = e
		}
		if !found {
			groups[groupKey(family, nil)] = &group{family: family, endpoints: map[string]*discoveryv1.Endpoint{}}
		}
	}
	return groups
}

func portsOf(svc *corev1.Service, p *corev1.Pod) []*discoveryv1.EndpointPort {
	var ports []*discoveryv1.EndpointPort
	for _, sp := range svc.GetSpec().GetPorts() {
		number, ok := servicepods.Port(sp, p)
		if !ok {
			continue
		}
		port := discoveryv1.EndpointPort_builder{
			Name: proto.String(sp.GetName()), Protocol: proto.String(servicepods.Protocol(sp)), Port: proto.Int32(number),
		}.Build()
		if sp.HasAppProtocol() {
			port.SetAppProtocol(sp.GetAppProtocol())
		}
		ports = append(ports, port)
	}
	return ports
}

func endpointOf(svc *corev1.Service, p *corev1.Pod, addresses []string, zoneOf func(string) string) *discoveryv1.Endpoint {
	serving := podstate.IsReady(p)
	terminating := p.GetMetadata().HasDeletionTimestamp()
	ready := svc.GetSpec().GetPublishNotReadyAddresses() || (serving && !terminating)
	e := discoveryv1.Endpoint_builder{
		Addresses: addresses,
		Conditions: discoveryv1.EndpointConditions_builder{
			Ready: proto.Bool(ready), Serving: proto.Bool(serving), Terminating: proto.Bool(terminating),
		}.Build(),
		TargetRef: servicepods.Reference(p),
	}.Build()
	node := p.GetSpec().GetNodeName()
	zone := ""
	if node != "" {
		e.SetNodeName(node)
		if zone = zoneOf(node); zone != "" {
			e.SetZone(zone)
		}
	}
	if hostname := servicepods.Hostname(svc, p); hostname != "" {
		e.SetHostname(hostname)
	}
	if ready {
		setHints(svc, e, node, zone)
	}
	return e
}

// setHints says for whom an endpoint is meant, when the Service asks for traffic to stay close.
func setHints(svc *corev1.Service, e *discoveryv1.Endpoint, node, zone string) {
	hints := &discoveryv1.EndpointHints{}
	switch svc.GetSpec().GetTrafficDistribution() {
	case "PreferClose", "PreferSameZone":
	case "PreferSameNode":
		if node != "" {
			hints.SetForNodes([]*discoveryv1.ForNode{discoveryv1.ForNode_builder{Name: proto.String(node)}.Build()})
		}
	default:
		return
	}
	if zone != "" {
		hints.SetForZones([]*discoveryv1.ForZone{discoveryv1.ForZone_builder{Name: proto.String(zone)}.Build()})
	}
	if len(hints.GetForNodes())+len(hints.GetForZones()) > 0 {
		e.SetHints(hints)
	}
}

// identity tells endpoints of one Service apart, whatever their conditions are.
func identity(e *discoveryv1.Endpoint) string {
	return e.GetTargetRef().GetUid() + "|" + e.GetTargetRef().GetName() + "|" + strings.Join(e.GetAddresses(), ",")
}

func groupKey(family string, ports []*discoveryv1.EndpointPort) string {
	texts := make([]string, len(ports))
	for i, p := range ports {
		texts[i] = fmt.Sprintf("%s|%s|%d|%s", p.GetName(), p.GetProtocol(), p.GetPort(), p.GetAppProtocol())
	}
	slices.Sort(texts)
	return family + "|" + strings.Join(texts, ";")
}

// plan is what to write so that the slices hold the wanted endpoints.
type plan struct {
	create, update, remove []*discoveryv1.EndpointSlice
}

// planSlices changes as few slices as possible: endpoints stay where they are; new ones fill up slices that change anyway, then the fullest slice that
// has room for all of them, then slices that would be deleted, then new ones.
func planSlices(svc *corev1.Service, existing []*discoveryv1.EndpointSlice, groups map[string]*group) plan {
	var p plan
	existing = slices.Clone(existing)
	slices.SortFunc(existing, func(a, b *discoveryv1.EndpointSlice) int {
		return strings.Compare(a.GetMetadata().GetName(), b.GetMetadata().GetName())
	})
	byGroup := map[string][]*discoveryv1.EndpointSlice{}
	for _, s := range existing {
		key := groupKey(s.GetAddressType(), s.GetPorts())
		if groups[key] == nil {
			p.remove = append(p.remove, s)
			continue
		}
		byGroup[key] = append(byGroup[key], s)
	}
	for _, key := range slices.Sorted(maps.Keys(groups)) {
		p.group(svc, groups[key], byGroup[key])
	}
	p.recycle()
	return p
}

// draft is a slice in the making.
type draft struct {
	slice     *discoveryv1.EndpointSlice
	endpoints []*discoveryv1.Endpoint
	changed   bool
}

func (p *plan) group(svc *corev1.Service, g *group, existing []*discoveryv1.EndpointSlice) {
	missing := maps.Clone(g.endpoints)
	var drafts []*draft
	for _, s := range existing {
		d := &draft{slice: s, changed: !maps.Equal(s.GetMetadata().GetLabels(), labelsOf(svc))}
		for _, have := range s.GetEndpoints() {
			e := missing[identity(have)]
			if e == nil {
				d.changed = true // gone, or in a slice before this one as well
				continue
			}
			delete(missing, identity(have))
			d.changed = d.changed || !proto.Equal(have, e)
			d.endpoints = append(d.endpoints, e)
		}
		drafts = append(drafts, d)
	}
	fresh := make([]*discoveryv1.Endpoint, 0, len(missing))
	for _, id := range slices.Sorted(maps.Keys(missing)) {
		fresh = append(fresh, missing[id])
	}
	fill := func(d *draft) {
		n := min(len(fresh), maxEndpoints-len(d.endpoints))
		if n > 0 {
			d.endpoints = append(d.endpoints, fresh[:n]...)
			d.changed = true
			fresh = fresh[n:]
		}
	}
	for _, d := range drafts {
		if d.changed {
			fill(d)
		}
	}
	if len(fresh) > 0 {
		var best *draft
		for _, d := range drafts {
			if len(d.endpoints)+len(fresh) <= maxEndpoints && (best == nil || len(d.endpoints) > len(best.endpoints)) {
				best = d
			}
		}
		if best != nil {
			fill(best)
		}
	}
	for len(fresh) > 0 || (len(drafts) == 0 && len(g.endpoints) == 0) {
		d := &draft{slice: newSlice(svc, g)}
		fill(d)
		drafts = append(drafts, d)
		if len(fresh) == 0 {
			break
		}
	}
	kept := 0
	for _, d := range drafts {
		if len(d.endpoints) > 0 {
			kept++
		}
	}
	for _, d := range drafts {
		switch {
		case len(d.endpoints) == 0 && kept == 0:
			kept++ // the one empty slice that says that there are none
			fallthrough
		case len(d.endpoints) > 0:
			p.write(svc, d)
		default:
			p.remove = append(p.remove, d.slice)
		}
	}
}

func (p *plan) write(svc *corev1.Service, d *draft) {
	if d.slice.GetMetadata().GetUid() == "" {
		d.slice.SetEndpoints(d.endpoints)
		p.create = append(p.create, d.slice)
		return
	}
	if !d.changed {
		return
	}
	s := proto.Clone(d.slice).(*discoveryv1.EndpointSlice)
	s.GetMetadata().SetLabels(labelsOf(svc))
	s.SetEndpoints(d.endpoints)
	p.update = append(p.update, s)
}

// recycle turns pairs of a creation and a deletion of one family into updates: a Service whose ports change keeps its slices.
func (p *plan) recycle() {
	var create []*discoveryv1.EndpointSlice
	for _, c := range p.create {
		i := slices.IndexFunc(p.remove, func(r *discoveryv1.EndpointSlice) bool { return r.GetAddressType() == c.GetAddressType() })
		if i < 0 {
			create = append(create, c)
			continue
		}
		s := proto.Clone(p.remove[i]).(*discoveryv1.EndpointSlice)
		s.GetMetadata().SetLabels(c.GetMetadata().GetLabels())
		s.GetMetadata().SetOwnerReferences(c.GetMetadata().GetOwnerReferences())
		s.SetPorts(c.GetPorts())
		s.SetEndpoints(c.GetEndpoints())
		p.update = append(p.update, s)
		p.remove = slices.Delete(p.remove, i, i+1)
	}
	p.create = create
}

func newSlice(svc *corev1.Service, g *group) *discoveryv1.EndpointSlice {
	m := svc.GetMetadata()
	ports := slices.Clone(g.ports)
	slices.SortFunc(ports, func(a, b *discoveryv1.EndpointPort) int { return cmp.Compare(a.GetName(), b.GetName()) })
	return discoveryv1.EndpointSlice_builder{
		Metadata: metav1.ObjectMeta_builder{
			Namespace: proto.String(m.GetNamespace()), GenerateName: proto.String(m.GetName() + "-"), Labels: labelsOf(svc),
			OwnerReferences: []*metav1.OwnerReference{ownership.Reference(svc)},
		}.Build(),
		AddressType: proto.String(g.family), Ports: ports,
	}.Build()
}

// labelsOf returns the labels of a Service's slices: its own, and those by which slices are found.
func labelsOf(svc *corev1.Service) map[string]string {
	labels := maps.Clone(svc.GetMetadata().GetLabels())
	if labels == nil {
		labels = map[string]string{}
	}
	labels[labelService] = svc.GetMetadata().GetName()
	labels[labelManagedBy] = manager
	delete(labels, servicepods.LabelHeadless)
	if servicepods.IsHeadless(svc) {
		labels[servicepods.LabelHeadless] = ""
	}
	return labels
}
