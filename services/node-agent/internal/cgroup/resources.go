// Package cgroup turns resource requests and limits into cgroups: the sums and conversions that Kubernetes defines, and the folders of the pods
// and QoS classes, on cgroup v1 and v2.
package cgroup

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/demand"
)

// The kernel's bounds and Kubernetes' period.
const (
	minShares = 2
	maxShares = 262144
	minQuota  = 1000
	// Period of the CPU quota, in microseconds.
	Period = 100000
)

// QoS is a pod's quality-of-service class.
type QoS string

// The classes.
const (
	Guaranteed QoS = "Guaranteed"
	Burstable  QoS = "Burstable"
	BestEffort QoS = "BestEffort"
)

// Amount is one container's or pod's CPU and memory. Zero limits are no limits.
type Amount struct {
	CPURequest, CPULimit       int64 // millicores
	MemoryRequest, MemoryLimit int64 // bytes
	StorageRequest             int64 // bytes
}

// value reads a quantity, zero when there is none.
func value(list map[string]*metav1.Quantity, name string) int64 {
	if list[name] == nil {
		return 0
	}
	return demand.Of(name, list[name])
}

// Of returns a container's amounts. A limit without a request is also the request.
func Of(r *corev1.ResourceRequirements) Amount {
	a := Amount{
		CPURequest: value(r.GetRequests(), "cpu"), CPULimit: value(r.GetLimits(), "cpu"),
		MemoryRequest: value(r.GetRequests(), "memory"), MemoryLimit: value(r.GetLimits(), "memory"),
		StorageRequest: value(r.GetRequests(), "ephemeral-storage"),
	}
	if _, set := r.GetRequests()["cpu"]; !set {
		a.CPURequest = a.CPULimit
	}
	if _, set := r.GetRequests()["memory"]; !set {
		a.MemoryRequest = a.MemoryLimit
	}
	return a
}

// OfContainer returns what a container's cgroup is made of. Where the container has no limit, the pod's own is its limit too, for programs that
// fit themselves to the limit that they find.
func OfContainer(pod *corev1.Pod, c *corev1.Container) Amount {
	a, limits := Of(c.GetResources()), pod.GetSpec().GetResources().GetLimits()
	if a.CPULimit == 0 {
		a.CPULimit = value(limits, "cpu")
	}
	if a.MemoryLimit == 0 {
		a.MemoryLimit = value(limits, "memory")
	}
	if _, set := c.GetResources().GetRequests()["cpu"]; !set {
		a.CPURequest = a.CPULimit
	}
	return a
}

// OfPod returns what a pod needs at its peak, and its limits: one is a limit only if every container has it, or the pod as a whole.
func OfPod(pod *corev1.Pod) Amount {
	requests, limits := Requests(pod), demand.Limits(pod)
	a := Amount{
		CPURequest: requests["cpu"], CPULimit: limits["cpu"], MemoryRequest: requests["memory"], MemoryLimit: limits["memory"],
		StorageRequest: requests["ephemeral-storage"],
	}
	whole := pod.GetSpec().GetResources().GetLimits()
	for _, containers := range [][]*corev1.Container{pod.GetSpec().GetInitContainers(), pod.GetSpec().GetContainers()} {
		for _, c := range containers {
			own := c.GetResources().GetLimits()
			if value(own, "cpu") == 0 && value(whole, "cpu") == 0 {
				a.CPULimit = 0
			}
			if value(own, "memory") == 0 && value(whole, "memory") == 0 {
				a.MemoryLimit = 0
			}
		}
	}
	return a
}

// Requests returns all that a pod asks the node for. Limits without requests count as such: the node's own pods have not come through an API server, which would have written them down.
func Requests(pod *corev1.Pod) demand.Amounts {
	return demand.Requests(pod, demand.Options{OwnLimits: true})
}

// hugePrefix begins the names of resources that are huge pages of a size.
const hugePrefix = "hugepages-"

// HugePages returns a container's limits of huge pages in bytes, by the kernel's name of their size, such as 2MB. Without one, the pod's own counts.
func HugePages(pod *corev1.Pod, c *corev1.Container) map[string]int64 {
	limits := map[string]int64{}
	for _, list := range []map[string]*metav1.Quantity{pod.GetSpec().GetResources().GetLimits(), c.GetResources().GetLimits()} {
		for name := range list {
			if size, ok := PageSize(name); ok {
				limits[size] = value(list, name)
			}
		}
	}
	return limits
}

