package pod_test

import (
	"testing"

	"google.golang.org/protobuf/proto"
	k8scorev1 "k8s.io/api/core/v1"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/services/node-agent/internal/pod"
	"dhow.dev/services/node-agent/internal/podtest"
)

func TestAdmit(t *testing.T) {
	allocatable := map[string]*metav1.Quantity{}
	for name, text := range map[string]string{"cpu": "2", "memory": "1Gi", "pods": "2", "hugepages-2Mi": "4Mi"} {
		allocatable[name] = metav1.Quantity_builder{String: proto.String(text)}.Build()
	}
	other := podtest.Pod(t, `{metadata: {name: o}, spec: {containers: [{name: c, ports: [{containerPort: 1, hostPort: 53, protocol: UDP}], resources: {requests: {cpu: 500m, memory: 512Mi}}}]}}`)
	for _, c := range []struct {
		spec   string
		others int
		labels map[string]string
		want   string
	}{
		{spec: `{containers: [{name: c, resources: {requests: {cpu: 1500m, memory: 512Mi}}}]}`, others: 1},
		{spec: `{containers: [{name: c, resources: {requests: {cpu: 1501m}}}]}`, others: 1, want: "OutOfcpu"},
		{spec: `{containers: [{name: c, resources: {limits: {memory: 513Mi}}}]}`, others: 1, want: "OutOfmemory"},
		{spec: `{containers: [{name: c}]}`, others: 2, want: "OutOfpods"},
		{spec: `{containers: [{name: c, ports: [{containerPort: 1, hostPort: 53}]}]}`, others: 1},
		{spec: `{containers: [{name: c, ports: [{containerPort: 1, hostPort: 53, protocol: UDP}]}]}`, others: 1, want: "NodePorts"},
		{spec: `{hostNetwork: true, containers: [{name: c, ports: [{containerPort: 53, protocol: UDP}]}]}`, others: 1, want: "NodePorts"},
		{spec: `{nodeSelector: {disk: ssd}, containers: [{name: c}]}`},
		{spec: `{nodeSelector: {disk: ssd}, containers: [{name: c}]}`, labels: map[string]string{"disk": "ssd"}},
		{spec: `{nodeSelector: {disk: ssd}, containers: [{name: c}]}`, labels: map[string]string{"disk": "hdd"}, want: "NodeAffinity"},
		{spec: `{containers: [{name: c, resources: {limits: {hugepages-2Mi: 4Mi}}}]}`},
		{spec: `{containers: [{name: c, resources: {limits: {hugepages-2Mi: 4Mi}}}, {name: d, resources: {limits: {hugepages-2Mi: 2Mi}}}]}`, want: "OutOfhugepages-2Mi"},
		{spec: `{containers: [{name: c, resources: {limits: {hugepages-1Gi: 1Gi}}}]}`, want: "OutOfhugepages-1Gi"},
		{spec: `{containers: [{name: c, resources: {limits: {example.com/unheard-of: 1}}}]}`},
		{spec: affinity("{key: disk, operator: In, values: [ssd]}"), labels: map[string]string{"disk": "ssd"}},
		{spec: affinity("{key: disk, operator: In, values: [ssd]}"), labels: map[string]string{"disk": "hdd"}, want: "NodeAffinity"},
		{spec: affinity("{key: disk, operator: NotIn, values: [ssd]}"), labels: map[string]string{}},
		{spec: affinity("{key: disk, operator: DoesNotExist}"), labels: map[string]string{"disk": "hdd"}, want: "NodeAffinity"},
		{spec: affinity("{key: size, operator: Gt, values: ['10']}"), labels: map[string]string{"size": "11"}},
		{spec: affinity("{key: size, operator: Lt, values: ['10']}"), labels: map[string]string{"size": "11"}, want: "NodeAffinity"},
	} {
		var others []*corev1.Pod
		for range c.others {
			others = append(others, other)
		}
		end := pod.Admit("n1", c.labels, allocatable, others, podtest.Pod(t, "{metadata: {name: p}, spec: "+c.spec+"}"))
		got := ""
		if end != nil {
			got = end.Reason
		}
		if got != c.want {
			t.Errorf("%s beside %d: %q, want %q", c.spec, c.others, got, c.want)
		}
	}
}

// affinity is a spec with a required node affinity of one expression.
func affinity(expression string) string {
	return `{affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchExpressions: [` + expression + `]}]}}}, containers: [{name: c}]}`
}

