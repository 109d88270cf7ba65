// Package cachetest is a cache of a real store in memory, without the API server's write path, for the tests of what reads the cache.
package cachetest

import (
	"context"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc/credentials"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"

	storev1 "dhow.dev/gen/go/dhow/store/v1"
	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/resource"
	"dhow.dev/pkg/transport"
	"dhow.dev/services/apiserver/internal/cache"
)

// patience bounds waits; nothing measures it.
const patience = time.Minute

// Object is a struct of k8s.io/api.
type Object interface {
	metav1.Object
	runtime.Object
	Marshal() ([]byte, error)
}

// World is the store and the cache. They end with the test.
type World struct {
	Cache *cache.Cache
	t     testing.TB
	store storev1.StoreClient
}

// Run serves a store in memory until ctx ends: store.Run, which only tests may import.
type Run func(ctx context.Context, listener net.Listener, credentials credentials.TransportCredentials) error

// New starts them, and waits until the cache is filled.
func New(t testing.TB, run Run) *World {
	t.Helper()
	memory := transport.NewMemory()
	ctx, cancel := context.WithCancel(context.Background())
	stored, cached := make(chan error, 1), make(chan error, 1)
	listener := memory.Listen("store")
	go func() {
		stored <- run(ctx, listener, memory.ServerCredentials())
	}()
	conn, err := memory.Dial("store", identity.Identity{Name: identity.APIServer})
	if err != nil {
		t.Fatal(err)
	}
	w := &World{t: t, store: storev1.NewStoreClient(conn)}
	if w.Cache, err = cache.New(cache.Config{Store: w.store}); err != nil {
		t.Fatal(err)
	}
	go func() { cached <- w.Cache.Run(ctx) }()
	t.Cleanup(func() {
		conn.Close()
		cancel()
		for _, ended := range []chan error{cached, stored} {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
	})
	select {
	case <-w.Cache.Ready():
	case <-time.After(patience):
		t.Fatal("the cache is not ready")
	}
	return w
}

// Put writes an object as it is, and waits until the cache has it.
func (w *World) Put(o Object) {
	w.t.Helper()
	data, err := o.Marshal()
	if err != nil {
		w.t.Fatal(err)
	}
	w.commit(storev1.Operation_builder{Key: w.key(o), Put: data}.Build())
}

// Remove deletes an object, and waits until the cache knows.
func (w *World) Remove(o Object) {
	w.t.Helper()
	gone := true
	w.commit(storev1.Operation_builder{Key: w.key(o), Delete: &gone}.Build())
}

func (w *World) key(o Object) []byte {
	w.t.Helper()
	kinds, _, err := scheme.Scheme.ObjectKinds(o)
	if err != nil {
		w.t.Fatal(err)
	}
	r := resource.ByGVK(kinds[0])
	if r == nil {
		w.t.Fatalf("%v is no kind of Dhow's", kinds[0])
	}
	return []byte(cache.Key(r, o.GetNamespace(), o.GetName()))
}

func (w *World) commit(operation *storev1.Operation) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if _, err := w.store.Commit(ctx, storev1.CommitRequest_builder{Operations: []*storev1.Operation{operation}}.Build()); err != nil {
		w.t.Fatal(err)
	}
	if _, err := w.Cache.Consistent(ctx); err != nil {
		w.t.Fatal(err)
	}
}

// Meta is the metadata of an object that is put.
func Meta(namespace, name, uid string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID(uid)}
}
