// Package event records core/v1 Events without holding up those who report them.
//
// As in Kubernetes' recorder, a report that repeats an earlier one raises its count, more than ten different messages of one reason about one
// object within ten minutes are combined, and what is reported on an object all the time is cut off at 25 reports, refilled one in five minutes.
// Unlike in Kubernetes that bound is per reason: scaling to 100 must not silence the failure that follows.
package event

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/utils/lru"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/object"
	"dhow.dev/pkg/resource"
	"dhow.dev/pkg/telemetry/logkey"
	"dhow.dev/services/controller-manager/internal/apitime"
)

// Types of events.
const (
	Normal  = "Normal"
	Warning = "Warning"
)

const (
	queued = 1024
	known  = 4096

	combineAfter  = 10
	combineWithin = 10 * time.Minute
	combined      = "(combined from similar events): "

	burst  = 25
	refill = 5 * time.Minute

	attempts   = 3
	retryDelay = time.Second
)

// Recorder writes the events that its sources report.
type Recorder struct {
	events *client.Client[*corev1.Event]
	logger *slog.Logger
	now    func() time.Time
	queue  chan report

	// Only Run touches these.
	written *lru.Cache // identity → *corev1.Event
	similar *lru.Cache // subject → *variety
	budgets *lru.Cache // subject → *budget
}

type report struct {
	component, kind, reason, message string
	regarding                        *corev1.ObjectReference
	at                               time.Time
}

// subject is what combined events have in common.
type subject struct {
	component, kind, reason, uid, namespace, name string
}

// identity is what repeated events have in common.
type identity struct {
	subject
	message string
}

type variety struct {
	messages map[string]struct{}
	began    time.Time
}

type budget struct {
	tokens float64
	at     time.Time
}

// New returns a recorder. Reports before Run wait in its queue.
func New(conn grpc.ClientConnInterface, logger *slog.Logger, now func() time.Time) *Recorder {
	return &Recorder{
		events: client.For[*corev1.Event](conn), logger: logger, now: now, queue: make(chan report, queued),
		written: lru.New(known), similar: lru.New(known), budgets: lru.New(known),
	}
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
	res, m := resource.ByMessage(regarding), regarding.GetMetadata()
	r := report{
		component: s.component, kind: kind, reason: reason, message: fmt.Sprintf(format, args...), at: s.recorder.now(),
		regarding: corev1.ObjectReference_builder{
			Kind: proto.String(res.Kind), ApiVersion: proto.String(res.APIVersion()), Namespace: proto.String(m.GetNamespace()),
			Name: proto.String(m.GetName()), Uid: proto.String(m.GetUid()), ResourceVersion: proto.String(m.GetResourceVersion()),
		}.Build(),
	}
	select {
	case s.recorder.queue <- r:
	default:
		s.recorder.logger.Warn("event dropped, too many are queued", logkey.Reason(reason), logkey.Object(m.GetNamespace(), m.GetName()))
	}
}

// Run writes events until ctx ends.
func (r *Recorder) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case report := <-r.queue:
			if e, fresh := r.correlate(report); e != nil {
				r.write(ctx, e, fresh)
			}
		}
	}
}

// correlate returns the event to write for a report and whether it is a new one, or nil when the budget is used up.
func (r *Recorder) correlate(report report) (e *corev1.Event, fresh bool) {
	about := subject{
		component: report.component, kind: report.kind, reason: report.reason,
		uid: report.regarding.GetUid(), namespace: report.regarding.GetNamespace(), name: report.regarding.GetName(),
	}
	if !r.afford(about, report.at) {
		return nil, false
	}
	id := identity{subject: about, message: report.message}
	message := report.message
	var v *variety
	if cached, ok := r.similar.Get(about); ok {
		v = cached.(*variety)
	}
	if v == nil || report.at.Sub(v.began) > combineWithin {
		v = &variety{messages: map[string]struct{}{}, began: report.at}
		r.similar.Add(about, v)
	}
	if len(v.messages) < combineAfter {
		v.messages[report.message] = struct{}{}
	} else if _, seen := v.messages[report.message]; !seen {
		id.message, message = combined, combined+report.message
	}
	if cached, ok := r.written.Get(id); ok {
		e = proto.Clone(cached.(*corev1.Event)).(*corev1.Event)
		e.SetCount(e.GetCount() + 1)
		e.SetLastTimestamp(apitime.Of(report.at))
		e.SetMessage(message)
		r.written.Add(id, e)
		return e, false
	}
	e = &corev1.Event{}
	e.SetMetadata(metadata(report))
	e.SetInvolvedObject(report.regarding)
	e.SetReason(report.reason)
	e.SetMessage(message)
	e.SetType(report.kind)
	e.SetSource(corev1.EventSource_builder{Component: proto.String(report.component)}.Build())
	e.SetReportingComponent(report.component)
	e.SetFirstTimestamp(apitime.Of(report.at))
	e.SetLastTimestamp(apitime.Of(report.at))
	e.SetCount(1)
	r.written.Add(id, e)
	return e, true
}

// afford takes one report out of the subject's budget.
func (r *Recorder) afford(about subject, at time.Time) bool {
	b := &budget{tokens: burst, at: at}
	if cached, ok := r.budgets.Get(about); ok {
		b = cached.(*budget)
	}
	b.tokens = min(burst, b.tokens+at.Sub(b.at).Seconds()/refill.Seconds())
	b.at = at
	r.budgets.Add(about, b)
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

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
		if !fresh {
			// Without a resourceVersion: nobody else writes it. It may have expired meanwhile.
			if _, err = r.events.Update(ctx, e, nil); err == nil || !apierrors.IsNotFound(err) {
				break
			}
		}
		// A namespace that is going takes no more events; that one exists already means that an earlier attempt succeeded.
		if _, err = r.events.Create(ctx, e, nil); err == nil || apierrors.IsAlreadyExists(err) || apierrors.IsForbidden(err) || apierrors.IsNotFound(err) {
			return
		}
		if apierrors.IsInvalid(err) {
			break
		}
	}
	if err != nil && ctx.Err() == nil {
		r.logger.WarnContext(ctx, "event not written", logkey.Reason(e.GetReason()), logkey.Name(e.GetMetadata().GetName()), logkey.Err(err))
	}
}
