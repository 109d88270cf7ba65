package pod

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/protobuf/proto"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/pkg/telemetry/logkey"
	"dhow.dev/services/node-agent/internal/cri"
	"dhow.dev/services/node-agent/internal/image"
	"dhow.dev/services/node-agent/internal/status"
)

// stepKey is the attribute that names a step in traces and metrics.
const stepKey = attribute.Key("dhow.step")

// Retries of steps that failed wait from minRetry, doubling, to maxRetry.
const (
	minRetry = 500 * time.Millisecond
	maxRetry = 30 * time.Second
)

// worker looks after one pod. Everything below mu's group is touched by the loop's goroutine only; others post functions to it.
type worker struct {
	m   *Manager
	uid string

	mu    sync.Mutex
	inbox []func()
	wake  chan struct{}
	// seen and seenRuntime are what view answers.
	seen        *corev1.Pod
	seenRuntime cri.PodState
	seenEnded   bool
	// seenReleased says that nothing of the pod runs or is mounted any more.
	seenReleased bool
	// changed is closed and replaced when what view answers changes, and when the worker is over.
	changed chan struct{}
	over    bool

	ctx      context.Context // ends with the worker
	traceCtx context.Context // carries the trace of the change that brought the pod here
	arrived  time.Time
	wasReady bool

	// pod is the pod with the resources that are admitted; wish has those that the user wants, pending says why they are not admitted.
	pod, wish *corev1.Pod
	pending   *status.End
	gone      bool
	end       *status.End
	finished  bool
	runtime   cri.PodState
	// stale says that all of runtime may have changed, outdated what else may have: IDs of containers with the sandbox that they are in, and of sandboxes with none.
	stale     bool
	outdated  map[string]string
	ops       map[Key]*operation
	retries   map[Key]*retry
	prepared  bool
	tornDown  bool
	removed   bool
	confirmed bool
	memory    map[string]*Memory
	health    map[string]*health
	messages  map[string]string
	last      *corev1.PodStatus
	// volumes and cgroup are what Prepare made.
	volumes map[string]string
	cgroup  string
	// podResized is what the cgroup was last made with, resizeError why it could not be changed.
	podResized, resizeError string
	// users is the first ID on the machine of the pod's own users, 0 when it has the machine's.
	users uint32
	// refreshAgain says that volumes changed while they were being updated.
	refreshAgain bool
}

// operation is a step that runs.
type operation struct {
	step   Step
	cancel context.CancelFunc
}

// retry holds back a step.
type retry struct {
	delay time.Duration
	at    time.Time
}

func newWorker(m *Manager, uid string, p *corev1.Pod, state cri.PodState) *worker {
	w := &worker{
		m: m, uid: uid, wake: make(chan struct{}, 1), changed: make(chan struct{}), pod: p, seen: p, runtime: state, seenRuntime: state, arrived: time.Now(), traceCtx: context.Background(),
		outdated: map[string]string{}, ops: map[Key]*operation{}, retries: map[Key]*retry{}, memory: map[string]*Memory{}, health: map[string]*health{}, messages: map[string]string{},
	}
	w.runtime.UID = uid
	return w
}

// post hands f to the loop.
func (w *worker) post(f func()) {
	w.mu.Lock()
	w.inbox = append(w.inbox, f)
	w.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

func (w *worker) view() (*corev1.Pod, cri.PodState) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.seen, w.seenRuntime
}

// claims returns the pod and whether it has given its resources back.
func (w *worker) claims() (*corev1.Pod, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.seen, w.seenEnded
}

func (w *worker) logger() []any {
	md := w.pod.GetMetadata()
	return []any{logkey.Pod(md.GetNamespace(), md.GetName()), logkey.UID(w.uid)}
}

// loop runs until the pod is gone for good or ctx ends.
func (w *worker) loop(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w.ctx = ctx
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.wake:
		case <-timer.C:
		}
		w.mu.Lock()
		inbox := w.inbox
		w.inbox = nil
		w.mu.Unlock()
		for _, f := range inbox {
			f()
		}
		if w.stale || len(w.outdated) > 0 {
			if err := w.refresh(); err != nil {
				w.m.Logger.WarnContext(ctx, "runtime state of a pod not read, trying again", append(w.logger(), logkey.Err(err))...)
				timer.Reset(time.Second)
				continue
			}
		}
		wakeAt, done := w.sync()
		if done {
			w.cleanUp()
			return
		}
		if wakeAt.IsZero() {
			timer.Stop()
		} else {
			timer.Reset(max(time.Until(wakeAt), 0))
		}
	}
}

func (w *worker) markStale() { w.stale = true }

