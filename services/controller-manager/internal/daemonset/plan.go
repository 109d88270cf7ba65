package daemonset

import (
	"cmp"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	appsv1 "dhow.dev/gen/go/dhow/apps/v1"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/object"
	"dhow.dev/services/controller-manager/internal/apitime"
	"dhow.dev/services/controller-manager/internal/history"
	"dhow.dev/services/controller-manager/internal/podstate"
)

// This file decides on which nodes pods are made and which are deleted. It writes nothing.

const rollingUpdate = "RollingUpdate"

// situation is what a decision rests on.
type situation struct {
	ds    *appsv1.DaemonSet
	nodes map[string]*corev1.Node
	// pods are the set's, by the node that they are on or meant for. Those that have ended and are being deleted are left out: their node is free.
	pods map[string][]*corev1.Pod
	// hashes are those of the newest template.
	hashes map[string]bool
	// backoff says how long a failed pod of a node is let be, so that another does not fail at once.
	backoff func(node string) time.Duration
	now     time.Time
}

// plan is what a turn does.
type plan struct {
	// create are nodes that get a pod.
	create []string
	remove []*corev1.Pod
	// failed and succeeded are those of remove that have ended though they should run.
	failed, succeeded []*corev1.Pod
	// again is when a failed pod's time is over; 0: there is none.
	again time.Duration
}

func (p *plan) empty() bool { return len(p.create)+len(p.remove) == 0 }

func (s *situation) updated(p *corev1.Pod) bool {
	return s.hashes[p.GetMetadata().GetLabels()[history.PodLabel]]
}

func (s *situation) available(p *corev1.Pod) bool {
	ok, _ := podstate.Available(p, s.ds.GetSpec().GetMinReadySeconds(), s.now)
	return ok
}

// names returns the nodes that there are or that have pods, in order.
func (s *situation) names() []string {
	all := map[string]bool{}
	for n := range s.nodes {
		all[n] = true
	}
	for n := range s.pods {
		all[n] = true
	}
	return slices.Sorted(maps.Keys(all))
}

// should says whether a node should have a pod, and whether one that is there may stay.
func (s *situation) should(node string) (should, mayStay bool) {
	n, ok := s.nodes[node]
	if !ok {
		return false, false
	}
	return eligible(s.ds, n)
}

// bounds returns how many nodes an update may touch: with an old pod beside the new one, or without any. Percentages are of the nodes that should have a
// pod, rounded up.
func (s *situation) bounds() (surge, unavailable int) {
	strategy := s.ds.GetSpec().GetUpdateStrategy()
	if strategy.GetType() != rollingUpdate {
		return 0, 0
	}
	desired := 0
	for n := range s.nodes {
		if should, _ := s.should(n); should {
			desired++
		}
	}
	surge, unavailable = share(strategy.GetRollingUpdate().GetMaxSurge(), desired), share(strategy.GetRollingUpdate().GetMaxUnavailable(), desired)
	if surge == 0 && unavailable == 0 {
		unavailable = 1
	}
	return surge, unavailable
}

// share returns a number, or the part of the total that a percentage is, rounded up.
func share(v *metav1.IntOrString, total int) int {
	if v.GetType() == 0 {
		return int(v.GetIntVal())
	}
	text, ok := strings.CutSuffix(v.GetStrVal(), "%")
	percent, err := strconv.Atoi(text)
	if !ok || err != nil {
		return 0
	}
	return int(math.Ceil(float64(percent) * float64(total) / 100))
}

// place decides where pods are missing or too many: one per eligible node, two while an update surges.
func (s *situation) place() plan {
	var p plan
	surge, _ := s.bounds()
	for _, node := range s.names() {
		should, mayStay := s.should(node)
		pods := s.pods[node]
		switch {
		case should && len(pods) == 0:
			p.create = append(p.create, node)
		case mayStay:
			s.prune(&p, node, pods, surge > 0)
		case s.nodes[node] == nil:
			// The node is gone: pods that were on it are the garbage collection's, those that never came to it are ours.
			for _, pod := range pods {
				if pod.GetSpec().GetNodeName() == "" && !object.IsDeleted(pod) {
					p.remove = append(p.remove, pod)
				}
			}
		default:
			for _, pod := range pods {
				if !object.IsDeleted(pod) {
					p.remove = append(p.remove, pod)
				}
			}
		}
	}
	return p
}

// prune removes from one node pods that have ended and those that are too many.
func (s *situation) prune(p *plan, node string, pods []*corev1.Pod, surging bool) {
	var running []*corev1.Pod
	for _, pod := range pods {
		switch {
		case object.IsDeleted(pod):
		case pod.GetStatus().GetPhase() == podstate.Failed:
			if wait := s.backoff(node); wait > 0 {
				if p.again == 0 || wait < p.again {
					p.again = wait
				}
				continue
			}
			p.failed = append(p.failed, pod)
			p.remove = append(p.remove, pod)
		case pod.GetStatus().GetPhase() == podstate.Succeeded:
			p.succeeded = append(p.succeeded, pod)
			p.remove = append(p.remove, pod)
		default:
			running = append(running, pod)
		}
	}
	if len(running) < 2 {
		return
	}
	sortPods(running)
	if !surging {
		p.remove = append(p.remove, running[1:]...)
		return
	}
	// The oldest of each template stays, until the new one is available or the old one is of no use.
	var fresh, old *corev1.Pod
	for _, pod := range running {
		kept := &old
		if s.updated(pod) {
			kept = &fresh
		}
		if *kept == nil {
			*kept = pod
			continue
		}
		p.remove = append(p.remove, pod)
	}
	if fresh != nil && old != nil && (!podstate.IsReady(old) || s.available(fresh)) {
		p.remove = append(p.remove, old)
	}
}

