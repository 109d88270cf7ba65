// Package affinity counts, for one class of pods, how affinity and anti-affinity to other pods stand, its own and that of the pods that are there: pods per
// domain, made once from the snapshot's counters per node and then kept up by deltas. Where each node is a domain of its own, which is the usual case, the
// snapshot's counters are the answer.
package affinity

import "dhow.dev/services/scheduler/internal/snapshot"

// Required is what keeps pods of a class from nodes. It is nil for classes that nothing keeps; the methods allow that.
type Required struct {
	snapshot  *snapshot.Snapshot
	class     *snapshot.Class
	near, far []tally
	// missing are nodes that lack the label of a term of near.
	missing []bool
	// matched are the pods that near selects, on nodes with any of its labels: while there is none, a pod that selects itself is the first of its own.
	matched int64
	self    bool
}

// tally is pods of a group, or pods that have a term, by domain.
type tally struct {
	domainOf []int32
	// counts is nil where domains are nodes.
	counts []int64
	group  int32
	holder int32
	weight int64
}

const none = -1

func newTally(s *snapshot.Snapshot, topology, group, holder int32, weight int64, unique map[int32]bool) tally {
	t := tally{group: group, holder: holder, weight: weight}
	var domains int
	t.domainOf, domains = s.Domains(topology)
	alone, known := unique[topology]
	if !known {
		alone = s.Unique(topology)
		unique[topology] = alone
	}
	if alone {
		return t
	}
	t.counts = make([]int64, domains)
	for slot, pods := range t.perNode(s) {
		if domain := t.domainOf[slot]; pods != 0 && domain != snapshot.NoDomain {
			t.counts[domain] += int64(pods)
		}
	}
	return t
}

func (t *tally) perNode(s *snapshot.Snapshot) []int32 {
	if t.holder >= 0 {
		return s.Held(t.holder)
	}
	return s.PerNode(t.group)
}

// pods returns what the node's domain has.
func (t *tally) pods(s *snapshot.Snapshot, slot int) int64 {
	domain := t.domainOf[slot]
	switch {
	case domain == snapshot.NoDomain:
		return 0
	case t.counts != nil:
		return t.counts[domain]
	}
	return int64(t.perNode(s)[slot])
}

// changed returns by how much one pod of a class changes what is counted.
func (t *tally) changed(s *snapshot.Snapshot, c *snapshot.Class) int64 {
	if t.holder < 0 {
		if s.Counts(t.group, c) {
			return 1
		}
		return 0
	}
	var sum int64
	for _, h := range c.Affinity.Held {
		if h.Holder == t.holder {
			sum += int64(h.Weight)
		}
	}
	return sum
}

func (t *tally) add(s *snapshot.Snapshot, slot int, c *snapshot.Class, pods int64) {
	if domain := t.domainOf[slot]; t.counts != nil && domain != snapshot.NoDomain {
		t.counts[domain] += pods * t.changed(s, c)
	}
}

// New counts for a class.
func New(s *snapshot.Snapshot, c *snapshot.Class) *Required {
	r := &Required{snapshot: s, class: c}
	unique := map[int32]bool{}
	for _, t := range c.Affinity.Far {
		r.far = append(r.far, newTally(s, t.Topology, t.Group, none, 0, unique))
	}
	for _, id := range holders(s, c) {
		if topology, required := s.Holder(id); required {
			r.far = append(r.far, newTally(s, topology, none, id, 0, unique))
		}
	}
	if near := c.Affinity.Near; len(near) > 0 {
		r.missing = make([]bool, s.Slots())
		for _, t := range near {
			r.near = append(r.near, newTally(s, t.Topology, t.Group, none, 0, unique))
		}
		for slot, pods := range s.PerNode(near[0].Group) {
			for i := range r.near {
				r.missing[slot] = r.missing[slot] || r.near[i].domainOf[slot] == snapshot.NoDomain
			}
			if r.labelled(slot) {
				r.matched += int64(pods)
			}
		}
		r.self = s.Counts(near[0].Group, c)
	}
	if len(r.near)+len(r.far) == 0 {
		return nil
	}
	return r
}

// holders are those of terms that select pods of the class.
func holders(s *snapshot.Snapshot, c *snapshot.Class) []int32 {
	var out []int32
	for _, group := range s.Links(c.ID).Present {
		out = append(out, s.HoldersOf(group)...)
	}
	return out
}

func (r *Required) labelled(slot int) bool {
	for i := range r.near {
		if r.near[i].domainOf[slot] != snapshot.NoDomain {
			return true
		}
	}
	return false
}

// Missing says that a node lacks the label of an affinity term. This does not change by placing pods.
func (r *Required) Missing(slot int) bool { return r != nil && r.missing != nil && r.missing[slot] }

// Taken says that a pod on the node itself keeps the class away for as long as it is there.
func (r *Required) Taken(slot int) bool {
	if r == nil {
		return false
	}
	for i := range r.far {
		if t := &r.far[i]; t.counts == nil && t.pods(r.snapshot, slot) > 0 {
			return true
		}
	}
	return false
}

// First says that no pod is there that the class has to be near to, and that one of its own may begin.
func (r *Required) First() bool { return r != nil && r.matched == 0 && r.self }

