package disruption

import (
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	policyk8s "k8s.io/api/policy/v1"
	metak8s "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	appsv1 "dhow.dev/gen/go/dhow/apps/v1"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/object"
)

var now = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

// fake is a local copy of a kind.
type fake[T object.Object] []T

func (f fake[T]) Get(_, name string) (o T, ok bool) {
	for _, o := range f {
		if o.GetMetadata().GetName() == name {
			return o, true
		}
	}
	return o, false
}

// owner is a reference to the controller of this kind and name, whose UID is its name.
func owner(apiVersion, kind, name string) *metav1.OwnerReference {
	return metav1.OwnerReference_builder{
		ApiVersion: proto.String(apiVersion), Kind: proto.String(kind), Name: proto.String(name), Uid: proto.String(name), Controller: proto.Bool(true),
	}.Build()
}

func named(name string, owners ...*metav1.OwnerReference) *metav1.ObjectMeta {
	return metav1.ObjectMeta_builder{Name: proto.String(name), Uid: proto.String(name), OwnerReferences: owners}.Build()
}

// everyone are owners of 3, 5, 7, 11 and 13 pods.
func everyone() owners {
	return owners{
		replicaSets: fake[*appsv1.ReplicaSet]{
			appsv1.ReplicaSet_builder{Metadata: named("alone"), Spec: appsv1.ReplicaSetSpec_builder{Replicas: proto.Int32(3)}.Build()}.Build(),
			appsv1.ReplicaSet_builder{Metadata: named("old", owner("apps/v1", "Deployment", "web")), Spec: appsv1.ReplicaSetSpec_builder{Replicas: proto.Int32(1)}.Build()}.Build(),
			appsv1.ReplicaSet_builder{Metadata: named("new", owner("apps/v1", "Deployment", "web")), Spec: appsv1.ReplicaSetSpec_builder{Replicas: proto.Int32(5)}.Build()}.Build(),
			appsv1.ReplicaSet_builder{Metadata: named("rolled", owner("example.com/v1", "Rollout", "r")), Spec: appsv1.ReplicaSetSpec_builder{Replicas: proto.Int32(13)}.Build()}.Build(),
			appsv1.ReplicaSet_builder{Metadata: named("left", owner("apps/v1", "Deployment", "gone")), Spec: appsv1.ReplicaSetSpec_builder{Replicas: proto.Int32(2)}.Build()}.Build(),
		},
		deployments: fake[*appsv1.Deployment]{
			appsv1.Deployment_builder{Metadata: named("web"), Spec: appsv1.DeploymentSpec_builder{Replicas: proto.Int32(5)}.Build()}.Build(),
		},
		statefulSets: fake[*appsv1.StatefulSet]{
			appsv1.StatefulSet_builder{Metadata: named("db"), Spec: appsv1.StatefulSetSpec_builder{Replicas: proto.Int32(7)}.Build()}.Build(),
		},
		replicationControllers: fake[*corev1.ReplicationController]{
			corev1.ReplicationController_builder{Metadata: named("rc"), Spec: corev1.ReplicationControllerSpec_builder{Replicas: proto.Int32(11)}.Build()}.Build(),
		},
	}
}

func TestScale(t *testing.T) {
	other := owner("apps/v1", "ReplicaSet", "alone")
	other.SetUid("another of this name")
	for name, tc := range map[string]struct {
		of       *metav1.OwnerReference
		uid      string
		replicas int32
		problem  string
	}{
		"a replica set":                      {of: owner("apps/v1", "ReplicaSet", "alone"), uid: "alone", replicas: 3},
		"a deployment's":                     {of: owner("apps/v1", "ReplicaSet", "old"), uid: "web", replicas: 5},
		"somebody else's":                    {of: owner("apps/v1", "ReplicaSet", "rolled"), uid: "rolled", replicas: 13},
		"a stateful set":                     {of: owner("apps/v1", "StatefulSet", "db"), uid: "db", replicas: 7},
		"a replication controller":           {of: owner("v1", "ReplicationController", "rc"), uid: "rc", replicas: 11},
		"one that is gone":                   {of: owner("apps/v1", "StatefulSet", "gone")},
		"of a deployment that is gone":       {of: owner("apps/v1", "ReplicaSet", "left")},
		"another of its name":                {of: other},
		"a kind of this name elsewhere":      {of: owner("example.com/v1", "ReplicaSet", "alone")},
		"a job, which has no scale":          {of: owner("batch/v1", "Job", "j"), problem: "jobs.batch does not implement the scale subresource"},
		"an apiVersion that cannot be right": {of: owner("a/b/c", "Job", "j"), problem: "a/b/c"},
	} {
		t.Run(name, func(t *testing.T) {
			uid, replicas, err := everyone().scale("default", tc.of)
			if uid != tc.uid || replicas != tc.replicas || (err == nil) != (tc.problem == "") || err != nil && !strings.Contains(err.Error(), tc.problem) {
				t.Errorf("%q %d %v, want %q %d %q", uid, replicas, err, tc.uid, tc.replicas, tc.problem)
			}
		})
	}
}

