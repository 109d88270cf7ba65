// Package event records core/v1 Events without holding up those who report them.
//
// As in Kubernetes' recorder, a report that repeats an earlier one raises its count, more than ten different messages of one reason about one
// object within ten minutes are combined, and what is reported on an object all the time is cut off at 25 reports, refilled one in five minutes.
// Unlike in Kubernetes that bound is per reason: scaling to 100 must not silence the failure that follows.
package event

import (
	"context"
	"fmt"
	"hash/maphash"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/object"
	"dhow.dev/pkg/resource"
	"dhow.dev/pkg/telemetry/logkey"
)

// Types of events.
const (
	Normal  = "Normal"
	Warning = "Warning"
)

const (
	// writers is how many events are on their way at once: each waits for a commit, and commits are shared.
	writers = 8
	// queued bounds the reports that wait for one writer. Those of one object have one writer, so that they stay in order.
	queued = 1024

	attempts   = 3
	retryDelay = time.Second
	// callFor bounds one attempt, in which the API server may also come back.
	callFor = 30 * time.Second

	// maxMessage is the API's bound, in bytes.
	maxMessage = 1024
)

// Config configures New.
type Config struct {
	Conn   grpc.ClientConnInterface
	Logger *slog.Logger
	// Now is the clock; nil: time.Now.
	Now func() time.Time
	// Host is the node that reports; empty for services that belong to none.
	Host string
}

// Recorder writes the events that its sources report.
type Recorder struct {
	events  *client.Client[*corev1.Event]
	logger  *slog.Logger
	now     func() time.Time
	host    string
	seed    maphash.Seed
	writers [writers]*writer
	// overflows is set while reports are dropped, so that it is said once.
	overflows atomic.Bool
}

// writer writes the events of some objects.
type writer struct {
	queue      chan *report
	correlator *correlator
}

type report struct {
	component, kind, reason, message string
	regarding                        *corev1.ObjectReference
	at                               time.Time
}

// New returns a recorder. Reports before Run wait in its queues.
func New(config Config) *Recorder {
	r := &Recorder{
		events: client.For[*corev1.Event](config.Conn), logger: config.Logger, now: config.Now, host: config.Host, seed: maphash.MakeSeed(),
	}
	if r.now == nil {
		r.now = time.Now
	}
	for i := range r.writers {
		r.writers[i] = &writer{queue: make(chan *report, queued), correlator: newCorrelator()}
	}
	return r
}

// Source reports in the name of one component.
type Source struct {
	recorder  *Recorder
	component string
}

// Source returns the source of a component, named as Kubernetes names it (`deployment-controller`).
func (r *Recorder) Source(component string) Source { return Source{recorder: r, component: component} }

// Report says that something happened to an object. Kind is Normal or Warning. It never waits: when too many reports are queued it is dropped.
func (s Source) Report(regarding object.Object, kind, reason, format string, args ...any) {
	s.report(reference(regarding), kind, reason, fmt.Sprintf(format, args...))
}

// ReportPart is Report for a part of an object, which fieldPath names, as `spec.containers{web}`.
func (s Source) ReportPart(regarding object.Object, fieldPath, kind, reason, format string, args ...any) {
	about := reference(regarding)
	about.SetFieldPath(fieldPath)
	s.report(about, kind, reason, fmt.Sprintf(format, args...))
}

func reference(o object.Object) *corev1.ObjectReference {
	res, m := resource.ByMessage(o), o.GetMetadata()
	return corev1.ObjectReference_builder{
		Kind: proto.String(res.Kind), ApiVersion: proto.String(res.APIVersion()), Namespace: proto.String(m.GetNamespace()),
		Name: proto.String(m.GetName()), Uid: proto.String(m.GetUid()), ResourceVersion: proto.String(m.GetResourceVersion()),
	}.Build()
}

func (s Source) report(regarding *corev1.ObjectReference, kind, reason, message string) {
	r := s.recorder
	if len(message) > maxMessage {
		message = strings.ToValidUTF8(message[:maxMessage-3], "") + "..."
	}
	to := r.writers[maphash.Comparable(r.seed, [3]string{regarding.GetUid(), regarding.GetNamespace(), regarding.GetName()})%writers]
	select {
	case to.queue <- &report{component: s.component, kind: kind, reason: reason, message: message, regarding: regarding, at: r.now()}:
	default:
		if !r.overflows.Swap(true) {
			r.logger.Warn("events dropped, too many are queued", logkey.Reason(reason), logkey.Object(regarding.GetNamespace(), regarding.GetName()))
		}
	}
}

// Run writes events until ctx ends.
func (r *Recorder) Run(ctx context.Context) error {
	tasks, ctx := errgroup.WithContext(ctx)
	for _, w := range r.writers {
		tasks.Go(func() error {
			for {
				select {
				case <-ctx.Done():
					return nil
				case next := <-w.queue:
					if found := w.correlator.correlate(next); found != nil {
						r.write(ctx, found.event(next, r.host), found.count == 1)
					}
				}
			}
		})
	}
	return tasks.Wait()
}

// write creates an event, or updates one that was written before: without a resourceVersion, since nobody else writes it.
func (r *Recorder) write(ctx context.Context, e *corev1.Event, fresh bool) {
	var err error
	for attempt := range attempts {
		if attempt > 0 {
			select {
			case <-ctx.Done():
				return
			case <-time.After(retryDelay):
			}
		}
		if err = r.try(ctx, e, fresh); err == nil {
			r.overflows.Store(false)
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

func (r *Recorder) try(ctx context.Context, e *corev1.Event, fresh bool) error {
	ctx, cancel := context.WithTimeout(ctx, callFor)
	defer cancel()
	if !fresh {
		// It may have expired meanwhile.
		if _, err := r.events.Update(ctx, e, nil, grpc.WaitForReady(true)); !apierrors.IsNotFound(err) {
			return err
		}
	}
	_, err := r.events.Create(ctx, e, nil, grpc.WaitForReady(true))
	// A namespace that is going takes no more events; that one exists already means that an earlier attempt succeeded.
	if apierrors.IsAlreadyExists(err) || apierrors.IsForbidden(err) || apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
