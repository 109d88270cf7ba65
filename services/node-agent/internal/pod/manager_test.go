package pod_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	metricnoop "go.opentelemetry.io/otel/metric/noop"
	tracenoop "go.opentelemetry.io/otel/trace/noop"
	"google.golang.org/protobuf/proto"
	k8scorev1 "k8s.io/api/core/v1"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/services/node-agent/internal/cgroup"
	"dhow.dev/services/node-agent/internal/cri"
	"dhow.dev/services/node-agent/internal/cri/fake"
	"dhow.dev/services/node-agent/internal/env"
	"dhow.dev/services/node-agent/internal/image"
	"dhow.dev/services/node-agent/internal/pod"
	"dhow.dev/services/node-agent/internal/podtest"
	"dhow.dev/services/node-agent/internal/volume"
)

const uid = "uid-of-pod"

// world is a manager on a fake runtime, with fakes around it that remember what they are told.
type world struct {
	t       *testing.T
	runtime *fake.Runtime
	manager *pod.Manager
	cgroups *cgroups
	stop    func()

	mu         sync.Mutex
	status     map[string]*corev1.PodStatus
	history    []string
	finished   map[string]bool
	events     []string
	saved      map[string]*corev1.Pod
	configMaps map[string]*corev1.ConfigMap
}

func (w *world) Publish(_ context.Context, p *corev1.Pod, s *corev1.PodStatus) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.status[p.GetMetadata().GetUid()] = s
}

func (w *world) Finish(ctx context.Context, p *corev1.Pod, s *corev1.PodStatus) {
	w.Publish(ctx, p, s)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.finished[p.GetMetadata().GetUid()] = true
}

func (w *world) Forget(string) {}

func (w *world) Event(_ *corev1.Pod, container string, warning bool, reason, message string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events = append(w.events, strings.TrimSpace(container+" "+reason+": "+message))
}

func (w *world) Save(p *corev1.Pod) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.saved[p.GetMetadata().GetUid()] = p
}

func (w *world) Delete(uid string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.saved, uid)
}

func (w *world) Get(_ context.Context, p *corev1.Pod, audience string, seconds int64) (string, error) {
	return fmt.Sprintf("%s %s %d", p.GetSpec().GetServiceAccountName(), audience, seconds), nil
}

func (w *world) Hold(*corev1.Pod) {}
func (w *world) Release(string)   {}
func (w *world) ConfigMap(_ context.Context, _, name string) (*corev1.ConfigMap, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if c := w.configMaps[name]; c != nil {
		return c, nil
	}
	return nil, env.ErrMissing
}
func (w *world) Secret(context.Context, string, string) (*corev1.Secret, error) {
	return nil, env.ErrMissing
}

// cgroups remembers what pods' cgroups were made with.
type cgroups struct {
	mu   sync.Mutex
	made map[string]cgroup.Amount
	used uint64
}

func (c *cgroups) Ensure(p *corev1.Pod) (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.made[p.GetMetadata().GetUid()] = cgroup.OfPod(p)
	return "", nil
}

func (c *cgroups) Memory(*corev1.Pod) (uint64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.used, nil
}

func (c *cgroups) Remove(uid string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.made, uid)
	return nil
}

func (c *cgroups) Pods() ([]string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Sorted(maps.Keys(c.made)), nil
}

func (c *cgroups) uses(bytes uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.used = bytes
}

func (c *cgroups) of(uid string) cgroup.Amount {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.made[uid]
}

// newWorld starts a manager on a runtime; a nil runtime is a new one with the images app:1 and app:2.
func newWorld(t *testing.T, runtime *fake.Runtime) *world {
	t.Helper()
	if runtime == nil {
		runtime = fake.New("app:1", "app:2")
	}
	w := &world{t: t, cgroups: &cgroups{made: map[string]cgroup.Amount{}}, runtime: runtime, status: map[string]*corev1.PodStatus{}, finished: map[string]bool{}, saved: map[string]*corev1.Pod{}, configMaps: map[string]*corev1.ConfigMap{}}
	quantity := func(s string) *metav1.Quantity { return metav1.Quantity_builder{String: proto.String(s)}.Build() }
	m, err := pod.New(pod.Config{
		NodeName: "n1", HostIPs: []string{"192.0.2.1"}, MemoryBytes: 8 << 30, Runtime: runtime, RuntimeName: "fake", Cgroups: w.cgroups, Images: image.New(runtime, 1),
		Allocatable: map[string]*metav1.Quantity{"cpu": quantity("2"), "memory": quantity("4Gi"), "pods": quantity("10")},
		Extended: func() map[string]*metav1.Quantity {
			return map[string]*metav1.Quantity{"example.com/thing": quantity("1")}
		},
		Volumes: volume.New(t.TempDir()), References: w, Tokens: w, Services: func() []*corev1.Service { return nil }, Reporter: w, Events: w, State: w,
		Handlers: func(class string) (string, bool) { return "handler-of-" + class, class == "known" },
		LogDir:   t.TempDir(), ParallelStarts: 2, Logger: slog.New(slog.DiscardHandler), Tracer: tracenoop.NewTracerProvider().Tracer(""), Meter: metricnoop.NewMeterProvider().Meter(""),
	})
	if err != nil {
		t.Fatal(err)
	}
	w.manager = m
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := m.Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	w.stop = func() {
		cancel()
		<-done
	}
	return w
}

