package pod

import (
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/services/node-agent/internal/cri"
	"dhow.dev/services/node-agent/internal/probe"
	"dhow.dev/services/node-agent/internal/status"
)

// health is what watches one run of a container.
type health struct {
	id      string
	started bool
	// restored says that started and readiness were taken over from before the agent's start.
	restored bool
	// cancels end the probes that run.
	cancels map[probe.Kind]context.CancelFunc
}

func (h *health) stop(kinds ...probe.Kind) {
	if len(kinds) == 0 {
		kinds = []probe.Kind{probe.Startup, probe.Liveness, probe.Readiness}
	}
	for _, k := range kinds {
		if cancel := h.cancels[k]; cancel != nil {
			cancel()
			delete(h.cancels, k)
		}
	}
}

// watchHealth keeps a container's probes running exactly while it runs.
func (w *worker) watchHealth() {
	if w.pod == nil {
		return
	}
	inits := map[string]bool{}
	for _, c := range w.pod.GetSpec().GetInitContainers() {
		inits[c.GetName()] = true
	}
	for _, c := range slices.Concat(w.pod.GetSpec().GetInitContainers(), w.pod.GetSpec().GetContainers()) {
		name := c.GetName()
		r, h, m := w.runtime.Newest(name), w.health[name], w.remember(name)
		if h != nil && (r == nil || r.ID != h.id || r.State != cri.StateRunning) {
			h.stop()
			delete(w.health, name)
			m.Started, m.Ready = false, false
			h = nil
		}
		// While the start step runs, the postStart hook is not over.
		if r == nil || r.State != cri.StateRunning || w.ops[Key{StartContainer, name}] != nil {
			continue
		}
		if inits[name] && !status.IsSidecar(c) {
			continue // has no probes; it is done when it ends
		}
		if h == nil {
			h = &health{id: r.ID}
			w.health[name] = h
		}
		if h.cancels == nil {
			h.cancels = map[probe.Kind]context.CancelFunc{}
		}
		w.probes(c, r, h, m)
	}
}

// probes starts the probes that are due.
func (w *worker) probes(c *corev1.Container, r *cri.Container, h *health, m *Memory) {
	ending := w.gone || w.end != nil || w.finished || w.pod.GetMetadata().HasDeletionTimestamp()
	if ending {
		// A pod that ends is not restarted; its readiness still counts for those who drain it.
		h.stop(probe.Startup, probe.Liveness)
	}
	if !h.started {
		switch {
		case c.HasStartupProbe() && !ending:
			w.probe(c, r, h, probe.Startup, c.GetStartupProbe())
			return
		case c.HasStartupProbe():
			return
		}
		h.started = true
	}
	m.Started = true
	if c.HasLivenessProbe() && !ending {
		w.probe(c, r, h, probe.Liveness, c.GetLivenessProbe())
	}
	if c.HasReadinessProbe() {
		w.probe(c, r, h, probe.Readiness, c.GetReadinessProbe())
	} else {
		m.Ready = true
	}
}

// probe runs one probe, unless it runs already.
func (w *worker) probe(c *corev1.Container, r *cri.Container, h *health, kind probe.Kind, spec *corev1.Probe) {
	if h.cancels[kind] != nil {
		return
	}
	ctx, cancel := context.WithCancel(w.ctx)
	h.cancels[kind] = cancel
	ip := firstOf(w.m.HostIPs)
	if s := w.runtime.CurrentSandbox(); s != nil && !w.pod.GetSpec().GetHostNetwork() {
		ip = firstOf(s.IPs)
	}
	p, name := w.pod, c.GetName()
	target := probe.Target{Container: c, ContainerID: r.ID, IP: ip, StartedAt: r.StartedAt}
	report := probe.Report{
		Failed: func(output string) {
			w.m.Events.Event(p, name, true, "Unhealthy", fmt.Sprintf("%s probe failed: %s", kind, output))
		},
		Changed: func(ok bool, output string) {
			w.post(func() { w.verdict(name, r.ID, kind, spec, ok) })
		},
	}
	w.m.group.Go(func() {
		defer cancel()
		probe.Run(ctx, w.m.Runtime, kind, spec, target, report)
	})
}

// verdict takes a probe's verdict, if the run that it is about still counts.
func (w *worker) verdict(name, id string, kind probe.Kind, spec *corev1.Probe, ok bool) {
	h := w.health[name]
	if h == nil || h.id != id {
		return
	}
	m := w.remember(name)
	switch {
	case kind == probe.Readiness:
		m.Ready = ok
	case kind == probe.Startup && ok:
		h.started = true
	case !ok:
		what := "liveness"
		if kind == probe.Startup {
			what = "startup"
		}
		m.Unhealthy, m.UnhealthyID, m.UnhealthyGrace = fmt.Sprintf("Container %s failed %s probe, will be restarted", name, what), id, -1
		if spec.HasTerminationGracePeriodSeconds() {
			m.UnhealthyGrace = time.Duration(spec.GetTerminationGracePeriodSeconds()) * time.Second
		}
	}
}
