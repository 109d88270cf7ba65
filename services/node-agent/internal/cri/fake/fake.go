// Package fake is a container runtime in memory for tests. It keeps the same rules as a real one (the conformance suite in critest holds it to
// them) and lets a test decide when containers exit and which calls fail.
package fake

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"dhow.dev/services/node-agent/internal/cri"
)

// Runtime implements cri.Runtime.
type Runtime struct {
	mu          sync.Mutex
	next        int
	sandboxes   map[string]*sandbox
	containers  map[string]*container
	images      map[string]cri.Image
	subscribers map[int]chan cri.Event
	failures    map[string][]error
	blocks      map[string]chan struct{}
	calls       []string
	// ignoreStop holds the names of containers that only a kill ends.
	ignoreStop map[string]bool
	execs      func(container string, command []string) (cri.ExecResult, error)
	// handlers are the handlers that sandboxes were run with.
	handlers []string
}

type sandbox struct {
	cri.Sandbox
	config *runtimev1.PodSandboxConfig
}

type container struct {
	cri.Container
	podUID string
	config *runtimev1.ContainerConfig
	ended  chan struct{}
}

// New returns a runtime that has the given images.
func New(images ...string) *Runtime {
	r := &Runtime{
		sandboxes: map[string]*sandbox{}, containers: map[string]*container{}, images: map[string]cri.Image{},
		subscribers: map[int]chan cri.Event{}, failures: map[string][]error{}, blocks: map[string]chan struct{}{}, ignoreStop: map[string]bool{},
	}
	for _, i := range images {
		r.images[i] = cri.Image{ID: "sha256:" + i, Names: []string{i}}
	}
	return r
}

// Fail makes the next call of a method return err. Fails of one method queue up.
func (r *Runtime) Fail(method string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failures[method] = append(r.failures[method], err)
}

// Block makes calls of a method wait until the returned function is called.
func (r *Runtime) Block(method string) (release func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	gate := make(chan struct{})
	r.blocks[method] = gate
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.blocks, method)
		close(gate)
	}
}

// IgnoreStop makes a container of this name ignore the stop signal.
func (r *Runtime) IgnoreStop(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ignoreStop[name] = true
}

// OnExec answers ExecSync; without it every command succeeds.
func (r *Runtime) OnExec(f func(container string, command []string) (cri.ExecResult, error)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.execs = f
}

// Calls returns the methods called so far that change something, each with its subject, for example "StartContainer web".
func (r *Runtime) Calls() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.calls)
}

// Exit ends the running container of a name as if its process had exited. It says whether there was one.
func (r *Runtime) Exit(podUID, name string, code int32, reason string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.containers {
		if c.podUID == podUID && c.Name == name && c.State == cri.StateRunning {
			r.exit(c, code, reason)
			return true
		}
	}
	return false
}

// KillSandbox makes a pod's ready sandbox not ready, and ends its containers.
func (r *Runtime) KillSandbox(podUID string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.sandboxes {
		if s.config.GetMetadata().GetUid() == podUID && s.Ready {
			r.stopSandbox(s)
		}
	}
}

// Config returns what the newest container of a name was created with, or nil.
func (r *Runtime) Config(podUID, name string) *runtimev1.ContainerConfig {
	r.mu.Lock()
	defer r.mu.Unlock()
	var newest *container
	for _, c := range r.containers {
		if c.podUID == podUID && c.Name == name && (newest == nil || c.Attempt > newest.Attempt) {
			newest = c
		}
	}
	if newest == nil {
		return nil
	}
	return newest.config
}

// Pin makes an image one of the runtime's own.
func (r *Runtime) Pin(image string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	i := r.images[image]
	i.Pinned = true
	r.images[image] = i
}

// Handlers returns the handlers that sandboxes were run with, in order.
func (r *Runtime) Handlers() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.handlers)
}

// Sandbox returns what a pod's newest sandbox was run with, or nil.
func (r *Runtime) Sandbox(podUID string) *runtimev1.PodSandboxConfig {
	r.mu.Lock()
	defer r.mu.Unlock()
	var newest *sandbox
	for _, s := range r.sandboxes {
		if s.config.GetMetadata().GetUid() == podUID && (newest == nil || s.Attempt > newest.Attempt) {
			newest = s
		}
	}
	if newest == nil {
		return nil
	}
	return newest.config
}

