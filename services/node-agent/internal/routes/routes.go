// Package routes makes a node a router for pods: kernel settings for forwarding, routes to the other nodes' pod networks, and masquerading
// of what pods send to the world outside of the cluster.
package routes

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"sigs.k8s.io/knftables"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/pkg/informer"
	"dhow.dev/services/node-agent/internal/proxy/tablewatch"
)

// Protocol marks the routes that belong to Dhow: a route protocol number that the kernel and iproute2's rt_protos give to no one. Routes with another number are never touched.
const Protocol netlink.RouteProtocol = 143

const (
	minRetry = time.Second
	maxRetry = 30 * time.Second
	// settle is how long kernel notifications gather: taking a link down announces every route of it.
	settle = 100 * time.Millisecond
)

// Source tells all nodes and every change. *informer.Store is one.
type Source interface {
	OnChangeTraced(func(old, new *corev1.Node, trace *informer.Trace))
}

// Config is what a node's routing needs.
type Config struct {
	NodeName string
	// ClusterCIDRs hold all pods; pods and nodes see each other's own addresses.
	ClusterCIDRs []netip.Prefix
	Nodes        Source
	// Synced waits until Nodes has told its first state: before that, routes of an earlier run stay.
	Synced func(context.Context) error
	Logger *slog.Logger
}

// Router keeps a node's routes.
type Router struct {
	config Config
	ready  chan struct{}
	notify chan struct{}

	mu    sync.Mutex
	nodes map[string]peer

	// Only Run's goroutine uses these.
	egress, filter knftables.Interface
	exempt         []netip.Addr
}

// peer is what counts of a node.
type peer struct {
	networks []netip.Prefix
	// address is the node's first IPv4 InternalIP; addresses are all of them.
	address   netip.Addr
	addresses []netip.Addr
}

// New registers with the source; call it before that runs.
func New(config Config) (*Router, error) {
	if config.NodeName == "" || config.Nodes == nil || config.Synced == nil {
		return nil, errors.New("routes: NodeName, Nodes and Synced are required")
	}
	r := &Router{config: config, ready: make(chan struct{}), notify: make(chan struct{}, 1), nodes: map[string]peer{}}
	config.Nodes.OnChangeTraced(r.node)
	return r, nil
}

// Ready is closed when the routes of all nodes that were known at the start are in place.
func (r *Router) Ready() <-chan struct{} { return r.ready }

func (r *Router) node(old, new *corev1.Node, _ *informer.Trace) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if new == nil {
		delete(r.nodes, old.GetMetadata().GetName())
		r.wake()
		return
	}
	name := new.GetMetadata().GetName()
	next := peerOf(new)
	// Heartbeats and conditions change nodes often; only addresses and networks matter here.
	if known, ok := r.nodes[name]; ok && slices.Equal(known.networks, next.networks) && slices.Equal(known.addresses, next.addresses) {
		return
	}
	r.nodes[name] = next
	r.wake()
}

func (r *Router) wake() {
	select {
	case r.notify <- struct{}{}:
	default:
	}
}

func peerOf(node *corev1.Node) peer {
	var p peer
	given := node.GetSpec().GetPodCidrs()
	if len(given) == 0 {
		given = []string{node.GetSpec().GetPodCidr()}
	}
	for _, s := range given {
		if prefix, err := netip.ParsePrefix(s); err == nil && prefix.Addr().Is4() {
			p.networks = append(p.networks, prefix.Masked())
		}
	}
	for _, a := range node.GetStatus().GetAddresses() {
		if ip, err := netip.ParseAddr(a.GetAddress()); err == nil && ip.Is4() && a.GetType() == "InternalIP" {
			p.addresses = append(p.addresses, ip)
		}
	}
	if len(p.addresses) > 0 {
		p.address = p.addresses[0]
	}
	return p
}

// Run sets the kernel up and keeps the routes until ctx ends. They stay then, so that pods keep their network while the agent restarts.
// All work on the kernel is done by the calling goroutine.
func (r *Router) Run(ctx context.Context) error {
	if err := setKernel(); err != nil {
		return err
	}
	var err error
	if r.egress, err = knftables.New(knftables.IPv4Family, egressTable); err != nil {
		return fmt.Errorf("pod masquerading: %w: install the nftables package and run as root", err)
	}
	if r.filter, err = knftables.New(knftables.IPv4Family, "filter"); err != nil {
		return fmt.Errorf("forwarding policy: %w", err)
	}
	if err := r.config.Synced(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("routes: wait for the nodes: %w", err)
	}
	changes, err := subscribe(ctx)
	if err != nil {
		return err
	}
	deleted, err := tablewatch.Watch(ctx, egressTable)
	if err != nil {
		return fmt.Errorf("pod masquerading: %w", err)
	}
	retry := minRetry
	for {
		var again <-chan time.Time
		if err := r.sync(ctx); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			r.config.Logger.ErrorContext(ctx, "pod routes not complete, will try again", "error", err, "retry_in", retry)
			again = time.After(retry)
			retry = min(2*retry, maxRetry)
		} else {
			retry = minRetry
			select {
			case <-r.ready:
			default:
				close(r.ready)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-r.notify:
		case <-again:
		case <-deleted:
			r.exempt = nil
		case <-changes:
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(settle):
			}
		}
	}
}

