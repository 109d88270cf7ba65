// Package telemetry sets up what lets a service be seen: traces and metrics through OpenTelemetry, logs through slog.
//
// A process calls Setup once, first thing. It sets OpenTelemetry's process-wide providers, which the gRPC instrumentation of
// pkg/transport, Tracer and Meter use. Without an OTLP endpoint spans are made and propagated, so that logs have trace ids and a
// trace that others record is not broken, and those that follow from commands and from some other changes are recorded for API servers to
// remember (Report); without a metrics address nothing is measured.
package telemetry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"dhow.dev/pkg/telemetry/logkey"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	otelprometheus "go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/metric"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/propagation"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// Config configures Setup.
type Config struct {
	// Service is the name of the binary, for example dhow-scheduler. Required.
	Service string
	// Version is the build's version and Instance tells processes of one service apart. Both may be empty.
	Version, Instance string
	// Logger gets errors of exporters. Nil discards them.
	Logger *slog.Logger

	// OTLPEndpoint is the URL of an OTLP gRPC receiver, http://host:4317 or https://host:4317. Empty: the standard variables
	// OTEL_EXPORTER_OTLP_TRACES_ENDPOINT and OTEL_EXPORTER_OTLP_ENDPOINT, and without them no export.
	OTLPEndpoint string
	// SampleRatio is the part of the traces that is recorded, 0 meaning all. All services of a cluster need the same: each decides
	// by the trace's id alone, so that a trace is recorded everywhere or nowhere even when a process in between exports nothing.
	SampleRatio float64
	// Command says that the process is a command line: all that begins in it is recorded.
	Command bool
	// SpanExporter gets spans as they end, in addition to OTLP. For tests.
	SpanExporter sdktrace.SpanExporter

	// MetricsAddr is where /metrics (Prometheus) and /healthz are served over HTTP, without authentication: use a loopback or
	// private address. Empty: nowhere.
	MetricsAddr string
	// Measure measures without an address too, for Handler.
	Measure bool
	// MetricsListener is used instead of MetricsAddr when set.
	MetricsListener net.Listener
	// Health is what /healthz asks. Nil: always healthy.
	Health func(context.Context) error
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
	attributes := []attribute.KeyValue{attribute.String("service.name", config.Service)}
	if config.Version != "" {
		attributes = append(attributes, attribute.String("service.version", config.Version))
	}
	if config.Instance != "" {
		attributes = append(attributes, attribute.String("service.instance.id", config.Instance))
	}
	about := resource.NewSchemaless(attributes...)

	traces, err := newTracerProvider(ctx, config, about)
	if err != nil {
		return nil, err
	}
	stopMetrics, measures, err := newMetrics(ctx, config, about)
	if err != nil {
		return nil, errors.Join(err, traces.Shutdown(ctx))
	}
	logger := config.Logger
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) {
		logger.Warn("telemetry not exported", logkey.Err(err))
	}))
	otel.SetTextMapPropagator(propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{}))
	otel.SetTracerProvider(traces)
	otel.SetMeterProvider(measures)
	return func(ctx context.Context) error {
		// A collector that is gone is no failure of the service that stops.
		if err := traces.Shutdown(ctx); err != nil {
			logger.WarnContext(ctx, "the last spans were not exported", logkey.Err(err))
		}
		return stopMetrics(ctx)
	}, nil
}

// Tracer returns the tracer of a package, named by its import path.
func Tracer(name string) trace.Tracer { return otel.Tracer(name) }

// Meter returns the meter of a package, named by its import path.
func Meter(name string) metric.Meter { return otel.Meter(name) }