func (w *world) set(p *corev1.Pod) {
	w.manager.Set(context.Background(), p, false)
	synctest.Wait()
}

func (w *world) is() k8scorev1.PodStatus {
	w.t.Helper()
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.status[uid] == nil {
		return k8scorev1.PodStatus{}
	}
	return podtest.Status(w.t, w.status[uid])
}

func (w *world) isFinished() bool {
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.finished[uid]
}

func (w *world) happened(text string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.ContainsFunc(w.events, func(e string) bool { return strings.Contains(e, text) })
}

func (w *world) state() *cri.PodState {
	s, err := w.runtime.Pod(context.Background(), uid)
	if err != nil {
		w.t.Fatal(err)
	}
	return &s
}

// deleting returns the pod as it is after a deletion with a grace.
func deleting(p *corev1.Pod, grace int64) *corev1.Pod {
	d := proto.CloneOf(p)
	d.GetMetadata().SetDeletionGracePeriodSeconds(grace)
	d.GetMetadata().SetDeletionTimestamp(metav1.Time_builder{Seconds: proto.Int64(time.Now().Unix() + grace)}.Build())
	return d
}

func isReady(s k8scorev1.PodStatus) bool {
	for _, c := range s.Conditions {
		if c.Type == k8scorev1.PodReady {
			return c.Status == k8scorev1.ConditionTrue
		}
	}
	return false
}

func test(t *testing.T, f func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.stop()
		synctest.Wait()
		f(t, w)
	})
}

const simple = `{metadata: {name: p}, spec: {containers: [{name: c, image: "app:1"}]}}`

func TestFromCreationToDeletion(t *testing.T) {
	test(t, func(t *testing.T, w *world) {
		p := podtest.Pod(t, simple)
		w.set(p)
		s := w.is()
		if s.Phase != "Running" || !isReady(s) || s.PodIP == "" || s.HostIP != "192.0.2.1" {
			t.Fatalf("status %+v", s)
		}
		if !w.happened("c Pulled:") || !w.happened("c Created:") || !w.happened("c Started:") {
			t.Errorf("events %q", w.events)
		}
		if w.saved[uid] == nil {
			t.Error("not saved")
		}
		w.set(deleting(p, 30))
		if !w.isFinished() || w.is().ContainerStatuses[0].State.Terminated == nil {
			t.Fatalf("not finished: %+v", w.is())
		}
		if !w.happened("c Killing: Stopping container c") {
			t.Errorf("events %q", w.events)
		}
		if len(w.state().Containers) == 0 {
			t.Error("the container's log is gone before its pod is")
		}
		w.manager.Remove(uid)
		synctest.Wait()
		if st := w.state(); len(st.Containers)+len(st.Sandboxes) != 0 || w.saved[uid] != nil {
			t.Errorf("left: %+v, saved %v", st, w.saved)
		}
	})
}

