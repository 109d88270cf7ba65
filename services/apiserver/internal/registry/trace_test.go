package registry

import (
	"testing"

	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
)

// Every step of a write is a span of one trace, and the store keeps the trace of the commit beside the value.
func TestStepsAreSpans(t *testing.T) {
	k := newCluster(t)
	spans := tracetest.NewSpanRecorder()
	k.tracer = trace.NewTracerProvider(trace.WithSpanProcessor(spans)).Tracer("")
	k.create("cm", `metadata: {name: a}`)
	seen := map[string]bool{}
	for _, s := range spans.Ended() {
		seen[s.Name()] = true
		if s.Name() != "registry.create" && !s.Parent().IsValid() {
			t.Errorf("%s has no parent", s.Name())
		}
	}
	for _, step := range []string{"create", "decode", "default", "validate", "commit"} {
		if !seen["registry."+step] {
			t.Errorf("no span for the step %s", step)
		}
	}
	last := spans.Ended()[len(spans.Ended())-1].SpanContext().TraceID().String()
	stored := k.store.Entry("/registry/core/configmaps/shop/a").GetTraceparent()
	if len(stored) < 35 || stored[3:35] != last {
		t.Errorf("stored traceparent %q, want the trace %s", stored, last)
	}
}
