package statefulset

import (
	"cmp"
	"slices"
	"time"

	appsv1 "dhow.dev/gen/go/dhow/apps/v1"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/pkg/object"
	"dhow.dev/services/controller-manager/internal/podstate"
)

// This file decides what a turn does with a set's pods. It writes nothing.

const (
	parallelManagement = "Parallel"
	onDelete           = "OnDelete"
)

// revision is a template under a name.
type revision struct {
	name     string
	template *corev1.PodTemplateSpec
}

// situation is what a decision rests on.
type situation struct {
	set *appsv1.StatefulSet
	// pods are all of the set.
	pods []*corev1.Pod
	// current is the revision that the set was at when the update began, update the one that it goes to.
	current, update revision
	// claims returns the volume claims that exist of those that a pod of an ordinal should have.
	claims func(ordinal int) []*corev1.PersistentVolumeClaim
	now    time.Time
}

// plan is what a turn does, in this order.
type plan struct {
	// missing are pods whose claims are looked after: they wait for something.
	missing []*corev1.Pod
	create  []*corev1.Pod
	// identify are pods whose labels do not say who they are, claims are pods whose claims have other owners than they should.
	identify []*corev1.Pod
	claims   []*corev1.Pod
	remove   []*corev1.Pod
}

// available says that the pod counts as one that does its work. If only its time of being ready is missing, wait says how long still.
func (s *situation) available(p *corev1.Pod) (ok bool, wait time.Duration) {
	if p.GetStatus().GetPhase() != podstate.Running {
		return false, 0
	}
	return podstate.Available(p, s.set.GetSpec().GetMinReadySeconds(), s.now)
}

// unavailable says that the pod cannot be counted on: nil, not available, or about to go.
func (s *situation) unavailable(p *corev1.Pod) bool {
	if p == nil || object.IsDeleted(p) {
		return true
	}
	ok, _ := s.available(p)
	return !ok
}

// divide returns the pods by their place in the set, nil where none is, and the pods beyond it, the highest ordinal first. Pods with names that are none
// of the set's are in neither.
func (s *situation) divide() (replicas, condemned []*corev1.Pod) {
	replicas = make([]*corev1.Pod, s.set.GetSpec().GetReplicas())
	for _, p := range s.pods {
		ordinal, ok := ordinalOf(s.set, p)
		if !ok {
			continue
		}
		if i, ok := index(s.set, ordinal); ok {
			replicas[i] = p
		} else {
			condemned = append(condemned, p)
		}
	}
	slices.SortFunc(condemned, func(a, b *corev1.Pod) int {
		x, _ := ordinalOf(s.set, a)
		y, _ := ordinalOf(s.set, b)
		return cmp.Compare(y, x)
	})
	return replicas, condemned
}

// partition is the place in the set below which pods stay at the current revision.
func (s *situation) partition() int {
	return int(s.set.GetSpec().GetUpdateStrategy().GetRollingUpdate().GetPartition())
}

// new returns the pod that is missing at a place.
func (s *situation) new(i int) *corev1.Pod {
	of := s.update
	if s.set.GetSpec().GetUpdateStrategy().GetType() != onDelete && i < s.partition() {
		of = s.current
	}
	return podOf(s.set, start(s.set)+i, of.template, of.name)
}

// decide returns what to do now. Of an ordered set one pod at a time is made or deleted, and only when all before it are available; scaling goes before
// updating.
func (s *situation) decide() plan {
	var p plan
	ordered := s.set.GetSpec().GetPodManagementPolicy() != parallelManagement
	replicas, condemned := s.divide()
	if blocked := s.fill(&p, replicas, ordered); blocked {
		return p
	}
	for _, pod := range condemned {
		if !s.claimsRight(pod, true) {
			p.claims = append(p.claims, pod)
		}
	}
	if blocked := s.shrink(&p, condemned, ordered); blocked {
		return p
	}
	if s.set.GetSpec().GetUpdateStrategy().GetType() != onDelete {
		s.roll(&p, replicas)
	}
	return p
}