// lookAt says that a container or sandbox has changed.
func (w *worker) lookAt(id string) {
	if c := w.runtime.ByID(id); c != nil {
		w.outdated[id] = c.SandboxID
	} else if w.runtime.HasSandbox(id) {
		w.outdated[id] = ""
	} else {
		w.stale = true
	}
}

// refresh asks the runtime for the pod's state, or for the states of what may have changed in it.
func (w *worker) refresh() error {
	if w.stale {
		state, err := w.m.Runtime.Pod(w.ctx, w.uid)
		if err != nil {
			return err
		}
		w.stale, w.runtime = false, state
		clear(w.outdated)
		return nil
	}
	for id, in := range w.outdated {
		state, err := w.stateOf(id, in)
		switch {
		case errors.Is(err, cri.ErrNotFound):
			state = w.runtime.Without(id)
		case err != nil:
			return err
		}
		w.runtime = state
		delete(w.outdated, id)
	}
	return nil
}

// stateOf returns the pod's state with what the runtime says of one container, or of one sandbox when the container's is empty.
func (w *worker) stateOf(id, in string) (cri.PodState, error) {
	if in == "" {
		s, err := w.m.Runtime.SandboxByID(w.ctx, id)
		return w.runtime.WithSandbox(s), err
	}
	c, err := w.m.Runtime.ContainerByID(w.ctx, id, in)
	return w.runtime.WithContainer(c), err
}

// update takes a new form of the pod.
func (w *worker) update(ctx context.Context, p *corev1.Pod) {
	first := w.pod == nil || w.traceCtx == context.Background()
	old := w.pod
	w.wish = p
	if !first {
		p = w.allot(p)
	}
	w.pod = p
	if first {
		w.traceCtx = trace.ContextWithSpanContext(context.Background(), trace.SpanContextFromContext(ctx))
		w.restore()
	}
	w.finished = w.finished || status.IsTerminal(p.GetStatus().GetPhase())
	if old == nil || first || !sameWish(old, p) {
		w.m.References.Hold(p)
		w.m.State.Save(p)
	}
	if old != nil && old != p && w.prepared && !(maps.Equal(old.GetMetadata().GetLabels(), p.GetMetadata().GetLabels()) &&
		maps.Equal(old.GetMetadata().GetAnnotations(), p.GetMetadata().GetAnnotations())) {
		w.refreshVolumes() // the downward API may show the change
	}
}

// sameWish says whether two forms of a pod differ in nothing but what nodes and API servers note on them.
func sameWish(a, b *corev1.Pod) bool {
	x, y := a.GetMetadata(), b.GetMetadata()
	return x.GetGeneration() == y.GetGeneration() && x.GetDeletionGracePeriodSeconds() == y.GetDeletionGracePeriodSeconds() &&
		x.HasDeletionTimestamp() == y.HasDeletionTimestamp() && maps.Equal(x.GetLabels(), y.GetLabels()) && maps.Equal(x.GetAnnotations(), y.GetAnnotations()) &&
		a.GetStatus().GetPhase() == b.GetStatus().GetPhase() && proto.Equal(a.GetSpec(), b.GetSpec())
}

// restore takes over what an agent before this one knew: from the runtime and from the pod's status.
func (w *worker) restore() {
	known := map[string]*corev1.ContainerStatus{}
	for _, s := range slices.Concat(w.pod.GetStatus().GetContainerStatuses(), w.pod.GetStatus().GetInitContainerStatuses()) {
		known[s.GetName()] = s
	}
	for _, c := range slices.Concat(w.pod.GetSpec().GetContainers(), w.pod.GetSpec().GetInitContainers()) {
		r := w.runtime.Newest(c.GetName())
		if r == nil {
			continue
		}
		m := w.remember(c.GetName())
		m.Delay = restoredDelay(r.Attempt)
		if s := known[c.GetName()]; r.State == cri.StateRunning && s.GetContainerId() == w.m.RuntimeName+"://"+r.ID {
			w.health[c.GetName()] = &health{id: r.ID, started: s.GetStarted(), restored: true}
			m.Started, m.Ready = s.GetStarted(), s.GetReady()
		}
	}
	for _, c := range w.pod.GetStatus().GetConditions() {
		if c.GetType() == status.ConditionReady && c.GetStatus() == "True" {
			w.wasReady = true
		}
	}
}

func (w *worker) remember(name string) *Memory {
	if w.memory[name] == nil {
		w.memory[name] = &Memory{UnhealthyGrace: -1}
	}
	return w.memory[name]
}