func (r *Runtime) exit(c *container, code int32, reason string) {
	c.State, c.ExitCode, c.FinishedAt = cri.StateExited, code, time.Now()
	c.Reason = reason
	if reason == "" {
		c.Reason = "Completed"
		if code != 0 {
			c.Reason = "Error"
		}
	}
	close(c.ended)
	r.emit(cri.Event{Type: cri.EventStopped, PodUID: c.podUID, ContainerID: c.ID})
}

func (r *Runtime) stopSandbox(s *sandbox) {
	for _, c := range r.containers {
		if c.SandboxID == s.ID && c.State == cri.StateRunning {
			r.exit(c, 137, "")
		}
	}
	if s.Ready {
		s.Ready, s.IPs = false, nil
		r.emit(cri.Event{Type: cri.EventStopped, PodUID: s.config.GetMetadata().GetUid(), ContainerID: s.ID})
	}
}

func (r *Runtime) emit(e cri.Event) {
	for _, s := range r.subscribers {
		select {
		case s <- e:
		default: // a reader that slow would block a real runtime; the relist heals it here
		}
	}
}

// enter records a call and answers it with an injected failure, if there is one. It holds r.mu on success.
func (r *Runtime) enter(ctx context.Context, method, subject string) error {
	r.mu.Lock()
	gate := r.blocks[method]
	if gate != nil {
		r.mu.Unlock()
		select {
		case <-gate:
		case <-ctx.Done():
			return ctx.Err()
		}
		r.mu.Lock()
	}
	r.calls = append(r.calls, method+" "+subject)
	if queue := r.failures[method]; len(queue) > 0 {
		r.failures[method] = queue[1:]
		r.mu.Unlock()
		return queue[0]
	}
	return nil
}

func (r *Runtime) id(kind string) string {
	r.next++
	return kind + "-" + strconv.Itoa(r.next)
}

// Status implements cri.Runtime.
func (r *Runtime) Status(context.Context) (cri.Status, error) {
	return cri.Status{Name: "fake", Version: "v1", RuntimeReady: true, NetworkReady: true}, nil
}

// Pods implements cri.Runtime.
func (r *Runtime) Pods(context.Context) ([]cri.PodState, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	uids := map[string]bool{}
	for _, s := range r.sandboxes {
		uids[s.config.GetMetadata().GetUid()] = true
	}
	for _, c := range r.containers {
		uids[c.podUID] = true
	}
	var pods []cri.PodState
	for _, uid := range slices.Sorted(maps.Keys(uids)) {
		pods = append(pods, r.pod(uid))
	}
	return pods, nil
}

// Pod implements cri.Runtime.
func (r *Runtime) Pod(_ context.Context, uid string) (cri.PodState, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.pod(uid), nil
}

// SandboxByID implements cri.Runtime.
func (r *Runtime) SandboxByID(_ context.Context, id string) (cri.Sandbox, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.sandboxes[id]
	if s == nil {
		return cri.Sandbox{}, fmt.Errorf("status of sandbox %q: %w", id, cri.ErrNotFound)
	}
	return s.Sandbox, nil
}

// ContainerByID implements cri.Runtime.
func (r *Runtime) ContainerByID(_ context.Context, id, sandboxID string) (cri.Container, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.containers[id]
	if c == nil {
		return cri.Container{}, fmt.Errorf("status of container %q: %w", id, cri.ErrNotFound)
	}
	said := c.Container
	said.SandboxID = sandboxID // as with CRI, which does not say it
	return said, nil
}

func (r *Runtime) pod(uid string) cri.PodState {
	p := cri.PodState{UID: uid}
	for _, s := range r.sandboxes {
		if m := s.config.GetMetadata(); m.GetUid() == uid {
			p.Namespace, p.Name = m.GetNamespace(), m.GetName()
			p.Sandboxes = append(p.Sandboxes, s.Sandbox)
		}
	}
	for _, c := range r.containers {
		if c.podUID == uid {
			p.Containers = append(p.Containers, c.Container)
		}
	}
	slices.SortFunc(p.Sandboxes, func(a, b cri.Sandbox) int { return cmp.Compare(b.Attempt, a.Attempt) })
	slices.SortFunc(p.Containers, func(a, b cri.Container) int {
		return cmp.Or(cmp.Compare(b.Attempt, a.Attempt), b.CreatedAt.Compare(a.CreatedAt), cmp.Compare(a.ID, b.ID))
	})
	return p
}

