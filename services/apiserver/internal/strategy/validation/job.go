package validation

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/robfig/cron/v3"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/labels"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Bounds of jobs; Kubernetes' numbers.
const (
	mostAtOnce          = 100_000 // of an indexed job
	manyCompletions     = 100_000 // beyond, an indexed job with limits per index has bounds of its own
	mostAtOnceOfMany    = 10_000
	mostFailedOfMany    = 10_000
	mostPolicyRules     = 20
	mostExitCodes       = 255
	mostPodConditions   = 20
	longestIndexes      = 64 << 10
	longestManager      = 63
	notGenerated        = "`selector` not auto-generated"
	needsIndexed        = "requires indexed completion mode"
	oneOfCodesAndStates = "specifying one of OnExitCodes and OnPodConditions is required"
)

// Job looks at a new job.
func Job(j *batchv1.Job) field.ErrorList {
	at := field.NewPath("spec")
	errs := generatedSelector(j, at)
	errs = append(errs, jobSpec(&j.Spec, at)...)
	errs = append(errs, jobSelector(&j.Spec, at)...)
	if n := j.Spec.Completions; isIndexed(&j.Spec) && n != nil && *n > 0 {
		// The last pod's host name is the longest.
		last := fmt.Sprintf("%s-%d", j.Name, *n-1)
		if len(utilvalidation.IsDNS1123Label(last)) > 0 {
			errs = append(errs, field.Invalid(field.NewPath("metadata", "name"), j.Name, "will not able to create pod with invalid DNS label: "+last))
		}
	}
	return errs
}

func isIndexed(spec *batchv1.JobSpec) bool {
	return spec.CompletionMode != nil && *spec.CompletionMode == batchv1.IndexedCompletion
}

// generatedSelector looks at the labels that a job gives its pods when it does not choose them: others of the same name may be in the way.
func generatedSelector(j *batchv1.Job, at *field.Path) field.ErrorList {
	if j.Spec.ManualSelector != nil && *j.Spec.ManualSelector || j.Spec.Selector == nil {
		return nil
	}
	var errs field.ErrorList
	generated := labels.Set{}
	for _, label := range []struct{ name, value string }{
		{"controller-uid", string(j.UID)}, {"job-name", j.Name}, {batchv1.ControllerUidLabel, string(j.UID)}, {batchv1.JobNameLabel, j.Name},
	} {
		generated[label.name] = label.value
		switch is, ok := j.Spec.Template.Labels[label.name]; {
		case !ok:
			errs = append(errs, field.Required(at.Child("template", "metadata", "labels").Key(label.name), fmt.Sprintf("must be '%s'", label.value)))
		case is != label.value:
			errs = append(errs, field.Invalid(at.Child("template", "metadata", "labels").Key(label.name), j.Spec.Template.Labels, fmt.Sprintf("must be '%s'", label.value)))
		}
	}
	if selector, err := metav1.LabelSelectorAsSelector(j.Spec.Selector); err == nil && !selector.Matches(generated) {
		errs = append(errs, field.Invalid(at.Child("selector"), j.Spec.Selector, notGenerated))
	}
	return errs
}

func jobSelector(spec *batchv1.JobSpec, at *field.Path) field.ErrorList {
	if spec.Selector == nil {
		return field.ErrorList{field.Required(at.Child("selector"), "")}
	}
	errs := metav1validation.ValidateLabelSelector(spec.Selector, metav1validation.LabelSelectorValidationOptions{}, at.Child("selector"))
	if selector, err := metav1.LabelSelectorAsSelector(spec.Selector); err == nil && !selector.Matches(labels.Set(spec.Template.Labels)) {
		errs = append(errs, field.Invalid(at.Child("template", "metadata", "labels"), spec.Template.Labels, "`selector` does not match template `labels`"))
	}
	return errs
}

