package pod

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/services/node-agent/internal/cri"
	"dhow.dev/services/node-agent/internal/env"
	"dhow.dev/services/node-agent/internal/image"
	"dhow.dev/services/node-agent/internal/logs"
	"dhow.dev/services/node-agent/internal/probe"
	"dhow.dev/services/node-agent/internal/status"
	"dhow.dev/services/node-agent/internal/volume"
)

// minStopGrace is what every container gets between the stop signal and the kill; Kubernetes' minimum.
const minStopGrace = 2 * time.Second

// referenceTimeout bounds waiting for a ConfigMap or Secret that the API server does not send.
const referenceTimeout = 10 * time.Second

// perform is a step ready to run in its own goroutine. It returns what the loop has to do then, which is done for errors too.
type perform func(ctx context.Context) (after func(), err error)

// prepareStep binds a step to the state of now: the step runs beside the loop and must not touch the worker.
func (w *worker) prepareStep(step Step) perform {
	p, state := w.pod, w.runtime
	switch step.Action {
	case Prepare:
		return func(ctx context.Context) (func(), error) { return w.prepare(ctx, p) }
	case RunSandbox:
		cgroupPath, users := w.cgroup, w.users
		return func(ctx context.Context) (func(), error) {
			id, err := w.runSandbox(ctx, p, state, step.Attempt, cgroupPath, users)
			if err != nil {
				return nil, err
			}
			return func() {
				w.outdated[id] = ""
				w.stale = w.stale || len(state.Sandboxes) > 0 // those before were stopped
			}, nil
		}
	case StartContainer:
		return w.startStep(step)
	case ResizeContainer:
		return w.resizeStep(step)
	case ResizePod:
		return w.resizePodStep()
	case StopContainer:
		return func(ctx context.Context) (func(), error) {
			return func() { w.lookAt(step.Subject) }, w.stopContainer(ctx, p, state, step)
		}
	case RemoveContainer:
		if step.Last {
			return w.removeLast(step)
		}
		return func(ctx context.Context) (func(), error) {
			return func() { w.lookAt(step.Subject) }, w.removeContainer(ctx, state, step.Subject)
		}
	case StopSandbox:
		return func(ctx context.Context) (func(), error) { return nil, w.m.Runtime.StopSandbox(ctx, step.Subject) }
	case RemoveSandbox:
		return func(ctx context.Context) (func(), error) { return nil, w.m.Runtime.RemoveSandbox(ctx, step.Subject) }
	case TearDown:
		return func(ctx context.Context) (func(), error) {
			if err := w.tearDown(ctx); err != nil {
				return nil, err
			}
			return func() { w.tornDown, w.prepared = true, false }, nil
		}
	case Remove:
		return func(ctx context.Context) (func(), error) {
			if err := w.remove(ctx, p, state); err != nil {
				return nil, err
			}
			return func() { w.removed = true }, nil
		}
	}
	return func(context.Context) (func(), error) { return nil, fmt.Errorf("unknown step %q", step.Action) }
}

// warn tells the user of a failed step, unless it was called off.
func (w *worker) warn(ctx context.Context, p *corev1.Pod, container, reason string, err error) {
	if err != nil && ctx.Err() == nil && p != nil {
		w.m.Events.Event(p, container, true, reason, err.Error())
	}
}

// objects returns how a pod's ConfigMaps and Secrets are read.
func (w *worker) objects(ctx context.Context, p *corev1.Pod) (func(string) (*corev1.ConfigMap, error), func(string) (*corev1.Secret, error)) {
	namespace := p.GetMetadata().GetNamespace()
	return func(name string) (*corev1.ConfigMap, error) {
			ctx, cancel := context.WithTimeout(ctx, referenceTimeout)
			defer cancel()
			return w.m.References.ConfigMap(ctx, namespace, name)
		}, func(name string) (*corev1.Secret, error) {
			ctx, cancel := context.WithTimeout(ctx, referenceTimeout)
			defer cancel()
			return w.m.References.Secret(ctx, namespace, name)
		}
}

