package streaming

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"

	kcorev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	kmetav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilnet "k8s.io/apimachinery/pkg/util/net"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	nodev1 "dhow.dev/gen/go/dhow/node/v1"
	"dhow.dev/services/apiserver/internal/request"
	"dhow.dev/services/apiserver/internal/respond"
)

// nodeProxy serves nodes/proxy. A node of Dhow accepts no connections: what a kubelet would answer and the API server knows is answered here.
func (s *Streams) nodeProxy(w http.ResponseWriter, r *http.Request, info *request.Info) error {
	_, name, _, ok := utilnet.SplitSchemeNamePort(info.Name)
	if !ok {
		return apierrors.NewBadRequest(fmt.Sprintf("invalid node request %q", info.Name))
	}
	node := &corev1.Node{}
	if err := s.config.Objects.Read(r.Context(), nodes, "", name, node); err != nil {
		return err
	}
	path := strings.Trim(info.SubPath, "/")
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return apierrors.NewMethodNotSupported(nodes.GroupResource(), strings.ToLower(r.Method))
	}
	switch path {
	case "healthz":
		return healthz(w, node)
	case "pods", "runningpods":
		list, err := s.config.Objects.OnNode(name)
		if err != nil {
			return err
		}
		if path == "runningpods" {
			list.Items = slices.DeleteFunc(list.Items, func(p kcorev1.Pod) bool { return p.Status.Phase != kcorev1.PodRunning })
		}
		respond.Object(w, r, http.StatusOK, list)
		return nil
	case "stats/summary", "metrics/resource":
		if s.config.Usage == nil {
			break
		}
		usage := s.config.Usage(r.Context())[name]
		if usage == nil {
			return apierrors.NewServiceUnavailable(fmt.Sprintf("node %s has not told yet what it uses", name))
		}
		if path == "metrics/resource" {
			w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
			return writeResources(w, usage)
		}
		w.Header().Set("Content-Type", "application/json")
		return json.NewEncoder(w).Encode(summaryOf(name, usage))
	}
	if place, found := strings.CutPrefix(path, "containerLogs/"); found {
		return s.containerLogs(w, r, info, name, place)
	}
	return &apierrors.StatusError{ErrStatus: kmetav1.Status{
		Status: kmetav1.StatusFailure, Code: http.StatusNotFound, Reason: kmetav1.StatusReasonNotFound,
		Message: fmt.Sprintf("the node %s serves no /%s: nodes accept no connections; the API server answers healthz, pods, runningpods, containerLogs, metrics/resource and stats/summary", name, path),
	}}
}

// healthz says what the node's condition says: its session is the only way to it, and the condition follows that.
func healthz(w http.ResponseWriter, node *corev1.Node) error {
	for _, c := range node.GetStatus().GetConditions() {
		if c.GetType() == string(kcorev1.NodeReady) && c.GetStatus() == string(kcorev1.ConditionTrue) {
			w.Header().Set("Content-Type", "text/plain; charset=utf-8")
			_, err := io.WriteString(w, "ok")
			return err
		}
	}
	return apierrors.NewServiceUnavailable(fmt.Sprintf("node %s is not ready", node.GetMetadata().GetName()))
}

// containerLogs is NAMESPACE/POD/CONTAINER, for pods of the node.
func (s *Streams) containerLogs(w http.ResponseWriter, r *http.Request, info *request.Info, node, place string) error {
	parts := strings.Split(place, "/")
	if len(parts) != 3 {
		return apierrors.NewBadRequest("containerLogs needs NAMESPACE/POD/CONTAINER behind it")
	}
	pod, err := s.pod(r.Context(), parts[0], parts[1])
	if err != nil {
		return err
	}
	if pod.GetSpec().GetNodeName() != node {
		return apierrors.NewNotFound(pods.GroupResource(), parts[1])
	}
	asked := *info
	asked.Namespace, asked.Name, asked.Query = parts[0], parts[1], maps.Clone(info.Query)
	asked.Query.Set("container", parts[2])
	return s.log(w, r, &asked)
}

