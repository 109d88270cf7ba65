//go:build e2e

// Package reliability takes services of a cluster with several of each away, by kill -9 and by restarts, and measures what its clients notice of it. What it measures
// stands in docs/reliability.md, which a run with RECORD=1 writes.
package reliability

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"dhow.dev/e2e/cluster"
	coordinationv1 "dhow.dev/gen/go/dhow/coordination/v1"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/client"
)

// grace is how long nodes may be silent. A machine that runs tests stalls for seconds by itself, and a node that is lost by that says nothing about its session.
const grace = "40s"

func TestReliability(t *testing.T) {
	r := &record{}
	c := cluster.Start(t, cluster.Options{Nodes: 2, Hosts: 3, Arguments: []string{"--node-grace", grace}})
	c.Images(t)
	for _, part := range []struct {
		name string
		run  func(*testing.T, *cluster.Cluster, *record)
	}{
		{"leaders are replaced", leaders},
		{"watches go on at another API server", watches},
		{"a host is cut off", hosts},
		{"every service is restarted under load", rolling},
		{"all stop and start", stopping},
	} {
		t.Run(part.name, func(t *testing.T) { part.run(t, c, r) })
	}
	if os.Getenv("RECORD") != "" && !t.Failed() {
		if err := r.write(filepath.Join("..", "..", "docs", "reliability.md")); err != nil {
			t.Error(err)
		}
	}
}

// pause is between two attempts of a call that was refused: long enough not to be a busy loop, short against what is measured.
const pause = 20 * time.Millisecond

// attemptLimit bounds one attempt: a connection to a process that is gone is noticed by itself, one to a host that is gone by keepalives within 15 s.
const attemptLimit = 20 * time.Second

// persist repeats a call while it is answered with UNAVAILABLE, which says that it may be repeated, or not at all, and returns how often it was repeated. Whatever else
// goes wrong is returned.
func persist(ctx context.Context, call func(context.Context) error) (repeated int, err error) {
	for {
		attempt, cancel := context.WithTimeout(ctx, attemptLimit)
		err = call(attempt)
		silent := attempt.Err() != nil
		cancel()
		if err == nil || !silent && !unavailable(err) {
			return repeated, err
		}
		select {
		case <-ctx.Done():
			return repeated, errors.Join(ctx.Err(), err)
		case <-time.After(pause):
		}
		repeated++
	}
}

// must is persist for a test that cannot go on without the call.
func must(t *testing.T, what string, call func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), cluster.Deadline)
	defer cancel()
	if _, err := persist(ctx, call); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

func meta(namespace, name string) *metav1.ObjectMeta {
	return metav1.ObjectMeta_builder{Namespace: proto.String(namespace), Name: proto.String(name)}.Build()
}

// put makes or replaces a ConfigMap with one value.
func put(ctx context.Context, conn grpc.ClientConnInterface, namespace, name, value string) error {
	m := corev1.ConfigMap_builder{Metadata: meta(namespace, name), Data: map[string]string{"n": value}}.Build()
	maps := client.For[*corev1.ConfigMap](conn)
	_, err := maps.Update(ctx, m, nil)
	if status.Code(err) == codes.NotFound {
		_, err = maps.Create(ctx, m, nil)
	}
	if status.Code(err) == codes.AlreadyExists { // an attempt whose answer was lost
		_, err = maps.Update(ctx, m, nil)
	}
	return err
}

// holder is who leads, by a Lease of kube-system.
func holder(t *testing.T, conn grpc.ClientConnInterface, lease string) string {
	t.Helper()
	var name string
	must(t, "read the lease "+lease, func(ctx context.Context) error {
		l, err := client.For[*coordinationv1.Lease](conn).Get(ctx, "kube-system", lease)
		name = l.GetSpec().GetHolderIdentity()
		return err
	})
	return name
}

// awaitPods watches the pods of a namespace until what a test waits for is there.
func awaitPods(t *testing.T, conn grpc.ClientConnInterface, namespace, what string, done func(map[string]*corev1.Pod) bool) {
	t.Helper()
	must(t, what, func(ctx context.Context) error {
		watch, err := client.For[*corev1.Pod](conn).Watch(ctx, metav1.WatchRequest_builder{Namespace: namespace}.Build())
		if err != nil {
			return err
		}
		pods := map[string]*corev1.Pod{}
		for synced := false; !synced || !done(pods); {
			batch, err := watch.Next()
			if err != nil {
				return err
			}
			synced = synced || batch.Synced
			for _, change := range batch.Changes {
				name := change.Object.GetMetadata().GetName()
				if pods[name] = change.Object; change.Type == metav1.EventType_EVENT_TYPE_DELETED {
					delete(pods, name)
				}
			}
		}
		return nil
	})
}

// unavailable says whether an error means that the server is going away or gone.
func unavailable(err error) bool { return status.Code(err) == codes.Unavailable }

// count counts what goes on in the background, and lets a test wait for more of it.
type count struct {
	done atomic.Int64
	// changed holds a token when there is news.
	changed chan struct{}
}

func (c *count) add() {
	c.done.Add(1)
	select {
	case c.changed <- struct{}{}:
	default:
	}
}

// more waits for so many more.
func (c *count) more(t *testing.T, what string, n int64) {
	t.Helper()
	timeout := time.After(cluster.Deadline)
	for want := c.done.Load() + n; c.done.Load() < want; {
		select {
		case <-c.changed:
		case <-timeout:
			t.Fatalf("%s does not go on", what)
		}
	}
}
