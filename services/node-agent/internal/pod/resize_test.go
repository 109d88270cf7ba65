package pod_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"
	k8scorev1 "k8s.io/api/core/v1"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/services/node-agent/internal/podtest"
)

// withCPU returns the pod with another CPU request for its first container.
func withCPU(p *corev1.Pod, request string) *corev1.Pod {
	p = proto.CloneOf(p)
	p.GetSpec().GetContainers()[0].GetResources().GetRequests()["cpu"] = metav1.Quantity_builder{String: &request}.Build()
	return p
}

func condition(s k8scorev1.PodStatus, kind k8scorev1.PodConditionType) *k8scorev1.PodCondition {
	for i := range s.Conditions {
		if s.Conditions[i].Type == kind {
			return &s.Conditions[i]
		}
	}
	return nil
}

func cpuOf(list k8scorev1.ResourceList) string { return list.Cpu().String() }

func TestResizeInPlace(t *testing.T) {
	test(t, func(t *testing.T, w *world) {
		p := podtest.Pod(t, `{metadata: {name: p}, spec: {containers: [{name: c, image: "app:1", resources: {requests: {cpu: 100m}, limits: {memory: 64Mi}}}]}}`)
		w.set(p)
		before := w.is().ContainerStatuses[0]
		if cpuOf(before.AllocatedResources) != "100m" || before.Resources == nil || cpuOf(before.Resources.Requests) != "100m" {
			t.Fatalf("%+v", before)
		}
		// While the runtime does not take it, the resize is under way.
		w.runtime.Fail("UpdateResources", errors.New("not now"))
		w.set(withCPU(p, "1"))
		s := w.is()
		if c := condition(s, k8scorev1.PodResizeInProgress); c == nil || c.Reason != "Error" || !strings.Contains(c.Message, "not now") {
			t.Errorf("%+v", s.Conditions)
		}
		if c := s.ContainerStatuses[0]; cpuOf(c.AllocatedResources) != "1" || cpuOf(c.Resources.Requests) != "100m" {
			t.Errorf("%+v", c)
		}
		time.Sleep(time.Minute)
		s = w.is()
		if c := s.ContainerStatuses[0]; condition(s, k8scorev1.PodResizeInProgress) != nil || cpuOf(c.Resources.Requests) != "1" || c.ContainerID != before.ContainerID || c.RestartCount != 0 {
			t.Errorf("%+v", s)
		}
		if got := w.runtime.Config(uid, "c").GetLinux().GetResources(); got.GetCpuShares() != 1024 || got.GetMemoryLimitInBytes() != 64<<20 {
			t.Errorf("%v", got)
		}
		// More than the node has is never admitted; the pod keeps what it has.
		w.set(withCPU(p, "3"))
		s = w.is()
		if c := condition(s, k8scorev1.PodResizePending); c == nil || c.Reason != "Infeasible" || cpuOf(s.ContainerStatuses[0].AllocatedResources) != "1" {
			t.Errorf("%+v", s)
		}
		w.set(p)
		if s = w.is(); condition(s, k8scorev1.PodResizePending) != nil || cpuOf(s.ContainerStatuses[0].Resources.Requests) != "100m" {
			t.Errorf("%+v", s)
		}
	})
}

