// Package memory is the store's engine for tests: the same semantics as etcd, revision by revision, without a disk. It keeps every
// version since the last compaction in a sorted map and every commit in a log.
package memory

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/tidwall/btree"

	"dhow.dev/services/store/internal/engine"
)

// Config holds what tests may want to change; the zero value is good.
type Config struct {
	// Operations and Bytes are the limits of a transaction. 0: those of the embedded etcd.
	Operations, Bytes int
	// MinTTL is the shortest lease in seconds. 0: one second.
	MinTTL int64
}

// version is the state of a key from a revision on. A deleted key has a version without item.
type version struct {
	revision engine.Revision
	item     engine.Item // Revision 0: deleted
}

type history struct {
	key      []byte
	versions []version // ascending
}

// at returns the version that is valid at a revision.
func (h *history) at(r engine.Revision) engine.Item {
	i, found := slices.BinarySearchFunc(h.versions, r, func(v version, r engine.Revision) int { return int(v.revision - r) })
	if found {
		i++
	}
	if i == 0 {
		return engine.Item{Key: h.key}
	}
	item := h.versions[i-1].item
	item.Key = h.key
	return item
}

type lease struct {
	ttl   int64
	keys  map[string]struct{}
	timer *time.Timer
}

// Engine implements engine.Engine.
type Engine struct {
	limits    engine.Limits
	minTTL    int64
	clusterID uint64

	mu        sync.Mutex
	closed    bool
	revision  engine.Revision
	compacted engine.Revision
	keys      *btree.BTreeG[*history]
	// log holds the commits after the compacted revision, and that one; its i-th has the revision compacted+i, so there are no holes.
	log    []engine.Commit
	leases map[int64]*lease
	// changed is closed and replaced at every commit.
	changed chan struct{}
}

// New returns an empty database at revision 1.
func New(config Config) *Engine {
	return &Engine{
		limits: engine.Limits{
			Operations: orDefault(config.Operations, 4096),
			Bytes:      orDefault(config.Bytes, 2<<20),
		},
		minTTL:    max(config.MinTTL, 1),
		clusterID: rand.Uint64(),
		revision:  1,
		compacted: 1,
		keys:      btree.NewBTreeG(func(a, b *history) bool { return bytes.Compare(a.key, b.key) < 0 }),
		log:       []engine.Commit{{Revision: 1}},
		leases:    map[int64]*lease{},
		changed:   make(chan struct{}),
	}
}

func orDefault(value, otherwise int) int {
	if value == 0 {
		return otherwise
	}
	return value
}

var errClosed = fmt.Errorf("%w: it is closed", engine.ErrUnavailable)

// lock locks the engine, unless it is closed or the caller gone.
func (e *Engine) lock(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return errClosed
	}
	return nil
}

// Limits implements engine.Engine.
func (e *Engine) Limits() engine.Limits { return e.limits }

// Commit implements engine.Engine.
func (e *Engine) Commit(ctx context.Context, members []engine.Member) (engine.Result, error) {
	if err := e.lock(ctx); err != nil {
		return engine.Result{}, err
	}
	defer e.mu.Unlock()
	held, err := e.check(members)
	if err != nil {
		return engine.Result{}, err
	}
	result := engine.Result{Outcomes: make([]engine.Outcome, len(members))}
	var events []engine.Event
	for i, m := range members {
		out := &result.Outcomes[i]
		out.Held = held[i]
		if !held[i] {
			out.Current = e.current(m.Conditions)
			continue
		}
		out.Changed = make([]bool, len(m.Writes))
		for j, w := range m.Writes {
			event, changed := e.write(w, e.revision+1)
			if out.Changed[j] = changed; changed {
				events = append(events, event)
			}
		}
	}
	e.publish(events)
	result.Revision = e.revision
	return result, nil
}

