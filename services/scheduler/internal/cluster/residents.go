package cluster

import (
	"cmp"
	"math"
	"slices"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	policyv1 "dhow.dev/gen/go/dhow/policy/v1"
	"dhow.dev/pkg/object"
	"dhow.dev/services/scheduler/internal/plan"
	"dhow.dev/services/scheduler/internal/preemption"
	"dhow.dev/services/scheduler/internal/snapshot"
)

// nominate takes in the nomination that a pod's status has. One that is not written yet stays, one that somebody took back is gone.
func (c *Cluster) nominate(p *Pod, o *corev1.Pod, known bool) {
	now := o.GetStatus().GetNominatedNodeName()
	switch {
	case o.GetSpec().GetNodeName() != "":
		now = ""
	case now == "" && known && p.Object.GetStatus().GetNominatedNodeName() == "":
		now = p.Nominated
	}
	c.setNominated(p, now)
}

func (c *Cluster) setNominated(p *Pod, node string) {
	p.Nominated = node
	if node == "" {
		delete(c.nominated, p.Key)
	} else {
		c.nominated[p.Key] = p
	}
}

// Nominate remembers that others leave a node for a pod; empty takes it back. False: the pod is gone or placed.
func (c *Cluster) Nominate(key object.Key, uid, node string) bool {
	p, known := c.pods[key]
	if !known || p.UID != uid || p.NodeName != "" {
		return false
	}
	c.setNominated(p, node)
	return true
}

// Reserved returns the places of nominated pods for a plan, but for those of the pods that it decides about.
func (c *Cluster) Reserved(deciding map[object.Key]bool) []plan.Reserved {
	var out []plan.Reserved
	for key, p := range c.nominated {
		if slot, known := c.slots[p.Nominated]; known && !deciding[key] && p.NodeName == "" && p.counted {
			out = append(out, plan.Reserved{Pod: plan.Pod{Key: p.holder, Class: p.Class(), Priority: p.Priority()}, Slot: slot})
		}
	}
	slices.SortFunc(out, func(a, b plan.Reserved) int {
		return cmp.Or(cmp.Compare(b.Priority, a.Priority), cmp.Compare(a.Key, b.Key))
	})
	return out
}

// NominatedTo returns the pods of lower priority that were nominated to a node.
func (c *Cluster) NominatedTo(node string, below int32) []*Pod {
	var out []*Pod
	for _, p := range c.nominated {
		if p.Nominated == node && p.Priority() < below {
			out = append(out, p)
		}
	}
	return out
}

// Lowest returns the lowest priority of pods with a node.
func (c *Cluster) Lowest() int32 {
	lowest := int32(math.MaxInt32)
	for priority := range c.priorities {
		lowest = min(lowest, priority)
	}
	return lowest
}

// Awaits says that the pod waits for a less important one to leave the node that it was nominated to.
func (c *Cluster) Awaits(p *Pod) bool {
	if p.Nominated == "" {
		return false
	}
	for _, other := range c.byNode[p.Nominated] {
		if (other.Leaving || other.Terminating()) && other.Priority() < p.Priority() {
			return true
		}
	}
	return false
}

// Residents returns the pods below a priority, by slot, and how many disruptions each of the budgets allows.
func (c *Cluster) Residents(below int32, budgets []*policyv1.PodDisruptionBudget) (map[int][]preemption.Resident, []int32) {
	byNamespace := map[string][]int{}
	selectors := make([]snapshot.Selector, len(budgets))
	allowed := make([]int32, len(budgets))
	for i, b := range budgets {
		namespace := b.GetMetadata().GetNamespace()
		byNamespace[namespace] = append(byNamespace[namespace], i)
		selectors[i] = snapshot.LabelSelector(namespace, b.GetSpec().GetSelector())
		allowed[i] = b.GetStatus().GetDisruptionsAllowed()
	}
	out := map[int][]preemption.Resident{}
	for node, pods := range c.byNode {
		slot, known := c.slots[node]
		if !known {
			continue
		}
		for _, p := range pods {
			if p.Priority() >= below {
				continue
			}
			r := preemption.Resident{
				Key: p.holder, UID: p.UID, Class: p.Class(), Priority: p.Priority(), Started: math.MaxInt64, Terminating: p.Leaving || p.Terminating(), Counted: p.counted,
			}
			// A pod that was not started yet is younger than all others.
			if p.Object.GetStatus().HasStartTime() {
				r.Started = p.Object.GetStatus().GetStartTime().GetSeconds()
			}
			for _, i := range byNamespace[p.Key.Namespace] {
				// One that the API server has counted as disrupted already takes nothing more.
				_, disrupted := budgets[i].GetStatus().GetDisruptedPods()[p.Key.Name]
				if !disrupted && len(selectors[i].Labels) > 0 && selectors[i].Selects(p.Class(), nil) {
					r.Budgets = append(r.Budgets, i)
				}
			}
			out[slot] = append(out[slot], r)
		}
		// The order of a map must not decide.
		slices.SortFunc(out[slot], func(a, b preemption.Resident) int { return cmp.Compare(a.Key, b.Key) })
	}
	return out, allowed
}
