package job

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	batchk8s "k8s.io/api/batch/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	batchv1 "dhow.dev/gen/go/dhow/batch/v1"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/pkg/event"
	"dhow.dev/services/controller-manager/internal/apitime"
	"dhow.dev/services/controller-manager/internal/podstate"
	"dhow.dev/services/controller-manager/internal/reconcile"
)

// maxUncounted bounds how many pods a turn counts, so that the status stays small.
const maxUncounted = 500

// track counts the pods that have ended, in the three steps that make sure that each is counted once, and ends the job when all is counted.
func (c *Controller) track(ctx context.Context, turn *reconcile.Turn[key], r *round) error {
	tracked := map[string]bool{}
	for _, p := range r.pods {
		if isTracked(p) {
			tracked[p.GetMetadata().GetUid()] = true
		}
	}
	// What an earlier turn began and could not end.
	r.settle(tracked)
	done, more := r.collect()
	r.announce()
	if err := c.writeStatus(ctx, turn, r); err != nil {
		return err
	}
	untracked, err := c.untrackAll(ctx, turn, done)
	for uid := range untracked {
		delete(tracked, uid)
	}
	r.settle(tracked)
	finished := err == nil && !more && r.finish()
	if more {
		turn.Again(0)
	}
	if err := errors.Join(err, c.writeStatus(ctx, turn, r)); err != nil {
		return err
	}
	if finished {
		c.report(r)
	}
	return nil
}

// settle trades UIDs of pods that have no finalizer any more for counts.
func (r *round) settle(tracked map[string]bool) {
	status := r.job.GetStatus()
	uncounted := status.GetUncountedTerminatedPods()
	counted := func(uids []string) (left []string, n int32) {
		left = slices.DeleteFunc(slices.Clone(uids), func(uid string) bool { return !tracked[uid] })
		return left, int32(len(uids) - len(left))
	}
	if left, n := counted(uncounted.GetSucceeded()); n > 0 {
		uncounted.SetSucceeded(left)
		status.SetSucceeded(status.GetSucceeded() + n)
	}
	if left, n := counted(uncounted.GetFailed()); n > 0 {
		uncounted.SetFailed(left)
		status.SetFailed(status.GetFailed() + n)
	}
}

// collect notes the pods that have ended in the status, and returns those that may lose their finalizers once it is written; more says that there are
// too many for one turn.
func (r *round) collect() (done []*corev1.Pod, more bool) {
	status := r.job.GetStatus()
	uncounted := status.GetUncountedTerminatedPods()
	ended := r.outcome != nil && r.outcome.GetType() != string(batchk8s.JobSuccessCriteriaMet)
	pods := slices.Clone(r.pods)
	slices.SortFunc(pods, func(a, b *corev1.Pod) int {
		ia, _ := indexOf(a)
		ib, _ := indexOf(b)
		if ia != ib {
			return ia - ib
		}
		return strings.Compare(a.GetMetadata().GetUid(), b.GetMetadata().GetUid())
	})
	var completed []int
	for _, p := range pods {
		if !isTracked(p) || !r.mayUntrack(p) {
			continue
		}
		done = append(done, p)
		uid, counts := p.GetMetadata().GetUid(), r.counts(p)
		index, _ := indexOf(p)
		switch {
		case p.GetStatus().GetPhase() == podstate.Succeeded && !slices.Contains(uncounted.GetFailed(), uid):
			switch {
			case !isIndexed(r.job):
				if !slices.Contains(uncounted.GetSucceeded(), uid) {
					uncounted.SetSucceeded(append(uncounted.GetSucceeded(), uid))
				}
			case counts && !r.counted.has(index):
				// The index itself says that it was counted.
				completed = append(completed, index)
			}
		case isFailed(r.job, p) || ended:
			// Once the job has failed, also pods that have not ended yet count as failed.
			if counts && !slices.Contains(uncounted.GetFailed(), uid) && judge(r.job.GetSpec().GetPodFailurePolicy(), p).counts {
				uncounted.SetFailed(append(uncounted.GetFailed(), uid))
			}
		}
		if len(completed)+len(uncounted.GetSucceeded())+len(uncounted.GetFailed()) >= maxUncounted {
			more = true
			break
		}
	}
	if isIndexed(r.job) {
		r.counted = r.counted.with(completed)
		status.SetSucceeded(int32(r.counted.total()))
		if text := r.counted.String(); text != status.GetCompletedIndexes() {
			status.SetCompletedIndexes(text)
		}
		if r.perIndex() {
			status.SetFailedIndexes(r.lost.String())
		} else {
			status.ClearFailedIndexes()
		}
	}
	return done, more
}

