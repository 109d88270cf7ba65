package transport

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"

	"dhow.dev/pkg/identity"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
)

// Memory connects services of one process without sockets. Calls go through the same interceptors and messages as between processes, streams through all of gRPC's stack; who dials gives the identity, and the handshake hands it to the server. Only holders of the *Memory can dial,
// which is what makes the identities trustworthy.
type Memory struct {
	mu    sync.Mutex
	names map[string]*rendezvous
}

// rendezvous is where dialers of a name find its listener. Guarded by Memory.mu, but for the channel's closing and the server.
type rendezvous struct {
	listener *memoryListener
	// listening is closed at the first Listen: a client that starts before its server waits instead of backing off.
	listening chan struct{}
	// server is who takes calls without a connection, nil when nobody does.
	server atomic.Pointer[shortcut]
}

// NewMemory returns a transport without listeners.
func NewMemory() *Memory { return &Memory{names: map[string]*rendezvous{}} }

func (m *Memory) rendezvous(name string) *rendezvous {
	r := m.names[name]
	if r == nil {
		r = &rendezvous{listening: make(chan struct{})}
		m.names[name] = r
	}
	return r
}

// Listen accepts the connections to a name, from now on and instead of an earlier listener of the same name. Dialing waits for the
// first Listen of a name; after its listener is closed, connections are refused until the next Listen.
func (m *Memory) Listen(name string) net.Listener {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.rendezvous(name)
	if r.listener == nil {
		close(r.listening)
	}
	r.listener = &memoryListener{name: name, place: r, incoming: make(chan *memoryConn), closed: make(chan struct{})}
	return r.listener
}

// ServerCredentials are the credentials of servers on listeners of this transport. They refuse any other connection.
func (m *Memory) ServerCredentials() credentials.TransportCredentials { return memoryCredentials{} }

// Dial returns a connection to the name whose calls carry the identity. Options are appended to those of Dial.
func (m *Memory) Dial(name string, caller identity.Identity, options ...grpc.DialOption) (*grpc.ClientConn, error) {
	if caller.Name == "" {
		return nil, fmt.Errorf("dial %q in memory: the caller has no name: give the service's identity", name)
	}
	caller = caller.Authenticated()
	m.mu.Lock()
	place := m.rendezvous(name)
	m.mu.Unlock()
	own := []grpc.DialOption{
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return m.connect(ctx, name, caller) }),
		grpc.WithChainUnaryInterceptor(place.direct(name, caller)),
	}
	return dial("passthrough:///"+name, memoryCredentials{}, append(own, options...))
}

func (m *Memory) connect(ctx context.Context, name string, caller identity.Identity) (net.Conn, error) {
	m.mu.Lock()
	r := m.rendezvous(name)
	m.mu.Unlock()
	select {
	case <-r.listening:
	case <-ctx.Done():
		return nil, fmt.Errorf("nothing listens on %q in this process: %w", name, ctx.Err())
	}
	m.mu.Lock()
	listener := r.listener
	m.mu.Unlock()
	client, server := newMemoryConn(name, caller)
	select {
	case listener.incoming <- server:
		return client, nil
	case <-listener.closed:
		return nil, fmt.Errorf("connection to %q in this process refused: its listener is closed", name)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

type memoryListener struct {
	name     string
	place    *rendezvous
	incoming chan *memoryConn
	once     sync.Once
	closed   chan struct{}
}

func (l *memoryListener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.incoming:
		return conn, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *memoryListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *memoryListener) Addr() net.Addr { return memoryAddr(l.name) }

// memoryAuth is the AuthInfo of in-memory connections.
type memoryAuth struct {
	credentials.CommonAuthInfo
	caller identity.Identity
}

func newMemoryAuth(caller identity.Identity) memoryAuth {
	// The bytes never leave the process.
	return memoryAuth{CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}, caller: caller}
}

func (memoryAuth) AuthType() string { return "memory" }

// ValidateAuthority accepts any authority: it has no meaning inside a process.
func (memoryAuth) ValidateAuthority(string) error { return nil }

type memoryCredentials struct{}

var errNotMemory = errors.New("in-memory credentials on a network connection: use TLS credentials there")

func (memoryCredentials) handshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	// Without this check a wrong combination of listener and credentials would let anyone in.
	own, ok := conn.(*memoryConn)
	if !ok {
		return nil, nil, errNotMemory
	}
	return conn, newMemoryAuth(own.caller), nil
}

func (c memoryCredentials) ClientHandshake(_ context.Context, _ string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return c.handshake(conn)
}

func (c memoryCredentials) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return c.handshake(conn)
}

func (memoryCredentials) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "memory"}
}

func (c memoryCredentials) Clone() credentials.TransportCredentials { return c }

func (memoryCredentials) OverrideServerName(string) error { return nil }
