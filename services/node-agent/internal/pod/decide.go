package pod

import (
	"fmt"
	"slices"
	"time"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/services/node-agent/internal/cri"
	"dhow.dev/services/node-agent/internal/status"
)

// Kubernetes' back-off of containers that end again and again: the first restart is immediate, the next waits 10 seconds, each later one twice as
// long up to 5 minutes; a run of 10 minutes is forgiven.
const (
	minRestartDelay = 10 * time.Second
	maxRestartDelay = 300 * time.Second
	forgivenAfter   = 10 * time.Minute
)

// orphanGrace is what containers get to end when nothing says how long they want; Kubernetes' minimum.
const orphanGrace = 2 * time.Second

// Action is what a step does.
type Action string

// Actions, in the order in which a pod goes through them.
const (
	// Prepare makes folders, cgroup and volumes.
	Prepare Action = "prepare"
	// RunSandbox stops what is left of older sandboxes and runs a new one.
	RunSandbox Action = "sandbox"
	// StartContainer pulls, creates and starts.
	StartContainer Action = "start"
	// ResizeContainer changes what a running container may use.
	ResizeContainer Action = "resize"
	// ResizePod changes what the pod as a whole may use.
	ResizePod Action = "resize-pod"
	// StopContainer runs the preStop hook and stops.
	StopContainer Action = "stop"
	// RemoveContainer removes a container that is not needed any more.
	RemoveContainer Action = "remove-container"
	// StopSandbox ends the pod's network.
	StopSandbox Action = "stop-sandbox"
	// RemoveSandbox removes an old sandbox without containers.
	RemoveSandbox Action = "remove-sandbox"
	// TearDown removes volumes and cgroup.
	TearDown Action = "tear-down"
	// Remove removes every trace of the pod.
	Remove Action = "remove"
)

// Key names a step. Two steps with one key never run at once.
type Key struct {
	Action Action
	// Subject is a container's name for StartContainer, the ID of a container or sandbox for stops and removals, else empty.
	Subject string
}

// Step is something to do.
type Step struct {
	Key
	// Container is the name of the container concerned.
	Container string
	Attempt   uint32
	Grace     time.Duration
	// Why is told to the user when a container is stopped.
	Why string
	// Last says that a removed run was its container's newest: its log stays, and the next run goes on counting.
	Last bool
}

// Memory is what a worker remembers of a container beside the runtime's state.
type Memory struct {
	status.Container
	// Unhealthy says why the newest run has to be stopped, by its container ID.
	Unhealthy   string
	UnhealthyID string
	// UnhealthyGrace is the probe's own grace; negative: the pod's.
	UnhealthyGrace time.Duration
	// BackOffTold is the run whose back-off the user was told of.
	BackOffTold string
	// Resized is what the run ResizedID was last resized to; ResizeError why it could not be.
	Resized, ResizedID, ResizeError string
	// Delay is how long after its end the next restart waits.
	Delay time.Duration
	// Next is the number of the next run of a container whose runs were all removed.
	Next uint32
}

// Situation is all that a decision depends on.
type Situation struct {
	Now time.Time
	// Pod is nil when nobody knows it any more.
	Pod *corev1.Pod
	// Gone says that the API server does not have the pod.
	Gone bool
	// End is set when the pod was rejected, evicted or ran out of time.
	End *status.End
	// Finished says that the pod's phase is final.
	Finished bool
	Runtime  cri.PodState
	// Busy are the steps that run.
	Busy map[Key]bool
	// NotBefore holds back steps that failed.
	NotBefore map[Key]time.Time
	Prepared  bool
	// PodResized is what the pod's cgroup was last made with.
	PodResized string
	TornDown   bool
	// Removed says that the Remove step has succeeded.
	Removed bool
	Memory  map[string]Memory
}

// Plan is what to do now.
type Plan struct {
	Steps []Step
	// Wait says of containers that are held back, why.
	Wait map[string]*status.Waiting
	// CancelStarts asks to cancel steps that bring the pod up.
	CancelStarts bool
	// Finished says that all containers have ended for good.
	Finished bool
	// Stopped says that no container runs and none will.
	Stopped bool
	// Released says that the pod's resources are free: a deletion can be confirmed.
	Released bool
	// Done says that nothing is left of the pod.
	Done bool
	// Wake is when to decide again without any event; zero: never.
	Wake time.Time
}

