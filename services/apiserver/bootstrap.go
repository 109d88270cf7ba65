package apiserver

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"time"

	kcorev1 "k8s.io/api/core/v1"
	kdiscoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	kmetav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	discoveryv1 "dhow.dev/gen/go/dhow/discovery/v1"
	"dhow.dev/pkg/resource"
	"dhow.dev/pkg/telemetry"
	"dhow.dev/pkg/telemetry/logkey"
	"dhow.dev/services/apiserver/internal/codec"
	"dhow.dev/services/apiserver/internal/registry"
)

// Names of what every cluster has.
const (
	kubernetesService = "kubernetes"
	dnsService        = "kube-dns"
	// fieldManager owns the fields of what is written here.
	fieldManager = "dhow-apiserver"
	servicePort  = 443
	// doorPort is the Kubernetes door's usual port; the endpoints say the real one.
	doorPort = 6443
)

// systemNamespaces exist from the first start on.
var systemNamespaces = []string{kmetav1.NamespaceDefault, kmetav1.NamespaceSystem, kmetav1.NamespacePublic, kcorev1.NamespaceNodeLease}

var (
	namespaces     = resource.For[*corev1.Namespace]()
	services       = resource.For[*corev1.Service]()
	endpoints      = resource.For[*corev1.Endpoints]()
	endpointSlices = resource.For[*discoveryv1.EndpointSlice]()
)

// bootstrap makes what every cluster has, and publishes where its API servers are.
type bootstrap struct {
	registry   *registry.Registry
	codec      *codec.Codec
	network    Network
	allocators []repairer
	logger     *slog.Logger
}

// run makes the system's objects. Several API servers may do so at once; what is there stays as it is.
func (b bootstrap) run(ctx context.Context, ready <-chan struct{}) error {
	select {
	case <-ready:
	case <-ctx.Done():
		return nil
	}
	ctx, span := telemetry.Tracer(scope).Start(ctx, "apiserver.bootstrap")
	defer span.End()
	for _, a := range b.allocators {
		if err := b.retry(ctx, func() error { return a.Repair(ctx, b.logger) }); err != nil {
			return err
		}
	}
	for _, name := range systemNamespaces {
		labels := map[string]string{kcorev1.LabelMetadataName: name}
		if err := b.ensure(ctx, namespaces, &kcorev1.Namespace{ObjectMeta: kmetav1.ObjectMeta{Name: name, Labels: labels}}); err != nil {
			return err
		}
	}
	for _, s := range b.services() {
		if err := b.ensure(ctx, services, s); err != nil {
			return err
		}
	}
	return b.retry(ctx, func() error { return b.reseal(ctx) })
}

func (b bootstrap) services() []codec.Object {
	return []codec.Object{
		&kcorev1.Service{
			ObjectMeta: kmetav1.ObjectMeta{
				Namespace: kmetav1.NamespaceDefault, Name: kubernetesService,
				Labels: map[string]string{"component": "apiserver", "provider": kubernetesService},
			},
			Spec: kcorev1.ServiceSpec{
				ClusterIP: nth(b.network.Services, 1).String(),
				// Without a selector: publish below writes its endpoints.
				Ports: []kcorev1.ServicePort{{Name: "https", Protocol: kcorev1.ProtocolTCP, Port: servicePort, TargetPort: intstr.FromInt32(doorPort)}},
			},
		},
		&kcorev1.Service{
			ObjectMeta: kmetav1.ObjectMeta{
				Namespace: kmetav1.NamespaceSystem, Name: dnsService,
				Labels: map[string]string{"k8s-app": dnsService, "kubernetes.io/cluster-service": "true", "kubernetes.io/name": "CoreDNS"},
			},
			Spec: kcorev1.ServiceSpec{
				ClusterIP: b.network.DNS.String(),
				Ports: []kcorev1.ServicePort{
					{Name: "dns", Protocol: kcorev1.ProtocolUDP, Port: 53, TargetPort: intstr.FromInt32(53)},
					{Name: "dns-tcp", Protocol: kcorev1.ProtocolTCP, Port: 53, TargetPort: intstr.FromInt32(53)},
				},
			},
		},
	}
}

// ensure creates an object unless it exists, and tries again while the store is away.
func (b bootstrap) ensure(ctx context.Context, r *resource.Resource, o codec.Object) error {
	data, err := b.codec.EncodeProto(o)
	if err != nil {
		return err
	}
	return b.retry(ctx, func() error {
		_, err := b.registry.Create(ctx, r, registry.Input{Data: data}, registry.WriteOptions{})
		switch {
		case err == nil || apierrors.IsAlreadyExists(err):
			return nil
		case apierrors.IsInvalid(err):
			return permanent{fmt.Errorf("make %s %q: %w", r.Singular(), o.GetName(), err)}
		}
		return fmt.Errorf("make %s %q: %w", r.Singular(), o.GetName(), err)
	})
}

// permanent is an error that trying again does not help.
type permanent struct{ error }

func (p permanent) Unwrap() error { return p.error }

