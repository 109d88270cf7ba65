package disruption

import (
	"fmt"
	"time"

	policyk8s "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metak8s "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/pkg/object"
	"dhow.dev/services/controller-manager/internal/podstate"
)

// evictionTimeout is how long an eviction counts whose pod does not end. Kubernetes: 2 minutes.
const evictionTimeout = 2 * time.Minute

// sum is a budget counted.
type sum struct {
	status policyk8s.PodDisruptionBudgetStatus
	// unmanaged says that pods without controller were left out of what there should be.
	unmanaged bool
	// notDeleted are the pods that were evicted and are there all the same.
	notDeleted []*corev1.Pod
	// again is when the next eviction stops to count, 0 when there is none.
	again time.Duration
}

// count counts a budget over the pods that it selects.
func count(budget *policyk8s.PodDisruptionBudget, pods []*corev1.Pod, scale scaler, now time.Time) (s sum, err error) {
	expected, desired, unmanaged, err := wanted(budget, pods, scale)
	if err != nil {
		return s, err
	}
	s.unmanaged = unmanaged
	disrupted := map[string]metak8s.Time{}
	healthy := int32(0)
	for _, p := range pods {
		if object.IsDeleted(p) {
			continue
		}
		name := p.GetMetadata().GetName()
		if since, ok := budget.Status.DisruptedPods[name]; ok {
			if left := evictionTimeout - now.Sub(since.Time); left > 0 {
				disrupted[name] = since
				if s.again == 0 || left < s.again {
					s.again = left
				}
				continue
			}
			s.notDeleted = append(s.notDeleted, p)
		}
		if podstate.IsReady(p) {
			healthy++
		}
	}
	s.status = policyk8s.PodDisruptionBudgetStatus{
		ObservedGeneration: budget.Generation, ExpectedPods: expected, DesiredHealthy: desired, CurrentHealthy: healthy,
		DisruptionsAllowed: max(0, healthy-desired), Conditions: budget.Status.DeepCopy().Conditions,
	}
	if len(disrupted) > 0 {
		s.status.DisruptedPods = disrupted
	}
	if expected <= 0 {
		s.status.DisruptionsAllowed = 0
	}
	if s.status.DisruptionsAllowed > 0 {
		set(&s.status, metak8s.ConditionTrue, policyk8s.SufficientPodsReason, "", now)
	} else {
		set(&s.status, metak8s.ConditionFalse, policyk8s.InsufficientPodsReason, "", now)
	}
	return s, nil
}

// failed is the status of a budget that cannot be counted.
func failed(budget *policyk8s.PodDisruptionBudget, cause error, now time.Time) policyk8s.PodDisruptionBudgetStatus {
	status := *budget.Status.DeepCopy()
	status.DisruptionsAllowed = 0
	set(&status, metak8s.ConditionFalse, policyk8s.SyncFailedReason, cause.Error(), now)
	return status
}

func set(status *policyk8s.PodDisruptionBudgetStatus, value metak8s.ConditionStatus, reason, message string, now time.Time) {
	meta.SetStatusCondition(&status.Conditions, metak8s.Condition{
		Type: policyk8s.DisruptionAllowedCondition, Status: value, Reason: reason, Message: message,
		ObservedGeneration: status.ObservedGeneration, LastTransitionTime: metak8s.NewTime(now).Rfc3339Copy(),
	})
}

// wanted returns how many pods there should be, and how many of them healthy.
func wanted(budget *policyk8s.PodDisruptionBudget, pods []*corev1.Pod, scale scaler) (expected, desired int32, unmanaged bool, err error) {
	least, most := budget.Spec.MinAvailable, budget.Spec.MaxUnavailable
	switch {
	case most != nil:
		if expected, unmanaged, err = expectedScale(pods, scale); err != nil {
			return 0, 0, false, err
		}
		n, err := intstr.GetScaledValueFromIntOrPercent(most, int(expected), true)
		if err != nil {
			return 0, 0, false, fmt.Errorf("maxUnavailable: %w", err)
		}
		return expected, max(0, expected-int32(n)), unmanaged, nil
	case least != nil && least.Type == intstr.Int:
		return int32(len(pods)), least.IntVal, false, nil
	case least != nil:
		if expected, unmanaged, err = expectedScale(pods, scale); err != nil {
			return 0, 0, false, err
		}
		n, err := intstr.GetScaledValueFromIntOrPercent(least, int(expected), true)
		if err != nil {
			return 0, 0, false, fmt.Errorf("minAvailable: %w", err)
		}
		return expected, int32(n), unmanaged, nil
	}
	return 0, 0, false, nil
}

// expectedScale sums what the controllers of the pods want, each once. Pods that nobody controls do not count.
func expectedScale(pods []*corev1.Pod, scale scaler) (expected int32, unmanaged bool, err error) {
	known, counted := map[string]bool{}, map[string]bool{}
	for _, p := range pods {
		controller := object.ControllerOf(p)
		if controller == nil {
			unmanaged = true
			continue
		}
		if known[controller.GetUid()] {
			continue
		}
		known[controller.GetUid()] = true
		uid, replicas, err := scale(p.GetMetadata().GetNamespace(), controller)
		if err != nil {
			return 0, false, err
		}
		if uid == "" {
			return 0, false, fmt.Errorf("found no controllers for pod %q", p.GetMetadata().GetName())
		}
		if !counted[uid] {
			counted[uid] = true
			expected += replicas
		}
	}
	return expected, unmanaged, nil
}
