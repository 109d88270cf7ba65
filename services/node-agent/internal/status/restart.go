package status

import (
	"slices"
	"time"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/services/node-agent/internal/cri"
)

// actionRestartAll is what a rule asks for that restarts the whole pod in place, not its container alone.
const actionRestartAll = "RestartAllContainers"

// restartingAllMessage is Kubernetes' text.
const restartingAllMessage = "The container is removed because RestartAllContainers in place"

// action returns what the first of a container's rules that matches an exit code asks for; empty: none matches.
func action(c *corev1.Container, exitCode int32) string {
	for _, rule := range c.GetRestartPolicyRules() {
		listed := slices.Contains(rule.GetExitCodes().GetValues(), exitCode)
		if op := rule.GetExitCodes().GetOperator(); op == "In" && listed || op == "NotIn" && !listed {
			return rule.GetAction()
		}
	}
	return ""
}

// Restarts says whether a container that ended with an exit code is started again: by its own rules, else its own policy, else the pod's. An init
// container that succeeded is asked about by nobody.
func Restarts(pod *corev1.Pod, c *corev1.Container, exitCode int32) bool {
	if action(c, exitCode) != "" {
		return true // every action restarts at least the container
	}
	policy := pod.GetSpec().GetRestartPolicy()
	if c.HasRestartPolicy() {
		policy = c.GetRestartPolicy()
	}
	return policy != "Never" && (policy != "OnFailure" || exitCode != 0)
}

// RestartsAll says whether the end of a container's run restarts all containers of its pod.
func RestartsAll(c *corev1.Container, r *cri.Container) bool {
	return r != nil && r.State == cri.StateExited && action(c, r.ExitCode) == actionRestartAll
}

// mayRestartAll says whether the end of any container can restart all of them.
func mayRestartAll(pod *corev1.Pod) bool {
	asks := func(c *corev1.Container) bool {
		return slices.ContainsFunc(c.GetRestartPolicyRules(), func(r *corev1.ContainerRestartRule) bool { return r.GetAction() == actionRestartAll })
	}
	return slices.ContainsFunc(pod.GetSpec().GetInitContainers(), asks) || slices.ContainsFunc(pod.GetSpec().GetContainers(), asks)
}

// restartAllSince returns when the first container ended whose end restarts all.
func restartAllSince(pod *corev1.Pod, runtime *cri.PodState) (since time.Time, found bool) {
	for _, list := range [][]*corev1.Container{pod.GetSpec().GetInitContainers(), pod.GetSpec().GetContainers()} {
		for _, c := range list {
			if r := runtime.Newest(c.GetName()); RestartsAll(c, r) && (!found || r.FinishedAt.Before(since)) {
				since, found = r.FinishedAt, true
			}
		}
	}
	return since, found
}

// over says whether a container has ended for good. One that ended after the restart of all began ended for its sake, and runs again.
func over(pod *corev1.Pod, c *corev1.Container, runtime *cri.PodState) bool {
	r := runtime.Newest(c.GetName())
	if r == nil || r.State != cri.StateExited || Restarts(pod, c, r.ExitCode) {
		return false
	}
	since, all := restartAllSince(pod, runtime)
	return !all || r.FinishedAt.Before(since)
}

// Finished says whether all containers have ended and none will be started again. A pod that has finished stays so, whatever its sidecars end with then.
func Finished(pod *corev1.Pod, runtime *cri.PodState) bool {
	for _, c := range pod.GetSpec().GetInitContainers() {
		if !IsSidecar(c) && over(pod, c, runtime) && runtime.Newest(c.GetName()).ExitCode != 0 {
			return true
		}
	}
	for _, c := range pod.GetSpec().GetContainers() {
		if !over(pod, c, runtime) {
			return false
		}
	}
	return len(pod.GetSpec().GetContainers()) > 0
}

// AllRestart says whether a pod's containers are all to be ended, removed, and run again. The runs whose end asks for it are removed last, so this stays true
// until nothing is left to remove, for an agent that starts in between too.
func AllRestart(pod *corev1.Pod, runtime *cri.PodState) bool {
	if !mayRestartAll(pod) {
		return false
	}
	_, all := restartAllSince(pod, runtime)
	return all && !Finished(pod, runtime)
}

// restartsAll says whether all containers are restarted now; those of a pod that ends are not.
func (in *Input) restartsAll() bool {
	return !in.Stopped && in.End == nil && !in.Pod.GetMetadata().HasDeletionTimestamp() && !IsTerminal(in.Previous.GetPhase()) && AllRestart(in.Pod, &in.Runtime)
}

// again says whether a container that has ended runs again.
func (in *Input) again(c *corev1.Container, end *corev1.ContainerStateTerminated) bool {
	return Restarts(in.Pod, c, end.GetExitCode()) || in.restartsAll() && in.Runtime.Newest(c.GetName()) != nil && !over(in.Pod, c, &in.Runtime)
}

// allRestarting is the condition of pods whose rules may restart all containers.
func (in *Input) allRestarting(s *corev1.PodStatus) verdict {
	v := verdict{kind: ConditionAllRestarting, status: "False"}
	switch {
	case s.GetPhase() == PhaseSucceeded:
		v.reason = "PodCompleted"
	case s.GetPhase() == PhaseFailed:
		v.reason = "PodFailed"
	case in.restartsAll():
		v.status, v.reason, v.message = "True", "RestartAllContainersStarted", "container exited with restart policy rule"
	}
	return v
}

// isTrue says whether a status has a condition that holds.
func isTrue(s *corev1.PodStatus, kind string) bool {
	return slices.ContainsFunc(s.GetConditions(), func(c *corev1.PodCondition) bool { return c.GetType() == kind && c.GetStatus() == "True" })
}