// Alone says that the node itself has no pod that the class has to be near to. Another pod may change that.
func (r *Required) Alone(slot int) bool {
	if r == nil || r.First() {
		return false
	}
	for i := range r.near {
		if t := &r.near[i]; t.counts == nil && t.pods(r.snapshot, slot) == 0 {
			return true
		}
	}
	return false
}

// Violated says that the pods of the node's domains keep the class away.
func (r *Required) Violated(slot int) bool {
	if r == nil {
		return false
	}
	for i := range r.far {
		if t := &r.far[i]; t.counts != nil && t.pods(r.snapshot, slot) > 0 {
			return true
		}
	}
	return r.apart(slot)
}

// apart says that a domain larger than a node has no pod that the class has to be near to.
func (r *Required) apart(slot int) bool {
	if r.First() {
		return false
	}
	for i := range r.near {
		if t := &r.near[i]; t.counts != nil && t.pods(r.snapshot, slot) == 0 {
			return true
		}
	}
	return false
}

// Verdict is what keeps the class from a node.
type Verdict int

// In the order in which Kubernetes looks.
const (
	Free Verdict = iota
	// NotNear is the class's own affinity.
	NotNear
	// NotFar is the class's own anti-affinity.
	NotFar
	// Unwelcome is the anti-affinity of a pod that is there.
	Unwelcome
)

// Verdict returns the first thing that keeps the class from a node.
func (r *Required) Verdict(slot int) Verdict {
	notNear, notFar, unwelcome := r.Verdicts(slot)
	switch {
	case notNear:
		return NotNear
	case notFar:
		return NotFar
	case unwelcome:
		return Unwelcome
	}
	return Free
}

// Verdicts returns everything that keeps the class from a node.
func (r *Required) Verdicts(slot int) (notNear, notFar, unwelcome bool) {
	if r == nil {
		return false, false, false
	}
	notNear = r.Missing(slot) || r.Alone(slot) || r.apart(slot)
	for i := range r.far {
		if r.far[i].pods(r.snapshot, slot) == 0 {
			continue
		}
		if r.far[i].holder >= 0 {
			unwelcome = true
		} else {
			notFar = true
		}
	}
	return notNear, notFar, unwelcome
}

// Add takes in that pods of some class were placed on a node, or were taken away (negative). The snapshot has changed already.
func (r *Required) Add(slot int, placed *snapshot.Class, pods int32) {
	if r == nil {
		return
	}
	for i := range r.far {
		r.far[i].add(r.snapshot, slot, placed, int64(pods))
	}
	for i := range r.near {
		r.near[i].add(r.snapshot, slot, placed, int64(pods))
	}
	if len(r.near) > 0 && r.labelled(slot) && r.snapshot.Counts(r.near[0].group, placed) {
		r.matched += int64(pods)
	}
}

// Domains returns the topologies, as domains by slot, on which Violated depends.
func (r *Required) Domains() [][]int32 {
	var out [][]int32
	if r != nil {
		out = append(larger(r.near), larger(r.far)...)
	}
	return out
}

func larger(tallies []tally) [][]int32 {
	var out [][]int32
	for i := range tallies {
		if tallies[i].counts != nil {
			out = append(out, tallies[i].domainOf)
		}
	}
	return out
}

// Preferred is what pods of a class, and those that are there, would rather have. It is nil where nobody minds; the methods allow that.
type Preferred struct {
	snapshot *snapshot.Snapshot
	tallies  []tally
	step     int64
}

// NewPreferred counts for a class.
func NewPreferred(s *snapshot.Snapshot, c *snapshot.Class) *Preferred {
	p := &Preferred{snapshot: s}
	unique := map[int32]bool{}
	for _, t := range c.Affinity.Preferred {
		p.tallies = append(p.tallies, newTally(s, t.Topology, t.Group, none, int64(t.Weight), unique))
	}
	for _, id := range holders(s, c) {
		if topology, required := s.Holder(id); !required {
			p.tallies = append(p.tallies, newTally(s, topology, none, id, 1, unique))
		}
	}
	if len(p.tallies) == 0 {
		return nil
	}
	for i := range p.tallies {
		t := &p.tallies[i]
		p.step += abs(t.weight * t.changed(s, c))
	}
	return p
}

func abs(n int64) int64 { return max(n, -n) }

// Local returns the part of a node's weight that changes by pods on this node alone.
func (p *Preferred) Local(slot int) int64 { return p.sum(slot, true) }

// Shared returns the part of a node's weight that all nodes of the same domains have.
func (p *Preferred) Shared(slot int) int64 { return p.sum(slot, false) }

func (p *Preferred) sum(slot int, local bool) int64 {
	if p == nil {
		return 0
	}
	var sum int64
	for i := range p.tallies {
		if t := &p.tallies[i]; (t.counts == nil) == local {
			sum += t.weight * t.pods(p.snapshot, slot)
		}
	}
	return sum
}

// Step returns by how much one more pod of the class changes a weight at most.
func (p *Preferred) Step() int64 {
	if p == nil {
		return 0
	}
	return p.step
}

// Add takes in that a pod of some class was placed on a node. The snapshot has changed already.
func (p *Preferred) Add(slot int, placed *snapshot.Class) {
	if p == nil {
		return
	}
	for i := range p.tallies {
		p.tallies[i].add(p.snapshot, slot, placed, 1)
	}
}

// Domains returns the topologies, as domains by slot, on which Shared depends.
func (p *Preferred) Domains() [][]int32 {
	if p == nil {
		return nil
	}
	return larger(p.tallies)
}
