// Package committer is the store's group commit: it coalesces concurrent, independent commits into one transaction of the engine.
//
// A batch is free of conflicts by construction: no key is written by two members, and none is written by one member and in a condition
// of another. So each member's conditions, which the engine evaluates against the state before the batch, hold exactly if they would
// hold were the members run one after the other, in any order. What conflicts with the batch waits for a later one; the head of the
// queue is always in the next batch, so nothing starves. Batches are bounded by members, operations and bytes; commits with leases
// travel alone, because a missing lease makes the engine reject the whole transaction.
//
// Nothing waits for company: a commit is sent at once when a place is free, and what arrives while the places are taken makes up the
// next batch. Under load the batches grow by themselves.
package committer

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"

	"dhow.dev/services/store/internal/engine"
	"dhow.dev/services/store/internal/record"
)

const (
	// MaxOperations bounds the operations and the conditions of one commit.
	MaxOperations = 1000
	// MaxBytes bounds the keys and values of one commit.
	MaxBytes = 1536 << 10

	// maxMembers and batchBytes bound a batch. Larger ones gain nothing: the share of fsync is small by then, and every member
	// waits for the whole.
	maxMembers = 256
	batchBytes = 1 << 20
	// places is how many batches are on their way at once: while one is applied, the next is written to disk.
	places = 8
	// DefaultPlaces is how many batches are on their way at once: while one is applied, the next are written to disk.
	DefaultPlaces = 2
	// maxScan bounds how far a batch looks for members behind those that conflict.
	maxScan = 4 * maxMembers
	// timeout bounds a batch. etcd itself gives up after about 7 seconds.
	timeout = 15 * time.Second
)

// ErrInvalid: the commit is malformed.
var ErrInvalid = errors.New("invalid commit")

// Exists is the revision of a condition that holds when the key exists. 0 holds when it does not.
const Exists = -1

// Condition must hold before the commit.
type Condition struct {
	Key      []byte
	Revision int64
}

// Operation puts a value, or deletes the key.
type Operation struct {
	Key, Value []byte
	Delete     bool
	Lease      int64
	KeyID      uint32
}

// Request is one commit.
type Request struct {
	Conditions []Condition
	Operations []Operation
	Trace      record.Trace
}

// Response is a commit that happened.
type Response struct {
	// Revisions holds the revision of each operation; 0 for a delete of a key that did not exist.
	Revisions []int64
	// Revision is the commit's, or for one that changed nothing a revision at which its conditions held.
	Revision int64
}

// ConflictError: conditions did not hold.
type ConflictError struct {
	// Entries are the keys whose conditions did not hold, as they are.
	Entries []record.Entry
	// Revision is one at which this was so.
	Revision int64
}

func (e *ConflictError) Error() string {
	if len(e.Entries) == 1 {
		entry := e.Entries[0]
		if entry.Revision == 0 {
			return fmt.Sprintf("key %q does not exist", entry.Key)
		}
		return fmt.Sprintf("key %q is at revision %d", entry.Key, entry.Revision)
	}
	return fmt.Sprintf("%d keys are not as the commit's conditions want them, the first is %q", len(e.Entries), e.Entries[0].Key)
}

// Config configures New.
type Config struct {
	Engine engine.Engine
	Tracer trace.Tracer
	Meter  metric.Meter
	// Places is how many batches are on their way at once; 0: DefaultPlaces.
	Places int
}

// Committer coalesces commits.
type Committer struct {
	engine  engine.Engine
	limits  engine.Limits
	tracer  trace.Tracer
	metrics metrics

	mu     sync.Mutex
	queue  []*member
	places int
	taken  int
	closed bool
	idle   sync.WaitGroup // batches on their way
}

type metrics struct {
	members, operations metric.Int64Histogram
	duration            metric.Float64Histogram
	conflicts           metric.Int64Counter
}

// New returns a Committer.
func New(config Config) (*Committer, error) {
	c := &Committer{engine: config.Engine, limits: config.Engine.Limits(), tracer: config.Tracer, places: config.Places}
	if c.places == 0 {
		c.places = DefaultPlaces
	}
	var failed [4]error
	c.metrics.members, failed[0] = config.Meter.Int64Histogram("dhow.store.batch.commits",
		metric.WithDescription("Commits in one transaction of the database"), metric.WithUnit("{commit}"),
		metric.WithExplicitBucketBoundaries(1, 2, 4, 8, 16, 32, 64, 128, 256))
	c.metrics.operations, failed[1] = config.Meter.Int64Histogram("dhow.store.batch.operations",
		metric.WithDescription("Written and deleted keys in one transaction of the database"), metric.WithUnit("{operation}"),
		metric.WithExplicitBucketBoundaries(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1023))
	c.metrics.duration, failed[2] = config.Meter.Float64Histogram("dhow.store.commit.duration",
		metric.WithDescription("From a commit's arrival to its answer"), metric.WithUnit("s"),
		metric.WithExplicitBucketBoundaries(.0005, .001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10))
	c.metrics.conflicts, failed[3] = config.Meter.Int64Counter("dhow.store.commit.conflicts",
		metric.WithDescription("Commits whose conditions did not hold"), metric.WithUnit("{commit}"))
	return c, errors.Join(failed[:]...)
}