// RunSandbox implements cri.Runtime.
func (r *Runtime) RunSandbox(ctx context.Context, config *runtimev1.PodSandboxConfig, handler string) (string, error) {
	if err := r.enter(ctx, "RunSandbox", config.GetMetadata().GetName()); err != nil {
		return "", err
	}
	defer r.mu.Unlock()
	r.handlers = append(r.handlers, handler)
	for _, s := range r.sandboxes {
		if a, b := s.config.GetMetadata(), config.GetMetadata(); a.GetUid() == b.GetUid() && a.GetAttempt() == b.GetAttempt() {
			return "", fmt.Errorf("run sandbox: name is reserved for %q", s.ID)
		}
	}
	s := &sandbox{config: config, Sandbox: cri.Sandbox{ID: r.id("sandbox"), Attempt: config.GetMetadata().GetAttempt(), Ready: true, CreatedAt: time.Now()}}
	if config.GetLinux().GetSecurityContext().GetNamespaceOptions().GetNetwork() != runtimev1.NamespaceMode_NODE {
		s.IPs = []string{"10.244.0." + strconv.Itoa(r.next%250+2)}
	}
	r.sandboxes[s.ID] = s
	r.emit(cri.Event{Type: cri.EventStarted, PodUID: config.GetMetadata().GetUid(), ContainerID: s.ID})
	return s.ID, nil
}

// StopSandbox implements cri.Runtime.
func (r *Runtime) StopSandbox(ctx context.Context, id string) error {
	if err := r.enter(ctx, "StopSandbox", id); err != nil {
		return err
	}
	defer r.mu.Unlock()
	if s := r.sandboxes[id]; s != nil {
		r.stopSandbox(s)
	}
	return nil
}

// RemoveSandbox implements cri.Runtime.
func (r *Runtime) RemoveSandbox(ctx context.Context, id string) error {
	if err := r.enter(ctx, "RemoveSandbox", id); err != nil {
		return err
	}
	defer r.mu.Unlock()
	s := r.sandboxes[id]
	if s == nil {
		return nil
	}
	r.stopSandbox(s)
	maps.DeleteFunc(r.containers, func(_ string, c *container) bool { return c.SandboxID == id })
	delete(r.sandboxes, id)
	r.emit(cri.Event{Type: cri.EventDeleted, PodUID: s.config.GetMetadata().GetUid(), ContainerID: id})
	return nil
}

// CreateContainer implements cri.Runtime.
func (r *Runtime) CreateContainer(ctx context.Context, sandboxID string, config *runtimev1.ContainerConfig, _ *runtimev1.PodSandboxConfig) (string, error) {
	if err := r.enter(ctx, "CreateContainer", config.GetMetadata().GetName()); err != nil {
		return "", err
	}
	defer r.mu.Unlock()
	s := r.sandboxes[sandboxID]
	if s == nil || !s.Ready {
		return "", fmt.Errorf("create container: sandbox %q: %w", sandboxID, cri.ErrNotFound)
	}
	image, ok := r.image(config.GetImage().GetImage())
	if !ok {
		return "", fmt.Errorf("create container: image %q: %w", config.GetImage().GetImage(), cri.ErrNotFound)
	}
	for _, c := range r.containers {
		if a, b := c.config.GetMetadata(), config.GetMetadata(); c.SandboxID == sandboxID && a.GetName() == b.GetName() && a.GetAttempt() == b.GetAttempt() {
			return "", fmt.Errorf("create container: name is reserved for %q", c.ID)
		}
	}
	c := &container{config: config, podUID: s.config.GetMetadata().GetUid(), ended: make(chan struct{}), Container: cri.Container{
		ID: r.id("container"), SandboxID: sandboxID, Name: config.GetMetadata().GetName(), Attempt: config.GetMetadata().GetAttempt(),
		Image: config.GetImage().GetImage(), ImageID: image.ID, CreatedAt: time.Now(), Annotations: maps.Clone(config.GetAnnotations()),
		LogPath: s.config.GetLogDirectory() + "/" + config.GetLogPath(),
	}}
	r.containers[c.ID] = c
	r.emit(cri.Event{Type: cri.EventCreated, PodUID: c.podUID, ContainerID: c.ID})
	return c.ID, nil
}

