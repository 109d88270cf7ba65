// Package cache is the API server's copy of all objects, encoded as the store keeps them, and the one place that reads are answered from.
//
// One watch of the store feeds it. Per kind it holds a map for Get, a copy-on-write tree for lists at an exact revision, and indexes on what clients
// select by. Changes go into one bounded event log; a watch is a cursor into that log, parked in the bucket of the index that its
// selection needs, so that a change wakes those whom it may concern and nobody else. Answers are spliced from buffers that are made once
// per object version and shared by every reader: nothing is decoded, and a fan-out allocates the same for one watcher and for a thousand.
//
// Consistency: a read without a version first asks the store for its newest revision (one coalesced call for all who wait) and then waits until the cache
// has reached it; version 0 is the cache as it is; version N waits for N.
package cache

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"go.opentelemetry.io/otel/metric"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	storev1 "dhow.dev/gen/go/dhow/store/v1"
	"dhow.dev/pkg/resource"
)

// Config configures a Cache.
type Config struct {
	Store storev1.StoreClient
	// Transform makes the object of a stored value, decrypting what was encrypted with keyID (0: not encrypted). Nil: values are objects.
	Transform func(key string, value []byte, keyID uint32) ([]byte, error)
	Logger    *slog.Logger
	// Meter counts events and watchers. Nil: the process's meter.
	Meter metric.Meter

	// LogBytes bounds the memory that the event log keeps alive; 0: 64 MiB. LogAge bounds how far back watches resume; 0: 10 minutes, the store's own history.
	LogBytes int
	LogAge   time.Duration
	// TextBytes bounds the JSON that is kept with objects; 0: 32 MiB. What is not kept is made when it is asked for.
	TextBytes int
	// PageAge is how long a paged list can be continued at its revision; 0: 5 minutes. Pages that are not in memory come from the store.
	PageAge time.Duration
	// ProgressInterval is how often an idle watch is told the revision; 0: 1 s.
	ProgressInterval time.Duration
	// WaitTimeout bounds waiting for a revision that the store may never have had; 0: 10 s.
	WaitTimeout time.Duration
}

