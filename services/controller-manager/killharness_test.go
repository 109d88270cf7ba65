package controllermanager_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	appsv1 "dhow.dev/gen/go/dhow/apps/v1"
	batchv1 "dhow.dev/gen/go/dhow/batch/v1"
	clusterv1 "dhow.dev/gen/go/dhow/cluster/v1"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	eventsv1 "dhow.dev/gen/go/dhow/events/v1"
	rbacv1 "dhow.dev/gen/go/dhow/rbac/v1"
	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/resource"
	controllermanager "dhow.dev/services/controller-manager"
)

// mostWrites ends a harness whose scenario never runs with fewer writes than the one before: a controller writes without end.
const mostWrites = 300

// killBetweenWrites shows that controllers may die between any two of their writes. It runs the scenario again and again, each time in a new cluster;
// in the n-th run the controllers lose their connection with their n-th write: the write is carried out, its answer is lost, all controllers stop and
// others begin in their place, as another process would. It ends with the run in which the scenario is over before the n-th write.
//
// The scenario makes objects, waits (eventually, eventuallyOne) and checks what must hold at the end. While it runs, controllers may be away for a
// moment at any point, so it may only wait for what lasts.
//
// Under the race detector, which is slow, they die at every fourth write (killEvery).
//
// Writes of Events and of what every cluster gets at its start (service accounts, config maps, cluster roles, storage classes, namespaces' ends) do not
// count.
func killBetweenWrites(t *testing.T, scenario func(c *cluster)) {
	t.Helper()
	for n := 1; n <= mostWrites; n += killEvery {
		reached := false
		ok := t.Run(fmt.Sprintf("write %d", n), func(t *testing.T) {
			c := newControlPlane(t)
			k := c.startMortal(n)
			scenario(c)
			reached = k.isCut()
		})
		if !ok || !reached {
			if ok {
				t.Logf("less than %d writes", n)
			}
			return
		}
	}
	t.Fatalf("after %d runs the controllers still write more than in the one before", mostWrites)
}

// startMortal starts controllers that die with their n-th write and are then replaced.
func (c *cluster) startMortal(n int) *cutConnection {
	c.t.Helper()
	first := &cutConnection{ClientConnInterface: c.dial("apiserver", identity.Identity{Name: identity.ControllerManager}), left: n, cut: make(chan struct{})}
	first.lifetime, first.sever = context.WithCancelCause(context.Background())
	c.t.Cleanup(func() { first.sever(errCut) })
	// Made here: what runs beside the test may not end it.
	second := c.dial("apiserver", identity.Identity{Name: identity.ControllerManager})
	config := controllermanager.Config{
		CACert: []byte("a certificate"), EvictionStartGrace: -1, OrphanQuarantine: -1,
		Logger: slog.New(slog.NewTextHandler(c.t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo})),
	}
	c.start("controller-manager", func(ctx context.Context) error {
		life, kill := context.WithCancel(ctx)
		defer kill()
		go func() {
			select {
			case <-first.cut:
				kill()
			case <-life.Done():
			}
		}()
		mortal := config
		mortal.APIServer = first
		// What a dying process fails with is nobody's concern.
		if err := controllermanager.Run(life, mortal); ctx.Err() != nil || err != nil && !first.isCut() {
			return err
		}
		config.Logger.InfoContext(ctx, "the controllers died, others begin")
		config.APIServer = second
		return controllermanager.Run(ctx, config)
	})
	return first
}

var errCut = errors.New("the connection is cut")

// cutConnection is a connection that is cut right after a number of writes.
type cutConnection struct {
	grpc.ClientConnInterface
	lifetime context.Context
	sever    context.CancelCauseFunc
	cut      chan struct{}

	mu   sync.Mutex
	left int
}

// isCut says that the last write was made.
func (c *cutConnection) isCut() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.left <= 0
}

// counts says that a call is one of the writes that are counted.
func counts(method string) bool {
	service, call, _ := strings.Cut(strings.TrimPrefix(method, "/"), "/")
	if strings.HasPrefix(call, "Get") {
		return false
	}
	_, kind, _ := strings.Cut(service, ".v")
	_, kind, _ = strings.Cut(kind, ".")
	switch kind {
	case "Events", "ServiceAccounts", "ConfigMaps", "ClusterRoles", "StorageClasses", "Namespaces":
		return false
	}
	return true
}

// Invoke carries a call out, and loses its answer if it is the last write or the connection is cut meanwhile.
func (c *cutConnection) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	if c.isCut() {
		return status.Error(codes.Unavailable, errCut.Error())
	}
	err := c.ClientConnInterface.Invoke(ctx, method, args, reply, opts...)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.left <= 0 {
		return status.Error(codes.Unavailable, errCut.Error())
	}
	if err == nil && counts(method) {
		if c.left--; c.left == 0 {
			close(c.cut)
			c.sever(errCut)
			return status.Error(codes.Unavailable, errCut.Error())
		}
	}
	return err
}

// NewStream opens a stream that ends when the connection is cut.
func (c *cutConnection) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	if c.isCut() {
		return nil, status.Error(codes.Unavailable, errCut.Error())
	}
	ctx, cancel := context.WithCancelCause(ctx)
	context.AfterFunc(c.lifetime, func() { cancel(errCut) })
	return c.ClientConnInterface.NewStream(ctx, desc, method, opts...)
}

func TestWritesThatCount(t *testing.T) {
	for method, want := range map[string]bool{
		resource.For[*corev1.Pod]().Method("Create"):            true,
		resource.For[*corev1.Pod]().Method("Get"):               false,
		resource.For[*corev1.ConfigMap]().Method("Create"):      false,
		resource.For[*corev1.Event]().Method("Create"):          false,
		resource.For[*appsv1.ReplicaSet]().Method("Delete"):     true,
		clusterv1.Objects_Commit_FullMethodName:                 true,
		resource.For[*rbacv1.ClusterRole]().Method("Update"):    false,
		resource.For[*eventsv1.Event]().Method("Patch"):         false,
		resource.For[*batchv1.Job]().Method("DeleteCollection"): true,
	} {
		if counts(method) != want {
			t.Errorf("%s counts: %t", method, !want)
		}
	}
}
