package status_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	k8scorev1 "k8s.io/api/core/v1"

	"dhow.dev/services/node-agent/internal/cri"
	"dhow.dev/services/node-agent/internal/podtest"
	"dhow.dev/services/node-agent/internal/status"
)

var now = time.Unix(1_000_000, 0)

func ready(ips ...string) []cri.Sandbox {
	return []cri.Sandbox{{ID: "s", Ready: true, IPs: ips}}
}

func run(name string, attempt uint32) cri.Container {
	return cri.Container{ID: name + "-id", Name: name, Attempt: attempt, State: cri.StateRunning, StartedAt: now}
}

func exit(name string, attempt uint32, code int32) cri.Container {
	c := cri.Container{ID: name + "-old", Name: name, Attempt: attempt, State: cri.StateExited, ExitCode: code, StartedAt: now, FinishedAt: now, Reason: "Completed"}
	if code != 0 {
		c.Reason = "Error"
	}
	return c
}

func condition(s k8scorev1.PodStatus, kind string) k8scorev1.PodCondition {
	for _, c := range s.Conditions {
		if string(c.Type) == kind {
			return c
		}
	}
	return k8scorev1.PodCondition{}
}

func TestPhases(t *testing.T) {
	up := status.Container{Started: true, Ready: true}
	for _, c := range []struct {
		name, spec string
		runtime    cri.PodState
		memory     map[string]status.Container
		stopped    bool
		end        *status.End
		phase      k8scorev1.PodPhase
		ready      string
		reason     string
	}{
		{name: "new", spec: `{containers: [{name: a}]}`, phase: "Pending", ready: "False"},
		{name: "running, not ready", spec: `{containers: [{name: a}]}`, runtime: cri.PodState{Sandboxes: ready("10.0.0.1"), Containers: []cri.Container{run("a", 0)}},
			memory: map[string]status.Container{"a": {Started: true}}, phase: "Running", ready: "False"},
		{name: "ready", spec: `{containers: [{name: a}]}`, runtime: cri.PodState{Sandboxes: ready("10.0.0.1"), Containers: []cri.Container{run("a", 0)}},
			memory: map[string]status.Container{"a": up}, phase: "Running", ready: "True"},
		{name: "crash loop", spec: `{containers: [{name: a}]}`, runtime: cri.PodState{Sandboxes: ready("10.0.0.1"), Containers: []cri.Container{exit("a", 2, 1)}},
			memory: map[string]status.Container{"a": {Waiting: &status.Waiting{Reason: "CrashLoopBackOff"}}}, phase: "Running", ready: "False"},
		{name: "one of two waits", spec: `{containers: [{name: a}, {name: b}]}`, runtime: cri.PodState{Sandboxes: ready("10.0.0.1"), Containers: []cri.Container{run("a", 0)}},
			memory: map[string]status.Container{"a": up, "b": {Waiting: &status.Waiting{Reason: "ImagePullBackOff"}}}, phase: "Pending", ready: "False"},
		{name: "done", spec: `{restartPolicy: Never, containers: [{name: a}]}`, runtime: cri.PodState{Containers: []cri.Container{exit("a", 0, 0)}}, phase: "Succeeded", ready: "False"},
		{name: "failed", spec: `{restartPolicy: Never, containers: [{name: a}]}`, runtime: cri.PodState{Containers: []cri.Container{exit("a", 0, 3)}}, phase: "Failed", ready: "False"},
		{name: "on failure", spec: `{restartPolicy: OnFailure, containers: [{name: a}]}`, runtime: cri.PodState{Containers: []cri.Container{exit("a", 0, 3)}}, phase: "Running", ready: "False"},
		{name: "init runs", spec: `{initContainers: [{name: i}], containers: [{name: a}]}`, runtime: cri.PodState{Sandboxes: ready("10.0.0.1"), Containers: []cri.Container{run("i", 0)}}, phase: "Pending", ready: "False"},
		{name: "init failed", spec: `{restartPolicy: Never, initContainers: [{name: i}], containers: [{name: a}]}`,
			runtime: cri.PodState{Containers: []cri.Container{exit("i", 0, 1)}}, phase: "Failed", ready: "False"},
		{name: "sidecar outlives", spec: `{restartPolicy: Never, initContainers: [{name: i, restartPolicy: Always}], containers: [{name: a}]}`,
			runtime: cri.PodState{Sandboxes: ready("10.0.0.1"), Containers: []cri.Container{run("i", 0), exit("a", 0, 0)}}, memory: map[string]status.Container{"i": up}, phase: "Running", ready: "False"},
		{name: "deleted cleanly", spec: `{containers: [{name: a}]}`, runtime: cri.PodState{Containers: []cri.Container{exit("a", 0, 0)}}, stopped: true, phase: "Succeeded", ready: "False"},
		{name: "deleted by force", spec: `{containers: [{name: a}]}`, runtime: cri.PodState{Containers: []cri.Container{exit("a", 0, 137)}}, stopped: true, phase: "Failed", ready: "False"},
		{name: "rejected", spec: `{containers: [{name: a}]}`, end: &status.End{Reason: "OutOfcpu", Message: "m"}, stopped: true, phase: "Failed", ready: "False", reason: "OutOfcpu"},
	} {
		t.Run(c.name, func(t *testing.T) {
			pod := podtest.Pod(t, "{metadata: {name: p}, spec: "+c.spec+"}")
			s := podtest.Status(t, status.Compute(status.Input{Now: now, Pod: pod, Runtime: c.runtime, RuntimeName: "containerd", Containers: c.memory,
				HostIPs: []string{"192.0.2.1"}, Stopped: c.stopped, End: c.end}))
			if s.Phase != c.phase || s.Reason != c.reason {
				t.Errorf("phase %s %s, want %s %s", s.Phase, s.Reason, c.phase, c.reason)
			}
			if got := condition(s, "Ready"); string(got.Status) != c.ready {
				t.Errorf("ready %+v, want %s", got, c.ready)
			}
			if s.StartTime == nil || s.HostIP != "192.0.2.1" {
				t.Errorf("start %v host %v", s.StartTime, s.HostIP)
			}
			for _, kind := range []string{"PodReadyToStartContainers", "Initialized", "ContainersReady", "Ready", "PodScheduled"} {
				if c := condition(s, kind); c.LastTransitionTime.IsZero() {
					t.Errorf("condition %s has no transition time", kind)
				}
			}
		})
	}
}

