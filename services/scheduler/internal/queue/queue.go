// Package queue orders the pods that wait for a node: those to decide next (by priority, then by age), those that back off after a failure, and those
// that no node can take until something changes.
//
// A Queue is not safe for concurrent use. Time comes from its callers.
package queue

import (
	"container/heap"
	"time"

	"dhow.dev/pkg/object"
	"dhow.dev/services/scheduler/internal/filter"
)

const (
	// Backing off doubles between these. Kubernetes begins with a second; deciding is cheap here, and a node that appears is to be used at once.
	minBackoff = 100 * time.Millisecond
	maxBackoff = 10 * time.Second
	// maxParked is how long a pod waits for an event that helps, Kubernetes' podMaxInUnschedulablePodsDuration. It bounds the harm of a missed hint.
	maxParked = 5 * time.Minute
)

// Item is a pod on its way. Fields in capitals belong to callers; the queue reads Priority and Created.
type Item struct {
	Key      object.Key
	UID      string
	Priority int32
	// Created orders pods of equal priority.
	Created time.Time
	// Queued is when the pod last became ready to be decided, Added when it first came.
	Queued, Added time.Time
	// Traceparent is the trace of the pod's creation.
	Traceparent string
	// Attempts counts decisions that failed.
	Attempts int
	// Told is the message that the pod's condition was last told, and ToldAt when.
	Told   string
	ToldAt time.Time
	// Reasons are why the last decision failed, with the numbers of nodes; shared and not to be changed.
	Reasons map[string]int

	state state
	index int
	until time.Time
	helps filter.Event
}

type state int

const (
	// taken is being decided or bound.
	taken state = iota
	active
	backingOff
	parked
)

// Queue is all waiting pods.
type Queue struct {
	items  map[object.Key]*Item
	active byPriority
	// timed are backing off or parked, by when that ends.
	timed byTime
	// missed are the events since the last Pop: those that were being decided then did not see them.
	missed filter.Event
	// wanted is at least what parked pods wait for: most events concern none of them.
	wanted filter.Event
}

// New returns an empty queue.
func New() *Queue { return &Queue{items: map[object.Key]*Item{}} }

// Get returns a pod's item, also while it is being decided.
func (q *Queue) Get(key object.Key) (*Item, bool) {
	i, ok := q.items[key]
	return i, ok
}

// Lengths returns how many pods are ready, back off, and wait for an event.
func (q *Queue) Lengths() (ready, backoff, unschedulable int) {
	for _, i := range q.timed {
		if i.state == parked {
			unschedulable++
		}
	}
	return len(q.active), len(q.timed) - unschedulable, unschedulable
}

// Unschedulable calls f with the pods that wait for an event, in no order.
func (q *Queue) Unschedulable(f func(*Item)) {
	for _, i := range q.timed {
		if i.state == parked {
			f(i)
		}
	}
}

// Add makes a pod ready to be decided: a new one, or one that changed so that earlier failures say nothing.
func (q *Queue) Add(i *Item, now time.Time) {
	q.items[i.Key] = i
	q.leave(i)
	q.enter(i, now)
}

// Remove forgets a pod.
func (q *Queue) Remove(key object.Key) {
	if i, ok := q.items[key]; ok {
		q.leave(i)
		delete(q.items, key)
	}
}

// Pop takes up to n pods, the most urgent first. They stay known until they are removed.
func (q *Queue) Pop(n int, now time.Time) []*Item {
	q.wake(now)
	q.missed = 0
	out := make([]*Item, 0, min(n, len(q.active)))
	for len(out) < cap(out) {
		i := heap.Pop(&q.active).(*Item)
		i.state = taken
		out = append(out, i)
	}
	return out
}

// Park lets a taken pod wait for one of the events that can help it. If one came while it was being decided, it only backs off.
func (q *Queue) Park(i *Item, helps filter.Event, now time.Time) {
	if helps&q.missed != 0 {
		q.Backoff(i, now)
		return
	}
	if !q.holds(i) {
		return
	}
	i.Attempts++
	i.state, i.helps, i.until = parked, helps, now.Add(maxParked)
	q.wanted |= helps
	heap.Push(&q.timed, i)
}

