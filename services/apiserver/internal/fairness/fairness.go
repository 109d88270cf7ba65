// Package fairness bounds how many requests are worked on at once, and shares that out: Kubernetes' API priority and fairness
// (https://kubernetes.io/docs/concepts/cluster-administration/flow-control/), configured by the same objects.
//
// A request is classified by the FlowSchemas into a priority level and a flow (schema.go), and waits for a seat of its level (seats.go). A queue belongs to one
// flow, exactly; how this differs from Kubernetes' shuffle sharding, and why, is in docs/decisions.
package fairness

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/resource"
	"dhow.dev/pkg/telemetry"
	"dhow.dev/services/apiserver/internal/authorizer/mirror"
	"dhow.dev/services/apiserver/internal/request"
	"dhow.dev/services/apiserver/internal/respond"
)

const scope = "dhow.dev/services/apiserver/internal/fairness"

// Names of response headers, in the form in which net/http keeps them.
var (
	schemaHeader = http.CanonicalHeaderKey(flowcontrolv1.ResponseHeaderMatchedFlowSchemaUID)
	levelHeader  = http.CanonicalHeaderKey(flowcontrolv1.ResponseHeaderMatchedPriorityLevelConfigurationUID)
)

// Config configures a Filter.
type Config struct {
	// Cache holds the objects. Nil: the defaults stay.
	Cache mirror.Cache
	// Seats is how many requests are worked on at once, exempt ones not counted; 0: Kubernetes' 600.
	Seats int
	// MaxWait bounds waiting in a queue; 0: 15 s, a quarter of the time that a request may take.
	MaxWait time.Duration
	// Meter counts. Nil: the process's meter.
	Meter metric.Meter
	// Logger may be nil.
	Logger *slog.Logger
}

// Filter admits requests.
type Filter struct {
	config   Config
	seats    *seats
	schemas  atomic.Pointer[schemas]
	rejected metric.Int64Counter
}

// New returns a filter with Kubernetes' default configuration; Run follows the objects.
func New(config Config) (*Filter, error) {
	if config.Seats == 0 {
		config.Seats = 600
	}
	if config.MaxWait == 0 {
		config.MaxWait = 15 * time.Second
	}
	if config.Meter == nil {
		config.Meter = telemetry.Meter(scope)
	}
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	f := &Filter{config: config, seats: &seats{maxWait: config.MaxWait}}
	f.configure(Levels(), Schemas())
	return f, f.measure()
}

func (f *Filter) measure() (err error) {
	if f.rejected, err = f.config.Meter.Int64Counter("dhow.fairness.rejected", metric.WithDescription("requests that got no seat, by priority level")); err != nil {
		return fmt.Errorf("fairness: %w", err)
	}
	executing, err := f.config.Meter.Int64ObservableGauge("dhow.fairness.executing", metric.WithDescription("requests that have a seat, by priority level"))
	if err != nil {
		return fmt.Errorf("fairness: %w", err)
	}
	waiting, err := f.config.Meter.Int64ObservableGauge("dhow.fairness.waiting", metric.WithDescription("requests that wait for a seat, by priority level"))
	if err != nil {
		return fmt.Errorf("fairness: %w", err)
	}
	_, err = f.config.Meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		f.seats.mu.Lock()
		defer f.seats.mu.Unlock()
		for _, l := range f.seats.levels {
			attributes := metric.WithAttributes(attribute.String("priority_level", l.name))
			o.ObserveInt64(executing, int64(l.executing), attributes)
			o.ObserveInt64(waiting, int64(l.waiting), attributes)
		}
		return nil
	}, executing, waiting)
	return err
}

// Run follows the objects until ctx ends.
func (f *Filter) Run(ctx context.Context) error {
	if f.config.Cache == nil || flowSchemas == nil || priorityLevels == nil {
		<-ctx.Done()
		return nil
	}
	return mirror.Follow(ctx, f.config.Cache, []*resource.Resource{priorityLevels, flowSchemas}, f.config.Logger, func([]*resource.Resource) { f.refresh() })
}

// refresh takes over what the objects say. A cluster whose objects are not made yet has the defaults; the mandatory ones are always there.
func (f *Filter) refresh() {
	var levels []*flowcontrolv1.PriorityLevelConfiguration
	for _, e := range mirror.Entries(f.config.Cache, priorityLevels) {
		o := &flowcontrolv1.PriorityLevelConfiguration{}
		if err := o.Unmarshal(e.Object); err == nil {
			levels = append(levels, o)
		}
	}
	var objects []*flowcontrolv1.FlowSchema
	for _, e := range mirror.Entries(f.config.Cache, flowSchemas) {
		o := &flowcontrolv1.FlowSchema{}
		if err := o.Unmarshal(e.Object); err == nil {
			objects = append(objects, o)
		}
	}
	if len(levels) == 0 || len(objects) == 0 {
		levels, objects = Levels(), Schemas()
	}
	f.configure(levels, objects)
}

