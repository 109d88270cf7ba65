// Package critest is the conformance suite of cri.Runtime: what the agent relies on, run on the fake and on real runtimes.
package critest

import (
	"context"
	"errors"
	"reflect"
	"sync"
	"testing"
	"time"

	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"dhow.dev/services/node-agent/internal/cri"
)

// Setup says what to run on a runtime.
type Setup struct {
	Runtime cri.Runtime
	// Image is present. Forever runs until it is stopped.
	Image   string
	Forever []string
	// LogDirectory is a folder on the runtime's host.
	LogDirectory string
	// CgroupParent may be empty.
	CgroupParent string
	// Prefix makes UIDs unique among runs.
	Prefix string
}

// deadline bounds each wait; nothing is asserted about speed.
const deadline = 2 * time.Minute

// Run runs the suite.
func Run(t *testing.T, s Setup) {
	t.Run("a container's life", s.testLife)
	t.Run("what is gone may be stopped and removed again", s.testIdempotent)
	t.Run("missing image", s.testMissingImage)
	t.Run("removing a sandbox removes its containers", s.testRemoveSandbox)
	t.Run("events name the pod", s.testEvents)
	t.Run("attempts are unique", s.testAttempts)
}

func (s Setup) sandbox(uid string) *runtimev1.PodSandboxConfig {
	uid = s.Prefix + uid
	return &runtimev1.PodSandboxConfig{
		Metadata: &runtimev1.PodSandboxMetadata{Name: uid, Namespace: "conformance", Uid: uid},
		Labels:   map[string]string{cri.LabelPodUID: uid, cri.LabelPodName: uid, cri.LabelPodNamespace: "conformance"},
		Linux: &runtimev1.LinuxPodSandboxConfig{CgroupParent: s.CgroupParent, SecurityContext: &runtimev1.LinuxSandboxSecurityContext{
			NamespaceOptions: &runtimev1.NamespaceOption{Network: runtimev1.NamespaceMode_NODE, Pid: runtimev1.NamespaceMode_CONTAINER},
		}},
		LogDirectory: s.LogDirectory,
	}
}

func (s Setup) container(uid, name string, attempt uint32) *runtimev1.ContainerConfig {
	uid = s.Prefix + uid
	return &runtimev1.ContainerConfig{
		Metadata:    &runtimev1.ContainerMetadata{Name: name, Attempt: attempt},
		Image:       &runtimev1.ImageSpec{Image: s.Image},
		Command:     s.Forever,
		Labels:      map[string]string{cri.LabelPodUID: uid, cri.LabelPodName: uid, cri.LabelPodNamespace: "conformance", cri.LabelContainerName: name},
		Annotations: map[string]string{cri.AnnotationImage: s.Image},
		LogPath:     uid + "-" + name + ".log",
		Linux: &runtimev1.LinuxContainerConfig{SecurityContext: &runtimev1.LinuxContainerSecurityContext{
			NamespaceOptions: &runtimev1.NamespaceOption{Network: runtimev1.NamespaceMode_NODE, Pid: runtimev1.NamespaceMode_CONTAINER},
		}},
	}
}

func (s Setup) start(t *testing.T, uid string) (sandbox, container string) {
	t.Helper()
	sandbox, err := s.Runtime.RunSandbox(t.Context(), s.sandbox(uid), "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), deadline)
		defer cancel()
		if err := s.Runtime.StopSandbox(ctx, sandbox); err != nil {
			t.Error(err)
		}
		if err := s.Runtime.RemoveSandbox(ctx, sandbox); err != nil {
			t.Error(err)
		}
	})
	container, err = s.Runtime.CreateContainer(t.Context(), sandbox, s.container(uid, "main", 0), s.sandbox(uid))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Runtime.StartContainer(t.Context(), container); err != nil {
		t.Fatal(err)
	}
	return sandbox, container
}

