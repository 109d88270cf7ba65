package cache_test

import (
	"context"
	"time"

	"google.golang.org/protobuf/proto"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	storev1 "dhow.dev/gen/go/dhow/store/v1"
	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/resource"
	"dhow.dev/pkg/transport"
	"dhow.dev/services/apiserver/internal/cache"
	"dhow.dev/services/store"
)

const patience = time.Minute

var pods = resource.For[*corev1.Pod]()

// tester is the part of testing.T that rapid.T has too.
type tester interface {
	Helper()
	Fatal(...any)
	Fatalf(string, ...any)
	Cleanup(func())
}

// newStore starts a store in memory.
func newStore(t tester) storev1.StoreClient {
	t.Helper()
	memory := transport.NewMemory()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- store.Run(ctx, store.Config{Listener: memory.Listen("store"), Credentials: memory.ServerCredentials(), Memory: true})
	}()
	conn, err := memory.Dial("store", identity.Identity{Name: identity.APIServer})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		cancel()
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
	})
	return storev1.NewStoreClient(conn)
}

// newCache runs a cache of a store until the test ends.
func newCache(t tester, config cache.Config) *cache.Cache {
	t.Helper()
	c, err := cache.New(config)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
	})
	select {
	case <-c.Ready():
	case <-time.After(patience):
		t.Fatal("the cache is not ready")
	}
	return c
}

// pod is a pod of the model.
type pod struct {
	namespace, name, uid, node, app string
}

func (p pod) encode(t tester) []byte {
	t.Helper()
	o := corev1.Pod_builder{
		Metadata: metav1.ObjectMeta_builder{
			Namespace: proto.String(p.namespace), Name: proto.String(p.name), Uid: proto.String(p.uid), Labels: map[string]string{"app": p.app},
		}.Build(),
		Spec: corev1.PodSpec_builder{NodeName: proto.String(p.node)}.Build(),
	}.Build()
	data, err := proto.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func (p pod) key() []byte { return []byte(cache.Key(pods, p.namespace, p.name)) }

func put(t tester, p pod) *storev1.Operation {
	return storev1.Operation_builder{Key: p.key(), Put: p.encode(t)}.Build()
}

func remove(p pod) *storev1.Operation {
	return storev1.Operation_builder{Key: p.key(), Delete: proto.Bool(true)}.Build()
}

// commit writes operations and returns the commit's revision.
func commit(t tester, s storev1.StoreClient, operations ...*storev1.Operation) int64 {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	answer, err := s.Commit(ctx, storev1.CommitRequest_builder{Operations: operations}.Build())
	if err != nil {
		t.Fatal(err)
	}
	return answer.GetRevision()
}

func selectPods(t tester, namespace, labels, fields string) cache.Selection {
	t.Helper()
	s, err := cache.Select(pods, namespace, labels, fields)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func within(t tester) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}
