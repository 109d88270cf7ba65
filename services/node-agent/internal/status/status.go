// Package status computes what the node says about a pod, as a pure function of the pod, the runtime's state and what the agent remembers. States,
// reasons, phases and conditions are those of Kubernetes.
package status

import (
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/demand"
	"dhow.dev/services/node-agent/internal/cgroup"
	"dhow.dev/services/node-agent/internal/cri"
)

// Reasons of container states.
const (
	ReasonContainerCreating          = "ContainerCreating"
	ReasonPodInitializing            = "PodInitializing"
	ReasonCrashLoopBackOff           = "CrashLoopBackOff"
	ReasonCreateContainerConfigError = "CreateContainerConfigError"
	ReasonCreateContainerError       = "CreateContainerError"
	ReasonRunContainerError          = "RunContainerError"
	ReasonPostStartHookError         = "PostStartHookError"
	ReasonCompleted                  = "Completed"
	ReasonError                      = "Error"
	ReasonUnknown                    = "ContainerStatusUnknown"
	ReasonInfeasible                 = "Infeasible"
	ReasonDeferred                   = "Deferred"
	ReasonRestartingAll              = "RestartingAllContainers"
)

// Phases.
const (
	PhasePending   = "Pending"
	PhaseRunning   = "Running"
	PhaseSucceeded = "Succeeded"
	PhaseFailed    = "Failed"
)

// Conditions that the node owns.
const (
	ConditionReadyToStart    = "PodReadyToStartContainers"
	ConditionInitialized     = "Initialized"
	ConditionContainersReady = "ContainersReady"
	ConditionReady           = "Ready"
	ConditionScheduled       = "PodScheduled"
	ConditionResizePending   = "PodResizePending"
	ConditionResizing        = "PodResizeInProgress"
	ConditionDisruption      = "DisruptionTarget"
	ConditionAllRestarting   = "AllContainersRestarting"
)

// Waiting says why a container does not run.
type Waiting struct {
	Reason, Message string
}

// Container is what the agent remembers of a container beyond the runtime's state.
type Container struct {
	// Waiting is why the container is not started (again); nil when nothing is wrong.
	Waiting *Waiting
	// Started and Ready are the probes' verdicts on the newest run.
	Started, Ready bool
	// Behind says that the newest run does not have the resources of its spec yet.
	Behind bool
}

// End says that the pod ended for a reason of its own: it was rejected, evicted or took too long.
type End struct {
	Reason, Message string
	// Disrupted says that the node ends the pod for the sake of others, which the condition DisruptionTarget tells the pod's controllers.
	Disrupted bool
	// Grace replaces the pod's own termination grace when it is shorter; nil: it is not replaced.
	Grace *time.Duration
}

// Input is everything a status depends on.
type Input struct {
	Now time.Time
	Pod *corev1.Pod
	// Previous is the status last computed; nil: the one in Pod.
	Previous *corev1.PodStatus
	Runtime  cri.PodState
	// RuntimeName prefixes container IDs, for example containerd.
	RuntimeName string
	Containers  map[string]Container
	// Messages are termination messages by container ID.
	Messages map[string]string
	HostIPs  []string
	End      *End
	// Pending says why wished resources are not admitted, Resizing that admitted ones are not in place yet, and if that failed, why.
	Pending, Resizing *End
	// Behind says that the pod's cgroup does not have the resources of its spec yet.
	Behind bool
	// Stopped says that no container runs and none will run again.
	Stopped bool
	// allRestart says that all containers are being restarted, or were when the status was last computed.
	allRestart bool
}

// IsTerminal says whether a phase is final.
func IsTerminal(phase string) bool { return phase == PhaseSucceeded || phase == PhaseFailed }

// IsSidecar says whether an init container goes on running beside the others.
func IsSidecar(c *corev1.Container) bool { return c.GetRestartPolicy() == "Always" }

// Ephemeral returns a pod's ephemeral containers as containers, whose fields they have.
func Ephemeral(pod *corev1.Pod) []*corev1.Container {
	var list []*corev1.Container
	for _, e := range pod.GetSpec().GetEphemeralContainers() {
		// The two messages are one on the wire; of what was decoded once the encoding cannot fail.
		if data, err := proto.Marshal(e.GetEphemeralContainerCommon()); err == nil {
			c := &corev1.Container{}
			if proto.Unmarshal(data, c) == nil {
				list = append(list, c)
			}
		}
	}
	return list
}

