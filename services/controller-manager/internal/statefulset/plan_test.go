package statefulset

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	appsv1 "dhow.dev/gen/go/dhow/apps/v1"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/object"
)

// world is a set with its pods, changed by plans and by what pods do.
type world struct {
	situation
	uid int
}

func newWorld(replicas, partition, maxUnavailable int32, policy string) *world {
	unavailable := &metav1.IntOrString{}
	unavailable.SetType(0)
	unavailable.SetIntVal(maxUnavailable)
	template := &corev1.PodTemplateSpec{}
	return &world{situation: situation{
		set: appsv1.StatefulSet_builder{
			Metadata: metav1.ObjectMeta_builder{Namespace: proto.String("default"), Name: proto.String("db"), Uid: proto.String("set")}.Build(),
			Spec: appsv1.StatefulSetSpec_builder{
				Replicas: proto.Int32(replicas), PodManagementPolicy: proto.String(policy), Template: template,
				UpdateStrategy: appsv1.StatefulSetUpdateStrategy_builder{Type: proto.String("RollingUpdate"), RollingUpdate: appsv1.RollingUpdateStatefulSetStrategy_builder{
					Partition: proto.Int32(partition), MaxUnavailable: unavailable,
				}.Build()}.Build(),
			}.Build(),
		}.Build(),
		current: revision{"one", template}, update: revision{"one", template},
		claims: func(int) []*corev1.PersistentVolumeClaim { return nil }, now: time.Unix(1000, 0),
	}}
}

// step carries a plan out.
func (w *world) step() (idle bool) {
	p := w.decide()
	for _, pod := range p.create {
		w.uid++
		pod.GetMetadata().SetUid(fmt.Sprint(w.uid))
		pod.SetStatus(corev1.PodStatus_builder{Phase: proto.String("Pending")}.Build())
		w.pods = append(w.pods, pod)
	}
	for _, pod := range p.remove {
		at := &metav1.Time{}
		at.SetSeconds(1000)
		pod.GetMetadata().SetDeletionTimestamp(at)
	}
	return len(p.create)+len(p.remove) == 0
}

// progress makes the pods that are on their way go on: those that are being deleted are gone, others become ready.
func (w *world) progress(which func(*corev1.Pod) bool) (idle bool) {
	idle = true
	w.pods = slices.DeleteFunc(w.pods, func(p *corev1.Pod) bool {
		if !object.IsDeleted(p) || !which(p) {
			return false
		}
		idle = false
		return true
	})
	for _, p := range w.pods {
		if p.GetStatus().GetPhase() == "Pending" && which(p) {
			idle = false
			p.SetStatus(corev1.PodStatus_builder{Phase: proto.String("Running"), Conditions: []*corev1.PodCondition{
				corev1.PodCondition_builder{Type: proto.String("Ready"), Status: proto.String("True")}.Build(),
			}}.Build())
		}
	}
	return idle
}

func (w *world) missing() int {
	n := 0
	replicas, _ := w.divide()
	for _, p := range replicas {
		if w.unavailable(p) {
			n++
		}
	}
	return n
}

func all(*corev1.Pod) bool { return true }

// settle runs until nothing changes any more.
func (w *world) settle(t *rapid.T, check func()) {
	for range 1000 {
		stepped := w.step()
		check()
		if progressed := w.progress(all); stepped && progressed {
			return
		}
		check()
	}
	t.Fatal("it does not come to an end")
}

