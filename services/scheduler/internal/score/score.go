// Package score ranks the nodes that a pod may run on, by the scorers and weights of Kubernetes' default profile.
//
// A node's total is split in two: a part that changes only with pods on that node (Node), and one that all nodes of the same topology domains have
// in common (Shared). So a placement changes one node's part and a few shared ones. What Kubernetes normalizes over all nodes before each pod is
// normalized once, when the Ranking is made: during a plan the scale stays, which keeps scores comparable and placement in step with the counts.
package score

import (
	"math"

	"dhow.dev/services/scheduler/internal/affinity"
	"dhow.dev/services/scheduler/internal/snapshot"
	"dhow.dev/services/scheduler/internal/spread"
)

// Unit is one point of a score; a scorer gives 0 to 100 points. Totals are finer than Kubernetes' whole points, so that fewer nodes tie.
const Unit = 1000

const highest = 100 * Unit

// The scorers' places in Points.
const (
	LeastAllocated = iota
	BalancedAllocation
	NodeAffinity
	TaintToleration
	TopologySpread
	InterPodAffinity
	ImageLocality
	scorers
)

// Scorers are the names, those of Kubernetes' plugins, and weights.
var Scorers = [scorers]struct {
	Name   string
	Weight int64
}{
	LeastAllocated:     {"NodeResourcesFit", 1},
	BalancedAllocation: {"NodeResourcesBalancedAllocation", 1},
	NodeAffinity:       {"NodeAffinity", 2},
	TaintToleration:    {"TaintToleration", 3},
	TopologySpread:     {"PodTopologySpread", 2},
	InterPodAffinity:   {"InterPodAffinity", 2},
	ImageLocality:      {"ImageLocality", 1},
}

// Points are a node's scores in units, without weights.
type Points [scorers]int64

// Total returns the weighted sum.
func (p *Points) Total() int64 {
	var total int64
	for i, points := range p {
		total += points * Scorers[i].Weight
	}
	return total
}

// Ranking scores nodes for one class.
type Ranking struct {
	snapshot *snapshot.Snapshot
	class    *snapshot.Class
	spread   *spread.Soft
	affinity *affinity.Preferred

	// Only for classes that prefer something, and clusters with such taints.
	preferred    []int64
	maxPreferred int64
	disliked     []int64
	maxDisliked  int64
	// The range of spreading's costs when the ranking was made.
	lowest, scale int64
	// The same of affinity's weights.
	least, reach int64
	// images is how much of the pod's images the nodes have, scaled; nil where none has any.
	images []int64
}

// New makes a ranking for a class of which the feasible slots are known.
func New(s *snapshot.Snapshot, c *snapshot.Class, feasible []int32) *Ranking {
	r := &Ranking{snapshot: s, class: c, spread: spread.NewSoft(s, c, feasible), affinity: affinity.NewPreferred(s, c), images: locality(s, c)}
	for _, slot := range feasible {
		n := s.Node(int(slot))
		if points := preference(c, n); points > 0 {
			if r.preferred == nil {
				r.preferred = make([]int64, s.Slots())
			}
			r.preferred[slot] = points
			r.maxPreferred = max(r.maxPreferred, points)
		}
		if taints := dislikes(c, n); taints > 0 {
			if r.disliked == nil {
				r.disliked = make([]int64, s.Slots())
			}
			r.disliked[slot] = taints
			r.maxDisliked = max(r.maxDisliked, taints)
		}
	}
	if r.spread != nil {
		lowest, most := int64(math.MaxInt64), int64(0)
		for _, slot := range feasible {
			if !r.spread.Ignored(int(slot)) {
				cost := r.spread.Local(int(slot)) + r.spread.Shared(int(slot))
				lowest, most = min(lowest, cost), max(most, cost)
			}
		}
		// One step above the highest cost of now: even where all are equal, the next pod makes a difference.
		r.lowest, r.scale = lowest, most+r.spread.Step()
	}
	if r.affinity != nil {
		r.scaleAffinity(feasible)
	}
	return r
}

// scaleAffinity sets the scale of affinity's weights to their range, and at least to what one more pod changes.
func (r *Ranking) scaleAffinity(feasible []int32) {
	least, most := int64(math.MaxInt64), int64(math.MinInt64)
	for _, slot := range feasible {
		weight := r.affinity.Local(int(slot)) + r.affinity.Shared(int(slot))
		least, most = min(least, weight), max(most, weight)
	}
	if len(feasible) == 0 || most == least && r.affinity.Step() == 0 {
		// Nothing tells nodes apart. What others that are placed in the same plan would change is left for the next plan.
		r.affinity = nil
		return
	}
	r.least, r.reach = least, max(most-least, r.affinity.Step())
}

