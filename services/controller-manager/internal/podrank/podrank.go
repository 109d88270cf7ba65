// Package podrank says which of several pods is missed least.
package podrank

import (
	"cmp"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/services/controller-manager/internal/apitime"
	"dhow.dev/services/controller-manager/internal/podstate"
)

const costAnnotation = "controller.kubernetes.io/pod-deletion-cost"

// Victims returns the n pods that are missed least, in the order in which to delete them. Related are the pods of all replica sets with the same
// owner: among equals, a pod whose node has more of them goes first.
//
// The order is Kubernetes' (ActivePodsWithRanks): not bound, not running, not ready, low deletion cost, doubled up, ready for a shorter time,
// more restarts, younger. Times are compared by their order of magnitude, so that it is not always the youngest generation that goes.
func Victims(pods, related []*corev1.Pod, n int, now time.Time) []*corev1.Pod {
	if n >= len(pods) {
		return pods
	}
	return Sorted(pods, related, now)[:n]
}

// Sorted returns the pods in the order of Victims.
func Sorted(pods, related []*corev1.Pod, now time.Time) []*corev1.Pod {
	perNode := map[string]int{}
	for _, p := range related {
		if podstate.IsActive(p) {
			perNode[p.GetSpec().GetNodeName()]++
		}
	}
	sorted := slices.Clone(pods)
	slices.SortStableFunc(sorted, func(a, b *corev1.Pod) int {
		return cmp.Or(
			falseFirst(a.GetSpec().GetNodeName() != "", b.GetSpec().GetNodeName() != ""),
			cmp.Compare(phaseRank(a), phaseRank(b)),
			falseFirst(podstate.IsReady(a), podstate.IsReady(b)),
			cmp.Compare(cost(a), cost(b)),
			cmp.Compare(perNode[b.GetSpec().GetNodeName()], perNode[a.GetSpec().GetNodeName()]),
			readyTime(a, b, now),
			restarts(a, b),
			younger(apitime.Go(a.GetMetadata().GetCreationTimestamp()), apitime.Go(b.GetMetadata().GetCreationTimestamp()), now),
			// Equal in everything: an arbitrary order, the same at each look.
			strings.Compare(a.GetMetadata().GetUid(), b.GetMetadata().GetUid()),
		)
	})
	return sorted
}

func falseFirst(a, b bool) int {
	switch {
	case a == b:
		return 0
	case !a:
		return -1
	}
	return 1
}

func phaseRank(p *corev1.Pod) int {
	switch p.GetStatus().GetPhase() {
	case podstate.Unknown:
		return 1
	case podstate.Running:
		return 2
	}
	return 0
}

// cost is what deleting the pod costs in its owner's eyes; what is not a number is 0.
func cost(p *corev1.Pod) int32 {
	// A leading plus or zero is refused by validation in Kubernetes and counts as nothing.
	text := p.GetMetadata().GetAnnotations()[costAnnotation]
	if text == "" || text[0] == '+' || (len(text) > 1 && text[0] == '0') {
		return 0
	}
	v, err := strconv.ParseInt(text, 10, 32)
	if err != nil {
		return 0
	}
	return int32(v)
}

// readyTime puts the pod first that has been ready for the shorter time; both being ready or both not is known before.
func readyTime(a, b *corev1.Pod, now time.Time) int {
	if !podstate.IsReady(a) || !podstate.IsReady(b) {
		return 0
	}
	return younger(podstate.ReadySince(a), podstate.ReadySince(b), now)
}

// younger puts the later time first, an unknown one before any; times of one order of magnitude of age are equal.
func younger(a, b, now time.Time) int {
	if a.IsZero() || b.IsZero() {
		return falseFirst(!a.IsZero(), !b.IsZero())
	}
	return cmp.Compare(magnitude(now.Sub(a)), magnitude(now.Sub(b)))
}

// magnitude is the binary logarithm of an age in nanoseconds, whole.
func magnitude(age time.Duration) int64 {
	if age <= 0 {
		return -1
	}
	return int64(math.Log2(float64(age)))
}

func restarts(a, b *corev1.Pod) int {
	regularA, sidecarA := podstate.Restarts(a)
	regularB, sidecarB := podstate.Restarts(b)
	return cmp.Or(cmp.Compare(regularB, regularA), cmp.Compare(sidecarB, sidecarA))
}
