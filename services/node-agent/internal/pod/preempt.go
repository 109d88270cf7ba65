package pod

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/pkg/demand"
	"dhow.dev/services/node-agent/internal/cgroup"
	"dhow.dev/services/node-agent/internal/status"
)

// candidate is a pod that may have to go, and what it would leave.
type candidate struct {
	pod    *corev1.Pod
	leaves demand.Amounts
}

// mayGo says whether a critical pod may take the room of another: of what is not critical, and of what has a lower priority of its own.
func mayGo(critical, other *corev1.Pod) bool {
	if !IsCritical(other) {
		return true
	}
	a, b := critical.GetSpec(), other.GetSpec()
	return a.HasPriority() && b.HasPriority() && a.GetPriority() > b.GetPriority()
}

// victims returns the pods that have to go for a critical one, in Kubernetes' order: as few as can be of those to whom all was promised, then of those to whom something was, then of the
// rest; and of each class those whose going comes closest to what is missing. When all of them together would not be enough nobody goes, and end says why the critical pod cannot stay.
func victims(critical *corev1.Pod, others []*corev1.Pod, short []shortage) (gone []*corev1.Pod, end *status.End) {
	want := make([]gap, len(short))
	for i, s := range short {
		want[i] = gap{s.name, s.missing()}
	}
	classes := map[cgroup.QoS][]candidate{}
	for _, o := range others {
		if mayGo(critical, o) {
			class := cgroup.Class(o)
			classes[class] = append(classes[class], candidate{o, requested(o)})
		}
	}
	best, burst, sure := classes[cgroup.BestEffort], classes[cgroup.Burstable], classes[cgroup.Guaranteed]
	if open := without(want, best, burst, sure); len(open) > 0 {
		return nil, noRoom(open)
	}
	// Each class gives only what is missing when those that matter less have all gone.
	sure = closest(sure, without(want, best, burst))
	burst = closest(burst, without(want, best, sure))
	best = closest(best, without(want, burst, sure))
	for _, c := range slices.Concat(best, burst, sure) {
		gone = append(gone, c.pod)
	}
	return gone, nil
}

// noRoom is the end of a critical pod for which nobody can make room, in Kubernetes' words: what would be missing if all went.
func noRoom(open []gap) *status.End {
	var list strings.Builder
	for _, g := range open {
		fmt.Fprintf(&list, "(res: %s, q: %d), ", g.name, g.amount)
	}
	return &status.End{Reason: "UnexpectedAdmissionError", Message: fmt.Sprintf("Pod was rejected: Unexpected error while attempting to recover from admission failure: "+
		"preemption: error finding a set of pods to preempt: no set of running pods found to reclaim resources: [%s]", list.String())}
}

// gap is how much is missing of a resource.
type gap struct {
	name   string
	amount int64
}

// without is what is still missing when candidates have gone.
func without(want []gap, gone ...[]candidate) []gap {
	var left []gap
	for _, g := range want {
		for _, c := range slices.Concat(gone...) {
			g.amount -= c.leaves[g.name]
		}
		if g.amount > 0 {
			left = append(left, g)
		}
	}
	return left
}

// distance is how far a candidate's going is from closing the gaps: the sum of the squares of the shares that stay open.
func (c candidate) distance(want []gap) float64 {
	var sum float64
	for _, g := range want {
		if open := g.amount - c.leaves[g.name]; open > 0 {
			share := float64(open) / float64(g.amount)
			sum += share * share
		}
	}
	return sum
}

// closest takes candidates until nothing is missing: each time the one that comes closest, and of equals the smallest. There are enough.
func closest(from []candidate, want []gap) []candidate {
	from = slices.Clone(from)
	var taken []candidate
	for len(want) > 0 && len(from) > 0 {
		next := slices.MinFunc(from, func(a, b candidate) int {
			return cmp.Or(cmp.Compare(a.distance(want), b.distance(want)), cmp.Compare(a.leaves["memory"], b.leaves["memory"]), cmp.Compare(a.leaves["cpu"], b.leaves["cpu"]),
				cmp.Compare(a.pod.GetMetadata().GetUid(), b.pod.GetMetadata().GetUid()))
		})
		taken, want = append(taken, next), without(want, []candidate{next})
		from = slices.DeleteFunc(from, func(c candidate) bool { return c.pod == next.pod })
	}
	return taken
}
