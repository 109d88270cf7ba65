package telemetry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	prometheusbridge "go.opentelemetry.io/contrib/bridges/prometheus"
	otelprometheus "go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/metric"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/resource"

	"dhow.dev/pkg/telemetry/logkey"
)

// metrics is what measures, and where measurements can be read.
type metrics struct {
	provider metric.MeterProvider
	// flush exports what was measured last and ends the measuring; stop ends the endpoint.
	flush, stop func(context.Context) error
}

func nothing(context.Context) error { return nil }

func newMetrics(ctx context.Context, config Config, to collector, about *resource.Resource) (metrics, error) {
	m := metrics{provider: metricnoop.NewMeterProvider(), flush: nothing, stop: nothing}
	pulled := config.MetricsListener != nil || config.MetricsAddr != "" || config.Measure
	pushed := !config.OnlyTraces && to.takes(metricsSignal)
	if !pulled && !pushed {
		return m, nil
	}
	options := []sdkmetric.Option{sdkmetric.WithResource(about), sdkmetric.WithView(secondsView)}
	registry := newRegistry()
	if pulled {
		exporter, err := otelprometheus.New(otelprometheus.WithRegisterer(registry))
		if err != nil {
			return m, fmt.Errorf("telemetry: Prometheus exporter: %w", err)
		}
		options = append(options, sdkmetric.WithReader(exporter))
	}
	if pushed {
		exporter, err := to.measurements(ctx)
		if err != nil {
			return m, err
		}
		// What is known of the process has the names that Prometheus is told.
		process := sdkmetric.WithProducer(prometheusbridge.NewMetricProducer(prometheusbridge.WithGatherer(newRegistry())))
		options = append(options, sdkmetric.WithReader(sdkmetric.NewPeriodicReader(exporter, process)))
	}
	provider := sdkmetric.NewMeterProvider(options...)
	m.provider, m.flush = provider, provider.Shutdown
	if !pulled {
		return m, nil
	}
	stop, err := serveMetrics(ctx, config, registry)
	if err != nil {
		return m, errors.Join(err, provider.Shutdown(ctx))
	}
	m.stop = stop
	return m, nil
}

// serveMetrics serves what a registry has where the configuration says, and for Handler.
func serveMetrics(ctx context.Context, config Config, registry *prometheus.Registry) (stop func(context.Context) error, err error) {
	listener := config.MetricsListener
	if listener == nil && config.MetricsAddr != "" {
		listener, err = (&net.ListenConfig{}).Listen(ctx, "tcp", config.MetricsAddr)
		if err != nil {
			return nil, fmt.Errorf("telemetry: metrics address %s: %w: choose another address", config.MetricsAddr, err)
		}
	}
	measured.Store(registry)
	forget := func() { measured.CompareAndSwap(registry, nil) }
	if listener == nil {
		return func(context.Context) error {
			forget()
			return nil
		}, nil
	}

	routes := http.NewServeMux()
	routes.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	health(routes, config.Ready)
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
	config.Logger.InfoContext(ctx, "serving metrics", logkey.Address(listener.Addr().String()))
	return func(ctx context.Context) error {
		forget()
		err := server.Shutdown(ctx)
		<-served
		return err
	}, nil
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
