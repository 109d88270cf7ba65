package validation

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/util/diff"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// podUpdatable is what Kubernetes says may change of a pod.
const podUpdatable = "`spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations)," +
	"`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)"

// PodUpdate looks at a changed pod: little of one that exists may change.
func PodUpdate(p, old *corev1.Pod) field.ErrorList {
	at := field.NewPath("spec")
	errs := podSpec(&p.Spec, at, false)
	if len(p.Spec.Containers) != len(old.Spec.Containers) {
		return append(errs, field.Forbidden(at.Child("containers"), "pod updates may not add or remove containers"))
	}
	if len(p.Spec.InitContainers) != len(old.Spec.InitContainers) {
		return append(errs, field.Forbidden(at.Child("initContainers"), "pod updates may not add or remove containers"))
	}
	errs = append(errs, deadlineUpdate(at.Child("activeDeadlineSeconds"), p.Spec.ActiveDeadlineSeconds, old.Spec.ActiveDeadlineSeconds)...)
	errs = append(errs, tolerationsUpdate(at.Child("tolerations"), p.Spec.Tolerations, old.Spec.Tolerations)...)
	errs = append(errs, gatesUpdate(at.Child("schedulingGates"), p.Spec.SchedulingGates, old.Spec.SchedulingGates)...)
	if len(errs) > 0 {
		return errs
	}

	munged := p.Spec.DeepCopy()
	for i := range munged.Containers {
		munged.Containers[i].Image = old.Spec.Containers[i].Image
	}
	for i := range munged.InitContainers {
		munged.InitContainers[i].Image = old.Spec.InitContainers[i].Image
	}
	munged.ActiveDeadlineSeconds = old.Spec.ActiveDeadlineSeconds
	munged.Tolerations = old.Spec.Tolerations
	munged.SchedulingGates = old.Spec.SchedulingGates
	was, is := old.Spec.TerminationGracePeriodSeconds, p.Spec.TerminationGracePeriodSeconds
	if was != nil && *was < 0 && is != nil && *is == 1 {
		munged.TerminationGracePeriodSeconds = was
	}
	if len(old.Spec.SchedulingGates) > 0 {
		errs = append(errs, gatedUpdate(at, munged, &old.Spec)...)
	}
	if len(errs) == 0 && !apiequality.Semantic.DeepEqual(*munged, old.Spec) {
		errs = append(errs, field.Forbidden(at, fmt.Sprintf("pod updates may not change fields other than %s\n%v", podUpdatable, diff.Diff(old.Spec, *munged))))
	}
	return errs
}

// deadlineUpdate lets a deadline be set and shortened.
func deadlineUpdate(at *field.Path, is, was *int64) field.ErrorList {
	switch {
	case was == nil:
	case is == nil:
		return field.ErrorList{field.Invalid(at, is, "must not update from a positive integer to nil value")}
	case *is > *was:
		return field.ErrorList{field.Invalid(at, *is, "must be less than or equal to previous value")}
	}
	return nil
}

// tolerationsUpdate lets tolerations be added, and change in their time.
func tolerationsUpdate(at *field.Path, is, was []corev1.Toleration) field.ErrorList {
	for _, old := range was {
		if !slices.ContainsFunc(is, func(t corev1.Toleration) bool { return old.MatchToleration(&t) }) {
			return field.ErrorList{field.Forbidden(at, "existing toleration can not be modified except its tolerationSeconds")}
		}
	}
	return nil
}

// gatesUpdate lets gates be taken away.
func gatesUpdate(at *field.Path, is, was []corev1.PodSchedulingGate) field.ErrorList {
	var errs field.ErrorList
	for i, gate := range is {
		if !slices.Contains(was, gate) {
			errs = append(errs, field.Forbidden(at.Index(i), fmt.Sprintf("only deletion is allowed, but found new scheduling gate '%s'", gate.Name)))
		}
	}
	return errs
}

// gatedUpdate lets who holds a pod back narrow where it may go: what is narrowed is set back in munged.
func gatedUpdate(at *field.Path, munged, old *corev1.PodSpec) field.ErrorList {
	var errs field.ErrorList
	for key, value := range old.NodeSelector {
		if got, ok := munged.NodeSelector[key]; !ok || got != value {
			errs = append(errs, field.Invalid(at.Child("nodeSelector"), munged.NodeSelector, "only additions to spec.nodeSelector are allowed (no mutations or deletions)"))
			break
		}
	}
	munged.NodeSelector = old.NodeSelector
	is, was := requiredNodes(munged.Affinity), requiredNodes(old.Affinity)
	if was != nil && !narrower(is, was) {
		at := at.Child("affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution", "nodeSelectorTerms")
		errs = append(errs, field.Invalid(at, is, "only additions to the expressions of existing terms are allowed"))
	}
	if munged.Affinity != nil && munged.Affinity.NodeAffinity != nil {
		setNodeAffinity(munged, old)
	}
	return errs
}

