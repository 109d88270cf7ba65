package job

import (
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	batchk8s "k8s.io/api/batch/v1"

	batchv1 "dhow.dev/gen/go/dhow/batch/v1"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/pkg/object"
	"dhow.dev/services/controller-manager/internal/apitime"
	"dhow.dev/services/controller-manager/internal/podstate"
)

// round is what one turn knows of a job and what it makes of it. Everything in it follows from the job, its pods and the time.
type round struct {
	now time.Time
	// job is a copy; its status is the one to be written. stored is what the cache has.
	job, stored *batchv1.Job
	pods        []*corev1.Pod
	active      []*corev1.Pod
	terminating int
	// succeeded and failed count all that has ended, also what the status has not counted yet.
	succeeded, failed int
	// counted are the indexes that the status has as completed, completed those and the new ones, lost those that failed for good.
	counted, completed, lost indexes
	// last has, per index, the failed pod that keeps its finalizer until its successor has taken over the number of its failures.
	last map[int]*corev1.Pod
	// outcome is the condition that ends the job: SuccessCriteriaMet or FailureTarget, or Failed after the latter is written. Nil while it goes on.
	outcome *batchv1.JobCondition
	// wait is the time after which something changes by itself, 0 when nothing does.
	wait time.Duration
}

// newRound counts a job's pods and decides whether it is over.
func newRound(j *batchv1.Job, pods []*corev1.Pod, now time.Time) *round {
	r := &round{now: now, stored: j, job: proto.Clone(j).(*batchv1.Job), pods: pods}
	if !r.job.HasStatus() {
		r.job.SetStatus(&batchv1.JobStatus{})
	}
	if !r.job.GetStatus().HasUncountedTerminatedPods() {
		r.job.GetStatus().SetUncountedTerminatedPods(&batchv1.UncountedTerminatedPods{})
	}
	r.count()
	if !r.job.GetStatus().HasStartTime() && !r.job.GetSpec().GetSuspend() {
		r.job.GetStatus().SetStartTime(apitime.Of(now))
	}
	r.decide()
	return r
}

func (r *round) completions() int { return int(r.job.GetSpec().GetCompletions()) }

func (r *round) perIndex() bool {
	return isIndexed(r.job) && r.job.GetSpec().HasBackoffLimitPerIndex()
}

// counts says that a pod's end is to be counted at all: in an indexed job, those of indexes that it has.
func (r *round) counts(p *corev1.Pod) bool {
	if !isIndexed(r.job) {
		return true
	}
	_, ok := validIndex(p, r.completions())
	return ok
}

func (r *round) count() {
	status := r.job.GetStatus()
	uncounted := status.GetUncountedTerminatedPods()
	r.succeeded = int(status.GetSucceeded()) + len(uncounted.GetSucceeded())
	r.failed = int(status.GetFailed()) + len(uncounted.GetFailed())
	var newCompleted, newLost []int
	if isIndexed(r.job) {
		r.counted = parseIndexes(status.GetCompletedIndexes(), r.completions())
	}
	for _, p := range r.pods {
		switch {
		case podstate.IsActive(p):
			r.active = append(r.active, p)
		case podstate.IsTerminating(p):
			r.terminating++
		}
		if !isTracked(p) || !r.counts(p) {
			continue
		}
		uid := p.GetMetadata().GetUid()
		index, _ := indexOf(p)
		switch {
		case p.GetStatus().GetPhase() == podstate.Succeeded:
			newCompleted = append(newCompleted, index)
			if !slices.Contains(uncounted.GetSucceeded(), uid) {
				r.succeeded++
			}
		case isFailed(r.job, p):
			v := judge(r.job.GetSpec().GetPodFailurePolicy(), p)
			if v.counts && !slices.Contains(uncounted.GetFailed(), uid) {
				r.failed++
			}
			if before, _ := failuresOf(p); r.perIndex() &&
				(v.action == batchk8s.PodFailurePolicyActionFailIndex || v.counts && before >= int(r.job.GetSpec().GetBackoffLimitPerIndex())) {
				newLost = append(newLost, index)
			}
		}
	}
	if !isIndexed(r.job) {
		return
	}
	r.completed = r.counted.with(newCompleted)
	r.succeeded = r.completed.total()
	if r.perIndex() {
		r.lost = parseIndexes(status.GetFailedIndexes(), r.completions()).with(newLost)
		r.findLast()
	}
}

