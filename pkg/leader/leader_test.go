package leader

import (
	"context"
	"errors"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	coordinationv1 "dhow.dev/gen/go/dhow/coordination/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/apistatus"
)

var leases = schema.GroupResource{Group: "coordination.k8s.io", Resource: "leases"}

// api is one lease behind the calls that an elector makes. It has no sockets, so that time can be the test's.
type api struct {
	mu       sync.Mutex
	lease    *coordinationv1.Lease
	revision int
}

// link is one elector's connection, which can be cut.
type link struct {
	*api
	mu  sync.Mutex
	cut bool
}

func (c *link) Invoke(_ context.Context, method string, args, reply any, _ ...grpc.CallOption) error {
	c.mu.Lock()
	cut := c.cut
	c.mu.Unlock()
	if cut {
		return status.Error(codes.Unavailable, "cut")
	}
	return apistatus.ToGRPC(c.api.call(method, args, reply))
}

func (c *link) NewStream(context.Context, *grpc.StreamDesc, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, errors.New("an elector does not watch")
}

func (a *api) call(method string, args, reply any) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if strings.HasSuffix(method, "/Get") {
		if a.lease == nil {
			return apierrors.NewNotFound(leases, "scheduler")
		}
		proto.Merge(reply.(proto.Message), a.lease)
		return nil
	}
	next := &coordinationv1.Lease{}
	if err := proto.Unmarshal(args.(*metav1.ObjectWriteRequest).GetObject(), next); err != nil {
		return err
	}
	switch {
	case strings.HasSuffix(method, "/Create") && a.lease != nil:
		return apierrors.NewAlreadyExists(leases, "scheduler")
	case strings.HasSuffix(method, "/Update") && next.GetMetadata().GetResourceVersion() != a.lease.GetMetadata().GetResourceVersion():
		return apierrors.NewConflict(leases, "scheduler", errors.New("changed"))
	}
	a.revision++
	next.GetMetadata().SetResourceVersion(strconv.Itoa(a.revision))
	a.lease = next
	proto.Merge(reply.(proto.Message), next)
	return nil
}

// contender is an elector that records when it leads.
type contender struct {
	conn *link
	stop context.CancelFunc
	mu   sync.Mutex
	lead bool
}

func (c *contender) leads() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lead
}

func compete(t *testing.T, a *api, name string) *contender {
	ctx, stop := context.WithCancel(t.Context())
	c := &contender{conn: &link{api: a}, stop: stop}
	e := New(Config{Conn: c.conn, Namespace: "kube-system", Name: "scheduler", Identity: name, Logger: slog.New(slog.DiscardHandler),
		Duration: 30 * time.Second, Deadline: 20 * time.Second, Renew: 10 * time.Second, Retry: 2 * time.Second})
	go func() {
		if err := e.Run(ctx, func(ctx context.Context) error {
			c.set(true)
			<-ctx.Done()
			c.set(false)
			return nil
		}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}()
	return c
}

func (c *contender) set(lead bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lead = lead
}

// pass lets time pass, and checks all the while that at most one leads.
func pass(t *testing.T, d time.Duration, contenders ...*contender) {
	t.Helper()
	for range d / (time.Second / 2) {
		<-time.After(time.Second / 2)
		synctest.Wait()
		leaders := 0
		for _, c := range contenders {
			if c.leads() {
				leaders++
			}
		}
		if leaders > 1 {
			t.Fatalf("%d lead", leaders)
		}
	}
}

func TestOneLeadsAndRenews(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &api{}
		first := compete(t, a, "first")
		pass(t, time.Second, first)
		second := compete(t, a, "second")
		pass(t, 10*time.Minute, first, second)
		if !first.leads() || second.leads() {
			t.Errorf("first leads: %t, second: %t", first.leads(), second.leads())
		}
		first.stop()
		pass(t, 5*time.Second, first, second)
		if !second.leads() {
			t.Error("the second has not taken over from one that stopped")
		}
		if n := a.lease.GetSpec().GetLeaseTransitions(); n != 1 {
			t.Errorf("%d transitions", n)
		}
		second.stop()
		synctest.Wait()
	})
}

func TestOneThatIsCutOffYieldsBeforeAnotherLeads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &api{}
		first := compete(t, a, "first")
		pass(t, 15*time.Second, first)
		second := compete(t, a, "second")
		pass(t, 3*time.Second, first, second)
		first.conn.mu.Lock()
		first.conn.cut = true
		first.conn.mu.Unlock()
		pass(t, time.Minute, first, second)
		if first.leads() || !second.leads() {
			t.Errorf("first leads: %t, second: %t", first.leads(), second.leads())
		}
		first.stop()
		second.stop()
		synctest.Wait()
	})
}

func TestWorkThatEndsGivesTheLeaseUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &api{}
		failed := errors.New("work failed")
		e := New(Config{Conn: &link{api: a}, Namespace: "kube-system", Name: "scheduler", Identity: "first", Logger: slog.New(slog.DiscardHandler),
			Duration: 30 * time.Second, Deadline: 20 * time.Second, Renew: 10 * time.Second, Retry: 2 * time.Second})
		if err := e.Run(t.Context(), func(context.Context) error { return failed }); !errors.Is(err, failed) {
			t.Errorf("ended with %v", err)
		}
		if holder := a.lease.GetSpec().GetHolderIdentity(); holder != "" {
			t.Errorf("%q holds the lease", holder)
		}
	})
}

func TestAnAttemptThatFailsIsMadeAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &api{}
		first := compete(t, a, "first")
		pass(t, time.Second, first)
		second := compete(t, a, "second")
		// Longer than between two renewals, shorter than the deadline.
		cut := func(is bool) {
			first.conn.mu.Lock()
			defer first.conn.mu.Unlock()
			first.conn.cut = is
		}
		cut(true)
		pass(t, 15*time.Second, first, second)
		cut(false)
		pass(t, time.Minute, first, second)
		if !first.leads() || second.leads() {
			t.Errorf("first leads: %t, second: %t", first.leads(), second.leads())
		}
		first.stop()
		second.stop()
		synctest.Wait()
	})
}
