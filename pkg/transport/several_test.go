package transport

import (
	"context"
	"net"
	"testing"

	"google.golang.org/grpc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/pki"
)

// One server hears memory and the network; who comes over the network cannot pass for someone in memory.
func TestSeveralListenersWithTheirOwnIdentities(t *testing.T) {
	authority, err := pki.LoadOrCreate(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	pair := func(name string, request pki.Request) *pki.KeyPair {
		request.Identity = identity.Identity{Name: name}
		p, err := authority.Ensure(pki.FilesIn(t.TempDir(), name), request)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	memory := NewMemory()
	network, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	seen := make(chan string, 2)
	server := NewServer(ServerConfig{
		Credentials: memory.ServerCredentialsAnd(TLSServer(pair("server", pki.Request{DNSNames: []string{"x.dhow"}, Server: true}))),
		Options: []grpc.ServerOption{grpc.ChainUnaryInterceptor(func(ctx context.Context, r any, _ *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
			caller, _ := identity.FromContext(ctx)
			seen <- caller.Name
			return h(ctx, r)
		})},
	})
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- Serve(ctx, server, Several(memory.Listen("x"), network)) }()

	inside, err := memory.Dial("x", identity.Identity{Name: "insider"})
	if err != nil {
		t.Fatal(err)
	}
	defer inside.Close()
	outside, err := Dial(network.Addr().String(), TLSClient(pair("outsider", pki.Request{Client: true}), "x.dhow"))
	if err != nil {
		t.Fatal(err)
	}
	defer outside.Close()
	for name, conn := range map[string]*grpc.ClientConn{"insider": inside, "outsider": outside} {
		if _, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{}); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got := <-seen; got != name {
			t.Errorf("%s is seen as %q", name, got)
		}
	}
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
}
