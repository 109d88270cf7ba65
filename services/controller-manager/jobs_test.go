package controllermanager_test

import (
	"slices"
	"strings"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"

	batchv1 "dhow.dev/gen/go/dhow/batch/v1"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/object"
)

const (
	trackingFinalizer = "batch.kubernetes.io/job-tracking"
	indexKey          = "batch.kubernetes.io/job-completion-index"
)

// batchJob returns a job of so many completions, all of which may run at once.
func batchJob(name string, completions int32, change func(*batchv1.JobSpec)) *batchv1.Job {
	template := template(name, "image:1")
	template.GetSpec().SetRestartPolicy("Never")
	j := batchv1.Job_builder{
		Metadata: meta(name),
		Spec:     batchv1.JobSpec_builder{Completions: proto.Int32(completions), Parallelism: proto.Int32(completions), Template: template}.Build(),
	}.Build()
	if change != nil {
		change(j.GetSpec())
	}
	return j
}

func indexed(spec *batchv1.JobSpec) { spec.SetCompletionMode("Indexed") }

// jobCondition returns the reason of a job's condition that is true; ok is false when it is not.
func jobCondition(j *batchv1.Job, kind string) (reason string, ok bool) {
	for _, condition := range j.GetStatus().GetConditions() {
		if condition.GetType() == kind && condition.GetStatus() == "True" {
			return condition.GetReason(), true
		}
	}
	return "", false
}

func jobIs(kind, reason string) func(*batchv1.Job) bool {
	return func(j *batchv1.Job) bool {
		got, ok := jobCondition(j, kind)
		return ok && got == reason
	}
}

func indexOfPod(p *corev1.Pod) string { return p.GetMetadata().GetAnnotations()[indexKey] }

func succeed(*corev1.Pod) (string, int32) { return "Succeeded", 0 }

// countedAll checks what holds of every job that has ended: nothing is left to count, and no pod is kept from going.
func countedAll(c *cluster, j *batchv1.Job) {
	c.t.Helper()
	uncounted := j.GetStatus().GetUncountedTerminatedPods()
	if n := len(uncounted.GetSucceeded()) + len(uncounted.GetFailed()); n > 0 || j.GetStatus().GetActive() != 0 || j.GetStatus().GetTerminating() != 0 {
		c.t.Errorf("the ended job still has uncounted %v, %d active, %d terminating", uncounted, j.GetStatus().GetActive(), j.GetStatus().GetTerminating())
	}
	for _, p := range list[*corev1.Pod](c, "default", "batch.kubernetes.io/job-name="+j.GetMetadata().GetName()) {
		if slices.Contains(p.GetMetadata().GetFinalizers(), trackingFinalizer) {
			c.t.Errorf("pod %s of the ended job is still tracked", p.GetMetadata().GetName())
		}
	}
}

func TestJobRunsToCompletion(t *testing.T) {
	c := newCluster(t, nil)
	c.startKubeletWith(&kubelet{ends: succeed}, "n1", "n2")
	create(c, batchJob("work", 5, func(spec *batchv1.JobSpec) { spec.SetParallelism(2) }))
	j := eventuallyOne(c, "default", "work", "complete", jobIs("Complete", "CompletionsReached"))
	if s := j.GetStatus(); s.GetSucceeded() != 5 || s.GetFailed() != 0 || !s.HasCompletionTime() || !s.HasStartTime() || s.GetCompletedIndexes() != "" {
		t.Errorf("status %v", s)
	}
	if reason, ok := jobCondition(j, "SuccessCriteriaMet"); !ok || reason != "CompletionsReached" {
		t.Errorf("conditions %v", j.GetStatus().GetConditions())
	}
	countedAll(c, j)
	pods := list[*corev1.Pod](c, "default", "job-name=work")
	if len(pods) != 5 {
		t.Errorf("%d pods, want 5", len(pods))
	}
	for _, p := range pods {
		if o := object.ControllerOf(p); o.GetKind() != "Job" || !strings.HasPrefix(p.GetMetadata().GetName(), "work-") {
			t.Errorf("pod %s is owned by %v", p.GetMetadata().GetName(), o)
		}
	}
	eventually(c, "default", "events tell of it", func(events []*corev1.Event) bool {
		reasons := map[string]bool{}
		for _, e := range events {
			if e.GetInvolvedObject().GetName() == "work" && e.GetSource().GetComponent() == "job-controller" {
				reasons[e.GetReason()] = true
			}
		}
		return reasons["SuccessfulCreate"] && reasons["Completed"]
	})
}

