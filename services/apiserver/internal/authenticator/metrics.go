package authenticator

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"dhow.dev/pkg/telemetry"
)

const scope = "dhow.dev/services/apiserver/internal/authenticator"

// method is how a caller wanted to be known.
type method int

const (
	byCertificate method = iota
	byToken
	byNothing
	methods
)

// metrics counts requests and gRPC calls with tokens by how their caller wanted to be known, and whether it was.
type metrics struct {
	attempts metric.Int64Counter
	// options are made once: a request must not pay for a set of attributes.
	options [methods][2]metric.AddOption
}

func newMetrics(meter metric.Meter) (*metrics, error) {
	if meter == nil {
		meter = telemetry.Meter(scope)
	}
	m := &metrics{}
	for method, name := range map[method]string{byCertificate: "certificate", byToken: "token", byNothing: "anonymous"} {
		for known, result := range []string{"refused", "known"} {
			m.options[method][known] = metric.WithAttributeSet(attribute.NewSet(attribute.String("method", name), attribute.String("result", result)))
		}
	}
	var err error
	m.attempts, err = meter.Int64Counter("dhow.apiserver.authentications", metric.WithDescription("Requests by how their caller wanted to be known, and whether it was."))
	return m, err
}

func (m *metrics) count(ctx context.Context, how method, known bool) {
	result := 0
	if known {
		result = 1
	}
	m.attempts.Add(ctx, 1, m.options[how][result])
}
