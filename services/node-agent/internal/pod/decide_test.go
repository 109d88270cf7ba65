package pod

import (
	"testing"
	"time"

	"dhow.dev/services/node-agent/internal/cri"
)

// A container that cannot be started has the epoch as its start: it must not count as one that ran for decades and is forgiven its restarts.
func TestBackOffOfContainersThatNeverRan(t *testing.T) {
	ended := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		name    string
		started time.Time
		delay   time.Duration
		want    time.Duration
	}{
		{"never ran", time.Unix(0, 0), 20 * time.Second, 40 * time.Second},
		{"ran shortly", ended.Add(-time.Second), 20 * time.Second, 40 * time.Second},
		{"ran long", ended.Add(-forgivenAfter), 20 * time.Second, minRestartDelay},
		{"never ran, first time", time.Unix(0, 0), 0, minRestartDelay},
	} {
		if got := nextDelay(c.delay, ran(&cri.Container{StartedAt: c.started, FinishedAt: ended})); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

// TestASandboxIsStoppedToTheEnd has one that the runtime calls stopped while its network is still being taken down.
func TestASandboxIsStoppedToTheEnd(t *testing.T) {
	s := Situation{Gone: true, Runtime: cri.PodState{UID: "u", Sandboxes: []cri.Sandbox{{ID: "s"}}}, Busy: map[Key]bool{{Action: StopSandbox, Subject: "s"}: true}, TornDown: true}
	if p := Decide(s); len(p.Steps) != 0 || p.Released || p.Done {
		t.Errorf("while it is being stopped: %+v", p)
	}
	s.Busy = nil
	if p := Decide(s); len(p.Steps) != 1 || p.Steps[0].Action != Remove {
		t.Errorf("afterwards: %+v", p)
	}
}
