package dns

import (
	"context"
	"errors"
	"time"

	"github.com/miekg/dns"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"
)

type metrics struct {
	queries  metric.Int64Counter
	duration metric.Float64Histogram
}

// newMetrics makes the package's instruments; a nil meter makes ones that record nothing.
func newMetrics(meter metric.Meter) (*metrics, error) {
	if meter == nil {
		meter = noop.NewMeterProvider().Meter("dns")
	}
	queries, err := meter.Int64Counter("dhow.dns.queries", metric.WithDescription("Answered queries, by the answer's code and origin."))
	duration, err2 := meter.Float64Histogram("dhow.dns.duration", metric.WithUnit("s"), metric.WithDescription("Time to answer a query."))
	return &metrics{queries: queries, duration: duration}, errors.Join(err, err2)
}

func (m *metrics) answered(ctx context.Context, network, from string, rcode int, took time.Duration) {
	attributes := metric.WithAttributes(attribute.String("network", network), attribute.String("from", from), attribute.String("rcode", dns.RcodeToString[rcode]))
	m.queries.Add(ctx, 1, attributes)
	m.duration.Record(ctx, took.Seconds(), metric.WithAttributes(attribute.String("from", from)))
}
