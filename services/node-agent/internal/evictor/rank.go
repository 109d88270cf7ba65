package evictor

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/services/node-agent/internal/cgroup"
)

// Use is what a pod uses: memory and disk in bytes, inodes, processes.
type Use struct {
	Memory, Disk, Inodes, Processes int64
	// Containers is each container's part of what the signal is about, for the message.
	Containers map[string]int64
}

// of returns what counts for a signal.
func (u Use) of(signal Signal) int64 {
	switch signal {
	case Memory:
		return u.Memory
	case NodeInodes, ImageInodes:
		return u.Inodes
	case PIDs:
		return u.Processes
	}
	return u.Disk
}

// promised is what a pod may count on of what a signal is about; nothing is promised of inodes and processes.
func promised(signal Signal, p *corev1.Pod) int64 {
	switch signal {
	case Memory:
		return cgroup.OfPod(p).MemoryRequest
	case NodeDisk, ImageDisk:
		return cgroup.OfPod(p).StorageRequest
	}
	return 0
}

// Rank orders pods as Kubernetes evicts them: who uses more than promised first, among these the lowest priority first, and then who is furthest over.
func Rank(signal Signal, pods []*corev1.Pod, uses map[string]Use) []*corev1.Pod {
	over := func(p *corev1.Pod) int64 {
		return uses[p.GetMetadata().GetUid()].of(signal) - promised(signal, p)
	}
	first := func(p *corev1.Pod) int {
		if signal == PIDs || over(p) > 0 {
			return 0
		}
		return 1
	}
	ranked := slices.Clone(pods)
	slices.SortStableFunc(ranked, func(a, b *corev1.Pod) int {
		return cmp.Or(cmp.Compare(first(a), first(b)), cmp.Compare(a.GetSpec().GetPriority(), b.GetSpec().GetPriority()), cmp.Compare(over(b), over(a)))
	})
	return ranked
}

// resourceOf names what a signal is about, as messages do.
func resourceOf(signal Signal) string {
	switch signal {
	case Memory:
		return "memory"
	case NodeInodes, ImageInodes:
		return "inodes"
	case PIDs:
		return "pids"
	}
	return "ephemeral-storage"
}

func format(signal Signal, n int64) string {
	kind := resource.BinarySI
	if signal == NodeInodes || signal == ImageInodes || signal == PIDs {
		kind = resource.DecimalSI
	}
	return resource.NewQuantity(n, kind).String()
}

// message tells users why a pod had to go, in Kubernetes' words.
func message(t Threshold, o Observation, p *corev1.Pod, use Use) string {
	var b strings.Builder
	fmt.Fprintf(&b, "The node was low on resource: %s. Threshold quantity: %s, available: %s. ", resourceOf(t.Signal), format(t.Signal, t.limit(o.Capacity)), format(t.Signal, o.Available))
	if t.Signal != Memory {
		return b.String()
	}
	for _, c := range p.GetSpec().GetContainers() {
		used, request := use.Containers[c.GetName()], cgroup.Of(c.GetResources()).MemoryRequest
		if used > request {
			fmt.Fprintf(&b, "Container %s was using %s, request is %s, has larger consumption of memory. ", c.GetName(), format(Memory, used), format(Memory, request))
		}
	}
	return b.String()
}
