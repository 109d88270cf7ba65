// Package spread counts, for one class of pods, how its topology spread constraints stand: pods per domain, made once from the snapshot's
// counters per node and then kept up by deltas. Hard constraints filter (Hard), soft ones rank (Soft).
package spread

import (
	"math"

	"dhow.dev/services/scheduler/internal/snapshot"
)

// Hard is the constraints that a node must not violate (whenUnsatisfiable: DoNotSchedule).
type Hard struct {
	constraints []hard
	missing     []bool
}

type hard struct {
	*snapshot.Constraint
	domainOf []int32
	// counted are the slots whose pods count.
	counted []bool
	counts  []int32
	// exists are the domains that have a counted node.
	exists  []bool
	domains int32
	min     int32
	atMin   int
}

// NewHard counts for a class. It is nil for classes without hard constraints; the methods allow that.
func NewHard(s *snapshot.Snapshot, c *snapshot.Class) *Hard {
	if len(c.Hard) == 0 {
		return nil
	}
	h := &Hard{constraints: make([]hard, len(c.Hard)), missing: make([]bool, s.Slots())}
	for i := range c.Hard {
		h.constraints[i].Constraint = &c.Hard[i]
		h.constraints[i].domainOf, _ = s.Domains(c.Hard[i].Topology)
		for slot, domain := range h.constraints[i].domainOf {
			h.missing[slot] = h.missing[slot] || domain == snapshot.NoDomain
		}
	}
	for i := range h.constraints {
		k := &h.constraints[i]
		_, domains := s.Domains(k.Topology)
		k.counted, k.counts, k.exists = make([]bool, s.Slots()), make([]int32, domains), make([]bool, domains)
		perNode := s.PerNode(k.Group)
		for slot := range k.counted {
			// Nodes that lack the label of any hard constraint count for none, as in Kubernetes.
			if h.missing[slot] || !counts(s, c, k.Constraint, slot) {
				continue
			}
			k.counted[slot] = true
			domain := k.domainOf[slot]
			if !k.exists[domain] {
				k.exists[domain] = true
				k.domains++
			}
			k.counts[domain] += perNode[slot]
		}
		k.findMin()
	}
	return h
}

// counts applies the constraint's node inclusion policies.
func counts(s *snapshot.Snapshot, c *snapshot.Class, k *snapshot.Constraint, slot int) bool {
	n := s.Node(slot)
	return n != nil && (!k.HonorAffinity || c.MatchesNode(n)) && (!k.HonorTaints || c.Untolerated(n) == nil)
}

func (k *hard) findMin() {
	k.min, k.atMin = math.MaxInt32, 0
	for domain, exists := range k.exists {
		switch {
		case !exists || k.counts[domain] > k.min:
		case k.counts[domain] == k.min:
			k.atMin++
		default:
			k.min, k.atMin = k.counts[domain], 1
		}
	}
}

// Missing says that a node lacks the label of a hard constraint. This does not change by placing pods.
func (h *Hard) Missing(slot int) bool { return h != nil && h.missing[slot] }

// Violated returns the first constraint that one more pod of the class on the node would violate, or nil.
func (h *Hard) Violated(slot int) *snapshot.Constraint {
	if h == nil || h.missing[slot] {
		return nil
	}
	for i := range h.constraints {
		if h.constraints[i].violated(slot) {
			return h.constraints[i].Constraint
		}
	}
	return nil
}

func (k *hard) violated(slot int) bool {
	minimum := k.min
	if k.domains < k.MinDomains {
		minimum = 0
	}
	pods := k.counts[k.domainOf[slot]]
	if k.Self {
		pods++
	}
	return pods-minimum > k.MaxSkew
}

// Unmet returns all constraints that keep a pod of the class from the node: violated ones, or those whose label it lacks.
func (h *Hard) Unmet(slot int) []*snapshot.Constraint {
	var out []*snapshot.Constraint
	if h == nil {
		return nil
	}
	for i := range h.constraints {
		k := &h.constraints[i]
		lacks := k.domainOf[slot] == snapshot.NoDomain
		if lacks || !h.missing[slot] && k.violated(slot) {
			out = append(out, k.Constraint)
		}
	}
	return out
}

// Add takes in that pods of some class were placed on a node, or were taken away (negative).
func (h *Hard) Add(s *snapshot.Snapshot, slot int, placed *snapshot.Class, pods int32) {
	if h == nil {
		return
	}
	for i := range h.constraints {
		k := &h.constraints[i]
		if !k.counted[slot] || !s.Counts(k.Group, placed) {
			continue
		}
		domain := k.domainOf[slot]
		k.counts[domain] += pods
		switch {
		case pods < 0:
			k.findMin()
		case k.counts[domain] == k.min+pods:
			if k.atMin--; k.atMin == 0 {
				k.findMin()
			}
		}
	}
}

