package authenticator_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc/credentials"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"dhow.dev/services/apiserver/internal/authenticator"
	"dhow.dev/services/apiserver/internal/cache"
	"dhow.dev/services/apiserver/internal/cache/cachetest"
	"dhow.dev/services/apiserver/internal/token"
	"dhow.dev/services/store"
)

// patience bounds waits; nothing measures it.
const patience = time.Minute

// world is a cache of a real store in memory, and an issuer and a verifier on it, with a clock that tests move.
type world struct {
	*cachetest.World
	t        testing.TB
	cache    *cache.Cache
	now      time.Time
	issuer   *token.Issuer
	verifier *authenticator.Verifier
}

func newWorld(t *testing.T, change func(*authenticator.Config)) *world {
	t.Helper()
	w := &world{World: cachetest.New(t, runStore), t: t, now: time.Now().Truncate(time.Second)}
	w.cache = w.Cache
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

func (w *world) put(o cachetest.Object)    { w.Put(o) }
func (w *world) remove(o cachetest.Object) { w.Remove(o) }

func meta(namespace, name, uid string) metav1.ObjectMeta { return cachetest.Meta(namespace, name, uid) }

func builder() *corev1.ServiceAccount {
	return &corev1.ServiceAccount{ObjectMeta: meta("default", "builder", "sa-uid")}
}

func runStore(ctx context.Context, listener net.Listener, credentials credentials.TransportCredentials) error {
	return store.Run(ctx, store.Config{Listener: listener, Credentials: credentials, Memory: true})
}
