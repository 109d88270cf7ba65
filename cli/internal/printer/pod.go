package printer

import (
	"fmt"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"dhow.dev/cli/internal/structs"
)

func podTable() table {
	return table{
		columns: []Column{{"READY", false}, {"STATUS", false}, {"RESTARTS", false}, {"IP", true}, {"NODE", true}, {"NOMINATED NODE", true}, {"READINESS GATES", true}},
		cells: func(o structs.Object, now time.Time) []string {
			pod := o.(*corev1.Pod)
			ready, total := podReadiness(pod)
			ip := pod.Status.PodIP
			if len(pod.Status.PodIPs) > 0 {
				ip = pod.Status.PodIPs[0].IP
			}
			return []string{
				fmt.Sprintf("%d/%d", ready, total), PodStatus(pod), podRestarts(pod, now),
				orNone(ip), orNone(pod.Spec.NodeName), orNone(pod.Status.NominatedNodeName), readinessGates(pod),
			}
		},
	}
}

// podReadiness counts the ready ones among the containers, restartable init containers included.
func podReadiness(pod *corev1.Pod) (ready, total int) {
	total = len(pod.Spec.Containers)
	restartable := restartableInit(pod)
	total += len(restartable)
	for _, s := range pod.Status.InitContainerStatuses {
		if restartable[s.Name] && s.Started != nil && *s.Started && s.Ready {
			ready++
		}
	}
	for _, s := range pod.Status.ContainerStatuses {
		if s.Ready && s.State.Running != nil {
			ready++
		}
	}
	return ready, total
}

func restartableInit(pod *corev1.Pod) map[string]bool {
	names := map[string]bool{}
	for _, c := range pod.Spec.InitContainers {
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			names[c.Name] = true
		}
	}
	return names
}

// PodStatus is the STATUS column: the phase, or the most telling reason that there is, as kubectl shows it.
func PodStatus(pod *corev1.Pod) string {
	reason := string(pod.Status.Phase)
	if pod.Status.Reason != "" {
		reason = pod.Status.Reason
	}
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
		hasRunning := false
		for i := len(pod.Status.ContainerStatuses) - 1; i >= 0; i-- {
			s := pod.Status.ContainerStatuses[i]
			switch {
			case s.State.Waiting != nil && s.State.Waiting.Reason != "":
				reason = s.State.Waiting.Reason
			case s.State.Terminated != nil && s.State.Terminated.Reason != "":
				reason = s.State.Terminated.Reason
			case s.State.Terminated != nil && s.State.Terminated.Signal != 0:
				reason = fmt.Sprintf("Signal:%d", s.State.Terminated.Signal)
			case s.State.Terminated != nil:
				reason = fmt.Sprintf("ExitCode:%d", s.State.Terminated.ExitCode)
			case s.Ready && s.State.Running != nil:
				hasRunning = true
			}
		}
		// One container has ended and another runs: the pod runs.
		if reason == "Completed" && hasRunning {
			if conditionTrue(pod, corev1.PodReady) {
				reason = "Running"
			} else {
				reason = "NotReady"
			}
		}
	}
	finished := pod.Status.Phase == corev1.PodFailed || pod.Status.Phase == corev1.PodSucceeded
	switch {
	case pod.DeletionTimestamp != nil && pod.Status.Reason == "NodeLost":
		return "Unknown"
	case pod.DeletionTimestamp != nil && !finished:
		return "Terminating"
	case reason == "":
		return "Unknown"
	}
	return reason
}

// initStatus says whether init containers are still at work, and what the first one that is does.
func initStatus(pod *corev1.Pod) (bool, string) {
	restartable := restartableInit(pod)
	for i, s := range pod.Status.InitContainerStatuses {
		switch {
		case s.State.Terminated != nil && s.State.Terminated.ExitCode == 0:
		case restartable[s.Name] && s.Started != nil && *s.Started:
		case s.State.Terminated != nil && s.State.Terminated.Reason != "":
			return true, "Init:" + s.State.Terminated.Reason
		case s.State.Terminated != nil && s.State.Terminated.Signal != 0:
			return true, fmt.Sprintf("Init:Signal:%d", s.State.Terminated.Signal)
		case s.State.Terminated != nil:
			return true, fmt.Sprintf("Init:ExitCode:%d", s.State.Terminated.ExitCode)
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
