package restapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strconv"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/uuid"

	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/stack"
	"dhow.dev/pkg/telemetry"
	"dhow.dev/pkg/telemetry/logkey"
	"dhow.dev/services/apiserver/internal/authorizer"
	"dhow.dev/services/apiserver/internal/request"
	"dhow.dev/services/apiserver/internal/respond"
)

const (
	// scope names the package's spans and metrics.
	scope = "dhow.dev/services/apiserver/restapi"
	// defaultTimeout bounds requests that are no streams, as in Kubernetes; clients may only ask for less.
	defaultTimeout = 60 * time.Second
	// auditHeader carries the id that a request is found under in the audit log; maxAuditID bounds what clients may choose.
	auditHeader = "Audit-Id"
	maxAuditID  = 64
)

// filters builds the chain: recover, info, trace and log, authenticate, audit, impersonate, fairness, authorize, timeout.
func (d *Door) filters(handler http.Handler) (http.Handler, error) {
	duration, err := telemetry.Meter(scope).Float64Histogram("http.server.request.duration", metric.WithUnit("s"),
		metric.WithDescription("How long requests of the Kubernetes door took, streams excepted"),
		metric.WithExplicitBucketBoundaries(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60))
	if err != nil {
		return nil, err
	}
	handler = d.authorize(d.timeout(handler))
	for _, f := range []Filter{d.config.Fairness, d.config.Impersonation, d.config.Auditor} {
		if f != nil {
			handler = f.Wrap(handler)
		}
	}
	return d.inform(d.observe(duration, d.authenticate(handler))), nil
}

// inform reads what is asked for, and answers for what panics.
func (d *Door) inform(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			value := recover()
			if value == nil {
				return
			}
			if value == http.ErrAbortHandler { // a handler's own way to break the connection
				panic(value)
			}
			d.config.Logger.LogAttrs(r.Context(), slog.LevelError, "handler panicked", logkey.Method(r.Method), logkey.Path(r.URL.Path), logkey.Panic(value), logkey.Stack(debug.Stack()))
			respond.Error(w, r, errors.New("the handler panicked"))
		}()
		h := w.Header()
		h.Set("Cache-Control", "no-cache, private")
		id := r.Header.Get(auditHeader)
		if id == "" || len(id) > maxAuditID {
			id = string(uuid.NewUUID())
			r.Header.Set(auditHeader, id)
		}
		h.Set(auditHeader, id)
		info, err := request.Parse(r)
		if err != nil {
			respond.Error(w, r, err)
			return
		}
		if !IsStream(info) { // streams are many, and wait
			stack.Grow()
		}
		next.ServeHTTP(w, r.WithContext(request.NewContext(r.Context(), info)))
	})
}

// observe makes the span, the metric and the record of a request.
func (d *Door) observe(duration metric.Float64Histogram, next http.Handler) http.Handler {
	tracer := telemetry.Tracer(scope)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		began := time.Now()
		info, _ := request.FromContext(r.Context())
		ctx := otel.GetTextMapPropagator().Extract(r.Context(), propagation.HeaderCarrier(r.Header))
		name := r.Method
		if info.Kind != nil {
			name = info.Verb + " " + info.Kind.Plural
		}
		ctx, span := tracer.Start(ctx, name, trace.WithSpanKind(trace.SpanKindServer))
		defer span.End()
		ctx, report := respond.Listen(ctx)
		recorder := &recorder{ResponseWriter: w}
		next.ServeHTTP(recorder, r.WithContext(ctx))
		code := recorder.status()
		err := report.Err()
		span.SetAttributes(attribute.Int("http.response.status_code", code))
		if !IsStream(info) && duration.Enabled(ctx) {
			duration.Record(ctx, time.Since(began).Seconds(), metric.WithAttributes(
				attribute.String("verb", verbLabel(info)), attribute.String("resource", resourceLabel(info)), attribute.Int("code", code)))
		}
		level, message := slog.LevelDebug, "request handled"
		if code >= http.StatusInternalServerError && code != http.StatusServiceUnavailable && code != http.StatusGatewayTimeout && ctx.Err() == nil {
			level, message = slog.LevelError, "request failed"
			span.RecordError(err)
		}
		if !d.config.Logger.Enabled(ctx, level) {
			return
		}
		attributes := []slog.Attr{logkey.Method(r.Method), logkey.Path(r.URL.Path), logkey.Code(number(code)), logkey.Duration(time.Since(began)), logkey.Identity(recorder.caller)}
		if err != nil {
			attributes = append(attributes, logkey.Err(err))
		}
		d.config.Logger.LogAttrs(ctx, level, message, attributes...)
	})
}

type number int

func (n number) String() string { return strconv.Itoa(int(n)) }

// verbLabel and resourceLabel take known words only: what clients make up must not make metrics.
func verbLabel(info *request.Info) string {
	if info.Kind == nil {
		return "other"
	}
	return info.Verb
}