func TestContainerStates(t *testing.T) {
	pod := podtest.Pod(t, `{metadata: {name: p}, spec: {initContainers: [{name: i}], containers: [{name: a, image: app:1}, {name: b}]}}`)
	s := podtest.Status(t, status.Compute(status.Input{Now: now, Pod: pod, RuntimeName: "containerd",
		Runtime:    cri.PodState{Sandboxes: ready("10.0.0.1"), Containers: []cri.Container{run("a", 1), exit("a", 0, 9), exit("i", 0, 0)}},
		Containers: map[string]status.Container{"a": {Started: true, Ready: true}}, Messages: map[string]string{"a-old": "because"}}))
	a := s.ContainerStatuses[0]
	if a.State.Running == nil || a.RestartCount != 1 || !a.Ready || a.Started == nil || !*a.Started || a.ContainerID != "containerd://a-id" || a.Image != "app:1" {
		t.Errorf("a: %+v", a)
	}
	if l := a.LastTerminationState.Terminated; l == nil || l.ExitCode != 9 || l.Reason != "Error" || l.Message != "because" {
		t.Errorf("a's last state: %+v", l)
	}
	if w := s.ContainerStatuses[1].State.Waiting; w == nil || w.Reason != "PodInitializing" {
		t.Errorf("b: %+v", w)
	}
	i := s.InitContainerStatuses[0]
	if i.State.Terminated == nil || i.State.Terminated.Reason != "Completed" || !i.Ready {
		t.Errorf("i: %+v", i)
	}
	if c := condition(s, "Initialized"); c.Status != "True" {
		t.Errorf("initialized: %+v", c)
	}
	if c := condition(s, "ContainersReady"); c.Reason != "ContainersNotReady" || c.Message != "containers with unready status: [b]" {
		t.Errorf("containers ready: %+v", c)
	}
}

