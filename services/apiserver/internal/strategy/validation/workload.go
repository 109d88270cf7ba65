package validation

import (
	"fmt"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Deployment looks at a new deployment.
func Deployment(d *appsv1.Deployment) field.ErrorList {
	at := field.NewPath("spec")
	spec := &d.Spec
	errs := nonNegativePointer(at.Child("replicas"), spec.Replicas)
	errs = append(errs, workload(at, byReplicas, spec.Selector, &spec.Template)...)
	errs = append(errs, deploymentStrategy(at.Child("strategy"), &spec.Strategy)...)
	errs = append(errs, nonNegative(at.Child("minReadySeconds"), spec.MinReadySeconds)...)
	errs = append(errs, nonNegativePointer(at.Child("revisionHistoryLimit"), spec.RevisionHistoryLimit)...)
	if deadline := spec.ProgressDeadlineSeconds; deadline != nil {
		errs = append(errs, nonNegative(at.Child("progressDeadlineSeconds"), *deadline)...)
		if *deadline <= spec.MinReadySeconds {
			errs = append(errs, field.Invalid(at.Child("progressDeadlineSeconds"), *deadline, "must be greater than minReadySeconds"))
		}
	}
	return errs
}

// DeploymentUpdate looks at a changed deployment: which pods are its own never changes.
func DeploymentUpdate(d, old *appsv1.Deployment) field.ErrorList {
	return append(Deployment(d), immutable(field.NewPath("spec", "selector"), d.Spec.Selector, old.Spec.Selector)...)
}

// DeploymentStatusUpdate looks at a deployment's reported state.
func DeploymentStatusUpdate(d, old *appsv1.Deployment) field.ErrorList {
	at := field.NewPath("status")
	s := &d.Status
	errs := counts(at, s.ObservedGeneration, map[string]int32{
		"replicas": s.Replicas, "updatedReplicas": s.UpdatedReplicas, "readyReplicas": s.ReadyReplicas, "availableReplicas": s.AvailableReplicas, "unavailableReplicas": s.UnavailableReplicas,
	})
	errs = append(errs, nonNegativePointer(at.Child("terminatingReplicas"), s.TerminatingReplicas)...)
	if s.CollisionCount != nil {
		errs = append(errs, nonNegative(at.Child("collisionCount"), *s.CollisionCount)...)
		if old.Status.CollisionCount != nil && *s.CollisionCount < *old.Status.CollisionCount {
			errs = append(errs, field.Invalid(at.Child("collisionCount"), *s.CollisionCount, "cannot be decremented"))
		}
	}
	errs = append(errs, notMore(at, "updatedReplicas", s.UpdatedReplicas, "status.replicas", s.Replicas)...)
	errs = append(errs, notMore(at, "readyReplicas", s.ReadyReplicas, "status.replicas", s.Replicas)...)
	errs = append(errs, notMore(at, "availableReplicas", s.AvailableReplicas, "status.replicas", s.Replicas)...)
	return append(errs, notMore(at, "availableReplicas", s.AvailableReplicas, "readyReplicas", s.ReadyReplicas)...)
}

func counts(at *field.Path, generation int64, values map[string]int32) field.ErrorList {
	errs := nonNegative(at.Child("observedGeneration"), generation)
	keys := make([]string, 0, len(values))
	for name := range values {
		keys = append(keys, name)
	}
	for _, name := range sorted(keys) {
		errs = append(errs, nonNegative(at.Child(name), values[name])...)
	}
	return errs
}

func notMore(at *field.Path, name string, value int32, than string, limit int32) field.ErrorList {
	if value <= limit {
		return nil
	}
	return field.ErrorList{field.Invalid(at.Child(name), value, "cannot be greater than "+than)}
}

// ReplicaSet looks at a new replica set.
func ReplicaSet(r *appsv1.ReplicaSet) field.ErrorList {
	at := field.NewPath("spec")
	errs := nonNegativePointer(at.Child("replicas"), r.Spec.Replicas)
	errs = append(errs, nonNegative(at.Child("minReadySeconds"), r.Spec.MinReadySeconds)...)
	return append(errs, workload(at, byReplicas, r.Spec.Selector, &r.Spec.Template)...)
}

// ReplicaSetUpdate looks at a changed replica set.
func ReplicaSetUpdate(r, old *appsv1.ReplicaSet) field.ErrorList {
	return append(ReplicaSet(r), immutable(field.NewPath("spec", "selector"), r.Spec.Selector, old.Spec.Selector)...)
}

// ReplicaSetStatusUpdate looks at a replica set's reported state.
func ReplicaSetStatusUpdate(r, _ *appsv1.ReplicaSet) field.ErrorList {
	at := field.NewPath("status")
	s := &r.Status
	errs := counts(at, s.ObservedGeneration, map[string]int32{
		"replicas": s.Replicas, "fullyLabeledReplicas": s.FullyLabeledReplicas, "readyReplicas": s.ReadyReplicas, "availableReplicas": s.AvailableReplicas,
	})
	errs = append(errs, nonNegativePointer(at.Child("terminatingReplicas"), s.TerminatingReplicas)...)
	errs = append(errs, notMore(at, "fullyLabeledReplicas", s.FullyLabeledReplicas, "status.replicas", s.Replicas)...)
	errs = append(errs, notMore(at, "readyReplicas", s.ReadyReplicas, "status.replicas", s.Replicas)...)
	errs = append(errs, notMore(at, "availableReplicas", s.AvailableReplicas, "status.replicas", s.Replicas)...)
	return append(errs, notMore(at, "availableReplicas", s.AvailableReplicas, "readyReplicas", s.ReadyReplicas)...)
}

// workload looks at what owns pods: it selects something, selects what it makes, and makes what is always restarted.
func workload(at *field.Path, o owner, selector *metav1.LabelSelector, template *corev1.PodTemplateSpec) field.ErrorList {
	var errs field.ErrorList
	path := at.Child("selector")
	if selector == nil {
		errs = append(errs, field.Required(path, ""))
	} else {
		errs = append(errs, metav1validation.ValidateLabelSelector(selector, metav1validation.LabelSelectorValidationOptions{}, path)...)
		if len(selector.MatchLabels)+len(selector.MatchExpressions) == 0 {
			errs = append(errs, field.Invalid(path, selector, "empty selector is invalid for "+o.word))
		}
	}
	path = at.Child("template")
	matches, err := metav1.LabelSelectorAsSelector(selector)
	if err != nil {
		errs = append(errs, field.Invalid(at.Child("selector"), selector, "invalid label selector"))
	} else if !matches.Empty() && !matches.Matches(labels.Set(template.Labels)) {
		errs = append(errs, field.Invalid(path.Child("metadata", "labels"), template.Labels, "`selector` does not match template `labels`"))
	}
	errs = append(errs, PodTemplate(template, path)...)
	if template.Spec.RestartPolicy != "" {
		errs = append(errs, oneOf(path.Child("spec", "restartPolicy"), template.Spec.RestartPolicy, corev1.RestartPolicyAlways)...)
	}
	if template.Spec.ActiveDeadlineSeconds != nil {
		errs = append(errs, field.Forbidden(path.Child("spec", "activeDeadlineSeconds"), "activeDeadlineSeconds in "+o.kind+" is not Supported"))
	}
	return errs
}

func deploymentStrategy(at *field.Path, s *appsv1.DeploymentStrategy) field.ErrorList {
	rolling := at.Child("rollingUpdate")
	switch s.Type {
	case appsv1.RecreateDeploymentStrategyType:
		if s.RollingUpdate != nil {
			return field.ErrorList{field.Forbidden(rolling, "may not be specified when strategy `type` is 'Recreate'")}
		}
	case appsv1.RollingUpdateDeploymentStrategyType:
		if s.RollingUpdate == nil {
			return field.ErrorList{field.Required(rolling, "this should be defaulted and never be nil")}
		}
		unavailable, surge := orZero(s.RollingUpdate.MaxUnavailable), orZero(s.RollingUpdate.MaxSurge)
		errs := amountOrPercent(rolling.Child("maxUnavailable"), unavailable)
		errs = append(errs, amountOrPercent(rolling.Child("maxSurge"), surge)...)
		if amount(unavailable) == 0 && amount(surge) == 0 {
			errs = append(errs, field.Invalid(rolling.Child("maxUnavailable"), unavailable, "may not be 0 when `maxSurge` is 0"))
		}
		return append(errs, notOverAll(rolling.Child("maxUnavailable"), unavailable)...)
	default:
		return field.ErrorList{field.NotSupported(at.Child("type"), s.Type, []appsv1.DeploymentStrategyType{appsv1.RecreateDeploymentStrategyType, appsv1.RollingUpdateDeploymentStrategyType})}
	}
	return nil
}

func orZero(v *intstr.IntOrString) intstr.IntOrString {
	if v == nil {
		return intstr.IntOrString{}
	}
	return *v
}

// amountOrPercent looks at a number of pods, or a share of them.
func amountOrPercent(at *field.Path, v intstr.IntOrString) field.ErrorList {
	if v.Type == intstr.String {
		return each(at, v, utilvalidation.IsValidPercent(v.StrVal))
	}
	return apivalidation.ValidateNonnegativeField(int64(v.IntValue()), at)
}

// amount is the number of a number or a percentage; 0 when it is neither.
func amount(v intstr.IntOrString) int {
	if v.Type == intstr.Int {
		return v.IntValue()
	}
	n := 0
	if percent, ok := strings.CutSuffix(v.StrVal, "%"); ok && len(utilvalidation.IsValidPercent(v.StrVal)) == 0 {
		if _, err := fmt.Sscan(percent, &n); err != nil {
			return 0
		}
	}
	return n
}

func notOverAll(at *field.Path, v intstr.IntOrString) field.ErrorList {
	if v.Type == intstr.String && amount(v) > 100 {
		return field.ErrorList{field.Invalid(at, v, "must not be greater than 100%")}
	}
	return nil
}

// owner is a kind of workload in Kubernetes' words.
type owner struct{ word, kind string }

// Deployments and replica sets share their rules, and so their words.
var (
	byReplicas  = owner{"deployment", "ReplicaSet"}
	byDaemonSet = owner{"daemonset", "DaemonSet"}
	byOrdinals  = owner{"statefulset", "StatefulSet"}
)