func TestResizeOfTheWholePod(t *testing.T) {
	test(t, func(t *testing.T, w *world) {
		p := podtest.Pod(t, `{metadata: {name: p}, spec: {resources: {requests: {cpu: 500m}, limits: {memory: 64Mi}}, containers: [
		  {name: c, image: "app:1", resources: {requests: {cpu: 100m}, limits: {cpu: 1, memory: 32Mi}}}, {name: free, image: "app:1"}]}}`)
		w.set(p)
		before := w.is()
		if before.Resources == nil || cpuOf(before.Resources.Requests) != "500m" || before.Resources.Limits.Memory().String() != "64Mi" || cpuOf(before.AllocatedResources) != "500m" {
			t.Fatalf("%+v", before)
		}
		with := func(cpu, memory string) *corev1.Pod {
			p := proto.CloneOf(p)
			r := p.GetSpec().GetResources()
			r.GetRequests()["cpu"] = metav1.Quantity_builder{String: &cpu}.Build()
			r.GetLimits()["memory"] = metav1.Quantity_builder{String: &memory}.Build()
			return p
		}
		// Less than the pod uses would kill it.
		w.cgroups.uses(100 << 20)
		w.set(with("1", "96Mi"))
		s := w.is()
		if c := condition(s, k8scorev1.PodResizeInProgress); c == nil || c.Reason != "Error" || !strings.Contains(c.Message, "attempting to set pod memory limit (100663296) below current usage (104857600)") {
			t.Errorf("%+v", s.Conditions)
		}
		if cpuOf(s.AllocatedResources) != "1" || cpuOf(s.Resources.Requests) != "500m" || s.Resources.Limits.Memory().String() != "64Mi" {
			t.Errorf("%+v", s)
		}
		w.cgroups.uses(10 << 20)
		time.Sleep(time.Minute)
		s = w.is()
		if condition(s, k8scorev1.PodResizeInProgress) != nil || cpuOf(s.Resources.Requests) != "1" || s.Resources.Limits.Memory().String() != "96Mi" {
			t.Errorf("%+v", s)
		}
		if made := w.cgroups.of(uid); made.CPURequest != 1000 || made.MemoryLimit != 96<<20 {
			t.Errorf("the pod's cgroup: %+v", made)
		}
		// Who has a limit of its own keeps it; who has none has the pod's.
		for name, limit := range map[string]int64{"c": 32 << 20, "free": 96 << 20} {
			if got := w.runtime.Config(uid, name).GetLinux().GetResources().GetMemoryLimitInBytes(); got != limit {
				t.Errorf("%s is limited to %d", name, got)
			}
		}
		for i, c := range s.ContainerStatuses {
			if c.ContainerID != before.ContainerStatuses[i].ContainerID {
				t.Errorf("%s was restarted", c.Name)
			}
		}
		w.set(with("3", "96Mi"))
		if s := w.is(); condition(s, k8scorev1.PodResizePending) == nil || cpuOf(s.AllocatedResources) != "1" {
			t.Errorf("%+v", s)
		}
	})
}

// TestResizeOfThePodAlone: no container has anything of it.
func TestResizeOfThePodAlone(t *testing.T) {
	test(t, func(t *testing.T, w *world) {
		p := podtest.Pod(t, `{metadata: {name: p}, spec: {resources: {requests: {cpu: 500m}, limits: {memory: 64Mi}}, containers: [
		  {name: c, image: "app:1", resources: {requests: {cpu: 100m, memory: 16Mi}, limits: {cpu: 1, memory: 32Mi}}}]}}`)
		w.set(p)
		p = proto.CloneOf(p)
		p.GetSpec().GetResources().GetLimits()["memory"] = metav1.Quantity_builder{String: proto.String("96Mi")}.Build()
		w.cgroups.uses(100 << 20)
		w.set(p)
		if c := condition(w.is(), k8scorev1.PodResizeInProgress); c == nil || c.Reason != "Error" {
			t.Errorf("%+v", w.is().Conditions)
		}
		w.cgroups.uses(10 << 20)
		time.Sleep(time.Minute)
		if s := w.is(); condition(s, k8scorev1.PodResizeInProgress) != nil || s.Resources.Limits.Memory().String() != "96Mi" || w.cgroups.of(uid).MemoryLimit != 96<<20 {
			t.Errorf("%+v, the cgroup %+v", s, w.cgroups.of(uid))
		}
		if slices.Contains(w.runtime.Calls(), "UpdateResources c") {
			t.Errorf("%q", w.runtime.Calls())
		}
	})
}

