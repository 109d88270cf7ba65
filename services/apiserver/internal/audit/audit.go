// Package audit records who asked for what, and what came of it: Kubernetes' audit log
// (https://kubernetes.io/docs/tasks/debug/debug-cluster/audit/) by Kubernetes' policy, as lines of JSON.
//
// Recording costs a request the making of its lines. They are written by a goroutine of the log's; when that is behind, a request waits for a bounded time, and then
// the line is lost, counted and complained about.
package audit

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"runtime/debug"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apimachinery/pkg/util/uuid"

	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/telemetry/logkey"
	"dhow.dev/services/apiserver/internal/audit/annotation"
	"dhow.dev/services/apiserver/internal/request"
)

const (
	scope = "dhow.dev/services/apiserver/internal/audit"
	// idHeader carries the id of a request's events, from the client if it likes, and back to it.
	idHeader = "Audit-Id"
	// maxBody bounds what is kept of a body: as much as a request may have.
	maxBody = 3 << 20
)

// Sink takes lines.
type Sink interface {
	Add(ctx context.Context, line []byte)
}

// Config configures an Auditor.
type Config struct {
	// Policy says what is recorded.
	Policy *Policy
	// Sink gets the lines.
	Sink Sink
	// Scheme has the types of protobuf bodies, so that they can be recorded as JSON.
	Scheme *runtime.Scheme
	// Now is the clock; nil: the real one.
	Now func() time.Time
	// Logger may be nil.
	Logger *slog.Logger
}

// Auditor records requests.
type Auditor struct{ config Config }

// New returns an auditor.
func New(config Config) (*Auditor, error) {
	if config.Policy == nil || config.Sink == nil || config.Scheme == nil {
		return nil, errors.New("audit: Policy, Sink and Scheme are required")
	}
	if config.Now == nil {
		config.Now = time.Now
	}
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	return &Auditor{config}, nil
}

// Wrap returns a handler that records what next does. Requests carry their request.Info and the identity of their caller.
func (a *Auditor) Wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := r.Header.Get(idHeader)
		if id == "" {
			id = string(uuid.NewUUID())
			r.Header.Set(idHeader, id)
		}
		w.Header().Set(idHeader, id)
		info, asks := request.FromContext(r.Context())
		user, known := identity.FromContext(r.Context())
		if !asks || !known {
			next.ServeHTTP(w, r)
			return
		}
		judged := a.config.Policy.judge(user, info)
		if judged.level == LevelNone {
			next.ServeHTTP(w, r)
			return
		}
		a.record(w, r, next, &recording{auditor: a, verdict: judged, info: info, event: newEvent(judged.level, user, info, a.config.Now())}, id)
	})
}

// recording is one request.
type recording struct {
	auditor *Auditor
	verdict verdict
	info    *request.Info
	// event is what all stages share. Stages are made one after the other.
	event Event
	notes *annotation.Set
	ctx   context.Context
}

func (a *Auditor) record(w http.ResponseWriter, r *http.Request, next http.Handler, rec *recording, id string) {
	rec.event.AuditID, rec.event.RequestURI = id, r.RequestURI
	if rec.event.RequestURI == "" {
		rec.event.RequestURI = r.URL.RequestURI()
	}
	rec.event.UserAgent = bound(r.UserAgent())
	for _, ip := range utilnet.SourceIPs(r) {
		rec.event.SourceIPs = append(rec.event.SourceIPs, ip.String())
	}
	ctx, notes := annotation.NewContext(r.Context())
	rec.ctx, rec.notes = ctx, notes
	r = r.WithContext(ctx)
	rec.emit(StageRequestReceived, rec.event)

	streams := lasts(rec.info)
	var body *tee
	// What is made has its name in the body, which is read for that alone at the lowest level.
	nameless := rec.event.ObjectRef != nil && rec.event.ObjectRef.Name == "" && rec.event.Verb == "create"
	if (rec.verdict.level.includes(LevelRequest) || nameless) && !streams && r.Body != nil && r.Body != http.NoBody {
		body = &tee{ReadCloser: r.Body}
		r.Body = body
	}
	answer := &writer{ResponseWriter: w, keep: rec.verdict.level.includes(LevelRequestResponse) && !streams}
	if streams {
		answer.started = sync.OnceFunc(func() {
			e := rec.event
			e.ResponseStatus = &metav1.Status{Code: int32(answer.code)}
			rec.emit(StageResponseStarted, e)
		})
	}
	defer func() {
		failed := recover()
		e := rec.event
		switch {
		case body == nil:
		case !rec.verdict.level.includes(LevelRequest):
			if object, err := a.decode(r.Header.Get("Content-Type"), "", body.kept.Bytes()); err == nil && !body.kept.over {
				e.ObjectRef.complete(object)
			}
		default:
			e.RequestObject = a.object(ctx, r.Header.Get("Content-Type"), "", &body.kept, rec.verdict.omitManagedFields)
			e.ObjectRef.complete(e.RequestObject)
		}
		if failed != nil && failed != http.ErrAbortHandler {
			e.ResponseStatus = &metav1.Status{
				Code: http.StatusInternalServerError, Status: metav1.StatusFailure, Reason: metav1.StatusReasonInternalError, Message: "APIServer panic'd",
			}
			a.config.Logger.ErrorContext(ctx, "audited handler panicked", logkey.Panic(failed), logkey.Stack(debug.Stack()))
			rec.emit(StagePanic, e)
			panic(failed)
		}
		e.ResponseStatus = &metav1.Status{Code: int32(answer.status())}
		if answer.keep {
			object := a.object(ctx, w.Header().Get("Content-Type"), w.Header().Get("Content-Encoding"), &answer.kept, rec.verdict.omitManagedFields)
			e.ResponseObject = object
			e.ObjectRef.complete(object)
			if answer.status() >= http.StatusBadRequest {
				var status metav1.Status
				if json.Unmarshal(object, &status) == nil && status.Code == e.ResponseStatus.Code {
					status.TypeMeta = metav1.TypeMeta{}
					e.ResponseStatus = &status
				}
			}
		}
		rec.emit(StageResponseComplete, e)
		if failed != nil {
			panic(failed)
		}
	}()
	next.ServeHTTP(answer, r)
}

