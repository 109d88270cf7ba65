// Package proxy makes a node forward connections for Services: cluster IPs, node ports, external and load balancer addresses, and the
// host ports of the node's pods. The rules live in one nftables table. Each packet costs a lookup in a map, whatever the number of Services, and
// each change costs a transaction that holds only what changed.
package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"
	"sigs.k8s.io/knftables"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	discoveryv1 "dhow.dev/gen/go/dhow/discovery/v1"
	"dhow.dev/pkg/informer"
	"dhow.dev/services/node-agent/internal/proxy/tablewatch"
)

const (
	// burstDelay is how long changes gather after a transaction before the next one. A change after a quiet time waits for nothing.
	burstDelay = 50 * time.Millisecond
	// A failed transaction is followed by a rebuild of the whole table after these delays, doubling.
	minRetry = 100 * time.Millisecond
	maxRetry = 30 * time.Second
)

// Source tells all objects of a kind and every change, from one goroutine. *informer.Store is one.
type Source[T any] interface {
	OnChangeTraced(func(old, new T, trace *informer.Trace))
}

// Config is what a proxy needs. All sources but Pods and Nodes are required.
type Config struct {
	NodeName string
	// NodeIPs are the addresses that serve node ports and host ports: the node's InternalIPs. Loopback addresses never do (as in
	// Kubernetes' nftables mode).
	NodeIPs []netip.Addr
	// ClusterCIDRs hold all pods of the cluster: sources outside of them are masqueraded on their way to a cluster IP.
	ClusterCIDRs []netip.Prefix
	// ServiceCIDRs hold all cluster IPs: connections to addresses in them that no Service has are refused.
	ServiceCIDRs []netip.Prefix
	// NodeLocal are cluster IPs that the node answers itself (its DNS server): they are never translated.
	NodeLocal []netip.Addr
	// Bridge is the name of the bridge of the node's pods.
	Bridge string

	Services       Source[*corev1.Service]
	EndpointSlices Source[*discoveryv1.EndpointSlice]
	// Pods of this node, for host ports.
	Pods Source[*corev1.Pod]
	// Nodes, for this node's zone (topology hints).
	Nodes Source[*corev1.Node]
	// Synced waits until all sources have told their first state.
	Synced func(context.Context) error

	// NFT is the table's interface; nil means the nft command in the network namespace of Run's thread.
	NFT knftables.Interface

	Logger *slog.Logger
	Meter  metric.Meter
	Tracer trace.Tracer
}

// Proxy keeps the table.
type Proxy struct {
	config  Config
	state   *state
	rules   *ruleset
	metrics *metrics
	ready   chan struct{}
	forget  func(flowFilter) (uint, error)
}

// New registers with the sources; call it before they run.
func New(config Config) (*Proxy, error) {
	if config.Services == nil || config.EndpointSlices == nil || config.Synced == nil {
		return nil, errors.New("proxy: Services, EndpointSlices and Synced are required")
	}
	for _, ip := range config.NodeIPs {
		if !ip.Is4() || ip.IsLoopback() {
			return nil, fmt.Errorf("proxy: node address %s: must be an IPv4 address other than loopback", ip)
		}
	}
	m, err := newMetrics(config.Meter)
	if err != nil {
		return nil, err
	}
	rules := newRuleset(compiler{
		locality: locality{node: config.NodeName},
		nodeIPs:  config.NodeIPs, clusterCIDRs: config.ClusterCIDRs, nodeLocal: config.NodeLocal,
	})
	rules.serviceCIDRs = config.ServiceCIDRs
	p := &Proxy{config: config, state: newState(config.NodeName), rules: rules, metrics: m, ready: make(chan struct{}), forget: forgetFlows}
	config.Services.OnChangeTraced(p.state.service)
	config.EndpointSlices.OnChangeTraced(p.state.slice)
	if config.Pods != nil {
		config.Pods.OnChangeTraced(p.state.pod)
	}
	if config.Nodes != nil {
		config.Nodes.OnChangeTraced(p.state.node)
	}
	return p, nil
}

// Ready is closed when the rules of everything that was known at the start are in the kernel.
func (p *Proxy) Ready() <-chan struct{} { return p.ready }

// Run keeps the table until ctx ends. The rules stay then: a node whose agent restarts goes on forwarding. All work on the kernel is
// done by the calling goroutine, so a thread locked to a network namespace serves that namespace.
func (p *Proxy) Run(ctx context.Context) error {
	var deleted <-chan struct{}
	if p.config.NFT == nil {
		nft, err := knftables.New(knftables.IPv4Family, tableName)
		if err != nil {
			return fmt.Errorf("service proxy: %w: install the nftables package and run as root", err)
		}
		p.config.NFT = nft
		p.rules.unfilteredBridge = p.filterBridge(ctx)
		if deleted, err = tablewatch.Watch(ctx, tableName); err != nil {
			return fmt.Errorf("service proxy: %w", err)
		}
	}
	if err := p.config.Synced(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("service proxy: wait for the first state: %w", err)
	}
	retry := minRetry
	var pause <-chan time.Time
	for {
		if err := p.sync(ctx); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			p.config.Logger.ErrorContext(ctx, "service rules not applied, will rebuild the table", "error", err, "retry_in", retry)
			p.rules.known = false
			if !wait(ctx, time.After(retry)) {
				return nil
			}
			retry = min(2*retry, maxRetry)
			continue
		}
		retry = minRetry
		select {
		case <-p.ready:
		default:
			close(p.ready)
		}
		pause = time.After(burstDelay)
		select {
		case <-ctx.Done():
			return nil
		case <-p.state.changed:
		case <-deleted:
			if ctx.Err() != nil {
				return nil
			}
			p.inspect(ctx)
		}
		// Changes that follow a transaction closely wait for company.
		if !wait(ctx, pause) {
			return nil
		}
	}
}

