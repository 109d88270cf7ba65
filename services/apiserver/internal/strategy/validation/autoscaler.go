package validation

import (
	"fmt"
	"slices"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Bounds of an autoscaler's behaviors, in seconds; Kubernetes' numbers.
const (
	longestStabilization = 3600
	longestScalingPeriod = 1800
)

// HorizontalPodAutoscaler looks at an autoscaler, new or changed.
func HorizontalPodAutoscaler(h *autoscalingv2.HorizontalPodAutoscaler) field.ErrorList {
	at := field.NewPath("spec")
	spec := &h.Spec
	var errs field.ErrorList
	if m := spec.MinReplicas; m != nil && *m < 0 {
		errs = append(errs, field.Invalid(at.Child("minReplicas"), *m, "must be greater than or equal to 0"))
	}
	if spec.MaxReplicas < 1 {
		errs = append(errs, field.Invalid(at.Child("maxReplicas"), spec.MaxReplicas, mustBePositive))
	}
	if m := spec.MinReplicas; m != nil && spec.MaxReplicas < *m {
		errs = append(errs, field.Invalid(at.Child("maxReplicas"), spec.MaxReplicas, "must be greater than or equal to `minReplicas`"))
	}
	errs = append(errs, scaleTarget(&spec.ScaleTargetRef, at.Child("scaleTargetRef"))...)
	metrics := at.Child("metrics")
	needsNoPods := func(m autoscalingv2.MetricSpec) bool {
		return m.Type == autoscalingv2.ObjectMetricSourceType || m.Type == autoscalingv2.ExternalMetricSourceType
	}
	if m := spec.MinReplicas; m != nil && *m == 0 && !slices.ContainsFunc(spec.Metrics, needsNoPods) {
		errs = append(errs, field.Forbidden(metrics, "must specify at least one Object or External metric to support scaling to zero replicas"))
	}
	for i := range spec.Metrics {
		errs = append(errs, metric(&spec.Metrics[i], metrics.Index(i))...)
	}
	if b := spec.Behavior; b != nil {
		errs = append(errs, scalingRules(b.ScaleUp, at.Child("behavior", "scaleUp"))...)
		errs = append(errs, scalingRules(b.ScaleDown, at.Child("behavior", "scaleDown"))...)
	}
	return errs
}

func scaleTarget(r *autoscalingv2.CrossVersionObjectReference, at *field.Path) field.ErrorList {
	return append(required(at.Child("kind"), r.Kind), required(at.Child("name"), r.Name)...)
}

func metric(m *autoscalingv2.MetricSpec, at *field.Path) field.ErrorList {
	if m.Type == "" {
		return field.ErrorList{field.Required(at.Child("type"), "must specify a metric source type")}
	}
	sources := []struct {
		kind autoscalingv2.MetricSourceType
		name string
		set  bool
	}{
		{autoscalingv2.ObjectMetricSourceType, "object", m.Object != nil}, {autoscalingv2.ExternalMetricSourceType, "external", m.External != nil},
		{autoscalingv2.PodsMetricSourceType, "pods", m.Pods != nil}, {autoscalingv2.ResourceMetricSourceType, "resource", m.Resource != nil},
		{autoscalingv2.ContainerResourceMetricSourceType, "containerResource", m.ContainerResource != nil},
	}
	var errs field.ErrorList
	var kinds []autoscalingv2.MetricSourceType
	for _, s := range sources {
		kinds = append(kinds, s.kind)
		switch {
		case s.set && s.kind != m.Type:
			errs = append(errs, field.Forbidden(at.Child(s.name), "must populate the given metric source only"))
		case !s.set && s.kind == m.Type:
			errs = append(errs, field.Required(at.Child(s.name), "must populate information for the given metric source"))
		}
	}
	errs = append(errs, oneOf(at.Child("type"), m.Type, kinds...)...)
	if s := m.Object; s != nil {
		at := at.Child("object")
		errs = append(errs, scaleTarget(&s.DescribedObject, at.Child("describedObject"))...)
		errs = append(errs, metricIdentifier(&s.Metric, at.Child("metric"))...)
		errs = append(errs, valueOrAverage(&s.Target, at.Child("target"))...)
	}
	if s := m.External; s != nil {
		at := at.Child("external")
		errs = append(errs, metricIdentifier(&s.Metric, at.Child("metric"))...)
		errs = append(errs, valueOrAverage(&s.Target, at.Child("target"))...)
		if s.Target.Value != nil && s.Target.AverageValue != nil {
			errs = append(errs, field.Forbidden(at.Child("target", "value"), "may not set both a target value for metric and a per-pod target"))
		}
	}
	if s := m.Pods; s != nil {
		at := at.Child("pods")
		errs = append(errs, metricIdentifier(&s.Metric, at.Child("metric"))...)
		errs = append(errs, metricTarget(&s.Target, at.Child("target"))...)
		if s.Target.AverageValue == nil || s.Target.AverageValue.Sign() != 1 {
			errs = append(errs, field.Required(at.Child("target", "averageValue"), "must specify a positive target averageValue"))
		}
	}
	if s := m.Resource; s != nil {
		errs = append(errs, resourceMetric(string(s.Name), &s.Target, at.Child("resource"))...)
	}
	if s := m.ContainerResource; s != nil {
		at := at.Child("containerResource")
		errs = append(errs, resourceMetric(string(s.Name), &s.Target, at)...)
		if s.Container == "" {
			errs = append(errs, field.Required(at.Child("container"), "must specify a container"))
		}
	}
	return errs
}

func metricIdentifier(m *autoscalingv2.MetricIdentifier, at *field.Path) field.ErrorList {
	errs := required(at.Child("name"), m.Name)
	return append(errs, metav1validation.ValidateLabelSelector(m.Selector, metav1validation.LabelSelectorValidationOptions{}, at.Child("selector"))...)
}

// metricTarget looks at what all targets have in common.
func metricTarget(t *autoscalingv2.MetricTarget, at *field.Path) field.ErrorList {
	var errs field.ErrorList
	if t.Type == "" {
		errs = append(errs, field.Required(at.Child("type"), "must specify a metric target type"))
	} else {
		errs = append(errs, oneOf(at.Child("type"), t.Type, autoscalingv2.UtilizationMetricType, autoscalingv2.ValueMetricType, autoscalingv2.AverageValueMetricType)...)
	}
	if t.Value != nil && t.Value.Sign() != 1 {
		errs = append(errs, field.Invalid(at.Child("value"), t.Value, "must be positive"))
	}
	if t.AverageValue != nil && t.AverageValue.Sign() != 1 {
		errs = append(errs, field.Invalid(at.Child("averageValue"), t.AverageValue, "must be positive"))
	}
	if t.AverageUtilization != nil && *t.AverageUtilization < 1 {
		errs = append(errs, field.Invalid(at.Child("averageUtilization"), t.AverageUtilization, "must be greater than 0"))
	}
	return errs
}

func valueOrAverage(t *autoscalingv2.MetricTarget, at *field.Path) field.ErrorList {
	errs := metricTarget(t, at)
	if t.Value == nil && t.AverageValue == nil {
		errs = append(errs, field.Required(at.Child("averageValue"), "must set either a target value for metric or a per-pod target"))
	}
	return errs
}

func resourceMetric(name string, t *autoscalingv2.MetricTarget, at *field.Path) field.ErrorList {
	var errs field.ErrorList
	if name == "" {
		errs = append(errs, field.Required(at.Child("name"), "must specify a resource name"))
	}
	errs = append(errs, metricTarget(t, at.Child("target"))...)
	switch {
	case t.AverageUtilization == nil && t.AverageValue == nil:
		errs = append(errs, field.Required(at.Child("target", "averageUtilization"), "must set either a target raw value or a target utilization"))
	case t.AverageUtilization != nil && t.AverageValue != nil:
		errs = append(errs, field.Forbidden(at.Child("target", "averageValue"), "may not set both a target raw value and a target utilization"))
	}
	return errs
}

func scalingRules(r *autoscalingv2.HPAScalingRules, at *field.Path) field.ErrorList {
	if r == nil {
		return nil
	}
	var errs field.ErrorList
	if w := r.StabilizationWindowSeconds; w != nil {
		window := at.Child("stabilizationWindowSeconds")
		if *w < 0 {
			errs = append(errs, field.Invalid(window, w, "must be greater than or equal to zero"))
		}
		if *w > longestStabilization {
			errs = append(errs, field.Invalid(window, w, fmt.Sprintf("must be less than or equal to %d", longestStabilization)))
		}
	}
	if s := r.SelectPolicy; s != nil {
		errs = append(errs, oneOf(at.Child("selectPolicy"), *s, autoscalingv2.MaxChangePolicySelect, autoscalingv2.MinChangePolicySelect, autoscalingv2.DisabledPolicySelect)...)
	}
	policies := at.Child("policies")
	if len(r.Policies) == 0 {
		errs = append(errs, field.Required(policies, "must specify at least one Policy"))
	}
	for i, p := range r.Policies {
		at := policies.Index(i)
		errs = append(errs, oneOf(at.Child("type"), p.Type, autoscalingv2.PodsScalingPolicy, autoscalingv2.PercentScalingPolicy)...)
		if p.Value <= 0 {
			errs = append(errs, field.Invalid(at.Child("value"), p.Value, "must be greater than zero"))
		}
		if p.PeriodSeconds <= 0 {
			errs = append(errs, field.Invalid(at.Child("periodSeconds"), p.PeriodSeconds, "must be greater than zero"))
		}
		if p.PeriodSeconds > longestScalingPeriod {
			errs = append(errs, field.Invalid(at.Child("periodSeconds"), p.PeriodSeconds, fmt.Sprintf("must be less than or equal to %d", longestScalingPeriod)))
		}
	}
	if t := r.Tolerance; t != nil && t.Sign() < 0 {
		errs = append(errs, field.Invalid(at.Child("tolerance"), t, "must be greater than or equal to zero"))
	}
	return errs
}
