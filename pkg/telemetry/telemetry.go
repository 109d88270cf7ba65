// Package telemetry sets up what lets a service be seen: traces and metrics through OpenTelemetry, logs through slog, and whether it is ready.
//
// A process calls Setup once, first thing. It sets OpenTelemetry's process-wide providers, which the gRPC instrumentation of
// pkg/transport, Tracer and Meter use, and with an OTLP endpoint exports traces, metrics and logs. Without one, spans are made and propagated, so that logs have trace ids
// and a trace that others record is not broken, and those that follow from commands and from some other changes are recorded for API servers to
// remember (Report); without a metrics address either, nothing is measured.
package telemetry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/propagation"
	sdklog "go.opentelemetry.io/otel/sdk/log"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"dhow.dev/pkg/telemetry/logkey"
)

// Config configures Setup.
type Config struct {
	// Service is the name of the binary, for example dhow-scheduler. Required.
	Service string
	// Version is the build's version. It may be empty.
	Version string
	// Instance tells processes of one service apart. Empty: host name and process id.
	Instance string
	// Logger gets errors of exporters. One that NewLogger made is also what is exported as logs. Nil discards them.
	Logger *slog.Logger

	// OTLPEndpoint is the URL of an OTLP gRPC receiver, http://host:4317 or https://host:4317, for traces, metrics and logs. Empty: the standard variables
	// OTEL_EXPORTER_OTLP_ENDPOINT and, for one of them, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT and its like, and without them no export. What else the exporters can be told
	// they are by the standard variables: OTEL_METRIC_EXPORT_INTERVAL, OTEL_EXPORTER_OTLP_HEADERS, OTEL_EXPORTER_OTLP_CERTIFICATE, ….
	OTLPEndpoint string
	// OnlyTraces keeps metrics and logs from being exported: those of a command are over before they are worth it.
	OnlyTraces bool
	// SampleRatio is the part of the traces that is recorded, 0 meaning all. All services of a cluster need the same: each decides
	// by the trace's id alone, so that a trace is recorded everywhere or nowhere even when a process in between exports nothing.
	SampleRatio float64
	// Command says that the process is a command line: all that begins in it is recorded.
	Command bool
	// SpanExporter gets spans as they end, in addition to OTLP. For tests.
	SpanExporter sdktrace.SpanExporter

	// MetricsAddr is where /metrics (Prometheus), /livez and /readyz are served over HTTP, without authentication: use a loopback or
	// private address. Empty: nowhere.
	MetricsAddr string
	// Measure measures without an address too, for Handler.
	Measure bool
	// MetricsListener is used instead of MetricsAddr when set.
	MetricsListener net.Listener
	// Ready is what /readyz asks, at any time and several times at once. Nil: always ready.
	Ready func(context.Context) error
}

// Setup installs the providers and starts the metrics endpoint. The returned function flushes and stops all of it, within the
// time that its context gives.
func Setup(ctx context.Context, config Config) (shutdown func(context.Context) error, err error) {
	if config.Service == "" {
		return nil, errors.New("telemetry: no service name: set Config.Service")
	}
	if config.SampleRatio < 0 || config.SampleRatio > 1 {
		return nil, fmt.Errorf("telemetry: sample ratio %v: give a number from 0 to 1", config.SampleRatio)
	}
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	if config.Instance == "" {
		host, err := os.Hostname()
		if err != nil {
			return nil, fmt.Errorf("telemetry: name of this host: %w", err)
		}
		config.Instance = fmt.Sprintf("%s_%d", host, os.Getpid())
	}
	attributes := []attribute.KeyValue{attribute.String("service.name", config.Service), attribute.String("service.instance.id", config.Instance)}
	if config.Version != "" {
		attributes = append(attributes, attribute.String("service.version", config.Version))
	}
	about := resource.NewSchemaless(attributes...)

	to, err := newCollector(config)
	if err != nil {
		return nil, err
	}
	traces, err := newTracerProvider(ctx, config, to, about)
	if err != nil {
		return nil, err
	}
	measures, err := newMetrics(ctx, config, to, about)
	if err != nil {
		return nil, errors.Join(err, traces.Shutdown(ctx))
	}
	stopLogs, err := exportLogs(ctx, config, to, about)
	if err != nil {
		return nil, errors.Join(err, traces.Shutdown(ctx), measures.stop(ctx), measures.flush(ctx))
	}
	logger := config.Logger
	otel.SetErrorHandler(to.outage)
	otel.SetTextMapPropagator(propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{}))
	otel.SetTracerProvider(traces)
	otel.SetMeterProvider(measures.provider)
	return func(ctx context.Context) error {
		// All at once: one that waits for its collector must not take the others' time. A collector that is gone is no failure of the service that stops.
		var flushing sync.WaitGroup
		for signal, flush := range map[string]func(context.Context) error{tracesSignal: traces.Shutdown, metricsSignal: measures.flush, logsSignal: stopLogs} {
			flushing.Go(func() {
				if err := flush(ctx); err != nil {
					logger.WarnContext(ctx, "the last of the telemetry was not exported", logkey.Signal(signal), logkey.Err(err))
				}
			})
		}
		err := measures.stop(ctx)
		flushing.Wait()
		return err
	}, nil
}

// Tracer returns the tracer of a package, named by its import path.
func Tracer(name string) trace.Tracer { return otel.Tracer(name) }

// Meter returns the meter of a package, named by its import path.
func Meter(name string) metric.Meter { return otel.Meter(name) }

func newTracerProvider(ctx context.Context, config Config, to collector, about *resource.Resource) (*sdktrace.TracerProvider, error) {
	options := []sdktrace.TracerProviderOption{sdktrace.WithResource(about)}
	recorded := false
	if config.SpanExporter != nil {
		options, recorded = append(options, sdktrace.WithSyncer(config.SpanExporter)), true
	}
	if to.takes(tracesSignal) {
		exporter, err := to.spans(ctx)
		if err != nil {
			return nil, err
		}
		options, recorded = append(options, sdktrace.WithBatcher(exporter)), true
	}
	switch {
	case !recorded:
		// Other spans get ids and no more.
		options = append(options, sdktrace.WithSampler(newRemembering(config.Command)))
	case config.SampleRatio == 0:
		options = append(options, sdktrace.WithSampler(sdktrace.AlwaysSample()))
	default:
		options = append(options, sdktrace.WithSampler(sdktrace.TraceIDRatioBased(config.SampleRatio)))
	}
	return sdktrace.NewTracerProvider(options...), nil
}

// exportLogs has the records of the process' logger exported until the returned function is called, which sends the last ones.
func exportLogs(ctx context.Context, config Config, to collector, about *resource.Resource) (stop func(context.Context) error, err error) {
	if config.OnlyTraces || !to.takes(logsSignal) {
		return func(context.Context) error { return nil }, nil
	}
	exporter, err := to.records(ctx)
	if err != nil {
		return nil, err
	}
	// Records wait in a bounded queue: who logs never waits, and what a collector does not take in time is lost to it, but not to the written log.
	provider := sdklog.NewLoggerProvider(sdklog.WithResource(about), sdklog.WithProcessor(sdklog.NewBatchProcessor(exporter)))
	detach := exportTo(config.Logger, provider)
	return func(ctx context.Context) error {
		detach()
		return provider.Shutdown(ctx)
	}, nil
}