func TestCrashLoop(t *testing.T) {
	test(t, func(t *testing.T, w *world) {
		w.set(podtest.Pod(t, simple))
		for i, want := range []time.Duration{0, 10, 20, 40, 80, 160, 300, 300} {
			if !w.runtime.Exit(uid, "c", 3, "") {
				t.Fatalf("run %d does not run: %+v", i, w.is())
			}
			s := w.is().ContainerStatuses[0]
			if want > 0 {
				if s.State.Waiting == nil || s.State.Waiting.Reason != "CrashLoopBackOff" || s.LastTerminationState.Terminated.ExitCode != 3 {
					t.Fatalf("run %d: %+v", i, s)
				}
				if !strings.HasPrefix(s.State.Waiting.Message, fmt.Sprintf("back-off %s restarting failed container=c pod=p_default(", want*time.Second)) {
					t.Errorf("message %q", s.State.Waiting.Message)
				}
				if runs := w.state().Containers; len(runs) != 1 || runs[0].Attempt != uint32(i) {
					t.Errorf("while the container waits to be started again there are %+v", runs)
				}
				time.Sleep(want*time.Second - time.Millisecond)
				if s := w.is().ContainerStatuses[0]; s.State.Waiting == nil {
					t.Fatalf("run %d restarted before its time", i)
				}
				time.Sleep(time.Millisecond)
			}
			if s := w.is().ContainerStatuses[0]; s.State.Running == nil || s.RestartCount != int32(i)+1 {
				t.Fatalf("run %d: %+v", i, s)
			}
		}
		// A long run is forgiven.
		time.Sleep(11 * time.Minute)
		w.runtime.Exit(uid, "c", 3, "")
		w.is()
		time.Sleep(300 * time.Second)
		w.runtime.Exit(uid, "c", 3, "")
		if m := w.is().ContainerStatuses[0].State.Waiting; m == nil || !strings.Contains(m.Message, "back-off 10s") {
			t.Errorf("after a long run: %+v", m)
		}
		time.Sleep(10 * time.Second)
		if w.is(); len(w.state().Containers) != 2 {
			t.Errorf("beside the running container there are not one that ended: %+v", w.state().Containers)
		}
	})
}

func TestRestartPolicies(t *testing.T) {
	for _, c := range []struct {
		policy string
		code   int32
		phase  k8scorev1.PodPhase
		runs   int
	}{{"Never", 0, "Succeeded", 1}, {"Never", 1, "Failed", 1}, {"OnFailure", 0, "Succeeded", 1}, {"OnFailure", 1, "Running", 2}, {"Always", 0, "Running", 2}} {
		test(t, func(t *testing.T, w *world) {
			p := podtest.Pod(t, `{metadata: {name: p}, spec: {restartPolicy: `+c.policy+`, containers: [{name: c, image: "app:1"}]}}`)
			w.set(p)
			w.runtime.Exit(uid, "c", c.code, "")
			s := w.is()
			if s.Phase != c.phase || len(w.state().Containers) != c.runs {
				t.Errorf("%+v: phase %s with %d runs", c, s.Phase, len(w.state().Containers))
			}
			if c.phase != "Running" && w.state().Sandboxes[0].Ready {
				t.Errorf("%+v: the sandbox of a finished pod is still ready", c)
			}
		})
	}
}

func TestInitContainersAndSidecars(t *testing.T) {
	test(t, func(t *testing.T, w *world) {
		p := podtest.Pod(t, `
metadata: {name: p}
spec:
  initContainers: [{name: one, image: "app:1"}, {name: side, image: "app:1", restartPolicy: Always}, {name: two, image: "app:1"}]
  containers: [{name: c, image: "app:1"}]`)
		w.set(p)
		if s := w.is(); s.Phase != "Pending" || w.state().Newest("side") != nil {
			t.Fatalf("side did not wait for one: %+v", s)
		}
		w.runtime.Exit(uid, "one", 1, "")
		w.is()
		if r := w.state().Newest("one"); r.Attempt != 1 || r.State != cri.StateRunning {
			t.Fatalf("one is not tried again: %+v", r)
		}
		w.runtime.Exit(uid, "one", 0, "")
		w.is()
		if w.state().Newest("side") == nil || w.state().Newest("two") == nil || w.state().Newest("c") != nil {
			t.Fatalf("after one: %+v", w.state())
		}
		w.runtime.Exit(uid, "two", 0, "")
		if s := w.is(); !isReady(s) || s.InitContainerStatuses[1].State.Running == nil {
			t.Fatalf("after all: %+v", s)
		}
		w.runtime.Exit(uid, "side", 1, "")
		w.is()
		if r := w.state().Newest("side"); r.Attempt != 1 || r.State != cri.StateRunning {
			t.Errorf("the sidecar is not restarted: %+v", r)
		}
		w.set(deleting(p, 30))
		calls := w.runtime.Calls()
		main, side := slices.Index(calls, "StopContainer c"), slices.Index(calls, "StopContainer side")
		if main < 0 || side < main {
			t.Errorf("stopped c at %d, side at %d", main, side)
		}
	})
}

