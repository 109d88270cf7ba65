package job

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	batchk8s "k8s.io/api/batch/v1"
	"pgregory.net/rapid"

	batchv1 "dhow.dev/gen/go/dhow/batch/v1"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/services/controller-manager/internal/apitime"
)

var now = time.Unix(1_800_000_000, 0)

func jobOfSpec(spec *batchv1.JobSpec) *batchv1.Job {
	if !spec.HasBackoffLimit() {
		spec.SetBackoffLimit(6)
	}
	if !spec.HasParallelism() {
		spec.SetParallelism(max(1, spec.GetCompletions()))
	}
	return batchv1.Job_builder{
		Metadata: metav1.ObjectMeta_builder{Namespace: proto.String("default"), Name: proto.String("work"), Uid: proto.String("j")}.Build(),
		Spec:     spec,
	}.Build()
}

// look is how a pod is; it is tracked, and has no index when that is negative.
type look struct {
	phase     string
	index     int
	code      int32
	ended     time.Duration // so long ago
	deleted   bool
	untracked bool
	failures  int
	condition string
}

func podWith(name string, l look) *corev1.Pod {
	p := corev1.Pod_builder{
		Metadata: metav1.ObjectMeta_builder{Namespace: proto.String("default"), Name: proto.String(name), Uid: proto.String(name)}.Build(),
		Spec:     &corev1.PodSpec{},
		Status:   corev1.PodStatus_builder{Phase: proto.String(l.phase)}.Build(),
	}.Build()
	m := p.GetMetadata()
	if l.index >= 0 {
		m.SetAnnotations(map[string]string{completionIndex: strconv.Itoa(l.index), failureCount: strconv.Itoa(l.failures)})
	}
	if !l.untracked {
		m.SetFinalizers([]string{batchk8s.JobTrackingFinalizer})
	}
	if l.deleted {
		m.SetDeletionTimestamp(apitime.Of(now.Add(-l.ended)))
	}
	if l.condition != "" {
		p.GetStatus().SetConditions([]*corev1.PodCondition{corev1.PodCondition_builder{Type: proto.String(l.condition), Status: proto.String("True")}.Build()})
	}
	if l.phase == "Failed" || l.phase == "Succeeded" {
		p.GetStatus().SetContainerStatuses([]*corev1.ContainerStatus{corev1.ContainerStatus_builder{
			Name: proto.String("main"),
			State: corev1.ContainerState_builder{Terminated: corev1.ContainerStateTerminated_builder{
				ExitCode: proto.Int32(l.code), FinishedAt: apitime.Of(now.Add(-l.ended)),
			}.Build()}.Build(),
		}.Build()})
	}
	return p
}

func podsWith(looks ...look) []*corev1.Pod {
	var pods []*corev1.Pod
	for i, l := range looks {
		pods = append(pods, podWith(fmt.Sprintf("p%d", i), l))
	}
	return pods
}

func TestIndexes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const most = 40
		draw := rapid.SliceOfDistinct(rapid.IntRange(0, most-1), rapid.ID)
		first, second := draw.Draw(t, "first"), draw.Draw(t, "second")
		s := indexes(nil).with(first).with(second)
		want := map[int]bool{}
		for _, i := range slices.Concat(first, second) {
			want[i] = true
		}
		for i := range most {
			if s.has(i) != want[i] {
				t.Fatalf("%s has %d: %t", s, i, s.has(i))
			}
		}
		if again := parseIndexes(s.String(), most); s.total() != len(want) || !slices.Equal(again, s) {
			t.Fatalf("%s has %d, read again as %s", s, s.total(), again)
		}
		common := 0
		for _, i := range first {
			if slices.Contains(second, i) {
				common++
			}
		}
		if got := indexes(nil).with(first).common(indexes(nil).with(second)); got != common {
			t.Fatalf("%v and %v have %d in common, not %d", first, second, common, got)
		}
	})
	for text, want := range map[string]string{"1,3-5,7": "1,3-5,7", "0-9": "0-4", "2,7": "2", "x,3": "3", "": ""} {
		completions := 5
		if text == "1,3-5,7" {
			completions = 8
		}
		if got := parseIndexes(text, completions).String(); got != want {
			t.Errorf("%q of %d is %q, want %q", text, completions, got, want)
		}
	}
}