func (s Setup) state(t *testing.T, uid string) cri.PodState {
	t.Helper()
	p, err := s.Runtime.Pod(t.Context(), s.Prefix+uid)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (s Setup) testLife(t *testing.T) {
	if p := s.state(t, "life"); len(p.Sandboxes) != 0 || len(p.Containers) != 0 {
		t.Fatalf("an unknown pod has %+v", p)
	}
	sandbox, container := s.start(t, "life")
	p := s.state(t, "life")
	if p.Name != s.Prefix+"life" || p.Namespace != "conformance" {
		t.Errorf("pod is named %s/%s", p.Namespace, p.Name)
	}
	if len(p.Sandboxes) != 1 || p.Sandboxes[0].ID != sandbox || !p.Sandboxes[0].Ready {
		t.Errorf("sandboxes %+v, want %s ready", p.Sandboxes, sandbox)
	}
	c := p.Newest("main")
	if c == nil || c.ID != container || c.State != cri.StateRunning || c.SandboxID != sandbox || c.StartedAt.IsZero() {
		t.Fatalf("container %+v, want %s running", c, container)
	}
	if c.Annotations[cri.AnnotationImage] != s.Image {
		t.Errorf("annotations %v came back", c.Annotations)
	}
	s.testByID(t, p)
	if err := s.Runtime.StopContainer(t.Context(), container, time.Second); err != nil {
		t.Fatal(err)
	}
	p = s.state(t, "life")
	if c = p.Newest("main"); c == nil || c.State != cri.StateExited || c.ExitCode == 0 || c.FinishedAt.IsZero() {
		t.Fatalf("container after stop: %+v", c)
	}
	if p.Running() {
		t.Error("pod counts as running after its only container was stopped")
	}
	s.testByID(t, p)
	if err := s.Runtime.StopSandbox(t.Context(), sandbox); err != nil {
		t.Fatal(err)
	}
	if p = s.state(t, "life"); p.CurrentSandbox() == nil || p.CurrentSandbox().Ready {
		t.Errorf("sandbox after stop: %+v", p.Sandboxes)
	}
}

// testByID looks at each sandbox and container by itself, which must say what the list says.
func (s Setup) testByID(t *testing.T, p cri.PodState) {
	t.Helper()
	for _, want := range p.Sandboxes {
		if have, err := s.Runtime.SandboxByID(t.Context(), want.ID); err != nil || !reflect.DeepEqual(have, want) {
			t.Errorf("sandbox by ID: %+v, %v, want %+v", have, err, want)
		}
	}
	for _, want := range p.Containers {
		if have, err := s.Runtime.ContainerByID(t.Context(), want.ID, want.SandboxID); err != nil || !reflect.DeepEqual(have, want) {
			t.Errorf("container by ID: %+v, %v, want %+v", have, err, want)
		}
	}
}

func (s Setup) testIdempotent(t *testing.T) {
	sandbox, container := s.start(t, "idempotent")
	for range 2 {
		if err := s.Runtime.StopContainer(t.Context(), container, time.Second); err != nil {
			t.Errorf("stop container: %v", err)
		}
	}
	s.state(t, "idempotent") // what a look remembers must not outlive the container
	for range 2 {
		if err := s.Runtime.RemoveContainer(t.Context(), container); err != nil {
			t.Errorf("remove container: %v", err)
		}
	}
	for range 2 {
		if err := s.Runtime.StopSandbox(t.Context(), sandbox); err != nil {
			t.Errorf("stop sandbox: %v", err)
		}
	}
	for range 2 {
		if err := s.Runtime.RemoveSandbox(t.Context(), sandbox); err != nil {
			t.Errorf("remove sandbox: %v", err)
		}
	}
	if err := s.Runtime.StopContainer(t.Context(), container, time.Second); err != nil {
		t.Errorf("stop a removed container: %v", err)
	}
	if err := s.Runtime.StartContainer(t.Context(), container); !errors.Is(err, cri.ErrNotFound) {
		t.Errorf("start a removed container: %v, want ErrNotFound", err)
	}
	if _, err := s.Runtime.ContainerByID(t.Context(), container, sandbox); !errors.Is(err, cri.ErrNotFound) {
		t.Errorf("a removed container by ID: %v, want ErrNotFound", err)
	}
	if _, err := s.Runtime.SandboxByID(t.Context(), sandbox); !errors.Is(err, cri.ErrNotFound) {
		t.Errorf("a removed sandbox by ID: %v, want ErrNotFound", err)
	}
}

func (s Setup) testMissingImage(t *testing.T) {
	if _, err := s.Runtime.Image(t.Context(), "registry.invalid/no/such:image"); !errors.Is(err, cri.ErrNotFound) {
		t.Errorf("image: %v, want ErrNotFound", err)
	}
	image, err := s.Runtime.Image(t.Context(), s.Image)
	if err != nil || image.ID == "" {
		t.Errorf("image %q: %+v, %v", s.Image, image, err)
	}
}

func (s Setup) testRemoveSandbox(t *testing.T) {
	sandbox, _ := s.start(t, "remove")
	if err := s.Runtime.StopSandbox(t.Context(), sandbox); err != nil {
		t.Fatal(err)
	}
	if err := s.Runtime.RemoveSandbox(t.Context(), sandbox); err != nil {
		t.Fatal(err)
	}
	if p := s.state(t, "remove"); len(p.Sandboxes) != 0 || len(p.Containers) != 0 {
		t.Errorf("left behind: %+v", p)
	}
}

func (s Setup) testEvents(t *testing.T) {
	var mu sync.Mutex
	seen := make(chan struct{}, 1)
	uids := map[string]bool{}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	subscribed := make(chan struct{})
	ended := make(chan error, 1)
	go func() {
		ended <- s.Runtime.Events(ctx, func() { close(subscribed) }, func(e cri.Event) {
			if e.Type != cri.EventStopped {
				return
			}
			mu.Lock()
			uids[e.PodUID] = true
			mu.Unlock()
			select {
			case seen <- struct{}{}:
			default:
			}
		})
	}()
	select {
	case <-subscribed:
	case err := <-ended:
		t.Fatalf("events: %v", err)
	}
	_, container := s.start(t, "events")
	if err := s.Runtime.StopContainer(ctx, container, time.Second); err != nil {
		t.Fatal(err)
	}
	timeout := time.After(deadline)
	for {
		mu.Lock()
		ok := uids[s.Prefix+"events"]
		mu.Unlock()
		if ok {
			return
		}
		select {
		case <-seen:
		case err := <-ended:
			t.Fatalf("events ended: %v", err)
		case <-timeout:
			t.Fatalf("no stop event; seen from %v", uids)
		}
	}
}

func (s Setup) testAttempts(t *testing.T) {
	sandbox, container := s.start(t, "attempts")
	if _, err := s.Runtime.CreateContainer(t.Context(), sandbox, s.container("attempts", "main", 0), s.sandbox("attempts")); err == nil {
		t.Error("the same attempt was created twice")
	}
	if err := s.Runtime.StopContainer(t.Context(), container, time.Second); err != nil {
		t.Fatal(err)
	}
	second, err := s.Runtime.CreateContainer(t.Context(), sandbox, s.container("attempts", "main", 1), s.sandbox("attempts"))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Runtime.StartContainer(t.Context(), second); err != nil {
		t.Fatal(err)
	}
	p := s.state(t, "attempts")
	if n, prev := p.Newest("main"), p.Previous("main"); n == nil || n.ID != second || n.Attempt != 1 || prev == nil || prev.ID != container {
		t.Errorf("newest %+v, previous %+v", n, prev)
	}
}