func requiredNodes(a *corev1.Affinity) *corev1.NodeSelector {
	if a == nil || a.NodeAffinity == nil {
		return nil
	}
	return a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution
}

// narrower says whether every term keeps all it had.
func narrower(is, was *corev1.NodeSelector) bool {
	if is == nil || len(is.NodeSelectorTerms) != len(was.NodeSelectorTerms) {
		return false
	}
	for i, old := range was.NodeSelectorTerms {
		term := is.NodeSelectorTerms[i]
		if len(old.MatchExpressions)+len(old.MatchFields) == 0 && len(term.MatchExpressions)+len(term.MatchFields) > 0 {
			return false // a term without expressions matches nothing, and would come to match something
		}
		if len(term.MatchExpressions) < len(old.MatchExpressions) || len(term.MatchFields) < len(old.MatchFields) ||
			!apiequality.Semantic.DeepEqual(term.MatchExpressions[:len(old.MatchExpressions)], old.MatchExpressions) ||
			!apiequality.Semantic.DeepEqual(term.MatchFields[:len(old.MatchFields)], old.MatchFields) {
			return false
		}
	}
	return true
}

// setNodeAffinity makes the node affinity what it was.
func setNodeAffinity(munged, old *corev1.PodSpec) {
	if old.Affinity == nil || old.Affinity.NodeAffinity == nil {
		munged.Affinity.NodeAffinity = nil
		if old.Affinity == nil && munged.Affinity.PodAffinity == nil && munged.Affinity.PodAntiAffinity == nil {
			munged.Affinity = nil
		}
		return
	}
	munged.Affinity.NodeAffinity = old.Affinity.NodeAffinity
}

// PodStatusUpdate looks at a pod's reported state.
func PodStatusUpdate(p, old *corev1.Pod) field.ErrorList {
	at := field.NewPath("status")
	var errs field.ErrorList
	if p.Spec.NodeName != old.Spec.NodeName {
		errs = append(errs, field.Forbidden(field.NewPath("spec", "nodeName"), "may not be changed directly"))
	}
	if n := p.Status.NominatedNodeName; n != "" {
		errs = append(errs, dnsSubdomain(at.Child("nominatedNodeName"), n)...)
	}
	for i, condition := range p.Status.Conditions {
		errs = append(errs, qualifiedName(at.Child("conditions").Index(i).Child("type"), string(condition.Type))...)
	}
	errs = append(errs, stillEnded(at.Child("containerStatuses"), p.Status.ContainerStatuses, old.Status.ContainerStatuses, &old.Spec)...)
	errs = append(errs, podIPs(at.Child("podIPs"), p)...)
	return errs
}

// stillEnded complains about containers that run again although nothing restarts them.
func stillEnded(at *field.Path, is, was []corev1.ContainerStatus, spec *corev1.PodSpec) field.ErrorList {
	if restartsAll(spec.InitContainers) || restartsAll(spec.Containers) {
		return nil // whichever ends may restart any other
	}
	var errs field.ErrorList
	for i, old := range was {
		c := slices.IndexFunc(spec.Containers, func(c corev1.Container) bool { return c.Name == old.Name })
		if old.State.Terminated == nil || c >= 0 && restarts(&spec.Containers[c], spec.RestartPolicy, old.State.Terminated.ExitCode) {
			continue
		}
		for _, status := range is {
			if status.Name == old.Name && status.State.Terminated == nil {
				errs = append(errs, field.Forbidden(at.Index(i).Child("state"), "may not be transitioned to non-terminated state"))
			}
		}
	}
	return errs
}

// restartsAll says whether the end of any of these containers may restart all of their pod.
func restartsAll(containers []corev1.Container) bool {
	return slices.ContainsFunc(containers, func(c corev1.Container) bool {
		return slices.ContainsFunc(c.RestartPolicyRules, func(r corev1.ContainerRestartRule) bool {
			return r.Action == corev1.ContainerRestartRuleActionRestartAllContainers
		})
	})
}

// restarts says whether a container that ended with an exit code runs again: by its own rules, else its own policy, else its pod's.
func restarts(c *corev1.Container, policy corev1.RestartPolicy, exitCode int32) bool {
	for _, rule := range c.RestartPolicyRules {
		if codes := rule.ExitCodes; codes != nil && slices.Contains(codes.Values, exitCode) == (codes.Operator == corev1.ContainerRestartRuleOnExitCodesOpIn) {
			return true
		}
	}
	if c.RestartPolicy != nil {
		policy = corev1.RestartPolicy(*c.RestartPolicy)
	}
	return policy != corev1.RestartPolicyNever && (policy != corev1.RestartPolicyOnFailure || exitCode != 0)
}
