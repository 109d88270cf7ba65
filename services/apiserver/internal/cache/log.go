package cache

import (
	"math"
	"sync/atomic"
	"time"
)

// event is one logged change. Immutable but for the frames.
type event struct {
	table *table
	// sequence counts all events of the log.
	sequence uint64
	revision int64
	old, new *Entry
	// traceparent is the change's; for deletions the old entry has another one.
	traceparent string
	size        int
	at          time.Time
	// log counts what all logged events have been encoded to, kept this event's part; it is below zero once the event is dropped.
	log  *atomic.Int64
	kept atomic.Int64
	// frames are the encoded forms of the event that were asked for so far.
	frames atomic.Pointer[frame]
	// last is the object as a DELETED change shows it, and lastText the same as JSON, once somebody asked for it.
	last, lastText atomic.Pointer[[]byte]
	// view is the event in another version, once somebody asked for it; of is what it is a view of.
	view atomic.Pointer[event]
	of   *event
}

// commit returns the revision of the commit that the event belongs to.
func (e *event) commit() int64 { return e.revision | lastIndex }

// eventLog holds the events of all kinds, oldest first, bounded by bytes and age. Guarded by Cache.mu.
type eventLog struct {
	events   []*event
	bytes    int
	sequence uint64
	// encoded is the memory of the events' frames and texts, which is made while they are in the log.
	encoded atomic.Int64
	// floor is the revision after which everything is still here.
	floor int64
}

func (l *eventLog) clear(floor int64) {
	for _, e := range l.events {
		e.forget()
	}
	l.events, l.bytes, l.floor = nil, 0, floor
}

// size is the memory that the log keeps alive.
func (l *eventLog) size() int { return l.bytes + int(l.encoded.Load()) }

// keep counts what the event was encoded to. Nobody counts it for an event that the log has dropped.
func (e *event) keep(bytes int) {
	if e.of != nil {
		e.of.keep(bytes)
		return
	}
	if e.log != nil && e.kept.Add(int64(bytes)) > 0 {
		e.log.Add(int64(bytes))
	}
}

// forget takes the event's part out of the count.
func (e *event) forget() {
	if n := e.kept.Swap(math.MinInt64 / 2); n > 0 {
		e.log.Add(-n)
	}
}

// append logs an event, in its kind and in all buckets that are watched, and wakes their watchers.
func (c *Cache) append(e *event) {
	e.sequence = c.log.sequence
	c.log.sequence++
	e.log = &c.log.encoded
	e.size = e.old.size() + e.new.size()
	c.log.bytes += e.size
	c.log.events = append(c.log.events, e)
	e.table.events.append(e)
	e.table.eachBucketOf(e, func(b *bucket) { b.append(e) })
}

// eachBucketOf calls f once with every existing bucket that an event belongs to by its old or its new state, the kind's own excepted.
func (t *table) eachBucketOf(e *event, f func(*bucket)) {
	if len(t.buckets) == 0 {
		return
	}
	eachBucket(e.old, t.fields, func(k bucketKey) {
		if b := t.buckets[k]; b != nil {
			f(b)
		}
	})
	eachBucket(e.new, t.fields, func(k bucketKey) {
		// What old was found under has it already; appending is idempotent per event.
		if b := t.buckets[k]; b != nil {
			f(b)
		}
	})
}

// trim forgets what exceeds the bounds, whole commits at a time.
func (c *Cache) trim(now time.Time) {
	drop := 0
	for drop < len(c.log.events) {
		e := c.log.events[drop]
		if c.log.size() <= c.config.LogBytes && now.Sub(e.at) <= c.config.LogAge {
			break
		}
		commit := e.commit()
		for drop < len(c.log.events) && c.log.events[drop].commit() == commit {
			e = c.log.events[drop]
			c.log.bytes -= e.size
			e.forget()
			e.table.events.drop(e)
			e.table.eachBucketOf(e, func(b *bucket) { b.drop(e) })
			c.log.events[drop] = nil
			drop++
		}
		c.log.floor = commit
	}
	c.log.events = c.log.events[drop:]
}

// bucket is the part of the log that concerns one value of one index, and who reads it. Guarded by Cache.mu; a slice of events that a
// watcher took under the lock stays valid: events are appended behind it and dropped by reslicing.
type bucket struct {
	// base is the position of events[0]; positions only grow.
	base     uint64
	events   []*event
	watchers map[*Watcher]struct{}
}

// end is the position behind the last event.
func (b *bucket) end() uint64 { return b.base + uint64(len(b.events)) }

func (b *bucket) append(e *event) {
	if n := len(b.events); n > 0 && b.events[n-1] == e {
		return
	}
	b.events = append(b.events, e)
	for w := range b.watchers {
		w.signal()
	}
}

// drop forgets the oldest event if it is e.
func (b *bucket) drop(e *event) {
	if len(b.events) > 0 && b.events[0] == e {
		b.events = b.events[1:]
		b.base++
	}
}

func (b *bucket) clear() {
	b.base = b.end()
	b.events = nil
}

// after returns the position of the first event after a revision.
func (b *bucket) after(revision int64) uint64 {
	low, high := 0, len(b.events)
	for low < high {
		middle := int(uint(low+high) >> 1)
		if b.events[middle].revision <= revision {
			low = middle + 1
		} else {
			high = middle
		}
	}
	return b.base + uint64(low)
}

// watch registers a watcher of a bucket, which is made when it is the first.
func (t *table) watch(k bucketKey, w *Watcher) *bucket {
	b := &t.events
	if k.dimension != byAll {
		b = t.buckets[k]
		if b == nil {
			b = &bucket{}
			// The watcher may resume from the past: the new bucket begins with what the log still has.
			for _, e := range t.events.events {
				if belongs(e.old, t.fields, k) || belongs(e.new, t.fields, k) {
					b.append(e)
				}
			}
			t.buckets[k] = b
		}
	}
	if b.watchers == nil {
		b.watchers = map[*Watcher]struct{}{}
	}
	b.watchers[w] = struct{}{}
	return b
}

// wake wakes all watchers of the kind.
func (t *table) wake() {
	for w := range t.events.watchers {
		w.signal()
	}
	for _, b := range t.buckets {
		for w := range b.watchers {
			w.signal()
		}
	}
}

// unwatch is the inverse of watch.
func (t *table) unwatch(k bucketKey, w *Watcher) {
	if k.dimension == byAll {
		delete(t.events.watchers, w)
		return
	}
	if b := t.buckets[k]; b != nil {
		delete(b.watchers, w)
		if len(b.watchers) == 0 {
			delete(t.buckets, k)
		}
	}
}

// belongs says whether an object is found under a bucket key.
func belongs(e *Entry, set *fieldSet, k bucketKey) bool {
	found := false
	eachBucket(e, set, func(other bucketKey) { found = found || other == k })
	return found
}