func TestGraceEndsWithKill(t *testing.T) {
	test(t, func(t *testing.T, w *world) {
		w.runtime.IgnoreStop("c")
		p := podtest.Pod(t, `{metadata: {name: p}, spec: {containers: [{name: c, image: "app:1", lifecycle: {preStop: {sleep: {seconds: 5}}}}]}}`)
		w.set(p)
		began := time.Now()
		w.set(deleting(p, 20))
		time.Sleep(19 * time.Second)
		if w.isFinished() {
			t.Fatal("did not get its grace")
		}
		time.Sleep(time.Second)
		s := w.is()
		if !w.isFinished() || s.ContainerStatuses[0].State.Terminated.ExitCode != 137 || s.Phase != "Failed" {
			t.Errorf("after %v: %+v", time.Since(began), s)
		}
	})
}

func TestShorterGraceCounts(t *testing.T) {
	test(t, func(t *testing.T, w *world) {
		w.runtime.IgnoreStop("c")
		p := podtest.Pod(t, simple)
		w.set(p)
		w.set(deleting(p, 600))
		time.Sleep(5 * time.Second)
		w.set(deleting(p, 3))
		time.Sleep(4 * time.Second)
		if !w.isFinished() {
			t.Error("still waits for the first grace")
		}
	})
}

func TestProbes(t *testing.T) {
	test(t, func(t *testing.T, w *world) {
		var mu sync.Mutex
		code := map[string]int32{"startup": 1, "live": 0, "ready": 1}
		set := func(what string, c int32) {
			mu.Lock()
			defer mu.Unlock()
			code[what] = c
		}
		w.runtime.OnExec(func(_ string, command []string) (cri.ExecResult, error) {
			mu.Lock()
			defer mu.Unlock()
			return cri.ExecResult{ExitCode: code[command[0]], Stdout: []byte("said " + command[0])}, nil
		})
		w.set(podtest.Pod(t, `
metadata: {name: p}
spec:
  containers:
  - name: c
    image: app:1
    startupProbe: {exec: {command: [startup]}, periodSeconds: 1, failureThreshold: 30}
    livenessProbe: {exec: {command: [live]}, periodSeconds: 2, failureThreshold: 2}
    readinessProbe: {exec: {command: [ready]}, periodSeconds: 1}`))
		time.Sleep(5 * time.Second)
		if s := w.is().ContainerStatuses[0]; *s.Started || s.Ready || !w.happened("c Unhealthy: Startup probe failed: said startup") {
			t.Fatalf("before startup: %+v", s)
		}
		set("startup", 0)
		time.Sleep(3 * time.Second)
		if s := w.is(); !*s.ContainerStatuses[0].Started || isReady(s) || !w.happened("Readiness probe failed") {
			t.Fatalf("after startup: %+v", s)
		}
		set("ready", 0)
		time.Sleep(2 * time.Second)
		if !isReady(w.is()) {
			t.Fatal("not ready")
		}
		set("ready", 1)
		time.Sleep(4 * time.Second)
		if isReady(w.is()) {
			t.Fatal("still ready")
		}
		set("live", 1)
		time.Sleep(5 * time.Second)
		if s := w.is().ContainerStatuses[0]; s.RestartCount != 1 || !w.happened("Container c failed liveness probe, will be restarted") {
			t.Errorf("%+v\n%q", s, w.events)
		}
	})
}

func TestImageProblems(t *testing.T) {
	test(t, func(t *testing.T, w *world) {
		for range 3 {
			w.runtime.Fail("PullImage", errors.New("no such host"))
		}
		w.set(podtest.Pod(t, `{metadata: {name: p}, spec: {containers: [{name: c, image: "absent:1"}]}}`))
		if s := w.is(); s.ContainerStatuses[0].State.Waiting.Reason != "ErrImagePull" || s.Phase != "Pending" {
			t.Fatalf("%+v", s)
		}
		time.Sleep(2 * time.Second)
		if s := w.is().ContainerStatuses[0].State.Waiting; s.Reason != "ImagePullBackOff" || !strings.Contains(s.Message, "no such host") {
			t.Fatalf("%+v", s)
		}
		time.Sleep(2 * time.Minute)
		if s := w.is(); !isReady(s) {
			t.Errorf("never pulled: %+v\n%q %q", s.ContainerStatuses, w.runtime.Calls(), w.events)
		}
	})
}

