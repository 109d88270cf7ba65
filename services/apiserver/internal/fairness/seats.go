package fairness

import (
	"container/heap"
	"context"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// seats gives out the server's concurrency. A seat is the right to have one request worked on.
//
// Every level has seats that are its own (guaranteed); the others are in one pool, from which each level takes up to its limit. A seat that comes back goes to the
// level that has the least of what it is due, and there to the flow that has the fewest requests at work.
type seats struct {
	// maxWait bounds waiting for a seat.
	maxWait time.Duration

	mu     sync.Mutex
	levels []*level
	// pool is how many seats are nobody's own, taken how many of them are in use.
	pool, taken int
	// turn numbers what happens, so that of equals the first comes first.
	turn uint64
}

// limits are what a level may have. They are changed as a whole.
type limits struct {
	exempt bool
	// nominal is what the level is due, guaranteed what is its own, limit what it may have at most.
	nominal, guaranteed, limit int
	// flowQueue and queue bound how many requests of one flow and of all flows wait. 0: none does.
	flowQueue, queue int
}

type level struct {
	name string
	limits
	executing, waiting int
	flows              map[flowKey]*flow
	ready              flowHeap
	spare              []*flow
	// gone says that the configuration does not have the level anymore; it does not come back, one of its name is another. Idle ones are dropped from
	// seats.levels, until a request enters that was classified before.
	gone, dropped bool
}

// flowKey names a flow: a schema, and the user or namespace that the schema tells apart.
type flowKey struct{ schema, who string }

// flow is the requests of one flow, as long as there are any.
type flow struct {
	key       flowKey
	executing int
	turn      uint64
	// first and last are the requests that wait.
	first, last *waiter
	waiting     int
	// index is the flow's place among those that wait, -1 when it does not.
	index int
}

type waiter struct {
	next, before *waiter
	admitted     chan struct{}
	// has is set when the seat is given. Guarded by seats.mu.
	has bool
}

// flowHeap orders flows that wait by requests at work, then by turn.
type flowHeap []*flow

func (h flowHeap) Len() int { return len(h) }
func (h flowHeap) Less(i, j int) bool {
	if h[i].executing != h[j].executing {
		return h[i].executing < h[j].executing
	}
	return h[i].turn < h[j].turn
}
func (h flowHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}
func (h *flowHeap) Push(x any) {
	f := x.(*flow)
	f.index = len(*h)
	*h = append(*h, f)
}
func (h *flowHeap) Pop() any {
	old := *h
	f := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	f.index = -1
	return f
}

// configure replaces the limits of all levels. Requests that are at work or wait stay; those of levels that are gone end in peace.
func (s *seats) configure(wanted map[string]limits) map[string]*level {
	s.mu.Lock()
	defer s.mu.Unlock()
	byName := make(map[string]*level, len(wanted))
	kept := s.levels[:0:0]
	for _, l := range s.levels {
		if limits, ok := wanted[l.name]; ok && !l.gone {
			l.limits = limits
			byName[l.name] = l
		} else {
			// It owns nothing anymore; what waits is let in as the pool allows.
			l.gone, l.guaranteed, l.nominal = true, 0, 1
			if l.executing == 0 && l.waiting == 0 {
				l.dropped = true
				continue
			}
		}
		kept = append(kept, l)
	}
	for name, limits := range wanted {
		if byName[name] == nil {
			l := &level{name: name, limits: limits, flows: map[flowKey]*flow{}}
			byName[name] = l
			kept = append(kept, l)
		}
	}
	s.levels = kept
	s.pool, s.taken = 0, 0
	for _, l := range s.levels {
		if !l.exempt {
			s.taken += l.borrowed()
		}
		if !l.gone && !l.exempt {
			s.pool += l.nominal - l.guaranteed
		}
	}
	s.dispatch()
	return byName
}

// borrowed is how many seats of the pool the level has.
func (l *level) borrowed() int { return max(0, l.executing-l.guaranteed) }

// admits says whether the level may have another seat.
func (s *seats) admits(l *level) bool {
	return l.executing < l.guaranteed || l.executing < l.limit && s.taken < s.pool
}

// enter waits for a seat. Errors are API errors.
func (s *seats) enter(ctx context.Context, l *level, key flowKey) (*flow, error) {
	s.mu.Lock()
	if l.dropped {
		l.dropped = false
		s.levels = append(s.levels, l)
	}
	if l.exempt {
		f := l.flow(key)
		s.sit(l, f)
		s.mu.Unlock()
		return f, nil
	}
	f := l.flow(key)
	if f.waiting == 0 && l.waiting == 0 && s.admits(l) {
		s.sit(l, f)
		s.mu.Unlock()
		return f, nil
	}
	if f.waiting >= l.flowQueue || l.waiting >= l.queue {
		l.forget(f)
		s.mu.Unlock()
		return nil, tooMany()
	}
	w := &waiter{admitted: make(chan struct{})}
	s.push(l, f, w)
	// Others may wait although this level has a seat: they are of flows that came first.
	s.dispatch()
	s.mu.Unlock()
	return f, s.wait(ctx, l, f, w)
}

func (s *seats) wait(ctx context.Context, l *level, f *flow, w *waiter) error {
	timeout := time.NewTimer(s.maxWait)
	defer timeout.Stop()
	var err error
	select {
	case <-w.admitted:
		return nil
	case <-ctx.Done():
		err = ctx.Err()
	case <-timeout.C:
		err = tooMany()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if w.has {
		s.stand(l, f)
		s.dispatch()
		return err
	}
	s.remove(l, f, w)
	l.forget(f)
	return err
}

// leave gives a seat back.
func (s *seats) leave(l *level, f *flow) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stand(l, f)
	s.dispatch()
}

// dispatch gives free seats to those who wait.
func (s *seats) dispatch() {
	for {
		var best *level
		for _, l := range s.levels {
			if l.waiting == 0 || !l.exempt && !s.admits(l) {
				continue
			}
			// executing/nominal without division.
			if best == nil || l.executing*max(best.nominal, 1) < best.executing*max(l.nominal, 1) {
				best = l
			}
		}
		if best == nil {
			return
		}
		f := best.ready[0]
		w := f.first
		s.remove(best, f, w)
		s.sit(best, f)
		w.has = true
		close(w.admitted)
	}
}

// sit and stand count a request at work.
func (s *seats) sit(l *level, f *flow) {
	if l.executing >= l.guaranteed && !l.exempt {
		s.taken++
	}
	l.executing++
	f.executing++
	s.turn++
	f.turn = s.turn
	if f.index >= 0 {
		heap.Fix(&l.ready, f.index)
	}
}

func (s *seats) stand(l *level, f *flow) {
	l.executing--
	if l.executing >= l.guaranteed && !l.exempt {
		s.taken--
	}
	f.executing--
	if f.index >= 0 {
		heap.Fix(&l.ready, f.index)
	}
	l.forget(f)
}

// push and remove put a request into its flow's queue and take it out.
func (s *seats) push(l *level, f *flow, w *waiter) {
	if w.before = f.last; f.last != nil {
		f.last.next = w
	} else {
		f.first = w
	}
	f.last = w
	l.waiting++
	if f.waiting++; f.waiting == 1 {
		s.turn++
		f.turn = s.turn
		heap.Push(&l.ready, f)
	}
}

func (s *seats) remove(l *level, f *flow, w *waiter) {
	if w.before != nil {
		w.before.next = w.next
	} else {
		f.first = w.next
	}
	if w.next != nil {
		w.next.before = w.before
	} else {
		f.last = w.before
	}
	w.next, w.before = nil, nil
	l.waiting--
	if f.waiting--; f.waiting == 0 {
		heap.Remove(&l.ready, f.index)
	}
}

// maxSpare bounds the flows that are kept for others.
const maxSpare = 64

// flow returns the flow of a key.
func (l *level) flow(key flowKey) *flow {
	if f := l.flows[key]; f != nil {
		return f
	}
	var f *flow
	if n := len(l.spare); n > 0 {
		f = l.spare[n-1]
		l.spare = l.spare[:n-1]
		*f = flow{}
	} else {
		f = &flow{}
	}
	f.key, f.index = key, -1
	l.flows[key] = f
	return f
}

// forget drops a flow that has no requests.
func (l *level) forget(f *flow) {
	if f.executing > 0 || f.waiting > 0 {
		return
	}
	delete(l.flows, f.key)
	if len(l.spare) < maxSpare {
		l.spare = append(l.spare, f)
	}
}

func tooMany() error {
	return apierrors.NewTooManyRequests("Too many requests, please try again later.", 1)
}
