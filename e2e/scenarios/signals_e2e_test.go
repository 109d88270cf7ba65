//go:build e2e

package scenarios

import (
	"context"
	"errors"
	"fmt"
	"testing"

	logscollectorv1 "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	metricscollectorv1 "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	commonv1 "go.opentelemetry.io/proto/otlp/common/v1"
	logsv1 "go.opentelemetry.io/proto/otlp/logs/v1"
	resourcev1 "go.opentelemetry.io/proto/otlp/resource/v1"

	"dhow.dev/e2e/cluster"
)

// signals are what a collector gets beside spans.
type signals struct {
	// metrics are the names that each process' resource has sent, by service.name.
	metrics map[string]map[string]bool
	records []record
	// nameless are resources that do not say whose they are.
	nameless []string
}

// record is a log record with the service.name of its process.
type record struct {
	*logsv1.LogRecord
	process string
}

// from returns the service.name of a resource, and remembers one that lacks anything.
func (s *signals) from(resource *resourcev1.Resource) string {
	for _, key := range []string{"service.name", "service.instance.id", "service.version"} {
		if valueOf(resource.GetAttributes(), key) == "" {
			s.nameless = append(s.nameless, fmt.Sprintf("no %s in %v", key, resource))
		}
	}
	return valueOf(resource.GetAttributes(), "service.name")
}

func valueOf(attributes []*commonv1.KeyValue, key string) string {
	for _, attribute := range attributes {
		if attribute.GetKey() == key {
			return attribute.GetValue().GetStringValue()
		}
	}
	return ""
}

type metricsReceiver struct {
	metricscollectorv1.UnimplementedMetricsServiceServer
	*collector
}

// Export implements metricscollectorv1.MetricsServiceServer.
func (c metricsReceiver) Export(_ context.Context, request *metricscollectorv1.ExportMetricsServiceRequest) (*metricscollectorv1.ExportMetricsServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.metrics == nil {
		c.metrics = map[string]map[string]bool{}
	}
	for _, resource := range request.GetResourceMetrics() {
		process := c.from(resource.GetResource())
		if c.metrics[process] == nil {
			c.metrics[process] = map[string]bool{}
		}
		for _, scope := range resource.GetScopeMetrics() {
			for _, metric := range scope.GetMetrics() {
				c.metrics[process][metric.GetName()] = true
			}
		}
	}
	return &metricscollectorv1.ExportMetricsServiceResponse{}, nil
}

type logsReceiver struct {
	logscollectorv1.UnimplementedLogsServiceServer
	*collector
}

// Export implements logscollectorv1.LogsServiceServer.
func (c logsReceiver) Export(_ context.Context, request *logscollectorv1.ExportLogsServiceRequest) (*logscollectorv1.ExportLogsServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, resource := range request.GetResourceLogs() {
		process := c.from(resource.GetResource())
		for _, scope := range resource.GetScopeLogs() {
			for _, r := range scope.GetLogRecords() {
				c.records = append(c.records, record{r, process})
			}
		}
	}
	return &logscollectorv1.ExportLogsServiceResponse{}, nil
}

// exported: metrics and records of every service arrive at the collector, say whose they are, and records of calls lead to their traces.
func exported(t *testing.T, options cluster.Options, received *collector) {
	for _, c := range []struct {
		service string
		metrics []string
		// calls says that the service answers calls, and logs each.
		calls bool
	}{
		{"store", []string{"dhow.store.commit.duration", "dhow.store.database.size", "rpc.server.call.duration"}, true},
		{"apiserver", []string{"dhow.apiserver.cache.events", "rpc.client.call.duration"}, true},
		{"scheduler", []string{"dhow.scheduler.decisions", "dhow.scheduler.plan.duration"}, false},
		{"controller-manager", []string{"dhow.controller.turns", "dhow.controller.queue.length"}, false},
		{"node-agent", []string{"dhow.node.pods", "dhow.proxy.sync.duration"}, false},
	} {
		process, service := "dhow-"+c.service, "dhow-"+c.service
		if !options.Separate && c.service != "node-agent" {
			process, service = "dhow", c.service
		}
		cluster.Eventually(t, func(context.Context) error {
			return errors.Join(received.measures(process, append(c.metrics, "process_resident_memory_bytes", "go_goroutines")), received.logs(process, service, c.calls))
		})
	}
	received.mu.Lock()
	defer received.mu.Unlock()
	for _, lacks := range received.nameless {
		t.Error(lacks)
	}
}

// measures says which metrics of a process have not arrived.
func (c *collector) measures(process string, names []string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var missing []error
	for _, name := range names {
		if !c.metrics[process][name] {
			missing = append(missing, fmt.Errorf("no metric %s of %s", name, process))
		}
	}
	return errors.Join(missing...)
}

// logs says whether records of a service have arrived, of which one leads to a span of its process where traced is wanted.
func (c *collector) logs(process, service string, traced bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	spans := map[string]bool{}
	for _, s := range c.spans {
		if s.service == process {
			spans[string(s.GetSpanId())] = true
		}
	}
	n := 0
	for _, r := range c.records {
		if r.process != process || valueOf(r.GetAttributes(), "service") != service || r.GetBody().GetStringValue() == "" {
			continue
		}
		if n++; !traced || spans[string(r.GetSpanId())] {
			return nil
		}
	}
	return fmt.Errorf("%d records of %s in %s, and none that is wanted", n, service, process)
}
