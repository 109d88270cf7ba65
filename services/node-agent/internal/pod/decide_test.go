package pod

import (
	"testing"
	"time"

	"dhow.dev/services/node-agent/internal/cri"
	"dhow.dev/services/node-agent/internal/podtest"
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

// TestWhoAsksForTheRestartOfAllIsRemovedLast goes through the restart of all containers step by step.
func TestWhoAsksForTheRestartOfAllIsRemovedLast(t *testing.T) {
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	p := podtest.Pod(t, `{metadata: {name: p}, spec: {restartPolicy: Never, initContainers: [{name: s, image: i, restartPolicy: Always}, {name: once, image: i}], containers: [
		{name: c, image: i, restartPolicy: Never, restartPolicyRules: [{action: RestartAllContainers, exitCodes: {operator: In, values: [42]}}]}, {name: d, image: i}]}}`)
	source := cri.Container{ID: "c1", Name: "c", Attempt: 1, State: cri.StateExited, ExitCode: 42, FinishedAt: at}
	before := cri.Container{ID: "c0", Name: "c", State: cri.StateExited, ExitCode: 3, FinishedAt: at.Add(-time.Minute)}
	done := cri.Container{ID: "once", Name: "once", State: cri.StateExited, FinishedAt: at.Add(-time.Minute)}
	run := func(name string) cri.Container { return cri.Container{ID: name, Name: name, State: cri.StateRunning} }
	ended := func(name string, after time.Duration) cri.Container {
		return cri.Container{ID: name, Name: name, State: cri.StateExited, ExitCode: 137, FinishedAt: at.Add(after)}
	}
	start := map[Key]bool{{StartContainer, "d"}: true}
	for _, c := range []struct {
		name    string
		runs    []cri.Container
		busy    map[Key]bool
		want    string
		cancels bool
	}{
		{"regular containers end first", []cri.Container{run("d"), source, before, done, run("s")}, nil, "stop d ", false},
		{"then sidecars", []cri.Container{ended("d", 1), source, before, done, run("s")}, nil, "stop s ", false},
		{"then all are removed but who asked", []cri.Container{ended("d", 1), source, before, done, ended("s", 1)}, nil, "remove-container c0 remove-container d remove-container s remove-container once ", false},
		{"a stop that is not over", []cri.Container{ended("d", 1), source}, map[Key]bool{{StopContainer, "d"}: true}, "", false},
		{"who asked is last", []cri.Container{source}, nil, "remove-container c1 ", false},
		{"a start is called off", []cri.Container{source, run("s")}, start, "stop s ", true},
		{"and awaited", []cri.Container{source, ended("s", 1)}, start, "", true},
		{"what had ended before is over", []cri.Container{ended("d", -1), source, run("s")}, nil, "stop s ", false},
	} {
		s := Situation{Now: at, Pod: p, Prepared: true, Busy: c.busy, Runtime: cri.PodState{Sandboxes: []cri.Sandbox{{ID: "sandbox", Ready: true}}, Containers: c.runs}}
		plan, got := Decide(s), ""
		for _, step := range plan.Steps {
			got += string(step.Action) + " " + step.Subject + " "
			if step.Grace != 0 || step.Action == RemoveContainer && step.Last == (step.Subject == "c0") {
				t.Errorf("%s: %+v", c.name, step)
			}
		}
		if got != c.want || plan.CancelStarts != c.cancels || plan.Finished {
			t.Errorf("%s: %q, %+v", c.name, got, plan)
		}
	}
	// The pod's work was done when the sidecar's end asked to do it again.
	late := podtest.Pod(t, `{metadata: {name: p}, spec: {restartPolicy: Never, initContainers: [{name: s, image: i, restartPolicy: Always,
		restartPolicyRules: [{action: RestartAllContainers, exitCodes: {operator: NotIn, values: [0]}}]}], containers: [{name: d, image: i}]}}`)
	for after, finished := range map[time.Duration]bool{-time.Second: true, time.Second: false} {
		s := Situation{Now: at, Pod: late, Prepared: true, Runtime: cri.PodState{Containers: []cri.Container{ended("d", after), ended("s", 0)}}}
		if plan := Decide(s); plan.Finished != finished {
			t.Errorf("ended %s after the sidecar: %+v", after, plan)
		}
	}
}
