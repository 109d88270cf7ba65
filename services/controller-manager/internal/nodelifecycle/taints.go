package nodelifecycle

import (
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/services/controller-manager/internal/apitime"
	tainted "dhow.dev/services/controller-manager/internal/taint"
)

// Keys and effects of the taints that this package sets, as Kubernetes names them.
const (
	taintNotReady           = "node.kubernetes.io/not-ready"
	taintUnreachable        = "node.kubernetes.io/unreachable"
	taintUnschedulable      = "node.kubernetes.io/unschedulable"
	taintMemoryPressure     = "node.kubernetes.io/memory-pressure"
	taintDiskPressure       = "node.kubernetes.io/disk-pressure"
	taintPIDPressure        = "node.kubernetes.io/pid-pressure"
	taintNetworkUnavailable = "node.kubernetes.io/network-unavailable"

	noSchedule = "NoSchedule"
	noExecute  = "NoExecute"

	statusTrue    = "True"
	statusFalse   = "False"
	statusUnknown = "Unknown"
)

// pressures are the conditions that keep pods away while they are true.
func pressures() map[string]string {
	return map[string]string{
		"MemoryPressure": taintMemoryPressure, "DiskPressure": taintDiskPressure, "PIDPressure": taintPIDPressure, "NetworkUnavailable": taintNetworkUnavailable,
	}
}

// readiness returns the status of the node's condition Ready; a node that has none is not known to be ready.
func readiness(node *corev1.Node) string {
	for _, c := range node.GetStatus().GetConditions() {
		if c.GetType() == "Ready" {
			return c.GetStatus()
		}
	}
	return ""
}

// unreadySince returns when the node's readiness last changed.
func unreadySince(node *corev1.Node) time.Time {
	for _, c := range node.GetStatus().GetConditions() {
		if c.GetType() == "Ready" {
			return apitime.Go(c.GetLastTransitionTime())
		}
	}
	return time.Time{}
}

// schedulingTaints returns the keys of the NoSchedule taints that the node's state asks for.
func schedulingTaints(node *corev1.Node) []string {
	var keys []string
	switch readiness(node) {
	case statusTrue:
	case statusUnknown:
		keys = append(keys, taintUnreachable)
	default:
		keys = append(keys, taintNotReady)
	}
	byCondition := pressures()
	for _, c := range node.GetStatus().GetConditions() {
		if key := byCondition[c.GetType()]; key != "" && c.GetStatus() == statusTrue {
			keys = append(keys, key)
		}
	}
	if node.GetSpec().GetUnschedulable() {
		keys = append(keys, taintUnschedulable)
	}
	return keys
}

// executionTaint returns the key of the NoExecute taint that the node's state asks for, or "". A node that never said anything has no pods to evict.
func executionTaint(node *corev1.Node) string {
	switch readiness(node) {
	case statusFalse:
		return taintNotReady
	case statusUnknown:
		return taintUnreachable
	}
	return ""
}

// ours says whether a taint is set and removed by this package.
func ours(t *corev1.Taint) bool {
	switch t.GetKey() {
	case taintNotReady, taintUnreachable:
		return t.GetEffect() == noSchedule || t.GetEffect() == noExecute
	case taintUnschedulable, taintMemoryPressure, taintDiskPressure, taintPIDPressure, taintNetworkUnavailable:
		return t.GetEffect() == noSchedule
	}
	return false
}

// executing returns the key of the NoExecute taint of ours that the node has, or "".
func executing(node *corev1.Node) string {
	for _, t := range node.GetSpec().GetTaints() {
		if ours(t) && t.GetEffect() == noExecute {
			return t.GetKey()
		}
	}
	return ""
}

// withTaints returns the node's taints with exactly these of ours, and whether that differs from what it has. Taints that stay keep their time.
func withTaints(node *corev1.Node, scheduling []string, execution string, now time.Time) (taints []*corev1.Taint, changed bool) {
	missing := map[[2]string]bool{}
	var order [][2]string
	want := func(key, effect string) {
		missing[[2]string{key, effect}] = true
		order = append(order, [2]string{key, effect})
	}
	for _, key := range scheduling {
		want(key, noSchedule)
	}
	if execution != "" {
		want(execution, noExecute)
	}
	for _, t := range node.GetSpec().GetTaints() {
		id := [2]string{t.GetKey(), t.GetEffect()}
		if ours(t) && !missing[id] {
			changed = true
			continue
		}
		delete(missing, id)
		taints = append(taints, t)
	}
	for _, id := range order {
		if !missing[id] {
			continue
		}
		delete(missing, id)
		changed = true
		taints = append(taints, corev1.Taint_builder{Key: proto.String(id[0]), Effect: proto.String(id[1]), TimeAdded: apitime.Of(now)}.Build())
	}
	return taints, changed
}

// executionTaints returns the taints that evict.
func executionTaints(node *corev1.Node) []*corev1.Taint {
	return slices.DeleteFunc(slices.Clone(node.GetSpec().GetTaints()), func(t *corev1.Taint) bool { return t.GetEffect() != noExecute })
}

// verdict is what becomes of a pod on a node with NoExecute taints.
type verdict struct {
	// evict says that the pod has to go; at when.
	evict bool
	at    time.Time
}

// judge returns what the taints mean for a pod with these tolerations. A toleration with a time holds for that long since the taint was
// added; of several times the shortest counts.
func judge(taints []*corev1.Taint, tolerations []*corev1.Toleration, now time.Time) verdict {
	var v verdict
	for _, taint := range taints {
		tolerated := false
		for _, toleration := range tolerations {
			if !tainted.Tolerates(toleration, taint) {
				continue
			}
			tolerated = true
			if !toleration.HasTolerationSeconds() {
				continue
			}
			since := apitime.Go(taint.GetTimeAdded())
			if since.IsZero() {
				since = now
			}
			at := since.Add(time.Duration(max(0, toleration.GetTolerationSeconds())) * time.Second)
			if !v.evict || at.Before(v.at) {
				v = verdict{evict: true, at: at}
			}
		}
		if !tolerated {
			return verdict{evict: true, at: now}
		}
	}
	return v
}
