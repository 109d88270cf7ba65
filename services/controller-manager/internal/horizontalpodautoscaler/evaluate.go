package horizontalpodautoscaler

import (
	"context"
	"fmt"
	"slices"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corek8s "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	kmetav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
)

// size is how many pods the target wants and has.
type size struct{ wanted, existing int32 }

// evaluation is one look at an autoscaler and its target. It writes nothing but the autoscaler's status.
type evaluation struct {
	hpa      *autoscalingv2.HorizontalPodAutoscaler
	size     size
	selector string
	// pods returns those of the target.
	pods    func(labels.Selector) []*corev1.Pod
	metrics Metrics
	history *history
	now     time.Time
	// others returns the names of the other autoscalers that one of the pods belongs to as well.
	others func(labels.Selector, []*corev1.Pod) []string
	// report tells of a failure.
	report func(reason, message string)
}

// decision is what comes of an evaluation.
type decision struct {
	replicas int32
	// rescale says that the target is to be changed, why for what reason.
	rescale bool
	why     string
}

// condition sets one of the autoscaler's conditions.
func (e *evaluation) condition(kind autoscalingv2.HorizontalPodAutoscalerConditionType, is bool, reason, message string) {
	c := autoscalingv2.HorizontalPodAutoscalerCondition{
		Type: kind, Status: corek8s.ConditionFalse, Reason: reason, Message: message, LastTransitionTime: kmetav1.NewTime(e.now.Truncate(time.Second)),
	}
	if is {
		c.Status = corek8s.ConditionTrue
	}
	status := &e.hpa.Status
	for i, old := range status.Conditions {
		if old.Type != kind {
			continue
		}
		if old.Status == c.Status {
			c.LastTransitionTime = old.LastTransitionTime
		}
		status.Conditions[i] = c
		return
	}
	status.Conditions = append(status.Conditions, c)
}

func (e *evaluation) isTrue(kind autoscalingv2.HorizontalPodAutoscalerConditionType) bool {
	return slices.ContainsFunc(e.hpa.Status.Conditions, func(c autoscalingv2.HorizontalPodAutoscalerCondition) bool {
		return c.Type == kind && c.Status == corek8s.ConditionTrue
	})
}

// limits are the bounds of the autoscaler.
func (e *evaluation) limits() limits {
	l := limits{least: 1, most: e.hpa.Spec.MaxReplicas, behavior: e.hpa.Spec.Behavior}
	if e.hpa.Spec.MinReplicas != nil {
		l.least = *e.hpa.Spec.MinReplicas
	}
	return l
}

// wakes says that a metric is there without pods, so that it can wake a target that has none.
func (e *evaluation) wakes() bool {
	return slices.ContainsFunc(e.hpa.Spec.Metrics, func(m autoscalingv2.MetricSpec) bool {
		return m.Type == autoscalingv2.ObjectMetricSourceType || m.Type == autoscalingv2.ExternalMetricSourceType
	})
}

// decide says how many pods the target is to have. An error means that no metric said anything.
func (e *evaluation) decide(ctx context.Context) (decision, error) {
	current, l := e.size.wanted, e.limits()
	if len(e.history.recommended) == 0 {
		e.history.recommended = append(e.history.recommended, recommendation{e.now, current})
	}
	d := decision{replicas: current}
	switch {
	// A target that somebody else made empty is not to be touched; one that the autoscaler did wakes when its metrics say so.
	case current == 0 && !e.isTrue(autoscalingv2.ScaledToZero):
		e.condition(autoscalingv2.ScalingActive, false, "ScalingDisabled", "scaling is disabled since the replica count of the target is zero")
		return d, nil
	case current > l.most:
		d.replicas, d.why = l.most, "Current number of replicas above Spec.MaxReplicas"
	case current < l.least:
		d.replicas, d.why = l.least, "Current number of replicas below Spec.MinReplicas"
	default:
		desired, name, err := e.byMetrics(ctx)
		if err != nil {
			return d, err
		}
		switch {
		case desired > current:
			d.why = name + " above target"
		case desired < current:
			d.why = "All metrics below target"
		}
		d.replicas = e.normalize(current, desired, l)
	}
	d.rescale = d.replicas != current
	return d, nil
}