func TestWorkQueueIsDoneWithItsFirstSuccess(t *testing.T) {
	c := newCluster(t, nil)
	var once sync.Once
	var winner string
	c.startKubeletWith(&kubelet{ends: func(p *corev1.Pod) (string, int32) {
		once.Do(func() { winner = p.GetMetadata().GetName() })
		if p.GetMetadata().GetName() == winner {
			return "Succeeded", 0
		}
		return "", 0
	}}, "n1")
	create(c, batchJob("queue", 1, func(spec *batchv1.JobSpec) {
		spec.ClearCompletions()
		spec.SetParallelism(3)
	}))
	j := eventuallyOne(c, "default", "queue", "one has succeeded, the others go on", func(j *batchv1.Job) bool {
		return j.GetStatus().GetSucceeded() == 1 && j.GetStatus().GetActive() == 2
	})
	if _, over := jobCondition(j, "Complete"); over {
		t.Error("complete while pods run")
	}
	k := &kubelet{c: c}
	for _, p := range list[*corev1.Pod](c, "default", "job-name=queue") {
		for !ended(p) {
			if err := k.end(c.ctx, p, "Succeeded", 0); err != nil {
				t.Fatal(err)
			}
			p = get[*corev1.Pod](c, "default", p.GetMetadata().GetName())
		}
	}
	j = eventuallyOne(c, "default", "queue", "complete", jobIs("Complete", "CompletionsReached"))
	if j.GetStatus().GetSucceeded() != 3 {
		t.Errorf("status %v", j.GetStatus())
	}
}

func TestIndexedJobGivesEveryPodItsIndex(t *testing.T) {
	c := newCluster(t, nil)
	c.startKubeletWith(&kubelet{ends: succeed}, "n1")
	create(c, batchJob("ix", 3, indexed))
	j := eventuallyOne(c, "default", "ix", "complete", jobIs("Complete", "CompletionsReached"))
	if s := j.GetStatus(); s.GetSucceeded() != 3 || s.GetCompletedIndexes() != "0-2" || s.HasFailedIndexes() {
		t.Errorf("status %v", s)
	}
	countedAll(c, j)
	seen := map[string]bool{}
	for _, p := range list[*corev1.Pod](c, "default", "job-name=ix") {
		index := indexOfPod(p)
		seen[index] = true
		if p.GetMetadata().GetLabels()[indexKey] != index || p.GetSpec().GetHostname() != "ix-"+index || !strings.HasPrefix(p.GetMetadata().GetName(), "ix-"+index+"-") {
			t.Errorf("pod %s of index %s: labels %v, host name %q", p.GetMetadata().GetName(), index, p.GetMetadata().GetLabels(), p.GetSpec().GetHostname())
		}
		env := p.GetSpec().GetContainers()[0].GetEnv()
		if len(env) != 1 || env[0].GetName() != "JOB_COMPLETION_INDEX" || env[0].GetValueFrom().GetFieldRef().GetFieldPath() != "metadata.labels['"+indexKey+"']" {
			t.Errorf("environment %v", env)
		}
	}
	if len(seen) != 3 {
		t.Errorf("indexes %v, want 0 to 2", seen)
	}
}

func TestJobFailsAtItsBackoffLimit(t *testing.T) {
	c := newCluster(t, nil)
	c.startKubeletWith(&kubelet{ends: func(p *corev1.Pod) (string, int32) {
		if indexOfPod(p) == "0" {
			return "Failed", 3
		}
		return "", 0
	}}, "n1")
	create(c, batchJob("bad", 2, func(spec *batchv1.JobSpec) {
		indexed(spec)
		spec.SetBackoffLimit(0)
	}))
	j := eventuallyOne(c, "default", "bad", "failed", jobIs("Failed", "BackoffLimitExceeded"))
	if reason, ok := jobCondition(j, "FailureTarget"); !ok || reason != "BackoffLimitExceeded" {
		t.Errorf("conditions %v", j.GetStatus().GetConditions())
	}
	// The pod that was still running was ended, and counts.
	if s := j.GetStatus(); s.GetFailed() != 2 || s.HasCompletionTime() {
		t.Errorf("status %v", s)
	}
	countedAll(c, j)
}

