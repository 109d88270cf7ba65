package dns

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	discoveryv1 "dhow.dev/gen/go/dhow/discovery/v1"
	"dhow.dev/pkg/informer"
	"dhow.dev/pkg/object"
)

// labelService is the label by which an EndpointSlice belongs to a Service.
const labelService = "kubernetes.io/service-name"

// record is what the zone knows of one Service. Records are not changed once they are in the zone.
type record struct {
	key object.Key
	// external is the name that an ExternalName Service stands for, without a final dot; the rest is empty then.
	external string
	// addresses are the cluster IPs, or of a headless Service those of its endpoints.
	addresses []netip.Addr
	// ports of a Service with a cluster IP.
	ports []portRecord
	// endpoints of a headless Service, by host name.
	headless  bool
	endpoints map[string][]endpointRecord
}

type portRecord struct {
	name, protocol string // lower case
	number         uint16
}

type endpointRecord struct {
	address netip.Addr
	ports   []portRecord
}

// zone is the index that queries are answered from. It follows the sources; a query reads it without waiting for anything but the lock.
type zone struct {
	domain string // lower case, with the final dot

	mu         sync.RWMutex
	services   map[object.Key]*corev1.Service
	slices     map[object.Key]map[string]*discoveryv1.EndpointSlice
	records    map[object.Key]*record
	namespaces map[string]int // number of records
	// reverse has, for each address, the names of each Service that it belongs to.
	reverse map[netip.Addr]map[object.Key]string
}

func newZone(domain string) *zone {
	return &zone{
		domain: domain, services: map[object.Key]*corev1.Service{}, slices: map[object.Key]map[string]*discoveryv1.EndpointSlice{},
		records: map[object.Key]*record{}, namespaces: map[string]int{}, reverse: map[netip.Addr]map[object.Key]string{},
	}
}

func (z *zone) service(old, new *corev1.Service, _ *informer.Trace) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if new == nil {
		key := object.KeyOf(old)
		delete(z.services, key)
		z.build(key)
		return
	}
	key := object.KeyOf(new)
	z.services[key] = new
	z.build(key)
}

func (z *zone) slice(old, new *discoveryv1.EndpointSlice, _ *informer.Trace) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if old != nil {
		key := serviceOf(old)
		delete(z.slices[key], old.GetMetadata().GetName())
		if len(z.slices[key]) == 0 {
			delete(z.slices, key)
		}
		if new == nil || serviceOf(new) != key {
			z.buildHeadless(key)
		}
	}
	if new != nil {
		key := serviceOf(new)
		if z.slices[key] == nil {
			z.slices[key] = map[string]*discoveryv1.EndpointSlice{}
		}
		z.slices[key][new.GetMetadata().GetName()] = new
		z.buildHeadless(key)
	}
}

func serviceOf(slice *discoveryv1.EndpointSlice) object.Key {
	return object.Key{Namespace: slice.GetMetadata().GetNamespace(), Name: slice.GetMetadata().GetLabels()[labelService]}
}

// buildHeadless builds a record anew when it depends on endpoints.
func (z *zone) buildHeadless(key object.Key) {
	if svc := z.services[key]; svc != nil && isHeadless(svc) {
		z.build(key)
	}
}

func isHeadless(svc *corev1.Service) bool {
	return svc.GetSpec().GetType() != "ExternalName" && svc.GetSpec().GetClusterIp() == "None"
}

// build replaces a Service's record. Called with the lock held.
func (z *zone) build(key object.Key) {
	if old := z.records[key]; old != nil {
		for address := range z.names(old) {
			delete(z.reverse[address], key)
			if len(z.reverse[address]) == 0 {
				delete(z.reverse, address)
			}
		}
		delete(z.records, key)
		if z.namespaces[key.Namespace]--; z.namespaces[key.Namespace] == 0 {
			delete(z.namespaces, key.Namespace)
		}
	}
	svc := z.services[key]
	if svc == nil {
		return
	}
	next := makeRecord(key, svc, slices.Collect(maps.Values(z.slices[key])))
	z.records[key] = next
	z.namespaces[key.Namespace]++
	for address, name := range z.names(next) {
		if z.reverse[address] == nil {
			z.reverse[address] = map[object.Key]string{}
		}
		z.reverse[address][key] = name
	}
}

