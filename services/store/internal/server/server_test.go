package server

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"dhow.dev/services/store/internal/engine"
)

// TestCoalescer: callers that come while a read is under way share the next one, never the one that began before them.
func TestCoalescer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var reads atomic.Int64
		gate := make(chan struct{})
		c := &coalescer{read: func(context.Context) (engine.Status, error) {
			n := reads.Add(1)
			<-gate
			return engine.Status{Revision: engine.Revision(n)}, nil
		}}
		got := make([]engine.Revision, 100)
		var all sync.WaitGroup
		for i := range got {
			all.Go(func() {
				status, err := c.get(t.Context())
				if err != nil {
					t.Error(err)
				}
				got[i] = status.Revision
			})
			synctest.Wait()
		}
		if n := reads.Load(); n != 1 {
			t.Fatalf("%d reads began together", n)
		}
		impatient, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := c.get(impatient); !errors.Is(err, context.Canceled) {
			t.Errorf("a caller who gives up got %v", err)
		}
		close(gate)
		all.Wait()
		if got[0] != 1 || got[1] != 2 || got[99] != 2 || reads.Load() != 2 {
			t.Errorf("the first caller got read %d, the others %d to %d; %d reads", got[0], got[1], got[99], reads.Load())
		}
	})
}

func TestPrefixEnd(t *testing.T) {
	for prefix, want := range map[string]string{"/": "0", "/a": "/b", "/a\xff": "/b", "/\xff\xff": "0"} {
		if got := prefixEnd([]byte(prefix)); string(got) != want {
			t.Errorf("prefixEnd(%q) = %q, want %q", prefix, got, want)
		}
	}
}

// TestErrors: every error of an engine has a code, wrapped or not, and strangers have none.
func TestErrors(t *testing.T) {
	for err, code := range map[error]codes.Code{
		engine.ErrCompacted: codes.OutOfRange, engine.ErrFuture: codes.OutOfRange, engine.ErrLeaseNotFound: codes.NotFound,
		engine.ErrNoSpace: codes.ResourceExhausted, engine.ErrTooLarge: codes.ResourceExhausted, engine.ErrRejected: codes.InvalidArgument,
		engine.ErrUnavailable: codes.Unavailable, engine.ErrUncertain: codes.Unavailable,
	} {
		if got := status.Code(grpcError(errors.Join(errors.New("context"), err))); got != code {
			t.Errorf("%v: %s, want %s", err, got, code)
		}
	}
	// What etcd answers while it elects a leader has no code of its own there.
	dropped := fmt.Errorf("%w (%w)", engine.ErrUncertain, status.Error(codes.Unknown, "raft proposal dropped"))
	if got := status.Code(grpcError(dropped)); got != codes.Unavailable {
		t.Errorf("%v: %s", dropped, got)
	}
	if got := status.Code(grpcError(invalid("key"))); got != codes.InvalidArgument || grpcError(nil) != nil {
		t.Errorf("an own status became %s", got)
	}
	if _, known := status.FromError(grpcError(errors.New("bug"))); known {
		t.Error("an unknown error got a code")
	}
}
