package plan

import (
	"slices"

	"dhow.dev/services/scheduler/internal/filter"
	"dhow.dev/services/scheduler/internal/score"
	"dhow.dev/services/scheduler/internal/snapshot"
)

// candidates are the nodes that pods of one class may go to, best first.
type candidates struct {
	planner *planner
	context *filter.Context
	ranking *score.Ranking
	// static are the rules whose verdict on a node changes by pods on that node alone. The others are asked for a whole bucket when one is picked.
	static  []filter.Filter
	buckets []heap
	// bucketOf and at say where a slot is: at is its place in the bucket's heap, or -1.
	bucketOf, at []int32
	points       []int64
	// heaped says that the heaps are in order. They are put in order when the class is asked a second time: for a single pod to look at all is cheaper.
	heaped bool
	// ranked are the slots that have a place in the ranking, also while they are in no heap.
	ranked []bool
	// first is that of the affinity when the heaps were filled.
	first bool
	// storage is that of the planner when the class looked at its claims.
	storage int
	// cursor is how much of the journal was taken in.
	cursor  int
	failure *Failure
	failed  int
}

func (p *planner) newCandidates(class *snapshot.Class) *candidates {
	s := p.snapshot
	c := &candidates{
		planner: p, context: filter.NewContext(s, class), cursor: len(p.journal), storage: p.storage,
		at: make([]int32, s.Slots()), points: make([]int64, s.Slots()),
	}
	for _, f := range p.filters {
		if !f.Shared {
			c.static = append(c.static, f)
		}
	}
	feasible := make([]int32, 0, s.Slots())
	c.ranked = make([]bool, s.Slots())
	for slot := range c.at {
		if s.Node(slot) != nil && c.fits(slot) {
			feasible = append(feasible, int32(slot))
			c.ranked[slot] = true
		}
	}
	c.ranking = score.New(s, class, feasible)
	of, buckets := bucketsOf(s.Slots(), slices.Concat(c.context.Spread.Domains(), c.context.Affinity.Domains(), c.ranking.Domains()))
	c.bucketOf, c.buckets = of, make([]heap, buckets)
	for _, slot := range feasible {
		c.points[slot] = c.ranking.Node(int(slot))
	}
	c.fill()
	return c
}

// fill puts the nodes that can take a pod now into the buckets.
func (c *candidates) fill() {
	for i := range c.buckets {
		c.buckets[i] = c.buckets[i][:0]
	}
	c.first = c.context.Affinity.First()
	for slot := range c.at {
		c.at[slot] = -1
		if c.ranked[slot] && !c.context.Affinity.Alone(slot) && (!c.heaped || c.fits(slot)) {
			b := &c.buckets[c.bucketOf[slot]]
			c.at[slot] = int32(len(*b))
			*b = append(*b, int32(slot))
		}
	}
	c.heaped = false
}

// bucketsOf groups slots by the domains that decisions depend on, so that all nodes of a bucket share what hangs on other nodes. It returns each slot's
// bucket and the number of buckets.
func bucketsOf(slots int, domains [][]int32) (of []int32, buckets int) {
	of, buckets = make([]int32, slots), 1
	for i, domainOf := range domains {
		if slots == 0 || slices.ContainsFunc(domains[:i], func(other []int32) bool { return &other[0] == &domainOf[0] }) {
			continue
		}
		type pair struct{ bucket, domain int32 }
		ids := map[pair]int32{}
		for slot := range of {
			p := pair{of[slot], domainOf[slot]}
			id, ok := ids[p]
			if !ok {
				id = int32(len(ids))
				ids[p] = id
			}
			of[slot] = id
		}
		buckets = len(ids)
	}
	return of, buckets
}

// fits asks the rules of one node, and the part of spreading and affinity that no placement changes for the better.
func (c *candidates) fits(slot int) bool {
	if c.context.Excluded(slot) {
		return false
	}
	_, rejected := filter.First(c.static, c.context, slot, c.planner.buffer)
	return !rejected
}

