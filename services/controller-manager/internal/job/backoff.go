package job

import (
	"slices"
	"strconv"
	"time"

	batchv1 "dhow.dev/gen/go/dhow/batch/v1"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/services/controller-manager/internal/apitime"
	"dhow.dev/services/controller-manager/internal/podstate"
)

// A pod that failed is replaced after a delay that doubles with each failure since the last success; the bounds are Kubernetes'.
const (
	minDelay = 10 * time.Second
	maxDelay = 10 * time.Minute
)

// The failures of an index are written on its pods, and taken over by the next one. Ignored ones count for the delay alone.
const (
	failureCount        = "batch.kubernetes.io/job-index-failure-count"
	ignoredFailureCount = "batch.kubernetes.io/job-index-ignored-failure-count"
)

// endOf returns when a pod ended: when its last container did, else when it became unready, else when it was asked to go.
func endOf(p *corev1.Pod) time.Time {
	var last time.Time
	for _, c := range slices.Concat(p.GetStatus().GetContainerStatuses(), p.GetStatus().GetInitContainerStatuses()) {
		if at := apitime.Go(c.GetState().GetTerminated().GetFinishedAt()); at.After(last) {
			last = at
		}
	}
	if !last.IsZero() {
		return last
	}
	if c := podstate.Condition(p, podstate.ConditionReady); c != nil && c.GetStatus() != podstate.True && c.HasLastTransitionTime() {
		return apitime.Go(c.GetLastTransitionTime())
	}
	m := p.GetMetadata()
	if m.HasDeletionTimestamp() {
		return apitime.Go(m.GetDeletionTimestamp()).Add(-time.Duration(m.GetDeletionGracePeriodSeconds()) * time.Second)
	}
	return apitime.Go(m.GetCreationTimestamp())
}

// delayAfter is how long to wait now, after so many failures of which the last was at that time.
func delayAfter(failures int, last, now time.Time) time.Duration {
	if failures <= 0 {
		return 0
	}
	delay := maxDelay
	if failures < 16 { // beyond, the shift would exceed the maximum many times over
		delay = min(maxDelay, minDelay<<(failures-1))
	}
	return max(0, last.Add(delay).Sub(now))
}

// restartDelay is how long to wait now before a job's next pod: by the failures after the last success. It is read from the pods, which stay as long as
// their job, so that another process knows it too.
func restartDelay(j *batchv1.Job, pods []*corev1.Pod, now time.Time) time.Duration {
	var success, failure time.Time
	for _, p := range pods {
		if p.GetStatus().GetPhase() == podstate.Succeeded {
			if at := endOf(p); at.After(success) {
				success = at
			}
		}
	}
	failures := 0
	for _, p := range pods {
		if !isFailed(j, p) {
			continue
		}
		if at := endOf(p); at.After(success) {
			failures++
			if at.After(failure) {
				failure = at
			}
		}
	}
	return delayAfter(failures, failure, now)
}

// failuresOf returns the failures of a pod's index before the pod: those that count, and those that were ignored.
func failuresOf(p *corev1.Pod) (counted, ignored int) {
	number := func(name string) int {
		n, err := strconv.Atoi(p.GetMetadata().GetAnnotations()[name])
		if err != nil || n < 0 {
			return 0
		}
		return n
	}
	return number(failureCount), number(ignoredFailureCount)
}

// failuresWith returns the failures of an index, that of the failed pod included; 0 and 0 for nil.
func failuresWith(j *batchv1.Job, p *corev1.Pod) (counted, ignored int) {
	if p == nil {
		return 0, 0
	}
	counted, ignored = failuresOf(p)
	if judge(j.GetSpec().GetPodFailurePolicy(), p).counts {
		return counted + 1, ignored
	}
	return counted, ignored + 1
}

// indexDelay is how long to wait now before the next pod of an index whose last pod failed, or is nil.
func indexDelay(last *corev1.Pod, now time.Time) time.Duration {
	if last == nil {
		return 0
	}
	counted, ignored := failuresOf(last)
	return delayAfter(counted+ignored+1, endOf(last), now)
}
