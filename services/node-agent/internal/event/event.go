// Package event records what happens to pods and their containers as core/v1 Events, in the agent's name.
package event

import (
	"context"
	"log/slog"

	"google.golang.org/grpc"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/pkg/event"
)

// Component names the agent in events, as users of Kubernetes know it.
const Component = "kubelet"

// Recorder sends events.
type Recorder struct {
	recorder *event.Recorder
	source   event.Source
}

// New returns a recorder.
func New(conn grpc.ClientConnInterface, node string, logger *slog.Logger) *Recorder {
	r := event.New(event.Config{Conn: conn, Host: node, Logger: logger})
	return &Recorder{recorder: r, source: r.Source(Component)}
}

// Event records what happened to a pod, or to one of its containers, if it names one.
func (r *Recorder) Event(p *corev1.Pod, container string, warning bool, reason, message string) {
	kind := event.Normal
	if warning {
		kind = event.Warning
	}
	if container == "" {
		r.source.Report(p, kind, reason, "%s", message)
		return
	}
	r.source.ReportPart(p, fieldPath(p, container), kind, reason, "%s", message)
}

// Node records what happened to the node itself.
func (r *Recorder) Node(node *corev1.Node, reason, message string) {
	r.source.Report(node, event.Normal, reason, "%s", message)
}

func fieldPath(p *corev1.Pod, container string) string {
	for _, c := range p.GetSpec().GetInitContainers() {
		if c.GetName() == container {
			return "spec.initContainers{" + container + "}"
		}
	}
	for _, c := range p.GetSpec().GetEphemeralContainers() {
		if c.GetEphemeralContainerCommon().GetName() == container {
			return "spec.ephemeralContainers{" + container + "}"
		}
	}
	return "spec.containers{" + container + "}"
}

// Run sends until ctx ends.
func (r *Recorder) Run(ctx context.Context) error { return r.recorder.Run(ctx) }