func TestDelaysDouble(t *testing.T) {
	for failures, want := range map[int]time.Duration{0: 0, 1: 10 * time.Second, 2: 20 * time.Second, 4: 80 * time.Second, 7: 10 * time.Minute, 400: 10 * time.Minute} {
		if got := delayAfter(failures, now, now); got != want {
			t.Errorf("%d failures: %s, want %s", failures, got, want)
		}
	}
	if got := delayAfter(3, now.Add(-15*time.Second), now); got != 25*time.Second {
		t.Errorf("a part has passed: %s", got)
	}
	j := jobOfSpec(&batchv1.JobSpec{})
	// Only failures since the last success count, and the last of them begins the delay.
	pods := podsWith(look{phase: "Failed", index: -1, ended: time.Hour}, look{phase: "Succeeded", index: -1, ended: time.Minute},
		look{phase: "Failed", index: -1, ended: 30 * time.Second}, look{phase: "Failed", index: -1, ended: 5 * time.Second, untracked: true})
	if got := restartDelay(j, pods, now); got != 15*time.Second {
		t.Errorf("restart after %s, want 15 s", got)
	}
}

func TestPolicyOfFailures(t *testing.T) {
	rule := func(action string, codes *batchv1.PodFailurePolicyOnExitCodesRequirement, condition string) *batchv1.PodFailurePolicyRule {
		r := batchv1.PodFailurePolicyRule_builder{Action: proto.String(action), OnExitCodes: codes}.Build()
		if condition != "" {
			r.SetOnPodConditions([]*batchv1.PodFailurePolicyOnPodConditionsPattern{
				batchv1.PodFailurePolicyOnPodConditionsPattern_builder{Type: proto.String(condition), Status: proto.String("True")}.Build(),
			})
		}
		return r
	}
	codes := func(operator, container string, values ...int32) *batchv1.PodFailurePolicyOnExitCodesRequirement {
		r := batchv1.PodFailurePolicyOnExitCodesRequirement_builder{Operator: proto.String(operator), Values: values}.Build()
		if container != "" {
			r.SetContainerName(container)
		}
		return r
	}
	policy := batchv1.PodFailurePolicy_builder{Rules: []*batchv1.PodFailurePolicyRule{
		rule("Ignore", nil, "DisruptionTarget"),
		rule("FailJob", codes("In", "main", 42, 43), ""),
		rule("FailIndex", codes("In", "", 7), ""),
		rule("Count", codes("In", "", 8), ""),
		rule("FailJob", codes("In", "other", 9), ""),
		rule("Ignore", codes("NotIn", "", 1, 9), ""),
	}}.Build()
	for _, test := range []struct {
		what string
		look look
		want verdict
	}{
		{"disrupted", look{phase: "Failed", code: 42, condition: "DisruptionTarget"}, verdict{action: "Ignore"}},
		{"fails the job", look{phase: "Failed", code: 43},
			verdict{action: "FailJob", counts: true, message: "Container main for pod default/p failed with exit code 43 matching FailJob rule at index 1"}},
		{"fails its index", look{phase: "Failed", code: 7}, verdict{action: "FailIndex", counts: true}},
		{"counts", look{phase: "Failed", code: 8}, verdict{action: "Count", counts: true}},
		{"another container's code", look{phase: "Failed", code: 9}, verdict{counts: true}},
		{"none of these", look{phase: "Failed", code: 100}, verdict{action: "Ignore"}},
		{"no code is no failure", look{phase: "Failed", code: 0}, verdict{counts: true}},
	} {
		if got := judge(policy, podWith("p", test.look)); got != test.want {
			t.Errorf("%s: %+v, want %+v", test.what, got, test.want)
		}
	}
	// A job that is to fail says so at once, and one that ignores counts nothing.
	spec := batchv1.JobSpec_builder{Completions: proto.Int32(3), PodFailurePolicy: policy}.Build()
	r := newRound(jobOfSpec(spec), podsWith(look{phase: "Failed", index: -1, code: 42}, look{phase: "Running", index: -1}), now)
	if r.outcome.GetType() != "FailureTarget" || r.outcome.GetReason() != "PodFailurePolicy" {
		t.Errorf("outcome %v", r.outcome)
	}
	r = newRound(jobOfSpec(spec), podsWith(look{phase: "Failed", index: -1, code: 100}), now)
	if r.outcome != nil || r.failed != 0 {
		t.Errorf("%d failed, outcome %v", r.failed, r.outcome)
	}
}