func TestAResizeWaitsForRoom(t *testing.T) {
	test(t, func(t *testing.T, w *world) {
		other := podtest.Pod(t, `{metadata: {name: other, uid: other}, spec: {terminationGracePeriodSeconds: 0, containers: [{name: c, image: "app:1", resources: {requests: {cpu: 1500m}}}]}}`)
		w.set(other)
		p := podtest.Pod(t, `{metadata: {name: p}, spec: {containers: [{name: c, image: "app:1", resources: {requests: {cpu: 100m}}}]}}`)
		w.set(p)
		w.set(withCPU(p, "1"))
		if c := condition(w.is(), k8scorev1.PodResizePending); c == nil || c.Reason != "Deferred" {
			t.Fatalf("%+v", w.is().Conditions)
		}
		w.set(deleting(other, 0))
		w.manager.Remove("other")
		time.Sleep(time.Minute)
		if s := w.is(); condition(s, k8scorev1.PodResizePending) != nil || cpuOf(s.ContainerStatuses[0].Resources.Requests) != "1" {
			t.Errorf("%+v", s)
		}
	})
}

func TestAResizeThatWantsARestart(t *testing.T) {
	test(t, func(t *testing.T, w *world) {
		p := podtest.Pod(t, `{metadata: {name: p}, spec: {containers: [{name: c, image: "app:1", resizePolicy: [{resourceName: cpu, restartPolicy: RestartContainer}], resources: {requests: {cpu: 100m}}}]}}`)
		w.set(p)
		w.set(withCPU(p, "500m"))
		time.Sleep(time.Minute)
		s := w.is()
		if c := s.ContainerStatuses[0]; c.RestartCount != 1 || cpuOf(c.Resources.Requests) != "500m" || !isReady(s) {
			t.Errorf("%+v", c)
		}
		if !w.happened("resize requires restart") || slices.Contains(w.runtime.Calls(), "UpdateResources c") {
			t.Errorf("%q %q", w.events, w.runtime.Calls())
		}
	})
}

func TestEphemeralContainers(t *testing.T) {
	test(t, func(t *testing.T, w *world) {
		p := podtest.Pod(t, `{metadata: {name: p}, spec: {containers: [{name: c, image: "app:1"}]}}`)
		w.set(p)
		p = proto.CloneOf(p)
		ephemeral := func(name, target string) *corev1.EphemeralContainer {
			return corev1.EphemeralContainer_builder{TargetContainerName: &target, EphemeralContainerCommon: corev1.EphemeralContainerCommon_builder{
				Name: &name, Image: proto.String("app:2"), Stdin: proto.Bool(true), Tty: proto.Bool(true),
			}.Build()}.Build()
		}
		p.GetSpec().SetEphemeralContainers([]*corev1.EphemeralContainer{ephemeral("debug", "c"), ephemeral("lost", "nobody")})
		w.set(p)
		s := w.is()
		if len(s.EphemeralContainerStatuses) != 2 || s.EphemeralContainerStatuses[0].State.Running == nil || !isReady(s) {
			t.Fatalf("%+v", s.EphemeralContainerStatuses)
		}
		if wait := s.EphemeralContainerStatuses[1].State.Waiting; wait == nil || wait.Reason != "CreateContainerConfigError" || !strings.Contains(wait.Message, `"nobody" does not run`) {
			t.Errorf("%+v", s.EphemeralContainerStatuses[1].State)
		}
		config := w.runtime.Config(uid, "debug")
		options := config.GetLinux().GetSecurityContext().GetNamespaceOptions()
		if target := w.state().Newest("c").ID; options.GetPid() != runtimev1.NamespaceMode_TARGET || options.GetTargetId() != target || !config.GetTty() || !config.GetStdin() {
			t.Errorf("%v", config)
		}
		// It runs once.
		w.runtime.Exit(uid, "debug", 1, "")
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		s = w.is()
		if s.EphemeralContainerStatuses[0].State.Terminated == nil || s.EphemeralContainerStatuses[0].RestartCount != 0 || !isReady(s) || s.Phase != "Running" {
			t.Errorf("%+v", s)
		}
	})
}