func TestMissingConfigMapHoldsAndIsTakenUp(t *testing.T) {
	test(t, func(t *testing.T, w *world) {
		w.set(podtest.Pod(t, `{metadata: {name: p}, spec: {containers: [{name: c, image: "app:1", env: [{name: A, valueFrom: {configMapKeyRef: {name: config, key: a}}}]}]}}`))
		if s := w.is().ContainerStatuses[0].State.Waiting; s == nil || s.Reason != "CreateContainerConfigError" || !strings.Contains(s.Message, `configmap "config" not found`) {
			t.Fatalf("%+v", s)
		}
		w.mu.Lock()
		w.configMaps["config"] = corev1.ConfigMap_builder{Data: map[string]string{"a": "b"}}.Build()
		w.mu.Unlock()
		w.manager.Changed([]string{uid})
		if s := w.is(); !isReady(s) {
			t.Errorf("%+v", s.ContainerStatuses)
		}
		if c := w.runtime.Config(uid, "c"); len(c.GetEnvs()) != 1 || string(c.GetEnvs()[0].GetValue()) != "b" {
			t.Errorf("env %v", c.GetEnvs())
		}
	})
}

func TestRestartedAgentTouchesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		synctest.Wait()
		p := podtest.Pod(t, `{metadata: {name: p}, spec: {containers: [{name: c, image: "app:1", readinessProbe: {exec: {command: [x]}}}]}}`)
		w.set(p)
		before := w.is()
		if !isReady(before) {
			t.Fatalf("%+v", before)
		}
		w.stop()
		again := proto.CloneOf(p)
		again.SetStatus(w.status[uid])
		calls := len(w.runtime.Calls())
		second := newWorld(t, w.runtime)
		defer second.stop()
		synctest.Wait()
		second.set(again)
		second.manager.Synced(map[string]bool{uid: true})
		after := second.is()
		if !isReady(after) || after.ContainerStatuses[0].ContainerID != before.ContainerStatuses[0].ContainerID {
			t.Errorf("after: %+v", after)
		}
		for _, c := range second.runtime.Calls()[calls:] {
			if !strings.HasPrefix(c, "ExecSync") {
				t.Errorf("the second agent called %s", c)
			}
		}
		// What the API server does not know is removed.
		second.manager.Synced(map[string]bool{})
		synctest.Wait()
		if st := second.state(); len(st.Sandboxes) != 0 {
			t.Errorf("left: %+v", st)
		}
	})
}

func TestOrphansAreRemoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		synctest.Wait()
		w.set(podtest.Pod(t, simple))
		w.stop()
		second := newWorld(t, w.runtime)
		defer second.stop()
		synctest.Wait()
		if len(second.state().Containers) != 1 {
			t.Fatal("removed before the API server was heard")
		}
		second.manager.Synced(map[string]bool{})
		synctest.Wait()
		time.Sleep(10 * time.Second)
		if st := second.state(); len(st.Sandboxes)+len(st.Containers) != 0 {
			t.Errorf("left: %+v", st)
		}
	})
}

func TestLostSandboxIsReplaced(t *testing.T) {
	test(t, func(t *testing.T, w *world) {
		w.set(podtest.Pod(t, simple))
		ip := w.is().PodIP
		w.runtime.KillSandbox(uid)
		s := w.is()
		if !isReady(s) || s.PodIP == ip || s.ContainerStatuses[0].RestartCount != 1 {
			t.Errorf("%+v", s)
		}
	})
}

func TestNodeAdmission(t *testing.T) {
	test(t, func(t *testing.T, w *world) {
		first := podtest.Pod(t, `{metadata: {name: first, uid: first}, spec: {containers: [{name: c, image: "app:1", ports: [{containerPort: 1, hostPort: 80}], resources: {requests: {cpu: 1500m}}}]}}`)
		w.set(first)
		w.set(podtest.Pod(t, `{metadata: {name: p}, spec: {containers: [{name: c, image: "app:1", resources: {requests: {cpu: 1}}}]}}`))
		s := w.is()
		if s.Phase != "Failed" || s.Reason != "OutOfcpu" || s.Message != "Pod was rejected: Node didn't have enough resource: cpu, requested: 1000, used: 1500, capacity: 2000" {
			t.Errorf("%+v", s)
		}
		if len(w.state().Sandboxes) != 0 {
			t.Error("a rejected pod runs")
		}
		w.set(podtest.Pod(t, `{metadata: {name: q, uid: q}, spec: {containers: [{name: c, image: "app:1", ports: [{containerPort: 1, hostPort: 80}]}]}}`))
		if s := podtest.Status(t, w.status["q"]); s.Reason != "NodePorts" {
			t.Errorf("%+v", s)
		}
	})
}

