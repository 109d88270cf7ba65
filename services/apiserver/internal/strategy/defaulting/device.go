package defaulting

import (
	resourcev1 "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// ResourceClaim completes a claim's requests.
func ResourceClaim(c *resourcev1.ResourceClaim) { deviceClaim(&c.Spec.Devices) }

// ResourceClaimTemplate completes the requests of the claims that are made of it.
func ResourceClaimTemplate(t *resourcev1.ResourceClaimTemplate) { deviceClaim(&t.Spec.Spec.Devices) }

func deviceClaim(c *resourcev1.DeviceClaim) {
	for i := range c.Requests {
		if exactly := c.Requests[i].Exactly; exactly != nil {
			deviceCount(&exactly.AllocationMode, &exactly.Count)
			deviceTolerations(exactly.Tolerations)
		}
		for j := range c.Requests[i].FirstAvailable {
			sub := &c.Requests[i].FirstAvailable[j]
			deviceCount(&sub.AllocationMode, &sub.Count)
			deviceTolerations(sub.Tolerations)
		}
	}
}

func deviceCount(mode *resourcev1.DeviceAllocationMode, count *int64) {
	orDefault(mode, resourcev1.DeviceAllocationModeExactCount)
	if *mode == resourcev1.DeviceAllocationModeExactCount {
		orDefault(count, 1)
	}
}

func deviceTolerations(list []resourcev1.DeviceToleration) {
	for i := range list {
		orDefault(&list[i].Operator, resourcev1.DeviceTolerationOpEqual)
	}
}

// ResourceSlice notes since when devices have their taints.
func ResourceSlice(s *resourcev1.ResourceSlice) {
	for i := range s.Spec.Devices {
		for j := range s.Spec.Devices[i].Taints {
			orPointer(&s.Spec.Devices[i].Taints[j].TimeAdded, metav1.Now().Rfc3339Copy())
		}
	}
}