// check evaluates all conditions against the present state and refuses what etcd would refuse, before anything is written.
func (e *Engine) check(members []engine.Member) (held []bool, err error) {
	size := 0
	written := map[string]int{}
	for i, m := range members {
		if n := max(len(m.Conditions), len(m.Writes)); n > e.limits.Operations {
			return nil, fmt.Errorf("%w: %d operations, at most %d", engine.ErrTooLarge, n, e.limits.Operations)
		}
		for _, w := range m.Writes {
			size += len(w.Key) + len(w.Value)
			if _, twice := written[string(w.Key)]; twice {
				return nil, fmt.Errorf("%w: key %q is written twice", engine.ErrRejected, w.Key)
			}
			written[string(w.Key)] = i
		}
	}
	if size > e.limits.Bytes {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", engine.ErrTooLarge, size, e.limits.Bytes)
	}
	held = make([]bool, len(members))
	for i, m := range members {
		held[i] = true
		for _, c := range m.Conditions {
			if writer, ok := written[string(c.Key)]; ok && writer != i {
				return nil, fmt.Errorf("%w: key %q is written by another member than the one with its condition", engine.ErrRejected, c.Key)
			}
			held[i] = held[i] && holds(c, e.get(c.Key, e.revision))
		}
		for _, w := range m.Writes {
			if _, ok := e.leases[w.Lease]; held[i] && !w.Delete && w.Lease != 0 && !ok {
				return nil, fmt.Errorf("lease %d: %w", w.Lease, engine.ErrLeaseNotFound)
			}
		}
	}
	return held, nil
}

func holds(c engine.Condition, item engine.Item) bool {
	switch c.Revision {
	case engine.Never:
		return false
	case engine.Present:
		return item.Revision != 0
	default:
		return item.Revision == c.Revision
	}
}

func (e *Engine) current(conditions []engine.Condition) []engine.Item {
	var items []engine.Item
	seen := map[string]bool{}
	for _, c := range conditions {
		if !seen[string(c.Key)] {
			seen[string(c.Key)] = true
			items = append(items, e.get(c.Key, e.revision))
		}
	}
	return items
}

func (e *Engine) get(key []byte, at engine.Revision) engine.Item {
	h, ok := e.keys.Get(&history{key: key})
	if !ok {
		return engine.Item{Key: key}
	}
	return h.at(at)
}

// write changes one key at a revision that publish makes the newest.
func (e *Engine) write(w engine.Write, revision engine.Revision) (engine.Event, bool) {
	h, ok := e.keys.Get(&history{key: w.Key})
	if !ok {
		h = &history{key: bytes.Clone(w.Key)}
	}
	previous := h.at(revision)
	if w.Delete && previous.Revision == 0 {
		return engine.Event{}, false
	}
	if l := e.leases[previous.Lease]; l != nil {
		delete(l.keys, string(w.Key))
	}
	event := engine.Event{Key: h.key, Delete: w.Delete, Previous: previous}
	v := version{revision: revision}
	if !w.Delete {
		event.Value = bytes.Clone(w.Value)
		v.item = engine.Item{Key: h.key, Value: event.Value, Revision: revision, Lease: w.Lease}
		if l := e.leases[w.Lease]; l != nil {
			l.keys[string(w.Key)] = struct{}{}
		}
	}
	h.versions = append(h.versions, v)
	if !ok {
		e.keys.Set(h)
	}
	return event, true
}

// publish ends a transaction.
func (e *Engine) publish(events []engine.Event) {
	if len(events) == 0 {
		return
	}
	e.revision++
	e.log = append(e.log, engine.Commit{Revision: e.revision, Events: events})
	close(e.changed)
	e.changed = make(chan struct{})
}

// readable checks that a revision can be read; 0 is the newest.
func (e *Engine) readable(at engine.Revision) (engine.Revision, error) {
	switch {
	case at == 0:
		return e.revision, nil
	case at > e.revision:
		return 0, fmt.Errorf("revision %d: %w (%d)", at, engine.ErrFuture, e.revision)
	case at < e.compacted:
		return 0, fmt.Errorf("revision %d: %w, the oldest is %d", at, engine.ErrCompacted, e.compacted)
	}
	return at, nil
}

