package telemetry

import (
	"context"

	"go.opentelemetry.io/otel/propagation"
)

const traceparentKey = "traceparent"

// Traceparent returns the W3C traceparent of the context's span, "" when it has none: what is stored beside a change, so that
// those who act on it later continue its trace.
func Traceparent(ctx context.Context) string {
	carrier := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, carrier)
	return carrier[traceparentKey]
}

// WithTraceparent returns a context whose spans continue the trace. What is not a traceparent leaves the context as it is.
func WithTraceparent(ctx context.Context, traceparent string) context.Context {
	if traceparent == "" {
		return ctx
	}
	return propagation.TraceContext{}.Extract(ctx, propagation.MapCarrier{traceparentKey: traceparent})
}