func (c *Config) setDefaults() {
	if c.Transform == nil {
		c.Transform = func(_ string, value []byte, _ uint32) ([]byte, error) { return value, nil }
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	for _, d := range []struct {
		value     *time.Duration
		otherwise time.Duration
	}{{&c.LogAge, 10 * time.Minute}, {&c.PageAge, 5 * time.Minute}, {&c.ProgressInterval, time.Second}, {&c.WaitTimeout, 10 * time.Second}} {
		if *d.value == 0 {
			*d.value = d.otherwise
		}
	}
	if c.LogBytes == 0 {
		c.LogBytes = 64 << 20
	}
	if c.TextBytes == 0 {
		c.TextBytes = 32 << 20
	}
}

// Cache is safe for concurrent use. It answers once Run has filled it.
type Cache struct {
	config   Config
	metrics  *metrics
	newest   newest
	ages     ages
	texts    texts
	tables   map[*resource.Resource]*table
	ready    chan struct{}
	makeOnce sync.Once // closes ready

	// mu guards what follows and all tables. Run's goroutine alone writes objects; readers hold it for a lookup or for taking a snapshot, never while sending.
	mu       sync.RWMutex
	revision int64
	log      eventLog
	waiters  []waiter
	// resting are watchers that know the revision: their timers stand still until there is another one, so that an idle cluster wakes nobody.
	resting map[*Watcher]struct{}
	// epoch counts how often the state was rebuilt, and the log with it was lost.
	epoch uint64
}

// waiter waits for the cache to reach a revision.
type waiter struct {
	revision int64
	reached  chan struct{}
}

// New returns an empty cache.
func New(config Config) (*Cache, error) {
	config.setDefaults()
	c := &Cache{
		config: config, tables: map[*resource.Resource]*table{},
		ready: make(chan struct{}), texts: texts{limit: config.TextBytes}, resting: map[*Watcher]struct{}{},
	}
	for _, r := range resource.Stored() {
		c.tables[r] = newTable(r, &c.texts)
	}
	c.newest.ask = func(ctx context.Context) (int64, error) {
		answer, err := config.Store.Revision(ctx, &storev1.RevisionRequest{})
		if err != nil {
			return 0, fmt.Errorf("ask the store for its revision: %w", err)
		}
		return answer.GetRevision(), nil
	}
	var err error
	if c.metrics, err = newMetrics(config.Meter, c); err != nil {
		return nil, fmt.Errorf("cache: %w", err)
	}
	return c, nil
}

// Ready is closed when the cache holds a complete state for the first time.
func (c *Cache) Ready() <-chan struct{} { return c.ready }

// Revision returns the newest revision that the cache has reached.
func (c *Cache) Revision() int64 {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.revision
}

// Consistent returns a revision at least as new as any write that was acknowledged before the call, and that the cache has reached.
func (c *Cache) Consistent(ctx context.Context) (int64, error) {
	revision, err := c.newest.get(ctx)
	if err != nil {
		return 0, err
	}
	return revision, c.WaitFor(ctx, revision)
}

// WaitFor waits until the cache has reached a revision. It gives up with Timeout when that takes too long, as for revisions of the future.
func (c *Cache) WaitFor(ctx context.Context, revision int64) error {
	c.mu.RLock()
	reached := c.revision >= revision
	c.mu.RUnlock()
	if reached {
		return nil
	}
	c.mu.Lock()
	if c.revision >= revision {
		c.mu.Unlock()
		return nil
	}
	w := waiter{revision: revision, reached: make(chan struct{})}
	c.waiters = append(c.waiters, w)
	c.mu.Unlock()
	timeout := time.NewTimer(c.config.WaitTimeout)
	defer timeout.Stop()
	select {
	case <-w.reached:
		return nil
	case <-ctx.Done():
	case <-timeout.C:
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range c.waiters {
		if c.waiters[i].reached == w.reached {
			c.waiters = append(c.waiters[:i], c.waiters[i+1:]...)
			break
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return apierrors.NewTimeoutError(fmt.Sprintf("Too large resource version: %d, current: %d", revision, c.revision), 1)
}

// reach publishes a revision and wakes who waits for it. The caller holds mu.
func (c *Cache) reach(revision int64) {
	c.revision = max(c.revision, revision)
	kept := c.waiters[:0]
	for _, w := range c.waiters {
		if w.revision <= c.revision {
			close(w.reached)
		} else {
			kept = append(kept, w)
		}
	}
	clear(c.waiters[len(kept):])
	c.waiters = kept
	for w := range c.resting {
		// Not all at the same moment: there may be thousands.
		w.progress.Reset(c.config.ProgressInterval/2 + rand.N(c.config.ProgressInterval/2))
	}
	clear(c.resting)
}

// catchUp waits as a read's min_revision asks for (see the package comment).
func (c *Cache) catchUp(ctx context.Context, minRevision *int64) error {
	select {
	case <-c.ready:
	case <-ctx.Done():
		return ctx.Err()
	}
	switch {
	case minRevision == nil:
		_, err := c.Consistent(ctx)
		return err
	case *minRevision < 0:
		return apierrors.NewBadRequest(fmt.Sprintf("resourceVersion %d: must not be negative", *minRevision))
	case *minRevision == 0:
		return nil
	default:
		return c.WaitFor(ctx, *minRevision)
	}
}

// newest coalesces questions for the store's revision. An answer only counts for those who asked before the question was sent.
type newest struct {
	ask func(context.Context) (int64, error)

	mu            sync.Mutex
	running, next *question
}

type question struct {
	answered chan struct{}
	revision int64
	err      error
}

func (n *newest) get(ctx context.Context) (int64, error) {
	n.mu.Lock()
	q := n.next
	if q == nil {
		q = &question{answered: make(chan struct{})}
		if n.running == nil {
			n.running = q
			go n.run(q)
		} else {
			n.next = q
		}
	}
	n.mu.Unlock()
	select {
	case <-q.answered:
		return q.revision, q.err
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// run asks until nobody has a question. Its context is nobody's: one caller who leaves must not fail the others.
func (n *newest) run(q *question) {
	for q != nil {
		ctx, cancel := context.WithTimeout(context.Background(), questionTimeout)
		q.revision, q.err = n.ask(ctx)
		cancel()
		close(q.answered)
		n.mu.Lock()
		q, n.next = n.next, nil
		n.running = q
		n.mu.Unlock()
	}
}

const questionTimeout = 10 * time.Second