func (f *Filter) configure(levels []*flowcontrolv1.PriorityLevelConfiguration, objects []*flowcontrolv1.FlowSchema) {
	named := map[string]bool{}
	uids := map[string]string{}
	for _, l := range levels {
		named[l.Name] = true
		uids[l.Name] = string(l.UID)
	}
	for _, l := range Levels()[:2] {
		if !named[l.Name] {
			levels = append(levels, l)
		}
	}
	clear(named)
	for _, s := range objects {
		named[s.Name] = true
	}
	for _, s := range Schemas()[:2] {
		if !named[s.Name] {
			objects = append(objects, s)
		}
	}
	compiled := compile(objects, f.seats.configure(limitsOf(f.config.Seats, levels)), uids)
	f.schemas.Store(&compiled)
}

// Seat is the right to be worked on. It must be given back by Leave, once.
type Seat struct {
	seats  *seats
	schema *flowSchema
	flow   *flow
}

// Leave gives the seat back.
func (s Seat) Leave() { s.seats.leave(s.schema.level, s.flow) }

// Enter waits for a seat for a request of the user. The error is TooManyRequests, or that of ctx.
func (f *Filter) Enter(ctx context.Context, user identity.Identity, info *request.Info) (Seat, error) {
	schema := f.classify(&user, info)
	return f.enter(ctx, schema, schema.flow(&user, info))
}

func (f *Filter) classify(user *identity.Identity, info *request.Info) *flowSchema {
	compiled := *f.schemas.Load()
	if schema := compiled.find(user, info); schema != nil {
		return schema
	}
	// Who is in no group at all is treated as the last of all. configure has seen to it that there is this schema.
	return compiled[slices.IndexFunc(compiled, func(s *flowSchema) bool { return s.name == catchAll })]
}

func (f *Filter) enter(ctx context.Context, schema *flowSchema, key flowKey) (Seat, error) {
	flow, err := f.seats.enter(ctx, schema.level, key)
	if err != nil {
		f.rejected.Add(ctx, 1, metric.WithAttributes(attribute.String("priority_level", schema.level.name)))
		return Seat{}, err
	}
	return Seat{seats: f.seats, schema: schema, flow: flow}, nil
}

// Wrap returns a handler that calls next once the request has a seat. Requests that last as long as their callers want keep it until their answer begins.
func (f *Filter) Wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		info, asks := request.FromContext(r.Context())
		user, known := identity.FromContext(r.Context())
		if !asks || !known {
			respond.Error(w, r, apierrors.NewInternalError(errors.New("fairness: the request has not been read or its caller is not known")))
			return
		}
		schema := f.classify(&user, info)
		// The values are shared; nobody changes a header's values in place.
		header := w.Header()
		header[schemaHeader], header[levelHeader] = schema.schemaUID, schema.levelUID
		seat, err := f.enter(r.Context(), schema, schema.flow(&user, info))
		if err != nil {
			respond.Error(w, r, err)
			return
		}
		if !lasts(info) {
			defer seat.Leave()
			next.ServeHTTP(w, r)
			return
		}
		begun := &starter{ResponseWriter: w, leave: sync.OnceFunc(seat.Leave)}
		defer begun.leave()
		next.ServeHTTP(begun, r)
	})
}

// lasting are the subresources whose requests last as long as their callers want.
var lasting = map[string]bool{"attach": true, "exec": true, "log": true, "portforward": true, "proxy": true}

func lasts(info *request.Info) bool {
	return info.IsResource && (info.Verb == "watch" || lasting[info.Subresource])
}

// starter gives the seat back when the answer begins.
type starter struct {
	http.ResponseWriter
	leave func()
}

// Unwrap is for http.ResponseController.
func (s *starter) Unwrap() http.ResponseWriter { return s.ResponseWriter }

func (s *starter) WriteHeader(code int) {
	s.leave()
	s.ResponseWriter.WriteHeader(code)
}

func (s *starter) Write(p []byte) (int, error) {
	s.leave()
	return s.ResponseWriter.Write(p)
}

// Flush implements http.Flusher.
func (s *starter) Flush() {
	s.leave()
	_ = http.NewResponseController(s.ResponseWriter).Flush() // a writer that cannot flush writes at once
}

// Hijack implements http.Hijacker.
func (s *starter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	s.leave()
	return http.NewResponseController(s.ResponseWriter).Hijack()
}
