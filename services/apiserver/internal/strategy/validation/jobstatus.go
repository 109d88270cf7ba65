package validation

import (
	"fmt"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// isJob says that a job has a condition that is true.
func isJob(j *batchv1.Job, kind batchv1.JobConditionType) bool {
	for _, c := range j.Status.Conditions {
		if c.Type == kind && c.Status == corev1.ConditionTrue {
			return true
		}
	}
	return false
}

// JobStatusUpdate looks at a job's new status, which other controllers than Dhow's may write (managedBy): what others read of it has to be true of any job.
func JobStatusUpdate(j, old *batchv1.Job) field.ErrorList {
	at := field.NewPath("status")
	s, was := &j.Status, &old.Status
	errs := jobCounts(s, at)
	conditions := func(message string) {
		errs = append(errs, field.Invalid(at.Child("conditions"), field.OmitValueType{}, message))
	}
	complete, failed := isJob(j, batchv1.JobComplete), isJob(j, batchv1.JobFailed)
	met, doomed := isJob(j, batchv1.JobSuccessCriteriaMet), isJob(j, batchv1.JobFailureTarget)
	for _, rule := range []struct {
		broken  bool
		message string
	}{
		{complete && failed, "cannot set Complete=True and Failed=true conditions"},
		{complete && doomed, "cannot set Complete=True and FailureTarget=true conditions"},
		{failed && !doomed && !isJob(old, batchv1.JobFailed), "cannot set Failed=True condition without the FailureTarget=true condition"},
		{complete && !met && !isJob(old, batchv1.JobComplete), "cannot set Complete=True condition without the SuccessCriteriaMet=true condition"},
		{met && failed, "cannot set SuccessCriteriaMet=True and Failed=true conditions"},
		{met && doomed, "cannot set SuccessCriteriaMet=True and FailureTarget=true conditions"},
		{isJob(old, batchv1.JobSuccessCriteriaMet) && !met, "cannot disable the SuccessCriteriaMet=True condition"},
		{isJob(old, batchv1.JobComplete) && !isJob(old, batchv1.JobSuccessCriteriaMet) && met, "cannot set SuccessCriteriaMet=True for Job already has Complete=true conditions"},
	} {
		if rule.broken {
			conditions(rule.message)
		}
	}
	for _, kind := range []batchv1.JobConditionType{batchv1.JobFailed, batchv1.JobComplete, batchv1.JobFailureTarget} {
		if isJob(old, kind) && !isJob(j, kind) {
			conditions(fmt.Sprintf("cannot disable the terminal %s=True condition", kind))
		}
	}
	errs = append(errs, jobTimes(j, old, at)...)
	if complete || failed {
		errs = append(errs, jobFinished(s, at)...)
	}
	errs = append(errs, jobIndexes(j, at)...)
	if s.Failed < was.Failed {
		errs = append(errs, field.Invalid(at.Child("failed"), s.Failed, "cannot decrease the failed counter"))
	}
	// That of an indexed job goes down with its completions.
	if s.Succeeded < was.Succeeded && !isIndexed(&j.Spec) {
		errs = append(errs, field.Invalid(at.Child("succeeded"), s.Succeeded, "cannot decrease the succeeded counter"))
	}
	return errs
}

func jobCounts(s *batchv1.JobStatus, at *field.Path) field.ErrorList {
	errs := nonNegative(at.Child("active"), s.Active)
	errs = append(errs, nonNegative(at.Child("succeeded"), s.Succeeded)...)
	errs = append(errs, nonNegative(at.Child("failed"), s.Failed)...)
	errs = append(errs, nonNegativePointer(at.Child("ready"), s.Ready)...)
	errs = append(errs, nonNegativePointer(at.Child("terminating"), s.Terminating)...)
	if s.Ready != nil && *s.Ready > s.Active {
		errs = append(errs, field.Invalid(at.Child("ready"), *s.Ready, "cannot set more ready pods than active"))
	}
	if s.UncountedTerminatedPods == nil {
		return errs
	}
	seen := map[types.UID]bool{}
	for _, list := range []struct {
		name string
		uids []types.UID
	}{{"succeeded", s.UncountedTerminatedPods.Succeeded}, {"failed", s.UncountedTerminatedPods.Failed}} {
		for i, uid := range list.uids {
			at := at.Child("uncountedTerminatedPods", list.name).Index(i)
			switch {
			case uid == "":
				errs = append(errs, field.Invalid(at, uid, "must not be empty"))
			case seen[uid]:
				errs = append(errs, field.Duplicate(at, uid))
			}
			seen[uid] = true
		}
	}
	return errs
}

func jobTimes(j, old *batchv1.Job, at *field.Path) field.ErrorList {
	var errs field.ErrorList
	s, was, complete := &j.Status, &old.Status, isJob(j, batchv1.JobComplete)
	end := at.Child("completionTime")
	switch {
	case s.CompletionTime != nil && !complete:
		errs = append(errs, field.Invalid(end, s.CompletionTime, "cannot set completionTime when there is no Complete=True condition"))
	case s.CompletionTime == nil && complete:
		errs = append(errs, field.Required(end, "completionTime is required for Complete jobs"))
	case s.CompletionTime != nil && s.StartTime != nil && s.CompletionTime.Before(s.StartTime):
		errs = append(errs, field.Invalid(end, s.CompletionTime, "completionTime cannot be set before startTime"))
	}
	if s.CompletionTime != nil && was.CompletionTime != nil && !s.CompletionTime.Equal(was.CompletionTime) {
		errs = append(errs, field.Invalid(end, s.CompletionTime, "completionTime cannot be mutated"))
	}
	// A job that is resumed starts anew.
	resumed := isJob(old, batchv1.JobSuspended) && !isJob(j, batchv1.JobSuspended)
	if suspended := j.Spec.Suspend != nil && *j.Spec.Suspend; was.StartTime != nil && !apiequality.Semantic.DeepEqual(was.StartTime, s.StartTime) && !suspended && !resumed {
		errs = append(errs, field.Required(at.Child("startTime"), "startTime cannot be removed for unsuspended job"))
	}
	return errs
}

func jobFinished(s *batchv1.JobStatus, at *field.Path) field.ErrorList {
	var errs field.ErrorList
	if s.Active > 0 {
		errs = append(errs, field.Invalid(at.Child("active"), s.Active, "active>0 is invalid for finished job"))
	}
	if s.Terminating != nil && *s.Terminating > 0 {
		errs = append(errs, field.Invalid(at.Child("terminating"), s.Terminating, "terminating>0 is invalid for finished job"))
	}
	if s.StartTime == nil {
		errs = append(errs, field.Required(at.Child("startTime"), "startTime is required for finished job"))
	}
	if u := s.UncountedTerminatedPods; u != nil && len(u.Failed)+len(u.Succeeded) > 0 {
		errs = append(errs, field.Invalid(at.Child("uncountedTerminatedPods"), u, "uncountedTerminatedPods needs to be empty for finished job"))
	}
	return errs
}

func jobIndexes(j *batchv1.Job, at *field.Path) field.ErrorList {
	var errs field.ErrorList
	s := &j.Status
	if s.CompletedIndexes != "" && !isIndexed(&j.Spec) {
		errs = append(errs, field.Invalid(at.Child("completedIndexes"), s.CompletedIndexes, "cannot set non-empty completedIndexes when non-indexed completion mode"))
	}
	if s.FailedIndexes != nil && j.Spec.BackoffLimitPerIndex == nil {
		errs = append(errs, field.Invalid(at.Child("failedIndexes"), *s.FailedIndexes, "cannot set non-null failedIndexes when backoffLimitPerIndex is null"))
	}
	if j.Spec.Completions == nil {
		return errs
	}
	completed, err := parseIntervals(s.CompletedIndexes, *j.Spec.Completions)
	if err != nil {
		errs = append(errs, field.Invalid(at.Child("completedIndexes"), s.CompletedIndexes, "error parsing completedIndexes: "+err.Error()))
	}
	if s.FailedIndexes == nil {
		return errs
	}
	failed, err := parseIntervals(*s.FailedIndexes, *j.Spec.Completions)
	if err != nil {
		errs = append(errs, field.Invalid(at.Child("failedIndexes"), s.FailedIndexes, "error parsing failedIndexes: "+err.Error()))
	}
	for c, f := 0, 0; c < len(completed) && f < len(failed); {
		if a, b := completed[c], failed[f]; a.first <= b.last && b.first <= a.last {
			return append(errs, field.Invalid(at.Child("failedIndexes"), *s.FailedIndexes,
				fmt.Sprintf("failedIndexes and completedIndexes overlap at index: %d", max(a.first, b.first))))
		}
		if completed[c].last < failed[f].last {
			c++
		} else {
			f++
		}
	}
	return errs
}