// normalize keeps a desired size within what recommendations of late, bounds and rates allow, and says so.
func (e *evaluation) normalize(current, desired int32, l limits) int32 {
	stable := e.history.stabilize(current, desired, l, e.now)
	switch {
	case stable < desired:
		e.condition(autoscalingv2.AbleToScale, true, "ScaleUpStabilized", "recent recommendations were lower than current one, applying the lowest recent recommendation")
	case stable > desired:
		e.condition(autoscalingv2.AbleToScale, true, "ScaleDownStabilized", "recent recommendations were higher than current one, applying the highest recent recommendation")
	default:
		e.condition(autoscalingv2.AbleToScale, true, "ReadyForNewScale", "recommended size matches current size")
	}
	replicas, reason, message := e.history.limit(current, stable, l, e.now)
	e.condition(autoscalingv2.ScalingLimited, replicas != stable, reason, message)
	return replicas
}

// byMetrics returns the largest size that a metric asks for, and that metric's name. Metrics that say nothing do not let the size go down.
func (e *evaluation) byMetrics(ctx context.Context) (replicas int32, name string, err error) {
	e.hpa.Status.CurrentMetrics = nil
	fail := func(reason string, err error) (int32, string, error) {
		e.condition(autoscalingv2.ScalingActive, false, reason, err.Error())
		e.report(reason, err.Error())
		return 0, "", err
	}
	if e.selector == "" {
		return fail("InvalidSelector", fmt.Errorf("the HPA target's scale is missing a selector"))
	}
	selector, err := labels.Parse(e.selector)
	if err != nil {
		return fail("InvalidSelector", fmt.Errorf("couldn't convert selector into a corresponding internal selector object: %w", err))
	}
	pods := e.pods(selector)
	if others := e.others(selector, pods); len(others) > 0 {
		return fail("AmbiguousSelector", fmt.Errorf("pods by selector %s are controlled by multiple HPAs: %v", selector, others))
	}
	var first error
	var reason string
	failed := 0
	statuses := []autoscalingv2.MetricStatus{}
	for _, m := range e.hpa.Spec.Metrics {
		p, title, status, err := e.byMetric(ctx, m, selector, pods)
		if err != nil {
			err = fmt.Errorf("the HPA was unable to compute the replica count: %w", err)
			if failed++; first == nil {
				first, reason = err, failureOf(m.Type)
			}
			e.report(failureOf(m.Type), err.Error())
			continue
		}
		statuses = append(statuses, status)
		if name == "" || p.replicas > replicas {
			replicas, name = p.replicas, title
		}
	}
	e.hpa.Status.CurrentMetrics = statuses
	if failed >= len(e.hpa.Spec.Metrics) || failed > 0 && replicas < e.size.wanted {
		e.condition(autoscalingv2.ScalingActive, false, reason, first.Error())
		return 0, "", fmt.Errorf("invalid metrics (%d invalid out of %d), first error is: %w", failed, len(e.hpa.Spec.Metrics), first)
	}
	e.condition(autoscalingv2.ScalingActive, true, "ValidMetricFound", "the HPA was able to successfully calculate a replica count from "+name)
	return replicas, name, nil
}

// failureOf is the reason when a metric of a type cannot be had.
func failureOf(kind autoscalingv2.MetricSourceType) string {
	switch kind {
	case autoscalingv2.ObjectMetricSourceType, autoscalingv2.PodsMetricSourceType, autoscalingv2.ResourceMetricSourceType,
		autoscalingv2.ContainerResourceMetricSourceType, autoscalingv2.ExternalMetricSourceType:
		return fmt.Sprintf("FailedGet%sMetric", kind)
	}
	return "InvalidMetricSourceType"
}