// StartContainer implements cri.Runtime.
func (r *Runtime) StartContainer(ctx context.Context, id string) error {
	if err := r.enter(ctx, "StartContainer", id); err != nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		if c := r.containers[id]; c != nil && c.State == cri.StateCreated && ctx.Err() == nil {
			r.exit(c, 128, "StartError") // as containerd does
		}
		return err
	}
	defer r.mu.Unlock()
	c := r.containers[id]
	switch {
	case c == nil:
		return fmt.Errorf("start container %q: %w", id, cri.ErrNotFound)
	case c.State != cri.StateCreated:
		return fmt.Errorf("start container %q: it is not in the created state", id)
	}
	c.State, c.StartedAt = cri.StateRunning, time.Now()
	r.emit(cri.Event{Type: cri.EventStarted, PodUID: c.podUID, ContainerID: id})
	return nil
}

// StopContainer implements cri.Runtime.
func (r *Runtime) StopContainer(ctx context.Context, id string, grace time.Duration) error {
	r.mu.Lock()
	subject := id
	if c := r.containers[id]; c != nil {
		subject = c.Name
	}
	r.mu.Unlock()
	if err := r.enter(ctx, "StopContainer", subject); err != nil {
		return err
	}
	c := r.containers[id]
	if c == nil || c.State != cri.StateRunning {
		r.mu.Unlock()
		return nil
	}
	if !r.ignoreStop[c.Name] {
		r.exit(c, 143, "")
		r.mu.Unlock()
		return nil
	}
	r.mu.Unlock()
	select {
	case <-time.After(grace):
	case <-c.ended:
	case <-ctx.Done():
		return ctx.Err()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if c.State == cri.StateRunning {
		r.exit(c, 137, "")
	}
	return nil
}

// RemoveContainer implements cri.Runtime.
func (r *Runtime) RemoveContainer(ctx context.Context, id string) error {
	if err := r.enter(ctx, "RemoveContainer", id); err != nil {
		return err
	}
	defer r.mu.Unlock()
	c := r.containers[id]
	if c == nil {
		return nil
	}
	if c.State == cri.StateRunning {
		r.exit(c, 137, "")
	}
	delete(r.containers, id)
	r.emit(cri.Event{Type: cri.EventDeleted, PodUID: c.podUID, ContainerID: id})
	return nil
}

// ReopenLog implements cri.Runtime.
func (r *Runtime) ReopenLog(ctx context.Context, id string) error {
	if err := r.enter(ctx, "ReopenLog", id); err != nil {
		return err
	}
	defer r.mu.Unlock()
	return nil
}

// ExecSync implements cri.Runtime.
func (r *Runtime) ExecSync(ctx context.Context, id string, command []string, _ time.Duration) (cri.ExecResult, error) {
	if err := r.enter(ctx, "ExecSync", id); err != nil {
		return cri.ExecResult{}, err
	}
	c, f := r.containers[id], r.execs
	r.mu.Unlock()
	switch {
	case c == nil:
		return cri.ExecResult{}, fmt.Errorf("exec in %q: %w", id, cri.ErrNotFound)
	case f != nil:
		return f(c.Name, command)
	}
	return cri.ExecResult{}, nil
}

// ExecURL implements cri.Runtime.
func (r *Runtime) ExecURL(context.Context, *runtimev1.ExecRequest) (string, error) {
	return "", fmt.Errorf("exec: the fake runtime has no streaming server")
}

// AttachURL implements cri.Runtime.
func (r *Runtime) AttachURL(context.Context, *runtimev1.AttachRequest) (string, error) {
	return "", fmt.Errorf("attach: the fake runtime has no streaming server")
}

// PortForwardURL implements cri.Runtime.
func (r *Runtime) PortForwardURL(context.Context, string, int32) (string, error) {
	return "", fmt.Errorf("port forward: the fake runtime has no streaming server")
}

// UpdateResources implements cri.Runtime. The container's Config shows them afterwards.
func (r *Runtime) UpdateResources(ctx context.Context, id string, resources *runtimev1.LinuxContainerResources) error {
	r.mu.Lock()
	subject := id
	if c := r.containers[id]; c != nil {
		subject = c.Name
	}
	r.mu.Unlock()
	if err := r.enter(ctx, "UpdateResources", subject); err != nil {
		return err
	}
	defer r.mu.Unlock()
	c := r.containers[id]
	if c == nil || c.State != cri.StateRunning {
		return fmt.Errorf("update resources of %q: %w", id, cri.ErrNotFound)
	}
	c.config.Linux.Resources = resources
	return nil
}

// Usage implements cri.Runtime: every running container has used a second of CPU time for each second since its start, and a MiB.
func (r *Runtime) Usage(ctx context.Context) ([]cri.Usage, error) {
	if err := r.enter(ctx, "Usage", ""); err != nil {
		return nil, err
	}
	defer r.mu.Unlock()
	var used []cri.Usage
	for _, id := range slices.Sorted(maps.Keys(r.containers)) {
		c := r.containers[id]
		if c.State != cri.StateRunning {
			continue
		}
		m := r.sandboxes[c.SandboxID].config.GetMetadata()
		used = append(used, cri.Usage{
			PodUID: c.podUID, PodNamespace: m.GetNamespace(), PodName: m.GetName(), Name: c.Name, ID: id, CPU: time.Since(c.StartedAt), At: time.Now(), Memory: 1 << 20,
		})
	}
	return used, nil
}

// Events implements cri.Runtime.
func (r *Runtime) Events(ctx context.Context, subscribed func(), f func(cri.Event)) error {
	r.mu.Lock()
	if queue := r.failures["Events"]; len(queue) > 0 {
		r.failures["Events"] = queue[1:]
		r.mu.Unlock()
		return queue[0]
	}
	r.next++
	key, events := r.next, make(chan cri.Event, 1024)
	r.subscribers[key] = events
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		delete(r.subscribers, key)
		r.mu.Unlock()
	}()
	subscribed()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case e := <-events:
			f(e)
		}
	}
}

