package telemetry

import (
	"net/http"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// measured is the registry that Setup has installed; like OpenTelemetry's providers it is one for the process.
var measured atomic.Pointer[prometheus.Registry]

// newRegistry returns a registry of its own: the library's default one collects whatever any dependency registers.
func newRegistry() *prometheus.Registry {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return registry
}

// Handler serves the metrics of the process, for servers that have a /metrics of their own: what Setup measures or, where it was told no address and
// measures nothing, what is known of the Go runtime and the process.
func Handler() http.Handler {
	plain := promhttp.HandlerFor(newRegistry(), promhttp.HandlerOpts{})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if registry := measured.Load(); registry != nil {
			promhttp.HandlerFor(registry, promhttp.HandlerOpts{}).ServeHTTP(w, r)
			return
		}
		plain.ServeHTTP(w, r)
	})
}
