package pod_test

import (
	"testing"

	"google.golang.org/protobuf/proto"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/services/node-agent/internal/pod"
	"dhow.dev/services/node-agent/internal/podtest"
)

func TestAdmit(t *testing.T) {
	allocatable := map[string]*metav1.Quantity{}
	for name, text := range map[string]string{"cpu": "2", "memory": "1Gi", "pods": "2"} {
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