// Image implements cri.Runtime.
func (r *Runtime) Image(_ context.Context, image string) (cri.Image, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if i, ok := r.image(image); ok {
		return i, nil
	}
	return cri.Image{}, fmt.Errorf("image %q: %w", image, cri.ErrNotFound)
}

// image finds an image by name or ID.
func (r *Runtime) image(name string) (cri.Image, bool) {
	if i, ok := r.images[name]; ok {
		return i, true
	}
	for _, i := range r.images {
		if i.ID == name {
			return i, true
		}
	}
	return cri.Image{}, false
}

// Images implements cri.Runtime.
func (r *Runtime) Images(context.Context) ([]cri.Image, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.SortedFunc(maps.Values(r.images), func(a, b cri.Image) int { return cmp.Compare(a.ID, b.ID) }), nil
}

// PullImage implements cri.Runtime.
func (r *Runtime) PullImage(ctx context.Context, image string, _ *runtimev1.AuthConfig, _ *runtimev1.PodSandboxConfig) (string, error) {
	if err := r.enter(ctx, "PullImage", image); err != nil {
		return "", err
	}
	defer r.mu.Unlock()
	r.images[image] = cri.Image{ID: "sha256:" + image, Names: []string{image}}
	return "sha256:" + image, nil
}

// RemoveImage implements cri.Runtime.
func (r *Runtime) RemoveImage(ctx context.Context, id string) error {
	if err := r.enter(ctx, "RemoveImage", id); err != nil {
		return err
	}
	defer r.mu.Unlock()
	maps.DeleteFunc(r.images, func(_ string, i cri.Image) bool { return i.ID == id })
	return nil
}

// ImageDir implements cri.Runtime.
func (r *Runtime) ImageDir(context.Context) (string, error) { return "/", nil }
