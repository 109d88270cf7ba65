package committer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	metricnoop "go.opentelemetry.io/otel/metric/noop"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	"pgregory.net/rapid"

	"dhow.dev/services/store/internal/engine"
	"dhow.dev/services/store/internal/memory"
	"dhow.dev/services/store/internal/record"
)

// gated is the engine in memory, whose commits wait for the test. The engine refuses members that conflict, so that a wrong batch
// fails by itself.
type gated struct {
	*memory.Engine
	gate chan struct{}
	// fail, when set, is asked before a commit.
	fail func([]engine.Member) error

	mu      sync.Mutex
	batches [][]engine.Member
}

func (g *gated) Commit(ctx context.Context, members []engine.Member) (engine.Result, error) {
	select {
	case <-g.gate:
	case <-ctx.Done():
		return engine.Result{}, engine.ErrUncertain
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.batches = append(g.batches, members)
	if g.fail != nil {
		if err := g.fail(members); err != nil {
			return engine.Result{}, err
		}
	}
	return g.Engine.Commit(ctx, members)
}

func newGated(t *testing.T, config memory.Config) (*gated, *Committer) {
	g := &gated{Engine: memory.New(config), gate: make(chan struct{})}
	c, err := New(Config{Engine: g, Tracer: sdktrace.NewTracerProvider().Tracer(""), Meter: metricnoop.Meter{}, Places: 1})
	if err != nil {
		t.Fatal(err)
	}
	return g, c
}

func putOp(key, value string) Operation { return Operation{Key: []byte(key), Value: []byte(value)} }

// drawRequest makes commits that collide often: few keys, conditions that may hold.
func drawRequest(t *rapid.T, leases []int64) Request {
	var r Request
	keys := rapid.Permutation([]string{"/a", "/b", "/c", "/d", "/e", "/f", "/g", "/h"}).Draw(t, "keys")
	for _, key := range keys[:rapid.IntRange(0, 2).Draw(t, "conditions")] {
		r.Conditions = append(r.Conditions, Condition{Key: []byte(key), Revision: rapid.SampledFrom([]int64{0, Exists}).Draw(t, "condition")})
	}
	keys = rapid.Permutation(keys).Draw(t, "written")
	for _, key := range keys[:rapid.IntRange(0, 3).Draw(t, "operations")] {
		o := Operation{Key: []byte(key), Delete: rapid.Bool().Draw(t, "delete")}
		if !o.Delete {
			o.Value = []byte("v")
			if rapid.IntRange(0, 9).Draw(t, "leased") == 0 {
				o.Lease = rapid.SampledFrom(leases).Draw(t, "lease")
			}
		}
		r.Operations = append(r.Operations, o)
	}
	if len(r.Conditions)+len(r.Operations) == 0 {
		r.Operations = []Operation{putOp(keys[0], "v")}
	}
	return r
}

// TestBatches: random commits that wait together. Batches have no conflicts and respect the bounds, and every commit gets an answer that
// fits.
func TestBatches(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		operations := rapid.SampledFrom([]int{8, 16, 4096}).Draw(rt, "engine limit")
		requests := make([]Request, rapid.IntRange(1, 40).Draw(rt, "requests"))
		for i := range requests {
			requests[i] = drawRequest(rt, []int64{held, missing})
		}
		// The bubble is a goroutine of its own, in which rapid must not fail.
		var failed error
		synctest.Test(t, func(t *testing.T) { failed = runBatches(t, operations, requests) })
		if failed != nil {
			rt.Fatal(failed)
		}
	})
}

// held stands for a lease that exists.
const held, missing = 1, 42

func runBatches(t *testing.T, limit int, requests []Request) error {
	g, c := newGated(t, memory.Config{Operations: limit})
	lease, _, err := g.Grant(t.Context(), 3600)
	if err != nil {
		return err
	}
	responses, errs := make([]Response, len(requests)), make([]error, len(requests))
	var all sync.WaitGroup
	for i, r := range requests {
		for j := range r.Operations {
			if r.Operations[j].Lease == held {
				r.Operations[j].Lease = lease
			}
		}
		all.Go(func() { responses[i], errs[i] = c.Commit(t.Context(), r) })
		synctest.Wait() // arrives in this order
	}
	close(g.gate)
	all.Wait()
	c.Close()
	g.Close()

	total := 0
	for _, batch := range g.batches {
		total += len(batch)
		if err := checkBounds(batch, limit); err != nil {
			return err
		}
	}
	if total != len(requests) {
		return fmt.Errorf("%d members in batches, %d commits", total, len(requests))
	}
	for i, r := range requests {
		leased := slices.ContainsFunc(r.Operations, func(o Operation) bool { return o.Lease == missing })
		_, conflict := errors.AsType[*ConflictError](errs[i])
		switch {
		case errs[i] == nil:
			if err := checkRevisions(r, responses[i]); err != nil {
				return err
			}
		case conflict && len(r.Conditions) > 0:
		case leased && errors.Is(errs[i], engine.ErrLeaseNotFound):
		default:
			return fmt.Errorf("commit %d, %+v: %w", i, r, errs[i])
		}
	}
	return nil
}

