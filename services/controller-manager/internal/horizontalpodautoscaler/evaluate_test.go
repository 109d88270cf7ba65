package horizontalpodautoscaler

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corek8s "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	kmetav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
)

// fake are metrics that a test makes up.
type fake struct {
	pods     map[string]Sample
	object   int64
	external []int64
	err      error
	// asked is what was asked for last.
	asked string
}

func (f *fake) all() map[string]Sample {
	samples := map[string]Sample{}
	for name, s := range f.pods {
		samples[name] = s
	}
	return samples
}

func (f *fake) Resource(_ context.Context, name, namespace string, pods labels.Selector, container string) (map[string]Sample, error) {
	f.asked = strings.Join([]string{name, namespace, pods.String(), container}, " ")
	return f.all(), f.err
}

func (f *fake) Pods(_ context.Context, name, namespace string, pods, metric labels.Selector) (map[string]Sample, error) {
	f.asked = strings.Join([]string{name, namespace, pods.String(), metric.String()}, " ")
	return f.all(), f.err
}

func (f *fake) Object(_ context.Context, name, namespace string, of autoscalingv2.CrossVersionObjectReference, metric labels.Selector) (int64, error) {
	f.asked = strings.Join([]string{name, namespace, of.Kind, of.Name, metric.String()}, " ")
	return f.object, f.err
}

func (f *fake) External(_ context.Context, name, namespace string, metric labels.Selector) ([]int64, error) {
	f.asked = strings.Join([]string{name, namespace, metric.String()}, " ")
	return f.external, f.err
}

func quantityOf(text string) *resource.Quantity {
	q := resource.MustParse(text)
	return &q
}

func averageUtilization(percent int32) autoscalingv2.MetricTarget {
	return autoscalingv2.MetricTarget{Type: autoscalingv2.UtilizationMetricType, AverageUtilization: &percent}
}

func averageValue(text string) autoscalingv2.MetricTarget {
	return autoscalingv2.MetricTarget{Type: autoscalingv2.AverageValueMetricType, AverageValue: quantityOf(text)}
}

func value(text string) autoscalingv2.MetricTarget {
	return autoscalingv2.MetricTarget{Type: autoscalingv2.ValueMetricType, Value: quantityOf(text)}
}

var queue = autoscalingv2.MetricIdentifier{Name: "queue", Selector: &kmetav1.LabelSelector{MatchLabels: map[string]string{"q": "1"}}}

func cpu(percent int32) autoscalingv2.MetricSpec {
	return autoscalingv2.MetricSpec{
		Type: autoscalingv2.ResourceMetricSourceType, Resource: &autoscalingv2.ResourceMetricSource{Name: corek8s.ResourceCPU, Target: averageUtilization(percent)},
	}
}

func external(target autoscalingv2.MetricTarget) autoscalingv2.MetricSpec {
	return autoscalingv2.MetricSpec{Type: autoscalingv2.ExternalMetricSourceType, External: &autoscalingv2.ExternalMetricSource{Metric: queue, Target: target}}
}

// lookAt returns the first look at an autoscaler from least to 10 whose target has so many pods.
func lookAt(least, current int32, metrics Metrics, pods []*corev1.Pod, specs ...autoscalingv2.MetricSpec) *evaluation {
	return &evaluation{
		hpa: &autoscalingv2.HorizontalPodAutoscaler{
			ObjectMeta: kmetav1.ObjectMeta{Namespace: "default", Name: "web"},
			Spec:       autoscalingv2.HorizontalPodAutoscalerSpec{MinReplicas: &least, MaxReplicas: 10, Metrics: specs},
		},
		size: size{current, current}, selector: "app=web", metrics: metrics, history: &history{}, now: now,
		pods:   func(labels.Selector) []*corev1.Pod { return pods },
		others: func(labels.Selector, []*corev1.Pod) []string { return nil },
		report: func(string, string) {},
	}
}

// conditionOf returns a condition as "True reason".
func conditionOf(e *evaluation, kind autoscalingv2.HorizontalPodAutoscalerConditionType) string {
	i := slices.IndexFunc(e.hpa.Status.Conditions, func(c autoscalingv2.HorizontalPodAutoscalerCondition) bool { return c.Type == kind })
	if i < 0 {
		return ""
	}
	return string(e.hpa.Status.Conditions[i].Status) + " " + e.hpa.Status.Conditions[i].Reason
}

