package job

import (
	"fmt"
	"slices"

	batchk8s "k8s.io/api/batch/v1"

	batchv1 "dhow.dev/gen/go/dhow/batch/v1"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/pkg/object"
)

// verdict is what a job's pod failure policy says of a failed pod.
type verdict struct {
	// action is of the first rule that matches, empty when none does.
	action batchk8s.PodFailurePolicyAction
	// counts says that the failure counts towards the back-off limit.
	counts bool
	// message says why the whole job fails, empty when it does not.
	message string
}

// judge applies the policy to a failed pod. Without a policy, or a rule that matches, a failure counts.
func judge(policy *batchv1.PodFailurePolicy, p *corev1.Pod) verdict {
	for i, rule := range policy.GetRules() {
		var why string
		switch {
		case rule.HasOnExitCodes():
			c := exitMatching(p, rule.GetOnExitCodes())
			if c == nil {
				continue
			}
			why = fmt.Sprintf("Container %s for pod %s failed with exit code %d", c.GetName(), object.KeyOf(p), c.GetState().GetTerminated().GetExitCode())
		default:
			condition := conditionMatching(p, rule.GetOnPodConditions())
			if condition == nil {
				continue
			}
			why = fmt.Sprintf("Pod %s has condition %s", object.KeyOf(p), condition.GetType())
		}
		v := verdict{action: batchk8s.PodFailurePolicyAction(rule.GetAction())}
		switch v.action {
		case batchk8s.PodFailurePolicyActionIgnore:
		case batchk8s.PodFailurePolicyActionFailJob:
			v.counts, v.message = true, fmt.Sprintf("%s matching %s rule at index %d", why, v.action, i)
		case batchk8s.PodFailurePolicyActionCount, batchk8s.PodFailurePolicyActionFailIndex:
			v.counts = true
		default:
			// An action of a later version: as if the rule were not there.
			continue
		}
		return v
	}
	return verdict{counts: true}
}

// exitMatching returns the first container that ended with a code that the rule names.
func exitMatching(p *corev1.Pod, rule *batchv1.PodFailurePolicyOnExitCodesRequirement) *corev1.ContainerStatus {
	for _, c := range slices.Concat(p.GetStatus().GetContainerStatuses(), p.GetStatus().GetInitContainerStatuses()) {
		if !c.GetState().HasTerminated() || rule.HasContainerName() && rule.GetContainerName() != c.GetName() {
			continue
		}
		// Code 0 is no failure, whatever the rule says.
		code := c.GetState().GetTerminated().GetExitCode()
		if code == 0 {
			continue
		}
		in := slices.Contains(rule.GetValues(), code)
		if in == (rule.GetOperator() == string(batchk8s.PodFailurePolicyOnExitCodesOpIn)) {
			return c
		}
	}
	return nil
}

func conditionMatching(p *corev1.Pod, patterns []*batchv1.PodFailurePolicyOnPodConditionsPattern) *corev1.PodCondition {
	for _, c := range p.GetStatus().GetConditions() {
		for _, pattern := range patterns {
			if c.GetType() == pattern.GetType() && c.GetStatus() == pattern.GetStatus() {
				return c
			}
		}
	}
	return nil
}

// successMessage says that the job's success policy is met, and by which rule.
func successMessage(policy *batchv1.SuccessPolicy, completions int, succeeded indexes) (message string, met bool) {
	if succeeded.total() == 0 {
		return "", false
	}
	for i, rule := range policy.GetRules() {
		counted := succeeded.total()
		if rule.HasSucceededIndexes() {
			named := parseIndexes(rule.GetSucceededIndexes(), completions)
			if counted = named.common(succeeded); len(named) > 0 && counted == named.total() {
				return fmt.Sprintf("Matched rules at index %d", i), true
			}
		}
		if rule.HasSucceededCount() && counted >= int(rule.GetSucceededCount()) {
			return fmt.Sprintf("Matched rules at index %d", i), true
		}
	}
	return "", false
}
