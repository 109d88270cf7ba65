// Package apiserver is Dhow's API server: the only client of the store, and what everything else talks to.
//
// This file is its composition. A read's way is grpcapi → authorizer → cache; a write's is grpcapi → authorizer → registry (strategy, allocator, encryption)
// → store, and back into the cache by the store's watch. Node agents hold their sessions here, and calls into containers go through them.
package apiserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"time"

	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kschema "k8s.io/apimachinery/pkg/runtime/schema"

	storev1 "dhow.dev/gen/go/dhow/store/v1"
	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/pki"
	"dhow.dev/pkg/telemetry"
	"dhow.dev/pkg/telemetry/logkey"
	"dhow.dev/pkg/transport"
	"dhow.dev/pkg/version"
	"dhow.dev/services/apiserver/internal/admission"
	"dhow.dev/services/apiserver/internal/allocator"
	"dhow.dev/services/apiserver/internal/authorizer"
	"dhow.dev/services/apiserver/internal/authorizer/defaults"
	"dhow.dev/services/apiserver/internal/cache"
	"dhow.dev/services/apiserver/internal/codec"
	"dhow.dev/services/apiserver/internal/component"
	"dhow.dev/services/apiserver/internal/encryption"
	"dhow.dev/services/apiserver/internal/expiry"
	flows "dhow.dev/services/apiserver/internal/fairness/bootstrap"
	"dhow.dev/services/apiserver/internal/grpcapi"
	"dhow.dev/services/apiserver/internal/metrics"
	"dhow.dev/services/apiserver/internal/registry"
	"dhow.dev/services/apiserver/internal/session"
	"dhow.dev/services/apiserver/internal/strategy"
	"dhow.dev/services/apiserver/internal/traces"
)

// Config configures Run.
type Config struct {
	// Listener is where the service listens. Run closes it.
	Listener net.Listener
	// Credentials authenticate callers.
	Credentials credentials.TransportCredentials
	// Kubernetes is where the Kubernetes API is served, over TLS with KubernetesTLS. Run closes it. Nil: nowhere.
	Kubernetes    net.Listener
	KubernetesTLS *pki.KeyPair
	// KubernetesAddress is the host:port at which pods and other API servers' clients reach the Kubernetes API. Empty: the listener's address.
	KubernetesAddress string
	// Audit says what is recorded of the Kubernetes API, and where.
	Audit Audit
	// MaxRequests is how many requests of the Kubernetes API are worked on at once, others wait in fair queues; 0: Kubernetes' 600.
	MaxRequests int
	// Logger gets the service's records. Nil discards them.
	Logger *slog.Logger

	// Store is the connection to the store, as identity system:dhow:apiserver.
	Store grpc.ClientConnInterface
	// Scheduler and ControllerManager are asked how they are, and the scheduler to explain. May be nil.
	Scheduler, ControllerManager grpc.ClientConnInterface

	// KeyFile holds the keys that Secrets are encrypted with; it is made when it does not exist. API servers of one cluster need the same file.
	KeyFile string
	// Authentication says how callers are known besides by their certificates.
	Authentication Authentication
	// AdvertiseAddress is the host:port at which other API servers and pods reach this one. It also names this API server. Empty: the listener's address.
	AdvertiseAddress string
	// PeerDial connects to another API server by its advertised address, as identity system:dhow:apiserver. Nil: there is no other.
	PeerDial func(address string) (*grpc.ClientConn, error)

	// Network says which addresses the cluster gives out. Zero fields have defaults.
	Network Network
	// SessionGrace is how long a node may be without session before it is not ready; 0: 40 s.
	SessionGrace time.Duration
	// HeartbeatInterval is how often node agents say that they are alive; 0: a quarter of the grace, at most 10 s.
	HeartbeatInterval time.Duration
	// ServerTTL is how long this API server may be cut off from the store before the grace of its nodes begins; 0: 10 s.
	ServerTTL time.Duration
	// TolerationSeconds is how long pods stay on a node that is not ready when they do not say it; 0: 300.
	TolerationSeconds int64
	// EventTTL is how long Events are kept after they were last seen; 0: one hour.
	EventTTL time.Duration
	// ShutdownDelay is how long requests are still answered once Run's context has ended, while the API server says that it is not ready: long enough for those who
	// send requests here to hear of it. 0: none.
	ShutdownDelay time.Duration
	// Started is called once the first call can be answered. Optional.
	Started func()
	// Ready is told what the API server waits for, beside /readyz of the Kubernetes API. Optional.
	Ready *telemetry.Readiness

	// stopping is closed when the service was told to stop.
	stopping <-chan struct{}
}