// TestThePodsThatAMachineRefuses are those that no other pod is to blame for.
func TestThePodsThatAMachineRefuses(t *testing.T) {
	for _, c := range []struct {
		spec, reason string
		host         pod.Host
	}{
		{spec: `{securityContext: {sysctls: [{name: net.ipv4.ip_unprivileged_port_start, value: "0"}]}, containers: [{name: c, image: "app:1"}]}`},
		{spec: `{securityContext: {sysctls: [{name: kernel.msgmax, value: "1"}]}, containers: [{name: c, image: "app:1"}]}`, reason: "SysctlForbidden"},
		{spec: `{securityContext: {sysctls: [{name: kernel/msgmax, value: "1"}]}, containers: [{name: c, image: "app:1"}]}`, host: pod.Host{Sysctls: []string{"kernel.msg*"}}},
		{spec: `{hostNetwork: true, securityContext: {sysctls: [{name: net.ipv4.tcp_syncookies, value: "1"}]}, containers: [{name: c, image: "app:1"}]}`, reason: "SysctlForbidden"},
		{spec: `{os: {name: windows}, containers: [{name: c, image: "app:1"}]}`, reason: "PodOSNotSupported"},
		{spec: `{securityContext: {appArmorProfile: {type: RuntimeDefault}}, containers: [{name: c, image: "app:1"}]}`, reason: "AppArmor"},
		{spec: `{securityContext: {appArmorProfile: {type: Unconfined}}, containers: [{name: c, image: "app:1"}]}`},
		{spec: `{containers: [{name: c, image: "app:1", securityContext: {appArmorProfile: {type: Localhost, localhostProfile: p}}}]}`, host: pod.Host{AppArmor: true}},
	} {
		test(t, func(t *testing.T, w *world) {
			w.manager.Host = c.host
			w.set(podtest.Pod(t, "{metadata: {name: p}, spec: "+c.spec+"}"))
			s := w.is()
			if s.Reason != c.reason || (s.Phase == "Failed") != (c.reason != "") {
				t.Errorf("%s: %s %s: %s", c.spec, s.Phase, s.Reason, s.Message)
			}
		})
	}
}

// TestOthersCountSomeResources has a node with one thing of a kind that the agent itself knows nothing of.
func TestOthersCountSomeResources(t *testing.T) {
	test(t, func(t *testing.T, w *world) {
		for name, reason := range map[string]string{"1": "", "2": "OutOfexample.com/thing"} {
			w.set(podtest.Pod(t, `{metadata: {name: n`+name+`, uid: n`+name+`}, spec: {containers: [{name: c, image: "app:1", resources: {limits: {example.com/thing: `+name+`}, requests: {example.com/thing: `+name+`}}}]}}`))
			if s := podtest.Status(t, w.status["n"+name]); s.Reason != reason {
				t.Errorf("%s: %s %s: %s", name, s.Phase, s.Reason, s.Message)
			}
		}
	})
}

// TestACriticalPodTakesTheRoomOfOthers sends away the smallest pod that makes room, whatever its priority, and no other.
func TestACriticalPodTakesTheRoomOfOthers(t *testing.T) {
	test(t, func(t *testing.T, w *world) {
		for _, text := range []string{
			`{metadata: {name: small, uid: small}, spec: {priority: 1, containers: [{name: c, image: "app:1", resources: {requests: {cpu: 200m}}}]}}`,
			`{metadata: {name: low, uid: low}, spec: {priority: 9, containers: [{name: c, image: "app:1", resources: {requests: {cpu: 800m}}}]}}`,
			`{metadata: {name: high, uid: high}, spec: {priority: 5, containers: [{name: c, image: "app:1", resources: {requests: {cpu: "1"}}}]}}`,
		} {
			w.set(podtest.Pod(t, text))
		}
		p := podtest.Pod(t, `{metadata: {name: p}, spec: {priority: 10, containers: [{name: c, image: "app:1", resources: {requests: {cpu: 500m}}}]}}`)
		w.set(p)
		if s := w.is(); s.Reason != "OutOfcpu" {
			t.Fatalf("an ordinary pod: %+v", s)
		}
		w.set(podtest.Pod(t, `{metadata: {name: critical, uid: critical}, spec: {priority: 2000001000, containers: [{name: c, image: "app:1", resources: {requests: {cpu: 500m}}}]}}`))
		w.is()
		for name, phase := range map[string]k8scorev1.PodPhase{"small": "Running", "low": "Failed", "high": "Running", "critical": "Running"} {
			if s := podtest.Status(t, w.status[name]); s.Phase != phase {
				t.Errorf("%s is %s: %s", name, s.Phase, s.Reason)
			}
		}
		low := podtest.Status(t, w.status["low"])
		if c := condition(low, k8scorev1.DisruptionTarget); low.Reason != "Preempting" || c == nil || c.Reason != "TerminationByKubelet" {
			t.Errorf("%+v", low)
		}
		// All that may go is small and high: of the 2 CPUs critical keeps half a one, so that nobody goes for this one.
		w.set(podtest.Pod(t, `{metadata: {name: huge, uid: huge}, spec: {priority: 2000000000, containers: [{name: c, image: "app:1", resources: {requests: {cpu: 1900m}}}]}}`))
		w.is()
		huge := podtest.Status(t, w.status["huge"])
		const missing = "Pod was rejected: Unexpected error while attempting to recover from admission failure: preemption: error finding a set of pods to preempt: " +
			"no set of running pods found to reclaim resources: [(res: cpu, q: 400), ]"
		if huge.Phase != "Failed" || huge.Reason != "UnexpectedAdmissionError" || huge.Message != missing {
			t.Errorf("%+v", huge)
		}
		for _, name := range []string{"small", "high", "critical"} {
			if s := podtest.Status(t, w.status[name]); s.Phase != "Running" {
				t.Errorf("%s is %s: %s", name, s.Phase, s.Reason)
			}
		}
	})
}
