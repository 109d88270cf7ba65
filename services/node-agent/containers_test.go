package nodeagent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"testing"
	"time"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/services/node-agent/internal/cri"
	"dhow.dev/services/node-agent/internal/pod"
	"dhow.dev/services/node-agent/internal/podtest"
)

// TestUsageIsReadFromCgroups asks the runtime only for containers that have no cgroup where the agent looks.
func TestUsageIsReadFromCgroups(t *testing.T) {
	p := podtest.Pod(t, `{metadata: {name: p, uid: u}, spec: {containers: [{name: c}]}}`)
	asked := 0
	m := containerMeter{
		running: func() []pod.Running { return []pod.Running{{Pod: p, Name: "c", ID: "here"}} },
		cgroup: func(_ *corev1.Pod, id string) (time.Duration, uint64, error) {
			switch id {
			case "here":
				return time.Second, 42, nil
			case "broken":
				return 0, 0, errors.New("broken")
			}
			return 0, 0, fmt.Errorf("cgroup of %s: %w", id, fs.ErrNotExist)
		},
		runtime: func(context.Context) ([]cri.Usage, error) {
			asked++
			return []cri.Usage{{ID: "here", Name: "twice"}, {ID: "away", Name: "d", CPU: time.Minute}}, nil
		},
	}
	used, err := m.usage(t.Context())
	if err != nil || asked != 0 || len(used) != 1 || used[0].PodUID != "u" || used[0].PodName != "p" || used[0].Name != "c" || used[0].CPU != time.Second || used[0].Memory != 42 || used[0].At.IsZero() {
		t.Errorf("%+v, %v, the runtime was asked %d times", used, err, asked)
	}
	m.running = func() []pod.Running {
		return []pod.Running{{Pod: p, Name: "c", ID: "here"}, {Pod: p, Name: "d", ID: "away"}}
	}
	if used, err = m.usage(t.Context()); err != nil || asked != 1 || len(used) != 2 || used[0].Name != "c" || used[1].Name != "d" || used[1].CPU != time.Minute {
		t.Errorf("%+v, %v, the runtime was asked %d times", used, err, asked)
	}
	m.running = func() []pod.Running { return []pod.Running{{Pod: p, Name: "c", ID: "broken"}} }
	if _, err = m.usage(t.Context()); err == nil {
		t.Error("a cgroup that cannot be read is not told of")
	}
}