func (w *worker) volumeSources(ctx context.Context, p *corev1.Pod, ips []string) volume.Sources {
	configMap, secret := w.objects(ctx, p)
	token := func(audience string, seconds int64) (string, error) {
		ctx, cancel := context.WithTimeout(ctx, referenceTimeout)
		defer cancel()
		return w.m.Tokens.Get(ctx, p, audience, seconds)
	}
	trust := func(from *corev1.ClusterTrustBundleProjection) ([]byte, error) { return w.m.Trust(ctx, from) }
	return volume.Sources{Trust: trust, Facts: w.m.facts(p, ips), ConfigMap: configMap, Secret: secret, Token: token, Event: func(warning bool, reason, message string) {
		w.m.Events.Event(p, "", warning, reason, message)
	}}
}

// prepare makes what a pod needs before its sandbox. It takes no slot: it may wait for objects.
func (w *worker) prepare(ctx context.Context, p *corev1.Pod) (func(), error) {
	if err := os.MkdirAll(w.m.Volumes.PodDir(w.uid), 0o750); err != nil {
		return nil, fmt.Errorf("pod folder: %w", err)
	}
	if err := os.MkdirAll(LogDirectory(w.m.LogDir, p), 0o755); err != nil {
		return nil, fmt.Errorf("log folder: %w", err)
	}
	path := ""
	if w.m.Cgroups != nil {
		var err error
		if path, err = w.m.Cgroups.Ensure(p); err != nil {
			w.warn(ctx, p, "", "FailedCreatePodContainer", err)
			return nil, err
		}
	}
	paths, err := w.m.Volumes.Setup(ctx, p, w.volumeSources(ctx, p, nil))
	if err != nil {
		w.warn(ctx, p, "", "FailedMount", err)
		return nil, err
	}
	users := uint32(0)
	if ownUsers(p) {
		if users, err = w.m.users.take(w.uid, w.m.Volumes.PodDir(w.uid)); err != nil {
			w.warn(ctx, p, "", "FailedCreatePodSandBox", err)
			return nil, err
		}
	}
	return func() {
		w.prepared, w.volumes, w.cgroup, w.users = true, paths, path, users
		w.resized(p)
	}, nil
}

func (w *worker) runSandbox(ctx context.Context, p *corev1.Pod, state cri.PodState, attempt uint32, cgroupPath string, users uint32) (string, error) {
	release, err := w.m.slots.take(ctx, false)
	if err != nil {
		return "", err
	}
	defer release()
	for _, old := range state.Sandboxes {
		// Frees the network of a sandbox that died by itself.
		if err := w.m.Runtime.StopSandbox(ctx, old.ID); err != nil {
			return "", err
		}
	}
	if len(state.Sandboxes) > 0 {
		w.m.Events.Event(p, "", false, "SandboxChanged", "Pod sandbox changed, it will be killed and re-created.")
	}
	config, err := w.m.sandboxConfig(p, attempt, cgroupPath, users)
	if err != nil {
		w.warn(ctx, p, "", "FailedCreatePodSandBox", fmt.Errorf("Failed to create pod sandbox: %w", err)) //nolint:staticcheck // the event's text
		return "", err
	}
	handler, err := w.m.handler(p)
	if err != nil {
		w.warn(ctx, p, "", "FailedCreatePodSandBox", fmt.Errorf("Failed to create pod sandbox: %w", err)) //nolint:staticcheck // the event's text
		return "", err
	}
	id, err := w.m.Runtime.RunSandbox(ctx, config, handler)
	if err != nil {
		w.warn(ctx, p, "", "FailedCreatePodSandBox", fmt.Errorf("Failed to create pod sandbox: %w", err)) //nolint:staticcheck // the event's text
		return "", err
	}
	return id, nil
}

