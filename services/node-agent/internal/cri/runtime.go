// Package cri is the agent's view of a container runtime: a small interface in the agent's own terms, and a client that speaks CRI v1 for it.
//
// Runtime state is event-driven: Watch tells what of which pod changed, the pod's worker then asks for the state of that. Events are never trusted for
// their content, because a runtime may send them late or twice; what counts is always what the runtime answers afterwards.
package cri

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Labels that tie sandboxes and containers to their pods. They are those that Kubernetes uses, so that crictl and other tools understand them.
const (
	LabelPodName       = "io.kubernetes.pod.name"
	LabelPodNamespace  = "io.kubernetes.pod.namespace"
	LabelPodUID        = "io.kubernetes.pod.uid"
	LabelContainerName = "io.kubernetes.container.name"
)

// Annotations on containers that the agent reads back after a restart.
const (
	// AnnotationImage is the image as the pod's spec named it, to notice a changed spec.
	AnnotationImage = "dhow.dev/image"
	// AnnotationResources is what the container's cgroup was made of, to notice changed resources.
	AnnotationResources = "dhow.dev/resources"
	// AnnotationMessageFile is the host's path of the termination message file.
	AnnotationMessageFile = "dhow.dev/termination-message-file"
	// AnnotationMessagePolicy is the container's terminationMessagePolicy.
	AnnotationMessagePolicy = "dhow.dev/termination-message-policy"
)

var (
	// ErrNotFound says that the runtime does not know the sandbox, container or image.
	ErrNotFound = errors.New("not found in the container runtime")
	// ErrEventsUnsupported says that the runtime sends no container events; the caller lists instead.
	ErrEventsUnsupported = errors.New("the container runtime sends no events")
)

// Runtime runs sandboxes and containers. Implementations are safe for concurrent use. Stop and Remove methods are idempotent: what does not
// exist any more is no error.
type Runtime interface {
	// Status asks whether the runtime and its network are ready.
	Status(ctx context.Context) (Status, error)
	// Pods lists the state of all pods that the runtime has.
	Pods(ctx context.Context) ([]PodState, error)
	// Pod returns one pod's state; that of an unknown pod is empty but for its UID. It costs the runtime a look at all that it has.
	Pod(ctx context.Context, uid string) (PodState, error)
	// SandboxByID returns the state of one sandbox, or ErrNotFound.
	SandboxByID(ctx context.Context, id string) (Sandbox, error)
	// ContainerByID returns the state of one container, or ErrNotFound. The sandbox that it is in is the caller's to know: CRI does not say.
	ContainerByID(ctx context.Context, id, sandboxID string) (Container, error)

	RunSandbox(ctx context.Context, config *runtimev1.PodSandboxConfig, handler string) (string, error)
	StopSandbox(ctx context.Context, id string) error
	RemoveSandbox(ctx context.Context, id string) error

	CreateContainer(ctx context.Context, sandboxID string, config *runtimev1.ContainerConfig, sandbox *runtimev1.PodSandboxConfig) (string, error)
	StartContainer(ctx context.Context, id string) error
	// StopContainer sends the stop signal and kills after the grace.
	StopContainer(ctx context.Context, id string, grace time.Duration) error
	RemoveContainer(ctx context.Context, id string) error
	// ReopenLog makes the runtime write to a new log file after the old one was moved away.
	ReopenLog(ctx context.Context, id string) error

	// ExecSync runs a command to its end. A command that fails is no error: look at the exit code. An error that wraps
	// context.DeadlineExceeded means that the timeout was reached.
	ExecSync(ctx context.Context, id string, command []string, timeout time.Duration) (ExecResult, error)
	// ExecURL prepares a streaming exec and returns where to connect to.
	ExecURL(ctx context.Context, request *runtimev1.ExecRequest) (string, error)
	// AttachURL prepares streams to a container's own process and returns where to connect to.
	AttachURL(ctx context.Context, request *runtimev1.AttachRequest) (string, error)
	// PortForwardURL prepares a connection to a port in a sandbox and returns where to connect to.
	PortForwardURL(ctx context.Context, sandboxID string, port int32) (string, error)

	// UpdateResources changes what a running container may use.
	UpdateResources(ctx context.Context, id string, resources *runtimev1.LinuxContainerResources) error
	// Usage tells what the running containers of pods have used.
	Usage(ctx context.Context) ([]Usage, error)

	// Events calls f for each event until ctx or the stream ends. f must not block: a slow reader blocks the runtime. Once subscribed it calls
	// subscribed.
	Events(ctx context.Context, subscribed func(), f func(Event)) error

	// Image returns ErrNotFound for an image that is not there.
	Image(ctx context.Context, image string) (Image, error)
	// PullImage fetches an image. Auth and sandbox may be nil.
	PullImage(ctx context.Context, image string, auth *runtimev1.AuthConfig, sandbox *runtimev1.PodSandboxConfig) (string, error)
	Images(ctx context.Context) ([]Image, error)
	// RemoveImage removes an image under all of its names.
	RemoveImage(ctx context.Context, id string) error
	// ImageDir returns a folder on the file system that images are on.
	ImageDir(ctx context.Context) (string, error)
}

// Status is the runtime's health.
type Status struct {
	Name, Version string
	// RuntimeReady and NetworkReady say that sandboxes can be run. Message tells why not.
	RuntimeReady, NetworkReady bool
	Message                    string
	// SupplementalGroupsPolicy says that the runtime knows how to leave out the image's groups.
	SupplementalGroupsPolicy bool
	// Handlers are the ways to run a pod; the name of the default one is empty.
	Handlers []Handler
}