// fill makes the pods that are missing, and says whether an ordered set has to wait.
func (s *situation) fill(p *plan, replicas []*corev1.Pod, ordered bool) (blocked bool) {
	for i, pod := range replicas {
		if pod == nil {
			pod = s.new(i)
			if slices.ContainsFunc(s.claims(start(s.set)+i), func(c *corev1.PersistentVolumeClaim) bool { return stale(c, pod.GetMetadata().GetName()) }) {
				if ordered {
					return true
				}
				continue
			}
			p.create = append(p.create, pod)
			if ordered {
				return true
			}
			continue
		}
		if podstate.IsFinished(pod) {
			// Whatever it ended with: it should run. The new one is made when this one is gone.
			if !object.IsDeleted(pod) {
				p.remove = append(p.remove, pod)
			}
			if ordered {
				return true
			}
			continue
		}
		if phase := pod.GetStatus().GetPhase(); (phase == podstate.Pending || phase == "") && !object.IsDeleted(pod) {
			p.missing = append(p.missing, pod)
		}
		if ordered && s.unavailable(pod) {
			return true
		}
		if !identified(s.set, pod, start(s.set)+i) {
			p.identify = append(p.identify, pod)
		}
		if !s.claimsRight(pod, false) {
			p.claims = append(p.claims, pod)
		}
	}
	return false
}

// claimsRight says that the pod's claims have the owners that they should have.
func (s *situation) claimsRight(pod *corev1.Pod, scaledDown bool) bool {
	ordinal, _ := ordinalOf(s.set, pod)
	return !slices.ContainsFunc(s.claims(ordinal), func(c *corev1.PersistentVolumeClaim) bool {
		_, changed := owned(c, s.set, pod, scaledDown)
		return changed && !foreign(c, s.set, pod.GetMetadata().GetName())
	})
}

// shrink deletes the pods beyond the set, and says whether an ordered set has to wait. An ordered set deletes one that is not available only when no
// other of them is in the same state with a lower ordinal.
func (s *situation) shrink(p *plan, condemned []*corev1.Pod, ordered bool) (blocked bool) {
	var lowest *corev1.Pod
	for _, pod := range condemned {
		if s.unavailable(pod) {
			lowest = pod
		}
	}
	for _, pod := range condemned {
		if object.IsDeleted(pod) {
			if ordered {
				return true
			}
			continue
		}
		if ordered && pod != lowest && s.unavailable(pod) {
			return true
		}
		p.remove = append(p.remove, pod)
		if ordered {
			return true
		}
	}
	return false
}

// roll deletes pods of other revisions, from the highest ordinal down to the partition, as many as may be missing. What is not available anyway is
// deleted first and without counting: it is missing already.
func (s *situation) roll(p *plan, replicas []*corev1.Pod) {
	missing := 0
	for _, pod := range replicas {
		if s.unavailable(pod) {
			missing++
		}
	}
	old := func(i int) bool {
		pod := replicas[i]
		return pod != nil && !object.IsDeleted(pod) && !podstate.IsFinished(pod) && revisionOf(pod) != s.update.name
	}
	for i := len(replicas) - 1; i >= s.partition(); i-- {
		if old(i) && s.unavailable(replicas[i]) {
			p.remove = append(p.remove, replicas[i])
		}
	}
	for i := len(replicas) - 1; i >= s.partition() && missing < s.maxUnavailable(); i-- {
		if old(i) && !s.unavailable(replicas[i]) {
			p.remove = append(p.remove, replicas[i])
			missing++
		}
	}
}

// maxUnavailable is how many pods may be missing during an update.
func (s *situation) maxUnavailable() int {
	rolling := s.set.GetSpec().GetUpdateStrategy().GetRollingUpdate()
	if !rolling.HasMaxUnavailable() {
		return 1
	}
	return max(1, int(share(rolling.GetMaxUnavailable(), s.set.GetSpec().GetReplicas())))
}
