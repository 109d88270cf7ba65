package explain

import (
	"cmp"
	"slices"
	"strings"

	schedulerv1 "dhow.dev/gen/go/dhow/scheduler/v1"
	"dhow.dev/pkg/object"
	"dhow.dev/services/scheduler/internal/filter"
	"dhow.dev/services/scheduler/internal/loop"
	"dhow.dev/services/scheduler/internal/plan"
	"dhow.dev/services/scheduler/internal/snapshot"
)

const (
	maxSuggestions = 8
	// maxTried bounds the work: each try is a plan over all nodes.
	maxTried = 64
	// maxAlike is how many nodes are offered for the same kind of change.
	maxAlike = 2
)

// How much each kind of change changes. What is done in place is smaller than what makes the pod anew; what loosens a rule is smaller than what drops it.
const (
	costUncordon      = 1.0
	costToleration    = 1.2
	costGate          = 1.2
	costNodeLabel     = 1.5
	costTaint         = 1.6
	costSpread        = 2.5
	costRequest       = 2.0 // plus the part that is taken away
	costPodAffinity   = 2.6
	costSelector      = 3.0
	costAffinity      = 3.2
	costHostPort      = 3.4
	costPerFurtherFix = 0.5
)

// change is one candidate.
type change struct {
	cost float64
	// alike groups changes that differ in the node only.
	alike string
	texts []string
	ops   []operation

	// Exactly one of these is set: the pod as it would be, or a node.
	pod      *podEdit
	node     *snapshot.Node
	nodeSlot int
}

func (c *change) add(cost float64, alike, text string, ops ...operation) {
	if len(c.texts) > 0 {
		cost += costPerFurtherFix
	}
	c.cost += cost
	c.alike += alike + ";"
	c.texts = append(c.texts, text)
	c.ops = append(c.ops, ops...)
}

// suggest returns changes that let the pod run, smallest first.
func suggest(v loop.View, found []verdict, filters []filter.Filter, seed uint64) []*schedulerv1.Suggestion {
	gated := len(v.Class.Gates) > 0
	var changes []*change
	for _, n := range found {
		if len(n.rejections) == 0 && !gated {
			// It fits: nothing has to change.
			return nil
		}
		if c := changePod(v, n, filters); c != nil {
			changes = append(changes, c)
		}
		if c := changeNode(v, n, filters); c != nil && !gated {
			changes = append(changes, c)
		}
	}
	slices.SortFunc(changes, func(a, b *change) int {
		if c := cmp.Compare(a.cost, b.cost); c != 0 {
			return c
		}
		if c := strings.Compare(a.text(), b.text()); c != 0 {
			return c
		}
		return a.nodeSlot - b.nodeSlot
	})
	var out []*schedulerv1.Suggestion
	alike, seen := map[string]int{}, map[string]bool{}
	tried := 0
	for _, c := range changes {
		patch := string(encode(c.ops))
		subject := patch
		limit := 1
		if c.node != nil {
			subject, limit = c.node.Name+patch, maxAlike
		}
		if seen[subject] || alike[c.alike] >= limit {
			continue
		}
		seen[subject] = true
		if tried++; tried > maxTried {
			break
		}
		s := confirm(v, c, seed)
		if s == nil {
			continue
		}
		alike[c.alike]++
		if out = append(out, s); len(out) == maxSuggestions {
			break
		}
	}
	return out
}

func (c *change) text() string { return strings.Join(c.texts, " and ") }

// confirm makes the change on a copy of the picture and lets the real plan decide. It returns nil when the pod would still be pending.
func confirm(v loop.View, c *change, seed uint64) *schedulerv1.Suggestion {
	changed, class := v.Snapshot.Fork(), v.Class
	key := object.KeyOf(v.Pod)
	out := schedulerv1.Suggestion_builder{Text: c.text(), JsonPatch: encode(c.ops)}.Build()
	if c.node != nil {
		changed.SetNode(c.nodeSlot, c.node)
		out.SetResource("nodes")
		out.SetName(c.node.Name)
	} else {
		var err error
		if class, err = changed.Derive(v.Class, c.pod.pod, v.Services); err != nil || len(class.Gates) > 0 {
			return nil
		}
		out.SetResource("pods")
		out.SetNamespace(key.Namespace)
		out.SetName(key.Name)
		out.SetRecreate(c.pod.recreate)
		if owner := object.ControllerOf(v.Pod); owner != nil && c.pod.recreate {
			out.SetText(out.GetText() + " (in the template of " + owner.GetKind() + " " + owner.GetName() + ", which made the pod)")
		}
	}
	decision := plan.Make(changed, []plan.Pod{{Key: key.String(), Class: class}}, seed)[0]
	if decision.Slot < 0 {
		return nil
	}
	out.SetNodeName(decision.Node)
	return out
}

// changePod looks for edits of the pod that answer all rejections of a node, or returns nil.
func changePod(v loop.View, n verdict, filters []filter.Filter) *change {
	c := &change{pod: newPodEdit(v.Pod), nodeSlot: n.slot}
	node := v.Snapshot.Node(n.slot)
	if len(v.Class.Gates) > 0 {
		c.pod.removeGates(c)
	}
	for _, rejection := range n.rejections {
		// A rule without a case has no answer in the pod. To tolerate a cordon is seldom what anybody wants: uncordoning is offered for the node.
		ok := false
		switch filters[rejection.Filter].Name {
		case "TaintToleration":
			ok = c.pod.tolerate(c, v.Class, node)
		case "NodeAffinity":
			ok = c.pod.loosenAffinity(c, v.Class, node)
		case "NodePorts":
			ok = c.pod.dropPorts(c, v.Snapshot.Ports(n.slot))
		case "NodeResourcesFit":
			ok = c.pod.lowerRequests(c, v, n.slot)
		case "PodTopologySpread":
			ok = c.pod.softenSpread(c, v, n.slot)
		case "InterPodAffinity":
			ok = c.pod.softenAffinity(c, v, n.slot)
		}
		if !ok {
			return nil
		}
	}
	return c
}