// Decide is the pod's state machine.
func Decide(s Situation) Plan {
	p := Plan{Wait: map[string]*status.Waiting{}}
	if !s.ending() {
		p.Finished = status.Finished(s.Pod, &s.Runtime)
	}
	if s.ending() || p.Finished {
		s.end(&p)
		return p
	}
	if status.AllRestart(s.Pod, &s.Runtime) {
		s.restartAll(&p)
		return p
	}
	s.bringUp(&p)
	s.collect(&p)
	return p
}

func (s *Situation) deleted() bool { return s.Pod == nil || s.Pod.GetMetadata().HasDeletionTimestamp() }

func (s *Situation) ending() bool { return s.Gone || s.deleted() || s.End != nil || s.Finished }

// grace is how long the pod's containers may take to end.
func (s *Situation) grace() time.Duration {
	m := s.Pod.GetMetadata()
	switch {
	case s.Pod == nil:
		return orphanGrace
	case m.HasDeletionGracePeriodSeconds():
		return time.Duration(m.GetDeletionGracePeriodSeconds()) * time.Second
	case s.Gone && !IsStatic(s.Pod):
		return orphanGrace // removed at once: it was forced
	}
	if s.End != nil && s.End.Grace != nil {
		return min(*s.End.Grace, s.specGrace())
	}
	return s.specGrace()
}

func (s *Situation) specGrace() time.Duration {
	if !s.Pod.GetSpec().HasTerminationGracePeriodSeconds() {
		return 30 * time.Second
	}
	return time.Duration(s.Pod.GetSpec().GetTerminationGracePeriodSeconds()) * time.Second
}

// add adds a step unless it runs already or has to wait.
func (s *Situation) add(p *Plan, step Step) {
	if s.Busy[step.Key] {
		return
	}
	if t := s.NotBefore[step.Key]; t.After(s.Now) {
		p.wakeAt(t)
		return
	}
	p.Steps = append(p.Steps, step)
}

func (p *Plan) wakeAt(t time.Time) {
	if p.Wake.IsZero() || t.Before(p.Wake) {
		p.Wake = t
	}
}

// rising says whether a step that brings the pod up still runs.
func (s *Situation) rising() bool {
	for k := range s.Busy {
		switch k.Action {
		case Prepare, RunSandbox, StartContainer:
			return true
		}
	}
	return false
}

// busy says whether a step of one of the actions runs.
func (s *Situation) busy(actions ...Action) bool {
	for k := range s.Busy {
		for _, a := range actions {
			if k.Action == a {
				return true
			}
		}
	}
	return false
}

// end takes the pod down: containers, sidecars in reverse order, sandbox, volumes and cgroup; then, once the API server has forgotten the pod,
// the rest.
func (s *Situation) end(p *Plan) {
	if s.rising() {
		// A start that is under way is called off first: what it leaves behind is seen and stopped afterwards.
		p.CancelStarts = true
	}
	sidecars := map[string]int{}
	for i, c := range s.Pod.GetSpec().GetInitContainers() {
		if status.IsSidecar(c) {
			sidecars[c.GetName()] = i + 1
		}
	}
	running, last := 0, (*cri.Container)(nil)
	stop := func(c *cri.Container) {
		s.add(p, Step{Key: Key{StopContainer, c.ID}, Container: c.Name, Grace: s.grace(), Why: "Stopping container " + c.Name})
	}
	for i := range s.Runtime.Containers {
		c := &s.Runtime.Containers[i]
		if c.State != cri.StateRunning && c.State != cri.StateUnknown {
			continue
		}
		if sidecars[c.Name] > 0 {
			if last == nil || sidecars[c.Name] > sidecars[last.Name] {
				last = c
			}
			continue
		}
		running++
		stop(c)
	}
	if running > 0 {
		return
	}
	if last != nil {
		stop(last)
		return
	}
	if p.CancelStarts {
		return
	}
	p.Stopped = true
	for _, sandbox := range s.Runtime.Sandboxes {
		if sandbox.Ready {
			s.add(p, Step{Key: Key{StopSandbox, sandbox.ID}})
			return
		}
	}
	if s.busy(StopSandbox) {
		return // a runtime calls the sandbox stopped before it has taken down the network, and to remove it then would do that twice at once
	}
	if !s.TornDown {
		s.add(p, Step{Key: Key{Action: TearDown}})
		return
	}
	p.Released = true
	if !s.Gone {
		return
	}
	if len(s.Runtime.Sandboxes) > 0 || len(s.Runtime.Containers) > 0 || !s.Removed {
		s.add(p, Step{Key: Key{Action: Remove}})
		return
	}
	p.Done = true
}

