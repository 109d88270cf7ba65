package pod

import (
	"context"
	"fmt"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/services/node-agent/internal/status"
)

// systemCritical is the priority from which on a pod is one that the cluster cannot do without; Kubernetes' bound.
const systemCritical = 2_000_000_000

// Annotations that say where a pod comes from; Kubernetes' names.
const (
	// AnnotationSource is "file" on a static pod.
	AnnotationSource = "kubernetes.io/config.source"
	// AnnotationMirror is on the API server's picture of a static pod and names the form that it shows.
	AnnotationMirror = "kubernetes.io/config.mirror"
	// AnnotationHash names a static pod's form.
	AnnotationHash = "kubernetes.io/config.hash"
)

// IsStatic says whether a pod comes from the node's own folder.
func IsStatic(p *corev1.Pod) bool {
	return p.GetMetadata().GetAnnotations()[AnnotationSource] == "file"
}

// IsCritical says whether a pod goes before others and is never evicted for want of resources.
func IsCritical(p *corev1.Pod) bool {
	_, mirror := p.GetMetadata().GetAnnotations()[AnnotationMirror]
	return IsStatic(p) || mirror || p.GetSpec().GetPriority() >= systemCritical
}

// Evict ends a pod for a reason of the node's. It says whether there was such a pod to end.
func (m *Manager) Evict(uid string, end *status.End) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.evict(uid, end)
}

// evict is Evict; m.mu is held.
func (m *Manager) evict(uid string, end *status.End) bool {
	p := m.terminate(uid, end)
	if p == nil {
		return false
	}
	m.Events.Event(p, "", true, end.Reason, end.Message)
	return true
}

// Terminate is Evict, of which the pod's status alone tells.
func (m *Manager) Terminate(uid string, end *status.End) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.terminate(uid, end) != nil
}

// AwaitRelease waits until nothing of these pods runs or is mounted any more, or ctx ends.
func (m *Manager) AwaitRelease(ctx context.Context, uids []string) error {
	for _, uid := range uids {
		m.mu.Lock()
		w := m.workers[uid]
		m.mu.Unlock()
		for w != nil {
			w.mu.Lock()
			done, changed := w.seenReleased || w.over, w.changed
			w.mu.Unlock()
			if done {
				break
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("pod %s: %w", uid, ctx.Err())
			case <-changed:
			}
		}
	}
	return nil
}

// terminate ends a pod and returns it, nil when there was none to end. m.mu is held.
func (m *Manager) terminate(uid string, end *status.End) *corev1.Pod {
	w := m.workers[uid]
	if w == nil {
		return nil
	}
	p, ended := w.claims()
	if p == nil || ended {
		return nil
	}
	w.post(func() {
		if w.end == nil && !w.finished {
			w.end = end
		}
	})
	return p
}

// Pods returns the pods that have resources of the node.
func (m *Manager) Pods() []*corev1.Pod {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.others("")
}