// Time converts a time, to whole seconds as Kubernetes does.
func Time(t time.Time) *metav1.Time {
	if t.IsZero() {
		return nil
	}
	return metav1.Time_builder{Seconds: proto.Int64(t.Unix()), Nanos: proto.Int32(0)}.Build()
}

// Compute computes the status.
func Compute(in Input) *corev1.PodStatus {
	if in.Previous == nil {
		in.Previous = in.Pod.GetStatus()
	}
	in.allRestart = in.restartsAll() || isTrue(in.Previous, ConditionAllRestarting)
	spec := in.Pod.GetSpec()
	s := &corev1.PodStatus{}
	s.SetObservedGeneration(in.Pod.GetMetadata().GetGeneration())
	if n := in.Pod.GetStatus().GetNominatedNodeName(); n != "" {
		s.SetNominatedNodeName(n)
	}
	s.SetQosClass(string(cgroup.Class(in.Pod)))
	if q := in.Pod.GetStatus().GetQosClass(); q != "" {
		s.SetQosClass(q) // never changes
	}
	if t := in.Previous.GetStartTime(); t != nil {
		s.SetStartTime(t)
	} else {
		s.SetStartTime(Time(in.Now))
	}
	in.addresses(s)
	in.resources(s)
	previous := map[string]*corev1.ContainerStatus{}
	for _, c := range slices.Concat(in.Previous.GetInitContainerStatuses(), in.Previous.GetContainerStatuses(), in.Previous.GetEphemeralContainerStatuses()) {
		previous[c.GetName()] = c
	}
	var inits, regulars []*corev1.ContainerStatus
	for _, c := range spec.GetInitContainers() {
		inits = append(inits, in.container(c, true, previous[c.GetName()]))
	}
	for _, c := range spec.GetContainers() {
		regulars = append(regulars, in.container(c, false, previous[c.GetName()]))
	}
	var ephemeral []*corev1.ContainerStatus
	for _, c := range Ephemeral(in.Pod) {
		ephemeral = append(ephemeral, in.container(c, false, previous[c.GetName()]))
	}
	s.SetEphemeralContainerStatuses(ephemeral)
	s.SetInitContainerStatuses(inits)
	s.SetContainerStatuses(regulars)
	in.phase(s)
	in.conditions(s)
	return s
}

func (in *Input) addresses(s *corev1.PodStatus) {
	if len(in.HostIPs) > 0 {
		s.SetHostIp(in.HostIPs[0])
		for _, ip := range in.HostIPs {
			s.SetHostIps(append(s.GetHostIps(), corev1.HostIP_builder{Ip: proto.String(ip)}.Build()))
		}
	}
	var ips []string
	sandbox := in.Runtime.CurrentSandbox()
	switch {
	case sandbox != nil && sandbox.Ready && in.Pod.GetSpec().GetHostNetwork():
		ips = in.HostIPs
	case sandbox != nil && sandbox.Ready:
		ips = sandbox.IPs
	default:
		// The address stays in the status while a pod ends, so that those who still hold connections to it can tell whose it was.
		for _, ip := range in.Previous.GetPodIps() {
			ips = append(ips, ip.GetIp())
		}
	}
	if len(ips) > 0 {
		s.SetPodIp(ips[0])
		for _, ip := range ips {
			s.SetPodIps(append(s.GetPodIps(), corev1.PodIP_builder{Ip: proto.String(ip)}.Build()))
		}
	}
}

