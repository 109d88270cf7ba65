// Package demand says what a pod asks of its node in all: its containers and sidecars together, or an init container beside the sidecars before it where that is
// more; what the pod asks for as a whole in place of that sum; and the overhead of its runtime. It is Kubernetes' rule (PodRequests in k8s.io/component-helpers), here once
// for all who count: the scheduler, the node agent's admission and cgroups, quotas and limit ranges.
package demand

import (
	"maps"
	"strings"

	"google.golang.org/protobuf/proto"
	"k8s.io/apimachinery/pkg/api/resource"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
)

// List is a list of amounts by the name of their resource, such as Amounts.
type List[L any, K comparable, V any] interface {
	~map[K]V
	// Add adds what another has, Raise brings each amount up to what another has. Neither changes the other.
	Add(L)
	Raise(L)
}

// AtOnce is the rule for containers of any form: what they need at the moment when they need most. of returns a new list of what a container needs.
func AtOnce[L List[L, K, V], K comparable, V, C any](containers, inits []C, isSidecar func(C) bool, of func(C) L) L {
	total := L{}
	for _, c := range containers {
		total.Add(of(c))
	}
	if len(inits) == 0 {
		return total
	}
	sidecars, peak := L{}, L{}
	for _, c := range inits {
		need := of(c)
		if isSidecar(c) {
			total.Add(need)
			sidecars.Add(need)
			need = sidecars
		} else {
			need.Add(sidecars)
		}
		peak.Raise(need)
	}
	total.Raise(peak)
	return total
}

// CountsWhole says whether pods can ask for a resource as a whole. What they write there of others counts for nothing.
func CountsWhole(name string) bool {
	return name == "cpu" || name == "memory" || strings.HasPrefix(name, "hugepages-")
}

// Amounts are amounts by the name of their resource: of cpu in millicores, of others in their own unit.
type Amounts map[string]int64

// Add adds what another has.
func (a Amounts) Add(other Amounts) {
	for name, value := range other {
		a[name] += value
	}
}

// Raise brings each amount up to what another has.
func (a Amounts) Raise(other Amounts) {
	for name, value := range other {
		if own, has := a[name]; !has || value > own {
			a[name] = value
		}
	}
}

// Of reads a quantity of a resource, rounded up as Kubernetes does. What cannot be read, which the API does not let in, is nothing.
func Of(name string, q *metav1.Quantity) int64 {
	parsed, err := resource.ParseQuantity(q.GetString())
	if err != nil {
		return 0
	}
	if name == "cpu" {
		return parsed.MilliValue()
	}
	return parsed.Value()
}

func amountsOf(list map[string]*metav1.Quantity) Amounts {
	out := make(Amounts, len(list))
	for name, q := range list {
		out[name] = Of(name, q)
	}
	return out
}

// IsSidecar says whether an init container goes on beside the others.
func IsSidecar(c *corev1.Container) bool { return c.GetRestartPolicy() == "Always" }

// Options say what counts.
type Options struct {
	// Held, of the same pod, counts what the node has given to running containers while that is more than what the spec asks for: while a resize is under way. Zero: the spec alone counts.
	Held Held
	// Unrequested is what a container counts as that does not mention a resource.
	Unrequested Amounts
	// OwnLimits takes limits for requests where there are none. The API server does so when a pod is written; pods that have not come through it, such as
	// those of a node's folder, have only the limits.
	OwnLimits bool
}

// Requests returns all that a pod requests.
func Requests(pod *corev1.Pod, o Options) Amounts {
	spec := pod.GetSpec()
	total := AtOnce(spec.GetContainers(), spec.GetInitContainers(), IsSidecar, func(c *corev1.Container) Amounts {
		need := amountsOf(o.Held.Of(c))
		if o.OwnLimits {
			need.fill(c.GetResources().GetLimits())
		}
		for name, value := range o.Unrequested {
			if _, requested := need[name]; !requested {
				need[name] = value
			}
		}
		return need
	})
	whole := spec.GetResources().GetRequests()
	if o.Held.spec != nil {
		whole = o.Held.Whole()
	}
	for name, q := range whole {
		if CountsWhole(name) {
			total[name] = Of(name, q)
		}
	}
	if o.OwnLimits {
		for name, q := range spec.GetResources().GetLimits() {
			if _, requested := whole[name]; CountsWhole(name) && !requested {
				total[name] = Of(name, q)
			}
		}
	}
	total.Add(amountsOf(spec.GetOverhead()))
	return total
}

// fill takes from limits what is not requested.
func (a Amounts) fill(limits map[string]*metav1.Quantity) {
	for name, q := range limits {
		if _, requested := a[name]; !requested {
			a[name] = Of(name, q)
		}
	}
}

// Limits returns the sums of the limits that a pod's containers have, by the same rule. Overhead counts where there is a limit.
func Limits(pod *corev1.Pod) Amounts {
	spec := pod.GetSpec()
	total := AtOnce(spec.GetContainers(), spec.GetInitContainers(), IsSidecar, func(c *corev1.Container) Amounts { return amountsOf(c.GetResources().GetLimits()) })
	for name, q := range spec.GetResources().GetLimits() {
		if CountsWhole(name) {
			total[name] = Of(name, q)
		}
	}
	for name, q := range spec.GetOverhead() {
		if total[name] > 0 {
			total[name] += Of(name, q)
		}
	}
	return total
}

// Quantities writes all that a pod requests as users do: in the form in which it is first mentioned.
func Quantities(pod *corev1.Pod) map[string]*metav1.Quantity {
	total := Requests(pod, Options{})
	if len(total) == 0 {
		return nil
	}
	spec := pod.GetSpec()
	lists := []map[string]*metav1.Quantity{spec.GetResources().GetRequests()}
	for _, containers := range [][]*corev1.Container{spec.GetContainers(), spec.GetInitContainers()} {
		for _, c := range containers {
			lists = append(lists, c.GetResources().GetRequests())
		}
	}
	lists = append(lists, spec.GetOverhead())
	out := map[string]*metav1.Quantity{}
	for _, list := range lists {
		for name := range maps.Keys(list) {
			if _, done := out[name]; done {
				continue
			}
			if value, counts := total[name]; counts {
				out[name] = quantity(name, value, list[name])
			}
		}
	}
	return out
}

// quantity writes an amount in the form of another quantity, which it is itself when the amount is the same.
func quantity(name string, value int64, like *metav1.Quantity) *metav1.Quantity {
	if Of(name, like) == value {
		return like
	}
	format := resource.DecimalSI
	if parsed, err := resource.ParseQuantity(like.GetString()); err == nil {
		format = parsed.Format
	}
	q := resource.NewQuantity(value, format)
	if name == "cpu" {
		q = resource.NewMilliQuantity(value, format)
	}
	return metav1.Quantity_builder{String: proto.String(q.String())}.Build()
}