// byMetric asks one metric.
func (e *evaluation) byMetric(ctx context.Context, m autoscalingv2.MetricSpec, selector labels.Selector, pods []*corev1.Pod) (proposal, string, autoscalingv2.MetricStatus, error) {
	status := autoscalingv2.MetricStatus{Type: m.Type}
	namespace, within := e.hpa.Namespace, e.limits().tolerances()
	switch {
	case m.Type == autoscalingv2.ResourceMetricSourceType && m.Resource != nil:
		p, current, kind, err := e.byResource(ctx, m.Resource.Name, "", m.Resource.Target, selector, pods)
		status.Resource = &autoscalingv2.ResourceMetricStatus{Name: m.Resource.Name, Current: current}
		if err != nil {
			err = fmt.Errorf("failed to get %s utilization: %w", m.Resource.Name, err)
		}
		return p, fmt.Sprintf("%s resource%s", m.Resource.Name, kind), status, err
	case m.Type == autoscalingv2.ContainerResourceMetricSourceType && m.ContainerResource != nil:
		of := m.ContainerResource
		p, current, kind, err := e.byResource(ctx, of.Name, of.Container, of.Target, selector, pods)
		status.ContainerResource = &autoscalingv2.ContainerResourceMetricStatus{Name: of.Name, Container: of.Container, Current: current}
		if err != nil {
			err = fmt.Errorf("failed to get %s container metric value: %w", of.Name, err)
		}
		return p, fmt.Sprintf("%s container resource%s", of.Name, kind), status, err
	case m.Type == autoscalingv2.PodsMetricSourceType && m.Pods != nil:
		status.Pods = &autoscalingv2.PodsMetricStatus{Metric: m.Pods.Metric}
		p, err := e.byPods(ctx, m.Pods, selector, pods)
		status.Pods.Current.AverageValue = quantity(p.average)
		return p, "pods metric " + m.Pods.Metric.Name, status, err
	case m.Type == autoscalingv2.ObjectMetricSourceType && m.Object != nil:
		of := m.Object
		status.Object = &autoscalingv2.ObjectMetricStatus{Metric: of.Metric, DescribedObject: of.DescribedObject}
		matching, err := metricSelector(of.Metric)
		if err != nil {
			return proposal{}, "", status, fmt.Errorf("failed to get object metric value: %w", err)
		}
		value, err := e.metrics.Object(ctx, of.Metric.Name, namespace, of.DescribedObject, matching)
		if err != nil {
			return proposal{}, "", status, fmt.Errorf("failed to get object metric value: unable to get metric %s: %s on %s %s/%w",
				of.Metric.Name, of.DescribedObject.Kind, namespace, of.DescribedObject.Name, err)
		}
		p, err := e.byValue(value, of.Target, pods, within, &status.Object.Current)
		return p, fmt.Sprintf("%s metric %s", of.DescribedObject.Kind, of.Metric.Name), status, err
	case m.Type == autoscalingv2.ExternalMetricSourceType && m.External != nil:
		of := m.External
		status.External = &autoscalingv2.ExternalMetricStatus{Metric: of.Metric}
		matching, err := metricSelector(of.Metric)
		if err != nil {
			return proposal{}, "", status, fmt.Errorf("failed to get %s external metric value: %w", of.Metric.Name, err)
		}
		values, err := e.metrics.External(ctx, of.Metric.Name, namespace, matching)
		if err != nil {
			return proposal{}, "", status, fmt.Errorf("failed to get %s external metric value: unable to get external metric %s/%s/%s: %w",
				of.Metric.Name, namespace, of.Metric.Name, matching, err)
		}
		var sum int64
		for _, v := range values {
			sum += v
		}
		p, err := e.byValue(sum, of.Target, pods, within, &status.External.Current)
		return p, fmt.Sprintf("external metric %s(%s)", of.Metric.Name, kmetav1.FormatLabelSelector(of.Metric.Selector)), status, err
	}
	return proposal{}, "", status, fmt.Errorf("unknown metric source type %q", m.Type)
}

