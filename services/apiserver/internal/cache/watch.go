package cache

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/object"
	"dhow.dev/pkg/resource"
)

// A response of a watch is bounded by these; a commit is only split when it alone exceeds the larger bounds.
const (
	softChanges, hardChanges = 500, 4096
	softBytes, hardBytes     = 1 << 20, 16 << 20
)

// WatchOptions say where a watch begins.
type WatchOptions struct {
	// After is the revision to go on after; nil: begin with the state.
	After *int64
	// Conflate merges changes of one object that the reader was too slow for.
	Conflate bool
	// MinRevision is how new the state must be that the watch begins with, as in dhow.meta.v1.ListRequest.
	MinRevision *int64
}

// Watched is a selection of a watch and the id that its changes carry.
type Watched struct {
	Selection Selection
	ID        uint32
}

// Change is one change of an object that is, was or becomes selected.
type Change struct {
	Type metav1.EventType
	// Object is the new state; of a DELETED change the last one, which has an older revision than the change.
	Object      *Entry
	Revision    int64
	Traceparent string
	Selection   uint32

	event *event // nil: a piece of the state
}

// Encoded is the object of the change with its resource version, which is the change's own when it is a deletion. It must not be changed.
func (c *Change) Encoded() []byte {
	if c.Type != metav1.EventType_EVENT_TYPE_DELETED {
		return c.Object.Encoded()
	}
	if made := c.event.last.Load(); made != nil {
		return *made
	}
	last := WithRevision(c.Object.Object, c.Revision).Bytes()
	if c.event.last.CompareAndSwap(nil, &last) {
		c.event.keep(len(last))
	}
	return last
}

// Text is Encoded as JSON, made as Entry.Text does.
func (c *Change) Text(encode func(r *resource.Resource, encoded []byte) ([]byte, error)) ([]byte, error) {
	if c.Type != metav1.EventType_EVENT_TYPE_DELETED {
		return c.Object.Text(encode)
	}
	if made := c.event.lastText.Load(); made != nil {
		return *made, nil
	}
	made, err := encode(c.Object.Resource, c.Encoded())
	if err != nil {
		return nil, err
	}
	if c.event.lastText.CompareAndSwap(nil, &made) {
		c.event.keep(len(made))
	}
	return made, nil
}

// Batch is one response of a watch. It is valid until the next call of Next.
type Batch struct {
	Changes []Change
	// Revision: everything up to here was sent. 0 while the state is incomplete.
	Revision int64
	Mark     metav1.WatchMark
	// Partial: the last commit goes on in the next batch.
	Partial bool
}

// Watcher is a cursor into the log. It is used by one goroutine and must be closed.
type Watcher struct {
	cache    *Cache
	conflate bool
	parts    []part
	// wake holds a token when there may be something to do since it was last drained: a bucket of the watcher got an event, the state was rebuilt, the watch's context
	// ended, or it is time for a progress mark. It is the one channel that the watcher waits on, because a change wakes all who watch, and several channels cost them more
	// than the change does.
	wake  chan struct{}
	epoch uint64
	// due says that it is time for a progress mark.
	due atomic.Bool
	// ctx is the context of the last call, whose end wakes the watcher until detach is called.
	ctx    context.Context
	detach func() bool

	// told is the revision of the last batch.
	told int64
	// state is the revision of the state that is being sent, 0 when that is over; next is the part to go on with.
	state int64
	next  int

	batch    Batch
	merged   map[mergeKey]int
	progress *time.Timer
}

// part is the watcher's cursor for one selection.
type part struct {
	selection Selection
	id        uint32
	bucket    *bucket
	position  uint64
	// pending is what is left of the bucket's events as of the last look.
	pending []*event

	// The state to begin with: the entries left, or those of objects behind after.
	entries []*Entry
	objects *tree
	after   string
}

type mergeKey struct {
	part int
	key  string
}

