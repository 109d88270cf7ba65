package nodelifecycle

import (
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/services/controller-manager/internal/apitime"
)

var now = time.Unix(1_700_000_000, 0)

func taint(key string, age time.Duration) *corev1.Taint {
	return corev1.Taint_builder{Key: proto.String(key), Effect: proto.String(noExecute), TimeAdded: apitime.Of(now.Add(-age))}.Build()
}

func tolerate(key, operator string, seconds ...int64) *corev1.Toleration {
	t := corev1.Toleration_builder{Operator: proto.String(operator)}.Build()
	if key != "" {
		t.SetKey(key)
	}
	if len(seconds) > 0 {
		t.SetTolerationSeconds(seconds[0])
	}
	return t
}

func TestJudge(t *testing.T) {
	lost := []*corev1.Taint{taint(taintUnreachable, 10*time.Second)}
	for _, test := range []struct {
		what        string
		taints      []*corev1.Taint
		tolerations []*corev1.Toleration
		evict       bool
		in          time.Duration
	}{
		{"no taint", nil, nil, false, 0},
		{"nothing tolerated", lost, nil, true, 0},
		{"tolerated for ever", lost, []*corev1.Toleration{tolerate(taintUnreachable, "Exists")}, false, 0},
		{"everything tolerated", lost, []*corev1.Toleration{tolerate("", "Exists")}, false, 0},
		{"tolerated for a time, counted from the taint", lost, []*corev1.Toleration{tolerate(taintUnreachable, "Exists", 300)}, true, 290 * time.Second},
		{"time over", lost, []*corev1.Toleration{tolerate(taintUnreachable, "Exists", 5)}, true, -5 * time.Second},
		{"the shortest of two", lost, []*corev1.Toleration{tolerate(taintUnreachable, "Exists", 300), tolerate("", "Exists", 60)}, true, 50 * time.Second},
		{"one of two taints not tolerated", append(lost, taint("own", 0)), []*corev1.Toleration{tolerate(taintUnreachable, "Exists", 300)}, true, 0},
		{"another key", lost, []*corev1.Toleration{tolerate(taintNotReady, "Exists")}, true, 0},
		{"another value", []*corev1.Taint{corev1.Taint_builder{Key: proto.String("own"), Value: proto.String("a"), Effect: proto.String(noExecute)}.Build()},
			[]*corev1.Toleration{tolerate("own", "Equal")}, true, 0},
	} {
		v := judge(test.taints, test.tolerations, now)
		if v.evict != test.evict || (v.evict && v.at.Sub(now) != test.in) {
			t.Errorf("%s: evict %v in %s, want %v in %s", test.what, v.evict, v.at.Sub(now), test.evict, test.in)
		}
	}
}

func TestSurvey(t *testing.T) {
	nodes := func(zone string, ready, lost int) (all []*corev1.Node) {
		for i := range ready + lost {
			status := statusTrue
			if i >= ready {
				status = statusUnknown
			}
			all = append(all, corev1.Node_builder{
				Metadata: metav1.ObjectMeta_builder{Labels: map[string]string{"topology.kubernetes.io/zone": zone}}.Build(),
				Status: corev1.NodeStatus_builder{Conditions: []*corev1.NodeCondition{
					corev1.NodeCondition_builder{Type: proto.String("Ready"), Status: proto.String(status)}.Build(),
				}}.Build(),
			}.Build())
		}
		return all
	}
	for _, test := range []struct {
		ready, lost int
		want        disruption
	}{{3, 0, normal}, {2, 1, normal}, {1, 2, normal}, {2, 3, partial}, {3, 3, normal}, {0, 1, full}} {
		states, sizes, _ := survey(nodes("a", test.ready, test.lost))
		if states["/a"] != test.want || sizes["/a"] != test.ready+test.lost {
			t.Errorf("%d ready, %d lost: %v of %v", test.ready, test.lost, states, sizes)
		}
	}
	if _, _, everything := survey(append(nodes("a", 0, 2), nodes("b", 1, 0)...)); everything {
		t.Error("everything is lost although zone b is not")
	}
	if _, _, everything := survey(append(nodes("a", 0, 2), nodes("b", 0, 1)...)); !everything {
		t.Error("everything is lost and is not said to be")
	}
}

func TestLimiter(t *testing.T) {
	l := &limiter{rate: 0.1}
	if ok, _ := l.take("a", normal, 3, now); !ok {
		t.Error("the first node has to wait")
	}
	if ok, wait := l.take("a", normal, 3, now); ok || wait != 10*time.Second {
		t.Errorf("the second node: %v, %s", ok, wait)
	}
	if ok, _ := l.take("b", normal, 3, now); !ok {
		t.Error("zones wait for each other")
	}
	if ok, _ := l.take("a", normal, 3, now.Add(10*time.Second)); !ok {
		t.Error("the second node never goes")
	}
	if ok, wait := l.take("c", partial, 10, now); ok || wait != 0 {
		t.Error("a small zone that is mostly down loses pods")
	}
	if ok, _ := l.take("c", partial, 100, now); !ok {
		t.Error("a large zone that is mostly down stands still")
	}
	if ok, wait := l.take("c", partial, 100, now); ok || wait != 100*time.Second {
		t.Errorf("a large zone that is mostly down: %v, %s", ok, wait)
	}
}