// PageSize returns the kernel's name of the size of huge pages that a resource is about.
func PageSize(resourceName string) (string, bool) {
	text, ok := strings.CutPrefix(resourceName, hugePrefix)
	if !ok {
		return "", false
	}
	q, err := resource.ParseQuantity(text)
	if err != nil || q.Value() <= 0 {
		return "", false
	}
	// The kernel counts in 1024s and writes KB, MB and GB.
	switch bytes := q.Value(); {
	case bytes%(1<<30) == 0:
		return fmt.Sprintf("%dGB", bytes>>30), true
	case bytes%(1<<20) == 0:
		return fmt.Sprintf("%dMB", bytes>>20), true
	default:
		return fmt.Sprintf("%dKB", bytes>>10), true
	}
}

// Class returns a pod's QoS class as Kubernetes defines it.
func Class(pod *corev1.Pod) QoS {
	any, all := false, true
	check := func(r *corev1.ResourceRequirements) {
		for _, name := range []string{"cpu", "memory"} {
			limit, request := value(r.GetLimits(), name), value(r.GetRequests(), name)
			if limit > 0 || request > 0 {
				any = true
			}
			if _, set := r.GetRequests()[name]; !set {
				request = limit
			}
			if limit == 0 || request != limit {
				all = false
			}
		}
	}
	if r := pod.GetSpec().GetResources(); r != nil && (len(r.GetLimits()) > 0 || len(r.GetRequests()) > 0) {
		check(r)
	} else {
		for _, c := range pod.GetSpec().GetInitContainers() {
			check(c.GetResources())
		}
		for _, c := range pod.GetSpec().GetContainers() {
			check(c.GetResources())
		}
	}
	switch {
	case !any:
		return BestEffort
	case all:
		return Guaranteed
	}
	return Burstable
}

// ofContainers is what a pod's containers request together, whatever the pod asks for as a whole.
func ofContainers(pod *corev1.Pod) demand.Amounts {
	return demand.AtOnce(pod.GetSpec().GetContainers(), pod.GetSpec().GetInitContainers(), demand.IsSidecar, func(c *corev1.Container) demand.Amounts {
		return demand.Amounts{"memory": Of(c.GetResources()).MemoryRequest}
	})
}

// Shares converts millicores to cpu.shares (cgroup v1; runtimes convert further for v2).
func Shares(milli int64) int64 {
	return min(max(milli*1024/1000, minShares), maxShares)
}

// Quota converts millicores to a CPU quota in microseconds per Period; 0 means none.
func Quota(milli int64) int64 {
	if milli == 0 {
		return 0
	}
	return max(milli*Period/1000, minQuota)
}

// Weight converts cpu.shares to cpu.weight of cgroup v2, by the curve that current OCI runtimes use (2 → 1, 1024 → 100, 262144 → 10000).
func Weight(shares int64) int64 {
	if shares <= minShares {
		return 1
	}
	if shares >= maxShares {
		return 10000
	}
	l := math.Log2(float64(shares))
	return int64(math.Ceil(math.Pow(10, (l*l+125*l)/612-7.0/34)))
}

// OOMScoreAdj returns how readily the kernel kills a container of the pod when the node's memory (in bytes) runs out.
func OOMScoreAdj(pod *corev1.Pod, c *corev1.Container, nodeMemory int64) int64 {
	const critical = 2000000000 // priority of system-cluster-critical
	if pod.GetSpec().GetPriority() >= critical {
		return -997
	}
	switch Class(pod) {
	case Guaranteed:
		return -997
	case BestEffort:
		return 1000
	}
	if nodeMemory <= 0 {
		return 999
	}
	// What the pod requests and none of its containers does is shared out.
	spare := int64(0)
	if whole := Of(pod.GetSpec().GetResources()).MemoryRequest; whole > 0 {
		spare = (whole - ofContainers(pod)["memory"]) / int64(len(pod.GetSpec().GetContainers())+len(pod.GetSpec().GetInitContainers()))
	}
	request := Of(c.GetResources()).MemoryRequest
	if c.GetRestartPolicy() == "Always" && slices.ContainsFunc(pod.GetSpec().GetInitContainers(), func(i *corev1.Container) bool { return i.GetName() == c.GetName() }) {
		// A sidecar is no readier to be killed than the least of those that it serves.
		least := int64(math.MaxInt64)
		for _, served := range pod.GetSpec().GetContainers() {
			least = min(least, Of(served.GetResources()).MemoryRequest)
		}
		request = max(request, least)
	}
	adj := 1000 - 1000*(request+spare)/nodeMemory
	// Never as protected as a guaranteed pod, never as exposed as a best-effort one.
	return min(max(adj, 1000-997), 999)
}

// String renders millicores and bytes as a user would write them.
func (a Amount) String() string {
	return fmt.Sprintf("cpu %dm, memory %d", a.CPURequest, a.MemoryRequest)
}
