package horizontalpodautoscaler

import (
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/services/controller-manager/internal/apitime"
)

var now = time.Unix(1_800_000_000, 0)

// look is how a pod is: running and ready for an hour by default, requesting one core.
type look struct {
	phase, request   string
	unready, deleted bool
	// age is since the pod started, ready since it became ready or unready; both an hour by default.
	age, ready time.Duration
}

func podOf(name string, l look) *corev1.Pod {
	orString := func(s *string, v string) {
		if *s == "" {
			*s = v
		}
	}
	orString(&l.phase, "Running")
	orString(&l.request, "1")
	if l.age == 0 {
		l.age = time.Hour
	}
	if l.ready == 0 {
		l.ready = l.age
	}
	status := "True"
	if l.unready {
		status = "False"
	}
	p := corev1.Pod_builder{
		Metadata: metav1.ObjectMeta_builder{Namespace: proto.String("default"), Name: proto.String(name), Labels: map[string]string{"app": "web"}}.Build(),
		Spec: corev1.PodSpec_builder{Containers: []*corev1.Container{corev1.Container_builder{
			Name: proto.String("main"),
			Resources: corev1.ResourceRequirements_builder{
				Requests: map[string]*metav1.Quantity{"cpu": metav1.Quantity_builder{String: proto.String(l.request)}.Build()},
			}.Build(),
		}.Build()}}.Build(),
		Status: corev1.PodStatus_builder{
			Phase: proto.String(l.phase), StartTime: apitime.Of(now.Add(-l.age)),
			Conditions: []*corev1.PodCondition{corev1.PodCondition_builder{
				Type: proto.String("Ready"), Status: proto.String(status), LastTransitionTime: apitime.Of(now.Add(-l.ready)),
			}.Build()},
		}.Build(),
	}.Build()
	if l.deleted {
		p.GetMetadata().SetDeletionTimestamp(apitime.Of(now))
	}
	return p
}

// podsOf returns pods p0, p1, … and what was measured of them just now; a negative number was not measured.
func podsOf(looks []look, used []int64) ([]*corev1.Pod, map[string]Sample) {
	var pods []*corev1.Pod
	samples := map[string]Sample{}
	for i, l := range looks {
		name := fmt.Sprintf("p%d", i)
		pods = append(pods, podOf(name, l))
		if used[i] >= 0 {
			samples[name] = Sample{Milli: used[i], At: now, Window: time.Minute}
		}
	}
	return pods, samples
}

func TestReplicasByUtilization(t *testing.T) {
	fresh := look{age: time.Minute, ready: 30 * time.Second}
	for _, test := range []struct {
		what    string
		looks   []look
		used    []int64
		target  int32
		want    int32
		percent int32
		err     string
	}{
		{what: "twice the target", looks: make([]look, 3), used: []int64{600, 600, 600}, target: 30, want: 6, percent: 60},
		{what: "half of it", looks: make([]look, 4), used: []int64{200, 200, 200, 200}, target: 40, want: 2, percent: 20},
		{what: "near it", looks: make([]look, 3), used: []int64{540, 540, 540}, target: 50, want: 3, percent: 54},
		{what: "one that is not measured is idle when there would be more", looks: make([]look, 3), used: []int64{900, 900, -1}, target: 50, want: 4, percent: 90},
		{what: "one that is not measured is full when there would be fewer", looks: make([]look, 3), used: []int64{100, 100, -1}, target: 50, want: 3, percent: 10},
		{what: "assumed ones do not turn the change round", looks: make([]look, 2), used: []int64{600, -1}, target: 50, want: 2, percent: 60},
		{what: "pods that load are idle when there would be more", looks: []look{{}, {}, fresh}, used: []int64{900, 900, 2000}, target: 50, want: 4, percent: 90},
		{what: "pods that load are not there when there would be fewer", looks: []look{{}, {}, fresh}, used: []int64{100, 100, 2000}, target: 50, want: 1, percent: 10},
		{what: "pending ones are idle", looks: []look{{}, {phase: "Pending"}}, used: []int64{1500, -1}, target: 50, want: 3, percent: 150},
		{what: "failed and deleted ones are not there", looks: []look{{}, {phase: "Failed"}, {deleted: true}}, used: []int64{1000, 5000, 5000}, target: 50, want: 2, percent: 100},
		{what: "one that was never ready", looks: []look{{}, {unready: true, ready: 59*time.Minute + 50*time.Second}}, used: []int64{1000, 1000}, target: 50, want: 2, percent: 100},
		{what: "one that is unready after it was ready", looks: []look{{}, {unready: true, ready: time.Minute}}, used: []int64{1000, 1000}, target: 50, want: 4, percent: 100},
		{what: "none measured", looks: []look{fresh}, used: []int64{100}, target: 50, err: errUnready.Error()},
		{what: "no pods", target: 50, err: errNoPods.Error()},
	} {
		pods, samples := podsOf(test.looks, test.used)
		requests, err := requestsOf(pods, "cpu", "")
		if err != nil {
			t.Fatal(err)
		}
		full := func(pod string) int64 { return requests[pod] }
		p, err := perPod(int32(len(pods)), pods, samples, true, ofRequests(requests, test.target), full, tolerance{aboutRight, aboutRight}, now)
		if test.err != "" {
			if err == nil || err.Error() != test.err {
				t.Errorf("%s: %v", test.what, err)
			}
			continue
		}
		if err != nil || p.replicas != test.want || p.percent != test.percent {
			t.Errorf("%s: %d replicas at %d %%, %v; want %d at %d %%", test.what, p.replicas, p.percent, err, test.want, test.percent)
		}
	}
}

