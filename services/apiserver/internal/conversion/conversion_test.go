package conversion

import (
	"encoding/json"
	"math/rand"
	"reflect"
	"strings"
	"testing"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	quantity "k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/randfill"
	"sigs.k8s.io/yaml"

	"dhow.dev/pkg/resource"
)

func row(t testing.TB, group, version, plural string) *resource.Resource {
	t.Helper()
	r := resource.LookupVersion(group, version, plural)
	if r == nil {
		t.Fatalf("no row for %s/%s %s", group, version, plural)
	}
	return r
}

func convert[T runtime.Object](t testing.TB, obj runtime.Object, to *resource.Resource) T {
	t.Helper()
	out, err := Convert(obj, to)
	if err != nil {
		t.Fatal(err)
	}
	return out.(T)
}

// TestEveryAlias holds the table and the rules together: what is stored as another row can be converted in both directions.
func TestEveryAlias(t *testing.T) {
	for _, r := range resource.Kinds() {
		if r.Storage == nil {
			continue
		}
		for _, way := range [][2]*resource.Resource{{r, r.Storage}, {r.Storage, r}} {
			if _, err := Encoded(nil, way[0], way[1]); err != nil {
				t.Errorf("%s to %s: %v", way[0].GroupVersionKind(), way[1].GroupVersionKind(), err)
			}
		}
	}
	if _, err := Encoded(nil, row(t, "", "v1", "pods"), row(t, "", "v1", "nodes")); err == nil {
		t.Error("a pod became a node")
	}
	if _, err := Convert(&corev1.Pod{}, row(t, "autoscaling", "v1", "horizontalpodautoscalers")); err == nil {
		t.Error("a pod became an autoscaler")
	}
	if _, err := Encoded([]byte{0xff}, row(t, "", "v1", "events"), row(t, "events.k8s.io", "v1", "events")); err == nil {
		t.Error("no event at all was converted")
	}
}

// TestEvents: both forms hold the same, whatever is in them.
func TestEvents(t *testing.T) {
	core, group := row(t, "", "v1", "events"), row(t, "events.k8s.io", "v1", "events")
	for seed := range int64(50) {
		var event corev1.Event
		randfill.NewWithSeed(seed).NilChance(0.3).NumElements(0, 3).Fill(&event)
		event.TypeMeta = metav1.TypeMeta{}
		if back := convert[*corev1.Event](t, convert[*eventsv1.Event](t, &event, group), core); !apiequality.Semantic.DeepEqual(back, &event) {
			t.Fatalf("seed %d: %+v came back as %+v", seed, event, back)
		}
	}
	event := &corev1.Event{
		InvolvedObject: corev1.ObjectReference{Name: "p"}, Message: "m", Source: corev1.EventSource{Component: "c"}, Count: 3,
		ReportingController: "r", Series: &corev1.EventSeries{Count: 2},
	}
	got := convert[*eventsv1.Event](t, event, group)
	if got.Regarding.Name != "p" || got.Note != "m" || got.DeprecatedSource.Component != "c" || got.DeprecatedCount != 3 || got.ReportingController != "r" || got.Series.Count != 2 {
		t.Errorf("%+v", got)
	}
	if same := convert[*eventsv1.Event](t, got, group); same != got {
		t.Error("an event of the version that is asked for was copied")
	}
}

// scalers are autoscalers of which autoscaling/v1 has no fields for some part.
var scalers = map[string]string{
	"cpu":    `metrics: [{type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 55}}}]`,
	"memory": `metrics: [{type: Resource, resource: {name: memory, target: {type: Utilization, averageUtilization: 55}}}]`,
	"amount": `metrics: [{type: Resource, resource: {name: cpu, target: {type: AverageValue, averageValue: 100m}}}]`,
	"pods":   `metrics: [{type: Pods, pods: {metric: {name: rps, selector: {matchLabels: {a: b}}}, target: {type: AverageValue, averageValue: "5"}}}]`,
	"object": `metrics: [{type: Object, object: {describedObject: {kind: Ingress, name: i, apiVersion: networking.k8s.io/v1}, metric: {name: rps}, target: {type: Value, value: "10"}}}]`,
	"container": `metrics: [{type: ContainerResource, containerResource: {name: cpu, container: c, target: {type: Utilization, averageUtilization: 5}}},
		{type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 60}}}]`,
	"external": `metrics: [{type: External, external: {metric: {name: q, selector: {matchLabels: {a: b}}}, target: {type: AverageValue, averageValue: "5"}}},
		{type: External, external: {metric: {name: q}, target: {type: Value, value: "5"}}}]`,
	"behavior": `{metrics: [{type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 1}}}],
		behavior: {scaleUp: {stabilizationWindowSeconds: 5, selectPolicy: Max, policies: [{type: Pods, value: 4, periodSeconds: 15}], tolerance: 100m}}}`,
}