func TestJobWithLimitsPerIndex(t *testing.T) {
	c := newCluster(t, nil)
	c.startKubeletWith(&kubelet{ends: func(p *corev1.Pod) (string, int32) {
		if indexOfPod(p) == "1" {
			return "Failed", 3
		}
		return "Succeeded", 0
	}}, "n1")
	perIndex := func(spec *batchv1.JobSpec) {
		indexed(spec)
		spec.SetBackoffLimitPerIndex(0)
	}
	create(c, batchJob("some", 4, perIndex))
	j := eventuallyOne(c, "default", "some", "failed by its index", jobIs("Failed", "FailedIndexes"))
	if s := j.GetStatus(); s.GetFailedIndexes() != "1" || s.GetCompletedIndexes() != "0,2,3" || s.GetSucceeded() != 3 || s.GetFailed() != 1 {
		t.Errorf("status %v", s)
	}
	countedAll(c, j)
	if a := list[*corev1.Pod](c, "default", "job-name=some")[0].GetMetadata().GetAnnotations(); a["batch.kubernetes.io/job-index-failure-count"] != "0" {
		t.Errorf("annotations %v", a)
	}

	create(c, batchJob("few", 4, func(spec *batchv1.JobSpec) {
		perIndex(spec)
		spec.SetMaxFailedIndexes(0)
		spec.SetParallelism(2)
	}))
	countedAll(c, eventuallyOne(c, "default", "few", "failed at once", jobIs("Failed", "MaxFailedIndexesExceeded")))
}

func TestPodFailurePolicyFailsIgnoresAndGivesUpIndexes(t *testing.T) {
	c := newCluster(t, nil)
	c.startKubeletWith(&kubelet{ends: func(p *corev1.Pod) (string, int32) {
		switch p.GetMetadata().GetLabels()["job-name"] {
		case "fail":
			return "Failed", 42
		case "index":
			if indexOfPod(p) == "0" {
				return "Failed", 43
			}
		}
		return "Succeeded", 0
	}}, "n1")
	on := func(action string, code int32) *batchv1.PodFailurePolicy {
		return batchv1.PodFailurePolicy_builder{Rules: []*batchv1.PodFailurePolicyRule{batchv1.PodFailurePolicyRule_builder{
			Action:      proto.String(action),
			OnExitCodes: batchv1.PodFailurePolicyOnExitCodesRequirement_builder{Operator: proto.String("In"), Values: []int32{code}}.Build(),
		}.Build()}}.Build()
	}
	create(c, batchJob("fail", 1, func(spec *batchv1.JobSpec) { spec.SetPodFailurePolicy(on("FailJob", 42)) }))
	j := eventuallyOne(c, "default", "fail", "failed by its policy", jobIs("Failed", "PodFailurePolicy"))
	for _, condition := range j.GetStatus().GetConditions() {
		if !strings.HasPrefix(condition.GetMessage(), "Container main for pod default/fail-") || !strings.HasSuffix(condition.GetMessage(), " failed with exit code 42 matching FailJob rule at index 0") {
			t.Errorf("message %q", condition.GetMessage())
		}
	}
	countedAll(c, j)

	create(c, batchJob("index", 2, func(spec *batchv1.JobSpec) {
		indexed(spec)
		spec.SetBackoffLimitPerIndex(5)
		spec.SetPodFailurePolicy(on("FailIndex", 43))
	}))
	j = eventuallyOne(c, "default", "index", "the index was given up at once", jobIs("Failed", "FailedIndexes"))
	if s := j.GetStatus(); s.GetFailedIndexes() != "0" || s.GetCompletedIndexes() != "1" {
		t.Errorf("status %v", s)
	}
}