func TestTransitionTimesAndForeignConditionsStay(t *testing.T) {
	pod := podtest.Pod(t, `
metadata: {name: p}
spec: {containers: [{name: a}], readinessGates: [{conditionType: example.com/lb}]}
status: {conditions: [{type: PodScheduled, status: "True", reason: Bound}, {type: example.com/lb, status: "False"}]}
`)
	in := status.Input{Now: now, Pod: pod, RuntimeName: "containerd", Runtime: cri.PodState{Sandboxes: ready("10.0.0.1"), Containers: []cri.Container{run("a", 0)}},
		Containers: map[string]status.Container{"a": {Started: true, Ready: true}}}
	first := status.Compute(in)
	s := podtest.Status(t, first)
	if c := condition(s, "Ready"); c.Status != "False" || c.Reason != "ReadinessGatesNotReady" {
		t.Errorf("ready: %+v", c)
	}
	if c := condition(s, "PodScheduled"); c.Reason != "Bound" {
		t.Errorf("the scheduler's condition was replaced: %+v", c)
	}
	in.Previous, in.Now = first, now.Add(time.Hour)
	again := podtest.Status(t, status.Compute(in))
	if a, b := condition(s, "ContainersReady"), condition(again, "ContainersReady"); !a.LastTransitionTime.Equal(&b.LastTransitionTime) {
		t.Errorf("nothing changed, but the transition moved from %v to %v", a.LastTransitionTime, b.LastTransitionTime)
	}
	if !s.StartTime.Equal(again.StartTime) {
		t.Error("start time moved")
	}
}

func TestLostContainerIsUnknown(t *testing.T) {
	pod := podtest.Pod(t, `{metadata: {name: p}, spec: {containers: [{name: a}]}, status: {phase: Running, containerStatuses: [{name: a, restartCount: 4, containerID: "containerd://x", state: {running: {}}}]}}`)
	s := podtest.Status(t, status.Compute(status.Input{Now: now, Pod: pod, Stopped: true}))
	if x := s.ContainerStatuses[0].State.Terminated; x == nil || x.Reason != "ContainerStatusUnknown" || x.ExitCode != 137 {
		t.Errorf("state %+v", s.ContainerStatuses[0].State)
	}
	if s.ContainerStatuses[0].RestartCount != 4 {
		t.Errorf("restart count %d", s.ContainerStatuses[0].RestartCount)
	}
}

// TestMessagesShareTheirRoom has a pod of four containers, whose messages are cut to a quarter of what there is for all.
func TestMessagesShareTheirRoom(t *testing.T) {
	for n, want := range map[int]int{1: 4096, 3: 4096, 4: 3072} {
		spec := "{restartPolicy: Never, containers: [{name: a}"
		for i := 1; i < n; i++ {
			spec += fmt.Sprintf(", {name: b%d}", i)
		}
		s := podtest.Status(t, status.Compute(status.Input{Now: now, Pod: podtest.Pod(t, "{metadata: {name: p}, spec: "+spec+"]}}"),
			Runtime: cri.PodState{Containers: []cri.Container{exit("a", 0, 1)}}, Messages: map[string]string{"a-old": strings.Repeat("x", 4096)}}))
		if got := len(s.ContainerStatuses[0].State.Terminated.Message); got != want {
			t.Errorf("of %d containers: %d bytes, want %d", n, got, want)
		}
	}
}

// TestAnEvictedPodFailsWhenItsContainersHaveEnded keeps controllers from replacing what still runs.
func TestAnEvictedPodFailsWhenItsContainersHaveEnded(t *testing.T) {
	in := status.Input{Now: now, Pod: podtest.Pod(t, `{metadata: {name: p}, spec: {containers: [{name: a}]}}`), End: &status.End{Reason: "Evicted", Message: "no room", Disrupted: true},
		Runtime: cri.PodState{Sandboxes: ready("10.0.0.1"), Containers: []cri.Container{run("a", 0)}}}
	s := podtest.Status(t, status.Compute(in))
	if s.Phase != "Running" || condition(s, "DisruptionTarget").Reason != "TerminationByKubelet" {
		t.Errorf("while it runs: %+v", s)
	}
	in.Runtime.Containers, in.Stopped = []cri.Container{exit("a", 0, 137)}, true
	if s = podtest.Status(t, status.Compute(in)); s.Phase != "Failed" || s.Reason != "Evicted" || s.Message != "no room" || condition(s, "DisruptionTarget").Status != "True" {
		t.Errorf("afterwards: %+v", s)
	}
}