// weightUnit is the fixed point of Soft's costs.
const weightUnit = 1024

// Soft is the constraints that only rank (whenUnsatisfiable: ScheduleAnyway, or the defaults). A node's cost is what its domains hold, weighted so that
// constraints with many domains, whose counts are small, are not lost beside those with few.
type Soft struct {
	constraints []soft
	ignored     []bool
	skews       int64
}

type soft struct {
	*snapshot.Constraint
	domainOf []int32
	perNode  []int32
	counted  []bool
	counts   []int32
	weight   int64
	// host says that domains are nodes: counts are then per node, and Local.
	host bool
}

// NewSoft counts for a class of which the feasible slots are known. It is nil for classes without soft constraints; the methods allow that.
func NewSoft(s *snapshot.Snapshot, c *snapshot.Class, feasible []int32) *Soft {
	if len(c.Soft) == 0 || len(feasible) == 0 {
		return nil
	}
	f := &Soft{constraints: make([]soft, len(c.Soft)), ignored: make([]bool, s.Slots())}
	for i := range c.Soft {
		k := &f.constraints[i]
		k.Constraint = &c.Soft[i]
		k.host = k.Key == snapshot.HostnameLabel
		k.domainOf, _ = s.Domains(k.Topology)
		if c.DefaultSpread {
			continue
		}
		for slot, domain := range k.domainOf {
			f.ignored[slot] = f.ignored[slot] || domain == snapshot.NoDomain
		}
	}
	for i := range f.constraints {
		k := &f.constraints[i]
		_, domains := s.Domains(k.Topology)
		perNode := s.PerNode(k.Group)
		size := 0
		if k.host {
			k.perNode = append([]int32(nil), perNode...)
			for _, slot := range feasible {
				if !f.ignored[slot] {
					size++
				}
			}
		} else {
			k.counted, k.counts = make([]bool, s.Slots()), make([]int32, domains)
			seen := make([]bool, domains)
			for _, slot := range feasible {
				if domain := k.domainOf[slot]; domain != snapshot.NoDomain && !f.ignored[slot] && !seen[domain] {
					seen[domain] = true
					size++
				}
			}
			for slot := range k.counted {
				domain := k.domainOf[slot]
				if domain == snapshot.NoDomain || f.ignored[slot] || !seen[domain] || !counts(s, c, k.Constraint, slot) {
					continue
				}
				k.counted[slot] = true
				k.counts[domain] += perNode[slot]
			}
		}
		k.weight = int64(math.Round(math.Log(float64(size+2)) * weightUnit))
		f.skews += int64(k.MaxSkew-1) * weightUnit
	}
	return f
}

// Ignored says that a node has no cost because it lacks a label; it then ranks last.
func (f *Soft) Ignored(slot int) bool { return f != nil && f.ignored[slot] }

// Local returns the part of a node's cost that changes by pods on this node alone.
func (f *Soft) Local(slot int) int64 {
	if f == nil {
		return 0
	}
	var cost int64
	for i := range f.constraints {
		if k := &f.constraints[i]; k.host && k.domainOf[slot] != snapshot.NoDomain {
			cost += int64(k.perNode[slot]) * k.weight
		}
	}
	return cost
}

// Shared returns the part of a node's cost that all nodes of the same domains have.
func (f *Soft) Shared(slot int) int64 {
	if f == nil {
		return 0
	}
	cost := f.skews
	for i := range f.constraints {
		if k := &f.constraints[i]; !k.host && k.domainOf[slot] != snapshot.NoDomain {
			cost += int64(k.counts[k.domainOf[slot]]) * k.weight
		}
	}
	return cost
}

// Step returns what one more pod adds to a cost at most.
func (f *Soft) Step() int64 {
	var step int64
	if f != nil {
		for i := range f.constraints {
			step += f.constraints[i].weight
		}
	}
	return step
}

// Add takes in that a pod of some class was placed on a node.
func (f *Soft) Add(s *snapshot.Snapshot, slot int, placed *snapshot.Class) {
	if f == nil {
		return
	}
	for i := range f.constraints {
		k := &f.constraints[i]
		switch {
		case !s.Counts(k.Group, placed):
		case k.host:
			k.perNode[slot]++
		case k.counted[slot]:
			k.counts[k.domainOf[slot]]++
		}
	}
}

// Domains returns the topologies, as domains by slot, on which Violated depends.
func (h *Hard) Domains() [][]int32 {
	var out [][]int32
	if h != nil {
		for i := range h.constraints {
			out = append(out, h.constraints[i].domainOf)
		}
	}
	return out
}

// Domains returns the topologies, as domains by slot, on which Shared depends.
func (f *Soft) Domains() [][]int32 {
	var out [][]int32
	if f != nil {
		for i := range f.constraints {
			if !f.constraints[i].host {
				out = append(out, f.constraints[i].domainOf)
			}
		}
	}
	return out
}
