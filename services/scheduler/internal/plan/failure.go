package plan

import (
	"fmt"
	"slices"
	"strings"

	"dhow.dev/services/scheduler/internal/filter"
)

// Failure is why no node took a pod: each node's first rejection.
type Failure struct {
	Nodes int
	// Reasons counts nodes by reason; a node of several reasons of one rule counts under each.
	Reasons map[string]int
	// Helps are the events that may change a verdict.
	Helps filter.Event
	// Whole is what keeps the pod from every node, beside which nothing else matters.
	Whole string
	// Helpless are the nodes that could not take the pod if others left them.
	Helpless int
}

// diagnose asks why the class has no node now. All pods of the class that fail in a plan share the answer, which is that at the plan's end.
func (c *candidates) diagnose() *Failure {
	if c.failure != nil && c.failed == len(c.planner.journal) {
		return c.failure
	}
	if p := c.planner; c.context.Volumes.Undecided() && c.storage != p.storage {
		c.context = filter.NewContext(p.snapshot, c.context.Class)
	} else {
		c.catchUp()
	}
	c.failure, c.failed = Diagnose(c.context, c.planner.filters), len(c.planner.journal)
	return c.failure
}

// Diagnose asks all nodes.
func Diagnose(context *filter.Context, filters []filter.Filter) *Failure {
	// A new node may help any pod.
	f := &Failure{Reasons: map[string]int{}, Helps: filter.NodeAdded}
	f.Whole = context.Volumes.Broken()
	var buffer []string
	for slot := range context.Snapshot.Slots() {
		if context.Snapshot.Node(slot) == nil {
			continue
		}
		f.Nodes++
		if f.Whole != "" {
			f.Helpless, f.Reasons[f.Whole], f.Helps = f.Nodes, f.Nodes, filter.NodeAdded|filter.StorageChanged
			continue
		}
		rejection, rejected := filter.First(filters, context, slot, buffer)
		if !rejected {
			continue
		}
		f.Helps |= filters[rejection.Filter].Helps
		if !filter.Preemptible(filters, context, slot) {
			f.Helpless++
		}
		for _, reason := range rejection.Reasons {
			f.Reasons[reason]++
		}
		buffer = rejection.Reasons
	}
	return f
}

// Message says it in the words of Kubernetes' scheduler: `0/3 nodes are available: 1 Insufficient cpu, 2 node(s) were unschedulable.`
func (f *Failure) Message() string {
	if f.Nodes == 0 {
		return "no nodes available to schedule pods"
	}
	if f.Whole != "" {
		return fmt.Sprintf("0/%d nodes are available: %s.", f.Nodes, f.Whole)
	}
	return Message(f.Nodes, f.Reasons)
}

// Message says that no node is available, and why.
func Message(nodes int, counted map[string]int) string {
	reasons := make([]string, 0, len(counted))
	for reason, nodes := range counted {
		reasons = append(reasons, fmt.Sprintf("%d %s", nodes, reason))
	}
	slices.Sort(reasons)
	message := fmt.Sprintf("0/%d nodes are available", nodes)
	if len(reasons) > 0 {
		message += ": " + strings.Join(reasons, ", ")
	}
	return message + "."
}
