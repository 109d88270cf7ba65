package registry_test

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"testing"

	"google.golang.org/grpc"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	storev1 "dhow.dev/gen/go/dhow/store/v1"
	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/resource"
	"dhow.dev/pkg/transport"
	"dhow.dev/services/apiserver/internal/allocator"
	"dhow.dev/services/apiserver/internal/codec"
	"dhow.dev/services/apiserver/internal/encryption"
	"dhow.dev/services/apiserver/internal/patch"
	"dhow.dev/services/apiserver/internal/registry"
	"dhow.dev/services/apiserver/internal/strategy"
	"dhow.dev/services/store"
)

// noCache has nothing: every write reads the store.
type noCache struct{}

func (noCache) WaitFor(context.Context, int64) error { return nil }

func (noCache) Each(*resource.Resource, string, func(registry.Name, registry.Entry) bool) error {
	return nil
}

func (noCache) Current(*resource.Resource, string, string) (registry.Entry, bool) {
	return registry.Entry{}, false
}

func (noCache) Select(context.Context, *resource.Resource, string, string, string) ([]registry.Name, error) {
	return nil, nil
}

// startStore runs the store service in this process and returns a connection to it.
func startStore(t *testing.T) *grpc.ClientConn {
	t.Helper()
	memory := transport.NewMemory()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- store.Run(ctx, store.Config{Listener: memory.Listen("store"), Credentials: memory.ServerCredentials(), Memory: true})
	}()
	conn, err := memory.Dial("store", identity.Identity{Name: identity.APIServer})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return conn
}

func newRegistry(t *testing.T, conn *grpc.ClientConn) *registry.Registry {
	t.Helper()
	client := storev1.NewStoreClient(conn)
	structs, err := codec.New()
	if err != nil {
		t.Fatal(err)
	}
	ring, err := encryption.NewRing([]encryption.Key{{ID: 1}})
	if err != nil {
		t.Fatal(err)
	}
	services, err := allocator.NewServices(allocator.ServicesConfig{Store: client, Range: netip.MustParsePrefix("10.96.0.0/24"), FirstNodePort: 30000, LastNodePort: 30999})
	if err != nil {
		t.Fatal(err)
	}
	r, err := registry.New(registry.Config{
		Store: client, Cache: noCache{}, Codec: structs, Strategies: strategy.New(strategy.Config{TolerationSeconds: 300}), Encryption: ring,
		Allocators: map[schema.GroupResource]allocator.Allocator{{Resource: "services"}: services},
	})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// Two API servers on the real store: conflicts travel as details over gRPC, and nothing is lost or given out twice.
func TestTwoAPIServersOnTheStore(t *testing.T) {
	conn := startStore(t)
	servers := []*registry.Registry{newRegistry(t, conn), newRegistry(t, conn)}
	ctx := t.Context()
	namespaces, configMaps, services := resource.Lookup("", "namespaces"), resource.Lookup("", "configmaps"), resource.Lookup("", "services")
	text := func(document string) registry.Input {
		return registry.Input{Data: []byte(document), Text: true}
	}
	_, err := servers[0].Create(ctx, configMaps, text(`metadata: {name: a, namespace: shop}`), registry.WriteOptions{})
	if !apierrors.IsNotFound(err) {
		t.Fatalf("no namespace yet: %v", err)
	}
	for _, document := range []string{`metadata: {name: shop}`} {
		if _, err := servers[0].Create(ctx, namespaces, text(document), registry.WriteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := servers[1].Create(ctx, configMaps, text(`metadata: {name: a, namespace: shop}`), registry.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err = servers[0].Create(ctx, configMaps, text(`metadata: {name: a, namespace: shop}`), registry.WriteOptions{}); !apierrors.IsAlreadyExists(err) {
		t.Fatal(err)
	}

	var wg sync.WaitGroup
	var mu sync.Mutex
	addresses := map[string]string{}
	for i := range 60 {
		wg.Go(func() {
			server := servers[i%2]
			input := registry.PatchInput{Namespace: "shop", Name: "a", Type: patch.Merge, Data: fmt.Appendf(nil, `{"data": {"k%d": "v"}}`, i)}
			if _, err := server.Patch(ctx, configMaps, input, registry.WriteOptions{}); err != nil {
				t.Error(err)
			}
			r, err := server.Create(ctx, services, text(fmt.Sprintf(`{metadata: {name: s%d, namespace: shop}, spec: {type: NodePort, ports: [{port: 80, protocol: TCP}]}}`, i)), registry.WriteOptions{})
			if err != nil {
				t.Error(err)
				return
			}
			svc := &corev1.Service{}
			if err := svc.Unmarshal(r.Object); err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			for _, key := range []string{svc.Spec.ClusterIP, fmt.Sprint(svc.Spec.Ports[0].NodePort)} {
				if other := addresses[key]; other != "" {
					t.Errorf("%s belongs to %s and %s", key, other, svc.Name)
				}
				addresses[key] = svc.Name
			}
		})
	}
	wg.Wait()
	r, err := servers[1].Patch(ctx, configMaps, registry.PatchInput{Namespace: "shop", Name: "a", Type: patch.Merge, Data: []byte(`{}`)}, registry.WriteOptions{})
	if err != nil {
		t.Fatal(err)
	}
	cm := &corev1.ConfigMap{}
	if err := cm.Unmarshal(r.Object); err != nil || len(cm.Data) != 60 {
		t.Errorf("%d of 60 patches, %v", len(cm.Data), err)
	}
}
