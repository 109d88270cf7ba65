package telemetry

import (
	"context"

	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
)

// Step starts a span of what is a part of something larger, named by its package's prefix and its own name. Where the larger is not sampled its parts are not either, and cost
// nothing: the context stays as it is. (A tracer would give each an identity and a context of its own.)
func Step(ctx context.Context, tracer trace.Tracer, prefix, name string) (context.Context, trace.Span) {
	if parent := trace.SpanContextFromContext(ctx); parent.IsValid() && !parent.IsSampled() {
		return ctx, noop.Span{}
	}
	return tracer.Start(ctx, prefix+name)
}
