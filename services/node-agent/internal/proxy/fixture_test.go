package proxy

import (
	"net/netip"
	"time"

	"google.golang.org/protobuf/proto"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	discoveryv1 "dhow.dev/gen/go/dhow/discovery/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/informer"
	"dhow.dev/pkg/object"
)

var webKey = object.Key{Namespace: "default", Name: "web"}

// source is a hand-driven Source.
type source[T any] struct {
	handlers []func(old, new T, trace *informer.Trace)
}

func (s *source[T]) OnChangeTraced(f func(old, new T, trace *informer.Trace)) {
	s.handlers = append(s.handlers, f)
}

func (s *source[T]) change(old, new T) {
	for _, h := range s.handlers {
		h(old, new, nil)
	}
}

func service(name, clusterIP string, edit func(*corev1.ServiceSpec), ports ...*corev1.ServicePort) *corev1.Service {
	spec := corev1.ServiceSpec_builder{ClusterIp: proto.String(clusterIP), ClusterIps: []string{clusterIP}, Type: proto.String("ClusterIP"), Ports: ports}.Build()
	if edit != nil {
		edit(spec)
	}
	return corev1.Service_builder{
		Metadata: metav1.ObjectMeta_builder{Namespace: proto.String("default"), Name: proto.String(name)}.Build(),
		Spec:     spec,
	}.Build()
}

func port(name, protocol string, number, nodePort int32) *corev1.ServicePort {
	p := corev1.ServicePort_builder{Name: proto.String(name), Protocol: proto.String(protocol), Port: proto.Int32(number)}.Build()
	if nodePort != 0 {
		p.SetNodePort(nodePort)
	}
	return p
}

// backend describes an endpoint of a slice.
type backend struct {
	ip, node                      string
	notReady, serving, terminated bool
	zone                          string
}

func slice(svc, name string, ports []*discoveryv1.EndpointPort, backends ...backend) *discoveryv1.EndpointSlice {
	s := discoveryv1.EndpointSlice_builder{
		Metadata: metav1.ObjectMeta_builder{
			Namespace: proto.String("default"), Name: proto.String(name), Labels: map[string]string{labelService: svc},
		}.Build(),
		AddressType: proto.String("IPv4"), Ports: ports,
	}.Build()
	var list []*discoveryv1.Endpoint
	for _, b := range backends {
		e := discoveryv1.Endpoint_builder{
			Addresses: []string{b.ip}, NodeName: proto.String(b.node),
			Conditions: discoveryv1.EndpointConditions_builder{
				Ready: proto.Bool(!b.notReady), Serving: proto.Bool(!b.notReady || b.serving), Terminating: proto.Bool(b.terminated),
			}.Build(),
		}.Build()
		if b.zone != "" {
			e.SetHints(discoveryv1.EndpointHints_builder{ForZones: []*discoveryv1.ForZone{discoveryv1.ForZone_builder{Name: proto.String(b.zone)}.Build()}}.Build())
		}
		list = append(list, e)
	}
	s.SetEndpoints(list)
	return s
}

func endpointPort(name, protocol string, number int32) *discoveryv1.EndpointPort {
	return discoveryv1.EndpointPort_builder{Name: proto.String(name), Protocol: proto.String(protocol), Port: proto.Int32(number)}.Build()
}

func testCompiler() compiler {
	return compiler{
		locality: locality{node: "n1", zone: "z1"},
		nodeIPs:  []netip.Addr{netip.MustParseAddr("192.168.0.1")}, clusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")},
		nodeLocal: []netip.Addr{netip.MustParseAddr("10.96.0.10")},
	}
}

// syncTick lets a synctest bubble's clock go on by one step.
func syncTick() <-chan time.Time { return time.After(time.Millisecond) }