// TestNamespacesOfJobsAreEmptied deletes a namespace whose pods went first: failed ones do not wait for successors that can never be made.
func TestNamespacesOfJobsAreEmptied(t *testing.T) {
	c := newCluster(t, nil)
	c.startKubeletWith(&kubelet{ends: func(*corev1.Pod) (string, int32) { return "", 0 }}, "n1")
	create(c, corev1.Namespace_builder{Metadata: metav1.ObjectMeta_builder{Name: proto.String("going")}.Build()}.Build())
	j := batchJob("work", 2, func(spec *batchv1.JobSpec) {
		indexed(spec)
		spec.SetParallelism(2)
		spec.SetBackoffLimitPerIndex(1)
	})
	j.GetMetadata().SetNamespace("going")
	create(c, j)
	eventually(c, "going", "both pods run", func(pods []*corev1.Pod) bool {
		return len(pods) == 2 && !slices.ContainsFunc(pods, func(p *corev1.Pod) bool { return p.GetStatus().GetPhase() != "Running" })
	})
	remove[*corev1.Namespace](c, "", "going", nil)
	gone[*corev1.Namespace](c, "", "going")
}

func TestSuccessPolicyEndsTheRest(t *testing.T) {
	c := newCluster(t, nil)
	c.startKubeletWith(&kubelet{ends: func(p *corev1.Pod) (string, int32) {
		if indexOfPod(p) == "1" {
			return "Succeeded", 0
		}
		return "", 0
	}}, "n1")
	create(c, batchJob("leader", 3, func(spec *batchv1.JobSpec) {
		indexed(spec)
		spec.SetSuccessPolicy(batchv1.SuccessPolicy_builder{Rules: []*batchv1.SuccessPolicyRule{
			batchv1.SuccessPolicyRule_builder{SucceededIndexes: proto.String("1")}.Build(),
		}}.Build())
	}))
	j := eventuallyOne(c, "default", "leader", "complete", jobIs("Complete", "SuccessPolicy"))
	if s := j.GetStatus(); s.GetSucceeded() != 1 || s.GetCompletedIndexes() != "1" {
		t.Errorf("status %v", s)
	}
	countedAll(c, j)
}

func TestJobIsSuspendedAndResumed(t *testing.T) {
	c := newCluster(t, nil)
	c.startKubelet(nil, "n1")
	create(c, batchJob("pause", 2, func(spec *batchv1.JobSpec) { spec.SetSuspend(true) }))
	suspended := func(j *batchv1.Job) bool {
		_, ok := jobCondition(j, "Suspended")
		return ok && j.GetStatus().GetActive() == 0 && j.GetStatus().GetTerminating() == 0
	}
	j := eventuallyOne(c, "default", "pause", "suspended from the start", suspended)
	if j.GetStatus().HasStartTime() {
		t.Error("a suspended job has a start time")
	}
	edit(c, "default", "pause", func(j *batchv1.Job) {
		// Where the pods go may change while the job has not started.
		j.GetSpec().GetTemplate().GetSpec().SetNodeSelector(map[string]string{"kubernetes.io/hostname": "n1"})
	})
	edit(c, "default", "pause", func(j *batchv1.Job) { j.GetSpec().SetSuspend(false) })
	eventuallyOne(c, "default", "pause", "running", func(j *batchv1.Job) bool {
		return j.GetStatus().GetActive() == 2 && j.GetStatus().GetReady() == 2 && j.GetStatus().HasStartTime()
	})
	edit(c, "default", "pause", func(j *batchv1.Job) { j.GetSpec().SetSuspend(true) })
	j = eventuallyOne(c, "default", "pause", "suspended again", suspended)
	if j.GetStatus().GetFailed() != 0 {
		t.Errorf("the pods of a suspended job count as failed: %v", j.GetStatus())
	}
	eventually(c, "default", "no pods", func(pods []*corev1.Pod) bool { return len(pods) == 0 })
}