// collect removes what is only litter: runs of a container that ended before the last one that did, old sandboxes without containers. A container that is being started is not held up by that.
func (s *Situation) collect(p *Plan) {
	starting := func(name string) bool {
		return s.Busy[Key{StartContainer, name}] || slices.ContainsFunc(p.Steps, func(step Step) bool { return step.Key == Key{StartContainer, name} })
	}
	ended := map[string]int{}
	used := map[string]bool{}
	for i := range s.Runtime.Containers {
		c := &s.Runtime.Containers[i]
		used[c.SandboxID] = true
		if c.State != cri.StateExited {
			continue
		}
		ended[c.Name]++
		if n := ended[c.Name]; n > 2 || n > 1 && !starting(c.Name) {
			s.add(p, Step{Key: Key{RemoveContainer, c.ID}, Container: c.Name})
		}
	}
	for i, sandbox := range s.Runtime.Sandboxes {
		if i > 0 && !sandbox.Ready && !used[sandbox.ID] {
			s.add(p, Step{Key: Key{RemoveSandbox, sandbox.ID}})
		}
	}
}

// bringUp goes on with the first thing that is missing.
func (s *Situation) bringUp(p *Plan) {
	if !s.Prepared {
		s.add(p, Step{Key: Key{Action: Prepare}})
		return
	}
	sandbox := s.Runtime.CurrentSandbox()
	if sandbox == nil || !sandbox.Ready {
		s.replaceSandbox(p, sandbox)
		return
	}
	if s.busy(RunSandbox) {
		return
	}
	// A container that was created but never started is what a crash of the agent leaves; nothing starts it.
	for i := range s.Runtime.Containers {
		c := &s.Runtime.Containers[i]
		if c.State == cri.StateCreated && !s.Busy[Key{StartContainer, c.Name}] {
			s.add(p, Step{Key: Key{RemoveContainer, c.ID}, Container: c.Name})
			return
		}
	}
	s.stopUnhealthy(p, sandbox)
	s.resize(p, sandbox)
	s.startEphemeral(p)
	if !s.initialize(p, sandbox) {
		return
	}
	for _, c := range s.Pod.GetSpec().GetContainers() {
		r := s.Runtime.Newest(c.GetName())
		if r == nil {
			s.start(p, c, nil)
			continue
		}
		if r.State == cri.StateExited && status.Restarts(s.Pod, c, r.ExitCode) {
			s.start(p, c, r)
		}
	}
}

// replaceSandbox runs a sandbox where there is none that works. Containers of the old one end first.
func (s *Situation) replaceSandbox(p *Plan, old *cri.Sandbox) {
	if s.rising() {
		return
	}
	if s.Runtime.Running() {
		for i := range s.Runtime.Containers {
			if c := &s.Runtime.Containers[i]; c.State == cri.StateRunning || c.State == cri.StateUnknown {
				s.add(p, Step{Key: Key{StopContainer, c.ID}, Container: c.Name, Grace: s.specGrace(), Why: "Pod sandbox changed, it will be killed and re-created."})
			}
		}
		return
	}
	attempt := uint32(0)
	if old != nil {
		attempt = old.Attempt + 1
	}
	s.add(p, Step{Key: Key{Action: RunSandbox}, Attempt: attempt})
}

// startEphemeral starts ephemeral containers, each once: before the init containers, because they may be there to see why those fail.
func (s *Situation) startEphemeral(p *Plan) {
	started := map[string]bool{}
	for _, c := range s.Pod.GetStatus().GetEphemeralContainerStatuses() {
		started[c.GetName()] = c.GetContainerId() != ""
	}
	for _, c := range status.Ephemeral(s.Pod) {
		if s.Runtime.Newest(c.GetName()) == nil && !started[c.GetName()] {
			s.start(p, c, nil)
		}
	}
}

// stopUnhealthy stops containers whose probes failed, or whose image was changed in the spec.
func (s *Situation) stopUnhealthy(p *Plan, sandbox *cri.Sandbox) {
	check := func(c *corev1.Container, mayChange bool) {
		r := s.Runtime.Newest(c.GetName())
		if r == nil || r.State != cri.StateRunning || r.SandboxID != sandbox.ID {
			if r != nil && r.State == cri.StateUnknown {
				s.add(p, Step{Key: Key{StopContainer, r.ID}, Container: r.Name, Grace: s.specGrace(), Why: "Container is in an unknown state, try killing it before restart"})
			}
			return
		}
		m := s.Memory[c.GetName()]
		switch image := r.Annotations[cri.AnnotationImage]; {
		case m.Unhealthy != "" && m.UnhealthyID == r.ID:
			grace := s.specGrace()
			if m.UnhealthyGrace >= 0 {
				grace = m.UnhealthyGrace
			}
			s.add(p, Step{Key: Key{StopContainer, r.ID}, Container: r.Name, Grace: grace, Why: m.Unhealthy})
		case mayChange && image != "" && image != c.GetImage():
			s.add(p, Step{Key: Key{StopContainer, r.ID}, Container: r.Name, Grace: s.specGrace(),
				Why: fmt.Sprintf("Container %s definition changed, will be restarted", r.Name)})
		}
	}
	for _, c := range s.Pod.GetSpec().GetInitContainers() {
		check(c, status.IsSidecar(c))
	}
	for _, c := range s.Pod.GetSpec().GetContainers() {
		check(c, true)
	}
}

