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
func limits(c *corev1.Container) string {
	a := cgroup.Of(c.GetResources())
	return fmt.Sprintf("%dm/%dm/%d", a.CPURequest, a.CPULimit, a.MemoryLimit)
}

// resizable are the containers whose resources can be changed while they run.
func resizable(p *corev1.Pod) []*corev1.Container {
	return slices.Concat(p.GetSpec().GetInitContainers(), p.GetSpec().GetContainers())
}

// differ says whether two forms of a pod differ in resources.
func differ(a, b *corev1.Pod) bool {
	return !slices.EqualFunc(resizable(a), resizable(b), func(x, y *corev1.Container) bool { return proto.Equal(x.GetResources(), y.GetResources()) })
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
func behind(c *corev1.Container, r *cri.Container, m Memory) bool {
	if r == nil || r.State != cri.StateRunning {
		return false
	}
	has := r.Annotations[cri.AnnotationResources]
	if m.ResizedID == r.ID {
		has = m.Resized
	}
	return has != "" && has != limits(c)
}

// resize brings changed resources into running containers; one whose policy for what has changed is to be restarted is stopped instead.
func (s *Situation) resize(p *Plan, sandbox *cri.Sandbox) {
	for _, c := range resizable(s.Pod) {
		r := s.Runtime.Newest(c.GetName())
		if r == nil || r.SandboxID != sandbox.ID || !behind(c, r, s.Memory[c.GetName()]) {
			continue
		}
		if restartsToResize(c, r, s.Memory[c.GetName()]) {
			s.add(p, Step{Key: Key{StopContainer, r.ID}, Container: r.Name, Grace: s.specGrace(),
				Why: fmt.Sprintf("Container %s resize requires restart", r.Name)})
			continue
		}
		s.add(p, Step{Key: Key{ResizeContainer, r.ID}, Container: r.Name})
	}
}

func restartsToResize(c *corev1.Container, r *cri.Container, m Memory) bool {
	var has, want cgroup.Amount
	text := r.Annotations[cri.AnnotationResources]
	if m.ResizedID == r.ID {
		text = m.Resized
	}
	if _, err := fmt.Sscanf(text, "%dm/%dm/%d", &has.CPURequest, &has.CPULimit, &has.MemoryLimit); err != nil {
		return false
	}
	want = cgroup.Of(c.GetResources())
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
	amount := cgroup.Of(container.GetResources())
	var huge []*runtimev1.HugepageLimit
	if c.HugePages {
		limits := cgroup.HugePages(container.GetResources())
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
			m.Resized, m.ResizedID = limits(spec), step.Subject
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
	if w.m.Cgroups == nil {
		return nil
	}
	_, err := w.m.Cgroups.Ensure(p)
	return err
}

// resizes tells the status how far the pod's resize is.
func (w *worker) resizes(containers map[string]status.Container) *status.End {
	var going *status.End
	for _, c := range resizable(w.pod) {
		m := w.memory[c.GetName()]
		if m == nil || !behind(c, w.runtime.Newest(c.GetName()), *m) {
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
	return going
}