// writeResources writes usage as the kubelet's /metrics/resource does.
func writeResources(w io.Writer, usage *nodev1.NodeUsage) error {
	at := usage.GetTimestamp().GetSeconds() * 1000
	var b strings.Builder
	family := func(name, kind, help string, each func(sample func(labels string, value float64))) {
		fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
		each(func(labels string, value float64) { fmt.Fprintf(&b, "%s%s %g %d\n", name, labels, value, at) })
	}
	seconds := func(u *nodev1.Usage) float64 { return float64(u.GetCpuNanoseconds()) / 1e9 }
	containers := func(value func(*nodev1.Usage) float64) func(func(string, float64)) {
		return func(sample func(string, float64)) {
			for _, p := range usage.GetPods() {
				for _, c := range p.GetContainers() {
					sample(fmt.Sprintf("{container=%q,namespace=%q,pod=%q}", c.GetName(), p.GetNamespace(), p.GetName()), value(c.GetUsage()))
				}
			}
		}
	}
	memory := func(u *nodev1.Usage) float64 { return float64(u.GetMemoryBytes()) }
	family("container_cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed by the container in core-seconds", containers(seconds))
	family("container_memory_working_set_bytes", "gauge", "Current working set of the container in bytes", containers(memory))
	family("node_cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed by the node in core-seconds", func(sample func(string, float64)) { sample("", seconds(usage.GetNode())) })
	family("node_memory_working_set_bytes", "gauge", "Current working set of the node in bytes", func(sample func(string, float64)) { sample("", memory(usage.GetNode())) })
	_, err := io.WriteString(w, b.String())
	return err
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
	Volumes    []volumeStats    `json:"volume,omitempty"`
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

// volumeStats is a volume of a claim. What is not known is left out.
type volumeStats struct {
	Time           kmetav1.Time   `json:"time"`
	AvailableBytes *int64         `json:"availableBytes,omitempty"`
	CapacityBytes  *int64         `json:"capacityBytes,omitempty"`
	UsedBytes      *int64         `json:"usedBytes,omitempty"`
	InodesFree     *int64         `json:"inodesFree,omitempty"`
	Inodes         *int64         `json:"inodes,omitempty"`
	InodesUsed     *int64         `json:"inodesUsed,omitempty"`
	Name           string         `json:"name"`
	PVCRef         claimReference `json:"pvcRef"`
	Health         *volumeHealth  `json:"volumeHealthStats,omitempty"`
}

type claimReference struct {
	Name      string `json:"name"`
	Namespace string `json:"namespace"`
}

type volumeHealth struct {
	Abnormal bool `json:"abnormal"`
}

// volumesOf returns how full a pod's volumes are.
func volumesOf(p *nodev1.PodUsage, at kmetav1.Time) []volumeStats {
	var all []volumeStats
	for _, v := range p.GetVolumes() {
		known := func(has bool, value int64) *int64 {
			if !has {
				return nil
			}
			return &value
		}
		s := volumeStats{
			Time: at, Name: v.GetName(), PVCRef: claimReference{v.GetClaim(), p.GetNamespace()}, AvailableBytes: known(v.HasAvailableBytes(), v.GetAvailableBytes()),
			CapacityBytes: known(v.HasCapacityBytes(), v.GetCapacityBytes()), UsedBytes: known(v.HasUsedBytes(), v.GetUsedBytes()), InodesFree: known(v.HasInodesFree(), v.GetInodesFree()),
			Inodes: known(v.HasInodes(), v.GetInodes()), InodesUsed: known(v.HasInodesUsed(), v.GetInodesUsed()),
		}
		if v.HasAbnormal() {
			s.Health = &volumeHealth{v.GetAbnormal()}
		}
		all = append(all, s)
	}
	return all
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
		one.Volumes = volumesOf(p, at)
		s.Pods = append(s.Pods, one)
	}
	return s
}
