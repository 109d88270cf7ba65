// Package plan decides where pending pods go. Make is a pure function: the same snapshot, pods and seed give the same decisions, and it changes
// neither snapshot nor pods.
//
// Pods of one class are filtered and ranked over all nodes once. Their candidates then wait in heaps, one for each combination of topology
// domains, and a placement rescores the node it touched, and no other.
package plan

import (
	"dhow.dev/services/scheduler/internal/filter"
	"dhow.dev/services/scheduler/internal/snapshot"
)

// Pod is a pending pod.
type Pod struct {
	// Key names the pod, and holds its host ports.
	Key   string
	Class *snapshot.Class
	// Priority matters beside pods that hold a place.
	Priority int32
	// Nominated is the node that is looked at first; empty for most.
	Nominated string
}

// Reserved is a pod that holds a place without having it: others leave the node for it. What is less or equally important goes around it.
type Reserved struct {
	Pod
	Slot int
}

// Decision is what became of one pod.
type Decision struct {
	// Slot is the node's, or -1.
	Slot int
	// Node is the node's name, empty when no node was found.
	Node string
	// Volumes are what is to be bound or made for the pod's claims before the pod is bound.
	Volumes []snapshot.VolumeBinding
	// Failure says why no node was found.
	Failure *Failure
}

// Make decides for pods in their order: the first takes what it needs before the second is looked at. It forks the snapshot.
func Make(s *snapshot.Snapshot, pods []Pod, seed uint64) []Decision {
	return MakeAround(s, pods, nil, seed)
}

// MakeAround is Make beside places that are held, the most important first. None of the pods holds one.
func MakeAround(s *snapshot.Snapshot, pods []Pod, reserved []Reserved, seed uint64) []Decision {
	p := &planner{snapshot: s.Fork(), filters: filter.All(), seed: seed, classes: map[*snapshot.Class]*candidates{}}
	decisions := make([]Decision, len(pods))
	waiting := make([]int, 0, len(pods))
	for i := range pods {
		for len(reserved) > 0 && reserved[0].Priority >= pods[i].Priority {
			p.put(reserved[0].Slot, reserved[0].Pod)
			reserved = reserved[1:]
		}
		if d := p.place(pods[i]); d.Slot >= 0 {
			decisions[i] = d
		} else if slot := p.nominated(pods[i]); slot >= 0 {
			// It goes on waiting for others to leave, and what they free is not for those behind it.
			decisions[i] = Decision{Slot: -1, Failure: p.classes[pods[i].Class].diagnose()}
			p.put(slot, pods[i])
		} else {
			waiting = append(waiting, i)
		}
	}
	// Spreading can let a pod in after others were placed: the emptiest domain has filled up. So can affinity. Those pods are tried until nothing moves.
	for progress := true; progress; {
		progress = false
		left := waiting[:0]
		for _, i := range waiting {
			d := Decision{Slot: -1}
			if c := p.classes[pods[i].Class]; pods[i].Class.Social() && c.cursor < len(p.journal) {
				d = p.place(pods[i])
			}
			if d.Slot < 0 {
				left = append(left, i)
				continue
			}
			decisions[i] = d
			progress = true
		}
		waiting = left
	}
	for _, i := range waiting {
		decisions[i] = Decision{Slot: -1, Failure: p.classes[pods[i].Class].diagnose()}
	}
	return decisions
}

type planner struct {
	snapshot *snapshot.Snapshot
	filters  []filter.Filter
	seed     uint64
	classes  map[*snapshot.Class]*candidates
	// journal is every placement. Classes read it when they are next asked, so that a class of one pod costs nothing to those after it.
	journal []placement
	// storage counts the placements that chose volumes.
	storage int
	buffer  []string
}

type placement struct {
	slot  int
	class *snapshot.Class
}

func (p *planner) place(pod Pod) Decision {
	c := p.classes[pod.Class]
	switch {
	case c == nil || c.context.Volumes.Undecided() && c.storage != p.storage:
		// Volumes that were there are taken: what was found out of them is to be found out again.
		c = p.newCandidates(pod.Class)
		p.classes[pod.Class] = c
	default:
		c.catchUp()
	}
	slot := c.allowed(p.nominated(pod))
	if slot < 0 {
		slot = c.best()
	}
	if slot < 0 {
		return Decision{Slot: -1}
	}
	d := Decision{Slot: slot, Node: p.snapshot.Node(slot).Name}
	d.Volumes, _ = c.context.Volumes.Find(slot, nil)
	if len(d.Volumes) > 0 {
		p.snapshot.Reserve(d.Volumes, d.Node)
		p.storage++
	}
	p.put(slot, pod)
	return d
}

// nominated returns the slot of the node that the pod was nominated to, or -1.
func (p *planner) nominated(pod Pod) int {
	if pod.Nominated == "" {
		return -1
	}
	return p.snapshot.Find(pod.Nominated)
}

func (p *planner) put(slot int, pod Pod) {
	p.snapshot.AddPod(slot, pod.Class, pod.Key)
	p.snapshot.Count(slot, pod.Class, 1)
	p.journal = append(p.journal, placement{slot: slot, class: pod.Class})
}
