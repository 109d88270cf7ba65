// Package endpoints writes core/v1 Endpoints, the older form of EndpointSlices that clients still read.
package endpoints

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/informer"
	"dhow.dev/pkg/object"
	"dhow.dev/services/controller-manager/internal/inventory"
	"dhow.dev/services/controller-manager/internal/podstate"
	"dhow.dev/services/controller-manager/internal/reconcile"
	"dhow.dev/services/controller-manager/internal/servicepods"
)

const (
	labelManagedBy = "endpoints.kubernetes.io/managed-by"
	manager        = "endpoint-controller"
	overCapacity   = "endpoints.kubernetes.io/over-capacity"
	truncated      = "truncated"

	// maxAddresses bounds one Endpoints object, as in Kubernetes.
	maxAddresses = 1000
)

// Config is what the controller is made of.
type Config struct {
	Conn    grpc.ClientConnInterface
	Stores  *inventory.Stores
	Logger  *slog.Logger
	Workers int
}

// Controller reconciles the Endpoints of Services.
type Controller struct {
	*reconcile.Runner[object.Key]
	stores    *inventory.Stores
	endpoints *client.Client[*corev1.Endpoints]
}

// New returns the controller, listening to the stores.
func New(cfg Config) *Controller {
	c := &Controller{stores: cfg.Stores, endpoints: client.For[*corev1.Endpoints](cfg.Conn)}
	c.Runner = reconcile.New(reconcile.Config[object.Key]{
		Name: "endpoints", Source: cfg.Stores, Workers: cfg.Workers, Reconcile: c.reconcile, Logger: cfg.Logger,
	})
	servicepods.Watch(cfg.Stores, c.Add)
	// Wakes also what a Service that went while nobody looked has left behind.
	cfg.Stores.Endpoints.OnChangeTraced(func(old, e *corev1.Endpoints, cause *informer.Trace) {
		for _, o := range []*corev1.Endpoints{old, e} {
			if o != nil && o.GetMetadata().GetLabels()[labelManagedBy] == manager {
				c.Add(object.KeyOf(o), cause)
			}
		}
	})
	return c
}

func (c *Controller) reconcile(ctx context.Context, turn *reconcile.Turn[object.Key]) error {
	existing, exists := c.stores.Endpoints.Get(turn.Key.Namespace, turn.Key.Name)
	svc, ok := c.stores.Services.Get(turn.Key.Namespace, turn.Key.Name)
	if !ok {
		if !exists || object.IsDeleted(existing) {
			return nil
		}
		gone, err := c.endpoints.Delete(ctx, turn.Key.Namespace, turn.Key.Name, metav1.DeletionOptions_builder{Uid: existing.GetMetadata().GetUid()}.Build())
		switch {
		case apierrors.IsNotFound(err):
			return nil
		case err != nil:
			return fmt.Errorf("delete endpoints %s: %w", turn.Key, err)
		}
		turn.Wrote(gone)
		return nil
	}
	if !servicepods.Managed(svc) || object.IsDeleted(svc) {
		return nil
	}
	subsets, cut := truncate(subsetsOf(svc, servicepods.Of(c.stores, svc)))
	e := &corev1.Endpoints{}
	e.SetMetadata(metav1.ObjectMeta_builder{Namespace: proto.String(turn.Key.Namespace), Name: proto.String(turn.Key.Name)}.Build())
	if exists {
		e = proto.Clone(existing).(*corev1.Endpoints)
	}
	annotations := maps.Clone(e.GetMetadata().GetAnnotations())
	if annotations == nil {
		annotations = map[string]string{}
	}
	delete(annotations, overCapacity)
	if cut {
		annotations[overCapacity] = truncated
	}
	e.GetMetadata().SetAnnotations(annotations)
	e.GetMetadata().SetLabels(labelsOf(svc))
	e.SetSubsets(subsets)
	if exists && proto.Equal(e, existing) {
		return nil
	}
	var err error
	if exists {
		e, err = c.endpoints.Update(ctx, e, nil)
	} else {
		e, err = c.endpoints.Create(ctx, e, nil)
		if apierrors.IsForbidden(err) {
			return nil // the namespace is going
		}
	}
	if err != nil {
		return fmt.Errorf("write endpoints %s: %w", turn.Key, err)
	}
	turn.Wrote(e)
	return nil
}

