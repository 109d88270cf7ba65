package telemetry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"

	"go.opentelemetry.io/otel/exporters/otlp/otlplog/otlploggrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetricgrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	sdklog "go.opentelemetry.io/otel/sdk/log"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"dhow.dev/pkg/telemetry/logkey"
)

// Signals, as OpenTelemetry calls what it has, and as they are called in its variables.
const (
	tracesSignal  = "traces"
	metricsSignal = "metrics"
	logsSignal    = "logs"
)

// collector is where OTLP goes to. Exporters connect when there is something to send, and repeat it for ten seconds: a collector that is down delays nothing.
type collector struct {
	// endpoint is a URL, empty for what the environment says.
	endpoint string
	outage   *outage
}

func newCollector(config Config) (collector, error) {
	if e := config.OTLPEndpoint; e != "" && !strings.HasPrefix(e, "http://") && !strings.HasPrefix(e, "https://") {
		return collector{}, fmt.Errorf("telemetry: OTLP endpoint %q: give a URL, http://host:4317 or https://host:4317", e)
	}
	return collector{endpoint: config.OTLPEndpoint, outage: &outage{logger: config.Logger, failing: map[string]codes.Code{}}}, nil
}

// takes says whether a signal has somewhere to go.
func (c collector) takes(signal string) bool {
	return c.endpoint != "" || os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") != "" || os.Getenv("OTEL_EXPORTER_OTLP_"+strings.ToUpper(signal)+"_ENDPOINT") != ""
}

func (c collector) spans(ctx context.Context) (sdktrace.SpanExporter, error) {
	var options []otlptracegrpc.Option
	if c.endpoint != "" {
		options = append(options, otlptracegrpc.WithEndpointURL(c.endpoint))
	}
	exporter, err := otlptracegrpc.New(ctx, options...)
	if err != nil {
		return nil, fmt.Errorf("telemetry: OTLP exporter of traces: %w", err)
	}
	return spanExporter{exporter, c.outage}, nil
}

func (c collector) measurements(ctx context.Context) (sdkmetric.Exporter, error) {
	var options []otlpmetricgrpc.Option
	if c.endpoint != "" {
		options = append(options, otlpmetricgrpc.WithEndpointURL(c.endpoint))
	}
	exporter, err := otlpmetricgrpc.New(ctx, options...)
	if err != nil {
		return nil, fmt.Errorf("telemetry: OTLP exporter of metrics: %w", err)
	}
	return metricExporter{exporter, c.outage}, nil
}

func (c collector) records(ctx context.Context) (sdklog.Exporter, error) {
	var options []otlploggrpc.Option
	if c.endpoint != "" {
		options = append(options, otlploggrpc.WithEndpointURL(c.endpoint))
	}
	exporter, err := otlploggrpc.New(ctx, options...)
	if err != nil {
		return nil, fmt.Errorf("telemetry: OTLP exporter of logs: %w", err)
	}
	return recordExporter{exporter, c.outage}, nil
}

type spanExporter struct {
	sdktrace.SpanExporter
	outage *outage
}

func (e spanExporter) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	return e.outage.told(ctx, tracesSignal, e.SpanExporter.ExportSpans(ctx, spans))
}

type metricExporter struct {
	sdkmetric.Exporter
	outage *outage
}

func (e metricExporter) Export(ctx context.Context, metrics *metricdata.ResourceMetrics) error {
	return e.outage.told(ctx, metricsSignal, e.Exporter.Export(ctx, metrics))
}

type recordExporter struct {
	sdklog.Exporter
	outage *outage
}

func (e recordExporter) Export(ctx context.Context, records []sdklog.Record) error {
	return e.outage.told(ctx, logsSignal, e.Exporter.Export(ctx, records))
}

// outage says once that a collector does not take what it is sent, and once that it does again, and not at every attempt.
type outage struct {
	logger *slog.Logger

	mu sync.Mutex
	// failing are the signals that were not taken last, with what was answered.
	failing map[string]codes.Code
}

// notExported is an error that outage has seen: it needs no second word.
type notExported struct{ error }

func (e notExported) Unwrap() error { return e.error }

// told takes the result of an attempt, and returns it. One cause is said once, for whichever signal meets it first; that a collector takes traces and no logs is another cause
// than that it is away.
func (o *outage) told(ctx context.Context, signal string, err error) error {
	o.mu.Lock()
	_, failed := o.failing[signal]
	code, said := status.Code(err), false
	for _, other := range o.failing {
		said = said || other == code
	}
	if err == nil {
		delete(o.failing, signal)
	} else {
		o.failing[signal] = code
	}
	back := failed && len(o.failing) == 0
	o.mu.Unlock()
	switch {
	case err != nil && !failed && !said:
		o.logger.WarnContext(ctx, "telemetry is not exported, which is tried on and said once", logkey.Signal(signal), logkey.Err(err))
	case back:
		o.logger.InfoContext(ctx, "telemetry is exported again")
	}
	if err != nil {
		return notExported{err}
	}
	return nil
}

// Handle implements otel.ErrorHandler: it gets what exporters and instruments have to say that nobody returns.
func (o *outage) Handle(err error) {
	if seen := (notExported{}); !errors.As(err, &seen) {
		o.logger.Warn("telemetry is not complete", logkey.Err(err))
	}
}
