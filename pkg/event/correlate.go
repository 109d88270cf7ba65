package event

import (
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"
	"k8s.io/utils/lru"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
)

const (
	// known is how many events, and how many subjects, are remembered.
	known = 4096

	combineAfter  = 10
	combineWithin = 10 * time.Minute
	combined      = "(combined from similar events): "

	burst  = 25
	refill = 5 * time.Minute

	// maxObjectName keeps the event's name, with the dot and up to 16 hexadecimal digits, below the 253 characters that a name may have.
	maxObjectName = 236
)

// correlator decides which event a report belongs to. It is not safe for concurrent use.
type correlator struct {
	written *lru.Cache // identity → *written
	similar *lru.Cache // subject → *variety
	budgets *lru.Cache // subject → *budget
}

// subject is what combined events have in common.
type subject struct {
	component, kind, reason, uid, namespace, name, part string
}

// identity is what repeated events have in common.
type identity struct {
	subject
	message string
}

// written is what is remembered of an event; the rest of it is in the report that repeats it.
type written struct {
	name    string
	message string
	first   time.Time
	count   int32
}

type variety struct {
	messages map[string]struct{}
	began    time.Time
}

type budget struct {
	tokens float64
	at     time.Time
}

func newCorrelator() *correlator {
	return &correlator{written: lru.New(known), similar: lru.New(known), budgets: lru.New(known)}
}

// correlate returns the event of a report, whose count is 1 when it is new, or nil when the subject's budget is used up.
func (c *correlator) correlate(r *report) *written {
	about := subject{
		component: r.component, kind: r.kind, reason: r.reason, uid: r.regarding.GetUid(),
		namespace: r.regarding.GetNamespace(), name: r.regarding.GetName(), part: r.regarding.GetFieldPath(),
	}
	if !c.afford(about, r.at) {
		return nil
	}
	id := identity{subject: about, message: r.message}
	message := r.message
	var v *variety
	if cached, ok := c.similar.Get(about); ok {
		v = cached.(*variety)
	}
	if v == nil || r.at.Sub(v.began) > combineWithin {
		v = &variety{messages: map[string]struct{}{}, began: r.at}
		c.similar.Add(about, v)
	}
	if len(v.messages) < combineAfter {
		v.messages[r.message] = struct{}{}
	} else if _, seen := v.messages[r.message]; !seen {
		id.message, message = combined, combined+r.message
	}
	if cached, ok := c.written.Get(id); ok {
		w := cached.(*written)
		w.count++
		w.message = message
		return w
	}
	w := &written{name: name(r), message: message, first: r.at, count: 1}
	c.written.Add(id, w)
	return w
}

// afford takes one report out of the subject's budget.
func (c *correlator) afford(about subject, at time.Time) bool {
	b := &budget{tokens: burst, at: at}
	if cached, ok := c.budgets.Get(about); ok {
		b = cached.(*budget)
	}
	b.tokens = min(burst, b.tokens+at.Sub(b.at).Seconds()/refill.Seconds())
	b.at = at
	c.budgets.Add(about, b)
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

// name is that of an event's object and its time, as in Kubernetes.
func name(r *report) string {
	of := r.regarding.GetName()
	if len(of) > maxObjectName {
		of = of[:maxObjectName]
	}
	return fmt.Sprintf("%s.%x", of, r.at.UnixNano())
}

// event is the API's object. Events about objects without namespace live in `default`.
func (w *written) event(r *report, host string) *corev1.Event {
	namespace := r.regarding.GetNamespace()
	if namespace == "" {
		namespace = "default"
	}
	e := corev1.Event_builder{
		Metadata:       metav1.ObjectMeta_builder{Namespace: proto.String(namespace), Name: proto.String(w.name)}.Build(),
		InvolvedObject: r.regarding, Reason: proto.String(r.reason), Message: proto.String(w.message), Type: proto.String(r.kind),
		Source:         corev1.EventSource_builder{Component: proto.String(r.component)}.Build(),
		FirstTimestamp: seconds(w.first), LastTimestamp: seconds(r.at), Count: proto.Int32(w.count),
		ReportingComponent: proto.String(r.component),
	}.Build()
	if host != "" {
		e.GetSource().SetHost(host)
		e.SetReportingInstance(host)
	}
	return e
}

// seconds is a time as the API writes it.
func seconds(t time.Time) *metav1.Time {
	out := &metav1.Time{}
	out.SetSeconds(t.Unix())
	out.SetNanos(0)
	return out
}
