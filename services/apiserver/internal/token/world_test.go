package token_test

import (
	"context"
	"reflect"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	storev1 "dhow.dev/gen/go/dhow/store/v1"
	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/resource"
	"dhow.dev/pkg/transport"
	"dhow.dev/services/apiserver/internal/cache"
	"dhow.dev/services/apiserver/internal/token"
	"dhow.dev/services/store"
)

const patience = time.Minute

// encoded is a struct of k8s.io/api.
type encoded interface {
	metav1.Object
	Marshal() ([]byte, error)
}

// world is a cache of a real store in memory, without the API server's write path.
type world struct {
	t     *testing.T
	store storev1.StoreClient
	cache *cache.Cache
}

func newWorld(t *testing.T) *world {
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
	w := &world{t: t, store: storev1.NewStoreClient(conn)}
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
	return w
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

func (w *world) key(o encoded) []byte {
	kinds := map[reflect.Type]string{
		reflect.TypeFor[*corev1.ServiceAccount]():        "serviceaccounts",
		reflect.TypeFor[*corev1.Pod]():                   "pods",
		reflect.TypeFor[*corev1.Node]():                  "nodes",
		reflect.TypeFor[*corev1.Secret]():                "secrets",
		reflect.TypeFor[*corev1.PersistentVolume]():      "persistentvolumes",
		reflect.TypeFor[*corev1.PersistentVolumeClaim](): "persistentvolumeclaims",
	}
	r := resource.Lookup("", kinds[reflect.TypeOf(o)])
	if _, ok := o.(*storagev1.CSIDriver); ok {
		r = resource.Lookup("storage.k8s.io", "csidrivers")
	}
	return []byte(cache.Key(r, o.GetNamespace(), o.GetName()))
}

func (w *world) put(o encoded) {
	w.t.Helper()
	data, err := o.Marshal()
	if err != nil {
		w.t.Fatal(err)
	}
	w.commit(storev1.Operation_builder{Key: w.key(o), Put: data}.Build())
}

func (w *world) remove(o encoded) {
	w.t.Helper()
	gone := true
	w.commit(storev1.Operation_builder{Key: w.key(o), Delete: &gone}.Build())
}

func meta(namespace, name, uid string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID(uid)}
}

func account(name, uid string) *corev1.ServiceAccount {
	return &corev1.ServiceAccount{ObjectMeta: meta("default", name, uid)}
}

func pod(name, uid, account, node string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: meta("default", name, uid), Spec: corev1.PodSpec{ServiceAccountName: account, NodeName: node}}
}

func node(name, uid string) *corev1.Node { return &corev1.Node{ObjectMeta: meta("", name, uid)} }

// clock is a time that tests move.
type clock struct{ now time.Time }

func newClock() *clock { return &clock{now: time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC)} }

func (c *clock) Now() time.Time { return c.now }

// keys are made once: RSA keys take long.
func issuer(t *testing.T, objects token.Objects, clock *clock, change func(*token.Config)) *token.Issuer {
	t.Helper()
	config := token.Config{Keys: ecKeys(t), Objects: objects, Now: clock.Now}
	if change != nil {
		change(&config)
	}
	i, err := token.New(config)
	if err != nil {
		t.Fatal(err)
	}
	return i
}