// initialize runs the init containers one after the other and says whether the regular ones may start.
func (s *Situation) initialize(p *Plan, sandbox *cri.Sandbox) bool {
	// Regular containers in this sandbox are the proof that initialization was complete, even if the init containers were removed since.
	proven := false
	for _, c := range s.Pod.GetSpec().GetContainers() {
		if r := s.Runtime.Newest(c.GetName()); r != nil && r.SandboxID == sandbox.ID {
			proven = true
		}
	}
	for _, c := range s.Pod.GetSpec().GetInitContainers() {
		r := s.Runtime.Newest(c.GetName())
		if r != nil && r.SandboxID != sandbox.ID && r.State == cri.StateExited {
			// A new sandbox means to initialize again. What the old one ended with does not hold it back.
			if !proven || status.IsSidecar(c) {
				s.startNow(p, c, r)
				return false
			}
			continue
		}
		if status.IsSidecar(c) {
			switch {
			case r == nil:
				s.start(p, c, nil)
			case r.State == cri.StateExited:
				s.start(p, c, r)
			case r.State == cri.StateRunning && s.Memory[c.GetName()].Started:
				continue
			}
			if proven {
				continue
			}
			return false
		}
		switch {
		case proven:
		case r == nil:
			s.start(p, c, nil)
			return false
		case r.State == cri.StateExited && r.ExitCode == 0:
		case r.State == cri.StateExited:
			if status.Restarts(s.Pod, c, r.ExitCode) {
				s.start(p, c, r)
			}
			return false
		default:
			return false
		}
	}
	return true
}

// start starts a container's next run, after its back-off when there was a run before. Containers of a pod are started one at a time, in order.
func (s *Situation) start(p *Plan, c *corev1.Container, before *cri.Container) {
	if s.Busy[Key{StartContainer, c.GetName()}] {
		return
	}
	if before != nil {
		m := s.Memory[c.GetName()]
		forgiven := ran(before) >= forgivenAfter
		if at := before.FinishedAt.Add(m.Delay); m.Delay > 0 && !forgiven && at.After(s.Now) {
			md := s.Pod.GetMetadata()
			p.Wait[c.GetName()] = &status.Waiting{Reason: status.ReasonCrashLoopBackOff, Message: fmt.Sprintf(
				"back-off %s restarting failed container=%s pod=%s_%s(%s)", m.Delay, c.GetName(), md.GetName(), md.GetNamespace(), md.GetUid())}
			p.wakeAt(at)
			return
		}
	}
	s.startNow(p, c, before)
}

func (s *Situation) startNow(p *Plan, c *corev1.Container, before *cri.Container) {
	if s.busy(StartContainer) {
		return
	}
	for _, step := range p.Steps {
		if step.Action == StartContainer {
			return
		}
	}
	attempt := uint32(0)
	if before != nil {
		attempt = before.Attempt + 1
	}
	s.add(p, Step{Key: Key{StartContainer, c.GetName()}, Container: c.GetName(), Attempt: attempt})
}

// ran is how long a container ran. One that could not be started never ran: its start is the epoch.
func ran(c *cri.Container) time.Duration {
	if c.StartedAt.Unix() <= 0 {
		return 0
	}
	return c.FinishedAt.Sub(c.StartedAt)
}

// nextDelay returns the back-off after a restart of a container that had run for a while.
func nextDelay(delay, ran time.Duration) time.Duration {
	if ran >= forgivenAfter {
		delay = 0
	}
	return min(max(2*delay, minRestartDelay), maxRestartDelay)
}

// restoredDelay guesses the back-off of a container that an agent before this one had restarted.
func restoredDelay(attempt uint32) time.Duration {
	delay := time.Duration(0)
	for range min(attempt, 6) {
		delay = nextDelay(delay, 0)
	}
	return delay
}