// pods makes pods of one controller, as many as states: r is ready, n is not, d is being deleted.
func pods(controller *metav1.OwnerReference, states string) []*corev1.Pod {
	var all []*corev1.Pod
	for i, state := range states {
		m := named(controller.GetName() + "-" + string(rune('0'+i)))
		if controller != nil {
			m.SetOwnerReferences([]*metav1.OwnerReference{controller})
		}
		p := corev1.Pod_builder{Metadata: m, Status: corev1.PodStatus_builder{}.Build()}.Build()
		if state != 'n' {
			p.GetStatus().SetConditions([]*corev1.PodCondition{corev1.PodCondition_builder{Type: proto.String("Ready"), Status: proto.String("True")}.Build()})
		}
		if state == 'd' {
			at := &metav1.Time{}
			at.SetSeconds(now.Unix())
			m.SetDeletionTimestamp(at)
		}
		all = append(all, p)
	}
	return all
}

func TestCount(t *testing.T) {
	number := func(n int) *intstr.IntOrString { return new(intstr.FromInt(n)) }
	percent := func(s string) *intstr.IntOrString { return new(intstr.FromString(s)) }
	oldSet, newSet := owner("apps/v1", "ReplicaSet", "old"), owner("apps/v1", "ReplicaSet", "new")
	type result struct {
		expected, desired, healthy, allowed int32
		reason                              string
	}
	for name, tc := range map[string]struct {
		least, most *intstr.IntOrString
		pods        []*corev1.Pod
		want        result
		unmanaged   bool
		problem     string
	}{
		"a number":                        {least: number(2), pods: pods(nil, "rrnd"), want: result{4, 2, 2, 0, "InsufficientPods"}},
		"a number, one too many":          {least: number(2), pods: pods(nil, "rrrnd"), want: result{5, 2, 3, 1, "SufficientPods"}},
		"a number, not reached":           {least: number(3), pods: pods(nil, "r"), want: result{1, 3, 1, 0, "InsufficientPods"}},
		"no pods":                         {least: number(0), want: result{0, 0, 0, 0, "InsufficientPods"}},
		"no pods of a share":              {least: percent("50%"), want: result{0, 0, 0, 0, "InsufficientPods"}},
		"nothing asked":                   {pods: pods(nil, "rr"), want: result{0, 0, 2, 0, "InsufficientPods"}},
		"a share, rounded up":             {least: percent("50%"), pods: pods(newSet, "rrrrr"), want: result{5, 3, 5, 2, "SufficientPods"}},
		"a share of a rollout":            {least: percent("60%"), pods: append(pods(oldSet, "r"), pods(newSet, "rrrnn")...), want: result{5, 3, 4, 1, "SufficientPods"}},
		"some less, rounded up":           {most: percent("30%"), pods: pods(newSet, "rrrrr"), want: result{5, 3, 5, 2, "SufficientPods"}},
		"one less":                        {most: number(1), pods: pods(newSet, "rrrr"), want: result{5, 4, 4, 0, "InsufficientPods"}},
		"more less than there are":        {most: number(9), pods: pods(newSet, "rr"), want: result{5, 0, 2, 2, "SufficientPods"}},
		"of several controllers":          {most: number(1), pods: append(pods(newSet, "rrrrr"), pods(owner("apps/v1", "StatefulSet", "db"), "rrrrrrr")...), want: result{12, 11, 12, 1, "SufficientPods"}},
		"of nobody, a share":              {least: percent("50%"), pods: append(pods(nil, "rr"), pods(newSet, "rrr")...), want: result{5, 3, 5, 2, "SufficientPods"}, unmanaged: true},
		"of somebody who is gone":         {most: number(1), pods: pods(owner("apps/v1", "StatefulSet", "gone"), "rr"), problem: `found no controllers for pod "gone-0"`},
		"of somebody who does not matter": {least: number(1), pods: pods(owner("apps/v1", "StatefulSet", "gone"), "rr"), want: result{2, 1, 2, 1, "SufficientPods"}},
		"of somebody without a scale":     {least: percent("1%"), pods: pods(owner("batch/v1", "Job", "j"), "r"), problem: "jobs.batch does not implement the scale subresource"},
		"a share that is none":            {least: percent("half"), pods: pods(newSet, "r"), problem: "minAvailable"},
	} {
		t.Run(name, func(t *testing.T) {
			budget := &policyk8s.PodDisruptionBudget{ObjectMeta: metak8s.ObjectMeta{Generation: 4}, Spec: policyk8s.PodDisruptionBudgetSpec{MinAvailable: tc.least, MaxUnavailable: tc.most}}
			s, err := count(budget, tc.pods, everyone().scale, now)
			if tc.problem != "" {
				if err == nil || !strings.Contains(err.Error(), tc.problem) {
					t.Errorf("%v, want %q", err, tc.problem)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			c := s.status.Conditions[0]
			got := result{s.status.ExpectedPods, s.status.DesiredHealthy, s.status.CurrentHealthy, s.status.DisruptionsAllowed, c.Reason}
			if got != tc.want || s.unmanaged != tc.unmanaged || s.status.ObservedGeneration != 4 || c.Type != "DisruptionAllowed" || c.ObservedGeneration != 4 || (c.Status == "True") != (got.allowed > 0) {
				t.Errorf("%+v, unmanaged %t, %+v; want %+v", got, s.unmanaged, c, tc.want)
			}
		})
	}
}

// Evictions that the API server allowed count until their pods are seen to end, or for two minutes.
func TestDisruptedPods(t *testing.T) {
	at := func(ago time.Duration) metak8s.Time { return metak8s.NewTime(now.Add(-ago)) }
	all := pods(owner("apps/v1", "StatefulSet", "db"), "rrrdr")
	budget := &policyk8s.PodDisruptionBudget{Spec: policyk8s.PodDisruptionBudgetSpec{MinAvailable: new(intstr.FromInt(1))}, Status: policyk8s.PodDisruptionBudgetStatus{
		DisruptedPods: map[string]metak8s.Time{"db-0": at(30 * time.Second), "db-1": at(90 * time.Second), "db-2": at(3 * time.Minute), "db-3": at(time.Second), "gone": at(time.Second)},
	}}
	s, err := count(budget, all, everyone().scale, now)
	if err != nil {
		t.Fatal(err)
	}
	if len(s.status.DisruptedPods) != 2 || s.status.DisruptedPods["db-0"] != at(30*time.Second) || s.status.DisruptedPods["db-1"] != at(90*time.Second) {
		t.Errorf("disrupted %v", s.status.DisruptedPods)
	}
	if s.status.CurrentHealthy != 2 || s.status.DisruptionsAllowed != 1 || s.again != 30*time.Second || !slices.Equal(s.notDeleted, all[2:3]) {
		t.Errorf("%+v, again %s, not deleted %v", s.status, s.again, s.notDeleted)
	}
}

func TestFailed(t *testing.T) {
	budget := &policyk8s.PodDisruptionBudget{ObjectMeta: metak8s.ObjectMeta{Generation: 2}, Status: policyk8s.PodDisruptionBudgetStatus{
		ObservedGeneration: 1, DisruptionsAllowed: 3, CurrentHealthy: 5, DesiredHealthy: 2, ExpectedPods: 5,
	}}
	_, cause := count(&policyk8s.PodDisruptionBudget{Spec: policyk8s.PodDisruptionBudgetSpec{MaxUnavailable: new(intstr.FromInt(1))}},
		pods(owner("batch/v1", "Job", "j"), "r"), everyone().scale, now)
	s := failed(budget, cause, now)
	if s.DisruptionsAllowed != 0 || s.CurrentHealthy != 5 || s.ObservedGeneration != 1 || budget.Status.DisruptionsAllowed != 3 {
		t.Errorf("%+v", s)
	}
	if c := s.Conditions[0]; c.Reason != "SyncFailed" || c.Status != "False" || c.Message != "jobs.batch does not implement the scale subresource" {
		t.Errorf("%+v", c)
	}
}
