package status

import (
	"fmt"
	"strings"

	"google.golang.org/protobuf/proto"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
)

// verdict is a condition without its times.
type verdict struct {
	kind, status, reason, message string
}

// owned says whether the node owns a condition type.
func owned(kind string) bool {
	switch kind {
	case ConditionReadyToStart, ConditionInitialized, ConditionContainersReady, ConditionReady, ConditionResizePending, ConditionResizing, ConditionAllRestarting:
		return true
	}
	return false
}

// conditions sets the node's conditions and keeps those of others as the API server last said.
func (in *Input) conditions(s *corev1.PodStatus) {
	before := map[string]*corev1.PodCondition{}
	for _, c := range in.Pod.GetStatus().GetConditions() {
		before[c.GetType()] = c
	}
	for _, c := range in.Previous.GetConditions() {
		if owned(c.GetType()) || before[c.GetType()] == nil {
			before[c.GetType()] = c
		}
	}
	verdicts := []verdict{in.readyToStart(), in.initialized(s)}
	containers := in.containersReady(s)
	verdicts = append(verdicts, in.ready(containers), containers)
	if in.Pending != nil {
		verdicts = append(verdicts, verdict{kind: ConditionResizePending, status: "True", reason: in.Pending.Reason, message: in.Pending.Message})
	}
	if in.Resizing != nil {
		verdicts = append(verdicts, verdict{kind: ConditionResizing, status: "True", reason: in.Resizing.Reason, message: in.Resizing.Message})
	}
	if mayRestartAll(in.Pod) {
		verdicts = append(verdicts, in.allRestarting(s))
	}
	if before[ConditionScheduled] == nil {
		verdicts = append(verdicts, verdict{kind: ConditionScheduled, status: "True"})
	}
	disrupted := in.End != nil && in.End.Disrupted
	if disrupted {
		verdicts = append(verdicts, verdict{kind: ConditionDisruption, status: "True", reason: "TerminationByKubelet", message: in.End.Message})
	}
	var list []*corev1.PodCondition
	for _, v := range verdicts {
		list = append(list, in.condition(v, before[v.kind]))
	}
	// Others' conditions: the scheduler's, readiness gates, disruption targets.
	for _, c := range in.Pod.GetStatus().GetConditions() {
		if !owned(c.GetType()) && !(disrupted && c.GetType() == ConditionDisruption) {
			list = append(list, c)
		}
	}
	s.SetConditions(list)
}

func (in *Input) condition(v verdict, before *corev1.PodCondition) *corev1.PodCondition {
	c := corev1.PodCondition_builder{Type: proto.String(v.kind), Status: proto.String(v.status)}.Build()
	if g := in.Pod.GetMetadata().GetGeneration(); g > 0 {
		c.SetObservedGeneration(g)
	}
	c.SetLastTransitionTime(Time(in.Now))
	if before.GetStatus() == v.status && before.HasLastTransitionTime() {
		c.SetLastTransitionTime(before.GetLastTransitionTime())
	}
	if v.reason != "" {
		c.SetReason(v.reason)
	}
	if v.message != "" {
		c.SetMessage(v.message)
	}
	return c
}

func (in *Input) readyToStart() verdict {
	sandbox := in.Runtime.CurrentSandbox()
	if sandbox != nil && sandbox.Ready && (in.Pod.GetSpec().GetHostNetwork() || len(sandbox.IPs) > 0) {
		return verdict{kind: ConditionReadyToStart, status: "True"}
	}
	return verdict{kind: ConditionReadyToStart, status: "False"}
}

func (in *Input) initialized(s *corev1.PodStatus) verdict {
	unfinished := InitDone(in.Pod, s.GetInitContainerStatuses())
	for _, c := range s.GetContainerStatuses() {
		if c.GetContainerId() != "" {
			unfinished = nil // what runs now could only start after them
		}
	}
	switch {
	case s.GetPhase() == PhaseSucceeded:
		return verdict{kind: ConditionInitialized, status: "True", reason: "PodCompleted"}
	case len(unfinished) > 0 && isTrue(in.Previous, ConditionInitialized) && mayRestartAll(in.Pod):
		// A pod that is started again in place stays initialized, as in Kubernetes.
	case len(unfinished) > 0:
		return verdict{kind: ConditionInitialized, status: "False", reason: "ContainersNotInitialized",
			message: fmt.Sprintf("containers with incomplete status: [%s]", strings.Join(unfinished, " "))}
	}
	return verdict{kind: ConditionInitialized, status: "True"}
}

func (in *Input) containersReady(s *corev1.PodStatus) verdict {
	v := verdict{kind: ConditionContainersReady, status: "False"}
	switch s.GetPhase() {
	case PhaseSucceeded:
		v.reason = "PodCompleted"
		return v
	case PhaseFailed:
		v.reason = "PodFailed"
		return v
	}
	var unready []string
	for i, c := range in.Pod.GetSpec().GetInitContainers() {
		if IsSidecar(c) && !s.GetInitContainerStatuses()[i].GetReady() {
			unready = append(unready, c.GetName())
		}
	}
	for _, c := range s.GetContainerStatuses() {
		if !c.GetReady() {
			unready = append(unready, c.GetName())
		}
	}
	if len(unready) > 0 {
		v.reason = "ContainersNotReady"
		v.message = fmt.Sprintf("containers with unready status: [%s]", strings.Join(unready, " "))
		return v
	}
	v.status = "True"
	return v
}

// ready adds the readiness gates to the containers' readiness.
func (in *Input) ready(containers verdict) verdict {
	v := containers
	v.kind = ConditionReady
	if v.status != "True" {
		return v
	}
	var missing []string
	for _, gate := range in.Pod.GetSpec().GetReadinessGates() {
		value := ""
		for _, c := range in.Pod.GetStatus().GetConditions() {
			if c.GetType() == gate.GetConditionType() {
				value = c.GetStatus()
			}
		}
		switch value {
		case "True":
		case "":
			missing = append(missing, fmt.Sprintf("corresponding condition of pod readiness gate %q does not exist.", gate.GetConditionType()))
		default:
			missing = append(missing, fmt.Sprintf("the status of pod readiness gate %q is not \"True\", but %s", gate.GetConditionType(), value))
		}
	}
	if len(missing) > 0 {
		return verdict{kind: ConditionReady, status: "False", reason: "ReadinessGatesNotReady", message: strings.Join(missing, ", ")}
	}
	return v
}