// byResource asks what pods, or one container of each, use of a resource.
func (e *evaluation) byResource(ctx context.Context, name corek8s.ResourceName, container string, target autoscalingv2.MetricTarget, selector labels.Selector, pods []*corev1.Pod) (proposal, autoscalingv2.MetricValueStatus, string, error) {
	within, ofCPU := e.limits().tolerances(), name == corek8s.ResourceCPU
	var current autoscalingv2.MetricValueStatus
	samples, err := e.metrics.Resource(ctx, string(name), e.hpa.Namespace, selector, container)
	if err != nil {
		return proposal{}, current, "", fmt.Errorf("unable to get metrics for resource %s: %w", name, err)
	}
	if target.AverageValue != nil {
		aim := target.AverageValue.MilliValue()
		p, err := perPod(e.size.wanted, pods, samples, ofCPU, ofAverage(aim), func(string) int64 { return aim }, within, e.now)
		current.AverageValue = quantity(p.average)
		return p, current, "", err
	}
	if target.AverageUtilization == nil {
		return proposal{}, current, "", fmt.Errorf("invalid resource metric source: neither an average utilization target nor an average value (usage) target was set")
	}
	requests, err := requestsOf(pods, string(name), container)
	if err != nil {
		return proposal{}, current, "", err
	}
	aim := *target.AverageUtilization
	full := func(pod string) int64 { return requests[pod] * int64(max(100, aim)) / 100 }
	p, err := perPod(e.size.wanted, pods, samples, ofCPU, ofRequests(requests, aim), full, within, e.now)
	current.AverageUtilization, current.AverageValue = &p.percent, quantity(p.average)
	return p, current, " utilization (percentage of request)", err
}

// byPods asks a metric that each pod has.
func (e *evaluation) byPods(ctx context.Context, of *autoscalingv2.PodsMetricSource, selector labels.Selector, pods []*corev1.Pod) (proposal, error) {
	matching, err := metricSelector(of.Metric)
	if err != nil {
		return proposal{}, fmt.Errorf("failed to get pods metric value: %w", err)
	}
	samples, err := e.metrics.Pods(ctx, of.Metric.Name, e.hpa.Namespace, selector, matching)
	if err != nil {
		return proposal{}, fmt.Errorf("failed to get pods metric value: unable to get metric %s: %w", of.Metric.Name, err)
	}
	if of.Target.AverageValue == nil {
		return proposal{}, fmt.Errorf("failed to get pods metric value: an average value is required as the target")
	}
	aim := of.Target.AverageValue.MilliValue()
	return perPod(e.size.wanted, pods, samples, false, ofAverage(aim), func(string) int64 { return aim }, e.limits().tolerances(), e.now)
}

// byValue asks a value that is of no single pod.
func (e *evaluation) byValue(value int64, target autoscalingv2.MetricTarget, pods []*corev1.Pod, within tolerance, current *autoscalingv2.MetricValueStatus) (proposal, error) {
	switch {
	case target.AverageValue != nil:
		p := shared(e.size.existing, value, target.AverageValue.MilliValue(), within)
		current.AverageValue = quantity(p.average)
		return p, nil
	case target.Value != nil:
		p, err := total(e.size.wanted, pods, value, target.Value.MilliValue(), within)
		current.Value = quantity(value)
		return p, err
	}
	return proposal{}, fmt.Errorf("invalid metric source: neither a value target nor an average value target was set")
}

func metricSelector(m autoscalingv2.MetricIdentifier) (labels.Selector, error) {
	if m.Selector == nil {
		return labels.Everything(), nil
	}
	return kmetav1.LabelSelectorAsSelector(m.Selector)
}

// quantity returns thousandths as the API writes them.
func quantity(milli int64) *resource.Quantity {
	return resource.NewMilliQuantity(milli, resource.DecimalSI)
}
