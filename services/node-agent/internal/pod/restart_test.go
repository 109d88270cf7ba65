package pod_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"
	k8scorev1 "k8s.io/api/core/v1"

	"dhow.dev/services/node-agent/internal/cri"
	"dhow.dev/services/node-agent/internal/podtest"
)

// TestContainersRestartByTheirOwnRules has a pod that is done only when each container is done by its own policy.
func TestContainersRestartByTheirOwnRules(t *testing.T) {
	test(t, func(t *testing.T, w *world) {
		w.set(podtest.Pod(t, `{metadata: {name: p}, spec: {restartPolicy: Always, containers: [
			{name: never, image: "app:1", restartPolicy: Never, restartPolicyRules: [{action: Restart, exitCodes: {operator: In, values: [42]}}]},
			{name: failing, image: "app:1", restartPolicy: OnFailure},
			{name: other, image: "app:1", restartPolicy: Never, restartPolicyRules: [{action: Restart, exitCodes: {operator: NotIn, values: [0, 1]}}]}]}}`))
		counts := func() (n [3]int32) {
			for i, c := range w.is().ContainerStatuses {
				n[i] = c.RestartCount
			}
			return n
		}
		w.runtime.Exit(uid, "never", 42, "Error")
		w.runtime.Exit(uid, "failing", 1, "Error")
		w.runtime.Exit(uid, "other", 7, "Error")
		if s := w.is(); counts() != [3]int32{1, 1, 1} || s.Phase != "Running" {
			t.Fatalf("what the rules restart: %v, %s", counts(), s.Phase)
		}
		w.runtime.Exit(uid, "never", 3, "Error")
		w.runtime.Exit(uid, "other", 1, "Error")
		if s := w.is(); counts() != [3]int32{1, 1, 1} || s.Phase != "Running" || s.ContainerStatuses[0].State.Terminated == nil {
			t.Fatalf("what they do not: %v, %+v", counts(), s)
		}
		w.runtime.Exit(uid, "failing", 0, "Completed")
		if s := w.is(); s.Phase != "Failed" || counts() != [3]int32{1, 1, 1} {
			t.Fatalf("the end: %v, %+v", counts(), s)
		}
	})
}

// TestAnInitContainerRestartsByItsOwnPolicy has one that fails for good in a pod that restarts, and one that is tried again in a pod that does not.
func TestAnInitContainerRestartsByItsOwnPolicy(t *testing.T) {
	test(t, func(t *testing.T, w *world) {
		w.set(podtest.Pod(t, `{metadata: {name: p}, spec: {initContainers: [{name: i, image: "app:1", restartPolicy: Never}], containers: [{name: c, image: "app:1"}]}}`))
		w.runtime.Exit(uid, "i", 1, "Error")
		if s := w.is(); s.Phase != "Failed" || s.InitContainerStatuses[0].RestartCount != 0 {
			t.Fatalf("%+v", s)
		}
	})
	test(t, func(t *testing.T, w *world) {
		w.set(podtest.Pod(t, `{metadata: {name: p}, spec: {restartPolicy: Never, initContainers: [{name: i, image: "app:1", restartPolicy: OnFailure}], containers: [{name: c, image: "app:1"}]}}`))
		w.runtime.Exit(uid, "i", 1, "Error")
		if s := w.is(); s.Phase != "Pending" || s.InitContainerStatuses[0].RestartCount != 1 {
			t.Fatalf("%+v", s)
		}
		w.runtime.Exit(uid, "i", 0, "Completed")
		if s := w.is(); s.Phase != "Running" {
			t.Fatalf("%+v", s)
		}
	})
}

// TestAFailedStartBacksOffLoudly has a container whose program is missing: users look for the BackOff event.
func TestAFailedStartBacksOffLoudly(t *testing.T) {
	test(t, func(t *testing.T, w *world) {
		for range 3 {
			w.runtime.Fail("StartContainer", errors.New("no such file"))
		}
		w.set(podtest.Pod(t, simple))
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if s := w.is(); s.ContainerStatuses[0].State.Waiting == nil || s.ContainerStatuses[0].State.Waiting.Reason != "CrashLoopBackOff" || !w.happened("c BackOff: Back-off restarting failed container") {
			t.Fatalf("%+v\n%q", s.ContainerStatuses[0], w.events)
		}
		time.Sleep(time.Minute)
		if s := w.is(); !isReady(s) {
			t.Fatalf("%+v", s)
		}
	})
}

// resettable has an init container, a sidecar and two containers, of which one can restart all.
const resettable = `{metadata: {name: p}, spec: {restartPolicy: Never, initContainers: [{name: i, image: "app:1"}, {name: s, image: "app:1", restartPolicy: Always,
	restartPolicyRules: [{action: Restart, exitCodes: {operator: In, values: [7]}}, {action: RestartAllContainers, exitCodes: {operator: In, values: [7, 8]}}]}],
	containers: [{name: c, image: "app:1", restartPolicy: Never, restartPolicyRules: [{action: RestartAllContainers, exitCodes: {operator: In, values: [42]}}]}, {name: d, image: "app:1"}]}}`