// handler returns the runtime's way to run a pod: what the pod's runtime class says.
func (c *Config) handler(p *corev1.Pod) (string, error) {
	class := p.GetSpec().GetRuntimeClassName()
	if class == "" {
		return "", nil
	}
	handler, ok := c.Handlers(class)
	if !ok {
		return "", fmt.Errorf("failed to get RuntimeClass %q: runtimeclass.node.k8s.io %q not found", class, class)
	}
	return handler, nil
}

// SpecOf returns a container's spec, or nil; an ephemeral one's as that of a container.
func SpecOf(p *corev1.Pod, name string) *corev1.Container {
	for _, c := range slices.Concat(p.GetSpec().GetInitContainers(), p.GetSpec().GetContainers(), status.Ephemeral(p)) {
		if c.GetName() == name {
			return c
		}
	}
	return nil
}

// startStep binds the start of a container.
func (w *worker) startStep(step Step) perform {
	p, spec, sandbox := w.pod, SpecOf(w.pod, step.Container), *w.runtime.CurrentSandbox()
	target, targetErr := w.target(step.Container)
	m := w.remember(step.Container)
	attempt := step.Attempt
	if before := w.runtime.Newest(step.Container); before != nil {
		m.Delay = nextDelay(m.Delay, ran(before))
		w.m.meter.restarts.Add(w.ctx, 1)
	} else if attempt = max(m.Next, runsBefore(w.pod, step.Container)); attempt > 0 {
		// The runs before are removed, or lost: the count goes on, so that a number never means two runs.
		w.m.meter.restarts.Add(w.ctx, 1)
	}
	paths, cgroupPath, users := w.volumes, w.cgroup, w.users
	return func(ctx context.Context) (func(), error) {
		id, err := "", targetErr
		if err == nil {
			id, err = w.startContainer(ctx, p, spec, attempt, sandbox, paths, cgroupPath, users, target)
		}
		cancelled := ctx.Err() != nil
		return func() {
			if id != "" {
				w.outdated[id] = sandbox.ID
			}
			m.Waiting = nil
			var held *image.Failure
			var failed *failure
			switch {
			case err == nil || cancelled:
			case errors.As(err, &held):
				m.Waiting = &status.Waiting{Reason: held.Reason, Message: held.Message}
			case errors.As(err, &failed):
				m.Waiting = &status.Waiting{Reason: failed.reason, Message: failed.Error()}
			default:
				m.Waiting = &status.Waiting{Reason: status.ReasonCreateContainerError, Message: err.Error()}
			}
		}, err
	}
}

// target returns the ID of the container whose processes an ephemeral container shall see; empty: its own only.
func (w *worker) target(name string) (string, error) {
	for _, e := range w.pod.GetSpec().GetEphemeralContainers() {
		wanted := e.GetTargetContainerName()
		if e.GetEphemeralContainerCommon().GetName() != name || wanted == "" {
			continue
		}
		if r := w.runtime.Newest(wanted); r != nil && r.State == cri.StateRunning {
			return r.ID, nil
		}
		return "", configError(fmt.Errorf("targetContainerName: container %q does not run", wanted))
	}
	return "", nil
}

// runsBefore returns the number of a container's next run, by the status that the API server has.
func runsBefore(p *corev1.Pod, name string) uint32 {
	for _, s := range slices.Concat(p.GetStatus().GetContainerStatuses(), p.GetStatus().GetInitContainerStatuses()) {
		switch {
		case s.GetName() != name || s.GetRestartCount() <= 0:
		case s.GetContainerId() == "":
			return uint32(s.GetRestartCount()) // counts the run that is to come
		default:
			return uint32(s.GetRestartCount()) + 1
		}
	}
	return 0
}

