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
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/commit"
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
	// queued bounds the reports that wait.
	queued = 8192
	// An event that comes alone is written at once; what comes within gather after it is written together, at most together of them: an event costs a fifth of what it does alone.
	gather   = 250 * time.Millisecond
	together = 200

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
	conn   grpc.ClientConnInterface
	events *client.Client[*corev1.Event]
	logger *slog.Logger
	now    func() time.Time
	host   string
	queue  chan *report
	// overflows is set while reports are dropped, so that it is said once.
	overflows atomic.Bool
}

type report struct {
	component, kind, reason, message string
	regarding                        *corev1.ObjectReference
	at                               time.Time
}

// New returns a recorder. Reports before Run wait in its queue.
func New(config Config) *Recorder {
	r := &Recorder{
		conn: config.Conn, events: client.For[*corev1.Event](config.Conn), logger: config.Logger, now: config.Now, host: config.Host, queue: make(chan *report, queued),
	}
	if r.now == nil {
		r.now = time.Now
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
	select {
	case r.queue <- &report{component: s.component, kind: kind, reason: reason, message: message, regarding: regarding, at: r.now()}:
	default:
		if !r.overflows.Swap(true) {
			r.logger.Warn("events dropped, too many are queued", logkey.Reason(reason), logkey.Object(regarding.GetNamespace(), regarding.GetName()))
		}
	}
}

// Run writes events until ctx ends.
func (r *Recorder) Run(ctx context.Context) error {
	known := newCorrelator()
	pause := time.NewTimer(0)
	defer pause.Stop()
	for {
		// The pause comes first, so that what is waited for afterwards is written at once.
		select {
		case <-ctx.Done():
			return nil
		case <-pause.C:
		}
		var reports []*report
		select {
		case <-ctx.Done():
			return nil
		case first := <-r.queue:
			reports = append(reports, first)
		}
		for len(reports) < together && len(r.queue) > 0 {
			reports = append(reports, <-r.queue) // nobody else takes from the queue
		}
		r.write(ctx, r.correlated(known, reports))
		pause.Reset(gather)
	}
}

// write is an event to write.
type write struct {
	event *corev1.Event
	// fresh: it was not written before.
	fresh bool
}

// correlated returns the events that reports come to, each once, in the order in which they were first reported.
func (r *Recorder) correlated(known *correlator, reports []*report) []write {
	var writes []write
	at := map[*written]int{}
	for _, next := range reports {
		found := known.correlate(next)
		if found == nil {
			continue
		}
		e := found.event(next, r.host)
		if i, twice := at[found]; twice {
			writes[i].event = e
			continue
		}
		at[found] = len(writes)
		writes = append(writes, write{event: e, fresh: found.count == 1})
	}
	return writes
}

// write writes events in one commit, each alone where the API server takes not all of them.
func (r *Recorder) write(ctx context.Context, writes []write) {
	if len(writes) > 1 {
		var batch commit.Batch
		for _, w := range writes {
			if w.fresh {
				batch.Create(w.event)
			} else {
				batch.Update(w.event)
			}
		}
		err := r.persist(ctx, func(ctx context.Context) error {
			_, _, err := batch.Commit(ctx, r.conn, grpc.WaitForReady(true))
			return err
		})
		if err != nil && !refused(err) && ctx.Err() == nil {
			r.logger.WarnContext(ctx, "events not written", logkey.Count(len(writes)), logkey.Err(err))
		}
		if err == nil || !refused(err) {
			return
		}
	}
	for _, w := range writes {
		err := r.persist(ctx, func(ctx context.Context) error { return r.try(ctx, w) })
		if err != nil && ctx.Err() == nil {
			r.logger.WarnContext(ctx, "event not written", logkey.Reason(w.event.GetReason()), logkey.Name(w.event.GetMetadata().GetName()), logkey.Err(err))
		}
	}
}

// persist calls again what failed but was not refused.
func (r *Recorder) persist(ctx context.Context, call func(context.Context) error) error {
	var err error
	for attempt := range attempts {
		if attempt > 0 {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(retryDelay):
			}
		}
		bounded, cancel := context.WithTimeout(ctx, callFor)
		err = call(bounded)
		cancel()
		if err == nil {
			r.overflows.Store(false)
		}
		if err == nil || refused(err) {
			break
		}
	}
	return err
}

// refused says that trying the same again leads nowhere.
func refused(err error) bool {
	return apierrors.IsInvalid(err) || apierrors.IsBadRequest(err) || apierrors.IsForbidden(err) || apierrors.IsNotFound(err) || apierrors.IsAlreadyExists(err) ||
		apierrors.IsConflict(err) || apierrors.IsRequestEntityTooLargeError(err)
}

// try creates an event, or updates one that was written before: without a resourceVersion, since nobody else writes it.
func (r *Recorder) try(ctx context.Context, w write) error {
	if !w.fresh {
		// It may have expired meanwhile.
		if _, err := r.events.Update(ctx, w.event, nil, grpc.WaitForReady(true)); !apierrors.IsNotFound(err) {
			return err
		}
	}
	_, err := r.events.Create(ctx, w.event, nil, grpc.WaitForReady(true))
	// A namespace that is going takes no more events; that one exists already means that an earlier attempt succeeded.
	if apierrors.IsAlreadyExists(err) || apierrors.IsForbidden(err) || apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