// inspect has the table rebuilt if someone else removed it.
func (p *Proxy) inspect(ctx context.Context) {
	chains, err := p.config.NFT.List(ctx, "chain")
	if err == nil && slices.Contains(chains, chainServices) {
		return
	}
	p.config.Logger.WarnContext(ctx, "service rules were removed by another program, writing them again", "table", tableName)
	p.rules.known = false
}

func wait(ctx context.Context, c <-chan time.Time) bool {
	select {
	case <-ctx.Done():
		return false
	case <-c:
		return true
	}
}

// sync brings the kernel to the state as it is now.
func (p *Proxy) sync(ctx context.Context) error {
	began := time.Now()
	batch := p.state.take()
	p.rules.zone = batch.zone
	old, touched, stale := map[owner]plan{}, map[slot]bool{}, flowFilter{}
	for o, in := range batch.dirty {
		var next plan
		if in.pod != nil {
			next = p.rules.pod(in.pod)
		} else {
			next = p.rules.service(in.key, in.service, in.slices)
		}
		old[o] = p.rules.set(o, next, touched)
		stale.add(old[o], next)
	}
	// Spans cover the change's whole way through this package, from its arrival to the kernel.
	spans := p.spans(ctx, batch.traces)
	defer func() {
		for _, s := range spans {
			s.End()
		}
	}()
	kind := "partial"
	var err error
	if p.rules.known {
		tx := p.config.NFT.NewTransaction()
		p.rules.change(tx, old, touched)
		if tx.NumOperations() > 0 {
			err = p.config.NFT.Run(ctx, tx)
		}
	} else {
		kind = "full"
		err = p.rebuild(ctx)
		for _, pl := range p.rules.plans {
			stale.add(plan{}, pl)
		}
	}
	p.metrics.synced(ctx, kind, began, err, batch, len(p.rules.plans))
	if err != nil {
		return err
	}
	p.rules.known = true
	deleted, err := p.forget(stale)
	p.metrics.flows.Add(ctx, int64(deleted))
	if err != nil {
		// The rules are right; old flows end by their timeout.
		p.config.Logger.WarnContext(ctx, "stale UDP flows not forgotten", "error", err)
	}
	return nil
}

// rebuild replaces the table's contents in one transaction. When the kernel refuses, because what an older version left does not fit, the table is
// replaced altogether, again in one transaction; clients with affinity are forgotten then.
func (p *Proxy) rebuild(ctx context.Context) error {
	existing, err := p.config.NFT.ListAll(ctx)
	if err != nil && !knftables.IsNotFound(err) {
		return fmt.Errorf("list table %s: %w", tableName, err)
	}
	tx := p.config.NFT.NewTransaction()
	p.rules.rebuild(tx, existing)
	first := p.config.NFT.Run(ctx, tx)
	if first == nil || ctx.Err() != nil {
		return first
	}
	p.config.Logger.WarnContext(ctx, "service rules do not fit the existing table, replacing it", "error", first)
	tx = p.config.NFT.NewTransaction()
	tx.Add(&knftables.Table{})
	tx.Delete(&knftables.Table{})
	p.rules.rebuild(tx, nil)
	return p.config.NFT.Run(ctx, tx)
}

// bridgeFilter is the switch that makes bridged packets pass netfilter; it is per network namespace.
const bridgeFilter = "/proc/sys/net/bridge/bridge-nf-call-iptables"

// filterBridge makes the node's bridged packets pass netfilter, and returns the bridge's name when it cannot. Without it, an answer between two pods of one
// bridge would not be translated back to the Service's address; the source of such connections is then masqueraded, so that answers come by way of the node.
func (p *Proxy) filterBridge(ctx context.Context) string {
	if _, err := os.Stat(bridgeFilter); errors.Is(err, os.ErrNotExist) {
		// Fails where modules cannot be loaded, for instance in a container; the next step tells.
		_ = exec.CommandContext(ctx, "modprobe", "br_netfilter").Run()
	}
	current, err := os.ReadFile(bridgeFilter)
	if err == nil && strings.TrimSpace(string(current)) != "1" {
		err = os.WriteFile(bridgeFilter, []byte("1"), 0)
	}
	if err == nil {
		return ""
	}
	p.config.Logger.WarnContext(ctx, "bridged packets do not pass netfilter: Services hide the client's address from pods of the same node; load the br_netfilter module to keep it",
		"error", err, "bridge", p.config.Bridge)
	return p.config.Bridge
}