// findLast finds the failed pods whose number of failures their successors still have to take over.
func (r *round) findLast() {
	r.last = map[int]*corev1.Pod{}
	running := indexesOf(r.active)
	for _, p := range r.pods {
		index, ok := validIndex(p, r.completions())
		if !ok || !isTracked(p) || !isFailed(r.job, p) || r.completed.has(index) || r.lost.has(index) || running[index] {
			continue
		}
		if other := r.last[index]; other == nil || !olderFailure(p, other) {
			r.last[index] = p
		}
	}
}

// olderFailure says that a's number of failures is not the last word of its index, because b's came later.
func olderFailure(a, b *corev1.Pod) bool {
	countedA, ignoredA := failuresOf(a)
	countedB, ignoredB := failuresOf(b)
	if countedA+ignoredA != countedB+ignoredB {
		return countedA+ignoredA < countedB+ignoredB
	}
	return endOf(a).Before(endOf(b))
}

func indexesOf(pods []*corev1.Pod) map[int]bool {
	all := map[int]bool{}
	for _, p := range pods {
		if index, ok := indexOf(p); ok {
			all[index] = true
		}
	}
	return all
}

// decide sets the outcome, if there is one.
func (r *round) decide() {
	spec := r.job.GetSpec()
	if r.outcome = condition(r.job, batchk8s.JobSuccessCriteriaMet); r.outcome.GetStatus() == podstate.True {
		return
	}
	r.outcome = nil
	if target := condition(r.job, batchk8s.JobFailureTarget); target.GetStatus() == podstate.True {
		r.outcome = newCondition(batchk8s.JobFailed, podstate.True, target.GetReason(), target.GetMessage(), r.now)
		return
	}
	fail := func(reason, message string) {
		r.outcome = newCondition(batchk8s.JobFailureTarget, podstate.True, reason, message, r.now)
	}
	if spec.HasPodFailurePolicy() {
		for _, p := range r.pods {
			if !isFailed(r.job, p) {
				continue
			}
			if v := judge(spec.GetPodFailurePolicy(), p); v.message != "" {
				fail(batchk8s.JobReasonPodFailurePolicy, v.message)
				return
			}
		}
	}
	switch left := r.deadline(); {
	case r.failed > int(spec.GetBackoffLimit()) || r.restartedTooOften():
		fail(batchk8s.JobReasonBackoffLimitExceeded, "Job has reached the specified backoff limit")
	case left != nil && *left <= 0:
		fail(batchk8s.JobReasonDeadlineExceeded, "Job was active longer than specified deadline")
	case left != nil:
		r.waitFor(*left)
	}
	if r.outcome != nil {
		return
	}
	if r.perIndex() {
		switch {
		case spec.HasMaxFailedIndexes() && r.lost.total() > int(spec.GetMaxFailedIndexes()):
			fail(batchk8s.JobReasonMaxFailedIndexesExceeded, "Job has exceeded the specified maximal number of failed indexes")
		case r.lost.total() > 0 && r.lost.total()+r.completed.total() >= r.completions():
			fail(batchk8s.JobReasonFailedIndexes, "Job has failed indexes")
		}
	}
	if r.outcome == nil && isIndexed(r.job) {
		if message, met := successMessage(spec.GetSuccessPolicy(), r.completions(), r.completed); met {
			r.outcome = newCondition(batchk8s.JobSuccessCriteriaMet, podstate.True, batchk8s.JobReasonSuccessPolicy, message, r.now)
		}
	}
}