// Network says which addresses the cluster gives out.
type Network struct {
	// Services is the range of cluster IPs; zero: 10.96.0.0/16. DNS is the one of them that name servers listen on; zero: the tenth.
	Services netip.Prefix
	DNS      netip.Addr
	// Pods is what nodes get a part of, NodeBits long; zero: 10.244.0.0/16 and 24.
	Pods     netip.Prefix
	NodeBits int
	// NodePorts is the range of node ports, both included; zero: 30000 to 32767.
	FirstNodePort, LastNodePort uint16
}

func (n *Network) setDefaults() error {
	if !n.Services.IsValid() {
		n.Services = netip.MustParsePrefix("10.96.0.0/16")
	}
	if !n.Pods.IsValid() {
		n.Pods = netip.MustParsePrefix("10.244.0.0/16")
	}
	if n.NodeBits == 0 {
		n.NodeBits = 24
	}
	if n.FirstNodePort == 0 && n.LastNodePort == 0 {
		n.FirstNodePort, n.LastNodePort = 30000, 32767
	}
	n.Services, n.Pods = n.Services.Masked(), n.Pods.Masked()
	if !n.DNS.IsValid() {
		n.DNS = nth(n.Services, 10)
	}
	switch {
	case n.Services.Overlaps(n.Pods):
		return fmt.Errorf("network: services %s and pods %s overlap: choose ranges that do not", n.Services, n.Pods)
	case n.NodeBits <= n.Pods.Bits() || n.NodeBits > n.Pods.Addr().BitLen()-2:
		return fmt.Errorf("network: a node's part of %s cannot be a /%d", n.Pods, n.NodeBits)
	case !n.Services.Contains(n.DNS):
		return fmt.Errorf("network: the DNS address %s is not in the service range %s", n.DNS, n.Services)
	case n.FirstNodePort > n.LastNodePort:
		return fmt.Errorf("network: node ports %d-%d: the first is above the last", n.FirstNodePort, n.LastNodePort)
	}
	return nil
}

// nth returns the nth address of a range.
func nth(p netip.Prefix, n int) netip.Addr {
	a := p.Addr()
	for range n {
		a = a.Next()
	}
	return a
}

// scope names the package's spans.
const scope = "dhow.dev/services/apiserver"

var errNotReady = errors.New("its cache is not filled yet")

// Run serves until the context ends, and returns nil then.
func Run(ctx context.Context, config Config) error {
	err := config.setDefaults()
	if err == nil {
		config.stopping = ctx.Done()
		ctx, cancel := delayed(ctx, config.ShutdownDelay)
		err = run(ctx, config)
		cancel()
	}
	if err != nil {
		config.Listener.Close()
		if config.Kubernetes != nil {
			config.Kubernetes.Close()
		}
		return fmt.Errorf("apiserver: %w", err)
	}
	return nil
}