func checkBounds(batch []engine.Member, limit int) error {
	largest := 0
	for _, m := range batch {
		largest = max(largest, len(m.Conditions), len(m.Writes))
		for _, w := range m.Writes {
			if w.Lease != 0 && len(batch) > 1 {
				return fmt.Errorf("a leased put among %d commits", len(batch))
			}
		}
	}
	if len(batch) > 1 && len(batch)+largest > limit {
		return fmt.Errorf("%d members, the largest of %d: over the engine's %d", len(batch), largest, limit)
	}
	return nil
}

func checkRevisions(r Request, response Response) error {
	at, index := record.Split(response.Revision)
	if index != record.Slots || len(response.Revisions) != len(r.Operations) {
		return fmt.Errorf("response %+v to %+v", response, r)
	}
	for i, o := range r.Operations {
		in, index := record.Split(response.Revisions[i])
		if o.Delete && response.Revisions[i] == 0 {
			continue
		}
		if in != at || index >= record.Slots {
			return fmt.Errorf("operation %d at %d, the commit at %d", i, response.Revisions[i], response.Revision)
		}
	}
	return nil
}

// together runs commits that wait behind a first one and returns their errors in order.
func together(t *testing.T, g *gated, c *Committer, requests ...Request) []error {
	t.Helper()
	errs := make([]error, len(requests))
	var all sync.WaitGroup
	all.Go(func() { c.Commit(t.Context(), Request{Operations: []Operation{putOp("/first", "1")}}) })
	synctest.Wait()
	for i, r := range requests {
		all.Go(func() { _, errs[i] = c.Commit(t.Context(), r) })
		synctest.Wait()
	}
	close(g.gate)
	all.Wait()
	c.Close()
	g.Close()
	return errs
}

// sizes are the members of each batch after the first.
func (g *gated) sizes() string {
	var sizes []string
	for _, b := range g.batches[1:] {
		sizes = append(sizes, fmt.Sprint(len(b)))
	}
	return strings.Join(sizes, " ")
}

func TestWhatTravelsTogether(t *testing.T) {
	put := func(key string) Request { return Request{Operations: []Operation{putOp(key, "v")}} }
	when := func(key string, r Request) Request {
		r.Conditions = append(r.Conditions, Condition{Key: []byte(key)})
		return r
	}
	large := func(key string) Request {
		return Request{Operations: []Operation{putOp(key, strings.Repeat("x", 600<<10))}}
	}
	many := func(prefix string) Request {
		var r Request
		for i := range 600 {
			r.Operations = append(r.Operations, putOp(fmt.Sprintf("%s%d", prefix, i), "v"))
		}
		return r
	}
	var hundreds []Request
	for i := range 300 {
		hundreds = append(hundreds, put(fmt.Sprintf("/n%d", i)))
	}
	for name, test := range map[string]struct {
		requests []Request
		sizes    string
	}{
		"independent":               {[]Request{put("/a"), put("/b"), put("/c")}, "3"},
		"one key":                   {[]Request{put("/a"), put("/a"), put("/b")}, "2 1"},
		"compared by many":          {[]Request{when("/ns", put("/a")), when("/ns", put("/b")), when("/ns", put("/c"))}, "3"},
		"written after compared":    {[]Request{when("/ns", put("/a")), put("/ns"), put("/b")}, "2 1"},
		"compared after written":    {[]Request{put("/ns"), when("/ns", put("/a")), put("/b")}, "2 1"},
		"compared and written both": {[]Request{when("/a", put("/a")), when("/b", put("/b"))}, "2"},
		"bytes":                     {[]Request{large("/a"), large("/b"), put("/c")}, "2 1"},
		"operations":                {[]Request{many("/a"), many("/b"), put("/c")}, "2 1"},
		"members":                   {hundreds, "256 44"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g, c := newGated(t, memory.Config{})
				together(t, g, c, test.requests...)
				if got := g.sizes(); got != test.sizes {
					t.Errorf("batches of %s, want %s", got, test.sizes)
				}
			})
		})
	}
}