// Backoff lets a taken pod wait for a time that doubles with its failures.
func (q *Queue) Backoff(i *Item, now time.Time) {
	if !q.holds(i) {
		return
	}
	i.Attempts++
	i.state, i.until = backingOff, now.Add(delay(i.Attempts))
	heap.Push(&q.timed, i)
}

// holds says whether a taken item is still the pod's: it may have been removed, replaced or made ready again meanwhile.
func (q *Queue) holds(i *Item) bool { return q.items[i.Key] == i && i.state == taken }

func delay(attempts int) time.Duration {
	d := minBackoff
	for n := 1; n < attempts && d < maxBackoff; n++ {
		d *= 2
	}
	return min(d, maxBackoff)
}

// Help says what happened. Parked pods that it can help back off from their last failure, most of which has passed.
func (q *Queue) Help(events filter.Event, now time.Time) {
	if events == 0 {
		return
	}
	q.missed |= events
	if q.wanted&events == 0 {
		return
	}
	q.wanted = 0
	for _, i := range q.timed {
		switch {
		case i.state != parked:
		case i.helps&events == 0:
			q.wanted |= i.helps
		default:
			failed := i.until.Add(-maxParked)
			i.state, i.until = backingOff, failed.Add(delay(i.Attempts))
		}
	}
	heap.Init(&q.timed)
	q.wake(now)
}

// wake makes those ready whose time has come.
func (q *Queue) wake(now time.Time) {
	for len(q.timed) > 0 && !q.timed[0].until.After(now) {
		i := heap.Pop(&q.timed).(*Item)
		q.enter(i, now)
	}
}

// Next returns when the queue has work: now or earlier when pods are ready, zero when it has nothing to wait for.
func (q *Queue) Next(now time.Time) time.Time {
	switch {
	case len(q.active) > 0:
		return now
	case len(q.timed) > 0:
		return q.timed[0].until
	}
	return time.Time{}
}

func (q *Queue) enter(i *Item, now time.Time) {
	i.state, i.Queued = active, now
	if i.Added.IsZero() {
		i.Added = now
	}
	heap.Push(&q.active, i)
}

func (q *Queue) leave(i *Item) {
	switch i.state {
	case active:
		heap.Remove(&q.active, i.index)
	case backingOff, parked:
		heap.Remove(&q.timed, i.index)
	}
	i.state = taken
}

// byPriority is a heap of ready items.
type byPriority []*Item

func (h byPriority) Len() int { return len(h) }
func (h byPriority) Less(a, b int) bool {
	x, y := h[a], h[b]
	switch {
	case x.Priority != y.Priority:
		return x.Priority > y.Priority
	case !x.Created.Equal(y.Created):
		return x.Created.Before(y.Created)
	case !x.Added.Equal(y.Added):
		return x.Added.Before(y.Added)
	case x.Key.Namespace != y.Key.Namespace:
		return x.Key.Namespace < y.Key.Namespace
	}
	return x.Key.Name < y.Key.Name
}
func (h byPriority) Swap(a, b int) {
	h[a], h[b] = h[b], h[a]
	h[a].index, h[b].index = a, b
}
func (h *byPriority) Push(x any) {
	i := x.(*Item)
	i.index = len(*h)
	*h = append(*h, i)
}
func (h *byPriority) Pop() any {
	last := len(*h) - 1
	i := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	return i
}

// byTime is a heap of items that wait.
type byTime []*Item

func (h byTime) Len() int           { return len(h) }
func (h byTime) Less(a, b int) bool { return h[a].until.Before(h[b].until) }
func (h byTime) Swap(a, b int) {
	h[a], h[b] = h[b], h[a]
	h[a].index, h[b].index = a, b
}
func (h *byTime) Push(x any) {
	i := x.(*Item)
	i.index = len(*h)
	*h = append(*h, i)
}
func (h *byTime) Pop() any {
	last := len(*h) - 1
	i := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	return i
}
