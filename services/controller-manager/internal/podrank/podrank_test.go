package podrank

import (
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/services/controller-manager/internal/apitime"
)

var now = time.Unix(1_700_000_000, 0)

type look struct {
	node, phase, cost string
	unready           bool
	readyFor, age     time.Duration
	restarts          int32
}

func pod(name string, l look) *corev1.Pod {
	if l.phase == "" {
		l.phase = "Running"
	}
	ready := "True"
	if l.unready {
		ready = "False"
	}
	p := corev1.Pod_builder{
		Metadata: metav1.ObjectMeta_builder{Name: proto.String(name), Uid: proto.String(name), CreationTimestamp: apitime.Of(now.Add(-l.age - time.Hour))}.Build(),
		Spec:     corev1.PodSpec_builder{NodeName: proto.String(l.node)}.Build(),
		Status: corev1.PodStatus_builder{
			Phase: proto.String(l.phase),
			Conditions: []*corev1.PodCondition{corev1.PodCondition_builder{
				Type: proto.String("Ready"), Status: proto.String(ready), LastTransitionTime: apitime.Of(now.Add(-l.readyFor - time.Hour)),
			}.Build()},
			ContainerStatuses: []*corev1.ContainerStatus{corev1.ContainerStatus_builder{RestartCount: proto.Int32(l.restarts)}.Build()},
		}.Build(),
	}.Build()
	if l.cost != "" {
		p.GetMetadata().SetAnnotations(map[string]string{costAnnotation: l.cost})
	}
	return p
}

func TestVictims(t *testing.T) {
	const day = 24 * time.Hour
	for _, test := range []struct {
		what        string
		first, last look
	}{
		{"not bound before bound", look{}, look{node: "n"}},
		{"pending before running", look{node: "n", phase: "Pending"}, look{node: "n"}},
		{"pending before unknown", look{node: "n", phase: "Pending"}, look{node: "n", phase: "Unknown"}},
		{"not ready before ready", look{node: "n", unready: true}, look{node: "n", cost: "-5"}},
		{"cheap before dear", look{node: "n", cost: "-5"}, look{node: "n"}},
		{"what is no cost counts as none", look{node: "n", cost: "-1"}, look{node: "n", cost: "+7"}},
		{"ready for a short time first", look{node: "n"}, look{node: "n", readyFor: 30 * day}},
		{"more restarts first", look{node: "n", restarts: 3}, look{node: "n"}},
		{"younger first", look{node: "n"}, look{node: "n", age: 30 * day}},
		{"times of one order of magnitude are equal", look{node: "n", restarts: 1, readyFor: time.Minute}, look{node: "n"}},
	} {
		// Names against the expected order, so that the last resort does not decide.
		pods := []*corev1.Pod{pod("a", test.last), pod("b", test.first)}
		if got := Victims(pods, pods, 1, now); got[0].GetMetadata().GetName() != "b" {
			t.Errorf("%s: not so", test.what)
		}
	}
}

func TestVictimsAreTakenWhereTheyAreDoubled(t *testing.T) {
	pods := []*corev1.Pod{pod("a", look{node: "n1"}), pod("b", look{node: "n2"})}
	related := append(slices.Clone(pods), pod("c", look{node: "n2"}))
	if got := Victims(pods, related, 1, now); got[0].GetMetadata().GetName() != "b" {
		t.Errorf("took %s", got[0].GetMetadata().GetName())
	}
}
