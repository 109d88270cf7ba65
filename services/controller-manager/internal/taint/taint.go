// Package taint says which taints of nodes a pod's tolerations cover.
package taint

import corev1 "dhow.dev/gen/go/dhow/core/v1"

// Keys of the taints that Dhow itself sets, as Kubernetes names them.
const (
	NotReady           = "node.kubernetes.io/not-ready"
	Unreachable        = "node.kubernetes.io/unreachable"
	Unschedulable      = "node.kubernetes.io/unschedulable"
	MemoryPressure     = "node.kubernetes.io/memory-pressure"
	DiskPressure       = "node.kubernetes.io/disk-pressure"
	PIDPressure        = "node.kubernetes.io/pid-pressure"
	NetworkUnavailable = "node.kubernetes.io/network-unavailable"
)

// Effects.
const (
	NoExecute  = "NoExecute"
	NoSchedule = "NoSchedule"
)

// Tolerates says whether a toleration covers a taint.
func Tolerates(toleration *corev1.Toleration, taint *corev1.Taint) bool {
	if toleration.GetEffect() != "" && toleration.GetEffect() != taint.GetEffect() {
		return false
	}
	if toleration.GetKey() != "" && toleration.GetKey() != taint.GetKey() {
		return false
	}
	switch toleration.GetOperator() {
	case "", "Equal":
		return toleration.GetKey() != "" && toleration.GetValue() == taint.GetValue()
	case "Exists":
		return true
	}
	return false
}

// Untolerated returns the first taint of one of the effects that no toleration covers, or nil.
func Untolerated(taints []*corev1.Taint, tolerations []*corev1.Toleration, effects ...string) *corev1.Taint {
	for _, t := range taints {
		covered := true
		for _, e := range effects {
			covered = covered && t.GetEffect() != e
		}
		for _, o := range tolerations {
			covered = covered || Tolerates(o, t)
		}
		if !covered {
			return t
		}
	}
	return nil
}
