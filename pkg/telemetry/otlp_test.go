package telemetry_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	logscollectorpb "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	metricscollectorpb "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	tracescollectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	logspb "go.opentelemetry.io/proto/otlp/logs/v1"
	metricspb "go.opentelemetry.io/proto/otlp/metrics/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"dhow.dev/pkg/telemetry"
	"dhow.dev/pkg/telemetry/logkey"
)

// collected is what an OTLP receiver was sent.
type collected struct {
	mu        sync.Mutex
	resources []*resourcepb.Resource
	spans     map[string]*tracepb.Span
	metrics   map[string]*metricspb.Metric
	records   map[string]*logspb.LogRecord
}

type traces struct {
	tracescollectorpb.UnimplementedTraceServiceServer
	*collected
}

func (c traces) Export(_ context.Context, request *tracescollectorpb.ExportTraceServiceRequest) (*tracescollectorpb.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, from := range request.GetResourceSpans() {
		c.resources = append(c.resources, from.GetResource())
		for _, scope := range from.GetScopeSpans() {
			for _, span := range scope.GetSpans() {
				c.spans[span.GetName()] = span
			}
		}
	}
	return &tracescollectorpb.ExportTraceServiceResponse{}, nil
}

type metrics struct {
	metricscollectorpb.UnimplementedMetricsServiceServer
	*collected
}

func (c metrics) Export(_ context.Context, request *metricscollectorpb.ExportMetricsServiceRequest) (*metricscollectorpb.ExportMetricsServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, from := range request.GetResourceMetrics() {
		c.resources = append(c.resources, from.GetResource())
		for _, scope := range from.GetScopeMetrics() {
			for _, metric := range scope.GetMetrics() {
				c.metrics[metric.GetName()] = metric
			}
		}
	}
	return &metricscollectorpb.ExportMetricsServiceResponse{}, nil
}

type logs struct {
	logscollectorpb.UnimplementedLogsServiceServer
	*collected
}

func (c logs) Export(_ context.Context, request *logscollectorpb.ExportLogsServiceRequest) (*logscollectorpb.ExportLogsServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, from := range request.GetResourceLogs() {
		c.resources = append(c.resources, from.GetResource())
		for _, scope := range from.GetScopeLogs() {
			for _, record := range scope.GetLogRecords() {
				c.records[record.GetBody().GetStringValue()] = record
			}
		}
	}
	return &logscollectorpb.ExportLogsServiceResponse{}, nil
}

