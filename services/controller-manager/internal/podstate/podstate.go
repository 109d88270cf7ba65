// Package podstate answers what controllers ask of a pod's state, in Kubernetes' words.
package podstate

import (
	"time"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/pkg/object"
	"dhow.dev/services/controller-manager/internal/apitime"
)

// Phases of pods.
const (
	Pending   = "Pending"
	Running   = "Running"
	Succeeded = "Succeeded"
	Failed    = "Failed"
	Unknown   = "Unknown"
)

// Condition types and statuses.
const (
	ConditionReady            = "Ready"
	ConditionDisruptionTarget = "DisruptionTarget"

	True  = "True"
	False = "False"
)

// IsFinished says that all containers have ended for good.
func IsFinished(p *corev1.Pod) bool {
	phase := p.GetStatus().GetPhase()
	return phase == Succeeded || phase == Failed
}

// IsActive says that the pod counts as a replica: neither finished nor being deleted.
func IsActive(p *corev1.Pod) bool { return !IsFinished(p) && !object.IsDeleted(p) }

// IsTerminating says that the pod is being deleted and has not finished yet.
func IsTerminating(p *corev1.Pod) bool { return object.IsDeleted(p) && !IsFinished(p) }

// Condition returns the condition of a type, or nil.
func Condition(p *corev1.Pod, kind string) *corev1.PodCondition {
	for _, c := range p.GetStatus().GetConditions() {
		if c.GetType() == kind {
			return c
		}
	}
	return nil
}

// IsReady says that the pod takes traffic.
func IsReady(p *corev1.Pod) bool { return Condition(p, ConditionReady).GetStatus() == True }

// ReadySince returns when the pod became ready, or the zero time when it is not.
func ReadySince(p *corev1.Pod) time.Time {
	c := Condition(p, ConditionReady)
	if c.GetStatus() != True {
		return time.Time{}
	}
	return apitime.Go(c.GetLastTransitionTime())
}

// Available says that the pod has been ready for minReadySeconds; if it is ready but not for long enough, it also says after what time it will be.
func Available(p *corev1.Pod, minReadySeconds int32, now time.Time) (available bool, wait time.Duration) {
	if !IsReady(p) {
		return false, 0
	}
	if minReadySeconds <= 0 {
		return true, 0
	}
	since := ReadySince(p)
	if since.IsZero() {
		return false, 0
	}
	if wait = since.Add(time.Duration(minReadySeconds) * time.Second).Sub(now); wait > 0 {
		return false, wait
	}
	return true, 0
}

// SetCondition puts a condition in place of the one of its type and returns whether anything changed. The transition time is kept while the
// status stays the same.
func SetCondition(status *corev1.PodStatus, condition *corev1.PodCondition) bool {
	conditions := status.GetConditions()
	for i, c := range conditions {
		if c.GetType() != condition.GetType() {
			continue
		}
		if c.GetStatus() == condition.GetStatus() {
			if c.GetReason() == condition.GetReason() && c.GetMessage() == condition.GetMessage() {
				return false
			}
			condition.SetLastTransitionTime(c.GetLastTransitionTime())
		}
		conditions[i] = condition
		status.SetConditions(conditions)
		return true
	}
	status.SetConditions(append(conditions, condition))
	return true
}

// Restarts returns the restarts of the ordinary container that restarted most often, and of the restartable init container (sidecar) that did.
func Restarts(p *corev1.Pod) (regular, sidecar int32) {
	for _, s := range p.GetStatus().GetContainerStatuses() {
		regular = max(regular, s.GetRestartCount())
	}
	restartable := map[string]bool{}
	for _, c := range p.GetSpec().GetInitContainers() {
		if c.GetRestartPolicy() == "Always" {
			restartable[c.GetName()] = true
		}
	}
	for _, s := range p.GetStatus().GetInitContainerStatuses() {
		if restartable[s.GetName()] {
			sidecar = max(sidecar, s.GetRestartCount())
		}
	}
	return regular, sidecar
}