func TestReplicasByAverageTotalAndShare(t *testing.T) {
	usual := tolerance{aboutRight, aboutRight}
	pods, samples := podsOf(make([]look, 3), []int64{30000, 40000, 50000})
	p, err := perPod(3, pods, samples, false, ofAverage(20000), func(string) int64 { return 20000 }, usual, now)
	if err != nil || p.replicas != 6 || p.average != 40000 {
		t.Errorf("average: %+v, %v", p, err)
	}
	// Only ready pods are multiplied.
	pods, _ = podsOf([]look{{}, {}, {unready: true}}, []int64{0, 0, 0})
	if p, err := total(3, pods, 300000, 100000, usual); err != nil || p.replicas != 6 || p.value != 300000 {
		t.Errorf("total: %+v, %v", p, err)
	}
	if p, err := total(0, nil, 250000, 100000, usual); err != nil || p.replicas != 3 {
		t.Errorf("total from zero: %+v, %v", p, err)
	}
	if p, err := total(2, pods, 0, 100000, usual); err != nil || p.replicas != 0 {
		t.Errorf("total to zero: %+v, %v", p, err)
	}
	if p := shared(4, 1000000, 100000, usual); p.replicas != 10 || p.average != 250000 {
		t.Errorf("share: %+v", p)
	}
	if p := shared(4, 410000, 100000, usual); p.replicas != 4 {
		t.Errorf("share near the target: %+v", p)
	}
	if p := shared(4, 410000, 100000, tolerance{0, 0}); p.replicas != 5 {
		t.Errorf("share without tolerance: %+v", p)
	}
}

func TestRequests(t *testing.T) {
	p := podOf("p", look{request: "250m"})
	side := proto.CloneOf(p.GetSpec().GetContainers()[0])
	side.SetName("side")
	side.SetRestartPolicy("Always")
	once := proto.CloneOf(side)
	once.ClearRestartPolicy()
	p.GetSpec().SetInitContainers([]*corev1.Container{side, once})
	requests, err := requestsOf([]*corev1.Pod{p}, "cpu", "")
	if err != nil || requests["p"] != 500 {
		t.Errorf("%v, %v; want the container and its sidecar", requests, err)
	}
	if requests, err = requestsOf([]*corev1.Pod{p}, "cpu", "main"); err != nil || requests["p"] != 250 {
		t.Errorf("of one container: %v, %v", requests, err)
	}
	if _, err := requestsOf([]*corev1.Pod{p}, "memory", ""); err == nil || err.Error() != "missing request for memory in container side of Pod p" {
		t.Errorf("of what is not requested: %v", err)
	}
	p.GetSpec().SetResources(corev1.ResourceRequirements_builder{
		Requests: map[string]*metav1.Quantity{"cpu": metav1.Quantity_builder{String: proto.String("2")}.Build()},
	}.Build())
	if requests, err = requestsOf([]*corev1.Pod{p}, "cpu", ""); err != nil || requests["p"] != 2000 {
		t.Errorf("of the pod itself: %v, %v", requests, err)
	}
}
