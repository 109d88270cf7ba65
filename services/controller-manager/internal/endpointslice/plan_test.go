package endpointslice

import (
	"fmt"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	discoveryv1 "dhow.dev/gen/go/dhow/discovery/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
)

func testService() *corev1.Service {
	return corev1.Service_builder{
		Metadata: metav1.ObjectMeta_builder{Namespace: proto.String("a"), Name: proto.String("web"), Uid: proto.String("s"), Labels: map[string]string{"team": "x"}}.Build(),
		Spec: corev1.ServiceSpec_builder{
			Selector: map[string]string{"app": "web"},
			Ports:    []*corev1.ServicePort{corev1.ServicePort_builder{Name: proto.String("http"), Port: proto.Int32(80)}.Build()},
		}.Build(),
	}.Build()
}

func testPod(i int, ready bool) *corev1.Pod {
	status := "False"
	if ready {
		status = "True"
	}
	return corev1.Pod_builder{
		Metadata: metav1.ObjectMeta_builder{Namespace: proto.String("a"), Name: proto.String(fmt.Sprintf("p%d", i)), Uid: proto.String(fmt.Sprintf("u%d", i))}.Build(),
		Spec:     corev1.PodSpec_builder{NodeName: proto.String("n")}.Build(),
		Status: corev1.PodStatus_builder{
			PodIps:     []*corev1.PodIP{corev1.PodIP_builder{Ip: proto.String(fmt.Sprintf("10.0.%d.%d", i/250, i%250+1))}.Build()},
			Conditions: []*corev1.PodCondition{corev1.PodCondition_builder{Type: proto.String("Ready"), Status: proto.String(status)}.Build()},
		}.Build(),
	}.Build()
}

// TestPlan changes the pods behind a Service again and again: afterwards the slices hold exactly the endpoints wanted, none too full, none empty
// beside others, and a second plan has nothing to do.
func TestPlan(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		svc := testService()
		stored := map[string]*discoveryv1.EndpointSlice{}
		existing := func() (all []*discoveryv1.EndpointSlice) {
			for _, s := range stored {
				all = append(all, s)
			}
			return all
		}
		made := 0
		for range rapid.IntRange(1, 8).Draw(t, "rounds") {
			var pods []*corev1.Pod
			from := rapid.IntRange(0, 200).Draw(t, "from")
			for i := range rapid.IntRange(0, 250).Draw(t, "pods") {
				pods = append(pods, testPod(from+i, (from+i)%7 != 0))
			}
			if rapid.Bool().Draw(t, "other port") {
				svc.GetSpec().GetPorts()[0].SetPort(int32(rapid.IntRange(1, 3).Draw(t, "port")))
			}
			groups := wanted(svc, pods, func(string) string { return "z" })
			p := planSlices(svc, existing(), groups)
			for _, s := range p.create {
				made++
				s = proto.Clone(s).(*discoveryv1.EndpointSlice)
				s.GetMetadata().SetUid(fmt.Sprint(made))
				s.GetMetadata().SetName(fmt.Sprintf("web-%d", made))
				stored[s.GetMetadata().GetName()] = s
			}
			for _, s := range p.update {
				stored[s.GetMetadata().GetName()] = s
			}
			for _, s := range p.remove {
				delete(stored, s.GetMetadata().GetName())
			}
			seen := map[string]bool{}
			empty := 0
			for _, s := range stored {
				if len(s.GetEndpoints()) > maxEndpoints {
					t.Fatalf("%d endpoints in a slice", len(s.GetEndpoints()))
				}
				if len(s.GetEndpoints()) == 0 {
					empty++
				}
				if s.GetMetadata().GetLabels()["team"] != "x" || s.GetMetadata().GetLabels()[labelService] != "web" {
					t.Fatalf("labels %v", s.GetMetadata().GetLabels())
				}
				for _, e := range s.GetEndpoints() {
					if seen[identity(e)] {
						t.Fatalf("endpoint %s twice", identity(e))
					}
					seen[identity(e)] = true
				}
			}
			if len(seen) != len(pods) {
				t.Fatalf("%d endpoints of %d pods", len(seen), len(pods))
			}
			if empty > 1 || (empty == 1 && len(stored) > 1) || len(stored) == 0 {
				t.Fatalf("%d slices, %d of them empty", len(stored), empty)
			}
			if again := planSlices(svc, existing(), groups); len(again.create)+len(again.update)+len(again.remove) > 0 {
				t.Fatalf("a second plan is not empty: %v", again)
			}
		}
	})
}

func TestPlanTouchesOneSliceForOnePod(t *testing.T) {
	svc := testService()
	var pods []*corev1.Pod
	for i := range 250 {
		pods = append(pods, testPod(i, true))
	}
	zone := func(string) string { return "" }
	var existing []*discoveryv1.EndpointSlice
	for i, s := range planSlices(svc, nil, wanted(svc, pods, zone)).create {
		s.GetMetadata().SetUid(fmt.Sprint(i))
		s.GetMetadata().SetName(fmt.Sprint(i))
		existing = append(existing, s)
	}
	pods[7] = testPod(7, false)
	if p := planSlices(svc, existing, wanted(svc, pods, zone)); len(p.update) != 1 || len(p.create)+len(p.remove) != 0 {
		t.Errorf("%d created, %d updated, %d removed for one changed pod", len(p.create), len(p.update), len(p.remove))
	}
}