// Handler is one of a runtime's ways to run a pod.
type Handler struct {
	Name                                    string
	RecursiveReadOnlyMounts, UserNamespaces bool
}

// User is who a container runs as.
type User struct {
	UID, GID int64
	Groups   []int64
}

// Image is an image that the runtime has.
type Image struct {
	ID   string
	Size uint64
	// Names holds tags and digests.
	Names []string
	// UID is the user that the image runs as; HasUID is false when the image names a user or nothing.
	UID      int64
	HasUID   bool
	Username string
	// Pinned images are the runtime's own and are never removed.
	Pinned bool
}

// ExecResult is what a command left behind.
type ExecResult struct {
	Stdout, Stderr []byte
	ExitCode       int32
}

// Usage is what one container uses.
type Usage struct {
	PodUID, PodNamespace, PodName, Name string
	ID                                  string
	// CPU is the CPU time since the container's start, as of At.
	CPU time.Duration
	At  time.Time
	// Memory is the working set in bytes.
	Memory uint64
	// Disk and Inodes are what the container has written into its own root.
	Disk, Inodes uint64
}

// EventType is what happened to a container or sandbox.
type EventType int

// Event types.
const (
	EventCreated EventType = iota
	EventStarted
	EventStopped
	EventDeleted
)

// Event says that something of a pod changed. PodUID is empty when the runtime did not say.
type Event struct {
	Type        EventType
	PodUID      string
	ContainerID string
}

// PodState is what the runtime has of one pod.
type PodState struct {
	UID, Namespace, Name string
	// Sandboxes are ordered newest first.
	Sandboxes []Sandbox
	// Containers are ordered newest first.
	Containers []Container
}

// Sandbox is a pod's environment: its network namespace and cgroup.
type Sandbox struct {
	ID        string
	Attempt   uint32
	Ready     bool
	CreatedAt time.Time
	// IPs is empty for pods in the host's network.
	IPs []string
}

// ContainerState is a container's state in the runtime.
type ContainerState int

// Container states.
const (
	StateCreated ContainerState = iota
	StateRunning
	StateExited
	// StateUnknown is answered by a runtime that has lost track of a container.
	StateUnknown
)

// Container is one run of a container.
type Container struct {
	ID, SandboxID, Name string
	// Attempt counts the runs of the container in its pod, from 0.
	Attempt uint32
	State   ContainerState
	// Image is the image as asked for, ImageID what it resolved to.
	Image, ImageID                   string
	CreatedAt, StartedAt, FinishedAt time.Time
	ExitCode                         int32
	// Reason and Message are the runtime's, for example OOMKilled.
	Reason, Message string
	LogPath         string
	Annotations     map[string]string
	// User is nil when the runtime does not say.
	User *User
}

// CurrentSandbox returns the newest sandbox, or nil.
func (p *PodState) CurrentSandbox() *Sandbox {
	if len(p.Sandboxes) == 0 {
		return nil
	}
	return &p.Sandboxes[0]
}

// Newest returns the newest run of a container, or nil.
func (p *PodState) Newest(name string) *Container {
	for i := range p.Containers {
		if p.Containers[i].Name == name {
			return &p.Containers[i]
		}
	}
	return nil
}

// Previous returns the run before the newest, or nil.
func (p *PodState) Previous(name string) *Container {
	seen := false
	for i := range p.Containers {
		if p.Containers[i].Name != name {
			continue
		}
		if seen {
			return &p.Containers[i]
		}
		seen = true
	}
	return nil
}

// ByID returns a container, or nil.
func (p *PodState) ByID(id string) *Container {
	for i := range p.Containers {
		if p.Containers[i].ID == id {
			return &p.Containers[i]
		}
	}
	return nil
}

// HasSandbox says whether a sandbox is known.
func (p *PodState) HasSandbox(id string) bool {
	return slices.ContainsFunc(p.Sandboxes, func(s Sandbox) bool { return s.ID == id })
}

// WithSandbox returns the state with a sandbox as it now is. The state itself stays as it was, as for all three of these methods.
func (p PodState) WithSandbox(s Sandbox) PodState {
	p = p.Without(s.ID)
	p.Sandboxes = append(p.Sandboxes, s)
	slices.SortFunc(p.Sandboxes, newerSandbox)
	return p
}

// WithContainer returns the state with a container as it now is.
func (p PodState) WithContainer(c Container) PodState {
	p = p.Without(c.ID)
	p.Containers = append(p.Containers, c)
	slices.SortFunc(p.Containers, newerContainer)
	return p
}

// Without returns the state without a sandbox or container.
func (p PodState) Without(id string) PodState {
	p.Sandboxes = slices.DeleteFunc(slices.Clone(p.Sandboxes), func(s Sandbox) bool { return s.ID == id })
	p.Containers = slices.DeleteFunc(slices.Clone(p.Containers), func(c Container) bool { return c.ID == id })
	return p
}

func newerSandbox(a, b Sandbox) int {
	return cmp.Or(cmp.Compare(b.Attempt, a.Attempt), b.CreatedAt.Compare(a.CreatedAt))
}

func newerContainer(a, b Container) int {
	return cmp.Or(cmp.Compare(b.Attempt, a.Attempt), b.CreatedAt.Compare(a.CreatedAt))
}

// Running says whether any container runs, or may still run.
func (p *PodState) Running() bool {
	for i := range p.Containers {
		if s := p.Containers[i].State; s == StateRunning || s == StateUnknown {
			return true
		}
	}
	return false
}