func jobSpec(spec *batchv1.JobSpec, at *field.Path) field.ErrorList {
	var errs field.ErrorList
	for _, n := range []struct {
		name  string
		value *int32
	}{
		{"parallelism", spec.Parallelism}, {"completions", spec.Completions}, {"backoffLimit", spec.BackoffLimit},
		{"ttlSecondsAfterFinished", spec.TTLSecondsAfterFinished}, {"backoffLimitPerIndex", spec.BackoffLimitPerIndex}, {"maxFailedIndexes", spec.MaxFailedIndexes},
	} {
		errs = append(errs, nonNegativePointer(at.Child(n.name), n.value)...)
	}
	errs = append(errs, nonNegativePointer(at.Child("activeDeadlineSeconds"), spec.ActiveDeadlineSeconds)...)
	if spec.MaxFailedIndexes != nil && spec.BackoffLimitPerIndex == nil {
		errs = append(errs, field.Required(at.Child("backoffLimitPerIndex"), "when maxFailedIndexes is specified"))
	}
	if m := spec.ManagedBy; m != nil {
		errs = append(errs, utilvalidation.IsDomainPrefixedPath(at.Child("managedBy"), *m)...)
		if len(*m) > longestManager {
			errs = append(errs, field.TooLong(at.Child("managedBy"), *m, longestManager))
		}
	}
	if spec.CompletionMode != nil {
		errs = append(errs, oneOf(at.Child("completionMode"), *spec.CompletionMode, batchv1.NonIndexedCompletion, batchv1.IndexedCompletion)...)
	}
	if isIndexed(spec) {
		errs = append(errs, indexedJob(spec, at)...)
	} else {
		if v := spec.BackoffLimitPerIndex; v != nil {
			errs = append(errs, field.Invalid(at.Child("backoffLimitPerIndex"), *v, needsIndexed))
		}
		if v := spec.MaxFailedIndexes; v != nil {
			errs = append(errs, field.Invalid(at.Child("maxFailedIndexes"), *v, needsIndexed))
		}
	}
	if spec.PodFailurePolicy != nil {
		errs = append(errs, podFailurePolicy(spec, at.Child("podFailurePolicy", "rules"))...)
	}
	switch {
	case spec.SuccessPolicy == nil:
	case !isIndexed(spec):
		errs = append(errs, field.Invalid(at.Child("successPolicy"), *spec.SuccessPolicy, needsIndexed))
	case spec.Completions != nil:
		errs = append(errs, successPolicy(spec, at.Child("successPolicy", "rules"))...)
	}
	if p := spec.PodReplacementPolicy; p != nil {
		valid := []batchv1.PodReplacementPolicy{batchv1.Failed}
		if spec.PodFailurePolicy == nil {
			valid = append(valid, batchv1.TerminatingOrFailed)
		}
		errs = append(errs, oneOf(at.Child("podReplacementPolicy"), *p, valid...)...)
	}
	errs = append(errs, PodTemplate(&spec.Template, at.Child("template"))...)
	policy := at.Child("template", "spec", "restartPolicy")
	switch p := spec.Template.Spec.RestartPolicy; p {
	case corev1.RestartPolicyAlways, "":
		errs = append(errs, field.Required(policy, fmt.Sprintf("valid values: %q, %q", corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever)))
	case corev1.RestartPolicyNever:
	case corev1.RestartPolicyOnFailure:
		if spec.PodFailurePolicy != nil {
			errs = append(errs, field.Invalid(policy, p, fmt.Sprintf("only %q is supported when podFailurePolicy is specified", corev1.RestartPolicyNever)))
		}
	default:
		errs = append(errs, oneOf(policy, p, corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever)...)
	}
	return errs
}

