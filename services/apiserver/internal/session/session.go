// Package session holds the sessions of node agents: how the API server knows that a node is alive, and how it reaches what runs there.
//
// Liveness is kept in memory: heartbeats write nothing. What is committed is who serves a node (its owner record, whose epoch grows with every
// attachment) and changes of the node's state. A node whose session is gone for longer than the grace becomes Ready=Unknown, in one commit that holds only
// while the epoch is still the one that was lost: a node that attached again meanwhile, here or at another API server, is left alone.
//
// API servers hold a store lease each. When one ends, the others start the grace of all its nodes; the commit's condition lets one of them win.
package session

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"go.opentelemetry.io/otel/metric"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	nodev1 "dhow.dev/gen/go/dhow/node/v1"
	storev1 "dhow.dev/gen/go/dhow/store/v1"
	"dhow.dev/pkg/telemetry"
	"dhow.dev/services/apiserver/internal/cache"
	"dhow.dev/services/apiserver/internal/codec"
	"dhow.dev/services/apiserver/internal/registry"
)

// Config configures a Manager.
type Config struct {
	Store    storev1.StoreClient
	Cache    *cache.Cache
	Registry *registry.Registry
	Codec    *codec.Codec
	// Published is where the cluster's clients reach this API server, which Servers tells; empty: Address.
	Published string
	// Address is where the other API servers reach this one.
	Address string
	// PeerDial connects to another API server. Nil: there is no other.
	PeerDial func(address string) (*grpc.ClientConn, error)
	// Grace is how long a node may be silent. HeartbeatInterval is how often agents are told to speak.
	Grace, HeartbeatInterval time.Duration
	// ServerTTL is how long this API server may be silent before the others take its nodes for lost; 0: 10 s.
	ServerTTL time.Duration
	Logger    *slog.Logger
}

// Manager serves dhow.node.v1.Sessions, and the calls that go through it.
type Manager struct {
	nodev1.UnimplementedSessionsServer

	config Config
	// id names this process among the API servers.
	id string
	// attachedNow and lost count sessions and lost nodes.
	attachedNow metric.Int64UpDownCounter
	lost        metric.Int64Counter
	// lifetime ends with Run: what goes on after a session has ended (its grace) ends with it. Set before the first use by Run.
	lifetime context.Context
	started  chan struct{}

	// mu guards what follows; it is never held while calling anything that waits.
	mu sync.Mutex
	// sessions are the nodes attached here.
	sessions map[string]*attached
	// owners and servers are the records as this API server has seen them.
	owners  map[string]owner
	servers map[string]string
	// published are the addresses that the servers have for clients.
	published map[string]string
	// serversChanged is closed and replaced when servers changed.
	serversChanged chan struct{}
	// graces are the nodes that are silent, with the cancellation of their loss.
	graces map[string]grace
	// news is closed and replaced when a session begins or records of owners and servers change.
	news chan struct{}
	// tunnels are those that were asked for and not dialed yet, by id.
	tunnels map[string]*tunnel
	peers   map[string]*grpc.ClientConn
}

// grace is the time that a silent node has left.
type grace struct {
	epoch int64
	stop  func()
}

// New returns a manager.
func New(config Config) (*Manager, error) {
	if config.Grace <= 0 || config.HeartbeatInterval <= 0 || config.HeartbeatInterval >= config.Grace {
		return nil, errors.New("session: the grace must be longer than the heartbeat interval, and both positive")
	}
	if config.ServerTTL == 0 {
		config.ServerTTL = 10 * time.Second
	}
	meter := telemetry.Meter(scope)
	attachedNow, err := meter.Int64UpDownCounter("dhow.apiserver.sessions", metric.WithDescription("Nodes attached here."))
	if err != nil {
		return nil, fmt.Errorf("session: %w", err)
	}
	lost, err := meter.Int64Counter("dhow.apiserver.nodes.lost", metric.WithDescription("Nodes that this API server marked as lost."))
	if err != nil {
		return nil, fmt.Errorf("session: %w", err)
	}
	return &Manager{
		config: config, id: uuid.NewString(), attachedNow: attachedNow, lost: lost, started: make(chan struct{}),
		sessions: map[string]*attached{}, owners: map[string]owner{}, servers: map[string]string{}, published: map[string]string{}, serversChanged: make(chan struct{}),
		graces: map[string]grace{}, news: make(chan struct{}), tunnels: map[string]*tunnel{}, peers: map[string]*grpc.ClientConn{},
	}, nil
}

// Run keeps this API server's own record and follows those of the others, until ctx ends.
func (m *Manager) Run(ctx context.Context) error {
	select {
	case <-m.config.Cache.Ready():
	case <-ctx.Done():
		return nil
	}
	m.lifetime = ctx
	close(m.started)
	defer m.closePeers()
	tasks, running := errgroup.WithContext(ctx)
	tasks.Go(func() error { return m.announce(running) })
	tasks.Go(func() error { return m.follow(running) })
	return tasks.Wait()
}

// Servers returns the published addresses of all live API servers, sorted, and a channel that is closed when they change.
func (m *Manager) Servers() ([]string, <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	addresses := make([]string, 0, len(m.published))
	for _, address := range m.published {
		addresses = append(addresses, address)
	}
	slices.Sort(addresses)
	return slices.Compact(addresses), m.serversChanged
}

// Attached returns whether the node's session is here.
func (m *Manager) Attached(node string) bool { return m.session(node) != nil }

func (m *Manager) session(node string) *attached {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.sessions[node]
}

// ready waits for Run to have begun.
func (m *Manager) ready(ctx context.Context) error {
	select {
	case <-m.started:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

var errNotStarted = apierrors.NewServiceUnavailable("the API server is starting; connect again")
