package proxy

import (
	"context"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
)

type metrics struct {
	duration, latency metric.Float64Histogram
	failures, flows   metric.Int64Counter
	owners            metric.Int64Gauge
}

// newMetrics makes the package's instruments; a nil meter makes ones that record nothing.
func newMetrics(meter metric.Meter) (*metrics, error) {
	if meter == nil {
		meter = noop.NewMeterProvider().Meter("proxy")
	}
	var m metrics
	var errs [5]error
	m.duration, errs[0] = meter.Float64Histogram("dhow.proxy.sync.duration", metric.WithUnit("s"), metric.WithDescription("Time to write one transaction of service rules."))
	m.latency, errs[1] = meter.Float64Histogram("dhow.proxy.latency", metric.WithUnit("s"), metric.WithDescription("Time from the arrival of the oldest change of a transaction until the kernel has it."))
	m.failures, errs[2] = meter.Int64Counter("dhow.proxy.sync.failures", metric.WithDescription("Transactions that the kernel refused."))
	m.flows, errs[3] = meter.Int64Counter("dhow.proxy.flows.forgotten", metric.WithDescription("UDP flows deleted because their backend is gone."))
	m.owners, errs[4] = meter.Int64Gauge("dhow.proxy.owners", metric.WithDescription("Services and host port pods that have rules."))
	for _, err := range errs {
		if err != nil {
			return nil, err
		}
	}
	return &m, nil
}

func (m *metrics) synced(ctx context.Context, kind string, began time.Time, err error, b batch, owners int) {
	attributes := metric.WithAttributes(attribute.String("kind", kind))
	m.duration.Record(ctx, time.Since(began).Seconds(), attributes)
	if err != nil {
		m.failures.Add(ctx, 1, attributes)
		return
	}
	if len(b.dirty) > 0 {
		m.latency.Record(ctx, time.Since(b.since).Seconds())
	}
	m.owners.Record(ctx, int64(owners))
}

// spans starts a span in the trace of each change of a batch, at the time that it arrived.
func (p *Proxy) spans(ctx context.Context, changes []change) []trace.Span {
	if p.config.Tracer == nil {
		return nil
	}
	spans := make([]trace.Span, 0, len(changes))
	for _, c := range changes {
		parent := propagation.TraceContext{}.Extract(ctx, propagation.MapCarrier{"traceparent": c.traceparent})
		_, span := p.config.Tracer.Start(parent, "proxy.program", trace.WithTimestamp(c.at))
		spans = append(spans, span)
	}
	return spans
}
