package deployment

import (
	"fmt"
	"math"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	appsv1 "dhow.dev/gen/go/dhow/apps/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
)

func number32(n int) *metav1.IntOrString {
	return metav1.IntOrString_builder{Type: proto.Int64(0), IntVal: proto.Int32(int32(n))}.Build()
}

func percent(n int) *metav1.IntOrString {
	return metav1.IntOrString_builder{Type: proto.Int64(1), StrVal: proto.String(fmt.Sprintf("%d%%", n))}.Build()
}

func rolling(replicas int32, surge, unavailable *metav1.IntOrString) *appsv1.Deployment {
	return appsv1.Deployment_builder{
		Metadata: metav1.ObjectMeta_builder{Name: proto.String("web")}.Build(),
		Spec: appsv1.DeploymentSpec_builder{
			Replicas: proto.Int32(replicas),
			Strategy: appsv1.DeploymentStrategy_builder{
				Type:          proto.String(rollingUpdate),
				RollingUpdate: appsv1.RollingUpdateDeployment_builder{MaxSurge: surge, MaxUnavailable: unavailable}.Build(),
			}.Build(),
		}.Build(),
	}.Build()
}

func set(name string, age int, replicas, ready int32) *appsv1.ReplicaSet {
	created := &metav1.Time{}
	created.SetSeconds(int64(1000 - age))
	return appsv1.ReplicaSet_builder{
		Metadata: metav1.ObjectMeta_builder{Name: proto.String(name), CreationTimestamp: created}.Build(),
		Spec:     appsv1.ReplicaSetSpec_builder{Replicas: proto.Int32(replicas)}.Build(),
		Status:   appsv1.ReplicaSetStatus_builder{Replicas: proto.Int32(replicas), AvailableReplicas: proto.Int32(ready)}.Build(),
	}.Build()
}

func TestFenceposts(t *testing.T) {
	for _, test := range []struct {
		replicas           int32
		surge, unavailable *metav1.IntOrString
		up, down           int32
	}{
		{10, percent(25), percent(25), 3, 2},
		{4, percent(25), percent(25), 1, 1},
		{1, percent(25), percent(25), 1, 0},
		{3, number32(1), number32(0), 1, 0},
		{3, number32(0), number32(0), 0, 1},
		{2, percent(0), percent(10), 0, 1},
		{2, number32(0), number32(5), 0, 2},
		{0, number32(1), number32(1), 0, 0},
	} {
		if up, down := fenceposts(rolling(test.replicas, test.surge, test.unavailable)); up != test.up || down != test.down {
			t.Errorf("%d replicas, surge %v, unavailable %v: +%d -%d, want +%d -%d", test.replicas, test.surge, test.unavailable, up, down, test.up, test.down)
		}
	}
}

// TestRollingUpdate plays rollouts in which pods become available, and fail, in any order, interrupted by further templates. The controller
// never takes more pods than the surge allows, never takes available pods below the minimum, and gets there once pods stop failing.
func TestRollingUpdate(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		bound := func(label string) *metav1.IntOrString {
			if rapid.Bool().Draw(t, label+" in percent") {
				return percent(rapid.IntRange(0, 100).Draw(t, label))
			}
			return number32(rapid.IntRange(0, 5).Draw(t, label))
		}
		d := rolling(int32(rapid.IntRange(1, 20).Draw(t, "replicas")), bound("surge"), bound("unavailable"))
		desired := d.GetSpec().GetReplicas()
		surge, unavailable := fenceposts(d)
		minimum := desired - unavailable
		sets := []*appsv1.ReplicaSet{set("s0", 999, desired, desired), set("s1", 998, 0, 0)}
		current := sets[1]
		old := func() []*appsv1.ReplicaSet { return sets[:len(sets)-1] }

		// Live is how many pods of a set are available in truth. Its status tells what pods do (what nobody knows yet, nobody can respect), but is
		// behind after the set was made smaller: pods that have to go are as good as gone.
		live := map[*appsv1.ReplicaSet]int32{sets[0]: desired}
		remaining := func(rs *appsv1.ReplicaSet) int32 { return live[rs] }
		observe := func(rs *appsv1.ReplicaSet) (changed bool) {
			changed = rs.GetStatus().GetAvailableReplicas() != live[rs]
			rs.GetStatus().SetAvailableReplicas(live[rs])
			return changed
		}
		step := func() bool {
			before := sum(sets, remaining)
			sizes := growNew(d, sets, current)
			if len(sizes) == 0 {
				sizes = shrinkOld(d, sets, old(), current)
			}
			for _, s := range sizes {
				s.set.GetSpec().SetReplicas(s.replicas)
				live[s.set] = min(live[s.set], s.replicas)
			}
			if total := sum(sets, replicasOf); total > desired+surge {
				t.Fatalf("%d pods wanted, at most %d allowed", total, desired+surge)
			}
			if after := sum(sets, remaining); after < before && after < minimum {
				t.Fatalf("%d available pods left of %d, at least %d needed", after, before, minimum)
			}
			return len(sizes) > 0
		}
		become := func(rs *appsv1.ReplicaSet) bool {
			if live[rs] >= replicasOf(rs) {
				return false
			}
			live[rs]++
			observe(rs)
			return true
		}
		for range rapid.IntRange(0, 60).Draw(t, "steps") {
			rs := sets[rapid.IntRange(0, len(sets)-1).Draw(t, "set")]
			switch rapid.IntRange(0, 9).Draw(t, "what") {
			case 0:
				live[rs] = max(0, live[rs]-1)
				observe(rs)
			case 1:
				if len(sets) < 6 {
					current = set(fmt.Sprintf("s%d", len(sets)), 999-len(sets), 0, 0)
					sets = append(sets, current)
				}
			case 2, 3, 4:
				become(rs)
			case 5:
				observe(rs)
			default:
				step()
			}
		}
		for range 1000 {
			moved := step()
			for _, rs := range sets {
				moved = become(rs) || moved
				moved = observe(rs) || moved
			}
			if !moved {
				break
			}
		}
		if replicasOf(current) != desired || sum(old(), replicasOf) != 0 {
			t.Fatalf("ended with %d new and %d old, want %d and 0", replicasOf(current), sum(old(), replicasOf), desired)
		}
	})
}