func TestActiveDeadline(t *testing.T) {
	test(t, func(t *testing.T, w *world) {
		w.set(podtest.Pod(t, `{metadata: {name: p}, spec: {activeDeadlineSeconds: 60, containers: [{name: c, image: "app:1"}]}}`))
		if !isReady(w.is()) {
			t.Fatal("not ready")
		}
		time.Sleep(61 * time.Second)
		if s := w.is(); s.Phase != "Failed" || s.Reason != "DeadlineExceeded" || w.state().Running() {
			t.Errorf("%+v", s)
		}
	})
}

func TestDeletionCallsOffAPull(t *testing.T) {
	test(t, func(t *testing.T, w *world) {
		release := w.runtime.Block("PullImage")
		defer release()
		p := podtest.Pod(t, `{metadata: {name: p}, spec: {containers: [{name: c, image: "absent:1"}]}}`)
		w.set(p)
		w.set(deleting(p, 30))
		if !w.isFinished() {
			t.Error("waits for a pull that nobody needs")
		}
	})
}

func TestChangedImageRestarts(t *testing.T) {
	test(t, func(t *testing.T, w *world) {
		p := podtest.Pod(t, simple)
		w.set(p)
		changed := proto.CloneOf(p)
		changed.GetSpec().GetContainers()[0].SetImage("app:2")
		w.set(changed)
		if s := w.is().ContainerStatuses[0]; s.Image != "app:2" || s.RestartCount != 1 || s.State.Running == nil {
			t.Errorf("%+v", s)
		}
	})
}

func TestPostStartFailureStops(t *testing.T) {
	test(t, func(t *testing.T, w *world) {
		w.runtime.OnExec(func(string, []string) (cri.ExecResult, error) {
			return cri.ExecResult{ExitCode: 1, Stderr: []byte("no")}, nil
		})
		w.set(podtest.Pod(t, `{metadata: {name: p}, spec: {containers: [{name: c, image: "app:1", lifecycle: {postStart: {exec: {command: [x]}}}}]}}`))
		time.Sleep(3 * time.Second)
		if s := w.is(); isReady(s) || !w.happened("FailedPostStartHook") {
			t.Errorf("%+v %q", s, w.events)
		}
	})
}

// Hooks with tcpSocket fail when they are due: after a start the container is killed and started again, before a stop it is stopped all the same.
func TestHooksByTCPFail(t *testing.T) {
	test(t, func(t *testing.T, w *world) {
		w.set(podtest.Pod(t, `{metadata: {name: p}, spec: {containers: [{name: c, image: "app:1", lifecycle: {postStart: {tcpSocket: {port: 80}}}}]}}`))
		time.Sleep(time.Minute)
		if s := w.is(); isReady(s) || s.ContainerStatuses[0].RestartCount == 0 || !w.happened("FailedPostStartHook: PostStartHook failed: invalid handler: tcpSocket") ||
			!w.happened("Killing: FailedPostStartHook") {
			t.Errorf("%+v %q", s, w.events)
		}
	})
	test(t, func(t *testing.T, w *world) {
		p := podtest.Pod(t, `{metadata: {name: p}, spec: {containers: [{name: c, image: "app:1", lifecycle: {preStop: {tcpSocket: {port: 80}}}}]}}`)
		w.set(p)
		w.set(deleting(p, 30))
		if !w.isFinished() || !w.happened("FailedPreStopHook: PreStopHook failed: invalid handler: tcpSocket") {
			t.Errorf("%q", w.events)
		}
	})
}

// A pod with a volume whose plugin Kubernetes has removed waits and says why.
func TestVolumeOfARemovedKind(t *testing.T) {
	test(t, func(t *testing.T, w *world) {
		w.set(podtest.Pod(t, `{metadata: {name: p}, spec: {containers: [{name: c, image: "app:1"}], volumes: [{name: v, glusterfs: {endpoints: e, path: /x}}]}}`))
		time.Sleep(time.Minute)
		if s := w.is(); s.Phase != "Pending" || !w.happened("FailedMount: Unable to attach or mount volumes: ") || !w.happened("no volume plugin matched") {
			t.Errorf("%+v %q", s, w.events)
		}
	})
}