// retry calls f until it succeeds, fails for good, or ctx ends.
func (b bootstrap) retry(ctx context.Context, f func() error) error {
	const most = 2 * time.Second
	backoff := 50 * time.Millisecond
	for {
		err := f()
		if err == nil || ctx.Err() != nil {
			return nil
		}
		if p, ok := err.(permanent); ok {
			return p.error
		}
		b.logger.WarnContext(ctx, "system object not written, trying again", logkey.Err(err), logkey.Delay(backoff))
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(backoff/2 + rand.N(backoff/2)):
		}
		backoff = min(2*backoff, most)
	}
}

// publish keeps the endpoints of the kubernetes Service what the live API servers are, until ctx ends. All API servers do so and write the same.
func (b bootstrap) publish(ctx context.Context, servers func() ([]string, <-chan struct{})) error {
	for {
		addresses, changed := servers()
		if ready := reachable(addresses); len(ready) > 0 {
			if err := b.retry(ctx, func() error { return b.writeEndpoints(ctx, ready) }); err != nil {
				return err
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

// reachable parses the addresses that others than this machine can reach: a loopback address is nobody's endpoint.
func reachable(addresses []string) []netip.AddrPort {
	var ready []netip.AddrPort
	for _, address := range addresses {
		host, port, err := net.SplitHostPort(address)
		if err != nil {
			continue
		}
		ip, err := netip.ParseAddr(host)
		number, portErr := strconv.ParseUint(port, 10, 16)
		if err != nil || portErr != nil || ip.IsLoopback() || ip.IsUnspecified() || number == 0 {
			continue
		}
		ready = append(ready, netip.AddrPortFrom(ip, uint16(number)))
	}
	slices.SortFunc(ready, netip.AddrPort.Compare)
	return slices.Compact(ready)
}

// writeEndpoints writes the Endpoints and the EndpointSlice of the kubernetes Service. Equal ports share a subset; the slice has one port, so the addresses
// of the first port are in it.
func (b bootstrap) writeEndpoints(ctx context.Context, servers []netip.AddrPort) error {
	labels := map[string]string{kdiscoveryv1.LabelServiceName: kubernetesService, kdiscoveryv1.LabelManagedBy: fieldManager}
	name, protocol, isReady, port := "https", kcorev1.ProtocolTCP, true, int32(servers[0].Port())
	family := kdiscoveryv1.AddressTypeIPv4
	if servers[0].Addr().Is6() {
		family = kdiscoveryv1.AddressTypeIPv6
	}
	all := &kcorev1.Endpoints{ObjectMeta: kmetav1.ObjectMeta{
		Namespace: kmetav1.NamespaceDefault, Name: kubernetesService, Labels: map[string]string{kdiscoveryv1.LabelSkipMirror: "true"},
	}}
	slice := &kdiscoveryv1.EndpointSlice{
		ObjectMeta:  kmetav1.ObjectMeta{Namespace: kmetav1.NamespaceDefault, Name: kubernetesService, Labels: labels},
		AddressType: family,
		Ports:       []kdiscoveryv1.EndpointPort{{Name: &name, Protocol: &protocol, Port: &port}},
	}
	for _, s := range servers {
		number := int32(s.Port())
		i := slices.IndexFunc(all.Subsets, func(subset kcorev1.EndpointSubset) bool { return subset.Ports[0].Port == number })
		if i < 0 {
			all.Subsets = append(all.Subsets, kcorev1.EndpointSubset{Ports: []kcorev1.EndpointPort{{Name: name, Port: number, Protocol: protocol}}})
			i = len(all.Subsets) - 1
		}
		all.Subsets[i].Addresses = append(all.Subsets[i].Addresses, kcorev1.EndpointAddress{IP: s.Addr().String()})
		if number == port && s.Addr().Is6() == servers[0].Addr().Is6() {
			slice.Endpoints = append(slice.Endpoints, kdiscoveryv1.Endpoint{
				Addresses: []string{s.Addr().String()}, Conditions: kdiscoveryv1.EndpointConditions{Ready: &isReady},
			})
		}
	}
	if err := b.write(ctx, endpoints, all); err != nil {
		return err
	}
	return b.write(ctx, endpointSlices, slice)
}

// write creates or replaces an object; writing what is there commits nothing.
func (b bootstrap) write(ctx context.Context, r *resource.Resource, o codec.Object) error {
	data, err := b.codec.EncodeProto(o)
	if err != nil {
		return err
	}
	options := registry.WriteOptions{FieldManager: fieldManager}
	_, err = b.registry.Update(ctx, r, registry.Input{Data: data}, options)
	if apierrors.IsNotFound(err) {
		// Without a manager: nobody applies what is written here, and keeping who owns which field would cost every later write of it.
		_, err = b.registry.Create(ctx, r, registry.Input{Data: data}, registry.WriteOptions{})
	}
	if err != nil {
		return fmt.Errorf("write %s %q: %w", r.Singular(), o.GetName(), err)
	}
	return nil
}