// collect receives what is registered until the test ends, and returns the URL to send it to.
func collect(t *testing.T, register ...func(*grpc.Server, *collected)) (*collected, string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &collected{spans: map[string]*tracepb.Span{}, metrics: map[string]*metricspb.Metric{}, records: map[string]*logspb.LogRecord{}}
	server := grpc.NewServer()
	for _, r := range register {
		r(server, c)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return c, "http://" + listener.Addr().String()
}

func takesTraces(s *grpc.Server, c *collected) {
	tracescollectorpb.RegisterTraceServiceServer(s, traces{collected: c})
}

func takesMetrics(s *grpc.Server, c *collected) {
	metricscollectorpb.RegisterMetricsServiceServer(s, metrics{collected: c})
}

func takesLogs(s *grpc.Server, c *collected) {
	logscollectorpb.RegisterLogsServiceServer(s, logs{collected: c})
}

func attributesOf(list []*commonpb.KeyValue) map[string]string {
	found := map[string]string{}
	for _, attribute := range list {
		if _, twice := found[attribute.GetKey()]; twice {
			panic(attribute.GetKey() + " is there twice")
		}
		found[attribute.GetKey()] = attribute.GetValue().GetStringValue()
	}
	return found
}

// TestExportOverOTLP: traces, metrics and logs of one process arrive at a collector, each knows whose it is, and a record leads to its trace.
func TestExportOverOTLP(t *testing.T) {
	got, endpoint := collect(t, takesTraces, takesMetrics, takesLogs)
	var written bytes.Buffer
	logger, err := telemetry.NewLogger(&written, telemetry.LogConfig{Service: "dhow-test", Level: "info"})
	if err != nil {
		t.Fatal(err)
	}
	// Loggers are handed on before telemetry is set up, and after.
	early := logger.With(logkey.Component("early")).With(logkey.Service("part"))
	shutdown, err := telemetry.Setup(t.Context(), telemetry.Config{Service: "dhow-test", Version: "v1", Instance: "test-1", Logger: logger, OTLPEndpoint: endpoint})
	if err != nil {
		t.Fatal(err)
	}
	counter, err := telemetry.Meter("dhow.dev/pkg/test").Int64Counter("dhow.things")
	if err != nil {
		t.Fatal(err)
	}
	ctx, span := telemetry.Tracer("test").Start(t.Context(), "apply")
	counter.Add(ctx, 3)
	early.InfoContext(ctx, "applied", logkey.Pod("ns", "p"))
	early.DebugContext(ctx, "too fine")
	logger.WithGroup("of").Error("failed", logkey.Node("n1"))
	span.End()
	// Stopping flushes: what a process does last explains its end.
	if err := shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	logger.Info("after the end")

	got.mu.Lock()
	defer got.mu.Unlock()
	if len(got.spans) != 1 || got.spans["apply"] == nil {
		t.Errorf("spans %v", got.spans)
	}
	if points := got.metrics["dhow.things"].GetSum().GetDataPoints(); len(points) != 1 || points[0].GetAsInt() != 3 {
		t.Errorf("metric %v", points)
	} else if exemplars := points[0].GetExemplars(); len(exemplars) != 1 || !bytes.Equal(exemplars[0].GetTraceId(), got.spans["apply"].GetTraceId()) {
		t.Errorf("the metric leads to no trace: %v", exemplars)
	}
	for _, name := range []string{"go_goroutines", "process_resident_memory_bytes"} {
		if len(got.metrics[name].GetGauge().GetDataPoints()) != 1 {
			t.Errorf("no %s", name)
		}
	}
	record := got.records["applied"]
	if record == nil || !bytes.Equal(record.GetTraceId(), got.spans["apply"].GetTraceId()) || !bytes.Equal(record.GetSpanId(), got.spans["apply"].GetSpanId()) {
		t.Fatalf("record %v", record)
	}
	if attributes := attributesOf(record.GetAttributes()); attributes["pod"] != "ns/p" || attributes["component"] != "early" || attributes["service"] != "part" || attributes["trace_id"] != "" || record.GetSeverityText() != "INFO" {
		t.Errorf("record %v", record)
	}
	if failed := got.records["failed"]; failed == nil || len(failed.GetTraceId()) != 0 || failed.GetSeverityNumber() != logspb.SeverityNumber_SEVERITY_NUMBER_ERROR {
		t.Errorf("record %v", failed)
	}
	for _, name := range []string{"too fine", "after the end"} {
		if got.records[name] != nil {
			t.Errorf("%q was exported", name)
		}
	}
	for _, text := range []string{"msg=applied", "trace_id=" + hex.EncodeToString(record.GetTraceId()), "of.node=n1", `msg="after the end"`} {
		if !strings.Contains(written.String(), text) {
			t.Errorf("no %s in the written log: %s", text, written.String())
		}
	}
	if len(got.resources) != 3 {
		t.Errorf("%d resources, want one a signal", len(got.resources))
	}
	for _, resource := range got.resources {
		about := attributesOf(resource.GetAttributes())
		if about["service.name"] != "dhow-test" || about["service.version"] != "v1" || about["service.instance.id"] != "test-1" {
			t.Errorf("resource %v", about)
		}
	}
}

// TestOneSignalByTheEnvironment: as the standard variables have it; a command sends no more than its trace.
func TestOneSignalByTheEnvironment(t *testing.T) {
	for _, c := range []struct {
		variable string
		config   telemetry.Config
		want     string
	}{
		{"OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", telemetry.Config{}, "logs"},
		{"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", telemetry.Config{}, "metrics"},
		{"OTEL_EXPORTER_OTLP_ENDPOINT", telemetry.Config{}, "traces metrics logs"},
		{"OTEL_EXPORTER_OTLP_ENDPOINT", telemetry.Config{OnlyTraces: true}, "traces"},
	} {
		t.Run(c.want, func(t *testing.T) {
			got, endpoint := collect(t, takesTraces, takesMetrics, takesLogs)
			t.Setenv(c.variable, endpoint)
			logger, err := telemetry.NewLogger(t.Output(), telemetry.LogConfig{})
			if err != nil {
				t.Fatal(err)
			}
			c.config.Service, c.config.Logger = "dhow-test", logger
			shutdown, err := telemetry.Setup(t.Context(), c.config)
			if err != nil {
				t.Fatal(err)
			}
			ctx, span := telemetry.Tracer("test").Start(t.Context(), "x")
			logger.InfoContext(ctx, "x")
			span.End()
			if err := shutdown(t.Context()); err != nil {
				t.Fatal(err)
			}
			got.mu.Lock()
			defer got.mu.Unlock()
			var signals []string
			for _, s := range []struct {
				name string
				n    int
			}{{"traces", len(got.spans)}, {"metrics", len(got.metrics)}, {"logs", len(got.records)}} {
				if s.n > 0 {
					signals = append(signals, s.name)
				}
			}
			if sent := strings.Join(signals, " "); sent != c.want {
				t.Errorf("sent %q, want %q", sent, c.want)
			}
		})
	}
}

// TestCollectorThatTakesTracesOnly: what it does not take is said, once for one cause, and is no failure of the process.
func TestCollectorThatTakesTracesOnly(t *testing.T) {
	got, endpoint := collect(t, takesTraces)
	var written bytes.Buffer
	logger := slog.New(slog.NewTextHandler(&written, nil))
	shutdown, err := telemetry.Setup(t.Context(), telemetry.Config{Service: "dhow-test", Logger: logger, OTLPEndpoint: endpoint})
	if err != nil {
		t.Fatal(err)
	}
	_, span := telemetry.Tracer("test").Start(t.Context(), "apply")
	span.End()
	if err := shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	got.mu.Lock()
	defer got.mu.Unlock()
	if got.spans["apply"] == nil {
		t.Error("the trace did not arrive")
	}
	if n := strings.Count(written.String(), `msg="telemetry is not exported`); n != 1 || !strings.Contains(written.String(), "signal=metrics") {
		t.Errorf("said %d times: %s", n, written.String())
	}
}

// TestCollectorThatNeverAnswers: who logs, traces and measures does not wait for it, and neither does a process that ends for longer than it was given.
func TestCollectorThatNeverAnswers(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0") // which nobody accepts from
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	logger, err := telemetry.NewLogger(io.Discard, telemetry.LogConfig{Level: "debug"})
	if err != nil {
		t.Fatal(err)
	}
	shutdown, err := telemetry.Setup(t.Context(), telemetry.Config{Service: "dhow-test", Logger: logger, OTLPEndpoint: "http://" + listener.Addr().String()})
	if err != nil {
		t.Fatal(err)
	}
	counter, err := telemetry.Meter("dhow.dev/pkg/test").Int64Counter("dhow.things")
	if err != nil {
		t.Fatal(err)
	}
	// More than the queues have room for.
	for range 5000 {
		ctx, span := telemetry.Tracer("test").Start(t.Context(), "x")
		logger.DebugContext(ctx, "x")
		counter.Add(ctx, 1)
		span.End()
	}
	flushing, cancel := context.WithCancel(t.Context())
	cancel()
	if err := shutdown(flushing); err != nil && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// refusing answers as a collector that is overloaded for its first calls.
type refusing struct {
	logs
	calls atomic.Int32
}

func (c *refusing) Export(ctx context.Context, request *logscollectorpb.ExportLogsServiceRequest) (*logscollectorpb.ExportLogsServiceResponse, error) {
	if c.calls.Add(1) <= 3 {
		return nil, status.Error(codes.Unavailable, "overloaded")
	}
	return c.logs.Export(ctx, request)
}

// lines is a log that tests wait for lines of.
type lines struct {
	mu      sync.Mutex
	written []string
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.written = append(l.written, string(p))
	return len(p), nil
}

func (l *lines) with(text string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, line := range l.written {
		if strings.Contains(line, text) {
			n++
		}
	}
	return n
}

// TestCollectorThatComesBack: that it was away is said once, though it was tried several times, and once that it is back.
func TestCollectorThatComesBack(t *testing.T) {
	var server *refusing
	_, endpoint := collect(t, func(s *grpc.Server, c *collected) {
		server = &refusing{logs: logs{collected: c}}
		logscollectorpb.RegisterLogsServiceServer(s, server)
	})
	t.Setenv("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", endpoint)
	t.Setenv("OTEL_EXPORTER_OTLP_LOGS_TIMEOUT", "100") // milliseconds, in which an export is repeated
	t.Setenv("OTEL_BLRP_SCHEDULE_DELAY", "10")
	log := &lines{}
	logger, err := telemetry.NewLogger(log, telemetry.LogConfig{})
	if err != nil {
		t.Fatal(err)
	}
	shutdown, err := telemetry.Setup(t.Context(), telemetry.Config{Service: "dhow-test", Logger: logger})
	if err != nil {
		t.Fatal(err)
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for log.with("telemetry is exported again") == 0 {
		logger.Info("x") // something to export
		select {
		case <-tick.C:
		case <-t.Context().Done():
			t.Fatal(log.written)
		}
	}
	if n := log.with("telemetry is not exported"); n != 1 || server.calls.Load() < 4 {
		t.Errorf("said %d times in %d attempts", n, server.calls.Load())
	}
	if err := shutdown(t.Context()); err != nil {
		t.Error(err)
	}
}
