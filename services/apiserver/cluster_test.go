package apiserver_test

import (
	"context"
	"errors"
	"io"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	storev1 "dhow.dev/gen/go/dhow/store/v1"
	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/transport"
	"dhow.dev/services/apiserver"
	"dhow.dev/services/store"
)

// patience bounds waits for conditions; it is long because machines under test are slow, and nothing measures it.
const patience = time.Minute

// cluster is a store in memory and API servers, in this process, over the in-memory transport.
type cluster struct {
	t      testing.TB
	memory *transport.Memory
	keys   string
}

// newCluster starts a store and one API server.
func newCluster(t testing.TB) *cluster {
	t.Helper()
	return newClusterWith(t, nil)
}

// newClusterWith is newCluster with a changed configuration of the API server.
func newClusterWith(t testing.TB, change func(*apiserver.Config)) *cluster {
	t.Helper()
	c := &cluster{t: t, memory: transport.NewMemory(), keys: filepath.Join(t.TempDir(), "keys")}
	c.startStore()
	c.serve("apiserver", change)
	return c
}

func (c *cluster) startStore() {
	c.t.Helper()
	listener := c.memory.Listen("store")
	c.start("store", func(ctx context.Context) error {
		return store.Run(ctx, store.Config{Listener: listener, Credentials: c.memory.ServerCredentials(), Memory: true})
	})
}

// entries returns what the store has under a prefix.
func (c *cluster) entries(prefix string) map[string]*storev1.Entry {
	c.t.Helper()
	stream, err := storev1.NewStoreClient(c.dial("store", identity.Identity{Name: identity.APIServer})).List(within(c.t), storev1.ListRequest_builder{Prefix: []byte(prefix)}.Build())
	if err != nil {
		c.t.Fatal(err)
	}
	values := map[string]*storev1.Entry{}
	for {
		chunk, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return values
		}
		if err != nil {
			c.t.Fatal(err)
		}
		for _, e := range chunk.GetEntries() {
			values[string(e.GetKey())] = e
		}
	}
}

// start runs a service until the test ends, or until the returned function is called.
func (c *cluster) start(name string, run func(context.Context) error) (stop func()) {
	c.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := run(ctx); err != nil {
			c.t.Errorf("%s: %v", name, err)
		}
	}()
	stop = func() {
		cancel()
		<-ended
	}
	c.t.Cleanup(stop)
	return stop
}

// serve starts an API server under a name and waits until it answers.
func (c *cluster) serve(name string, change func(*apiserver.Config)) (stop func()) {
	c.t.Helper()
	started := make(chan struct{})
	config := apiserver.Config{
		Listener: c.memory.Listen(name), Credentials: c.memory.ServerCredentials(),
		Store:   c.dial("store", identity.Identity{Name: identity.APIServer}),
		KeyFile: c.keys, AdvertiseAddress: name,
		PeerDial: func(address string) (*grpc.ClientConn, error) {
			return c.memory.Dial(address, identity.Identity{Name: identity.APIServer})
		},
		Started: func() { close(started) },
	}
	if change != nil {
		change(&config)
	}
	stop = c.start(name, func(ctx context.Context) error { return apiserver.Run(ctx, config) })
	select {
	case <-started:
	case <-time.After(patience):
		c.t.Fatalf("%s has not started", name)
	}
	return stop
}

// dial connects to a service as somebody.
func (c *cluster) dial(name string, who identity.Identity) *grpc.ClientConn {
	c.t.Helper()
	conn, err := c.memory.Dial(name, who)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { conn.Close() })
	return conn
}

// admin connects to the first API server as one who may do everything.
func (c *cluster) admin() *grpc.ClientConn {
	return c.dial("apiserver", identity.Identity{Name: identity.Admin, Groups: []string{identity.Masters}})
}

// within returns a context that ends the test's waits.
func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// unavailable says that a call may be made again.
func unavailable(err error) bool { return status.Code(err) == codes.Unavailable }