func (c *Config) setDefaults() error {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Store == nil || c.Credentials == nil || c.KeyFile == "" {
		return errors.New("Store, Credentials and KeyFile are required")
	}
	if c.Kubernetes != nil && c.KubernetesTLS == nil {
		return errNoDoorTLS
	}
	if c.Kubernetes != nil && c.KubernetesAddress == "" {
		c.KubernetesAddress = c.Kubernetes.Addr().String()
	}
	if c.AdvertiseAddress == "" {
		c.AdvertiseAddress = c.Listener.Addr().String()
	}
	if c.SessionGrace == 0 {
		c.SessionGrace = 40 * time.Second
	}
	if c.HeartbeatInterval == 0 {
		c.HeartbeatInterval = min(c.SessionGrace/4, 10*time.Second)
	}
	if c.TolerationSeconds == 0 {
		c.TolerationSeconds = 300
	}
	return c.Network.setDefaults()
}

func run(ctx context.Context, config Config) error {
	logger, tracer := config.Logger, telemetry.Tracer(scope)
	// What the API server writes on its own account carries its own identity.
	ctx = identity.NewContext(ctx, identity.Identity{Name: identity.APIServer, Groups: []string{identity.Masters}})
	tasks, running := errgroup.WithContext(ctx)

	store := storev1.NewStoreClient(config.Store)
	keys, err := encryption.LoadOrCreate(config.KeyFile)
	if err != nil {
		return err
	}
	objects, err := cache.New(cache.Config{
		Store: store, Logger: logger,
		Transform: func(key string, value []byte, keyID uint32) ([]byte, error) { return keys.Open(key, keyID, value) },
	})
	if err != nil {
		return err
	}
	structs, err := codec.New()
	if err != nil {
		return err
	}
	callers, err := newAuthentication(config, objects)
	if err != nil {
		return err
	}
	allocators, err := newAllocators(store, config.Network)
	if err != nil {
		return err
	}
	claimants := map[kschema.GroupResource]allocator.Allocator{}
	for resource, a := range allocators {
		claimants[resource] = a
	}
	policies := authorizer.NewPolicies(objects, logger)
	rights := authorizer.New(authorizer.Config{Pods: placements{objects}, Objects: objects, Policies: policies})
	strategies := strategy.New(strategy.Config{TolerationSeconds: config.TolerationSeconds, Lookup: lookup{cache: objects, codec: structs}})
	writes, err := registry.New(registry.Config{
		Store: store, Cache: current{objects}, Codec: structs, Encryption: keys, Allocators: claimants, Tracer: tracer,
		Strategies: strategies, Admission: admission.New(admission.Config{Authorizer: authorizer.Aside(rights), Escalation: rights.CheckEscalation, AutomountTokens: true}),
	})
	if err != nil {
		return err
	}
	callers = callers.admitted(writes)
	sessions, err := session.New(session.Config{
		Store: store, Cache: objects, Registry: writes, Codec: structs, Address: config.AdvertiseAddress, Published: config.KubernetesAddress, PeerDial: config.PeerDial,
		Grace: config.SessionGrace, HeartbeatInterval: config.HeartbeatInterval, ServerTTL: config.ServerTTL, Logger: logger,
	})
	if err != nil {
		return err
	}
	events := expiry.New(expiry.Config{Store: store, Cache: objects, Codec: structs, TTL: config.EventTTL, Logger: logger})
	isReady := func() error {
		select {
		case <-config.stopping:
			return errStopping
		default:
		}
		select {
		case <-objects.Ready():
			return nil
		default:
			return errNotReady
		}
	}
	board := component.New(component.Config{
		Services: map[string]grpc.ClientConnInterface{
			"store": config.Store, "scheduler": config.Scheduler, "controller-manager": config.ControllerManager,
		},
		Self: isReady,
	})
	usage, err := metrics.New(metrics.Config{Used: sessions.Used, Objects: objects})
	if err != nil {
		return err
	}
	remembered := traces.New()
	defer telemetry.Report(func(_ context.Context, spans []*tracepb.ResourceSpans) error {
		remembered.Add(spans)
		return nil
	})()
	api := grpcapi.New(grpcapi.Config{
		Cache: objects, Registry: writes, Authorizer: rights,
		Tunnels: sessions, Sessions: sessions, Components: board, Scheduler: config.Scheduler, Store: config.Store,
		Traces: remembered, Peers: sessions, Tokens: callers.issue, Virtual: answers(callers, writes, authorizer.NewReviews(rights)), Views: views(usage),
		Extras: sessions.Extras(), Logger: logger, Version: version.Version,
	})
	auditor, err := newAuditor(running, tasks, config, structs)
	if err != nil {
		return err
	}
	interceptors := []transport.Interceptor{api.Interceptor()}
	var refused func(context.Context, string, error)
	if auditor != nil {
		// Before what refuses: refusals are recorded.
		interceptors = append([]transport.Interceptor{auditor.Interceptor()}, interceptors...)
		refused = auditor.RefusedCall
	}
	started := make(chan struct{})
	checks := health.NewServer()
	checks.SetServingStatus("", healthpb.HealthCheckResponse_NOT_SERVING)
	front := transport.NewServer(transport.ServerConfig{
		Credentials: config.Credentials, Tokens: callers.verifier.Token, Logger: logger, Health: checks, Lifetime: running, Interceptors: interceptors, Refused: refused,
	})
	api.Register(front)

	ready := readiness{store: config.Store, cache: objects, started: started, stopping: config.stopping}
	config.Ready.Set(ready.check)
	if config.Kubernetes != nil {
		parts := door{
			config: config, cache: objects, registry: writes, codec: structs, strategies: strategies, rights: rights, callers: callers, sessions: sessions,
			usage: usage, board: board, auditor: auditor, readiness: ready,
		}
		if err := parts.open(running, tasks); err != nil {
			return err
		}
	}

	tasks.Go(func() error {
		remembered.Follow(running, store, logger)
		return nil
	})
	tasks.Go(func() error { return objects.Run(running) })
	tasks.Go(func() error { return policies.Run(running) })
	tasks.Go(func() error { return callers.verifier.Run(running) })
	tasks.Go(func() error { return sessions.Run(running) })
	tasks.Go(func() error { return events.Run(running) })
	tasks.Go(func() error { return transport.Serve(running, front, config.Listener) })
	tasks.Go(func() error {
		start := bootstrap{registry: writes, codec: structs, network: config.Network, allocators: slices.Collect(maps.Values(allocators)), logger: logger}
		if err := start.run(running, objects.Ready()); err != nil {
			return err
		}
		keeper := defaults.Keeper{Cache: objects, Registry: writes, Codec: structs}
		if err := start.reconcile(running, keeper); err != nil {
			return err
		}
		if config.Kubernetes != nil { // whose queues the objects describe
			tasks.Go(func() error {
				return flows.Conditions{Cache: objects, Keeper: keeper, Now: metav1.Now, Logger: logger}.Run(running)
			})
		}
		close(started)
		checks.SetServingStatus("", healthpb.HealthCheckResponse_SERVING)
		logger.LogAttrs(running, slog.LevelInfo, "API server serves", logkey.Address(config.Listener.Addr().String()))
		if config.Started != nil {
			config.Started()
		}
		return start.publish(running, sessions.Servers)
	})
	return tasks.Wait()
}

// repairer makes an allocator's claims and the objects that hold them agree.
type repairer interface {
	allocator.Allocator
	Repair(ctx context.Context, logger *slog.Logger) error
}

// newAllocators returns the allocators by the resource that they serve.
func newAllocators(store storev1.StoreClient, network Network) (map[kschema.GroupResource]repairer, error) {
	forServices, err := allocator.NewServices(allocator.ServicesConfig{
		Store: store, Range: network.Services, FirstNodePort: network.FirstNodePort, LastNodePort: network.LastNodePort,
	})
	if err != nil {
		return nil, err
	}
	forNodes, err := allocator.NewNodes(allocator.NodesConfig{Store: store, Pods: network.Pods, NodeBits: network.NodeBits})
	if err != nil {
		return nil, err
	}
	return map[kschema.GroupResource]repairer{services.GroupResource(): forServices, nodes.GroupResource(): forNodes}, nil
}
