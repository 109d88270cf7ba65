package table

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// autoscalerTable shows autoscalers of both versions.
func autoscalerTable() definition {
	spec, status := autoscalingv2.HorizontalPodAutoscalerSpec{}, autoscalingv2.HorizontalPodAutoscalerStatus{}
	columns := []metav1.TableColumnDefinition{
		name(), text("Reference", doc(spec, "scaleTargetRef")), text("Targets", doc(spec, "metrics")), text("MinPods", doc(spec, "minReplicas")), text("MaxPods", doc(spec, "maxReplicas")),
		text("Replicas", doc(status, "currentReplicas")), age(),
	}
	return definition{columns: columns, cells: func(o runtime.Object, now time.Time) ([]any, error) {
		switch a := o.(type) {
		case *autoscalingv2.HorizontalPodAutoscaler:
			return []any{
				a.Name, a.Spec.ScaleTargetRef.Kind + "/" + a.Spec.ScaleTargetRef.Name, autoscalerTargets(a.Spec.Metrics, a.Status.CurrentMetrics), minPods(a.Spec.MinReplicas),
				int64(a.Spec.MaxReplicas), int64(a.Status.CurrentReplicas), Age(a.CreationTimestamp, now),
			}, nil
		case *autoscalingv1.HorizontalPodAutoscaler:
			metrics, current := cpuMetric(a)
			return []any{
				a.Name, a.Spec.ScaleTargetRef.Kind + "/" + a.Spec.ScaleTargetRef.Name, autoscalerTargets(metrics, current), minPods(a.Spec.MinReplicas),
				int64(a.Spec.MaxReplicas), int64(a.Status.CurrentReplicas), Age(a.CreationTimestamp, now),
			}, nil
		default:
			return nil, fmt.Errorf("table: a row of an autoscaler was asked for %T", o)
		}
	}}
}

func minPods(n *int32) string {
	if n == nil {
		return "<unset>"
	}
	return strconv.Itoa(int(*n))
}

// cpuMetric is the one metric that version 1 has fields for.
func cpuMetric(a *autoscalingv1.HorizontalPodAutoscaler) ([]autoscalingv2.MetricSpec, []autoscalingv2.MetricStatus) {
	if a.Spec.TargetCPUUtilizationPercentage == nil {
		return nil, nil
	}
	return []autoscalingv2.MetricSpec{{Type: autoscalingv2.ResourceMetricSourceType, Resource: &autoscalingv2.ResourceMetricSource{
			Name: corev1.ResourceCPU, Target: autoscalingv2.MetricTarget{AverageUtilization: a.Spec.TargetCPUUtilizationPercentage},
		}}}, []autoscalingv2.MetricStatus{{Type: autoscalingv2.ResourceMetricSourceType, Resource: &autoscalingv2.ResourceMetricStatus{
			Name: corev1.ResourceCPU, Current: autoscalingv2.MetricValueStatus{AverageUtilization: a.Status.CurrentCPUUtilizationPercentage},
		}}}
}

// shownMetrics is how many metrics the Targets column shows.
const shownMetrics = 2

// autoscalerTargets shows each metric as what it is now and what it should be. Statuses stand in the order of the metrics.
func autoscalerTargets(specs []autoscalingv2.MetricSpec, statuses []autoscalingv2.MetricStatus) string {
	if len(specs) == 0 {
		return "<none>"
	}
	var list []string
	for i, spec := range specs {
		var status autoscalingv2.MetricStatus
		if i < len(statuses) {
			status = statuses[i]
		}
		list = append(list, metricTarget(spec, status))
	}
	if len(list) > shownMetrics {
		return fmt.Sprintf("%s + %d more...", strings.Join(list[:shownMetrics], ", "), len(list)-shownMetrics)
	}
	return strings.Join(list, ", ")
}

func metricTarget(spec autoscalingv2.MetricSpec, status autoscalingv2.MetricStatus) string {
	var current autoscalingv2.MetricValueStatus
	switch {
	case spec.Type == autoscalingv2.ExternalMetricSourceType && spec.External != nil:
		if status.External != nil {
			current = status.External.Current
		}
		return valueTarget(current, spec.External.Target)
	case spec.Type == autoscalingv2.ObjectMetricSourceType && spec.Object != nil:
		if status.Object != nil {
			current = status.Object.Current
		}
		return valueTarget(current, spec.Object.Target)
	case spec.Type == autoscalingv2.PodsMetricSourceType && spec.Pods != nil:
		if status.Pods != nil {
			current = status.Pods.Current
		}
		return quantity(current.AverageValue) + "/" + quantity(spec.Pods.Target.AverageValue)
	case spec.Type == autoscalingv2.ResourceMetricSourceType && spec.Resource != nil:
		if status.Resource != nil {
			current = status.Resource.Current
		}
		return string(spec.Resource.Name) + ": " + utilizationTarget(current, spec.Resource.Target)
	case spec.Type == autoscalingv2.ContainerResourceMetricSourceType && spec.ContainerResource != nil:
		if status.ContainerResource != nil {
			current = status.ContainerResource.Current
		}
		return string(spec.ContainerResource.Name) + ": " + utilizationTarget(current, spec.ContainerResource.Target)
	default:
		return "<unknown type>"
	}
}

func valueTarget(current autoscalingv2.MetricValueStatus, target autoscalingv2.MetricTarget) string {
	if target.AverageValue != nil {
		return quantity(current.AverageValue) + "/" + quantity(target.AverageValue) + " (avg)"
	}
	return quantity(current.Value) + "/" + quantity(target.Value)
}

func utilizationTarget(current autoscalingv2.MetricValueStatus, target autoscalingv2.MetricTarget) string {
	if target.AverageValue != nil {
		return quantity(current.AverageValue) + "/" + quantity(target.AverageValue)
	}
	return percent(current.AverageUtilization, "<unknown>") + "/" + percent(target.AverageUtilization, "<auto>")
}

func quantity(q *resource.Quantity) string {
	if q == nil {
		return "<unknown>"
	}
	return q.String()
}

func percent(n *int32, otherwise string) string {
	if n == nil {
		return otherwise
	}
	return fmt.Sprintf("%d%%", *n)
}
