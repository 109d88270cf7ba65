package telemetry_test

import (
	"context"
	"slices"
	"sync"
	"testing"

	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"

	"dhow.dev/pkg/telemetry"
)

// receiver keeps the names of the spans that it is sent.
type receiver struct {
	mu    sync.Mutex
	names []string
}

func (r *receiver) take(_ context.Context, spans []*tracepb.ResourceSpans) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, resource := range spans {
		for _, scope := range resource.GetScopeSpans() {
			for _, span := range scope.GetSpans() {
				r.names = append(r.names, span.GetName())
			}
		}
	}
	return nil
}

// reported runs work and returns the names of the spans that were reported of it.
func reported(t *testing.T, config telemetry.Config, work func(context.Context, trace.Tracer)) []string {
	t.Helper()
	setup(t, config)
	r := &receiver{}
	stop := telemetry.Report(r.take)
	work(t.Context(), telemetry.Tracer("test"))
	stop()
	slices.Sort(r.names)
	return r.names
}

// span makes a span and, in it, more.
func span(ctx context.Context, tracer trace.Tracer, name string, kind trace.SpanKind, inside func(context.Context)) {
	ctx, s := tracer.Start(ctx, name, trace.WithSpanKind(kind))
	defer s.End()
	if inside != nil {
		inside(ctx)
	}
}

// What follows from a change that somebody asks for is reported; reads, and what a service does by itself, are not.
func TestChangesAreReported(t *testing.T) {
	got := reported(t, telemetry.Config{}, func(ctx context.Context, tracer trace.Tracer) {
		inner := func(ctx context.Context) { span(ctx, tracer, "inner", trace.SpanKindInternal, nil) }
		span(ctx, tracer, "dhow.apps.v1.Deployments/Apply", trace.SpanKindServer, inner)
		span(ctx, tracer, "create pods", trace.SpanKindServer, inner)
		for _, name := range []string{"dhow.apps.v1.Deployments/Get", "list pods", "watch pods", "grpc.health.v1.Health/Check", "dhow.store.v1.Store/Commit", "/metrics"} {
			span(ctx, tracer, name, trace.SpanKindServer, inner)
		}
		span(ctx, tracer, "reconcile deployment", trace.SpanKindInternal, inner)
		span(ctx, tracer, "dhow.coordination.v1.Leases/Update", trace.SpanKindClient, inner)
	})
	if want := []string{"create pods", "dhow.apps.v1.Deployments/Apply", "inner", "inner"}; !slices.Equal(got, want) {
		t.Errorf("reported %q, want %q", got, want)
	}
}

// A command's spans are reported, and what other processes do because of it, whatever it is.
func TestCommandsAreReported(t *testing.T) {
	var command string
	got := reported(t, telemetry.Config{Command: true}, func(ctx context.Context, tracer trace.Tracer) {
		span(ctx, tracer, "dhow get", trace.SpanKindInternal, func(ctx context.Context) { command = telemetry.Traceparent(ctx) })
	})
	if want := []string{"dhow get"}; !slices.Equal(got, want) {
		t.Errorf("reported %q, want %q", got, want)
	}
	got = reported(t, telemetry.Config{}, func(ctx context.Context, tracer trace.Tracer) {
		span(telemetry.WithTraceparent(ctx, command), tracer, "list pods", trace.SpanKindServer, nil)
	})
	if want := []string{"list pods"}; !slices.Equal(got, want) {
		t.Errorf("reported %q, want %q", got, want)
	}
}

// Where everything is recorded, for a collector, reports are not about reports.
func TestReportsAreNotReported(t *testing.T) {
	got := reported(t, telemetry.Config{SpanExporter: tracetest.NewInMemoryExporter()}, func(ctx context.Context, tracer trace.Tracer) {
		span(ctx, tracer, "opentelemetry.proto.collector.trace.v1.TraceService/Export", trace.SpanKindServer, nil)
		span(ctx, tracer, "list pods", trace.SpanKindServer, nil)
	})
	if want := []string{"list pods"}; !slices.Equal(got, want) {
		t.Errorf("reported %q, want %q", got, want)
	}
}

// Reporting ends whatever became of the tracing before.
func TestReportingEndsAfterItsTracing(t *testing.T) {
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "")
	shutdown, err := telemetry.Setup(t.Context(), telemetry.Config{Service: "dhow-test"})
	if err != nil {
		t.Fatal(err)
	}
	r := &receiver{}
	before := telemetry.Report(r.take)
	if err := shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	after := telemetry.Report(r.take)
	before()
	after()
}

// Load does not pay for spans: after the first changes few a second are recorded.
func TestLoadIsNotReported(t *testing.T) {
	const load = 5000
	got := reported(t, telemetry.Config{}, func(ctx context.Context, tracer trace.Tracer) {
		for range load {
			span(ctx, tracer, "create pods", trace.SpanKindServer, nil)
		}
	})
	if len(got) < 20 || len(got) > load/10 {
		t.Errorf("%d of %d were reported", len(got), load)
	}
}