// TestResizeKeepsProportionsAndTotal scales in the middle of a rollout.
func TestResizeKeepsProportionsAndTotal(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := rolling(int32(rapid.IntRange(0, 30).Draw(t, "replicas")), number32(rapid.IntRange(0, 5).Draw(t, "surge")), number32(1))
		var sets []*appsv1.ReplicaSet
		var before int32
		for i := range rapid.IntRange(2, 4).Draw(t, "sets") {
			n := int32(rapid.IntRange(1, 10).Draw(t, "size"))
			before += n
			sets = append(sets, set(fmt.Sprintf("s%d", i), 500-i, n, 0))
		}
		for _, rs := range sets {
			rs.GetMetadata().SetAnnotations(map[string]string{maxReplicasAnnotation: fmt.Sprint(before)})
		}
		sizes := resize(d, sets[1:], sets[0])
		surge, _ := fenceposts(d)
		var allowed, total int32
		if n := d.GetSpec().GetReplicas(); n > 0 {
			allowed = n + surge
		}
		for _, s := range sizes {
			if s.replicas < 0 {
				t.Fatalf("%d replicas", s.replicas)
			}
			if allowed > before && s.replicas < replicasOf(s.set) || allowed < before && s.replicas > replicasOf(s.set) {
				t.Fatalf("a set goes from %d to %d while the whole goes from %d to %d", replicasOf(s.set), s.replicas, before, allowed)
			}
			total += s.replicas
		}
		if len(sizes) != len(sets) || total != allowed {
			t.Fatalf("%d sets with %d replicas, want %d with %d", len(sizes), total, len(sets), allowed)
		}
	})
}

func TestResizeOfTheOnlyActiveSet(t *testing.T) {
	d := rolling(7, number32(1), number32(1))
	one := set("old", 10, 3, 3)
	if sizes := resize(d, []*appsv1.ReplicaSet{one}, set("new", 5, 0, 0)); len(sizes) != 1 || sizes[0].set != one || sizes[0].replicas != 7 {
		t.Errorf("sizes %v", sizes)
	}
}

func TestTemplateEquality(t *testing.T) {
	quantity := func(s string) *metav1.Quantity { return metav1.Quantity_builder{String: proto.String(s)}.Build() }
	if !equal(quantity("1").ProtoReflect(), quantity("1000m").ProtoReflect()) || equal(quantity("1").ProtoReflect(), quantity("2").ProtoReflect()) {
		t.Error("quantities are not compared by value")
	}
	d := rolling(1, nil, nil)
	other := rolling(2, nil, nil)
	if equal(d.ProtoReflect(), other.ProtoReflect()) || !equal(d.ProtoReflect(), rolling(1, nil, nil).ProtoReflect()) {
		t.Error("messages are not compared by content")
	}
	if fewer := proto.Clone(d).(*appsv1.Deployment); true {
		fewer.GetSpec().ClearReplicas()
		if equal(d.ProtoReflect(), fewer.ProtoReflect()) || equal(fewer.ProtoReflect(), d.ProtoReflect()) {
			t.Error("an absent field is taken for one that is set")
		}
	}
}

func TestRevisionsAndHistory(t *testing.T) {
	d := rolling(1, nil, nil)
	d.GetMetadata().SetAnnotations(map[string]string{"mine": "yes", revisionAnnotation: "9", lastAppliedAnnotation: "{}"})
	a := annotationsOfNew(d, map[string]string{revisionAnnotation: "1"}, 4)
	if a["mine"] != "yes" || a[revisionAnnotation] != "4" || a[historyAnnotation] != "1" || a[lastAppliedAnnotation] != "" {
		t.Errorf("annotations %v", a)
	}
	if a = annotationsOfNew(d, a, 3); a[revisionAnnotation] != "4" {
		t.Errorf("the newest revision became %s", a[revisionAnnotation])
	}
	history := ""
	for i := range 2000 {
		history = appendHistory(history, fmt.Sprint(i))
	}
	if len(history) > maxHistory {
		t.Errorf("history of %d bytes", len(history))
	}
	d.GetSpec().SetProgressDeadlineSeconds(math.MaxInt32)
	if hasDeadline(d) {
		t.Error("the largest deadline is one")
	}
}
