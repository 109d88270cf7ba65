package snapshot

import (
	"fmt"
	"slices"
	"strings"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
)

// compileResources follows Kubernetes' PodRequests: while a resize is under way, the largest of what is asked for, given and in use counts; sidecars run beside everything after them, init containers one at a time, pod-level requests replace
// the containers' sum, overhead comes on top.
func (c *Class) compileResources(r Resolver, pod *corev1.Pod) error {
	requests := podRequests(pod, false)
	for name, value := range requests {
		if value <= 0 {
			continue
		}
		column := r.ResolveColumn(name)
		if column < 0 {
			return fmt.Errorf("resource %s: unknown to this snapshot", name)
		}
		c.Requests = append(c.Requests, Amount{Column: column, Value: value})
	}
	slices.SortFunc(c.Requests, func(a, b Amount) int { return int(a.Column - b.Column) })
	weighed := podRequests(pod, true)
	c.Weighed = [2]int64{CPU: weighed["cpu"], Memory: weighed["memory"]}
	c.BestEffort = requests["cpu"] == 0 && requests["memory"] == 0
	return nil
}

func podRequests(pod *corev1.Pod, weighed bool) map[string]int64 {
	spec, held := pod.GetSpec(), newHoldings(pod)
	total, inits, sidecars := map[string]int64{}, map[string]int64{}, map[string]int64{}
	of := func(container *corev1.Container) map[string]int64 {
		out := map[string]int64{}
		for name, q := range held.of(container) {
			out[name] = AmountOf(name, q)
		}
		if weighed {
			for name, value := range map[string]int64{"cpu": unrequestedCPU, "memory": unrequestedMemory} {
				if _, requested := out[name]; !requested {
					out[name] = value
				}
			}
		}
		return out
	}
	for _, container := range spec.GetContainers() {
		add(total, of(container))
	}
	for _, container := range spec.GetInitContainers() {
		requests := of(container)
		if container.GetRestartPolicy() == "Always" {
			add(total, requests)
			add(sidecars, requests)
			requests = sidecars
		} else {
			add(requests, sidecars)
		}
		for name, value := range requests {
			inits[name] = max(inits[name], value)
		}
	}
	for name, value := range inits {
		total[name] = max(total[name], value)
	}
	for name, q := range held.pod() {
		if name == "cpu" || name == "memory" || strings.HasPrefix(name, "hugepages-") {
			total[name] = AmountOf(name, q)
		}
	}
	for name, q := range spec.GetOverhead() {
		total[name] += AmountOf(name, q)
	}
	return total
}

func add(to, from map[string]int64) {
	for name, value := range from {
		to[name] += value
	}
}

// holdings is what a pod's containers hold on their node beside what their spec requests.
type holdings struct {
	statuses map[string]*corev1.ContainerStatus
	// given is the pod's own, where it has requests at its level.
	spec   *corev1.PodSpec
	status *corev1.PodStatus
	// infeasible says that the node will never give what the spec asks for.
	infeasible bool
}

func newHoldings(pod *corev1.Pod) holdings {
	h := holdings{spec: pod.GetSpec(), status: pod.GetStatus()}
	for _, list := range [][]*corev1.ContainerStatus{h.status.GetContainerStatuses(), h.status.GetInitContainerStatuses()} {
		for _, s := range list {
			if len(s.GetAllocatedResources()) == 0 && len(s.GetResources().GetRequests()) == 0 {
				continue
			}
			if h.statuses == nil {
				h.statuses = map[string]*corev1.ContainerStatus{}
			}
			h.statuses[s.GetName()] = s
		}
	}
	h.infeasible = slices.ContainsFunc(h.status.GetConditions(), func(c *corev1.PodCondition) bool {
		return c.GetType() == "PodResizePending" && c.GetReason() == "Infeasible"
	})
	return h
}

// of returns what a container requests: what its spec says where nothing else is known, or is the same.
func (h *holdings) of(c *corev1.Container) map[string]*metav1.Quantity {
	s := h.statuses[c.GetName()]
	if s == nil {
		return c.GetResources().GetRequests()
	}
	return h.largest(c.GetResources().GetRequests(), s.GetAllocatedResources(), s.GetResources().GetRequests())
}

// pod returns what the pod requests at its own level.
func (h *holdings) pod() map[string]*metav1.Quantity {
	spec := h.spec.GetResources().GetRequests()
	if len(spec) == 0 {
		return nil
	}
	allocated := h.status.GetAllocatedResources()
	if len(h.spec.GetOverhead()) > 0 {
		allocated = nil // the node counts the overhead among them
	}
	return h.largest(spec, allocated, h.status.GetResources().GetRequests())
}

func (h *holdings) largest(spec, allocated, used map[string]*metav1.Quantity) map[string]*metav1.Quantity {
	same := true
	for _, other := range []map[string]*metav1.Quantity{allocated, used} {
		for name, q := range other {
			same = same && spec[name].GetString() == q.GetString()
		}
	}
	if same {
		return spec
	}
	out := map[string]*metav1.Quantity{}
	take := func(from map[string]*metav1.Quantity) {
		for name, q := range from {
			if known, ok := out[name]; !ok || AmountOf(name, q) > AmountOf(name, known) {
				out[name] = q
			}
		}
	}
	if !h.infeasible || len(allocated)+len(used) == 0 {
		take(spec)
	}
	take(allocated)
	take(used)
	return out
}