// Watch begins a watch of one or several selections, whose changes come in one revision order.
func (c *Cache) Watch(ctx context.Context, selections []Watched, options WatchOptions) (*Watcher, error) {
	minRevision := options.MinRevision
	if options.After != nil {
		minRevision = options.After
	}
	if err := c.catchUp(ctx, minRevision); err != nil {
		return nil, err
	}
	w := &Watcher{
		cache: c, conflate: options.Conflate, wake: make(chan struct{}, 1), parts: make([]part, len(selections)),
	}
	if options.Conflate {
		w.merged = map[mergeKey]int{}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if options.After != nil && *options.After < c.log.floor {
		c.metrics.expired.Add(ctx, 1)
		return nil, tooOld(*options.After, c.log.floor)
	}
	w.epoch = c.epoch
	for i, s := range selections {
		p := &w.parts[i]
		p.selection, p.id = s.Selection, s.ID
		t := c.tables[s.Selection.Resource]
		p.bucket = t.watch(s.Selection.found, w)
		if options.After != nil {
			p.position = p.bucket.after(*options.After)
			continue
		}
		p.position = p.bucket.end()
		switch found := s.Selection.found; {
		case found.dimension == byName:
			if e := t.objects[object.Key{Namespace: found.namespace, Name: found.value}]; e != nil {
				p.entries = []*Entry{e}
			}
		case listed(found):
			p.entries = make([]*Entry, 0, len(t.found[found]))
			for e := range t.found[found] {
				p.entries = append(p.entries, e)
			}
		default:
			p.objects = t.freeze()
		}
	}
	if options.After != nil {
		w.told = *options.After
	} else {
		w.state = c.revision
	}
	w.progress = time.AfterFunc(c.config.ProgressInterval, func() {
		w.due.Store(true)
		w.signal()
	})
	w.ctx, w.detach = ctx, context.AfterFunc(ctx, w.signal)
	c.metrics.watchers.Add(ctx, 1)
	return w, nil
}

// Close ends the watch.
func (w *Watcher) Close() {
	w.detach()
	c := w.cache
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.resting, w)
	w.progress.Stop()
	for i := range w.parts {
		s := &w.parts[i].selection
		c.tables[s.Resource].unwatch(s.found, w)
	}
	c.metrics.watchers.Add(context.Background(), -1)
}

func (w *Watcher) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// Next waits for the next batch. It ends with Expired when the log no longer has what the watcher needs: it was too slow, or the state was rebuilt.
func (w *Watcher) Next(ctx context.Context) (*Batch, error) {
	w.batch = Batch{Changes: w.batch.Changes[:0]}
	if w.state != 0 {
		w.nextOfState()
		return &w.batch, ctx.Err()
	}
	if ctx != w.ctx {
		w.detach()
		w.ctx, w.detach = ctx, context.AfterFunc(ctx, w.signal)
	}
	for {
		if err := w.look(ctx); err != nil {
			return nil, err
		}
		if w.collect() {
			w.told = w.batch.Revision
			return &w.batch, nil
		}
		if w.due.CompareAndSwap(true, false) {
			if w.idle() {
				return &w.batch, nil
			}
			w.rest()
		}
		<-w.wake
		if err := ctx.Err(); err != nil {
			return nil, err
		}
	}
}

// idle makes a progress mark if there is progress and nothing to send.
func (w *Watcher) idle() bool {
	c := w.cache
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.epoch != w.epoch || c.revision <= w.told {
		return false
	}
	for i := range w.parts {
		if p := &w.parts[i]; p.position != p.bucket.end() {
			return false
		}
	}
	w.progress.Reset(c.config.ProgressInterval)
	w.told = c.revision
	w.batch.Revision, w.batch.Mark = c.revision, metav1.WatchMark_WATCH_MARK_PROGRESS
	return true
}

// rest has the next progress mark come an interval later, or when there is something to tell at all.
func (w *Watcher) rest() {
	c := w.cache
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.revision <= w.told {
		c.resting[w] = struct{}{}
		return
	}
	w.progress.Reset(c.config.ProgressInterval)
}

// look takes the events that came since the last look. They stay readable without the lock.
func (w *Watcher) look(ctx context.Context) error {
	c := w.cache
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.epoch != w.epoch {
		c.metrics.expired.Add(ctx, 1)
		return tooOld(w.told, c.log.floor)
	}
	for i := range w.parts {
		p := &w.parts[i]
		if p.position < p.bucket.base {
			c.metrics.expired.Add(ctx, 1)
			return tooOld(w.told, c.log.floor)
		}
		p.pending = p.bucket.events[p.position-p.bucket.base:]
	}
	return nil
}