func (in *Input) container(c *corev1.Container, init bool, previous *corev1.ContainerStatus) *corev1.ContainerStatus {
	name := c.GetName()
	memory := in.Containers[name]
	newest, before := in.Runtime.Newest(name), in.Runtime.Previous(name)
	s := corev1.ContainerStatus_builder{
		Name: proto.String(name), Image: proto.String(c.GetImage()), ImageId: proto.String(previous.GetImageId()),
		RestartCount: proto.Int32(previous.GetRestartCount()), Ready: proto.Bool(false), Started: proto.Bool(false),
		State: &corev1.ContainerState{}, LastState: &corev1.ContainerState{},
	}.Build()
	if before != nil && before.State == cri.StateExited {
		s.GetLastState().SetTerminated(in.terminated(before))
	} else if previous.GetLastState().HasTerminated() && mayRestartAll(in.Pod) {
		s.SetLastState(previous.GetLastState()) // the run before was removed
	}
	if newest == nil {
		in.absent(s, memory, previous)
		return s
	}
	s.SetRestartCount(max(int32(newest.Attempt), s.GetRestartCount()))
	s.SetImageId(newest.ImageID)
	s.SetContainerId(in.RuntimeName + "://" + newest.ID)
	if image := newest.Annotations[cri.AnnotationImage]; image != "" {
		s.SetImage(image)
	}
	if u := newest.User; u != nil {
		s.SetUser(corev1.ContainerUser_builder{Linux: corev1.LinuxContainerUser_builder{Uid: proto.Int64(u.UID), Gid: proto.Int64(u.GID), SupplementalGroups: u.Groups}.Build()}.Build())
	}
	s.SetVolumeMounts(mounts(c))
	if signal := c.GetLifecycle().GetStopSignal(); signal != "" {
		s.SetStopSignal(signal)
	}
	switch newest.State {
	case cri.StateRunning:
		s.GetState().SetRunning(corev1.ContainerStateRunning_builder{StartedAt: Time(newest.StartedAt)}.Build())
		s.SetStarted(memory.Started)
		s.SetReady(memory.Ready && memory.Started)
		resources(s, c, memory.Behind, previous)
		if init && !IsSidecar(c) {
			s.SetStarted(false)
			s.SetReady(false)
		}
	case cri.StateExited:
		terminated := in.terminated(newest)
		if memory.Waiting != nil && !in.Stopped {
			s.GetLastState().SetTerminated(terminated)
			s.GetState().SetWaiting(waiting(memory.Waiting))
			break
		}
		s.GetState().SetTerminated(terminated)
		s.SetReady(init && newest.ExitCode == 0)
	case cri.StateCreated:
		s.GetState().SetWaiting(in.defaultWaiting(memory))
	default:
		s.GetState().SetTerminated(unknownState(s.GetContainerId(), "The runtime does not know the container's state"))
	}
	return s
}

// mounts tells how a container's volumes are mounted.
func mounts(c *corev1.Container) []*corev1.VolumeMountStatus {
	var list []*corev1.VolumeMountStatus
	for _, m := range c.GetVolumeMounts() {
		s := corev1.VolumeMountStatus_builder{Name: proto.String(m.GetName()), MountPath: proto.String(m.GetMountPath()), ReadOnly: proto.Bool(m.GetReadOnly())}.Build()
		if m.GetReadOnly() {
			s.SetRecursiveReadOnly("Disabled")
			if r := m.GetRecursiveReadOnly(); r == "Enabled" || r == "IfPossible" {
				s.SetRecursiveReadOnly("Enabled")
			}
		}
		list = append(list, s)
	}
	return list
}

// resources tells what the whole pod was allotted and, where its spec has resources of the whole pod, what it has.
func (in *Input) resources(s *corev1.PodStatus) {
	s.SetAllocatedResources(demand.Quantities(in.Pod))
	r := in.Pod.GetSpec().GetResources()
	switch {
	case len(r.GetRequests()) == 0 && len(r.GetLimits()) == 0:
	case in.Behind && in.Previous.HasResources():
		s.SetResources(in.Previous.GetResources())
	default:
		s.SetResources(corev1.ResourceRequirements_builder{Requests: r.GetRequests(), Limits: r.GetLimits()}.Build())
	}
}

// resources tells what a running container was allotted and what it has.
func resources(s *corev1.ContainerStatus, c *corev1.Container, behind bool, previous *corev1.ContainerStatus) {
	r := c.GetResources()
	if len(r.GetRequests()) == 0 && len(r.GetLimits()) == 0 {
		return
	}
	s.SetAllocatedResources(r.GetRequests())
	if behind {
		s.SetResources(previous.GetResources())
		return
	}
	s.SetResources(corev1.ResourceRequirements_builder{Requests: r.GetRequests(), Limits: r.GetLimits()}.Build())
}