func TestSuccessPolicies(t *testing.T) {
	rule := func(indexes string, count int32) *batchv1.SuccessPolicyRule {
		r := &batchv1.SuccessPolicyRule{}
		if indexes != "" {
			r.SetSucceededIndexes(indexes)
		}
		if count > 0 {
			r.SetSucceededCount(count)
		}
		return r
	}
	for _, test := range []struct {
		succeeded string
		rules     []*batchv1.SuccessPolicyRule
		want      string
	}{
		{"0-2", []*batchv1.SuccessPolicyRule{rule("1-2", 0)}, "Matched rules at index 0"},
		{"0,2", []*batchv1.SuccessPolicyRule{rule("1-2", 0)}, ""},
		{"0,2", []*batchv1.SuccessPolicyRule{rule("1-2", 1)}, "Matched rules at index 0"},
		{"0,2,4", []*batchv1.SuccessPolicyRule{rule("1,3", 1), rule("", 3)}, "Matched rules at index 1"},
		{"0,2", []*batchv1.SuccessPolicyRule{rule("", 3)}, ""},
		{"", []*batchv1.SuccessPolicyRule{rule("", 0)}, ""},
	} {
		message, met := successMessage(batchv1.SuccessPolicy_builder{Rules: test.rules}.Build(), 5, parseIndexes(test.succeeded, 5))
		if message != test.want || met != (test.want != "") {
			t.Errorf("%s by %v: %q, %t", test.succeeded, test.rules, message, met)
		}
	}
}

// retried returns an indexed job that tries each index again so often.
func retried(completions, limit int32) *batchv1.JobSpec {
	return batchv1.JobSpec_builder{
		Completions: proto.Int32(completions), CompletionMode: proto.String("Indexed"), BackoffLimitPerIndex: proto.Int32(limit), BackoffLimit: proto.Int32(1 << 30),
	}.Build()
}

func TestAnIndexIsTriedAgainAfterItsOwnDelay(t *testing.T) {
	j := jobOfSpec(retried(3, 2))
	pods := podsWith(look{phase: "Failed", index: 0, code: 1, ended: time.Second}, look{phase: "Failed", index: 1, code: 1, failures: 1, ended: 25 * time.Second},
		look{phase: "Running", index: 2})
	r := newRound(j, pods, now)
	if got := r.next(3); !slices.Equal(got, []int{1}) || r.wait != 9*time.Second {
		t.Errorf("next %v, wait %s; want index 1, and 9 s for index 0", got, r.wait)
	}
	made := r.indexedPods([]int{1})
	if n := made[0].GetMetadata().GetAnnotations()[failureCount]; n != "2" || !strings.HasPrefix(made[0].GetMetadata().GetGenerateName(), "work-1-") {
		t.Errorf("the next pod of index 1 has %s failures, name %s", n, made[0].GetMetadata().GetGenerateName())
	}
	// Until then the failed pods keep their finalizers: they are all that knows of the failures.
	if r.mayUntrack(pods[0]) || r.mayUntrack(pods[1]) {
		t.Error("a pod may go before its successor has taken over its failures")
	}
	delete(r.last, 1)
	if !r.mayUntrack(pods[1]) {
		t.Error("a pod may not go although its successor is there")
	}
	// The third failure is one too many.
	r = newRound(j, podsWith(look{phase: "Failed", index: 0, code: 1, failures: 2}, look{phase: "Running", index: 1}), now)
	if r.lost.String() != "0" || r.outcome != nil || !r.mayUntrack(r.pods[0]) {
		t.Errorf("lost %s, outcome %v", r.lost, r.outcome)
	}
	if got := r.next(5); !slices.Equal(got, []int{2}) {
		t.Errorf("next %v, want index 2 alone", got)
	}
}

func TestDeletedPodsAreReplacedAsThePolicySays(t *testing.T) {
	pods := podsWith(look{phase: "Running", index: 0, deleted: true}, look{phase: "Running", index: 1})
	spec := batchv1.JobSpec_builder{Completions: proto.Int32(2), CompletionMode: proto.String("Indexed")}.Build()
	if r := newRound(jobOfSpec(spec), pods, now); r.failed != 1 || !slices.Equal(r.next(2), []int{0}) {
		t.Errorf("%d failed, next %v", r.failed, r.next(2))
	}
	spec.SetPodReplacementPolicy("Failed")
	if r := newRound(jobOfSpec(spec), pods, now); r.failed != 0 || r.terminating != 1 || len(r.next(2)) != 0 {
		t.Errorf("%d failed, %d terminating, next %v", r.failed, r.terminating, r.next(2))
	}
}

func TestSurplus(t *testing.T) {
	spec := batchv1.JobSpec_builder{Completions: proto.Int32(3), CompletionMode: proto.String("Indexed")}.Build()
	r := newRound(jobOfSpec(spec), podsWith(look{phase: "Running", index: 0}, look{phase: "Pending", index: 0}, look{phase: "Running", index: 7},
		look{phase: "Running", index: -1}, look{phase: "Running", index: 2, untracked: true}, look{phase: "Running", index: 1}), now)
	var names []string
	for _, p := range r.surplus(3) {
		names = append(names, p.GetMetadata().GetName())
	}
	if slices.Sort(names); !slices.Equal(names, []string{"p1", "p2", "p3", "p4"}) {
		t.Errorf("surplus %v", names)
	}
}