// indexedJob looks at what is bounded for jobs whose indexes are written down.
func indexedJob(spec *batchv1.JobSpec, at *field.Path) field.ErrorList {
	var errs field.ErrorList
	if spec.Completions == nil {
		errs = append(errs, field.Required(at.Child("completions"), fmt.Sprintf("when completion mode is %s", batchv1.IndexedCompletion)))
	}
	most := func(name string, value *int32, bound int32, message string) {
		if value != nil && *value > bound {
			errs = append(errs, field.Invalid(at.Child(name), *value, message))
		}
	}
	most("parallelism", spec.Parallelism, mostAtOnce, fmt.Sprintf("must be less than or equal to %d when completion mode is %s", mostAtOnce, batchv1.IndexedCompletion))
	if spec.Completions != nil {
		most("maxFailedIndexes", spec.MaxFailedIndexes, *spec.Completions, "must be less than or equal to completions")
	}
	most("maxFailedIndexes", spec.MaxFailedIndexes, mostAtOnce, fmt.Sprintf("must be less than or equal to %d", mostAtOnce))
	if spec.Completions == nil || *spec.Completions <= manyCompletions || spec.BackoffLimitPerIndex == nil {
		return errs
	}
	if spec.MaxFailedIndexes == nil {
		errs = append(errs, field.Required(at.Child("maxFailedIndexes"), fmt.Sprintf("must be specified when completions is above %d", manyCompletions)))
	}
	const ofMany = "must be less than or equal to %d when completions are above %d and used with backoff limit per index"
	most("parallelism", spec.Parallelism, mostAtOnceOfMany, fmt.Sprintf(ofMany, mostAtOnceOfMany, manyCompletions))
	most("maxFailedIndexes", spec.MaxFailedIndexes, mostFailedOfMany, fmt.Sprintf(ofMany, mostFailedOfMany, manyCompletions))
	return errs
}

// quoted lists valid values as Kubernetes does in messages of its own.
func quoted[T ~string](valid ...T) string { return fmt.Sprintf("valid values: %q", sorted(valid)) }

func podFailurePolicy(spec *batchv1.JobSpec, at *field.Path) field.ErrorList {
	var errs field.ErrorList
	rules := spec.PodFailurePolicy.Rules
	if len(rules) > mostPolicyRules {
		errs = append(errs, field.TooMany(at, len(rules), mostPolicyRules))
	}
	containers := map[string]bool{}
	for _, c := range slices.Concat(spec.Template.Spec.InitContainers, spec.Template.Spec.Containers) {
		containers[c.Name] = true
	}
	actions := []batchv1.PodFailurePolicyAction{
		batchv1.PodFailurePolicyActionCount, batchv1.PodFailurePolicyActionFailIndex, batchv1.PodFailurePolicyActionFailJob, batchv1.PodFailurePolicyActionIgnore,
	}
	for i, rule := range rules {
		at := at.Index(i)
		switch {
		case rule.Action == "":
			errs = append(errs, field.Required(at.Child("action"), quoted(actions...)))
		case rule.Action == batchv1.PodFailurePolicyActionFailIndex:
			if spec.BackoffLimitPerIndex == nil {
				errs = append(errs, field.Invalid(at.Child("action"), rule.Action, "requires the backoffLimitPerIndex to be set"))
			}
		default:
			errs = append(errs, oneOf(at.Child("action"), rule.Action, actions...)...)
		}
		if rule.OnExitCodes != nil {
			errs = append(errs, onExitCodes(rule.OnExitCodes, at.Child("onExitCodes"), containers)...)
		}
		if n := len(rule.OnPodConditions); n > mostPodConditions {
			errs = append(errs, field.TooMany(at.Child("onPodConditions"), n, mostPodConditions))
		}
		for j, pattern := range rule.OnPodConditions {
			at := at.Child("onPodConditions").Index(j)
			errs = append(errs, qualifiedName(at.Child("type"), string(pattern.Type))...)
			statuses := []corev1.ConditionStatus{corev1.ConditionFalse, corev1.ConditionTrue, corev1.ConditionUnknown}
			if pattern.Status == "" {
				errs = append(errs, field.Required(at.Child("status"), quoted(statuses...)))
			} else {
				errs = append(errs, oneOf(at.Child("status"), pattern.Status, statuses...)...)
			}
		}
		switch {
		case rule.OnExitCodes != nil && len(rule.OnPodConditions) > 0:
			errs = append(errs, field.Invalid(at, field.OmitValueType{}, "specifying both OnExitCodes and OnPodConditions is not supported"))
		case rule.OnExitCodes == nil && len(rule.OnPodConditions) == 0:
			errs = append(errs, field.Invalid(at, field.OmitValueType{}, oneOfCodesAndStates))
		}
	}
	return errs
}

