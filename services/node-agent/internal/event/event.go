// Package event records what happens to pods as core/v1 Events. The same event again within a while raises the count of the first instead.
package event

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/telemetry/logkey"
	"dhow.dev/services/node-agent/internal/status"
)

const (
	// Component names the agent in events, as users of Kubernetes know it.
	Component = "kubelet"
	// sameFor is how long a repetition counts as the same event.
	sameFor = 10 * time.Minute
	// maxQueue bounds what waits to be sent; more is dropped: events are a courtesy, memory is not.
	maxQueue = 1000
	// senders is how many events are on their way at once.
	senders = 4
	// maxMessage is the API's bound.
	maxMessage = 1024
)

// key says which events are the same.
type key struct {
	uid, container, reason, message string
}

// known is an event that was sent.
type known struct {
	event *corev1.Event
	at    time.Time
}

// Recorder sends events.
type Recorder struct {
	client *client.Client[*corev1.Event]
	node   string
	logger *slog.Logger
	queue  chan pending

	mu      sync.Mutex
	known   map[key]*known
	dropped bool
}

type pending struct {
	key   key
	event *corev1.Event
	// again says that the event exists and is updated.
	again bool
}

// New returns a recorder.
func New(conn grpc.ClientConnInterface, node string, logger *slog.Logger) *Recorder {
	return &Recorder{client: client.For[*corev1.Event](conn), node: node, logger: logger, queue: make(chan pending, maxQueue), known: map[key]*known{}}
}

// Event records what happened to a pod or one of its containers.
func (r *Recorder) Event(p *corev1.Pod, container string, warning bool, reason, message string) {
	md, now := p.GetMetadata(), time.Now()
	if len(message) > maxMessage {
		message = message[:maxMessage-3] + "..."
	}
	k := key{uid: md.GetUid(), container: container, reason: reason, message: message}
	r.mu.Lock()
	for old, e := range r.known {
		if now.Sub(e.at) > sameFor {
			delete(r.known, old)
		}
	}
	item := pending{key: k}
	if e := r.known[k]; e != nil {
		e.event = proto.CloneOf(e.event)
		e.event.SetCount(e.event.GetCount() + 1)
		e.event.SetLastTimestamp(status.Time(now))
		e.at = now
		item.event, item.again = e.event, true
	} else {
		kind := "Normal"
		if warning {
			kind = "Warning"
		}
		involved := corev1.ObjectReference_builder{Kind: proto.String("Pod"), ApiVersion: proto.String("v1"), Namespace: proto.String(md.GetNamespace()),
			Name: proto.String(md.GetName()), Uid: proto.String(md.GetUid()), ResourceVersion: proto.String(md.GetResourceVersion())}.Build()
		if container != "" {
			involved.SetFieldPath(fieldPath(p, container))
		}
		item.event = corev1.Event_builder{
			Metadata:       metav1.ObjectMeta_builder{Name: proto.String(fmt.Sprintf("%s.%x", md.GetName(), now.UnixNano())), Namespace: proto.String(md.GetNamespace())}.Build(),
			InvolvedObject: involved, Reason: proto.String(reason), Message: proto.String(message), Type: proto.String(kind),
			Source:         corev1.EventSource_builder{Component: proto.String(Component), Host: proto.String(r.node)}.Build(),
			FirstTimestamp: status.Time(now), LastTimestamp: status.Time(now), Count: proto.Int32(1),
			ReportingComponent: proto.String(Component), ReportingInstance: proto.String(r.node),
		}.Build()
		r.known[k] = &known{event: item.event, at: now}
	}
	r.mu.Unlock()
	select {
	case r.queue <- item:
	default:
		r.mu.Lock()
		first := !r.dropped
		r.dropped = true
		r.mu.Unlock()
		if first {
			r.logger.Warn("events dropped, the API server does not take them fast enough")
		}
	}
}

func fieldPath(p *corev1.Pod, container string) string {
	for _, c := range p.GetSpec().GetInitContainers() {
		if c.GetName() == container {
			return "spec.initContainers{" + container + "}"
		}
	}
	return "spec.containers{" + container + "}"
}

// Run sends until ctx ends.
func (r *Recorder) Run(ctx context.Context) error {
	var group sync.WaitGroup
	for range senders {
		group.Go(func() {
			for {
				select {
				case <-ctx.Done():
					return
				case item := <-r.queue:
					r.send(ctx, item)
				}
			}
		})
	}
	group.Wait()
	return nil
}

// send tries twice: an event that does not get through is lost.
func (r *Recorder) send(ctx context.Context, item pending) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	var err error
	for range 2 {
		if item.again {
			_, err = r.client.Update(ctx, item.event, nil, grpc.WaitForReady(true))
		} else {
			_, err = r.client.Create(ctx, item.event, nil, grpc.WaitForReady(true))
		}
		switch {
		case err == nil, apierrors.IsAlreadyExists(err):
			return
		case apierrors.IsNotFound(err) && item.again:
			item.again = false // expired since
		case apierrors.IsForbidden(err), apierrors.IsInvalid(err), apierrors.IsNotFound(err):
			r.logger.DebugContext(ctx, "event refused", logkey.Reason(item.key.reason), logkey.Err(err))
			return
		}
	}
	r.logger.DebugContext(ctx, "event lost", logkey.Reason(item.key.reason), logkey.Err(err))
}