// emit makes the line of a stage.
func (rec *recording) emit(stage Stage, e Event) {
	if !rec.verdict.records(stage) {
		return
	}
	e.Stage, e.StageTimestamp = stage, metav1.NewMicroTime(rec.auditor.config.Now())
	values, as := rec.notes.Values()
	if values == nil {
		values = map[string]string{}
	}
	// What the event says of itself is more exact than what was noted last.
	maps.Copy(values, e.Annotations)
	e.Annotations = values
	if as != nil {
		user := userOf(*as)
		e.ImpersonatedUser = &user
	}
	line, err := json.Marshal(e)
	if err != nil {
		rec.auditor.config.Logger.ErrorContext(rec.ctx, "audit event cannot be encoded", logkey.Err(err))
		return
	}
	rec.auditor.config.Sink.Add(rec.ctx, append(line, '\n'))
}

// lasting are the subresources whose requests last as long as their callers want, and whose bodies are no objects.
var lasting = map[string]bool{"attach": true, "exec": true, "log": true, "portforward": true, "proxy": true}

func lasts(info *request.Info) bool {
	return info.IsResource && (info.Verb == "watch" || lasting[info.Subresource])
}

// bounded keeps the beginning of what is written to it.
type bounded struct {
	bytes.Buffer
	over bool
}

func (b *bounded) keep(p []byte) {
	if b.over = b.over || b.Len()+len(p) > maxBody; !b.over {
		b.Write(p)
	}
}

// tee keeps what is read of a body.
type tee struct {
	io.ReadCloser
	kept bounded
}

func (t *tee) Read(p []byte) (int, error) {
	n, err := t.ReadCloser.Read(p)
	t.kept.keep(p[:n])
	return n, err
}

// writer remembers the answer.
type writer struct {
	http.ResponseWriter
	code int
	keep bool
	kept bounded
	// started is told when the answer begins; nil for requests that are no streams.
	started func()
}

// Unwrap is for http.ResponseController.
func (w *writer) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *writer) begin(code int) {
	if w.code == 0 || w.code < http.StatusOK {
		w.code = code
	}
	if w.started != nil && w.code >= http.StatusOK || w.started != nil && w.code == http.StatusSwitchingProtocols {
		w.started()
	}
}

func (w *writer) WriteHeader(code int) {
	w.begin(code)
	w.ResponseWriter.WriteHeader(code)
}

func (w *writer) Write(p []byte) (int, error) {
	if w.code < http.StatusOK {
		w.begin(http.StatusOK)
	}
	if w.keep {
		w.kept.keep(p)
	}
	return w.ResponseWriter.Write(p)
}

// Flush implements http.Flusher.
func (w *writer) Flush() {
	if w.code < http.StatusOK {
		w.begin(http.StatusOK)
	}
	_ = http.NewResponseController(w.ResponseWriter).Flush() // a writer that cannot flush writes at once
}

// Hijack implements http.Hijacker.
func (w *writer) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, buffer, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err == nil && w.code == 0 {
		w.begin(http.StatusSwitchingProtocols)
	}
	return conn, buffer, err
}

func (w *writer) status() int {
	if w.code == 0 {
		return http.StatusOK
	}
	return w.code
}