// subsetsOf groups the addresses of pods by the ports that they have. Pods that are going have none, unless the Service wants all addresses.
func subsetsOf(svc *corev1.Service, pods []*corev1.Pod) []*corev1.EndpointSubset {
	all := svc.GetSpec().GetPublishNotReadyAddresses()
	family := servicepods.Families(svc)[0]
	subsets := map[string]*corev1.EndpointSubset{}
	for _, p := range pods {
		if object.IsDeleted(p) && !all {
			continue
		}
		ips := servicepods.IPs(p)
		i := slices.IndexFunc(ips, func(ip string) bool { return servicepods.Family(ip) == family })
		if i < 0 {
			continue
		}
		ports := portsOf(svc, p)
		if len(ports) == 0 && len(svc.GetSpec().GetPorts()) > 0 {
			continue // none of the ports leads to this pod
		}
		address := corev1.EndpointAddress_builder{
			Ip: proto.String(ips[i]), Hostname: proto.String(servicepods.Hostname(svc, p)), TargetRef: servicepods.Reference(p),
		}.Build()
		if node := p.GetSpec().GetNodeName(); node != "" {
			address.SetNodeName(node)
		}
		key := portsKey(ports)
		s := subsets[key]
		if s == nil {
			s = &corev1.EndpointSubset{}
			s.SetPorts(ports)
			subsets[key] = s
		}
		if all || podstate.IsReady(p) {
			s.SetAddresses(append(s.GetAddresses(), address))
		} else {
			s.SetNotReadyAddresses(append(s.GetNotReadyAddresses(), address))
		}
	}
	var list []*corev1.EndpointSubset
	for _, key := range slices.Sorted(maps.Keys(subsets)) {
		s := subsets[key]
		slices.SortFunc(s.GetAddresses(), compareAddress)
		slices.SortFunc(s.GetNotReadyAddresses(), compareAddress)
		list = append(list, s)
	}
	return list
}

func portsOf(svc *corev1.Service, p *corev1.Pod) []*corev1.EndpointPort {
	var ports []*corev1.EndpointPort
	for _, sp := range svc.GetSpec().GetPorts() {
		number, ok := servicepods.Port(sp, p)
		if !ok {
			continue
		}
		port := corev1.EndpointPort_builder{
			Name: proto.String(sp.GetName()), Port: proto.Int32(number), Protocol: proto.String(servicepods.Protocol(sp)),
		}.Build()
		if sp.HasAppProtocol() {
			port.SetAppProtocol(sp.GetAppProtocol())
		}
		ports = append(ports, port)
	}
	slices.SortFunc(ports, func(a, b *corev1.EndpointPort) int { return strings.Compare(portText(a), portText(b)) })
	return ports
}

func portText(p *corev1.EndpointPort) string {
	return fmt.Sprintf("%s|%s|%05d|%s", p.GetName(), p.GetProtocol(), p.GetPort(), p.GetAppProtocol())
}

func portsKey(ports []*corev1.EndpointPort) string {
	texts := make([]string, len(ports))
	for i, p := range ports {
		texts[i] = portText(p)
	}
	return strings.Join(texts, ";")
}

// compareAddress orders by the number that an address is; addresses that are none come first.
func compareAddress(a, b *corev1.EndpointAddress) int {
	x, _ := netip.ParseAddr(a.GetIp())
	y, _ := netip.ParseAddr(b.GetIp())
	return cmp.Or(x.Compare(y), strings.Compare(a.GetTargetRef().GetName(), b.GetTargetRef().GetName()))
}

// truncate keeps at most maxAddresses addresses, ready ones before others, and says whether it dropped any.
func truncate(subsets []*corev1.EndpointSubset) (kept []*corev1.EndpointSubset, cut bool) {
	left := maxAddresses
	take := func(addresses []*corev1.EndpointAddress) []*corev1.EndpointAddress {
		n := min(left, len(addresses))
		cut = cut || n < len(addresses)
		left -= n
		return addresses[:n]
	}
	for _, s := range subsets {
		s.SetAddresses(take(s.GetAddresses()))
	}
	for _, s := range subsets {
		s.SetNotReadyAddresses(take(s.GetNotReadyAddresses()))
		if len(s.GetAddresses())+len(s.GetNotReadyAddresses()) > 0 {
			kept = append(kept, s)
		}
	}
	return kept, cut
}

func labelsOf(svc *corev1.Service) map[string]string {
	labels := maps.Clone(svc.GetMetadata().GetLabels())
	if labels == nil {
		labels = map[string]string{}
	}
	delete(labels, servicepods.LabelHeadless)
	if servicepods.IsHeadless(svc) {
		labels[servicepods.LabelHeadless] = ""
	}
	labels[labelManagedBy] = manager
	return labels
}