func TestJobIsEndedAtItsDeadline(t *testing.T) {
	c := newCluster(t, nil)
	c.startKubelet(nil, "n1")
	create(c, batchJob("late", 2, func(spec *batchv1.JobSpec) { spec.SetActiveDeadlineSeconds(1) }))
	j := eventuallyOne(c, "default", "late", "failed", jobIs("Failed", "DeadlineExceeded"))
	if j.GetStatus().GetFailed() != 2 {
		t.Errorf("status %v", j.GetStatus())
	}
	countedAll(c, j)
}

func TestDeletedPodIsReplacedWhenThePolicySays(t *testing.T) {
	c := newCluster(t, nil)
	k := c.startKubelet(nil, "n1")
	create(c, batchJob("patient", 1, func(spec *batchv1.JobSpec) { spec.SetPodReplacementPolicy("Failed") }))
	eventuallyOne(c, "default", "patient", "running", func(j *batchv1.Job) bool { return j.GetStatus().GetReady() == 1 })
	first := list[*corev1.Pod](c, "default", "job-name=patient")[0].GetMetadata().GetName()
	// The node does not answer, so that the pod cannot end.
	k.mu.Lock()
	k.down["n1"] = true
	k.mu.Unlock()
	remove[*corev1.Pod](c, "default", first, nil)
	j := eventuallyOne(c, "default", "patient", "the pod ends", func(j *batchv1.Job) bool { return j.GetStatus().GetTerminating() == 1 })
	if j.GetStatus().GetActive() != 0 || j.GetStatus().GetFailed() != 0 {
		t.Errorf("replaced or counted before it ended: %v", j.GetStatus())
	}
}

func TestElasticIndexedJobGivesUpWhatItNoLongerHas(t *testing.T) {
	c := newCluster(t, nil)
	c.startKubelet(nil, "n1")
	size := func(n int32) func(*batchv1.Job) {
		return func(j *batchv1.Job) {
			j.GetSpec().SetCompletions(n)
			j.GetSpec().SetParallelism(n)
		}
	}
	running := func(want ...string) func([]*corev1.Pod) bool {
		return func(pods []*corev1.Pod) bool {
			var got []string
			for _, p := range pods {
				got = append(got, indexOfPod(p))
			}
			slices.Sort(got)
			return slices.Equal(got, want)
		}
	}
	create(c, batchJob("elastic", 3, indexed))
	eventually(c, "default", "three", running("0", "1", "2"))
	edit(c, "default", "elastic", size(1))
	eventually(c, "default", "one", running("0"))
	edit(c, "default", "elastic", size(2))
	eventually(c, "default", "two", running("0", "1"))
	j := eventuallyOne(c, "default", "elastic", "none has failed", func(j *batchv1.Job) bool { return j.GetStatus().GetReady() == 2 })
	if j.GetStatus().GetFailed() != 0 {
		t.Errorf("status %v", j.GetStatus())
	}
}

func TestJobOfAnotherControllerIsLeftAlone(t *testing.T) {
	c := newCluster(t, nil)
	c.startKubeletWith(&kubelet{ends: succeed}, "n1")
	create(c, batchJob("theirs", 1, func(spec *batchv1.JobSpec) { spec.SetManagedBy("example.com/other") }))
	create(c, batchJob("ours", 1, func(spec *batchv1.JobSpec) { spec.SetManagedBy("kubernetes.io/job-controller") }))
	eventuallyOne(c, "default", "ours", "complete", jobIs("Complete", "CompletionsReached"))
	if j := get[*batchv1.Job](c, "default", "theirs"); len(j.GetStatus().GetConditions()) > 0 || j.GetStatus().HasStartTime() {
		t.Errorf("status %v", j.GetStatus())
	}
	if pods := list[*corev1.Pod](c, "default", "job-name=theirs"); len(pods) > 0 {
		t.Errorf("pods %v", names(pods))
	}
}