func TestEveryTypeOfMetric(t *testing.T) {
	three, samples := podsOf(make([]look, 3), []int64{600, 600, 600})
	for _, test := range []struct {
		spec     autoscalingv2.MetricSpec
		want     int32
		why      string
		asked    string
		selected func(autoscalingv2.MetricStatus) string
	}{
		{cpu(30), 6, "cpu resource utilization (percentage of request) above target", "cpu default app=web ",
			func(s autoscalingv2.MetricStatus) string { return s.Resource.Current.AverageValue.String() }},
		{autoscalingv2.MetricSpec{Type: autoscalingv2.ResourceMetricSourceType, Resource: &autoscalingv2.ResourceMetricSource{Name: "memory", Target: averageValue("300m")}},
			6, "memory resource above target", "memory default app=web ",
			func(s autoscalingv2.MetricStatus) string { return s.Resource.Current.AverageValue.String() }},
		{autoscalingv2.MetricSpec{Type: autoscalingv2.ContainerResourceMetricSourceType,
			ContainerResource: &autoscalingv2.ContainerResourceMetricSource{Name: "cpu", Container: "main", Target: averageUtilization(20)}},
			6, "cpu container resource utilization (percentage of request) above target", "cpu default app=web main",
			func(s autoscalingv2.MetricStatus) string { return s.ContainerResource.Current.AverageValue.String() }},
		{autoscalingv2.MetricSpec{Type: autoscalingv2.PodsMetricSourceType, Pods: &autoscalingv2.PodsMetricSource{Metric: queue, Target: averageValue("400m")}},
			5, "pods metric queue above target", "queue default app=web q=1",
			func(s autoscalingv2.MetricStatus) string { return s.Pods.Current.AverageValue.String() }},
		{autoscalingv2.MetricSpec{Type: autoscalingv2.ObjectMetricSourceType, Object: &autoscalingv2.ObjectMetricSource{
			DescribedObject: autoscalingv2.CrossVersionObjectReference{Kind: "Ingress", Name: "front"}, Metric: queue, Target: value("3")}},
			6, "Ingress metric queue above target", "queue default Ingress front q=1",
			func(s autoscalingv2.MetricStatus) string { return s.Object.Current.Value.String() }},
		{external(averageValue("1")), 6, "external metric queue(q=1) above target", "queue default q=1",
			func(s autoscalingv2.MetricStatus) string { return s.External.Current.AverageValue.String() }},
	} {
		f := &fake{pods: samples, object: 6000, external: []int64{2500, 3500}}
		e := lookAt(1, 3, f, three, test.spec)
		d, err := e.decide(t.Context())
		if err != nil {
			t.Errorf("%s: %v", test.spec.Type, err)
			continue
		}
		// Without behaviors, three may become six at once, and no more.
		if d.replicas != test.want || !d.rescale || d.why != test.why || f.asked != test.asked {
			t.Errorf("%s: %+v, asked for %q; want %d, %q, %q", test.spec.Type, d, f.asked, test.want, test.why, test.asked)
		}
		if got := conditionOf(e, autoscalingv2.ScalingActive); got != "True ValidMetricFound" || conditionOf(e, autoscalingv2.AbleToScale) != "True ReadyForNewScale" {
			t.Errorf("%s: %v", test.spec.Type, e.hpa.Status.Conditions)
		}
		if s := e.hpa.Status.CurrentMetrics; len(s) != 1 || s[0].Type != test.spec.Type || test.selected(s[0]) == "0" {
			t.Errorf("%s: current %v", test.spec.Type, s)
		}
	}
}