// complete sets the outcome of a job whose pods have done what was asked, with so many that are still active.
func (r *round) complete(active int) bool {
	spec := r.job.GetSpec()
	// Without completions any success is the job's, once the other pods have ended, however they do.
	done := r.succeeded > 0
	if spec.HasCompletions() {
		done = r.succeeded >= r.completions()
	}
	if !done || active > 0 {
		return false
	}
	r.outcome = newCondition(batchk8s.JobSuccessCriteriaMet, podstate.True, batchk8s.JobReasonCompletionsReached, "Reached expected number of succeeded pods", r.now)
	return true
}

// deadline is how long the job may still be active, nil when there is no limit or it is suspended.
func (r *round) deadline() *time.Duration {
	spec := r.job.GetSpec()
	if !spec.HasActiveDeadlineSeconds() || spec.GetSuspend() || !r.job.GetStatus().HasStartTime() {
		return nil
	}
	// About to be resumed, the clock starts anew.
	if isTrue(r.job, batchk8s.JobSuspended) {
		return nil
	}
	left := apitime.Go(r.job.GetStatus().GetStartTime()).Add(time.Duration(spec.GetActiveDeadlineSeconds()) * time.Second).Sub(r.now)
	return &left
}

// restartedTooOften is the back-off limit of pods that restart their containers themselves.
func (r *round) restartedTooOften() bool {
	if r.job.GetSpec().GetTemplate().GetSpec().GetRestartPolicy() != "OnFailure" {
		return false
	}
	restarts := 0
	for _, p := range r.pods {
		if phase := p.GetStatus().GetPhase(); phase != podstate.Running && phase != podstate.Pending {
			continue
		}
		for _, c := range slices.Concat(p.GetStatus().GetInitContainerStatuses(), p.GetStatus().GetContainerStatuses()) {
			restarts += int(c.GetRestartCount())
		}
	}
	return restarts > 0 && restarts >= int(r.job.GetSpec().GetBackoffLimit())
}

func (r *round) waitFor(d time.Duration) {
	if d > 0 && (r.wait == 0 || d < r.wait) {
		r.wait = d
	}
}

// wanted is how many pods should be active.
func (r *round) wanted() int {
	spec := r.job.GetSpec()
	if !spec.HasCompletions() {
		if r.succeeded > 0 {
			return len(r.active) // those that run may end, and no others begin
		}
		return int(spec.GetParallelism())
	}
	return max(0, min(r.completions()-r.succeeded, int(spec.GetParallelism())))
}

// surplus returns the active pods that are too many, first those that count for nothing: without an index that the job has, beside another of their
// index, or half removed already (what removed them died before it deleted them).
func (r *round) surplus(wanted int) []*corev1.Pod {
	var rest, all []*corev1.Pod
	seen := map[int]bool{}
	sorted := byRank(r)
	slices.Reverse(sorted) // the one to keep comes first
	for _, p := range sorted {
		index, ok := validIndex(p, r.completions())
		if !isTracked(p) || isIndexed(r.job) && (!ok || seen[index]) {
			all = append(all, p)
			continue
		}
		seen[index] = true
		rest = append(rest, p)
	}
	for i := len(rest) - 1; i >= 0 && len(r.active)-len(all) > wanted; i-- {
		all = append(all, rest[i])
	}
	return all
}

// next returns the indexes of the n pods to be made now, as far as their back-off has passed.
func (r *round) next(n int) []int {
	taken := indexesOf(r.active)
	if replacesFailedAlone(r.job) {
		for _, p := range r.pods {
			if index, ok := indexOf(p); ok && podstate.IsTerminating(p) {
				taken[index] = true
			}
		}
	}
	pending := firstMissing(n, r.completions(), func(i int) bool { return taken[i] || r.completed.has(i) || r.lost.has(i) })
	return slices.DeleteFunc(pending, func(i int) bool {
		delay := indexDelay(r.last[i], r.now)
		r.waitFor(delay)
		return delay > 0
	})
}

// mayUntrack says that a pod may go when it is counted.
func (r *round) mayUntrack(p *corev1.Pod) bool {
	if object.IsDeleted(r.job) || r.outcome != nil || p.GetStatus().GetPhase() == podstate.Succeeded {
		return true
	}
	if !isFailed(r.job, p) {
		return false
	}
	index, ok := indexOf(p)
	return !ok || r.last[index] != p
}
