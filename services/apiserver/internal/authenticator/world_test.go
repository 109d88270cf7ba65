package authenticator_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	storev1 "dhow.dev/gen/go/dhow/store/v1"
	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/resource"
	"dhow.dev/pkg/transport"
	"dhow.dev/services/apiserver/internal/authenticator"
	"dhow.dev/services/apiserver/internal/cache"
	"dhow.dev/services/apiserver/internal/token"
	"dhow.dev/services/store"
)

const patience = time.Minute

// object is a struct of k8s.io/api.
type object interface {
	metav1.Object
	Marshal() ([]byte, error)
}

// world is a cache of a real store in memory, and an issuer and a verifier on it, with a clock that tests move.
type world struct {
	t        *testing.T
	store    storev1.StoreClient
	cache    *cache.Cache
	now      time.Time
	issuer   *token.Issuer
	verifier *authenticator.Verifier
}

func newWorld(t *testing.T, change func(*authenticator.Config)) *world {
	t.Helper()
	memory := transport.NewMemory()
	ctx, cancel := context.WithCancel(context.Background())
	stored, cached := make(chan error, 1), make(chan error, 1)
	listener := memory.Listen("store")
	go func() {
		stored <- store.Run(ctx, store.Config{Listener: listener, Credentials: memory.ServerCredentials(), Memory: true})
	}()
	conn, err := memory.Dial("store", identity.Identity{Name: identity.APIServer})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, store: storev1.NewStoreClient(conn), now: time.Now().Truncate(time.Second)}
	if w.cache, err = cache.New(cache.Config{Store: w.store}); err != nil {
		t.Fatal(err)
	}
	go func() { cached <- w.cache.Run(ctx) }()
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
	case <-w.cache.Ready():
	case <-time.After(patience):
		t.Fatal("the cache is not ready")
	}
	keys, err := token.NewKeys(newKey(t))
	if err != nil {
		t.Fatal(err)
	}
	clock := func() time.Time { return w.now }
	if w.issuer, err = token.New(token.Config{Keys: keys, Objects: w.cache, Now: clock}); err != nil {
		t.Fatal(err)
	}
	config := authenticator.Config{Issuer: w.issuer, Objects: w.cache, Now: clock}
	if change != nil {
		change(&config)
	}
	if w.verifier, err = authenticator.New(config); err != nil {
		t.Fatal(err)
	}
	return w
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (w *world) key(o object) []byte {
	kind := "serviceaccounts"
	if _, ok := o.(*corev1.Secret); ok {
		kind = "secrets"
	}
	return []byte(cache.Key(resource.Lookup("", kind), o.GetNamespace(), o.GetName()))
}

func (w *world) commit(operation *storev1.Operation) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if _, err := w.store.Commit(ctx, storev1.CommitRequest_builder{Operations: []*storev1.Operation{operation}}.Build()); err != nil {
		w.t.Fatal(err)
	}
	if _, err := w.cache.Consistent(ctx); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) put(o object) {
	w.t.Helper()
	data, err := o.Marshal()
	if err != nil {
		w.t.Fatal(err)
	}
	w.commit(storev1.Operation_builder{Key: w.key(o), Put: data}.Build())
}

func (w *world) remove(o object) {
	w.t.Helper()
	gone := true
	w.commit(storev1.Operation_builder{Key: w.key(o), Delete: &gone}.Build())
}

func meta(namespace, name, uid string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID(uid)}
}

func builder() *corev1.ServiceAccount {
	return &corev1.ServiceAccount{ObjectMeta: meta("default", "builder", "sa-uid")}
}