// preference is the weights of the preferred terms that the node meets.
func preference(c *snapshot.Class, n *snapshot.Node) int64 {
	var points int64
	for i := range c.Preferred {
		if c.Preferred[i].Matches(n) {
			points += c.Preferred[i].Weight
		}
	}
	return points
}

// dislikes is the number of PreferNoSchedule taints that the pod does not tolerate.
func dislikes(c *snapshot.Class, n *snapshot.Node) int64 {
	var taints int64
	for i := range n.Taints {
		if t := &n.Taints[i]; t.Effect == snapshot.PreferNoSchedule && !c.TolerateTaint(t) {
			taints++
		}
	}
	return taints
}

// Add takes in that a pod of some class was placed on a node. The snapshot has changed already.
func (r *Ranking) Add(slot int, placed *snapshot.Class) {
	r.spread.Add(r.snapshot, slot, placed)
	r.affinity.Add(slot, placed)
}

// Domains returns the topologies, as domains by slot, on which Shared depends.
func (r *Ranking) Domains() [][]int32 { return append(r.spread.Domains(), r.affinity.Domains()...) }

// Node returns the part of a node's total that changes only with pods on this node.
func (r *Ranking) Node(slot int) int64 {
	p := r.local(slot)
	return p.Total()
}

// Shared returns the part of a node's total that all nodes of the same domains have.
func (r *Ranking) Shared(slot int) int64 {
	spread, affinity := r.shared(slot)
	return spread*Scorers[TopologySpread].Weight + affinity*Scorers[InterPodAffinity].Weight
}

func (r *Ranking) shared(slot int) (spread, affinity int64) {
	if r.spread != nil && !r.spread.Ignored(slot) {
		spread = r.spreadPoints(r.spread.Shared(slot) - r.lowest)
	}
	if r.affinity != nil {
		affinity = highest * (r.affinity.Shared(slot) - r.least) / r.reach
	}
	return spread, affinity
}

// Points returns a node's scores.
func (r *Ranking) Points(slot int) Points {
	p := r.local(slot)
	spread, affinity := r.shared(slot)
	p[TopologySpread] += spread
	p[InterPodAffinity] += affinity
	return p
}

// spreadPoints scales a cost. It is negative for costs above 0; local adds the constant.
func (r *Ranking) spreadPoints(cost int64) int64 { return -highest * cost / r.scale }

func (r *Ranking) local(slot int) Points {
	var p Points
	p[LeastAllocated] = r.leastAllocated(slot)
	p[BalancedAllocation] = r.balancedAllocation(slot)
	if r.preferred != nil {
		p[NodeAffinity] = highest * r.preferred[slot] / r.maxPreferred
	}
	p[TaintToleration] = highest
	if r.disliked != nil {
		p[TaintToleration] -= highest * r.disliked[slot] / r.maxDisliked
	}
	if r.spread != nil && !r.spread.Ignored(slot) {
		p[TopologySpread] = highest + r.spreadPoints(r.spread.Local(slot))
	}
	if r.affinity != nil {
		p[InterPodAffinity] = highest * r.affinity.Local(slot) / r.reach
	}
	if r.images != nil {
		p[ImageLocality] = r.images[slot]
	}
	return p
}

// leastAllocated is the mean of the free fractions of cpu and memory after the pod.
func (r *Ranking) leastAllocated(slot int) int64 {
	var sum, resources int64
	for _, column := range [...]int{snapshot.CPU, snapshot.Memory} {
		allocatable := r.snapshot.Allocatable(column, slot)
		if allocatable == 0 {
			continue
		}
		resources++
		if free := allocatable - r.snapshot.Weighed(column, slot) - r.class.Weighed[column]; free > 0 {
			sum += scaled(free, allocatable)
		}
	}
	if resources == 0 {
		return 0
	}
	return sum / resources
}

// balancedAllocation is high where cpu and memory are used in equal proportion. Pods that request neither have no part in balance.
func (r *Ranking) balancedAllocation(slot int) int64 {
	if r.class.BestEffort {
		return 0
	}
	var used [2]int64
	for _, column := range [...]int{snapshot.CPU, snapshot.Memory} {
		allocatable := r.snapshot.Allocatable(column, slot)
		if allocatable == 0 {
			return highest
		}
		used[column] = min(scaled(r.snapshot.Requested(column, slot)+r.class.Request(int32(column)), allocatable), highest)
	}
	// The standard deviation of two numbers is half their distance.
	difference := used[0] - used[1]
	return highest - max(difference, -difference)/2
}

// scaled returns part/whole as a score without overflowing on bytes.
func scaled(part, whole int64) int64 {
	if part > math.MaxInt64/highest {
		return int64(float64(part) / float64(whole) * highest)
	}
	return part * highest / whole
}