func (w *worker) startContainer(ctx context.Context, p *corev1.Pod, spec *corev1.Container, attempt uint32, sandbox cri.Sandbox, paths map[string]string, cgroupPath string, users uint32, target string) (string, error) {
	name := spec.GetName()
	sandboxConfig, err := w.m.sandboxConfig(p, sandbox.Attempt, cgroupPath, users)
	if err != nil {
		return "", configError(err)
	}
	img, err := w.pull(ctx, p, name, spec.GetImage(), spec.GetImagePullPolicy(), sandboxConfig)
	if err != nil {
		return "", err
	}
	images, err := w.images(ctx, p, spec, sandboxConfig)
	if err != nil {
		return "", err
	}
	recursion := false
	if asksForRecursion(spec) {
		if recursion, err = w.m.mountsRecursively(ctx, p); err != nil {
			return "", err
		}
	}
	configMap, secret := w.objects(ctx, p)
	ips := sandbox.IPs
	if p.GetSpec().GetHostNetwork() {
		ips = w.m.HostIPs
	}
	config, err := w.m.containerConfig(run{pod: p, container: spec, attempt: attempt, image: img, volumes: paths, images: images, recursion: recursion, ips: ips, users: users, target: target, sources: env.Sources{
		Pod: p, Facts: w.m.facts(p, ips), Services: env.VisibleServices(p, w.m.Services()), ConfigMap: configMap, Secret: secret, File: fileOf(paths)}})
	if err != nil {
		w.warn(ctx, p, name, "Failed", fmt.Errorf("Error: %w", err)) //nolint:staticcheck // the event's text
		return "", err
	}
	containerID, err := w.createAndStart(ctx, p, name, sandbox.ID, config, sandboxConfig)
	if err != nil {
		return "", err
	}
	return containerID, w.postStart(ctx, p, spec, containerID, ips)
}

// pull gets an image for a container, with the pod's credentials.
func (w *worker) pull(ctx context.Context, p *corev1.Pod, container, ref, policy string, sandbox *runtimev1.PodSandboxConfig) (cri.Image, error) {
	ctx, span := w.m.Tracer.Start(ctx, "pod image")
	defer span.End()
	var secrets []*corev1.Secret
	_, read := w.objects(ctx, p)
	for _, ref := range p.GetSpec().GetImagePullSecrets() {
		s, err := read(ref.GetName())
		if err != nil {
			// As in Kubernetes a missing secret is no obstacle by itself: the image may need none.
			w.warn(ctx, p, "", "FailedToRetrieveImagePullSecret", fmt.Errorf("Unable to retrieve image pull secret %q: %w", ref.GetName(), err)) //nolint:staticcheck // the event's text
			continue
		}
		secrets = append(secrets, s)
	}
	auths, err := image.Auths(ref, secrets)
	if err != nil {
		return cri.Image{}, configError(err)
	}
	return w.m.Images.Ensure(ctx, image.Request{
		PodUID: w.uid, Image: ref, Policy: policy, Auths: auths, Sandbox: sandbox,
		Event: func(warning bool, reason, message string) {
			w.m.Events.Event(p, container, warning, reason, message)
		},
	})
}

func (w *worker) createAndStart(ctx context.Context, p *corev1.Pod, name, sandboxID string, config *runtimev1.ContainerConfig, sandbox *runtimev1.PodSandboxConfig) (string, error) {
	release, err := w.m.slots.take(ctx, true)
	if err != nil {
		return "", err
	}
	defer release()
	create, span := w.m.Tracer.Start(ctx, "pod container create")
	id, err := w.m.Runtime.CreateContainer(create, sandboxID, config, sandbox)
	span.End()
	if err != nil {
		w.warn(ctx, p, name, "Failed", fmt.Errorf("Error: %w", err)) //nolint:staticcheck // the event's text
		return "", err
	}
	w.m.Events.Event(p, name, false, "Created", "Container created")
	start, span := w.m.Tracer.Start(ctx, "pod container start")
	err = w.m.Runtime.StartContainer(start, id)
	span.End()
	if err != nil {
		w.warn(ctx, p, name, "Failed", fmt.Errorf("Error: %w", err)) //nolint:staticcheck // the event's text
		return "", &failure{reason: status.ReasonRunContainerError, err: err}
	}
	w.m.Events.Event(p, name, false, "Started", "Container started")
	w.m.meter.starts.Add(ctx, 1)
	return id, nil
}