// names returns the name of each address of a record, for reverse lookups.
func (z *zone) names(r *record) map[netip.Addr]string {
	names := map[netip.Addr]string{}
	if !r.headless {
		for _, a := range r.addresses {
			names[a] = z.nameOf(r.key)
		}
		return names
	}
	for host, endpoints := range r.endpoints {
		for _, e := range endpoints {
			names[e.address] = host + "." + z.nameOf(r.key)
		}
	}
	return names
}

func (z *zone) nameOf(key object.Key) string {
	return key.Name + "." + key.Namespace + ".svc." + z.domain
}

func makeRecord(key object.Key, svc *corev1.Service, all []*discoveryv1.EndpointSlice) *record {
	r := &record{key: key}
	spec := svc.GetSpec()
	if spec.GetType() == "ExternalName" {
		r.external = strings.TrimSuffix(strings.ToLower(spec.GetExternalName()), ".")
		return r
	}
	if !isHeadless(svc) {
		given := spec.GetClusterIps()
		if len(given) == 0 {
			given = []string{spec.GetClusterIp()}
		}
		for _, s := range given {
			if ip, err := netip.ParseAddr(s); err == nil {
				r.addresses = append(r.addresses, ip)
			}
		}
		for _, p := range spec.GetPorts() {
			r.ports = append(r.ports, makePort(p.GetName(), p.GetProtocol(), p.GetPort()))
		}
		return r
	}
	r.headless = true
	r.endpoints = map[string][]endpointRecord{}
	seen := map[netip.Addr]bool{}
	for _, slice := range all {
		var ports []portRecord
		for _, p := range slice.GetPorts() {
			ports = append(ports, makePort(p.GetName(), p.GetProtocol(), p.GetPort()))
		}
		for _, e := range slice.GetEndpoints() {
			c := e.GetConditions()
			if ready := !c.HasReady() || c.GetReady(); !ready && !spec.GetPublishNotReadyAddresses() {
				continue
			}
			for _, s := range e.GetAddresses() {
				ip, err := netip.ParseAddr(s)
				if err != nil {
					continue
				}
				host := strings.ToLower(e.GetHostname())
				if host == "" {
					host = dashed(ip)
				}
				r.endpoints[host] = append(r.endpoints[host], endpointRecord{address: ip, ports: ports})
				// An endpoint is in two slices when they have different ports, or while it moves.
				if !seen[ip] {
					seen[ip] = true
					r.addresses = append(r.addresses, ip)
				}
			}
		}
	}
	slices.SortFunc(r.addresses, netip.Addr.Compare)
	return r
}

func makePort(name, protocol string, number int32) portRecord {
	if protocol == "" {
		protocol = "TCP"
	}
	return portRecord{name: strings.ToLower(name), protocol: strings.ToLower(protocol), number: uint16(number)}
}

// dashed is an address as a label: the host name of an endpoint without one, and the name of a pod.
func dashed(ip netip.Addr) string {
	return strings.NewReplacer(".", "-", ":", "-").Replace(ip.String())
}

func (z *zone) lookup(namespace, name string) *record {
	z.mu.RLock()
	defer z.mu.RUnlock()
	return z.records[object.Key{Namespace: namespace, Name: name}]
}

func (z *zone) hasNamespace(namespace string) bool {
	z.mu.RLock()
	defer z.mu.RUnlock()
	return z.namespaces[namespace] > 0
}

// namesOf returns the names of an address, in order.
func (z *zone) namesOf(ip netip.Addr) []string {
	z.mu.RLock()
	defer z.mu.RUnlock()
	return slices.Sorted(maps.Values(z.reverse[ip]))
}
