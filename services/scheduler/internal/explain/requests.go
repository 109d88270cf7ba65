package explain

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/demand"
	"dhow.dev/services/scheduler/internal/loop"
)

// lowerRequests lowers what the pod requests to what the node has left.
func (e *podEdit) lowerRequests(c *change, v loop.View, slot int) bool {
	s := v.Snapshot
	if has, allowed := s.Pods(slot); has >= allowed {
		return false
	}
	for _, a := range v.Class.Requests {
		column := int(a.Column)
		free := s.Allocatable(column, slot) - s.Requested(column, slot)
		if a.Value <= free {
			continue
		}
		if !e.lower(c, s.Column(column), max(free, 0)) {
			return false
		}
		e.recreate = true
	}
	return true
}

// claim is one container's request of a resource.
type claim struct {
	field     string
	index     int
	container *corev1.Container
	value     int64
}

// lower brings the pod's request of one resource down to a target: containers that run together first, then init containers, each of which runs beside
// the sidecars before it.
func (e *podEdit) lower(c *change, name string, target int64) bool {
	spec := e.pod.GetSpec()
	target -= demand.Of(name, spec.GetOverhead()[name])
	if target < 0 {
		return false
	}
	total := demand.Of(name, spec.GetResources().GetRequests()[name])
	podLevel := total > target
	var together []claim
	for i, container := range spec.GetContainers() {
		together = append(together, claim{"containers", i, container, demand.Of(name, container.GetResources().GetRequests()[name])})
	}
	for i, container := range spec.GetInitContainers() {
		if container.GetRestartPolicy() == "Always" {
			together = append(together, claim{"initContainers", i, container, demand.Of(name, container.GetResources().GetRequests()[name])})
		}
	}
	var sum int64
	for _, k := range together {
		sum += k.value
	}
	if sum > target {
		slices.SortStableFunc(together, func(a, b claim) int { return cmp.Compare(b.value, a.value) })
		if over := sum - target; together[0].value > over {
			e.set(c, together[0], name, together[0].value-over)
		} else {
			for _, k := range together {
				if k.value > 0 {
					e.set(c, k, name, int64(float64(k.value)/float64(sum)*float64(target)))
				}
			}
		}
	}
	var sidecars int64
	for i, container := range spec.GetInitContainers() {
		value := demand.Of(name, container.GetResources().GetRequests()[name])
		if container.GetRestartPolicy() == "Always" {
			sidecars += value
		} else if value > target-sidecars {
			e.set(c, claim{"initContainers", i, container, value}, name, max(target-sidecars, 0))
		}
	}
	if podLevel {
		q, text := quantity(name, target)
		spec.GetResources().GetRequests()[name] = q
		c.add(costRequest+float64(total-target)/float64(total), "request "+name, fmt.Sprintf("lower the pod's %s request to %s", name, text),
			operation{Op: "replace", Path: path("spec", "resources", "requests", name), Value: text})
	}
	return true
}

// set lowers one container's request.
func (e *podEdit) set(c *change, k claim, name string, value int64) {
	q, text := quantity(name, value)
	before := k.container.GetResources().GetRequests()[name].GetString()
	at := []string{"spec", k.field, strconv.Itoa(k.index), "resources"}
	ops := []operation{{Op: "replace", Path: path(append(at, "requests", name)...), Value: text}}
	setQuantity(k.container.GetResources().GetRequests(), k.container.GetResources().SetRequests, name, q)
	if limits := k.container.GetResources().GetLimits(); exact(name) && limits[name] != nil {
		ops = append(ops, operation{Op: "replace", Path: path(append(at, "limits", name)...), Value: text})
		setQuantity(limits, k.container.GetResources().SetLimits, name, q)
	}
	c.add(costRequest+float64(k.value-value)/float64(k.value), "request "+name,
		fmt.Sprintf("lower the %s request of container %s from %s to %s", name, k.container.GetName(), before, text), ops...)
}

func setQuantity(m map[string]*metav1.Quantity, set func(map[string]*metav1.Quantity), name string, q *metav1.Quantity) {
	m[name] = q
	set(m)
}

// exact says whether a resource's limit must equal its request: all that cannot be overcommitted.
func exact(name string) bool { return name != "cpu" && name != "memory" && name != "ephemeral-storage" }

// quantity writes an amount as people write it, rounded down.
func quantity(name string, value int64) (*metav1.Quantity, string) {
	var q *resource.Quantity
	switch {
	case name == "cpu":
		q = resource.NewMilliQuantity(value, resource.DecimalSI)
	case name == "memory" || name == "ephemeral-storage":
		if value > 1<<20 {
			value &^= 1<<20 - 1
		}
		q = resource.NewQuantity(value, resource.BinarySI)
	case strings.HasPrefix(name, "hugepages-"):
		if size, err := resource.ParseQuantity(strings.TrimPrefix(name, "hugepages-")); err == nil && size.Value() > 0 {
			value -= value % size.Value()
		}
		q = resource.NewQuantity(value, resource.BinarySI)
	default:
		q = resource.NewQuantity(value, resource.DecimalSI)
	}
	out := &metav1.Quantity{}
	out.SetString(q.String())
	return out, q.String()
}
