package snapshot

import (
	"fmt"
	"slices"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/pkg/demand"
)

// compileResources follows Kubernetes' PodRequests: while a resize is under way, the largest of what is asked for, given and in use counts.
func (c *Class) compileResources(r Resolver, pod *corev1.Pod) error {
	held := demand.HeldBy(pod)
	requests := demand.Requests(pod, demand.Options{Held: held})
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
	weighed := demand.Requests(pod, demand.Options{Held: held, Unrequested: demand.Amounts{"cpu": unrequestedCPU, "memory": unrequestedMemory}})
	c.Weighed = [2]int64{CPU: weighed["cpu"], Memory: weighed["memory"]}
	c.BestEffort = requests["cpu"] == 0 && requests["memory"] == 0
	return nil
}
