package streaming

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	kmetav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilnet "k8s.io/apimachinery/pkg/util/net"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	nodev1 "dhow.dev/gen/go/dhow/node/v1"
	"dhow.dev/services/apiserver/internal/request"
)

// nodeProxy serves nodes/proxy. A node of Dhow accepts no connections: what a kubelet would answer and the API server knows is answered here.
func (s *Streams) nodeProxy(w http.ResponseWriter, r *http.Request, info *request.Info) error {
	_, name, _, ok := utilnet.SplitSchemeNamePort(info.Name)
	if !ok {
		return apierrors.NewBadRequest(fmt.Sprintf("invalid node request %q", info.Name))
	}
	if err := s.config.Objects.Read(r.Context(), nodes, "", name, &corev1.Node{}); err != nil {
		return err
	}
	path := strings.Trim(info.SubPath, "/")
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return apierrors.NewMethodNotSupported(nodes.GroupResource(), strings.ToLower(r.Method))
	}
	switch path {
	case "stats/summary":
		if s.config.Usage == nil {
			break
		}
		usage := s.config.Usage(r.Context())[name]
		if usage == nil {
			return apierrors.NewServiceUnavailable(fmt.Sprintf("node %s has not told yet what it uses", name))
		}
		w.Header().Set("Content-Type", "application/json")
		return json.NewEncoder(w).Encode(summaryOf(name, usage))
	case "logs", "":
		return &apierrors.StatusError{ErrStatus: kmetav1.Status{
			Status: kmetav1.StatusFailure, Code: http.StatusNotFound, Reason: kmetav1.StatusReasonNotFound,
			Message: "nodes serve no logs of their own here: read them on the machine; pods' logs are at pods/log",
		}}
	}
	return &apierrors.StatusError{ErrStatus: kmetav1.Status{
		Status: kmetav1.StatusFailure, Code: http.StatusNotFound, Reason: kmetav1.StatusReasonNotFound,
		Message: fmt.Sprintf("the node %s serves no /%s: nodes accept no connections; stats/summary is answered by the API server", name, path),
	}}
}

// summary and what it holds are the parts of the kubelet's stats/v1alpha1 that are known here.
type summary struct {
	Node nodeStats  `json:"node"`
	Pods []podStats `json:"pods"`
}

type nodeStats struct {
	NodeName string      `json:"nodeName"`
	CPU      cpuStats    `json:"cpu"`
	Memory   memoryStats `json:"memory"`
}

type podStats struct {
	PodRef     podReference     `json:"podRef"`
	CPU        cpuStats         `json:"cpu"`
	Memory     memoryStats      `json:"memory"`
	Containers []containerStats `json:"containers"`
}

type podReference struct {
	Name      string `json:"name"`
	Namespace string `json:"namespace"`
	UID       string `json:"uid"`
}

type containerStats struct {
	Name   string      `json:"name"`
	CPU    cpuStats    `json:"cpu"`
	Memory memoryStats `json:"memory"`
}

type cpuStats struct {
	Time                 kmetav1.Time `json:"time"`
	UsageNanoCores       uint64       `json:"usageNanoCores"`
	UsageCoreNanoSeconds uint64       `json:"usageCoreNanoSeconds"`
}

type memoryStats struct {
	Time            kmetav1.Time `json:"time"`
	WorkingSetBytes uint64       `json:"workingSetBytes"`
}

func summaryOf(name string, usage *nodev1.NodeUsage) summary {
	at := kmetav1.Unix(usage.GetTimestamp().GetSeconds(), 0)
	stats := func(u *nodev1.Usage) (cpuStats, memoryStats) {
		return cpuStats{at, u.GetCpuNanocores(), u.GetCpuNanoseconds()}, memoryStats{at, u.GetMemoryBytes()}
	}
	s := summary{Node: nodeStats{NodeName: name}, Pods: []podStats{}}
	s.Node.CPU, s.Node.Memory = stats(usage.GetNode())
	for _, p := range usage.GetPods() {
		one := podStats{PodRef: podReference{p.GetName(), p.GetNamespace(), p.GetUid()}, CPU: cpuStats{Time: at}, Memory: memoryStats{Time: at}}
		for _, c := range p.GetContainers() {
			cpu, memory := stats(c.GetUsage())
			one.Containers = append(one.Containers, containerStats{c.GetName(), cpu, memory})
			one.CPU.UsageNanoCores += cpu.UsageNanoCores
			one.CPU.UsageCoreNanoSeconds += cpu.UsageCoreNanoSeconds
			one.Memory.WorkingSetBytes += memory.WorkingSetBytes
		}
		s.Pods = append(s.Pods, one)
	}
	return s
}