// announce writes down that the job is about to end, and makes the outcome its last condition.
func (r *round) announce() {
	if r.outcome == nil {
		return
	}
	final := batchk8s.JobFailed
	switch batchk8s.JobConditionType(r.outcome.GetType()) {
	case batchk8s.JobSuccessCriteriaMet:
		final = batchk8s.JobComplete
		setCondition(r.job.GetStatus(), r.outcome)
	case batchk8s.JobFailureTarget:
		setCondition(r.job.GetStatus(), r.outcome)
	}
	r.outcome = newCondition(final, podstate.True, r.outcome.GetReason(), r.outcome.GetMessage(), r.now)
}

// finish adds the job's last condition when nothing is left to count and no pod is left to end.
func (r *round) finish() bool {
	status := r.job.GetStatus()
	uncounted := status.GetUncountedTerminatedPods()
	if r.outcome == nil || r.terminating > 0 || len(uncounted.GetSucceeded())+len(uncounted.GetFailed()) > 0 {
		return false
	}
	if !status.HasStartTime() {
		// Nothing was to be done, and the job was never resumed.
		status.SetStartTime(r.outcome.GetLastTransitionTime())
	}
	setCondition(status, r.outcome)
	if r.outcome.GetType() == string(batchk8s.JobComplete) {
		status.SetCompletionTime(r.outcome.GetLastTransitionTime())
	}
	return true
}

// writeStatus writes the status if it is not what is stored.
func (c *Controller) writeStatus(ctx context.Context, turn *reconcile.Turn[key], r *round) error {
	if r.stored.HasStatus() && proto.Equal(r.job.GetStatus(), r.stored.GetStatus()) {
		return nil
	}
	// A conflict means that the job has changed; its change will bring another turn.
	written, err := c.jobs.UpdateStatus(ctx, r.job)
	switch {
	case apierrors.IsNotFound(err):
		return nil
	case err != nil:
		return fmt.Errorf("status of job %s: %w", turn.Key, err)
	}
	turn.Wrote(written)
	r.stored = written
	r.job.SetMetadata(proto.CloneOf(written.GetMetadata()))
	return nil
}

// report tells that the job has ended.
func (c *Controller) report(r *round) {
	if r.outcome.GetType() != string(batchk8s.JobComplete) {
		c.events.Report(r.job, event.Warning, r.outcome.GetReason(), "%s", r.outcome.GetMessage())
		return
	}
	if spec := r.job.GetSpec(); spec.HasCompletions() && r.job.GetStatus().GetSucceeded() > spec.GetCompletions() {
		c.events.Report(r.job, event.Warning, "TooManySucceededPods", "Too many succeeded pods running after completion count reached")
	}
	c.events.Report(r.job, event.Normal, "Completed", "Job completed")
}

// condition returns a job's condition of a type, or nil.
func condition(j *batchv1.Job, kind batchk8s.JobConditionType) *batchv1.JobCondition {
	for _, c := range j.GetStatus().GetConditions() {
		if c.GetType() == string(kind) {
			return c
		}
	}
	return nil
}

func isTrue(j *batchv1.Job, kind batchk8s.JobConditionType) bool {
	return condition(j, kind).GetStatus() == podstate.True
}

func newCondition(kind batchk8s.JobConditionType, status, reason, message string, now time.Time) *batchv1.JobCondition {
	return batchv1.JobCondition_builder{
		Type: proto.String(string(kind)), Status: proto.String(status), Reason: proto.String(reason), Message: proto.String(message),
		LastProbeTime: apitime.Of(now), LastTransitionTime: apitime.Of(now),
	}.Build()
}

// setCondition puts a condition in place of the one of its type and returns whether anything changed. One that is false and not there stays away.
func setCondition(status *batchv1.JobStatus, c *batchv1.JobCondition) bool {
	conditions := status.GetConditions()
	for i, old := range conditions {
		if old.GetType() != c.GetType() {
			continue
		}
		if old.GetStatus() == c.GetStatus() && old.GetReason() == c.GetReason() && old.GetMessage() == c.GetMessage() {
			return false
		}
		conditions[i] = c
		status.SetConditions(conditions)
		return true
	}
	if c.GetStatus() == podstate.False {
		return false
	}
	status.SetConditions(append(conditions, c))
	return true
}