// postStart runs the hook; a container whose hook fails is stopped.
func (w *worker) postStart(ctx context.Context, p *corev1.Pod, spec *corev1.Container, id string, ips []string) error {
	hook := spec.GetLifecycle().GetPostStart()
	if hook == nil {
		return nil
	}
	err := w.hook(ctx, hook, probe.Target{Container: spec, ContainerID: id, IP: firstOf(ips)}, time.Hour)
	if err == nil || ctx.Err() != nil {
		return err
	}
	err = fmt.Errorf("PostStartHook failed: %w", err)
	w.warn(ctx, p, spec.GetName(), "FailedPostStartHook", err)
	w.m.Events.Event(p, spec.GetName(), false, "Killing", "FailedPostStartHook")
	grace := time.Duration(p.GetSpec().GetTerminationGracePeriodSeconds()) * time.Second
	return &failure{reason: status.ReasonPostStartHookError, err: errors.Join(err, w.m.Runtime.StopContainer(ctx, id, max(grace, minStopGrace)))}
}

func firstOf(list []string) string {
	if len(list) == 0 {
		return ""
	}
	return list[0]
}

// hook runs a lifecycle handler.
func (w *worker) hook(ctx context.Context, h *corev1.LifecycleHandler, target probe.Target, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var r probe.Result
	switch {
	case h.HasExec():
		r = probe.Exec(ctx, w.m.Runtime, target.ContainerID, h.GetExec().GetCommand(), timeout)
	case h.HasHttpGet():
		r = probe.HTTP(ctx, h.GetHttpGet(), target)
	case h.HasSleep():
		timer := time.NewTimer(time.Duration(h.GetSleep().GetSeconds()) * time.Second)
		defer timer.Stop()
		select {
		case <-timer.C:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	case h.HasTcpSocket():
		// The API takes it for compatibility alone; Kubernetes' nodes fail such hooks when they are due.
		return errors.New("invalid handler: tcpSocket is not run in hooks; use exec, httpGet or sleep")
	default:
		return errors.New("invalid handler: use exec, httpGet or sleep")
	}
	if !r.OK {
		return errors.New(r.Output)
	}
	return nil
}

// stopContainer runs the preStop hook within the grace, then stops with what is left of it.
func (w *worker) stopContainer(ctx context.Context, p *corev1.Pod, state cri.PodState, step Step) error {
	began := time.Now()
	if p != nil {
		w.m.Events.Event(p, step.Container, false, "Killing", step.Why)
	}
	spec := SpecOf(p, step.Container)
	if hook := spec.GetLifecycle().GetPreStop(); hook != nil && step.Grace > 0 {
		ips := w.m.HostIPs
		if s := state.CurrentSandbox(); s != nil && !p.GetSpec().GetHostNetwork() {
			ips = s.IPs
		}
		if err := w.hook(ctx, hook, probe.Target{Container: spec, ContainerID: step.Subject, IP: firstOf(ips)}, step.Grace); err != nil {
			w.warn(ctx, p, step.Container, "FailedPreStopHook", fmt.Errorf("PreStopHook failed: %w", err))
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return w.m.Runtime.StopContainer(ctx, step.Subject, max(step.Grace-time.Since(began), minStopGrace))
}

func (w *worker) tearDown(ctx context.Context) error {
	if err := w.m.Volumes.Teardown(ctx, w.uid); err != nil {
		return err
	}
	if w.m.Cgroups == nil {
		return nil
	}
	return w.m.Cgroups.Remove(w.uid)
}

// removeContainer removes a run of a container, and first its log, which the runtime leaves: it would stay as long as the pod, however often the container ends.
func (w *worker) removeContainer(ctx context.Context, state cri.PodState, id string) error {
	if c := state.ByID(id); c != nil && c.LogPath != "" {
		if err := logs.Remove(c.LogPath); err != nil {
			return err
		}
	}
	return w.m.Runtime.RemoveContainer(ctx, id)
}

// remove removes what a pod that nobody knows any more has left: containers, sandboxes, folders, logs.
func (w *worker) remove(ctx context.Context, p *corev1.Pod, state cri.PodState) error {
	for _, c := range state.Containers {
		if err := w.m.Runtime.RemoveContainer(ctx, c.ID); err != nil {
			return err
		}
	}
	for _, s := range state.Sandboxes {
		if err := w.m.Runtime.RemoveSandbox(ctx, s.ID); err != nil {
			return err
		}
	}
	if err := w.m.Volumes.Remove(ctx, w.uid); err != nil {
		return err
	}
	if p != nil {
		return os.RemoveAll(LogDirectory(w.m.LogDir, p))
	}
	if strings.ContainsAny(w.uid, `*?[\/`) {
		return nil // not a UID that this node has made a folder for
	}
	left, err := filepath.Glob(filepath.Join(w.m.LogDir, "*_"+w.uid))
	if err != nil {
		return err
	}
	for _, dir := range left {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	return nil
}

// refreshing is the key of a volume update.
var refreshing = Key{Action: "update-volumes"}

// referencesChanged takes up changed ConfigMaps and Secrets: in volumes at once, in what could not start for want of them by another try.
func (w *worker) referencesChanged() {
	for k := range w.retries {
		if k.Action == Prepare {
			delete(w.retries, k)
		}
		if m := w.memory[k.Subject]; k.Action == StartContainer && m != nil && m.Waiting != nil && m.Waiting.Reason == status.ReasonCreateContainerConfigError {
			delete(w.retries, k)
		}
	}
	w.refreshVolumes()
}

// refreshVolumes brings volumes made from objects up to date, beside the loop.
func (w *worker) refreshVolumes() {
	if !w.prepared || w.pod == nil || w.gone || w.finished {
		return
	}
	if w.ops[refreshing] != nil {
		w.refreshAgain = true
		return
	}
	p, ips := w.pod, []string(nil)
	if s := w.runtime.CurrentSandbox(); s != nil {
		ips = s.IPs
	}
	ctx, cancel := context.WithCancel(w.ctx)
	w.ops[refreshing] = &operation{cancel: cancel}
	w.m.group.Go(func() {
		defer cancel()
		_, err := w.m.Volumes.Update(ctx, p, w.volumeSources(ctx, p, ips))
		w.warn(ctx, p, "", "FailedMount", err)
		w.post(func() {
			delete(w.ops, refreshing)
			if w.refreshAgain {
				w.refreshAgain = false
				w.refreshVolumes()
			}
		})
	})
}

// maxMessage bounds a termination message; the end of a log stands in with less.
const (
	maxMessage      = 4096
	maxMessageLog   = 2048
	maxMessageLines = 80
)

// readMessages reads the last words of containers that have ended.
func (w *worker) readMessages() {
	for _, c := range w.runtime.Containers {
		if c.State != cri.StateExited {
			continue
		}
		if _, known := w.messages[c.ID]; known {
			continue
		}
		w.messages[c.ID] = lastWords(c)
	}
}

func lastWords(c cri.Container) string {
	text := ""
	if name := c.Annotations[cri.AnnotationMessageFile]; name != "" {
		if f, err := os.Open(name); err == nil {
			// The end of a long message counts; an unreadable one is none.
			if info, err := f.Stat(); err == nil && info.Mode().IsRegular() {
				data, _ := io.ReadAll(io.NewSectionReader(f, max(info.Size()-maxMessage, 0), maxMessage))
				text = string(data)
			}
			_ = f.Close()
		}
	}
	if text == "" && c.ExitCode != 0 && c.Annotations[cri.AnnotationMessagePolicy] == "FallbackToLogsOnError" {
		if tail, err := logs.Tail(c.LogPath, maxMessageLines, maxMessageLog); err == nil {
			text = string(tail)
		}
	}
	return strings.ToValidUTF8(text, "\uFFFD")
}
