package deployment

import (
	"cmp"
	"math"
	"slices"
	"strconv"
	"strings"

	appsv1 "dhow.dev/gen/go/dhow/apps/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/services/controller-manager/internal/apitime"
)

// This file is the arithmetic of rollouts: what sizes the replica sets of a deployment should have now. It decides, and writes nothing.

const (
	recreate      = "Recreate"
	rollingUpdate = "RollingUpdate"
)

// size is one decision: a replica set should have so many replicas.
type size struct {
	set      *appsv1.ReplicaSet
	replicas int32
}

func replicasOf(rs *appsv1.ReplicaSet) int32 {
	if rs == nil {
		return 0
	}
	return rs.GetSpec().GetReplicas()
}

func sum(sets []*appsv1.ReplicaSet, of func(*appsv1.ReplicaSet) int32) int32 {
	var total int32
	for _, rs := range sets {
		if rs != nil {
			total += of(rs)
		}
	}
	return total
}

// available returns how many available pods a set will keep. Right after a set was made smaller its status still counts those that are about to
// go; they must not be traded in twice.
func available(rs *appsv1.ReplicaSet) int32 {
	return min(rs.GetStatus().GetAvailableReplicas(), replicasOf(rs))
}

// fenceposts returns how many pods a rolling update may have above and below the desired number. Percentages of surge are rounded up, of
// unavailability down. Both being 0 nothing could move, so one pod may then be missing.
func fenceposts(d *appsv1.Deployment) (surge, unavailable int32) {
	if d.GetSpec().GetStrategy().GetType() != rollingUpdate || d.GetSpec().GetReplicas() == 0 {
		return 0, 0
	}
	rolling := d.GetSpec().GetStrategy().GetRollingUpdate()
	desired := d.GetSpec().GetReplicas()
	surge = scaled(rolling.GetMaxSurge(), desired, true)
	unavailable = scaled(rolling.GetMaxUnavailable(), desired, false)
	if surge == 0 && unavailable == 0 {
		unavailable = 1
	}
	return surge, min(unavailable, desired)
}

// scaled returns a number, or the part of the total that a percentage is; what is neither is 0 (validation lets no such thing in).
func scaled(v *metav1.IntOrString, total int32, up bool) int32 {
	if v.GetType() == 0 {
		return v.GetIntVal()
	}
	text, ok := strings.CutSuffix(v.GetStrVal(), "%")
	percent, err := strconv.ParseInt(text, 10, 32)
	if !ok || err != nil {
		return 0
	}
	part := float64(percent) * float64(total) / 100
	if up {
		return int32(math.Ceil(part))
	}
	return int32(math.Floor(part))
}

// newReplicas returns the size that the new replica set should have while others still run.
func newReplicas(d *appsv1.Deployment, all []*appsv1.ReplicaSet, current int32) int32 {
	desired := d.GetSpec().GetReplicas()
	if d.GetSpec().GetStrategy().GetType() != rollingUpdate {
		return desired
	}
	surge, _ := fenceposts(d)
	pods := sum(all, replicasOf)
	room := desired + surge - pods
	if room <= 0 {
		return current
	}
	return current + min(room, desired-current)
}

// growNew decides on the new replica set of a rolling update.
func growNew(d *appsv1.Deployment, all []*appsv1.ReplicaSet, current *appsv1.ReplicaSet) []size {
	have, desired := replicasOf(current), d.GetSpec().GetReplicas()
	want := desired
	if have < desired {
		want = newReplicas(d, all, have)
	}
	if want == have {
		return nil
	}
	return []size{{current, want}}
}

// shrinkOld decides on the old replica sets of a rolling update: first those pods go that are not available anyway, then as many as are
// available beyond the minimum.
func shrinkOld(d *appsv1.Deployment, all, old []*appsv1.ReplicaSet, current *appsv1.ReplicaSet) []size {
	if sum(old, replicasOf) == 0 {
		return nil
	}
	_, unavailable := fenceposts(d)
	minimum := d.GetSpec().GetReplicas() - unavailable
	// Pods of the new set that are not available yet are on their way and count as if they were: deleting old ones for them would go below
	// the minimum when they fail.
	missing := replicasOf(current) - available(current)
	budget := sum(all, replicasOf) - minimum - missing
	if budget <= 0 {
		return nil
	}
	old = byAge(old)
	want := map[*appsv1.ReplicaSet]int32{}
	var broken int32
	for _, rs := range old {
		want[rs] = replicasOf(rs)
		n := min(budget-broken, replicasOf(rs)-available(rs))
		if n > 0 {
			want[rs] -= n
			broken += n
		}
	}
	spare := sum(all, available) - minimum
	for _, rs := range old {
		if spare <= 0 {
			break
		}
		n := min(spare, want[rs])
		want[rs] -= n
		spare -= n
	}
	var sizes []size
	for _, rs := range old {
		if want[rs] != replicasOf(rs) {
			sizes = append(sizes, size{rs, want[rs]})
		}
	}
	return sizes
}