// Get implements engine.Engine.
func (e *Engine) Get(ctx context.Context, keys [][]byte, at engine.Revision) ([]engine.Item, engine.Revision, error) {
	if err := e.lock(ctx); err != nil {
		return nil, 0, err
	}
	defer e.mu.Unlock()
	at, err := e.readable(at)
	if err != nil {
		return nil, 0, err
	}
	items := make([]engine.Item, len(keys))
	for i, key := range keys {
		items[i] = e.get(key, at)
	}
	return items, at, nil
}

// List implements engine.Engine.
func (e *Engine) List(ctx context.Context, r engine.Range, page func([]engine.Item) error) (bool, error) {
	const chunk = 500
	var sent int64
	for start := r.Start; ; {
		items, more, err := e.page(ctx, start, r, chunk)
		if err != nil {
			return false, err
		}
		if r.Limit > 0 && sent+int64(len(items)) > r.Limit {
			items, more = items[:r.Limit-sent], true
		}
		if len(items) > 0 {
			if err := page(items); err != nil {
				return false, err
			}
			sent += int64(len(items))
			start = append(bytes.Clone(items[len(items)-1].Key), 0)
		}
		if !more || sent == r.Limit && r.Limit > 0 {
			return more, nil
		}
	}
}

// page returns at most chunk items and whether there are more.
func (e *Engine) page(ctx context.Context, start []byte, r engine.Range, chunk int) (items []engine.Item, more bool, err error) {
	if err := e.lock(ctx); err != nil {
		return nil, false, err
	}
	defer e.mu.Unlock()
	at, err := e.readable(r.Revision)
	if err != nil {
		return nil, false, err
	}
	e.keys.Ascend(&history{key: start}, func(h *history) bool {
		if bytes.Compare(h.key, r.End) >= 0 {
			return false
		}
		item := h.at(at)
		if item.Revision == 0 {
			return true
		}
		if len(items) == chunk {
			more = true
			return false
		}
		items = append(items, item)
		return true
	})
	return items, more, nil
}

// Watch implements engine.Engine.
func (e *Engine) Watch(ctx context.Context, from engine.Revision) (engine.Watcher, error) {
	if err := e.lock(ctx); err != nil {
		return nil, err
	}
	defer e.mu.Unlock()
	if from <= e.compacted {
		return nil, fmt.Errorf("watch from %d: %w, the oldest is %d", from, engine.ErrCompacted, e.compacted)
	}
	return &watcher{engine: e, next: from}, nil
}

// watcher is a position in the log.
type watcher struct {
	engine *Engine
	next   engine.Revision
}

