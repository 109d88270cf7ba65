package explain

import (
	"google.golang.org/protobuf/proto"
	kcorev1 "k8s.io/api/core/v1"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/services/scheduler/internal/affinity"
	"dhow.dev/services/scheduler/internal/loop"
)

// wish is what a term that must hold no longer is worth, the most that a preference can be.
const wish = 100

// softenAffinity makes preferences of the terms about other pods that the node does not meet. Against the terms of the pods that are there the pod can do
// nothing.
func (e *podEdit) softenAffinity(c *change, v loop.View, slot int) bool {
	notNear, notFar, unwelcome := affinity.New(v.Snapshot, v.Class).Verdicts(slot)
	if unwelcome {
		return false
	}
	own := e.pod.GetSpec().GetAffinity()
	if notNear {
		near := own.GetPodAffinity()
		wishes, ops, ok := soften("/spec/affinity/podAffinity", near.GetRequiredDuringSchedulingIgnoredDuringExecution(), near.GetPreferredDuringSchedulingIgnoredDuringExecution())
		if !ok {
			return false
		}
		near.SetRequiredDuringSchedulingIgnoredDuringExecution(nil)
		near.SetPreferredDuringSchedulingIgnoredDuringExecution(wishes)
		c.add(costPodAffinity, "near", "make the required pod affinity a preference", ops...)
	}
	if notFar {
		far := own.GetPodAntiAffinity()
		wishes, ops, ok := soften("/spec/affinity/podAntiAffinity", far.GetRequiredDuringSchedulingIgnoredDuringExecution(), far.GetPreferredDuringSchedulingIgnoredDuringExecution())
		if !ok {
			return false
		}
		far.SetRequiredDuringSchedulingIgnoredDuringExecution(nil)
		far.SetPreferredDuringSchedulingIgnoredDuringExecution(wishes)
		c.add(costPodAffinity, "far", "make the required pod anti-affinity a preference", ops...)
	}
	e.recreate = true
	return true
}

// soften returns the preferences that there are with the terms as further ones, and the operations that make them so.
func soften(at string, terms []*corev1.PodAffinityTerm, wishes []*corev1.WeightedPodAffinityTerm) ([]*corev1.WeightedPodAffinityTerm, []operation, bool) {
	const preferred = "/preferredDuringSchedulingIgnoredDuringExecution"
	ops := []operation{{Op: "remove", Path: at + "/requiredDuringSchedulingIgnoredDuringExecution"}}
	if len(wishes) == 0 {
		ops = append(ops, operation{Op: "add", Path: at + preferred, Value: []any{}})
	}
	for _, t := range terms {
		encoded, err := proto.Marshal(t)
		if err != nil {
			return nil, nil, false
		}
		value := kcorev1.WeightedPodAffinityTerm{Weight: wish}
		if err := value.PodAffinityTerm.Unmarshal(encoded); err != nil {
			return nil, nil, false
		}
		ops = append(ops, operation{Op: "add", Path: at + preferred + "/-", Value: value})
		wishes = append(wishes, corev1.WeightedPodAffinityTerm_builder{Weight: proto.Int32(wish), PodAffinityTerm: t}.Build())
	}
	return wishes, ops, true
}
