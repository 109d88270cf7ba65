package pod

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/services/node-agent/internal/cgroup"
	"dhow.dev/services/node-agent/internal/cri"
	"dhow.dev/services/node-agent/internal/status"
)

// A running pod may be given other resources. What the user wishes is first admitted, like a new pod (allot), and then brought into the containers
// that run, one step each (Decide adds ResizeContainer); what the worker calls the pod always has the resources that are admitted.

// retryResize is how often a resize is looked at again that did not fit.
const retryResize = 10 * time.Second

// limits describes what of a container's resources its cgroup is made of.
func limits(p *corev1.Pod, c *corev1.Container) string {
	return described(cgroup.OfContainer(p, c))
}

func described(a cgroup.Amount) string {
	return fmt.Sprintf("%dm/%dm/%d", a.CPURequest, a.CPULimit, a.MemoryLimit)
}

// resizable are the containers whose resources can be changed while they run.
func resizable(p *corev1.Pod) []*corev1.Container {
	return slices.Concat(p.GetSpec().GetInitContainers(), p.GetSpec().GetContainers())
}

// differ says whether two forms of a pod differ in resources.
func differ(a, b *corev1.Pod) bool {
	return !proto.Equal(a.GetSpec().GetResources(), b.GetSpec().GetResources()) ||
		!slices.EqualFunc(resizable(a), resizable(b), func(x, y *corev1.Container) bool { return proto.Equal(x.GetResources(), y.GetResources()) })
}

// allot returns the pod with the resources that it may have now: the new ones if the node has room for them, else those that it has.
func (w *worker) allot(p *corev1.Pod) *corev1.Pod {
	w.pending = nil
	if w.pod == nil || p == nil || w.finished || w.end != nil || p.GetMetadata().HasDeletionTimestamp() || !differ(w.pod, p) {
		return p
	}
	if w.pending = w.m.room(p); w.pending == nil {
		return p
	}
	kept := proto.CloneOf(p)
	kept.GetSpec().SetResources(w.pod.GetSpec().GetResources())
	for _, c := range resizable(kept) {
		if before := SpecOf(w.pod, c.GetName()); before != nil {
			c.SetResources(before.GetResources())
		}
	}
	return kept
}