func TestAutoscalersComeBack(t *testing.T) {
	v1, v2 := row(t, "autoscaling", "v1", "horizontalpodautoscalers"), row(t, "autoscaling", "v2", "horizontalpodautoscalers")
	for name, spec := range scalers {
		t.Run(name, func(t *testing.T) {
			in := &autoscalingv2.HorizontalPodAutoscaler{ObjectMeta: metav1.ObjectMeta{Name: "h", Annotations: map[string]string{"mine": "x"}}}
			if err := yaml.UnmarshalStrict([]byte(spec), &in.Spec); err != nil {
				t.Fatal(err)
			}
			in.Spec.MaxReplicas = 7
			in.Status.Conditions = []autoscalingv2.HorizontalPodAutoscalerCondition{{Type: autoscalingv2.AbleToScale, Status: corev1.ConditionTrue, Reason: "r"}}
			in.Status.CurrentMetrics = []autoscalingv2.MetricStatus{{Type: autoscalingv2.ResourceMetricSourceType, Resource: &autoscalingv2.ResourceMetricStatus{
				Name: corev1.ResourceCPU, Current: autoscalingv2.MetricValueStatus{AverageUtilization: new(int32(31)), AverageValue: quantity.NewMilliQuantity(30, quantity.DecimalSI)},
			}}}
			before := in.DeepCopy()
			old := convert[*autoscalingv1.HorizontalPodAutoscaler](t, in, v1)
			if *old.Status.CurrentCPUUtilizationPercentage != 31 || old.Annotations["mine"] != "x" {
				t.Errorf("%+v", old)
			}
			back := convert[*autoscalingv2.HorizontalPodAutoscaler](t, old, v2)
			if !apiequality.Semantic.DeepEqual(in, before) {
				t.Error("the conversion changed what it was given")
			}
			// Metrics that v1 has no field for come first then.
			if !apiequality.Semantic.DeepEqual(back, in) {
				t.Errorf("came back as %s", text(t, back))
			}
		})
	}
}

func text(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestAutoscalerWords compares with what Kubernetes writes.
func TestAutoscalerWords(t *testing.T) {
	v1, v2 := row(t, "autoscaling", "v1", "horizontalpodautoscalers"), row(t, "autoscaling", "v2", "horizontalpodautoscalers")
	in := &autoscalingv2.HorizontalPodAutoscaler{}
	if err := yaml.UnmarshalStrict([]byte(scalers["behavior"]), &in.Spec); err != nil {
		t.Fatal(err)
	}
	in.Spec.Metrics = append(in.Spec.Metrics, autoscalingv2.MetricSpec{Type: autoscalingv2.ResourceMetricSourceType, Resource: &autoscalingv2.ResourceMetricSource{
		Name: corev1.ResourceMemory, Target: autoscalingv2.MetricTarget{Type: autoscalingv2.UtilizationMetricType, AverageUtilization: new(int32(9))},
	}})
	old := convert[*autoscalingv1.HorizontalPodAutoscaler](t, in, v1)
	for name, want := range map[string]string{
		behaviorAnnotation: `{"ScaleUp":{"StabilizationWindowSeconds":5,"SelectPolicy":"Max","Policies":[{"Type":"Pods","Value":4,"PeriodSeconds":15}],"Tolerance":"100m"},"ScaleDown":null}`,
		metricsAnnotation:  `[{"type":"Resource","resource":{"name":"memory","targetAverageUtilization":9}}]`,
	} {
		if old.Annotations[name] != want {
			t.Errorf("%s: %s\nwant %s", name, old.Annotations[name], want)
		}
	}
	if *old.Spec.TargetCPUUtilizationPercentage != 1 {
		t.Errorf("%+v", old.Spec)
	}
	for name, c := range map[string]struct {
		in   autoscalingv1.HorizontalPodAutoscaler
		want string
	}{
		"nothing":  {autoscalingv1.HorizontalPodAutoscaler{}, `[{"type":"Resource","resource":{"name":"cpu","target":{"type":"Utilization","averageUtilization":80}}}]`},
		"a target": {autoscalingv1.HorizontalPodAutoscaler{Spec: autoscalingv1.HorizontalPodAutoscalerSpec{TargetCPUUtilizationPercentage: new(int32(5))}}, `[{"type":"Resource","resource":{"name":"cpu","target":{"type":"Utilization","averageUtilization":5}}}]`},
		"not JSON": {autoscalingv1.HorizontalPodAutoscaler{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{metricsAnnotation: "abc", behaviorAnnotation: "{}", conditionsAnnotation: "", statusesAnnotation: "7"}}}, `[{"type":"Resource","resource":{"name":"cpu","target":{"type":"Utilization","averageUtilization":80}}}]`},
	} {
		got := convert[*autoscalingv2.HorizontalPodAutoscaler](t, &c.in, v2)
		if m := text(t, got.Spec.Metrics); m != c.want || got.Annotations != nil || got.Spec.Behavior != nil {
			t.Errorf("%s: %s, %v", name, m, got.Annotations)
		}
	}
}