func (w *worker) situation(now time.Time) Situation {
	s := Situation{
		Now: now, Pod: w.pod, Gone: w.gone, End: w.end, Finished: w.finished, Runtime: w.runtime, Busy: map[Key]bool{}, NotBefore: map[Key]time.Time{},
		Prepared: w.prepared, PodResized: w.podResized, TornDown: w.tornDown, Removed: w.removed, Memory: map[string]Memory{},
	}
	for k := range w.ops {
		s.Busy[k] = true
	}
	for k, r := range w.retries {
		s.NotBefore[k] = r.at
	}
	for name, m := range w.memory {
		s.Memory[name] = *m
	}
	return s
}

// sync decides and acts once. It returns when to do so again without any event, and whether nothing is left to do for ever.
func (w *worker) sync() (wakeAt time.Time, done bool) {
	now := time.Now()
	deadline := w.deadline(now)
	w.watchHealth()
	if w.pending != nil {
		w.pod = w.allot(w.wish)
	}
	s := w.situation(now)
	plan := Decide(s)
	if plan.Finished {
		w.finished = true
	}
	if plan.CancelStarts {
		for k, op := range w.ops {
			if k.Action == Prepare || k.Action == RunSandbox || k.Action == StartContainer {
				op.cancel()
			}
		}
	}
	if s.ending() {
		w.shorten(s.grace())
	}
	for _, step := range plan.Steps {
		w.launch(step)
	}
	w.report(now, plan)
	w.mu.Lock()
	w.seen, w.seenRuntime, w.seenEnded, w.seenReleased = w.pod, w.runtime, plan.Stopped, plan.Released
	close(w.changed)
	w.changed = make(chan struct{})
	w.mu.Unlock()
	wakeAt = plan.Wake
	if again := now.Add(retryResize); w.pending != nil && (wakeAt.IsZero() || again.Before(wakeAt)) {
		wakeAt = again
	}
	if !deadline.IsZero() && (wakeAt.IsZero() || deadline.Before(wakeAt)) {
		wakeAt = deadline
	}
	return wakeAt, plan.Done
}

// deadline ends the pod when activeDeadlineSeconds are over, or returns when they will be.
func (w *worker) deadline(now time.Time) time.Time {
	if w.pod == nil || !w.pod.GetSpec().HasActiveDeadlineSeconds() || w.finished || w.end != nil || w.last.GetStartTime() == nil {
		return time.Time{}
	}
	at := time.Unix(w.last.GetStartTime().GetSeconds(), 0).Add(time.Duration(w.pod.GetSpec().GetActiveDeadlineSeconds()) * time.Second)
	if at.After(now) {
		return at
	}
	w.end = &status.End{Reason: "DeadlineExceeded", Message: "Pod was active on the node longer than the specified deadline"}
	w.event("", false, w.end.Reason, w.end.Message)
	return time.Time{}
}

// shorten calls off graceful stops that would take longer than the pod now has; they are done again with the shorter grace.
func (w *worker) shorten(grace time.Duration) {
	for k, op := range w.ops {
		if k.Action == StopContainer && op.step.Grace > grace {
			op.cancel()
		}
	}
}

// report publishes the status if it changed.
func (w *worker) report(now time.Time, plan Plan) {
	if w.pod == nil || w.gone {
		return
	}
	w.readMessages()
	containers := map[string]status.Container{}
	for name, m := range w.memory {
		c := m.Container
		if wait := plan.Wait[name]; wait != nil {
			c.Waiting = wait
		}
		if r := w.runtime.Newest(name); r != nil && r.State == cri.StateRunning {
			c.Waiting = nil
		}
		containers[name] = c
	}
	for name, wait := range plan.Wait {
		c := containers[name]
		w.backOffEvent(name, wait)
		c.Waiting = wait
		containers[name] = c
	}
	resizing, behind := w.resizes(containers)
	s := status.Compute(status.Input{
		Pending: w.pending, Resizing: resizing, Behind: behind, Now: now, Pod: w.pod, Previous: w.last, Runtime: w.runtime, RuntimeName: w.m.RuntimeName, Containers: containers, Messages: w.messages,
		HostIPs: w.m.HostIPs, End: w.end, Stopped: plan.Stopped,
	})
	w.finished = w.finished || status.IsTerminal(s.GetPhase())
	deleted := w.pod.GetMetadata().HasDeletionTimestamp()
	changed := w.last == nil || !proto.Equal(w.last, s)
	w.last = s
	switch {
	case deleted && plan.Released:
		if !w.confirmed {
			w.confirmed = true
			w.m.Reporter.Finish(w.traceCtx, w.pod, s)
		}
		return
	case changed:
		w.m.Reporter.Publish(w.traceCtx, w.pod, s)
	}
	w.measureReadiness(s)
}