// Close refuses new commits, those that wait among them, and waits for those on their way.
func (c *Committer) Close() {
	c.mu.Lock()
	c.closed = true
	waiting := c.queue
	c.queue = nil
	c.mu.Unlock()
	for _, m := range waiting {
		m.finish(Response{}, fmt.Errorf("%w: it stops", engine.ErrUnavailable))
	}
	c.idle.Wait()
}

// Commit runs one commit. It returns a *ConflictError when conditions do not hold. When the context ends before the answer, the commit
// may have happened.
func (c *Committer) Commit(ctx context.Context, request Request) (Response, error) {
	start := time.Now()
	m, err := c.prepare(ctx, request)
	if err != nil {
		return Response{}, err
	}
	if err := c.enqueue(m); err != nil {
		return Response{}, err
	}
	select {
	case <-m.done:
	case <-ctx.Done():
		if c.withdraw(m) {
			return Response{}, ctx.Err()
		}
		return Response{}, fmt.Errorf("%w: %w", ctx.Err(), engine.ErrUncertain)
	}
	c.metrics.duration.Record(ctx, time.Since(start).Seconds())
	if _, ok := errors.AsType[*ConflictError](m.err); ok {
		c.metrics.conflicts.Add(ctx, 1)
	}
	return m.response, m.err
}

func (c *Committer) enqueue(m *member) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return fmt.Errorf("%w: it stops", engine.ErrUnavailable)
	}
	c.queue = append(c.queue, m)
	c.dispatch()
	return nil
}

// withdraw takes a commit out of the queue; false when it is on its way.
func (c *Committer) withdraw(m *member) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range c.queue {
		if c.queue[i] == m {
			c.queue = append(c.queue[:i], c.queue[i+1:]...)
			return true
		}
	}
	return false
}

// dispatch sends batches while there are places. Called with mu held.
func (c *Committer) dispatch() {
	for c.taken < c.places && len(c.queue) > 0 {
		batch := c.take()
		c.taken++
		c.idle.Go(func() {
			c.run(batch)
			c.mu.Lock()
			defer c.mu.Unlock()
			c.taken--
			c.dispatch()
		})
	}
}

// take removes the next batch from the queue. Called with mu held.
func (c *Committer) take() []*member {
	b := batch{limit: c.limits.Operations}
	rest := c.queue[:0]
	for i, m := range c.queue {
		if i < maxScan && b.admits(m) {
			b.add(m)
		} else {
			rest = append(rest, m)
		}
	}
	clear(c.queue[len(rest):])
	c.queue = rest
	return b.members
}

// run commits a batch and answers its members.
func (c *Committer) run(members []*member) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	err := c.commit(ctx, members)
	if err == nil {
		return
	}
	// The engine did not take the transaction as it is. That may be one member's fault (its put in a full database): ask for each.
	refused := errors.Is(err, engine.ErrNoSpace) || errors.Is(err, engine.ErrTooLarge) || errors.Is(err, engine.ErrRejected)
	for _, m := range members {
		if len(members) == 1 || !refused {
			m.finish(Response{}, err)
			continue
		}
		if err := c.commit(ctx, []*member{m}); err != nil {
			m.finish(Response{}, err)
		}
	}
}

// commit runs one transaction and answers its members, unless it fails as a whole.
func (c *Committer) commit(ctx context.Context, members []*member) (err error) {
	links := make([]trace.Link, 0, len(members))
	operations := 0
	for _, m := range members {
		if m.span.IsValid() {
			links = append(links, trace.Link{SpanContext: m.span})
		}
		operations += len(m.member.Writes)
	}
	ctx, span := c.tracer.Start(ctx, "store.batch", trace.WithNewRoot(), trace.WithLinks(links...), trace.WithAttributes(
		attribute.Int("dhow.store.commits", len(members)), attribute.Int("dhow.store.operations", operations)))
	defer func() {
		if err != nil {
			span.RecordError(err)
			span.SetStatus(codes.Error, "the transaction failed")
		}
		span.End()
	}()
	c.metrics.members.Record(ctx, int64(len(members)))
	c.metrics.operations.Record(ctx, int64(operations))

	transaction := make([]engine.Member, len(members))
	slot := 0
	for i, m := range members {
		slot = m.place(slot)
		transaction[i] = m.member
	}
	result, err := c.engine.Commit(ctx, transaction)
	if err != nil {
		return err
	}
	span.SetAttributes(attribute.Int64("dhow.store.revision", record.Whole(result.Revision)))
	answer(members, result)
	return nil
}

// answer gives each member its response. Deletes get the indexes after the highest put of the revision, in order, as every observer
// of the revision computes them (package record).
func answer(members []*member, result engine.Result) {
	deleted := 0
	for i, m := range members {
		if result.Outcomes[i].Held && m.puts > 0 {
			deleted = m.first + m.puts
		}
	}
	for i, m := range members {
		out := result.Outcomes[i]
		if !out.Held {
			m.finish(Response{}, m.conflict(out.Current, result.Revision))
			continue
		}
		response := Response{Revision: record.Whole(result.Revision), Revisions: make([]int64, len(m.member.Writes))}
		put := m.first
		for j, w := range m.member.Writes {
			switch {
			case !w.Delete:
				response.Revisions[j] = record.Revision(result.Revision, put)
				put++
			case out.Changed[j]:
				response.Revisions[j] = record.Revision(result.Revision, deleted)
				deleted++
			}
		}
		m.finish(response, nil)
	}
}