func TestPodsOfADeletedJobAreLetGo(t *testing.T) {
	c := newCluster(t, nil)
	c.startKubelet(nil, "n1")
	create(c, batchJob("short", 2, nil))
	eventuallyOne(c, "default", "short", "running", func(j *batchv1.Job) bool { return j.GetStatus().GetReady() == 2 })
	remove[*batchv1.Job](c, "default", "short", metav1.DeletionOptions_builder{PropagationPolicy: metav1.PropagationPolicy_PROPAGATION_POLICY_BACKGROUND}.Build())
	eventually(c, "default", "no pods", func(pods []*corev1.Pod) bool { return len(pods) == 0 })

	create(c, batchJob("front", 2, nil))
	eventuallyOne(c, "default", "front", "running", func(j *batchv1.Job) bool { return j.GetStatus().GetReady() == 2 })
	remove[*batchv1.Job](c, "default", "front", metav1.DeletionOptions_builder{PropagationPolicy: metav1.PropagationPolicy_PROPAGATION_POLICY_FOREGROUND}.Build())
	gone[*batchv1.Job](c, "default", "front")
	eventually(c, "default", "no pods", func(pods []*corev1.Pod) bool { return len(pods) == 0 })
}

func TestJobAdoptsAndReleases(t *testing.T) {
	c := newCluster(t, nil)
	c.startKubelet(nil, "n1")
	j := create(c, batchJob("own", 1, func(spec *batchv1.JobSpec) {
		spec.SetManualSelector(true)
		spec.SetSelector(selector("own"))
	}))
	pod := eventually(c, "default", "a pod", func(pods []*corev1.Pod) bool { return len(pods) == 1 })[0].GetMetadata().GetName()
	// Without its owner it is adopted again, and tracked.
	edit(c, "default", pod, func(p *corev1.Pod) { p.GetMetadata().SetOwnerReferences(nil) })
	eventuallyOne(c, "default", pod, "adopted", func(p *corev1.Pod) bool {
		return object.ControllerOf(p).GetUid() == j.GetMetadata().GetUid() && slices.Contains(p.GetMetadata().GetFinalizers(), trackingFinalizer)
	})
	edit(c, "default", pod, func(p *corev1.Pod) { p.GetMetadata().SetLabels(nil) })
	eventuallyOne(c, "default", pod, "released", func(p *corev1.Pod) bool {
		return object.ControllerOf(p) == nil && !slices.Contains(p.GetMetadata().GetFinalizers(), trackingFinalizer)
	})
	eventually(c, "default", "replaced", func(pods []*corev1.Pod) bool { return len(pods) == 2 })
}

func TestJobConvergesWhereverItsControllerDies(t *testing.T) {
	killBetweenWrites(t, func(c *cluster) {
		c.startKubeletWith(&kubelet{ends: func(p *corev1.Pod) (string, int32) {
			if indexOfPod(p) == "1" {
				return "Failed", 1
			}
			return "Succeeded", 0
		}}, "n1")
		create(c, batchJob("work", 3, func(spec *batchv1.JobSpec) {
			indexed(spec)
			spec.SetBackoffLimitPerIndex(0)
			spec.SetParallelism(2)
		}))
		j := eventuallyOne(c, "default", "work", "failed by its index", jobIs("Failed", "FailedIndexes"))
		if s := j.GetStatus(); s.GetSucceeded() != 2 || s.GetFailed() != 1 || s.GetCompletedIndexes() != "0,2" || s.GetFailedIndexes() != "1" {
			c.t.Errorf("status %v", s)
		}
		countedAll(c, j)
	})
}

func TestJobCountsEachPodOnceWhereverItsControllerDies(t *testing.T) {
	killBetweenWrites(t, func(c *cluster) {
		c.startKubeletWith(&kubelet{ends: succeed}, "n1")
		create(c, batchJob("work", 2, nil))
		j := eventuallyOne(c, "default", "work", "complete", jobIs("Complete", "CompletionsReached"))
		succeeded := 0
		for _, p := range list[*corev1.Pod](c, "default", "job-name=work") {
			if p.GetStatus().GetPhase() == "Succeeded" {
				succeeded++
			}
		}
		if n := int(j.GetStatus().GetSucceeded()); n != succeeded || n < 2 || j.GetStatus().GetFailed() != 0 {
			c.t.Errorf("%d counted of %d, status %v", n, succeeded, j.GetStatus())
		}
		countedAll(c, j)
	})
}