func onExitCodes(rule *batchv1.PodFailurePolicyOnExitCodesRequirement, at *field.Path, containers map[string]bool) field.ErrorList {
	var errs field.ErrorList
	operators := []batchv1.PodFailurePolicyOnExitCodesOperator{batchv1.PodFailurePolicyOnExitCodesOpIn, batchv1.PodFailurePolicyOnExitCodesOpNotIn}
	if rule.Operator == "" {
		errs = append(errs, field.Required(at.Child("operator"), quoted(operators...)))
	} else {
		errs = append(errs, oneOf(at.Child("operator"), rule.Operator, operators...)...)
	}
	if c := rule.ContainerName; c != nil && !containers[*c] {
		errs = append(errs, field.Invalid(at.Child("containerName"), *c, "must be one of the container or initContainer names in the pod template"))
	}
	values := at.Child("values")
	if n := len(rule.Values); n == 0 {
		errs = append(errs, field.Invalid(values, rule.Values, "at least one value is required"))
	} else if n > mostExitCodes {
		errs = append(errs, field.TooMany(values, n, mostExitCodes))
	}
	seen := map[int32]bool{}
	for i, code := range rule.Values {
		if rule.Operator == batchv1.PodFailurePolicyOnExitCodesOpIn && code == 0 {
			errs = append(errs, field.Invalid(values.Index(i), code, "must not be 0 for the In operator"))
		}
		if seen[code] {
			errs = append(errs, field.Duplicate(values.Index(i), code))
		}
		seen[code] = true
	}
	if !slices.IsSorted(rule.Values) {
		errs = append(errs, field.Invalid(values, rule.Values, "must be ordered"))
	}
	return errs
}

func successPolicy(spec *batchv1.JobSpec, at *field.Path) field.ErrorList {
	var errs field.ErrorList
	rules := spec.SuccessPolicy.Rules
	if len(rules) == 0 {
		errs = append(errs, field.Required(at, "at least one rules must be specified when the successPolicy is specified"))
	}
	if len(rules) > mostPolicyRules {
		errs = append(errs, field.TooMany(at, len(rules), mostPolicyRules))
	}
	for i, rule := range rules {
		at := at.Index(i)
		if rule.SucceededCount == nil && rule.SucceededIndexes == nil {
			errs = append(errs, field.Required(at, "at least one of succeededCount or succeededIndexes must be specified"))
		}
		var named int32
		if text := rule.SucceededIndexes; text != nil {
			if len(*text) > longestIndexes {
				errs = append(errs, field.TooLong(at.Child("succeededIndexes"), *text, longestIndexes))
			}
			intervals, err := parseIntervals(*text, *spec.Completions)
			if err != nil {
				errs = append(errs, field.Invalid(at.Child("succeededIndexes"), *text, "error parsing succeededIndexes: "+err.Error()))
			}
			for _, r := range intervals {
				named += r.last - r.first + 1
			}
		}
		if n := rule.SucceededCount; n != nil {
			count := at.Child("succeededCount")
			errs = append(errs, nonNegative(count, *n)...)
			if *n > *spec.Completions {
				errs = append(errs, field.Invalid(count, *n, fmt.Sprintf("must be less than or equal to %d (the number of specified completions)", *spec.Completions)))
			}
			if rule.SucceededIndexes != nil && *n > named {
				errs = append(errs, field.Invalid(count, *n, fmt.Sprintf("must be less than or equal to %d (the number of indexes in the specified succeededIndexes field)", named)))
			}
		}
	}
	return errs
}

// interval is a run of completion indexes, both ends included.
type interval struct{ first, last int32 }

