package table

import (
	"fmt"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func podTable() definition {
	columns := []metav1.TableColumnDefinition{
		name(),
		text("Ready", "The aggregate readiness state of this pod for accepting traffic."),
		text("Status", "The aggregate status of the containers in this pod."),
		text("Restarts", "The number of times the containers in this pod have been restarted and when the last container in this pod has restarted."),
		age(),
		wide(text("IP", doc(corev1.PodStatus{}, "podIP"))),
		wide(text("Node", doc(corev1.PodSpec{}, "nodeName"))),
		wide(text("Nominated Node", doc(corev1.PodStatus{}, "nominatedNodeName"))),
		wide(text("Readiness Gates", doc(corev1.PodSpec{}, "readinessGates"))),
	}
	return define(columns, func(pod *corev1.Pod, now time.Time) []any {
		ready, total := podReadiness(pod)
		ip := pod.Status.PodIP
		if len(pod.Status.PodIPs) > 0 {
			ip = pod.Status.PodIPs[0].IP
		}
		return []any{
			pod.Name, fmt.Sprintf("%d/%d", ready, total), PodStatus(pod), podRestarts(pod, now), Age(pod.CreationTimestamp, now),
			orNone(ip), orNone(pod.Spec.NodeName), orNone(pod.Status.NominatedNodeName), readinessGates(pod),
		}
	})
}

// podReadiness counts the ready ones among the containers, restartable init containers included. While init containers are at work no container counts.
func podReadiness(pod *corev1.Pod) (ready, total int) {
	restartable := restartableInit(pod)
	total = len(pod.Spec.Containers) + len(restartable)
	for _, s := range pod.Status.InitContainerStatuses {
		if initialized(s, restartable) {
			if s.State.Terminated == nil && s.Ready {
				ready++
			}
			continue
		}
		break
	}
	if initializing, _ := initStatus(pod); initializing && !conditionTrue(pod, corev1.PodInitialized) {
		return ready, total
	}
	for _, s := range pod.Status.ContainerStatuses {
		if s.Ready && s.State.Running != nil {
			ready++
		}
	}
	return ready, total
}

// restartableInit names the init containers that run on beside the others. Most pods have none, and no map.
func restartableInit(pod *corev1.Pod) map[string]bool {
	var names map[string]bool
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			if names == nil {
				names = map[string]bool{}
			}
			names[c.Name] = true
		}
	}
	return names
}

// initialized says whether the next init container may follow this one.
func initialized(s corev1.ContainerStatus, restartable map[string]bool) bool {
	return s.State.Terminated != nil && s.State.Terminated.ExitCode == 0 || restartable[s.Name] && valueOr(s.Started, false)
}

// PodStatus is the Status column: the phase, or the most telling reason that there is.
func PodStatus(pod *corev1.Pod) string {
	reason := orElse(pod.Status.Reason, string(pod.Status.Phase))
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Reason == corev1.PodReasonSchedulingGated {
			reason = corev1.PodReasonSchedulingGated
		}
	}
	initializing, initReason := initStatus(pod)
	if initializing {
		reason = initReason
	}
	if !initializing || conditionTrue(pod, corev1.PodInitialized) {
		reason = containersStatus(pod, reason)
	}
	finished := pod.Status.Phase == corev1.PodFailed || pod.Status.Phase == corev1.PodSucceeded
	switch {
	case pod.DeletionTimestamp != nil && pod.Status.Reason == "NodeLost":
		return "Unknown"
	case pod.DeletionTimestamp != nil && !finished:
		return "Terminating"
	}
	return orElse(reason, "Unknown")
}

// containersStatus lets the first container that has something to say speak.
func containersStatus(pod *corev1.Pod, reason string) string {
	running := false
	for i := len(pod.Status.ContainerStatuses) - 1; i >= 0; i-- {
		s := pod.Status.ContainerStatuses[i]
		switch {
		case s.State.Waiting != nil && s.State.Waiting.Reason != "":
			reason = s.State.Waiting.Reason
		case s.State.Terminated != nil:
			reason = ended(s.State.Terminated)
		case s.Ready && s.State.Running != nil:
			running = true
		}
	}
	// One container has ended and another runs: the pod runs.
	if reason == "Completed" && running {
		if conditionTrue(pod, corev1.PodReady) {
			return "Running"
		}
		return "NotReady"
	}
	return reason
}

// ended is why a container has ended.
func ended(t *corev1.ContainerStateTerminated) string {
	switch {
	case t.Reason != "":
		return t.Reason
	case t.Signal != 0:
		return fmt.Sprintf("Signal:%d", t.Signal)
	default:
		return fmt.Sprintf("ExitCode:%d", t.ExitCode)
	}
}

// initStatus says whether init containers are still at work, and what the first one that is does.
func initStatus(pod *corev1.Pod) (bool, string) {
	restartable := restartableInit(pod)
	for i, s := range pod.Status.InitContainerStatuses {
		switch {
		case initialized(s, restartable):
		case s.State.Terminated != nil:
			return true, "Init:" + ended(s.State.Terminated)
		case s.State.Waiting != nil && s.State.Waiting.Reason != "" && s.State.Waiting.Reason != "PodInitializing":
			return true, "Init:" + s.State.Waiting.Reason
		default:
			return true, fmt.Sprintf("Init:%d/%d", i, len(pod.Spec.InitContainers))
		}
	}
	return false, ""
}

func conditionTrue(pod *corev1.Pod, kind corev1.PodConditionType) bool {
	for _, c := range pod.Status.Conditions {
		if c.Type == kind {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// podRestarts is the sum of restarts and how long ago the last one was.
func podRestarts(pod *corev1.Pod, now time.Time) string {
	restarts := 0
	var last metav1.Time
	restartable := restartableInit(pod)
	count := func(s corev1.ContainerStatus) {
		restarts += int(s.RestartCount)
		if t := s.LastTerminationState.Terminated; t != nil && last.Before(&t.FinishedAt) {
			last = t.FinishedAt
		}
	}
	initializing, _ := initStatus(pod)
	initializing = initializing && !conditionTrue(pod, corev1.PodInitialized)
	for _, s := range pod.Status.InitContainerStatuses {
		if initializing || restartable[s.Name] {
			count(s)
		}
	}
	if !initializing {
		for _, s := range pod.Status.ContainerStatuses {
			count(s)
		}
	}
	if restarts > 0 && !last.IsZero() {
		return fmt.Sprintf("%d (%s ago)", restarts, Age(last, now))
	}
	return strconv.Itoa(restarts)
}

func readinessGates(pod *corev1.Pod) string {
	if len(pod.Spec.ReadinessGates) == 0 {
		return "<none>"
	}
	passed := 0
	for _, g := range pod.Spec.ReadinessGates {
		if conditionTrue(pod, g.ConditionType) {
			passed++
		}
	}
	return fmt.Sprintf("%d/%d", passed, len(pod.Spec.ReadinessGates))
}