// TestFieldLabels: every label of an alias means a label of the row that is stored.
func TestFieldLabels(t *testing.T) {
	group := row(t, "events.k8s.io", "v1", "events")
	if label, ok := FieldLabel(group, "regarding.name"); !ok || label != "involvedObject.name" {
		t.Errorf("%s, %v", label, ok)
	}
	if _, ok := FieldLabel(group, "involvedObject.name"); ok {
		t.Error("events.k8s.io selects by a name of the core group")
	}
}

// FuzzAnnotations: whatever users write into the annotations, an autoscaler converts.
func FuzzAnnotations(f *testing.F) {
	for _, seed := range []string{"", "null", "[]", "{}", `[{"type":"Object","object":null}]`, `{"ScaleUp":{"Policies":[{}]}}`, strings.Repeat("[", 100)} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		in := &autoscalingv1.HorizontalPodAutoscaler{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{
			metricsAnnotation: text, behaviorAnnotation: text, conditionsAnnotation: text, statusesAnnotation: text,
		}}}
		out, err := Convert(in, row(t, "autoscaling", "v2", "horizontalpodautoscalers"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Convert(out, row(t, "autoscaling", "v1", "horizontalpodautoscalers")); err != nil {
			t.Fatal(err)
		}
	})
}

// TestRandomAutoscalers: nothing that the structs can hold makes a conversion fail, and a second round changes nothing any more.
func TestRandomAutoscalers(t *testing.T) {
	v1, v2 := row(t, "autoscaling", "v1", "horizontalpodautoscalers"), row(t, "autoscaling", "v2", "horizontalpodautoscalers")
	for seed := range int64(50) {
		in := &autoscalingv2.HorizontalPodAutoscaler{}
		randfill.NewWithSeed(seed).NilChance(0.3).NumElements(0, 3).Funcs(func(q *quantity.Quantity, _ randfill.Continue) {
			*q = *quantity.NewMilliQuantity(rand.New(rand.NewSource(seed)).Int63n(1e6), quantity.DecimalSI)
		}).Fill(in)
		in.TypeMeta, in.ObjectMeta = metav1.TypeMeta{}, metav1.ObjectMeta{Name: "h"}
		once := convert[*autoscalingv2.HorizontalPodAutoscaler](t, convert[*autoscalingv1.HorizontalPodAutoscaler](t, in, v1), v2)
		twice := convert[*autoscalingv2.HorizontalPodAutoscaler](t, convert[*autoscalingv1.HorizontalPodAutoscaler](t, once, v1), v2)
		if !reflect.DeepEqual(text(t, once), text(t, twice)) {
			t.Fatalf("seed %d: %s\nthen %s", seed, text(t, once), text(t, twice))
		}
	}
}
