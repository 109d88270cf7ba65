package pod

import (
	"context"
	"path/filepath"
	"strconv"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/services/node-agent/internal/cri"
	"dhow.dev/services/node-agent/internal/logs"
	"dhow.dev/services/node-agent/internal/status"
)

// restartAll ends and removes every run of the pod's containers: regular ones, then init ones, and last those whose end asked for it, which is what the state
// of this is. Sandbox, volumes and ephemeral containers stay. What is left then is a pod that has not been initialized.
func (s *Situation) restartAll(p *Plan) {
	if s.busy(StartContainer) {
		p.CancelStarts = true
	}
	var others, sources []*cri.Container
	ended := true
	for _, list := range [][]*corev1.Container{s.Pod.GetSpec().GetContainers(), s.Pod.GetSpec().GetInitContainers()} {
		for _, spec := range list {
			for i := range s.Runtime.Containers {
				c := &s.Runtime.Containers[i]
				switch {
				case c.Name != spec.GetName():
				case c.State == cri.StateRunning || c.State == cri.StateUnknown:
					// As in Kubernetes without grace, and so without preStop hook.
					s.add(p, Step{Key: Key{StopContainer, c.ID}, Container: c.Name, Why: "Stopping container " + c.Name})
					ended = false
				case s.Busy[Key{StopContainer, c.ID}]:
					ended = false
				case status.RestartsAll(spec, c):
					sources = append(sources, c)
				default:
					others = append(others, c)
				}
			}
		}
		if !ended {
			return
		}
	}
	if p.CancelStarts {
		return
	}
	if len(others) > 0 {
		sources = others
	}
	for _, c := range sources {
		newest := s.Runtime.Newest(c.Name)
		s.add(p, Step{Key: Key{RemoveContainer, c.ID}, Container: c.Name, Attempt: c.Attempt, Last: newest.ID == c.ID})
	}
}

// removeLast removes the newest run of a container. Its log stays for those who look why it ended; that of the run before it goes, so that a pod which restarts
// for ever does not fill the disk.
func (w *worker) removeLast(step Step) perform {
	path := ""
	if c := w.runtime.ByID(step.Subject); c != nil {
		path = c.LogPath
	}
	// Noted at once: the next run may be due as soon as the runtime tells of the removal, before the step is settled.
	m := w.remember(step.Container)
	m.Next, m.Waiting = max(m.Next, step.Attempt+1), nil
	return func(ctx context.Context) (func(), error) {
		if path != "" && step.Attempt > 0 {
			if err := logs.Remove(filepath.Join(filepath.Dir(path), strconv.Itoa(int(step.Attempt)-1)+".log")); err != nil {
				return nil, err
			}
		}
		return func() { w.lookAt(step.Subject) }, w.m.Runtime.RemoveContainer(ctx, step.Subject)
	}
}