// TestOneSpoilsNothing: what the engine refuses as a whole is tried member by member.
func TestOneSpoilsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, c := newGated(t, memory.Config{})
		g.fail = func(members []engine.Member) error {
			for _, m := range members {
				for _, w := range m.Writes {
					if string(w.Key) == "/full" {
						return engine.ErrNoSpace
					}
				}
			}
			return nil
		}
		errs := together(t, g, c,
			Request{Operations: []Operation{putOp("/a", "1")}},
			Request{Operations: []Operation{putOp("/full", "1")}},
			Request{Operations: []Operation{{Key: []byte("/b"), Delete: true}}})
		if errs[0] != nil || !errors.Is(errs[1], engine.ErrNoSpace) || errs[2] != nil {
			t.Errorf("answers: %v", errs)
		}
	})
}

// TestUncertain: when the engine does not answer, all are told so and nothing is tried again.
func TestUncertain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, c := newGated(t, memory.Config{})
		g.fail = func([]engine.Member) error { return engine.ErrUncertain }
		for _, err := range together(t, g, c, Request{Operations: []Operation{putOp("/a", "1")}}, Request{Operations: []Operation{putOp("/b", "1")}}) {
			if !errors.Is(err, engine.ErrUncertain) {
				t.Errorf("answer: %v", err)
			}
		}
		if len(g.batches) != 2 {
			t.Errorf("%d transactions", len(g.batches))
		}
	})
}

// TestGivingUp: a commit that waits is withdrawn; one on its way may have happened.
func TestGivingUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, c := newGated(t, memory.Config{})
		errs := make([]error, 2)
		var all sync.WaitGroup
		ctx, cancel := context.WithCancel(t.Context())
		for i := range errs {
			all.Go(func() {
				_, errs[i] = c.Commit(ctx, Request{Operations: []Operation{putOp(fmt.Sprintf("/%d", i), "1")}})
			})
			synctest.Wait()
		}
		cancel()
		all.Wait()
		close(g.gate)
		c.Close()
		g.Close()
		if !errors.Is(errs[0], engine.ErrUncertain) || !errors.Is(errs[1], context.Canceled) || errors.Is(errs[1], engine.ErrUncertain) {
			t.Errorf("on its way: %v, waiting: %v", errs[0], errs[1])
		}
		if len(g.batches) != 1 || len(g.batches[0]) != 1 {
			t.Errorf("transactions: %v", g.batches)
		}
	})
}

func TestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, c := newGated(t, memory.Config{})
		errs := make([]error, 2)
		var all sync.WaitGroup
		for i := range errs {
			all.Go(func() { _, errs[i] = c.Commit(t.Context(), Request{Operations: []Operation{putOp("/a", "1")}}) })
			synctest.Wait()
		}
		all.Go(c.Close)
		synctest.Wait()
		close(g.gate)
		all.Wait()
		if errs[0] != nil || !errors.Is(errs[1], engine.ErrUnavailable) {
			t.Errorf("on its way: %v, waiting: %v", errs[0], errs[1])
		}
		if _, err := c.Commit(t.Context(), Request{Operations: []Operation{putOp("/a", "1")}}); !errors.Is(err, engine.ErrUnavailable) {
			t.Errorf("after the end: %v", err)
		}
		g.Close()
	})
}

// TestBatchLinksItsCommits: a batch is a trace of its own, linked to the span of each commit.
func TestBatchLinksItsCommits(t *testing.T) {
	spans := tracetest.NewInMemoryExporter()
	tracer := sdktrace.NewTracerProvider(sdktrace.WithSyncer(spans)).Tracer("")
	e := memory.New(memory.Config{})
	defer e.Close()
	c, err := New(Config{Engine: e, Tracer: tracer, Meter: metricnoop.Meter{}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, span := tracer.Start(t.Context(), "caller")
	if _, err := c.Commit(ctx, Request{Operations: []Operation{putOp("/a", "1")}}); err != nil {
		t.Fatal(err)
	}
	c.Close() // the span has ended
	batch := spans.GetSpans()[0]
	if batch.Name != "store.batch" || batch.Parent.IsValid() || len(batch.Links) != 1 || !batch.Links[0].SpanContext.Equal(trace.SpanContextFromContext(ctx)) {
		t.Errorf("span %+v, want a root linked to %+v", batch, span.SpanContext())
	}
}
