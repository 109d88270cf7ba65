package telemetry

import (
	"context"
	"testing"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
)

// under returns a context whose span context has been received from elsewhere.
func under(t *testing.T, sampled bool) context.Context {
	t.Helper()
	parent := trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}, Remote: true}
	if sampled {
		parent.TraceFlags = trace.FlagsSampled
	}
	return trace.ContextWithSpanContext(t.Context(), trace.NewSpanContext(parent))
}

func TestStep(t *testing.T) {
	exporter := tracetest.NewInMemoryExporter()
	tracer := sdktrace.NewTracerProvider(sdktrace.WithSyncer(exporter), sdktrace.WithSampler(sdktrace.AlwaysSample())).Tracer("test")

	_, span := Step(under(t, true), tracer, "registry.", "admit")
	span.End()
	if spans := exporter.GetSpans(); len(spans) != 1 || spans[0].Name != "registry.admit" || spans[0].Parent.SpanID() != (trace.SpanID{2}) {
		t.Errorf("beneath a sampled span: %v", spans)
	}
	exporter.Reset()
	_, span = Step(t.Context(), tracer, "registry.", "admit")
	span.End()
	if spans := exporter.GetSpans(); len(spans) != 1 {
		t.Errorf("a root: %v", spans)
	}
	exporter.Reset()

	ctx := under(t, false)
	inner, span := Step(ctx, tracer, "registry.", "admit")
	span.End()
	if spans := exporter.GetSpans(); len(spans) != 0 || inner != ctx {
		t.Errorf("beneath a span that is not sampled: %v, another context: %v", spans, inner != ctx)
	}
	if n := testing.AllocsPerRun(100, func() { Step(ctx, tracer, "registry.", "admit") }); n != 0 {
		t.Errorf("%v allocations beneath a span that is not sampled", n)
	}
}
