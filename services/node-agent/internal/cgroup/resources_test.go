package cgroup_test

import (
	"testing"

	"dhow.dev/services/node-agent/internal/cgroup"
	"dhow.dev/services/node-agent/internal/podtest"
)

func TestClass(t *testing.T) {
	for spec, want := range map[string]cgroup.QoS{
		`{containers: [{name: a}]}`:                                                                                  cgroup.BestEffort,
		`{containers: [{name: a, resources: {requests: {cpu: 1}}}]}`:                                                 cgroup.Burstable,
		`{containers: [{name: a, resources: {limits: {cpu: 1, memory: 1Gi}}}]}`:                                      cgroup.Guaranteed,
		`{containers: [{name: a, resources: {limits: {cpu: 1, memory: 1Gi}, requests: {cpu: 500m}}}]}`:               cgroup.Burstable,
		`{containers: [{name: a, resources: {limits: {cpu: 1, memory: 1Gi}, requests: {cpu: 1000m, memory: 1Gi}}}]}`: cgroup.Guaranteed,
		`{containers: [{name: a, resources: {limits: {cpu: 1, memory: 1Gi}}}, {name: b}]}`:                           cgroup.Burstable,
		`{initContainers: [{name: i}], containers: [{name: a, resources: {limits: {cpu: 1, memory: 1Gi}}}]}`:         cgroup.Burstable,
	} {
		if got := cgroup.Class(podtest.Pod(t, "{metadata: {name: p}, spec: "+spec+"}")); got != want {
			t.Errorf("%s: %s, want %s", spec, got, want)
		}
	}
}

func TestOfPod(t *testing.T) {
	pod := podtest.Pod(t, `
metadata: {name: p}
spec:
  overhead: {cpu: 10m, memory: 1Mi}
  initContainers:
  - {name: big, resources: {requests: {cpu: 900m, memory: 10Mi}, limits: {memory: 10Mi}}}
  - {name: sidecar, restartPolicy: Always, resources: {requests: {cpu: 100m, memory: 5Mi}, limits: {memory: 5Mi}}}
  containers:
  - {name: a, resources: {requests: {cpu: 200m, memory: 20Mi}, limits: {memory: 40Mi}}}
  - {name: b, resources: {limits: {cpu: 300m, memory: 30Mi}}}
`)
	got := cgroup.OfPod(pod)
	want := cgroup.Amount{CPURequest: 910, CPULimit: 0, MemoryRequest: 56 << 20, MemoryLimit: 76 << 20}
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestAContainersLimitIsThePods(t *testing.T) {
	pod := podtest.Pod(t, `{metadata: {name: p}, spec: {resources: {limits: {cpu: 2, memory: 64Mi, hugepages-2Mi: 4Mi}},
	  containers: [{name: a, resources: {requests: {cpu: 1}, limits: {memory: 32Mi}}}, {name: b, resources: {limits: {cpu: 500m, hugepages-2Mi: 2Mi}}}]}}`)
	for i, want := range []cgroup.Amount{{CPURequest: 1000, CPULimit: 2000, MemoryRequest: 32 << 20, MemoryLimit: 32 << 20}, {CPURequest: 500, CPULimit: 500, MemoryLimit: 64 << 20}} {
		c := pod.GetSpec().GetContainers()[i]
		if got := cgroup.OfContainer(pod, c); got != want {
			t.Errorf("%s: %+v, want %+v", c.GetName(), got, want)
		}
		if got, want := cgroup.HugePages(pod, c)["2MB"], int64([]int{4, 2}[i]<<20); got != want {
			t.Errorf("%s: huge pages %d, want %d", c.GetName(), got, want)
		}
	}
}

func TestConversions(t *testing.T) {
	for milli, want := range map[int64]int64{0: 2, 1: 2, 100: 102, 1000: 1024, 1 << 40: 262144} {
		if got := cgroup.Shares(milli); got != want {
			t.Errorf("shares of %dm: %d, want %d", milli, got, want)
		}
	}
	for milli, want := range map[int64]int64{0: 0, 1: 1000, 100: 10000, 2500: 250000} {
		if got := cgroup.Quota(milli); got != want {
			t.Errorf("quota of %dm: %d, want %d", milli, got, want)
		}
	}
	for shares, want := range map[int64]int64{0: 1, 2: 1, 1024: 100, 262144: 10000} {
		if got := cgroup.Weight(shares); got != want {
			t.Errorf("weight of %d: %d, want %d", shares, got, want)
		}
	}
}

func TestOOMScore(t *testing.T) {
	for spec, want := range map[string]int64{
		`{containers: [{name: a}]}`: 1000,
		`{containers: [{name: a, resources: {limits: {cpu: 1, memory: 1Gi}}}]}`: -997,
		`{containers: [{name: a, resources: {requests: {memory: 1Gi}}}]}`:       750,
		`{containers: [{name: a, resources: {requests: {cpu: 1}}}]}`:            999,
		`{containers: [{name: a, resources: {requests: {memory: 4Gi}}}]}`:       3,
		// What the pod requests beyond its containers is theirs in equal parts.
		`{resources: {requests: {memory: 3Gi}}, containers: [{name: a, resources: {requests: {memory: 1Gi}}}, {name: b}]}`: 500,
		`{priority: 2000000000, containers: [{name: a, resources: {requests: {memory: 1Gi}}}]}`:                            -997,
	} {
		pod := podtest.Pod(t, "{metadata: {name: p}, spec: "+spec+"}")
		if got := cgroup.OOMScoreAdj(pod, pod.GetSpec().GetContainers()[0], 4<<30); got != want {
			t.Errorf("%s: %d, want %d", spec, got, want)
		}
	}
	// A sidecar is no readier to be killed than those that it serves.
	pod := podtest.Pod(t, `{metadata: {name: p}, spec: {initContainers: [{name: s, restartPolicy: Always}], containers: [{name: a, resources: {requests: {memory: 1Gi}}}, {name: b, resources: {requests: {memory: 2Gi}}}]}}`)
	if got := cgroup.OOMScoreAdj(pod, pod.GetSpec().GetInitContainers()[0], 4<<30); got != 750 {
		t.Errorf("the sidecar's is %d", got)
	}
}