func (w *watcher) Next(ctx context.Context) ([]engine.Commit, error) {
	e := w.engine
	for {
		if err := e.lock(ctx); err != nil {
			return nil, err
		}
		compacted, changed := e.compacted, e.changed
		var commits []engine.Commit
		if i := int(w.next - compacted); i >= 0 && i < len(e.log) {
			commits = slices.Clone(e.log[i:])
		}
		e.mu.Unlock()
		if w.next <= compacted {
			return nil, fmt.Errorf("watch from %d: %w, the oldest is %d", w.next, engine.ErrCompacted, compacted)
		}
		if len(commits) > 0 {
			w.next += engine.Revision(len(commits))
			return commits, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (w *watcher) Close() {}

// Status implements engine.Engine.
func (e *Engine) Status(ctx context.Context) (engine.Status, error) {
	if err := e.lock(ctx); err != nil {
		return engine.Status{}, err
	}
	defer e.mu.Unlock()
	return engine.Status{Revision: e.revision, Compacted: e.compacted, ClusterID: e.clusterID}, nil
}

// Compact implements engine.Engine.
func (e *Engine) Compact(ctx context.Context, to engine.Revision) error {
	if err := e.lock(ctx); err != nil {
		return err
	}
	defer e.mu.Unlock()
	if to > e.revision {
		return fmt.Errorf("compact to %d: %w (%d)", to, engine.ErrFuture, e.revision)
	}
	if to <= e.compacted {
		return nil
	}
	var gone []*history
	e.keys.Scan(func(h *history) bool {
		keep := 0
		for i, v := range h.versions {
			if v.revision <= to {
				keep = i
			}
		}
		h.versions = slices.Clone(h.versions[keep:])
		if last := h.versions[len(h.versions)-1]; last.item.Revision == 0 && last.revision <= to {
			gone = append(gone, h)
		}
		return true
	})
	for _, h := range gone {
		e.keys.Delete(h)
	}
	e.log = slices.Clone(e.log[to-e.compacted:])
	e.compacted = to
	return nil
}

// Grant implements engine.Engine.
func (e *Engine) Grant(ctx context.Context, ttl int64) (int64, int64, error) {
	if err := e.lock(ctx); err != nil {
		return 0, 0, err
	}
	defer e.mu.Unlock()
	id := rand.Int64N(1<<62) + 1
	l := &lease{ttl: max(ttl, e.minTTL), keys: map[string]struct{}{}}
	l.timer = time.AfterFunc(time.Duration(l.ttl)*time.Second, func() { e.expire(id) })
	e.leases[id] = l
	return id, l.ttl, nil
}

// KeepAlive implements engine.Engine.
func (e *Engine) KeepAlive(ctx context.Context, id int64) (int64, error) {
	if err := e.lock(ctx); err != nil {
		return 0, err
	}
	defer e.mu.Unlock()
	l := e.leases[id]
	// A timer that has fired already waits for the lock: the lease has ended.
	if l == nil || !l.timer.Stop() {
		return 0, fmt.Errorf("lease %d: %w", id, engine.ErrLeaseNotFound)
	}
	l.timer.Reset(time.Duration(l.ttl) * time.Second)
	return l.ttl, nil
}

// Revoke implements engine.Engine.
func (e *Engine) Revoke(ctx context.Context, id int64) error {
	if err := e.lock(ctx); err != nil {
		return err
	}
	defer e.mu.Unlock()
	e.end(id)
	return nil
}

func (e *Engine) expire(id int64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.closed {
		e.end(id)
	}
}

// end deletes a lease and, in one commit, its keys in their order.
func (e *Engine) end(id int64) {
	l := e.leases[id]
	if l == nil {
		return
	}
	l.timer.Stop()
	keys := make([]string, 0, len(l.keys))
	for key := range l.keys {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	var events []engine.Event
	for _, key := range keys {
		if event, changed := e.write(engine.Write{Key: []byte(key), Delete: true}, e.revision+1); changed {
			events = append(events, event)
		}
	}
	delete(e.leases, id)
	e.publish(events)
}

// Size implements engine.Engine.
func (e *Engine) Size(ctx context.Context) (engine.Size, error) {
	if err := e.lock(ctx); err != nil {
		return engine.Size{}, err
	}
	defer e.mu.Unlock()
	var total int64
	e.keys.Scan(func(h *history) bool {
		for _, v := range h.versions {
			total += int64(len(h.key) + len(v.item.Value))
		}
		return true
	})
	return engine.Size{Total: total, InUse: total}, nil
}

// Close implements engine.Engine.
func (e *Engine) Close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return errors.New("close the in-memory engine: it is closed already")
	}
	e.closed = true
	for _, l := range e.leases {
		l.timer.Stop()
	}
	close(e.changed)
	return nil
}

// Snapshot implements engine.Engine: what is in memory has no file.
func (e *Engine) Snapshot(context.Context, func([]byte) error) error {
	return fmt.Errorf("snapshot of data in memory: %w", engine.ErrUnsupported)
}