// parseIntervals reads "1,3-5", which has to be in increasing order and below completions.
func parseIntervals(text string, completions int32) ([]interval, error) {
	if text == "" {
		return nil, nil
	}
	number := func(s string) (int32, error) {
		n, err := strconv.ParseInt(s, 10, 32)
		if err != nil {
			return 0, fmt.Errorf("cannot convert string to integer for index: %q", s)
		}
		if n >= int64(completions) {
			return 0, fmt.Errorf("too large index: %q", s)
		}
		return int32(n), nil
	}
	var all []interval
	for part := range strings.SplitSeq(text, ",") {
		ends := strings.Split(part, "-")
		if len(ends) > 2 {
			return nil, fmt.Errorf("the fragment %q violates the requirement that an index interval can have at most two parts separated by '-'", part)
		}
		first, err := number(ends[0])
		if err != nil {
			return nil, err
		}
		last := first
		if len(ends) == 2 {
			if last, err = number(ends[1]); err != nil {
				return nil, err
			}
			if first >= last {
				return nil, fmt.Errorf("non-increasing order, previous: %d, current: %d", first, last)
			}
		}
		if n := len(all); n > 0 && all[n-1].last >= first {
			return nil, fmt.Errorf("non-increasing order, previous: %d, current: %d", all[n-1].last, first)
		}
		all = append(all, interval{first, last})
	}
	return all, nil
}

// JobUpdate looks at a changed job: what its pods are, and which are its own, is fixed. While it is suspended and none of its pods run, where they may run
// and what they request is not.
func JobUpdate(j, old *batchv1.Job) field.ErrorList {
	at := field.NewPath("spec")
	spec, was := &j.Spec, &old.Spec
	errs := append(jobSpec(spec, at), jobSelector(spec, at)...)
	for _, fixed := range []struct {
		name    string
		is, was any
	}{
		{"selector", spec.Selector, was.Selector}, {"completionMode", spec.CompletionMode, was.CompletionMode},
		{"podFailurePolicy", spec.PodFailurePolicy, was.PodFailurePolicy}, {"backoffLimitPerIndex", spec.BackoffLimitPerIndex, was.BackoffLimitPerIndex},
		{"managedBy", spec.ManagedBy, was.ManagedBy}, {"successPolicy", spec.SuccessPolicy, was.SuccessPolicy},
	} {
		errs = append(errs, immutable(at.Child(fixed.name), fixed.is, fixed.was)...)
	}
	switch {
	case !isIndexed(spec):
		errs = append(errs, immutable(at.Child("completions"), spec.Completions, was.Completions)...)
	case !apiequality.Semantic.DeepEqual(spec.Completions, was.Completions) && spec.Completions != nil &&
		(spec.Parallelism == nil || *spec.Completions != *spec.Parallelism):
		errs = append(errs, field.Invalid(at.Child("completions"), spec.Completions, fmt.Sprintf("can only be modified in tandem with %s", at.Root().Child("parallelism"))))
	}
	template := was.Template.DeepCopy()
	if rests(old) {
		loosen(template, &spec.Template)
	}
	return append(errs, immutable(at.Child("template"), spec.Template, *template)...)
}

// rests says that a job is suspended, and has no pods that were made of its template.
func rests(j *batchv1.Job) bool {
	if j.Spec.Suspend == nil || !*j.Spec.Suspend {
		return false
	}
	return j.Status.StartTime == nil || j.Status.Active == 0 && isJob(j, batchv1.JobSuspended)
}

// loosen takes over from a new template what may change of an old one.
func loosen(old, is *corev1.PodTemplateSpec) {
	old.Labels, old.Annotations = is.Labels, is.Annotations
	old.Spec.NodeSelector, old.Spec.Tolerations, old.Spec.SchedulingGates = is.Spec.NodeSelector, is.Spec.Tolerations, is.Spec.SchedulingGates
	// Of affinities those to nodes.
	var nodes *corev1.NodeAffinity
	if is.Spec.Affinity != nil {
		nodes = is.Spec.Affinity.NodeAffinity
	}
	switch {
	case old.Spec.Affinity == nil && is.Spec.Affinity != nil:
		old.Spec.Affinity = &corev1.Affinity{NodeAffinity: nodes}
	case old.Spec.Affinity != nil:
		if old.Spec.Affinity.NodeAffinity = nodes; is.Spec.Affinity == nil && *old.Spec.Affinity == (corev1.Affinity{}) {
			old.Spec.Affinity = nil
		}
	}
	for _, c := range []struct{ old, is []corev1.Container }{{old.Spec.InitContainers, is.Spec.InitContainers}, {old.Spec.Containers, is.Spec.Containers}} {
		for i := range min(len(c.old), len(c.is)) {
			c.old[i].Resources.Requests, c.old[i].Resources.Limits = c.is[i].Resources.Requests, c.is[i].Resources.Limits
		}
	}
}

