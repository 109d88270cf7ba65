package pod_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

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
