package token_test

import (
	"context"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc/credentials"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"dhow.dev/services/apiserver/internal/cache"
	"dhow.dev/services/apiserver/internal/cache/cachetest"
	"dhow.dev/services/apiserver/internal/token"
	"dhow.dev/services/store"
)

// encoded is a struct of k8s.io/api.
type encoded = cachetest.Object

// world is a cache of a real store in memory.
type world struct {
	*cachetest.World
	cache *cache.Cache
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := cachetest.New(t, runStore)
	return &world{World: w, cache: w.Cache}
}

func (w *world) put(o encoded)    { w.Put(o) }
func (w *world) remove(o encoded) { w.Remove(o) }

func meta(namespace, name, uid string) metav1.ObjectMeta { return cachetest.Meta(namespace, name, uid) }

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

func runStore(ctx context.Context, listener net.Listener, credentials credentials.TransportCredentials) error {
	return store.Run(ctx, store.Config{Listener: listener, Credentials: credentials, Memory: true})
}
