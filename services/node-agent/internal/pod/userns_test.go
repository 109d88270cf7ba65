package pod_test

import (
	"testing"

	"dhow.dev/services/node-agent/internal/podtest"
)

// TestPodsHaveUsersOfTheirOwn gives each pod with hostUsers false a block of IDs that no other has, and gives it back with the pod.
func TestPodsHaveUsersOfTheirOwn(t *testing.T) {
	test(t, func(t *testing.T, w *world) {
		first := func(name string) uint32 {
			w.set(podtest.Pod(t, `{metadata: {name: `+name+`, uid: `+name+`}, spec: {hostUsers: false, volumes: [{name: v, emptyDir: {}}], containers: [{name: c, image: "app:1", volumeMounts: [{name: v, mountPath: /v}]}]}}`))
			w.is()
			sandbox, c := w.runtime.Sandbox(name).GetLinux().GetSecurityContext().GetNamespaceOptions().GetUsernsOptions(), w.runtime.Config(name, "c")
			own := c.GetLinux().GetSecurityContext().GetNamespaceOptions().GetUsernsOptions()
			if len(sandbox.GetUids()) != 1 || len(own.GetGids()) != 1 || sandbox.GetUids()[0].GetHostId() != own.GetGids()[0].GetHostId() || own.GetUids()[0].GetLength() != 65536 {
				t.Fatalf("%s: sandbox %v, container %v", name, sandbox, own)
			}
			if m := c.GetMounts()[0]; len(m.GetUidMappings()) != 1 || m.GetUidMappings()[0].GetHostId() != own.GetUids()[0].GetHostId() {
				t.Fatalf("%s: %v", name, m)
			}
			return own.GetUids()[0].GetHostId()
		}
		a, b := first("a"), first("b")
		if a == b || a == 0 || a%65536 != 0 {
			t.Fatalf("%d and %d", a, b)
		}
		w.manager.Remove("a")
		w.is()
		if c := first("c"); c != a {
			t.Errorf("%d is free, and %d was taken", a, c)
		}
		w.set(podtest.Pod(t, simple))
		w.is()
		if n := w.runtime.Config(uid, "c").GetLinux().GetSecurityContext().GetNamespaceOptions().GetUsernsOptions(); n != nil {
			t.Errorf("a pod that did not ask for it: %v", n)
		}
	})
}

func TestARuntimeClassNamesTheHandler(t *testing.T) {
	test(t, func(t *testing.T, w *world) {
		w.set(podtest.Pod(t, `{metadata: {name: p}, spec: {runtimeClassName: known, containers: [{name: c, image: "app:1"}]}}`))
		if s := w.is(); !isReady(s) || w.runtime.Handlers()[0] != "handler-of-known" {
			t.Errorf("%v, %+v", w.runtime.Handlers(), s)
		}
	})
	test(t, func(t *testing.T, w *world) {
		w.set(podtest.Pod(t, `{metadata: {name: p}, spec: {runtimeClassName: lost, containers: [{name: c, image: "app:1"}]}}`))
		if s := w.is(); s.Phase != "Pending" || !w.happened(`FailedCreatePodSandBox: Failed to create pod sandbox: failed to get RuntimeClass "lost"`) || len(w.runtime.Handlers()) != 0 {
			t.Errorf("%q, %+v", w.events, s)
		}
	})
}