func resourceLabel(info *request.Info) string {
	if info.Kind == nil {
		return ""
	}
	return info.Kind.String()
}

// recorder remembers the status of an answer. Its Unwrap keeps flushing and hijacking possible.
type recorder struct {
	http.ResponseWriter
	code   int
	caller string
}

func (w *recorder) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *recorder) WriteHeader(code int) {
	if w.code == 0 || w.code < http.StatusOK {
		w.code = code
	}
	w.ResponseWriter.WriteHeader(code)
}

// Flush implements http.Flusher.
func (w *recorder) Flush() {
	_ = http.NewResponseController(w.ResponseWriter).Flush() // a writer that cannot flush writes at once
}

func (w *recorder) status() int {
	if w.code == 0 {
		return http.StatusOK
	}
	return w.code
}

// Certificates knows callers by their verified client certificates.
type Certificates struct{}

// Authenticate implements Authenticator.
func (Certificates) Authenticate(r *http.Request) (identity.Identity, bool, error) {
	if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 || len(r.TLS.VerifiedChains[0]) == 0 {
		return identity.Identity{}, false, nil
	}
	id, err := identity.FromCertificate(r.TLS.VerifiedChains[0][0])
	if err != nil {
		return identity.Identity{}, false, apierrors.NewUnauthorized(err.Error())
	}
	return id.Authenticated(), true, nil
}

// refusals is an auditor that records requests whose callers cannot be known.
type refusals interface {
	Refused(next http.Handler) http.Handler
}

func (d *Door) authenticate(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id, known, err := d.config.Authenticator.Authenticate(r)
		if err == nil && !known {
			err = apierrors.NewUnauthorized("Unauthorized")
		}
		if err != nil {
			var answer http.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { respond.Error(w, r, err) })
			if a, ok := d.config.Auditor.(refusals); ok {
				answer = a.Refused(answer)
			}
			answer.ServeHTTP(w, r)
			return
		}
		if recorder, ok := w.(*recorder); ok {
			recorder.caller = id.Name
		}
		// Tokens are of no use behind this point, and must not reach what requests are passed on to.
		r = r.WithContext(identity.NewContext(r.Context(), id))
		r.Header.Del("Authorization")
		next.ServeHTTP(w, r)
	})
}

// Attributes are what a request asks the authorizer.
func Attributes(info *request.Info, user identity.Identity) authorizer.Attributes {
	if !info.IsResource {
		return authorizer.Attributes{User: user, Verb: info.Verb, Path: info.Path}
	}
	a := authorizer.Attributes{
		User: user, Verb: info.Verb, Group: info.Group, Version: info.Version, Resource: info.Resource, Subresource: info.Subresource,
		Namespace: info.Namespace, Name: info.Name,
	}
	switch info.Verb {
	case "list", "watch", "deletecollection":
		a.FieldSelector, a.LabelSelector = info.Query.Get("fieldSelector"), info.Query.Get("labelSelector")
	}
	return a
}

func (d *Door) authorize(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		info, _ := request.FromContext(r.Context())
		caller, ok := identity.FromContext(r.Context())
		if !ok {
			respond.Error(w, r, apierrors.NewUnauthorized("Unauthorized"))
			return
		}
		if err := d.config.Authorizer.Authorize(r.Context(), Attributes(info, caller)); err != nil {
			respond.Error(w, r, err)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// streams are the subresources whose requests last as long as their callers want.
var streams = map[string]bool{"attach": true, "exec": true, "log": true, "portforward": true, "proxy": true}

// IsStream says whether a request lasts as long as its caller wants.
func IsStream(info *request.Info) bool {
	return info.IsResource && (info.Verb == "watch" || streams[info.Subresource])
}

// timeout bounds requests that are no streams, the reading of their bodies included.
func (d *Door) timeout(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		info, _ := request.FromContext(r.Context())
		if IsStream(info) {
			next.ServeHTTP(w, r)
			return
		}
		timeout := d.config.Timeout
		if asked := info.Query.Get("timeout"); asked != "" {
			wanted, err := time.ParseDuration(asked)
			if err != nil {
				respond.Error(w, r, apierrors.NewBadRequest(fmt.Sprintf("invalid timeout specified in the request URL: %v", err)))
				return
			}
			if wanted > 0 {
				timeout = min(timeout, wanted)
			}
		}
		ctx, cancel := context.WithTimeout(r.Context(), timeout)
		defer cancel()
		if r.Body != nil && r.Body != http.NoBody {
			controller := http.NewResponseController(w)
			// Tests' writers have no deadlines; then only the handler's own waiting is bounded.
			if err := controller.SetReadDeadline(time.Now().Add(timeout)); err == nil {
				defer func() { _ = controller.SetReadDeadline(time.Time{}) }() // a connection that is gone needs none
			}
		}
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}