func TestRestartsCountWhereContainersRestart(t *testing.T) {
	spec := batchv1.JobSpec_builder{
		Completions: proto.Int32(1), BackoffLimit: proto.Int32(2),
		Template: corev1.PodTemplateSpec_builder{Spec: corev1.PodSpec_builder{RestartPolicy: proto.String("OnFailure")}.Build()}.Build(),
	}.Build()
	p := podWith("p", look{phase: "Running", index: -1})
	for restarts, want := range map[int32]string{1: "", 2: "BackoffLimitExceeded"} {
		p.GetStatus().SetContainerStatuses([]*corev1.ContainerStatus{corev1.ContainerStatus_builder{RestartCount: proto.Int32(restarts)}.Build()})
		if r := newRound(jobOfSpec(spec), []*corev1.Pod{p}, now); r.outcome.GetReason() != want {
			t.Errorf("%d restarts: %v", restarts, r.outcome)
		}
	}
}

func TestDeadline(t *testing.T) {
	j := jobOfSpec(batchv1.JobSpec_builder{Completions: proto.Int32(1), ActiveDeadlineSeconds: proto.Int64(60)}.Build())
	j.SetStatus(batchv1.JobStatus_builder{StartTime: apitime.Of(now.Add(-50 * time.Second))}.Build())
	if r := newRound(j, nil, now); r.outcome != nil || r.wait != 10*time.Second {
		t.Errorf("%v, wait %s", r.outcome, r.wait)
	}
	if r := newRound(j, nil, now.Add(10*time.Second)); r.outcome.GetReason() != "DeadlineExceeded" {
		t.Errorf("%v", r.outcome)
	}
	j.GetSpec().SetSuspend(true)
	if r := newRound(j, nil, now.Add(time.Hour)); r.outcome != nil {
		t.Errorf("suspended: %v", r.outcome)
	}
	// Resumed, the clock begins anew.
	j.GetSpec().SetSuspend(false)
	j.GetStatus().SetConditions([]*batchv1.JobCondition{newCondition(batchk8s.JobSuspended, "True", "JobSuspended", "", now)})
	if r := newRound(j, nil, now.Add(time.Hour)); r.outcome != nil {
		t.Errorf("about to be resumed: %v", r.outcome)
	}
}

// Whatever the order in which pods end, and wherever a turn is cut off between its steps, each pod is counted once.
func TestEachPodIsCountedOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 12).Draw(t, "pods")
		j := jobOfSpec(batchv1.JobSpec_builder{Completions: proto.Int32(100), Parallelism: proto.Int32(100), BackoffLimit: proto.Int32(1000)}.Build())
		pods := make([]*corev1.Pod, n)
		for i := range pods {
			pods[i] = podWith(fmt.Sprintf("p%d", i), look{phase: "Running", index: -1})
		}
		ended := map[string]int32{}
		turn := func(cut int) {
			r := newRound(j, pods, now)
			tracked := map[string]bool{}
			for _, p := range r.pods {
				if isTracked(p) {
					tracked[p.GetMetadata().GetUid()] = true
				}
			}
			r.settle(tracked)
			done, _ := r.collect()
			if cut == 0 {
				return
			}
			j.SetStatus(proto.CloneOf(r.job.GetStatus()))
			for i, p := range done {
				if cut == 1 && i == len(done)/2 {
					return
				}
				p.GetMetadata().SetFinalizers(nil)
				delete(tracked, p.GetMetadata().GetUid())
			}
			r.settle(tracked)
			if cut > 2 {
				j.SetStatus(r.job.GetStatus())
			}
		}
		for range rapid.IntRange(1, 20).Draw(t, "turns") {
			p := pods[rapid.IntRange(0, n-1).Draw(t, "pod")]
			if p.GetStatus().GetPhase() == "Running" {
				phase := rapid.SampledFrom([]string{"Succeeded", "Failed"}).Draw(t, "phase")
				p.GetStatus().SetPhase(phase)
				ended[phase]++
			}
			turn(rapid.IntRange(0, 3).Draw(t, "cut"))
		}
		turn(3)
		turn(3)
		if s := j.GetStatus(); s.GetSucceeded() != ended["Succeeded"] || s.GetFailed() != ended["Failed"] ||
			len(s.GetUncountedTerminatedPods().GetSucceeded())+len(s.GetUncountedTerminatedPods().GetFailed()) > 0 {
			t.Fatalf("%v ended, counted %v", ended, s)
		}
	})
}