// room says why a pod's new resources do not fit on the node, nil when they do.
func (m *Manager) room(p *corev1.Pod) *status.End {
	if end := Admit(m.NodeName, nil, m.allocatable(), nil, p); end != nil {
		return &status.End{Reason: status.ReasonInfeasible, Message: end.Message}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if end := Admit(m.NodeName, nil, m.allocatable(), m.others(p.GetMetadata().GetUid()), p); end != nil {
		return &status.End{Reason: status.ReasonDeferred, Message: end.Message}
	}
	return nil
}

// behind says whether a running container does not have the resources of its spec yet.
func behind(p *corev1.Pod, c *corev1.Container, r *cri.Container, m Memory) bool {
	if r == nil || r.State != cri.StateRunning {
		return false
	}
	has := r.Annotations[cri.AnnotationResources]
	if m.ResizedID == r.ID {
		has = m.Resized
	}
	return has != "" && has != limits(p, c)
}

// podBehind says whether a pod's cgroup does not have the pod's resources yet; has is what it was last made with, empty where nobody keeps cgroups.
func podBehind(p *corev1.Pod, has string) bool { return has != "" && has != described(cgroup.OfPod(p)) }

// resize brings changed resources into running containers, and then into the pod's cgroup; a container whose policy for what has changed is to be restarted is stopped instead.
func (s *Situation) resize(p *Plan, sandbox *cri.Sandbox) {
	waits := s.busy(ResizeContainer, ResizePod)
	for _, c := range resizable(s.Pod) {
		r := s.Runtime.Newest(c.GetName())
		if r == nil || r.SandboxID != sandbox.ID || !behind(s.Pod, c, r, s.Memory[c.GetName()]) {
			continue
		}
		waits = true
		if restartsToResize(s.Pod, c, r, s.Memory[c.GetName()]) {
			s.add(p, Step{Key: Key{StopContainer, r.ID}, Container: r.Name, Grace: s.specGrace(),
				Why: fmt.Sprintf("Container %s resize requires restart", r.Name)})
			continue
		}
		s.add(p, Step{Key: Key{ResizeContainer, r.ID}, Container: r.Name})
	}
	if !waits && podBehind(s.Pod, s.PodResized) {
		s.add(p, Step{Key: Key{Action: ResizePod}})
	}
}

func restartsToResize(p *corev1.Pod, c *corev1.Container, r *cri.Container, m Memory) bool {
	var has, want cgroup.Amount
	text := r.Annotations[cri.AnnotationResources]
	if m.ResizedID == r.ID {
		text = m.Resized
	}
	if _, err := fmt.Sscanf(text, "%dm/%dm/%d", &has.CPURequest, &has.CPULimit, &has.MemoryLimit); err != nil {
		return false
	}
	want = cgroup.OfContainer(p, c)
	for _, policy := range c.GetResizePolicy() {
		if policy.GetRestartPolicy() != "RestartContainer" {
			continue
		}
		switch policy.GetResourceName() {
		case "cpu":
			if has.CPURequest != want.CPURequest || has.CPULimit != want.CPULimit {
				return true
			}
		case "memory":
			if has.MemoryLimit != want.MemoryLimit {
				return true
			}
		}
	}
	return false
}

// resources are what a container's cgroup is made with.
func (c *Config) resources(p *corev1.Pod, container *corev1.Container) *runtimev1.LinuxContainerResources {
	amount := cgroup.OfContainer(p, container)
	var huge []*runtimev1.HugepageLimit
	if c.HugePages {
		limits := cgroup.HugePages(p, container)
		for _, name := range slices.Sorted(maps.Keys(c.Allocatable)) {
			if size, ok := cgroup.PageSize(name); ok {
				huge = append(huge, &runtimev1.HugepageLimit{PageSize: size, Limit: uint64(limits[size])})
			}
		}
	}
	return &runtimev1.LinuxContainerResources{
		HugepageLimits: huge,
		CpuShares:      cgroup.Shares(amount.CPURequest), CpuQuota: cgroup.Quota(amount.CPULimit), CpuPeriod: cgroup.Period,
		MemoryLimitInBytes: amount.MemoryLimit, OomScoreAdj: cgroup.OOMScoreAdj(p, container, c.MemoryBytes),
	}
}

// resizeStep binds the change of a container's resources.
func (w *worker) resizeStep(step Step) perform {
	p, spec := w.pod, SpecOf(w.pod, step.Container)
	m := w.remember(step.Container)
	return func(ctx context.Context) (func(), error) {
		err := w.resizeContainer(ctx, p, spec, step.Subject)
		w.warn(ctx, p, step.Container, "ResizeError", err)
		return func() {
			m.ResizeError = ""
			if err != nil {
				m.ResizeError = err.Error()
				return
			}
			m.Resized, m.ResizedID = limits(p, spec), step.Subject
			w.resized(p)
		}, err
	}
}

// resizeContainer changes the container first and the pod then: whichever of the two is lower counts meanwhile, and a lower limit is refused by the container.
func (w *worker) resizeContainer(ctx context.Context, p *corev1.Pod, spec *corev1.Container, id string) error {
	resources := w.m.resources(p, spec)
	if resources.MemoryLimitInBytes > 0 {
		used, err := w.m.Runtime.Usage(ctx)
		if err != nil {
			return err
		}
		for _, u := range used {
			if u.ID == id && u.Memory > uint64(resources.MemoryLimitInBytes) {
				return fmt.Errorf("attempting to set memory limit (%d) below current usage (%d)", resources.MemoryLimitInBytes, u.Memory)
			}
		}
	}
	if err := w.m.Runtime.UpdateResources(ctx, id, resources); err != nil {
		return err
	}
	return w.resizePod(p)
}

// resizePodStep binds the change of the whole pod's resources.
func (w *worker) resizePodStep() perform {
	p := w.pod
	return func(ctx context.Context) (func(), error) {
		err := w.resizePod(p)
		w.warn(ctx, p, "", "ResizeError", err)
		return func() {
			if w.resizeError = ""; err != nil {
				w.resizeError = err.Error()
				return
			}
			w.resized(p)
		}, err
	}
}

// resizePod brings a pod's cgroup to the pod's resources. A limit that is already exceeded would kill processes, or be refused.
func (w *worker) resizePod(p *corev1.Pod) error {
	if w.m.Cgroups == nil {
		return nil
	}
	if limit := cgroup.OfPod(p).MemoryLimit; limit > 0 {
		used, err := w.m.Cgroups.Memory(p)
		if err != nil {
			return err
		}
		if used > uint64(limit) {
			return fmt.Errorf("attempting to set pod memory limit (%d) below current usage (%d)", limit, used)
		}
	}
	_, err := w.m.Cgroups.Ensure(p)
	return err
}

// resized notes what the pod's cgroup has.
func (w *worker) resized(p *corev1.Pod) {
	if w.m.Cgroups != nil {
		w.podResized, w.resizeError = described(cgroup.OfPod(p)), ""
	}
}

// resizes tells the status how far the pod's resize is.
func (w *worker) resizes(containers map[string]status.Container) (going *status.End, podIsBehind bool) {
	if podBehind(w.pod, w.podResized) {
		podIsBehind, going = true, &status.End{}
		if w.resizeError != "" {
			going = &status.End{Reason: status.ReasonError, Message: w.resizeError}
		}
	}
	for _, c := range resizable(w.pod) {
		m := w.memory[c.GetName()]
		if m == nil || !behind(w.pod, c, w.runtime.Newest(c.GetName()), *m) {
			continue
		}
		s := containers[c.GetName()]
		s.Behind = true
		containers[c.GetName()] = s
		if going == nil {
			going = &status.End{}
		}
		if m.ResizeError != "" {
			going = &status.End{Reason: status.ReasonError, Message: m.ResizeError}
		}
	}
	return going, podIsBehind
}