// absent fills the status of a container that the runtime does not have: one that was never started, or whose trace is lost.
func (in *Input) absent(s *corev1.ContainerStatus, memory Container, previous *corev1.ContainerStatus) {
	state := previous.GetState()
	switch {
	case in.allRestart && !in.Stopped && previous.GetContainerId() != "":
		// Its runs are removed so that it runs again with all others: that is counted here.
		s.SetRestartCount(previous.GetRestartCount() + 1)
		s.GetState().SetWaiting(waiting(&Waiting{Reason: ReasonRestartingAll, Message: restartingAllMessage}))
		s.SetLastState(previous.GetLastState())
		if !state.HasWaiting() {
			s.SetLastState(corev1.ContainerState_builder{Terminated: corev1.ContainerStateTerminated_builder{
				ExitCode: proto.Int32(137), Reason: proto.String(ReasonRestartingAll), Message: proto.String(restartingAllMessage)}.Build()}.Build())
		}
	case in.allRestart && !in.Stopped && state.GetWaiting().GetReason() == ReasonRestartingAll:
		s.SetState(state)
		s.SetLastState(previous.GetLastState())
	case state.HasTerminated():
		// Known before: the runtime has removed it since.
		s.SetState(state)
		s.SetLastState(previous.GetLastState())
		s.SetContainerId(previous.GetContainerId())
		s.SetReady(previous.GetReady())
		if !in.Stopped && memory.Waiting != nil {
			s.SetLastState(state)
			s.SetState(corev1.ContainerState_builder{Waiting: waiting(memory.Waiting)}.Build())
			s.SetReady(false)
		}
	case in.Stopped && state.HasRunning():
		s.SetContainerId(previous.GetContainerId())
		s.GetState().SetTerminated(unknownState(previous.GetContainerId(), "The container could not be located when the pod was terminated"))
	case state.HasRunning():
		s.GetLastState().SetTerminated(unknownState(previous.GetContainerId(), "The container could not be located when the pod was started again"))
		s.GetState().SetWaiting(in.defaultWaiting(memory))
	default:
		if previous.GetLastState().HasTerminated() {
			s.SetLastState(previous.GetLastState())
		}
		s.GetState().SetWaiting(in.defaultWaiting(memory))
	}
}

func unknownState(id, message string) *corev1.ContainerStateTerminated {
	return corev1.ContainerStateTerminated_builder{
		ExitCode: proto.Int32(137), Reason: proto.String(ReasonUnknown), Message: proto.String(message), ContainerId: proto.String(id),
	}.Build()
}

func waiting(w *Waiting) *corev1.ContainerStateWaiting {
	s := corev1.ContainerStateWaiting_builder{Reason: proto.String(w.Reason)}.Build()
	if w.Message != "" {
		s.SetMessage(w.Message)
	}
	return s
}

func (in *Input) defaultWaiting(memory Container) *corev1.ContainerStateWaiting {
	switch {
	case memory.Waiting != nil:
		return waiting(memory.Waiting)
	case len(in.Pod.GetSpec().GetInitContainers()) > 0:
		return waiting(&Waiting{Reason: ReasonPodInitializing})
	}
	return waiting(&Waiting{Reason: ReasonContainerCreating})
}

func (in *Input) terminated(c *cri.Container) *corev1.ContainerStateTerminated {
	reason := c.Reason
	if reason == "" {
		reason = ReasonCompleted
		if c.ExitCode != 0 {
			reason = ReasonError
		}
	}
	t := corev1.ContainerStateTerminated_builder{
		ExitCode: proto.Int32(c.ExitCode), Reason: proto.String(reason), StartedAt: Time(c.StartedAt), FinishedAt: Time(c.FinishedAt),
		ContainerId: proto.String(in.RuntimeName + "://" + c.ID),
	}.Build()
	if m := in.Messages[c.ID]; m != "" {
		t.SetMessage(in.bounded(m))
	} else if c.Message != "" {
		t.SetMessage(c.Message)
	}
	return t
}

// maxMessages bounds the messages of all of a pod's containers together, in bytes; each has an equal part, as in Kubernetes.
const maxMessages = 12 << 10