// sortPods puts bound pods before others, then the older first.
func sortPods(pods []*corev1.Pod) {
	slices.SortFunc(pods, func(a, b *corev1.Pod) int {
		if x, y := a.GetSpec().GetNodeName() != "", b.GetSpec().GetNodeName() != ""; x != y {
			if x {
				return -1
			}
			return 1
		}
		return cmp.Or(
			apitime.Go(a.GetMetadata().GetCreationTimestamp()).Compare(apitime.Go(b.GetMetadata().GetCreationTimestamp())),
			cmp.Compare(a.GetMetadata().GetName(), b.GetMetadata().GetName()),
		)
	})
}

// pair returns the pod of the newest template and the one of an older template on a node, of those that are not being deleted. It is not ok when there are
// more: place takes them away first.
func (s *situation) pair(node string) (fresh, old *corev1.Pod, ok bool) {
	for _, pod := range s.pods[node] {
		if object.IsDeleted(pod) {
			continue
		}
		kept := &old
		if s.updated(pod) {
			kept = &fresh
		}
		if *kept != nil {
			return nil, nil, false
		}
		*kept = pod
	}
	return fresh, old, true
}

// roll decides on the next step of an update. It is asked only when place finds nothing to do.
func (s *situation) roll() plan {
	if s.ds.GetSpec().GetUpdateStrategy().GetType() != rollingUpdate {
		return plan{}
	}
	if surge, unavailable := s.bounds(); surge > 0 {
		return s.surge(surge)
	} else {
		return s.replace(unavailable)
	}
}

// replace deletes old pods: those that are not available anyway, and as many others as may be missing. Others are made when they are gone.
func (s *situation) replace(most int) plan {
	var p plan
	var candidates []*corev1.Pod
	missing := 0
	for _, node := range s.names() {
		should, _ := s.should(node)
		if !should && len(s.pods[node]) == 0 {
			continue
		}
		fresh, old, ok := s.pair(node)
		switch {
		case !ok, (fresh == nil) == (old == nil):
			missing++
		case fresh != nil:
			if !s.available(fresh) {
				missing++
			}
		case !s.available(old):
			p.remove = append(p.remove, old)
			missing++
		default:
			candidates = append(candidates, old)
		}
	}
	p.remove = append(p.remove, candidates[:min(len(candidates), max(0, most-missing))]...)
	return p
}

// surge makes new pods beside old ones, on as many nodes as allowed and wherever the old one is not available, and deletes old ones when the new one beside
// them is available. Old pods on nodes that should have none any more stay until enough others are available.
func (s *situation) surge(most int) plan {
	var p plan
	var candidates []string
	var leaving []*corev1.Pod
	surging, availableNodes, desired := 0, 0, 0
	for _, node := range s.names() {
		should, _ := s.should(node)
		if should {
			desired++
		}
		fresh, old, ok := s.pair(node)
		if !ok {
			surging++
			continue
		}
		if serving := cmp.Or(old, fresh); serving != nil && s.available(serving) {
			availableNodes++
		}
		switch {
		case old == nil:
		case fresh == nil && !s.available(old):
			if should {
				p.create = append(p.create, node)
			} else {
				p.remove = append(p.remove, old)
			}
		case fresh == nil && !should:
			leaving = append(leaving, old)
		case fresh == nil:
			candidates = append(candidates, node)
		case s.available(fresh):
			p.remove = append(p.remove, old)
		default:
			surging++
		}
	}
	p.remove = append(p.remove, leaving[:min(len(leaving), max(0, availableNodes-desired))]...)
	p.create = append(p.create, candidates[:min(len(candidates), max(0, most-surging))]...)
	return p
}

// status returns the status of the set, and when it will change by itself because a pod then is ready for long enough (0: it will not).
func (s *situation) status(collisions int32) (*appsv1.DaemonSetStatus, time.Duration) {
	var desired, current, misscheduled, ready, availableNodes, updated int32
	var next time.Duration
	for _, node := range s.names() {
		pods := slices.Clone(s.pods[node])
		should, _ := s.should(node)
		switch {
		case !should && len(pods) > 0 && s.nodes[node] != nil:
			misscheduled++
			continue
		case !should:
			continue
		}
		desired++
		if len(pods) == 0 {
			continue
		}
		current++
		sortPods(pods)
		for _, p := range pods {
			if _, wait := podstate.Available(p, s.ds.GetSpec().GetMinReadySeconds(), s.now); wait > 0 && (next == 0 || wait < next) {
				next = wait
			}
		}
		if podstate.IsReady(pods[0]) {
			ready++
			if s.available(pods[0]) {
				availableNodes++
			}
		}
		if s.updated(pods[0]) {
			updated++
		}
	}
	status := &appsv1.DaemonSetStatus{}
	status.SetConditions(s.ds.GetStatus().GetConditions())
	status.SetDesiredNumberScheduled(desired)
	status.SetCurrentNumberScheduled(current)
	status.SetNumberMisscheduled(misscheduled)
	status.SetNumberReady(ready)
	status.SetUpdatedNumberScheduled(updated)
	status.SetNumberAvailable(availableNodes)
	status.SetNumberUnavailable(desired - availableNodes)
	status.SetObservedGeneration(s.ds.GetMetadata().GetGeneration())
	if collisions > 0 || s.ds.GetStatus().HasCollisionCount() {
		status.SetCollisionCount(collisions)
	}
	return status, next
}
