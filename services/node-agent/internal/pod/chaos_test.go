package pod_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	"dhow.dev/services/node-agent/internal/podtest"
)

// TestWhateverHappensThePodComesBack lets random things go wrong, then leaves the pod alone: it has to be ready in the end, and after its deletion
// nothing may be left. Each seed is one history.
func TestWhateverHappensThePodComesBack(t *testing.T) {
	for seed := range uint64(60) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			test(t, func(t *testing.T, w *world) {
				random := rand.New(rand.NewPCG(seed, 1))
				p := podtest.Pod(t, `
metadata: {name: p}
spec:
  terminationGracePeriodSeconds: 5
  initContainers: [{name: init, image: "app:1"}, {name: side, image: "app:1", restartPolicy: Always}]
  containers: [{name: a, image: "app:1"}, {name: b, image: "app:1", readinessProbe: {exec: {command: [x]}}}]`)
				w.set(p)
				for range 25 {
					switch random.IntN(8) {
					case 0, 1:
						w.runtime.Exit(uid, []string{"init", "side", "a", "b"}[random.IntN(4)], int32(random.IntN(2)), "")
					case 2:
						w.runtime.KillSandbox(uid)
					case 3, 4:
						methods := []string{"RunSandbox", "CreateContainer", "StartContainer", "StopContainer", "StopSandbox", "RemoveContainer", "RemoveSandbox", "Events"}
						w.runtime.Fail(methods[random.IntN(len(methods))], errors.New("out of luck"))
					case 5:
						p = proto.CloneOf(p)
						p.GetSpec().GetContainers()[0].SetImage([]string{"app:1", "app:2"}[random.IntN(2)])
						w.set(p)
					case 6:
						w.runtime.Exit(uid, "init", 0, "")
					case 7:
						time.Sleep(time.Duration(random.IntN(20000)) * time.Millisecond)
					}
					if random.IntN(2) == 0 {
						synctest.Wait()
					}
				}
				// Init containers succeed from now on, and back-offs run out.
				for range 40 {
					synctest.Wait()
					w.runtime.Exit(uid, "init", 0, "")
					time.Sleep(30 * time.Second)
				}
				s := w.is()
				if !isReady(s) || s.ContainerStatuses[0].Image != p.GetSpec().GetContainers()[0].GetImage() {
					t.Fatalf("not ready:\n%+v\ncalls %q\nstate %+v", s.ContainerStatuses, w.runtime.Calls(), w.state())
				}
				if n := len(w.state().Containers); n > 8 {
					t.Errorf("%d runs are kept", n)
				}
				w.set(deleting(p, 5))
				time.Sleep(2 * time.Minute)
				if !w.isFinished() {
					t.Fatalf("its end is not confirmed: %+v", w.state())
				}
				w.manager.Remove(uid)
				time.Sleep(2 * time.Minute)
				synctest.Wait()
				if st := w.state(); len(st.Containers)+len(st.Sandboxes) != 0 {
					t.Errorf("left: %+v", st)
				}
			})
		})
	}
}