// Whatever happens in whatever order, no two pods have one name, an update never takes more down than it may, and it ends with every pod where it belongs.
func TestPlansKeepTheirBounds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		replicas := rapid.Int32Range(0, 6).Draw(t, "replicas")
		partition := rapid.Int32Range(0, 7).Draw(t, "partition")
		most := rapid.Int32Range(1, 4).Draw(t, "maxUnavailable")
		policy := rapid.SampledFrom([]string{"OrderedReady", parallelManagement}).Draw(t, "policy")
		w := newWorld(replicas, partition, most, policy)
		unique := func() {
			seen := map[string]bool{}
			for _, p := range w.pods {
				if name := p.GetMetadata().GetName(); seen[name] {
					t.Fatalf("two pods %s", name)
				} else {
					seen[name] = true
				}
			}
		}
		w.settle(t, unique)
		if w.missing() != 0 {
			t.Fatalf("%d pods are missing", w.missing())
		}

		w.update.name = "two"
		for range rapid.IntRange(0, 40).Draw(t, "steps") {
			w.step()
			unique()
			if n := w.missing(); n > int(most) {
				t.Fatalf("%d pods are missing, at most %d may be", n, most)
			}
			lucky := rapid.IntRange(0, 6).Draw(t, "lucky")
			w.progress(func(p *corev1.Pod) bool {
				ordinal, _ := ordinalOf(w.set, p)
				return ordinal == lucky
			})
		}
		w.settle(t, func() {
			unique()
			if n := w.missing(); n > int(most) {
				t.Fatalf("%d pods are missing, at most %d may be", n, most)
			}
		})
		for _, p := range w.pods {
			ordinal, _ := ordinalOf(w.set, p)
			if want := map[bool]string{true: "one", false: "two"}[ordinal < int(partition)]; revisionOf(p) != want {
				t.Fatalf("pod %d is of revision %s, want %s", ordinal, revisionOf(p), want)
			}
		}

		// Scaled, by other numbers too: an ordered set loses and makes one at a time.
		w.set.GetSpec().SetReplicas(rapid.Int32Range(0, 6).Draw(t, "scaled"))
		w.set.GetSpec().SetOrdinals(appsv1.StatefulSetOrdinals_builder{Start: proto.Int32(rapid.Int32Range(0, 3).Draw(t, "start"))}.Build())
		w.settle(t, func() {
			unique()
			going := 0
			for _, p := range w.pods {
				if object.IsDeleted(p) || p.GetStatus().GetPhase() == "Pending" {
					going++
				}
			}
			if policy != parallelManagement && going > int(most) {
				t.Fatalf("%d pods come or go at once", going)
			}
		})
		if len(w.pods) != int(w.set.GetSpec().GetReplicas()) || w.missing() != 0 {
			t.Fatalf("%d pods of %d, %d missing", len(w.pods), w.set.GetSpec().GetReplicas(), w.missing())
		}
	})
}

func TestOrdinalsOfNames(t *testing.T) {
	set := newWorld(3, 0, 1, "").set
	for name, want := range map[string]int{"db-0": 0, "db-12": 12, "db-01": -1, "db--1": -1, "db-": -1, "db": -1, "web-0": -1, "db-x-0": -1, "db-+1": -1, "db-99999999999": -1} {
		p := &corev1.Pod{}
		p.SetMetadata(metav1.ObjectMeta_builder{Name: proto.String(name)}.Build())
		got, ok := ordinalOf(set, p)
		if !ok {
			got = -1
		}
		if got != want {
			t.Errorf("%s: %d, want %d", name, got, want)
		}
	}
}

func TestMaxUnavailableIsRoundedUpAndAtLeastOne(t *testing.T) {
	w := newWorld(10, 0, 0, "")
	rolling := w.set.GetSpec().GetUpdateStrategy().GetRollingUpdate()
	text := func(percent string) *metav1.IntOrString {
		v := &metav1.IntOrString{}
		v.SetType(1)
		v.SetStrVal(percent)
		return v
	}
	for percent, want := range map[string]int{"0%": 1, "1%": 1, "11%": 2, "100%": 10} {
		rolling.SetMaxUnavailable(text(percent))
		if got := w.maxUnavailable(); got != want {
			t.Errorf("%s: %d, want %d", percent, got, want)
		}
	}
	rolling.ClearMaxUnavailable()
	if got := w.maxUnavailable(); got != 1 {
		t.Errorf("unset: %d", got)
	}
}