// collect fills the batch from the pending events and says whether there is anything to send.
func (w *Watcher) collect() bool {
	bytes, commit, last := 0, int64(0), w.told
	for {
		var first *event
		for i := range w.parts {
			if p := &w.parts[i]; len(p.pending) > 0 && (first == nil || p.pending[0].sequence < first.sequence) {
				first = p.pending[0]
			}
		}
		if first == nil {
			break
		}
		if n := len(w.batch.Changes); first.commit() != commit {
			if n >= softChanges || bytes >= softBytes {
				break
			}
			last = max(last, commit)
		} else if n >= hardChanges || bytes >= hardBytes {
			w.batch.Partial = true
			break
		}
		commit = first.commit()
		for i := range w.parts {
			p := &w.parts[i]
			if len(p.pending) == 0 || p.pending[0] != first {
				continue
			}
			p.pending = p.pending[1:]
			p.position++
			bytes += w.add(i, first)
		}
	}
	if !w.batch.Partial {
		last = max(last, commit)
	}
	if w.conflate {
		w.compact()
	}
	w.batch.Revision = last
	return len(w.batch.Changes) > 0
}

// add appends the change that an event is to a part, if it is one, and returns its size.
func (w *Watcher) add(i int, e *event) int {
	p := &w.parts[i]
	was, is := p.selection.Matches(e.old), p.selection.Matches(e.new)
	change := Change{Revision: e.revision, Traceparent: e.traceparent, Selection: p.id, event: e, Object: e.new}
	switch {
	case was && is:
		change.Type = metav1.EventType_EVENT_TYPE_MODIFIED
	case is:
		change.Type = metav1.EventType_EVENT_TYPE_ADDED
	case was:
		change.Type, change.Object = metav1.EventType_EVENT_TYPE_DELETED, e.old
	default:
		return 0
	}
	if view := p.selection.view; view != nil {
		change.event = w.cache.eventAs(e, view)
		if change.Object = w.cache.as(change.Object, view); change.Object == nil {
			return 0
		}
	}
	if w.conflate {
		w.merge(i, &change)
	}
	w.batch.Changes = append(w.batch.Changes, change)
	return change.Object.item.Len()
}

// merge drops the change before of the same object when this one makes it pointless: not across deletions, nor from one UID to another.
func (w *Watcher) merge(i int, change *Change) {
	key := mergeKey{part: i, key: change.Object.Key}
	if before, ok := w.merged[key]; ok && change.Type == metav1.EventType_EVENT_TYPE_MODIFIED {
		b := &w.batch.Changes[before]
		if b.Type != metav1.EventType_EVENT_TYPE_DELETED && b.Object.UID == change.Object.UID {
			change.Type = b.Type
			b.Type = metav1.EventType_EVENT_TYPE_UNSPECIFIED
		}
	}
	w.merged[key] = len(w.batch.Changes)
}

// compact removes what merge dropped.
func (w *Watcher) compact() {
	kept := w.batch.Changes[:0]
	for _, change := range w.batch.Changes {
		if change.Type != metav1.EventType_EVENT_TYPE_UNSPECIFIED {
			kept = append(kept, change)
		}
	}
	w.batch.Changes = kept
	clear(w.merged)
}

// nextOfState fills the batch with the next piece of the state; the last one carries the mark.
func (w *Watcher) nextOfState() {
	bytes := 0
	take := func(p *part, e *Entry) bool {
		if p.selection.view != nil {
			if e = w.cache.as(e, p.selection.view); e == nil {
				return true
			}
		}
		w.batch.Changes = append(w.batch.Changes, Change{
			Type: metav1.EventType_EVENT_TYPE_ADDED, Object: e, Revision: e.Revision, Traceparent: e.Traceparent, Selection: p.id,
		})
		bytes += e.item.Len()
		return len(w.batch.Changes) < softChanges && bytes < softBytes
	}
	for ; w.next < len(w.parts); w.next++ {
		p := &w.parts[w.next]
		for len(p.entries) > 0 {
			e := p.entries[0]
			p.entries = p.entries[1:]
			if p.selection.Matches(e) && !take(p, e) {
				return
			}
		}
		if p.objects == nil {
			continue
		}
		full := false
		scanSelected(p.selection, p.objects, p.after, func(e *Entry) bool {
			p.after = e.Key
			full = !take(p, e)
			return !full
		})
		if full {
			return
		}
		p.objects = nil
	}
	w.batch.Revision, w.batch.Mark = w.state, metav1.WatchMark_WATCH_MARK_SYNCED
	w.told, w.state = w.state, 0
}

func tooOld(asked, floor int64) error {
	return apierrors.NewResourceExpired(fmt.Sprintf("too old resource version: %d (%d)", asked, floor))
}