// best returns the best node that spreading allows now, or -1.
func (c *candidates) best() int {
	best, most := -1, int64(0)
	for i := range c.buckets {
		if len(c.buckets[i]) == 0 {
			continue
		}
		slot := c.top(c.buckets[i])
		if c.context.Barred(slot) {
			continue
		}
		points := c.points[slot] + c.ranking.Shared(slot)
		if best < 0 || points > most || points == most && c.tie(slot) > c.tie(best) {
			best, most = slot, points
		}
	}
	return best
}

// allowed returns the slot if pods of the class may go there now, else -1.
func (c *candidates) allowed(slot int) int {
	if slot < 0 || c.at[slot] < 0 || c.context.Barred(slot) {
		return -1
	}
	return slot
}

// top returns the best of a bucket.
func (c *candidates) top(h heap) int {
	best := h[0]
	if !c.heaped {
		for _, slot := range h[1:] {
			if c.less(slot, best) {
				best = slot
			}
		}
	}
	return int(best)
}

// catchUp takes in the placements since the class was last asked.
func (c *candidates) catchUp() {
	journal := c.planner.journal
	for _, p := range journal[c.cursor:] {
		c.context.Add(p.slot, p.class, 1)
		c.ranking.Add(p.slot, p.class)
	}
	if c.first != c.context.Affinity.First() {
		c.heaped = true
		c.fill()
	}
	if !c.heaped {
		for i := range c.buckets {
			c.heapify(&c.buckets[i])
		}
		c.heaped = true
	}
	for _, p := range journal[c.cursor:] {
		c.refresh(p.slot)
	}
	c.cursor = len(journal)
}

// refresh asks the rules and the ranking again about a node that got a pod.
func (c *candidates) refresh(slot int) {
	if !c.ranked[slot] {
		return
	}
	b := &c.buckets[c.bucketOf[slot]]
	fits := c.fits(slot) && !c.context.Affinity.Alone(slot)
	if fits {
		c.points[slot] = c.ranking.Node(slot)
	}
	switch at := int(c.at[slot]); {
	case at >= 0 && fits:
		c.fix(b, at)
	case at >= 0:
		c.remove(b, at)
	case fits:
		// The pod that got there is one that this class has to be near to.
		c.at[slot] = int32(len(*b))
		*b = append(*b, int32(slot))
		c.up(*b, len(*b)-1)
	}
}

// tie orders nodes of equal points: by their names and the seed, so that neither slots nor the order of arrival matter.
func (c *candidates) tie(slot int) uint64 {
	x := c.planner.snapshot.Node(slot).Tie ^ c.planner.seed
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31
}

// heap is slots with the best first. It is not container/heap because places are kept in candidates.at without an interface call for each swap.
type heap []int32

func (c *candidates) less(a, b int32) bool {
	if c.points[a] != c.points[b] {
		return c.points[a] > c.points[b]
	}
	return c.tie(int(a)) > c.tie(int(b))
}

func (c *candidates) heapify(h *heap) {
	for i := len(*h)/2 - 1; i >= 0; i-- {
		c.down(*h, i)
	}
}

func (c *candidates) swap(h heap, i, j int) {
	h[i], h[j] = h[j], h[i]
	c.at[h[i]], c.at[h[j]] = int32(i), int32(j)
}

func (c *candidates) down(h heap, i int) bool {
	from := i
	for {
		child := 2*i + 1
		if child >= len(h) {
			break
		}
		if child+1 < len(h) && c.less(h[child+1], h[child]) {
			child++
		}
		if !c.less(h[child], h[i]) {
			break
		}
		c.swap(h, i, child)
		i = child
	}
	return i > from
}

func (c *candidates) up(h heap, i int) {
	for i > 0 {
		parent := (i - 1) / 2
		if !c.less(h[i], h[parent]) {
			break
		}
		c.swap(h, i, parent)
		i = parent
	}
}

func (c *candidates) fix(h *heap, i int) {
	if !c.down(*h, i) {
		c.up(*h, i)
	}
}

func (c *candidates) remove(h *heap, i int) {
	last := len(*h) - 1
	gone := (*h)[i]
	if i != last {
		c.swap(*h, i, last)
	}
	c.at[gone] = -1
	*h = (*h)[:last]
	if i != last {
		c.fix(h, i)
	}
}