func newTracerProvider(ctx context.Context, config Config, about *resource.Resource) (*sdktrace.TracerProvider, error) {
	options := []sdktrace.TracerProviderOption{sdktrace.WithResource(about)}
	recorded := false
	if config.SpanExporter != nil {
		options, recorded = append(options, sdktrace.WithSyncer(config.SpanExporter)), true
	}
	fromEnvironment := os.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") + os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT")
	if config.OTLPEndpoint != "" || fromEnvironment != "" {
		var own []otlptracegrpc.Option
		if endpoint := config.OTLPEndpoint; endpoint != "" {
			if !strings.HasPrefix(endpoint, "http://") && !strings.HasPrefix(endpoint, "https://") {
				return nil, fmt.Errorf("telemetry: OTLP endpoint %q: give a URL, http://host:4317 or https://host:4317", endpoint)
			}
			own = append(own, otlptracegrpc.WithEndpointURL(endpoint))
		}
		// It connects when there is something to send: a collector that is down delays nothing.
		exporter, err := otlptracegrpc.New(ctx, own...)
		if err != nil {
			return nil, fmt.Errorf("telemetry: OTLP exporter: %w", err)
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

// secondsView gives histograms in seconds boundaries from 100 µs to 100 s; the library's own are for milliseconds.
func secondsView(i sdkmetric.Instrument) (sdkmetric.Stream, bool) {
	if i.Kind != sdkmetric.InstrumentKindHistogram || i.Unit != "s" || strings.HasPrefix(i.Name, "rpc.") {
		return sdkmetric.Stream{}, false
	}
	return sdkmetric.Stream{Name: i.Name, Description: i.Description, Unit: i.Unit, Aggregation: sdkmetric.AggregationExplicitBucketHistogram{
		Boundaries: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 25, 50, 100},
	}}, true
}

func newMetrics(ctx context.Context, config Config, about *resource.Resource) (stop func(context.Context) error, provider metric.MeterProvider, err error) {
	listener := config.MetricsListener
	if listener == nil && config.MetricsAddr == "" {
		if !config.Measure {
			return func(context.Context) error { return nil }, metricnoop.NewMeterProvider(), nil
		}
		registry, measures, err := newMeasures(about)
		if err != nil {
			return nil, nil, err
		}
		measured.Store(registry)
		return func(ctx context.Context) error {
			measured.CompareAndSwap(registry, nil)
			return measures.Shutdown(ctx)
		}, measures, nil
	}
	if listener == nil {
		listener, err = (&net.ListenConfig{}).Listen(ctx, "tcp", config.MetricsAddr)
		if err != nil {
			return nil, nil, fmt.Errorf("telemetry: metrics address %s: %w: choose another address", config.MetricsAddr, err)
		}
	}
	registry, measures, err := newMeasures(about)
	if err != nil {
		return nil, nil, errors.Join(err, listener.Close())
	}

	routes := http.NewServeMux()
	routes.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	routes.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		if config.Health != nil {
			if err := config.Health(r.Context()); err != nil {
				http.Error(w, err.Error(), http.StatusServiceUnavailable)
				return
			}
		}
		fmt.Fprintln(w, "ok")
	})
	server := &http.Server{
		Handler: routes, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute,
		ErrorLog: slog.NewLogLogger(config.Logger.Handler(), slog.LevelDebug),
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		if err := server.Serve(listener); err != nil && !errors.Is(err, http.ErrServerClosed) {
			config.Logger.Error("metrics are not served any more", logkey.Err(err), logkey.Address(listener.Addr().String()))
		}
	}()
	measured.Store(registry)
	config.Logger.InfoContext(ctx, "serving metrics", logkey.Address(listener.Addr().String()))
	return func(ctx context.Context) error {
		measured.CompareAndSwap(registry, nil)
		err := errors.Join(server.Shutdown(ctx), measures.Shutdown(ctx))
		<-served
		return err
	}, measures, nil
}

// newMeasures returns a provider whose measurements the registry has.
func newMeasures(about *resource.Resource) (*prometheus.Registry, *sdkmetric.MeterProvider, error) {
	registry := newRegistry()
	exporter, err := otelprometheus.New(otelprometheus.WithRegisterer(registry))
	if err != nil {
		return nil, nil, fmt.Errorf("telemetry: Prometheus exporter: %w", err)
	}
	return registry, sdkmetric.NewMeterProvider(sdkmetric.WithReader(exporter), sdkmetric.WithResource(about), sdkmetric.WithView(secondsView)), nil
}