// subscribe tells when a route of ours disappears, or a link comes up: the kernel drops routes with their link and does not bring them back. With a link that has an
// address comes a route of the kernel's own, which says it at less cost than the news of all links: pods' have no addresses on the node.
func subscribe(ctx context.Context) (<-chan struct{}, error) {
	routes := make(chan netlink.RouteUpdate, 64)
	if err := netlink.RouteSubscribe(routes, ctx.Done()); err != nil {
		return nil, fmt.Errorf("subscribe to route changes: %w", err)
	}
	changes := make(chan struct{}, 1)
	go func() {
		for u := range routes {
			if !relevant(u) {
				continue
			}
			select {
			case changes <- struct{}{}:
			default:
			}
		}
	}()
	return changes, nil
}

// relevant leaves out what every interface has for itself, a pod's too: link-local and multicast destinations.
func relevant(u netlink.RouteUpdate) bool {
	if u.Type == unix.RTM_DELROUTE {
		return u.Protocol == Protocol
	}
	return u.Protocol == unix.RTPROT_KERNEL && u.Dst != nil && !u.Dst.IP.IsLinkLocalUnicast() && !u.Dst.IP.IsMulticast()
}

// wanted returns the routes that this node should have, and the nodes' addresses. Two nodes with one network are a mistake made
// elsewhere; the first by name has it, so that all nodes decide alike.
func (r *Router) wanted() (map[netip.Prefix]netip.Addr, []netip.Addr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	routes := map[netip.Prefix]netip.Addr{}
	var addresses []netip.Addr
	own := r.nodes[r.config.NodeName]
	for _, name := range slices.Sorted(maps.Keys(r.nodes)) {
		p := r.nodes[name]
		addresses = append(addresses, p.addresses...)
		if name == r.config.NodeName || !p.address.IsValid() {
			continue
		}
		for _, network := range p.networks {
			if _, taken := routes[network]; taken || slices.Contains(own.networks, network) || slices.Contains(own.addresses, p.address) {
				continue
			}
			routes[network] = p.address
		}
	}
	slices.SortFunc(addresses, netip.Addr.Compare)
	return routes, slices.Compact(addresses)
}

func (r *Router) sync(ctx context.Context) error {
	wanted, addresses := r.wanted()
	errs := []error{r.routes(ctx, wanted)}
	if r.exempt == nil || !slices.Equal(r.exempt, addresses) {
		err := r.masquerade(ctx, addresses)
		if err == nil {
			r.exempt = append([]netip.Addr{}, addresses...)
		}
		errs = append(errs, err)
	}
	errs = append(errs, acceptForwarding(ctx, r.filter, r.config.ClusterCIDRs))
	return errors.Join(errs...)
}

// routes adds and removes until the kernel's routes with our protocol number are the wanted ones.
func (r *Router) routes(ctx context.Context, wanted map[netip.Prefix]netip.Addr) error {
	present, err := netlink.RouteListFiltered(unix.AF_INET, &netlink.Route{Protocol: Protocol}, netlink.RT_FILTER_PROTOCOL)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return fmt.Errorf("list routes: %w", err)
	}
	var errs []error
	kept := map[netip.Prefix]bool{}
	for _, route := range present {
		network, ok := prefixOf(route.Dst)
		gateway, _ := netip.AddrFromSlice(route.Gw)
		if via, want := wanted[network]; ok && want && via == gateway.Unmap() {
			kept[network] = true
			continue
		}
		if err := netlink.RouteDel(&route); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("remove the route to %s: %w", network, err))
			continue
		}
		r.config.Logger.InfoContext(ctx, "route removed", "network", network)
	}
	for _, network := range slices.SortedFunc(maps.Keys(wanted), comparePrefix) {
		if kept[network] {
			continue
		}
		via := wanted[network]
		err := netlink.RouteReplace(&netlink.Route{Dst: ipNet(network), Gw: via.AsSlice(), Protocol: Protocol, Scope: netlink.SCOPE_UNIVERSE})
		switch {
		case errors.Is(err, unix.ENETUNREACH):
			errs = append(errs, fmt.Errorf("route to pods %s: node address %s is not in a network of this node: nodes must share a network segment", network, via))
		case err != nil:
			errs = append(errs, fmt.Errorf("route to pods %s through %s: %w", network, via, err))
		default:
			r.config.Logger.InfoContext(ctx, "route set", "network", network, "via", via)
		}
	}
	return errors.Join(errs...)
}

func comparePrefix(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	ip, ok := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(ip.Unmap(), bits), ok
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), 32)}
}
