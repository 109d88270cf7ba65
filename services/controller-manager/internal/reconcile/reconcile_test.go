package reconcile

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.opentelemetry.io/otel/trace"

	"dhow.dev/pkg/informer"
	"dhow.dev/pkg/telemetry"
)

// cache is a source whose revision the test moves.
type cache struct {
	mu       sync.Mutex
	revision int64
	changed  chan struct{}
}

func (c *cache) advance(revision int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.revision = revision
	close(c.changed)
	c.changed = make(chan struct{})
}

func (c *cache) Revision() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.revision
}

func (c *cache) WaitForSync(context.Context) error { return nil }

func (c *cache) WaitForRevision(ctx context.Context, revision int64) error {
	for {
		c.mu.Lock()
		reached, changed := c.revision >= revision, c.changed
		c.mu.Unlock()
		if reached {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

func run(t *testing.T, source Source, reconcile func(context.Context, *Turn[string]) error) *Runner[string] {
	r := New(Config[string]{Name: "test", Source: source, Workers: 4, Reconcile: reconcile, Logger: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		r.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	return r
}

func TestNoTurnOnACacheOlderThanOwnWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &cache{revision: 10, changed: make(chan struct{})}
		var seen []int64
		var others int
		r := run(t, source, func(_ context.Context, turn *Turn[string]) error {
			if turn.Key == "other" {
				others++
				return nil
			}
			seen = append(seen, source.Revision())
			turn.WroteAt(source.Revision() + 10)
			return nil
		})
		r.Add("key", nil)
		synctest.Wait()
		r.Add("key", nil)
		source.advance(15)
		r.Add("key", nil)
		r.Add("other", nil)
		synctest.Wait()
		if len(seen) != 1 || others != 1 {
			t.Fatalf("turns at %v, %d of another key; the write at 20 is not in the cache yet", seen, others)
		}
		source.advance(20)
		synctest.Wait()
		if len(seen) != 2 || seen[1] != 20 {
			t.Fatalf("turns at %v, want a second one at 20", seen)
		}
	})
}

func TestFailuresAreRepeatedAndTimersKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &cache{revision: 1, changed: make(chan struct{})}
		var turns atomic.Int32
		r := run(t, source, func(_ context.Context, turn *Turn[string]) error {
			switch turns.Add(1) {
			case 1, 2:
				return errors.New("not yet")
			case 3:
				turn.Again(time.Hour)
				turn.Again(time.Minute)
			}
			return nil
		})
		r.Add("key", nil)
		time.Sleep(30 * time.Second)
		synctest.Wait()
		if n := turns.Load(); n != 3 {
			t.Fatalf("%d turns, want two failures and a success", n)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := turns.Load(); n != 4 {
			t.Fatalf("%d turns, want one more after a minute", n)
		}
	})
}

func TestTurnsContinueTheTraceOfTheirCause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &cache{revision: 1, changed: make(chan struct{})}
		const id = "0af7651916cd43dd8448eb211c80319c"
		var got string
		r := run(t, source, func(ctx context.Context, _ *Turn[string]) error {
			got = trace.SpanContextFromContext(ctx).TraceID().String()
			return nil
		})
		r.Add("key", &informer.Trace{Traceparent: "00-" + id + "-b7ad6b7169203331-01"})
		synctest.Wait()
		if got != id {
			t.Errorf("trace %s, want %s (%s)", got, id, telemetry.Traceparent(t.Context()))
		}
	})
}