func (in *Input) bounded(message string) string {
	spec := in.Pod.GetSpec()
	n := len(spec.GetInitContainers()) + len(spec.GetContainers()) + len(spec.GetEphemeralContainers())
	if part := maxMessages / max(n, 1); len(message) > part {
		return strings.ToValidUTF8(message[:part], "")
	}
	return message
}

// InitDone returns the init containers that have not done their part by their statuses: run-once ones succeed, sidecars are started.
func InitDone(pod *corev1.Pod, statuses []*corev1.ContainerStatus) (unfinished []string) {
	for i, c := range pod.GetSpec().GetInitContainers() {
		s := statuses[i]
		switch {
		case IsSidecar(c) && s.GetStarted():
		case !IsSidecar(c) && s.GetState().HasTerminated() && s.GetState().GetTerminated().GetExitCode() == 0:
		default:
			unfinished = append(unfinished, c.GetName())
		}
	}
	return unfinished
}

func (in *Input) phase(s *corev1.PodStatus) {
	// Until its containers have ended a pod has not failed: controllers would replace it beside itself.
	if in.End != nil && in.Stopped {
		s.SetPhase(PhaseFailed)
		s.SetReason(in.End.Reason)
		s.SetMessage(in.End.Message)
		return
	}
	if p := in.Previous.GetPhase(); IsTerminal(p) {
		s.SetPhase(p) // an end is an end
		if r := in.Previous.GetReason(); r != "" {
			s.SetReason(r)
		}
		if m := in.Previous.GetMessage(); m != "" {
			s.SetMessage(m)
		}
		return
	}
	s.SetPhase(in.livePhase(s))
}

func (in *Input) livePhase(s *corev1.PodStatus) string {
	regularStarted := slices.ContainsFunc(s.GetContainerStatuses(), func(c *corev1.ContainerStatus) bool { return c.GetContainerId() != "" })
	// A pod whose containers are all restarted had been initialized.
	regularsRan := slices.ContainsFunc(s.GetContainerStatuses(), func(c *corev1.ContainerStatus) bool {
		return c.GetLastState().GetTerminated().GetReason() == ReasonRestartingAll
	})
	pendingInit, failedInit, sidecarRuns := 0, 0, false
	for i, c := range in.Pod.GetSpec().GetInitContainers() {
		state := s.GetInitContainerStatuses()[i].GetState()
		switch {
		case IsSidecar(c):
			sidecarRuns = sidecarRuns || state.HasRunning()
			if !s.GetInitContainerStatuses()[i].GetStarted() && !regularStarted && !regularsRan {
				pendingInit++
			}
		case state.HasTerminated() && state.GetTerminated().GetExitCode() == 0:
		case state.HasTerminated() && !in.again(c, state.GetTerminated()):
			failedInit++
		case state.HasWaiting() && s.GetInitContainerStatuses()[i].GetLastState().GetTerminated().GetReason() == ReasonRestartingAll:
			// What waits to be restarted with all others does not make the pod a pending one.
		default:
			pendingInit++
		}
	}
	var running, waitingCount, stopped, succeeded, restarting int
	for i, c := range s.GetContainerStatuses() {
		state := c.GetState()
		switch {
		case state.HasRunning():
			running++
		case state.HasTerminated():
			stopped++
			if state.GetTerminated().GetExitCode() == 0 {
				succeeded++
			}
			if in.again(in.Pod.GetSpec().GetContainers()[i], state.GetTerminated()) {
				restarting++
			}
		case c.GetLastState().HasTerminated():
			stopped++
			restarting++
		default:
			waitingCount++
		}
	}
	switch {
	case in.Stopped && running == 0:
		// Deleted, or out of runs: whatever never started did not succeed.
		if failedInit == 0 && pendingInit == 0 && waitingCount == 0 && stopped == succeeded {
			return PhaseSucceeded
		}
		return PhaseFailed
	case failedInit > 0:
		return PhaseFailed
	case pendingInit > 0 && !regularStarted, waitingCount > 0:
		return PhasePending
	case running > 0 || sidecarRuns:
		return PhaseRunning
	case restarting > 0:
		return PhaseRunning
	case stopped > 0 && stopped == succeeded:
		return PhaseSucceeded
	case stopped > 0:
		return PhaseFailed
	}
	return PhasePending
}
