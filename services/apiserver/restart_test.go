package apiserver_test

import (
	"context"
	"fmt"
	"testing"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/transport"
	"dhow.dev/services/store"
)

// TestTheStoreRestarts: with data on disk, a store that comes back costs a running API server nothing: its watches go on, and no event is lost or told twice.
func TestTheStoreRestarts(t *testing.T) {
	c := &cluster{t: t, memory: transport.NewMemory(), keys: t.TempDir() + "/keys"}
	dir := t.TempDir()
	startStore := func() (stop func()) {
		listener := c.memory.Listen("store")
		return c.start("store", func(ctx context.Context) error {
			return store.Run(ctx, store.Config{Listener: listener, Credentials: c.memory.ServerCredentials(), DataDir: dir})
		})
	}
	stop := startStore()
	c.serve("apiserver", nil)
	agent := c.attach("apiserver", "n1", nil)
	maps := client.For[*corev1.ConfigMap](c.admin())
	watch, err := maps.Watch(within(t), metav1.WatchRequest_builder{Namespace: "default"}.Build())
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if i > 0 {
			stop()
			stop = startStore()
		}
		name := fmt.Sprintf("m%d", i)
		// While the store comes up, calls are refused; the client's connection waits and tries again.
		for {
			_, err := maps.Create(within(t), configMap("default", name, nil), nil)
			if err == nil {
				break
			}
			if !unavailable(err) {
				t.Fatal(err)
			}
		}
		for got := ""; got == ""; {
			batch, err := watch.Next()
			if err != nil {
				t.Fatal(err)
			}
			for _, change := range batch.Changes {
				got = change.Object.GetMetadata().GetName()
				if change.Type != metav1.EventType_EVENT_TYPE_ADDED || got != name {
					t.Fatalf("%v %s, want ADDED %s", change.Type, got, name)
				}
			}
		}
	}
	select {
	case err := <-agent.ended:
		t.Errorf("the node's session ended: %v", err)
	default:
	}
}