func TestMetricsThatCannotBeHad(t *testing.T) {
	three, samples := podsOf(make([]look, 3), []int64{600, 600, 600})
	// One of two fails: the other may make the target larger, not smaller.
	pods := autoscalingv2.MetricSpec{Type: autoscalingv2.PodsMetricSourceType, Pods: &autoscalingv2.PodsMetricSource{Metric: queue, Target: averageValue("1")}}
	e := lookAt(1, 3, mixed{&fake{pods: samples}}, three, pods, cpu(30))
	if d, err := e.decide(t.Context()); err != nil || d.replicas != 6 {
		t.Errorf("larger: %+v, %v", d, err)
	}
	e = lookAt(1, 3, mixed{&fake{pods: samples}}, three, pods, cpu(90))
	d, err := e.decide(t.Context())
	if err == nil || d.rescale || conditionOf(e, autoscalingv2.ScalingActive) != "False FailedGetPodsMetric" {
		t.Errorf("smaller: %+v, %v, %v", d, err, e.hpa.Status.Conditions)
	}
	for _, test := range []struct {
		spec   autoscalingv2.MetricSpec
		reason string
	}{
		{cpu(30), "FailedGetResourceMetric"}, {pods, "FailedGetPodsMetric"}, {external(value("1")), "FailedGetExternalMetric"},
		{autoscalingv2.MetricSpec{Type: "Odd"}, "InvalidMetricSourceType"},
	} {
		e := lookAt(1, 3, &fake{err: errors.New("away")}, three, test.spec)
		if d, err := e.decide(t.Context()); err == nil || d.rescale || conditionOf(e, autoscalingv2.ScalingActive) != "False "+test.reason {
			t.Errorf("%s: %+v, %v, %v", test.spec.Type, d, err, e.hpa.Status.Conditions)
		}
	}
	e = lookAt(1, 3, &fake{pods: samples}, three, cpu(30))
	e.selector = ""
	if _, err := e.decide(t.Context()); err == nil || conditionOf(e, autoscalingv2.ScalingActive) != "False InvalidSelector" {
		t.Errorf("without a selector: %v", e.hpa.Status.Conditions)
	}
	e = lookAt(1, 3, &fake{pods: samples}, three, cpu(30))
	e.others = func(labels.Selector, []*corev1.Pod) []string { return []string{"default/a", "default/web"} }
	if _, err := e.decide(t.Context()); err == nil || conditionOf(e, autoscalingv2.ScalingActive) != "False AmbiguousSelector" {
		t.Errorf("with another autoscaler: %v", e.hpa.Status.Conditions)
	}
}

// mixed has resources alone.
type mixed struct{ *fake }

func (mixed) Pods(context.Context, string, string, labels.Selector, labels.Selector) (map[string]Sample, error) {
	return nil, errNoCustom
}

func TestBoundsAreKeptWithoutMetrics(t *testing.T) {
	for _, test := range []struct {
		least, current, want int32
		why                  string
	}{
		{2, 1, 2, "Current number of replicas below Spec.MinReplicas"}, {1, 12, 10, "Current number of replicas above Spec.MaxReplicas"},
	} {
		e := lookAt(test.least, test.current, &fake{err: errors.New("away")}, nil, cpu(30))
		if d, err := e.decide(t.Context()); err != nil || d.replicas != test.want || d.why != test.why || !d.rescale {
			t.Errorf("%d: %+v, %v", test.current, d, err)
		}
	}
	e := lookAt(1, 0, &fake{}, nil, cpu(30))
	if d, err := e.decide(t.Context()); err != nil || d.rescale || conditionOf(e, autoscalingv2.ScalingActive) != "False ScalingDisabled" {
		t.Errorf("a target of zero: %+v, %v, %v", d, err, e.hpa.Status.Conditions)
	}
}

func TestToZeroAndBack(t *testing.T) {
	two, _ := podsOf(make([]look, 2), []int64{0, 0})
	f := &fake{external: []int64{0}}
	e := lookAt(0, 2, f, two, external(averageValue("1")))
	d, err := e.decide(t.Context())
	if err != nil || d.replicas != 2 {
		t.Fatalf("before the window has passed: %+v, %v", d, err)
	}
	e.now = e.now.Add(downWindow)
	if d, err = e.decide(t.Context()); err != nil || d.replicas != 0 || !d.rescale {
		t.Fatalf("after it: %+v, %v", d, err)
	}
	e.noteZero(2, d.replicas)
	if conditionOf(e, autoscalingv2.ScaledToZero) != "True ScaledToZero" {
		t.Errorf("%v", e.hpa.Status.Conditions)
	}
	e.size, e.now = size{}, e.now.Add(time.Minute)
	if d, err = e.decide(t.Context()); err != nil || d.rescale {
		t.Errorf("nothing to do: %+v, %v", d, err)
	}
	f.external = []int64{2500}
	if d, err = e.decide(t.Context()); err != nil || d.replicas != 3 || !d.rescale {
		t.Errorf("woken: %+v, %v", d, err)
	}
	e.noteZero(0, d.replicas)
	if conditionOf(e, autoscalingv2.ScaledToZero) != "False NotScaledToZero" {
		t.Errorf("%v", e.hpa.Status.Conditions)
	}
	// Emptied by somebody else it sleeps on.
	if d, err = e.decide(t.Context()); err != nil || d.rescale || conditionOf(e, autoscalingv2.ScalingActive) != "False ScalingDisabled" {
		t.Errorf("emptied by hand: %+v, %v, %v", d, err, e.hpa.Status.Conditions)
	}
}