// backOffEvent tells the user once per back-off.
func (w *worker) backOffEvent(name string, wait *status.Waiting) {
	if wait.Reason != status.ReasonCrashLoopBackOff {
		return
	}
	r := w.runtime.Newest(name)
	m := w.remember(name)
	if r == nil || m.BackOffTold == r.ID {
		return
	}
	m.BackOffTold = r.ID
	md := w.pod.GetMetadata()
	w.event(name, true, "BackOff", fmt.Sprintf("Back-off restarting failed container %s in pod %s_%s(%s)", name, md.GetName(), md.GetNamespace(), w.uid))
}

// measureReadiness records the time from the pod's arrival to its first readiness, as a span of the trace that brought it.
func (w *worker) measureReadiness(s *corev1.PodStatus) {
	if w.wasReady {
		return
	}
	for _, c := range s.GetConditions() {
		if c.GetType() != status.ConditionReady || c.GetStatus() != "True" {
			continue
		}
		w.wasReady = true
		md := w.pod.GetMetadata()
		_, span := w.m.Tracer.Start(w.traceCtx, "pod ready", trace.WithTimestamp(w.arrived), trace.WithAttributes(
			attribute.String("k8s.pod.name", md.GetName()), attribute.String("k8s.namespace.name", md.GetNamespace()), attribute.String("k8s.pod.uid", w.uid)))
		span.End()
		w.m.meter.ready.Record(w.traceCtx, time.Since(w.arrived).Seconds())
	}
}

func (w *worker) event(container string, warning bool, reason, message string) {
	if w.pod != nil {
		w.m.Events.Event(w.pod, container, warning, reason, message)
	}
}

// launch runs a step beside the loop.
func (w *worker) launch(step Step) {
	ctx, cancel := context.WithCancel(trace.ContextWithSpanContext(w.ctx, trace.SpanContextFromContext(w.traceCtx)))
	w.ops[step.Key] = &operation{step: step, cancel: cancel}
	f := w.prepareStep(step)
	w.m.group.Go(func() {
		defer cancel()
		began := time.Now()
		spanCtx, span := w.m.Tracer.Start(ctx, "pod "+string(step.Action), trace.WithAttributes(
			attribute.String("k8s.pod.uid", w.uid), attribute.String("k8s.container.name", step.Container)))
		after, err := f(spanCtx)
		if err != nil {
			span.RecordError(err)
		}
		span.End()
		w.m.measure(ctx, step.Action, began)
		cancelled := ctx.Err() != nil
		w.post(func() {
			delete(w.ops, step.Key)
			w.stale = w.stale || leavesUnsure(step.Action, err)
			if after != nil {
				after()
			}
			w.settle(step, err, cancelled)
		})
	})
}

// leavesUnsure says that after a step all of the pod's state in the runtime is asked for: it failed half-way, or changed more than what it names itself.
func leavesUnsure(a Action, err error) bool {
	switch a {
	case Prepare, TearDown: // nothing in the runtime
		return false
	case RunSandbox, StartContainer, StopContainer, RemoveContainer:
		return err != nil
	}
	return true
}

// settle takes note of how a step ended.
func (w *worker) settle(step Step, err error, cancelled bool) {
	var held *image.Failure
	switch {
	case err == nil:
		delete(w.retries, step.Key)
		return
	case cancelled:
		return
	case errors.As(err, &held):
		at := held.RetryAt
		if held.Reason == image.ReasonErrImagePull {
			// Soon again, not to pull but to say that it is being held back.
			at = time.Now().Add(min(time.Until(at), time.Second))
		}
		w.retries[step.Key] = &retry{at: at}
		return
	}
	r := w.retries[step.Key]
	if r == nil {
		r = &retry{}
		w.retries[step.Key] = r
	}
	r.delay = min(max(2*r.delay, minRetry), maxRetry)
	r.at = time.Now().Add(r.delay)
	w.m.Logger.WarnContext(w.ctx, "step of a pod failed, trying again", append(w.logger(), logkey.Err(err), logkey.Reason(string(step.Action)), logkey.Container(step.Container), logkey.Delay(r.delay))...)
}

// awaitEnd waits until a container does not run any more, or ctx ends.
func (w *worker) awaitEnd(ctx context.Context, id string) {
	for {
		w.mu.Lock()
		c, changed, over := w.seenRuntime.ByID(id), w.changed, w.over
		w.mu.Unlock()
		if over || c == nil || c.State == cri.StateExited {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

// cleanUp forgets the pod everywhere.
func (w *worker) cleanUp() {
	w.mu.Lock()
	w.over = true
	close(w.changed)
	w.changed = make(chan struct{})
	w.mu.Unlock()
	for _, h := range w.health {
		h.stop()
	}
	w.m.References.Release(w.uid)
	w.m.Tokens.Forget(w.uid)
	w.m.Images.Forget(w.uid)
	w.m.Reporter.Forget(w.uid)
	w.m.State.Delete(w.uid)
	w.m.users.free(w.uid)
}
