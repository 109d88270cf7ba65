// Package explain says why a pod is on its node, or what keeps it from running and which smallest changes would let it.
//
// It asks the scheduler's own rules on the scheduler's own picture. No suggestion is offered that the real plan did not confirm on a changed copy.
package explain

import (
	"cmp"
	"fmt"
	"slices"
	"sort"
	"strings"

	schedulerv1 "dhow.dev/gen/go/dhow/scheduler/v1"
	"dhow.dev/pkg/object"
	"dhow.dev/services/scheduler/internal/filter"
	"dhow.dev/services/scheduler/internal/loop"
	"dhow.dev/services/scheduler/internal/plan"
	"dhow.dev/services/scheduler/internal/score"
)

// maxScores bounds how many nodes' scores an answer has.
const maxScores = 20

// Answer explains a pod. The view's pod must not be nil.
func Answer(v loop.View, seed uint64) *schedulerv1.ExplainResponse {
	out := schedulerv1.ExplainResponse_builder{NodeName: v.NodeName, Revision: v.Revision}.Build()
	name := object.KeyOf(v.Pod).String()
	phase := v.Pod.GetStatus().GetPhase()
	switch {
	case v.Class == nil || phase == "Succeeded" || phase == "Failed":
		out.SetState(schedulerv1.PodState_POD_STATE_FINISHED)
		out.SetSummary(fmt.Sprintf("%s is finished: %s", name, phase))
	case v.NodeName != "":
		out.SetState(schedulerv1.PodState_POD_STATE_SCHEDULED)
		if phase == "Running" {
			out.SetState(schedulerv1.PodState_POD_STATE_RUNNING)
		}
		placed(out, v, name)
	default:
		out.SetState(schedulerv1.PodState_POD_STATE_PENDING)
		pending(out, v, name, seed)
	}
	return out
}

// pending collects the reasons of all nodes and looks for changes.
func pending(out *schedulerv1.ExplainResponse, v loop.View, name string, seed uint64) {
	switch {
	case object.IsDeleted(v.Pod):
		out.SetSummary(name + " has no node and is being deleted")
		return
	case !v.Mine:
		out.SetSummary(fmt.Sprintf("%s waits for the scheduler %q, which is not this one", name, v.Pod.GetSpec().GetSchedulerName()))
		return
	}
	filters := filter.All()
	context := filter.NewContext(v.Snapshot, v.Class)
	found := survey(context, filters)
	out.SetRejections(group(v, found, filters))
	out.SetSuggestions(suggest(v, found, filters, seed))
	switch {
	case len(v.Class.Gates) > 0:
		out.SetSummary(fmt.Sprintf("%s is not scheduled while it has scheduling gates: %s", name, strings.Join(v.Class.Gates, ", ")))
	case v.Snapshot.Len() == 0:
		out.SetSummary(name + " is pending: no nodes available to schedule pods")
	default:
		failure := plan.Diagnose(context, filters)
		fitting := 0
		for _, n := range found {
			if len(n.rejections) == 0 {
				fitting++
			}
		}
		if fitting > 0 {
			out.SetSummary(fmt.Sprintf("%s fits on %d of %d nodes and is about to be placed", name, fitting, failure.Nodes))
			return
		}
		out.SetSummary(name + " is pending: " + failure.Message())
		if v.Nominated != "" {
			out.SetSummary(out.GetSummary() + " Less important pods are leaving " + v.Nominated + " for it.")
		}
	}
}

// verdict is what the rules say of one node.
type verdict struct {
	slot       int
	rejections []filter.Rejection
}

// survey asks every rule about every node.
func survey(context *filter.Context, filters []filter.Filter) []verdict {
	var out []verdict
	for slot := range context.Snapshot.Slots() {
		if context.Snapshot.Node(slot) != nil {
			out = append(out, verdict{slot: slot, rejections: filter.Every(filters, context, slot)})
		}
	}
	return out
}

// group turns verdicts around: reasons and the nodes that gave them, most nodes first.
func group(v loop.View, found []verdict, filters []filter.Filter) []*schedulerv1.Rejection {
	type reason struct {
		filter int
		text   string
	}
	nodes := map[reason][]string{}
	for _, n := range found {
		for _, rejection := range n.rejections {
			for _, text := range rejection.Reasons {
				r := reason{rejection.Filter, text}
				nodes[r] = append(nodes[r], v.Snapshot.Node(n.slot).Name)
			}
		}
	}
	out := make([]*schedulerv1.Rejection, 0, len(nodes))
	for r, names := range nodes {
		slices.Sort(names)
		out = append(out, schedulerv1.Rejection_builder{Filter: filters[r.filter].Name, Reason: r.text, Nodes: names}.Build())
	}
	slices.SortFunc(out, func(a, b *schedulerv1.Rejection) int {
		if c := cmp.Compare(len(b.GetNodes()), len(a.GetNodes())); c != 0 {
			return c
		}
		if c := strings.Compare(a.GetFilter(), b.GetFilter()); c != 0 {
			return c
		}
		return strings.Compare(a.GetReason(), b.GetReason())
	})
	return out
}

// placed scores all nodes as they are now, without the pod.
func placed(out *schedulerv1.ExplainResponse, v loop.View, name string) {
	without := v.Snapshot.Fork()
	own := without.Find(v.NodeName)
	if own < 0 {
		out.SetSummary(fmt.Sprintf("%s is on %s, which is not known any more", name, v.NodeName))
		return
	}
	without.RemovePod(own, v.Class, name)
	if !object.IsDeleted(v.Pod) {
		without.Count(own, v.Class, -1)
	}
	context, filters := filter.NewContext(without, v.Class), filter.All()
	var feasible []int32
	for slot := range without.Slots() {
		if without.Node(slot) == nil {
			continue
		}
		if _, rejected := filter.First(filters, context, slot, nil); !rejected {
			feasible = append(feasible, int32(slot))
		}
	}
	ranking := score.New(without, v.Class, feasible)
	points := map[int32]score.Points{}
	for _, slot := range feasible {
		points[slot] = ranking.Points(int(slot))
	}
	sort.Slice(feasible, func(i, j int) bool {
		a, b := points[feasible[i]], points[feasible[j]]
		if a.Total() != b.Total() {
			return a.Total() > b.Total()
		}
		return without.Node(int(feasible[i])).Name < without.Node(int(feasible[j])).Name
	})
	var scores []*schedulerv1.Score
	rank := slices.Index(feasible, int32(own))
	for i, slot := range feasible {
		if i >= maxScores && i != rank {
			continue
		}
		p := points[slot]
		byScorer := map[string]int64{}
		for k, s := range score.Scorers {
			byScorer[s.Name] = p[k] / score.Unit
		}
		scores = append(scores, schedulerv1.Score_builder{NodeName: without.Node(int(slot)).Name, ByScorer: byScorer, Total: p.Total() / score.Unit}.Build())
	}
	out.SetScores(scores)
	const now = " (computed now, as if the pod were to be placed again)"
	switch {
	case rank < 0:
		rejection, _ := filter.First(filters, context, own, nil)
		out.SetSummary(fmt.Sprintf("%s is on %s, where it would not be placed again: %s", name, v.NodeName, strings.Join(rejection.Reasons, ", ")))
	case rank == 0:
		out.SetSummary(fmt.Sprintf("%s is on %s, which scores highest of the %d nodes that can run it%s", name, v.NodeName, len(feasible), now))
	default:
		out.SetSummary(fmt.Sprintf("%s is on %s, which is number %d of the %d nodes that can run it%s", name, v.NodeName, rank+1, len(feasible), now))
	}
}