// CronJob looks at a new cron job.
func CronJob(c *batchv1.CronJob) field.ErrorList { return cronJob(c, nil) }

// CronJobUpdate looks at a changed cron job. What an older version let in may stay.
func CronJobUpdate(c, old *batchv1.CronJob) field.ErrorList { return cronJob(c, &old.Spec) }

func cronJob(c *batchv1.CronJob, old *batchv1.CronJobSpec) field.ErrorList {
	at := field.NewPath("spec")
	spec := &c.Spec
	var errs field.ErrorList
	if spec.Schedule == "" {
		errs = append(errs, field.Required(at.Child("schedule"), ""))
	} else {
		if _, err := cron.ParseStandard(spec.Schedule); err != nil {
			errs = append(errs, field.Invalid(at.Child("schedule"), spec.Schedule, err.Error()))
		}
		switch had := old != nil && strings.Contains(old.Schedule, "TZ"); {
		case !strings.Contains(spec.Schedule, "TZ"):
		case !had:
			errs = append(errs, field.Invalid(at.Child("schedule"), spec.Schedule, "cannot use TZ or CRON_TZ in schedule, use timeZone field instead"))
		case spec.TimeZone != nil:
			errs = append(errs, field.Invalid(at.Child("schedule"), spec.Schedule, "cannot use both timeZone field and TZ or CRON_TZ in schedule"))
		}
	}
	if old == nil || !apiequality.Semantic.DeepEqual(old.TimeZone, spec.TimeZone) {
		errs = append(errs, timeZone(spec.TimeZone, at.Child("timeZone"))...)
	}
	errs = append(errs, nonNegativePointer(at.Child("startingDeadlineSeconds"), spec.StartingDeadlineSeconds)...)
	errs = append(errs, requiredOneOf(at.Child("concurrencyPolicy"), spec.ConcurrencyPolicy, batchv1.AllowConcurrent, batchv1.ForbidConcurrent, batchv1.ReplaceConcurrent)...)
	errs = append(errs, nonNegativePointer(at.Child("successfulJobsHistoryLimit"), spec.SuccessfulJobsHistoryLimit)...)
	errs = append(errs, nonNegativePointer(at.Child("failedJobsHistoryLimit"), spec.FailedJobsHistoryLimit)...)
	job := at.Child("jobTemplate", "spec")
	if s := spec.JobTemplate.Spec.Selector; s != nil {
		errs = append(errs, field.Invalid(job.Child("selector"), s, "`selector` will be auto-generated"))
	}
	if s := spec.JobTemplate.Spec.ManualSelector; s != nil && *s {
		errs = append(errs, field.NotSupported(job.Child("manualSelector"), true, []string{"nil", "false"}))
	}
	return append(errs, jobSpec(&spec.JobTemplate.Spec, job)...)
}

func timeZone(zone *string, at *field.Path) field.ErrorList {
	if zone == nil {
		return nil
	}
	var errs field.ErrorList
	switch _, err := time.LoadLocation(*zone); {
	case *zone == "":
		errs = append(errs, field.Invalid(at, zone, "timeZone must be nil or non-empty string"))
	case strings.EqualFold(*zone, "Local"):
		errs = append(errs, field.Invalid(at, zone, "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones"))
	case err != nil:
		errs = append(errs, field.Invalid(at, zone, err.Error()))
	}
	return errs
}