// resize decides on sizes when the deployment was scaled, or is paused: the one active set takes the change; with several, in the middle of a
// rollout, it is spread over them in proportion to their sizes, so that the risk stays what it was.
func resize(d *appsv1.Deployment, old []*appsv1.ReplicaSet, current *appsv1.ReplicaSet) []size {
	desired := d.GetSpec().GetReplicas()
	if only := activeOrLatest(old, current); only != nil {
		// Also when the number is right: the annotations that remember it may not be.
		return []size{{only, desired}}
	}
	if saturated(d, current) {
		var sizes []size
		for _, rs := range active(old) {
			sizes = append(sizes, size{rs, 0})
		}
		return sizes
	}
	if d.GetSpec().GetStrategy().GetType() != rollingUpdate {
		return nil
	}
	sets := active(withCurrent(old, current))
	surge, _ := fenceposts(d)
	var allowed int32
	if desired > 0 {
		allowed = desired + surge
	}
	add := allowed - sum(sets, replicasOf)
	// The biggest first: it gets what rounding leaves. Among equals the newer grows first and the older shrinks first.
	slices.SortStableFunc(sets, func(a, b *appsv1.ReplicaSet) int {
		if c := cmp.Compare(replicasOf(b), replicasOf(a)); c != 0 {
			return c
		}
		if add > 0 {
			return compareAge(b, a)
		}
		return compareAge(a, b)
	})
	sizes := make([]size, len(sets))
	var added int32
	for i, rs := range sets {
		sizes[i] = size{rs, replicasOf(rs)}
		if add != 0 {
			part := proportion(d, rs, surge, add, added)
			sizes[i].replicas += part
			added += part
		}
	}
	if add != 0 && len(sizes) > 0 {
		sizes[0].replicas = max(0, sizes[0].replicas+add-added)
	}
	return sizes
}

// proportion returns the part of add that one replica set takes.
func proportion(d *appsv1.Deployment, rs *appsv1.ReplicaSet, surge, add, added int32) int32 {
	if replicasOf(rs) == 0 || add == added {
		return 0
	}
	var part int32
	if d.GetSpec().GetReplicas() == 0 {
		part = -replicasOf(rs)
	} else {
		before, ok := number(rs, maxReplicasAnnotation)
		if !ok || before == 0 {
			if before = d.GetStatus().GetReplicas(); before == 0 {
				return 0
			}
		}
		grown := float64(replicasOf(rs)) * float64(d.GetSpec().GetReplicas()+surge) / float64(before)
		part = int32(math.Round(grown)) - replicasOf(rs)
	}
	if add > 0 {
		return min(part, add-added)
	}
	return max(part, add-added)
}

// saturated says that the new replica set carries the deployment alone.
func saturated(d *appsv1.Deployment, current *appsv1.ReplicaSet) bool {
	if current == nil {
		return false
	}
	desired := d.GetSpec().GetReplicas()
	annotated, ok := number(current, desiredReplicasAnnotation)
	return ok && replicasOf(current) == desired && annotated == desired && available(current) == desired
}

// activeOrLatest returns the one set that has replicas; with none the new one, or the youngest old one; with several nil.
func activeOrLatest(old []*appsv1.ReplicaSet, current *appsv1.ReplicaSet) *appsv1.ReplicaSet {
	sets := active(withCurrent(old, current))
	switch {
	case len(sets) == 1:
		return sets[0]
	case len(sets) > 1:
		return nil
	case current != nil:
		return current
	case len(old) > 0:
		return slices.MaxFunc(old, compareAge)
	}
	return nil
}

func active(sets []*appsv1.ReplicaSet) []*appsv1.ReplicaSet {
	var with []*appsv1.ReplicaSet
	for _, rs := range sets {
		if replicasOf(rs) > 0 {
			with = append(with, rs)
		}
	}
	return with
}

func withCurrent(old []*appsv1.ReplicaSet, current *appsv1.ReplicaSet) []*appsv1.ReplicaSet {
	if current == nil {
		return old
	}
	return append(slices.Clone(old), current)
}

// byAge returns the sets, the oldest first.
func byAge(sets []*appsv1.ReplicaSet) []*appsv1.ReplicaSet {
	sets = slices.Clone(sets)
	slices.SortFunc(sets, compareAge)
	return sets
}

func compareAge(a, b *appsv1.ReplicaSet) int {
	ma, mb := a.GetMetadata(), b.GetMetadata()
	return cmp.Or(
		apitime.Go(ma.GetCreationTimestamp()).Compare(apitime.Go(mb.GetCreationTimestamp())),
		strings.Compare(ma.GetName(), mb.GetName()),
	)
}
