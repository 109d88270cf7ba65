// Package event writes the scheduler's core/v1 Events: Scheduled and FailedScheduling, off the way of those who report them.
package event

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/telemetry/logkey"
)

// Types and reasons, as Kubernetes' scheduler has them.
const (
	Normal  = "Normal"
	Warning = "Warning"

	Scheduled        = "Scheduled"
	FailedScheduling = "FailedScheduling"
	// NotEnforced warns of a field that was not looked at.
	NotEnforced = "FieldNotEnforced"
)

const (
	queued = 8192
	// Several at once, because each waits for a commit; commits are shared.
	writers  = 8
	attempts = 3
	retry    = time.Second
	// Component is who reports.
	Component = "default-scheduler"
)

// Recorder writes events.
type Recorder struct {
	events *client.Client[*corev1.Event]
	logger *slog.Logger
	now    func() time.Time
	queue  chan *corev1.Event
}

// New returns a recorder. Reports before Run wait in its queue.
func New(conn grpc.ClientConnInterface, logger *slog.Logger, now func() time.Time) *Recorder {
	return &Recorder{events: client.For[*corev1.Event](conn), logger: logger, now: now, queue: make(chan *corev1.Event, queued)}
}

// Report says that something happened to a pod. It never waits: what does not fit into the queue is dropped, because events only inform.
func (r *Recorder) Report(pod *corev1.Pod, kind, reason, message string) {
	m, now := pod.GetMetadata(), r.now()
	at := &metav1.Time{}
	at.SetSeconds(now.Unix())
	at.SetNanos(0)
	e := corev1.Event_builder{
		Metadata: metav1.ObjectMeta_builder{
			Namespace: proto.String(m.GetNamespace()),
			// As Kubernetes names events; the time makes it unique for the pod.
			Name: proto.String(m.GetName() + "." + strconv.FormatInt(now.UnixNano(), 16)),
		}.Build(),
		InvolvedObject: corev1.ObjectReference_builder{
			Kind: proto.String("Pod"), ApiVersion: proto.String("v1"), Namespace: proto.String(m.GetNamespace()),
			Name: proto.String(m.GetName()), Uid: proto.String(m.GetUid()), ResourceVersion: proto.String(m.GetResourceVersion()),
		}.Build(),
		Reason: proto.String(reason), Message: proto.String(message), Type: proto.String(kind),
		Source:             corev1.EventSource_builder{Component: proto.String(Component)}.Build(),
		ReportingComponent: proto.String(Component),
		FirstTimestamp:     at, LastTimestamp: at, Count: proto.Int32(1),
	}.Build()
	select {
	case r.queue <- e:
	default:
		r.logger.Warn("event dropped, too many are queued", logkey.Reason(reason), logkey.Pod(m.GetNamespace(), m.GetName()))
	}
}

// Bound reports that a pod was placed.
func (r *Recorder) Bound(pod *corev1.Pod, node string) {
	m := pod.GetMetadata()
	r.Report(pod, Normal, Scheduled, fmt.Sprintf("Successfully assigned %s/%s to %s", m.GetNamespace(), m.GetName(), node))
}

// Run writes events until ctx ends.
func (r *Recorder) Run(ctx context.Context) error {
	tasks, ctx := errgroup.WithContext(ctx)
	for range writers {
		tasks.Go(func() error {
			for {
				select {
				case <-ctx.Done():
					return nil
				case e := <-r.queue:
					r.write(ctx, e)
				}
			}
		})
	}
	return tasks.Wait()
}

func (r *Recorder) write(ctx context.Context, e *corev1.Event) {
	var err error
	for attempt := range attempts {
		if attempt > 0 {
			select {
			case <-ctx.Done():
				return
			case <-time.After(retry):
			}
		}
		_, err = r.events.Create(ctx, e, nil)
		// That it exists means that an earlier attempt arrived; a namespace that is going takes no more events.
		if err == nil || apierrors.IsAlreadyExists(err) || apierrors.IsForbidden(err) || apierrors.IsNotFound(err) {
			return
		}
		if apierrors.IsInvalid(err) {
			break
		}
	}
	if ctx.Err() == nil {
		r.logger.WarnContext(ctx, "event not written", logkey.Reason(e.GetReason()), logkey.Name(e.GetMetadata().GetName()), logkey.Err(err))
	}
}
