package demand

import (
	"slices"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
)

// Held is what a pod's containers hold on their node beside what their spec requests: of what is asked for, given and in use the largest counts, so that neither end of a resize finds
// that another has taken its room.
type Held struct {
	statuses map[string]*corev1.ContainerStatus
	spec     *corev1.PodSpec
	status   *corev1.PodStatus
	// infeasible says that the node will never give what the spec asks for.
	infeasible bool
}

// HeldBy looks at a pod's status.
func HeldBy(pod *corev1.Pod) Held {
	h := Held{spec: pod.GetSpec(), status: pod.GetStatus()}
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

// Of returns what a container requests: what its spec says where nothing else is known, or is the same.
func (h *Held) Of(c *corev1.Container) map[string]*metav1.Quantity {
	s := h.statuses[c.GetName()]
	if s == nil {
		return c.GetResources().GetRequests()
	}
	return h.largest(c.GetResources().GetRequests(), s.GetAllocatedResources(), s.GetResources().GetRequests())
}

// Whole returns what the pod requests at its own level.
func (h *Held) Whole() map[string]*metav1.Quantity {
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

func (h *Held) largest(spec, allocated, used map[string]*metav1.Quantity) map[string]*metav1.Quantity {
	same := !h.infeasible || len(allocated)+len(used) == 0
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
			if known, ok := out[name]; !ok || Of(name, q) > Of(name, known) {
				out[name] = q
			}
		}
	}
	if !h.infeasible {
		take(spec)
	}
	take(allocated)
	take(used)
	return out
}