// TestOneContainersEndRestartsAll has the end of a container, and then that of a sidecar, restart the pod in its sandbox from its first init container on.
func TestOneContainersEndRestartsAll(t *testing.T) {
	test(t, func(t *testing.T, w *world) {
		w.set(podtest.Pod(t, resettable))
		w.runtime.Exit(uid, "i", 0, "Completed")
		started := w.is()
		if started.Phase != "Running" || conditionOf(started, "AllContainersRestarting") != "False" {
			t.Fatalf("before: %+v", started)
		}
		sandbox := w.state().CurrentSandbox().ID
		// Nothing writes logs on this runtime.
		log := w.state().Newest("d").LogPath
		if err := os.MkdirAll(filepath.Dir(log), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(log, []byte("of the first run"), 0o600); err != nil {
			t.Fatal(err)
		}
		for round, source := range []struct {
			name string
			code int32
		}{{"c", 42}, {"s", 8}} {
			release := w.runtime.Block("RemoveContainer")
			w.runtime.Exit(uid, source.name, source.code, "Error")
			s := w.is()
			if conditionOf(s, "AllContainersRestarting") != "True" || s.Phase != "Running" || w.state().Running() {
				t.Fatalf("all are ended, and the pod is not over: %+v", s)
			}
			if r := w.state().Newest(source.name); r == nil || r.ExitCode != source.code {
				t.Fatalf("who asks for it is removed last: %+v", w.state())
			}
			release()
			s = w.is()
			if conditionOf(s, "AllContainersRestarting") != "False" || conditionOf(s, "Initialized") != "True" || w.state().CurrentSandbox().ID != sandbox || len(w.state().Sandboxes) != 1 {
				t.Fatalf("started again: %+v", s)
			}
			if n := len(w.state().Containers); n != 1 || w.state().Newest("i").State != cri.StateRunning {
				t.Fatalf("the first init container runs before all others: %+v", w.state().Containers)
			}
			if _, err := os.Stat(log); os.IsNotExist(err) != (round > 0) {
				t.Errorf("of each container the last log stays: %v", err)
			}
			if last := s.ContainerStatuses[1].LastTerminationState.Terminated; last == nil || last.Reason != "RestartingAllContainers" || last.ExitCode != 137 {
				t.Errorf("what it ended with: %+v", s.ContainerStatuses[1])
			}
			w.runtime.Exit(uid, "i", 0, "Completed")
			s = w.is()
			for _, c := range append(s.InitContainerStatuses, s.ContainerStatuses...) {
				if c.RestartCount != int32(round)+1 || w.state().Newest(c.Name).Attempt != uint32(round)+1 {
					t.Errorf("%s: restarted %d times, run %d", c.Name, c.RestartCount, w.state().Newest(c.Name).Attempt)
				}
			}
			if s.Phase != "Running" || !isReady(s) {
				t.Fatalf("runs again: %+v", s)
			}
		}
		// The first rule that matches counts.
		w.runtime.Exit(uid, "s", 7, "Error")
		if s := w.is(); s.InitContainerStatuses[1].RestartCount != 3 || s.ContainerStatuses[0].RestartCount != 2 {
			t.Errorf("a rule that restarts one container alone: %+v", s)
		}
		// What the sidecar ends with when the pod's work is done restarts nothing.
		w.runtime.Exit(uid, "c", 0, "Completed")
		w.runtime.IgnoreStop("s")
		w.runtime.Exit(uid, "d", 0, "Completed")
		w.is()
		w.runtime.Exit(uid, "s", 8, "Error")
		if s := w.is(); s.Phase != "Succeeded" || conditionOf(s, "AllContainersRestarting") != "False" {
			t.Errorf("done: %+v", s)
		}
	})
}

// TestAllRestartAcrossAgents has an agent stop in the middle of it: the next one goes on.
func TestAllRestartAcrossAgents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		synctest.Wait()
		w.set(podtest.Pod(t, resettable))
		w.runtime.Exit(uid, "i", 0, "Completed")
		w.is()
		release := w.runtime.Block("RemoveContainer")
		w.runtime.Exit(uid, "c", 42, "Error")
		w.is()
		w.mu.Lock()
		p := proto.CloneOf(w.saved[uid])
		p.SetStatus(w.status[uid])
		w.mu.Unlock()
		w.stop()
		release()
		next := newWorld(t, w.runtime)
		defer next.stop()
		synctest.Wait()
		next.set(p)
		next.runtime.Exit(uid, "i", 0, "Completed")
		s := next.is()
		for _, c := range append(s.InitContainerStatuses, s.ContainerStatuses...) {
			if c.RestartCount != 1 || next.state().Newest(c.Name).Attempt != 1 {
				t.Errorf("%s: restarted %d times: %+v", c.Name, c.RestartCount, next.state().Newest(c.Name))
			}
		}
		if s.Phase != "Running" || !isReady(s) {
			t.Errorf("%+v", s)
		}
	})
}

func conditionOf(s k8scorev1.PodStatus, kind k8scorev1.PodConditionType) k8scorev1.ConditionStatus {
	for _, c := range s.Conditions {
		if c.Type == kind {
			return c.Status
		}
	}
	return ""
}
