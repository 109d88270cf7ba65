package telemetry_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"

	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/telemetry"
	"dhow.dev/pkg/telemetry/logkey"
	"dhow.dev/pkg/transport"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

func setup(t *testing.T, config telemetry.Config) {
	t.Helper()
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "")
	t.Setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "")
	config.Service = "dhow-test"
	shutdown, err := telemetry.Setup(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := shutdown(context.Background()); err != nil {
			t.Error(err)
		}
	})
}

func call(t *testing.T, ctx context.Context) {
	t.Helper()
	serving, stop := context.WithCancel(context.Background())
	memory := transport.NewMemory()
	server := transport.NewServer(transport.ServerConfig{Credentials: memory.ServerCredentials()})
	done := make(chan error, 1)
	go func() { done <- transport.Serve(serving, server, memory.Listen("x")) }()
	conn, err := memory.Dial("x", identity.Node("a"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{}); err != nil {
		t.Error(err)
	}
	conn.Close()
	stop() // after this all spans of the server have ended
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestOneTraceAcrossACall(t *testing.T) {
	spans := tracetest.NewInMemoryExporter()
	setup(t, telemetry.Config{SpanExporter: spans})
	ctx, span := telemetry.Tracer("test").Start(t.Context(), "apply")
	call(t, ctx)
	span.End()
	recorded := spans.GetSpans()
	parents := map[trace.SpanID]bool{}
	for _, s := range recorded {
		parents[s.SpanContext.SpanID()] = true
		if s.SpanContext.TraceID() != span.SpanContext().TraceID() {
			t.Errorf("%s is of another trace", s.Name)
		}
	}
	if len(recorded) != 3 {
		t.Fatalf("%d spans, want apply, the client's and the server's", len(recorded))
	}
	for _, s := range recorded {
		if s.Name != "apply" && !parents[s.Parent.SpanID()] {
			t.Errorf("%s hangs in the air", s.Name)
		}
	}
}

// collector is an OTLP receiver that keeps the names of spans.
type collector struct {
	collectorpb.UnimplementedTraceServiceServer
	names chan string
}

func (c *collector) Export(_ context.Context, request *collectorpb.ExportTraceServiceRequest) (*collectorpb.ExportTraceServiceResponse, error) {
	for _, resource := range request.GetResourceSpans() {
		for _, scope := range resource.GetScopeSpans() {
			for _, span := range scope.GetSpans() {
				c.names <- span.GetName()
			}
		}
	}
	return &collectorpb.ExportTraceServiceResponse{}, nil
}

func TestExportOverOTLP(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	received := &collector{names: make(chan string, 1)}
	server := grpc.NewServer()
	collectorpb.RegisterTraceServiceServer(server, received)
	go server.Serve(listener)
	defer server.Stop()
	shutdown, err := telemetry.Setup(t.Context(), telemetry.Config{Service: "dhow-test", OTLPEndpoint: "http://" + listener.Addr().String()})
	if err != nil {
		t.Fatal(err)
	}
	_, span := telemetry.Tracer("test").Start(t.Context(), "apply")
	span.End()
	// Stopping flushes: the last spans of a process are those that explain its end.
	if err := shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if name := <-received.names; name != "apply" {
		t.Fatalf("received %q", name)
	}
}

func TestWithoutExporterIdsAreValid(t *testing.T) {
	setup(t, telemetry.Config{})
	ctx, span := telemetry.Tracer("test").Start(t.Context(), "apply")
	defer span.End()
	if !span.SpanContext().IsValid() || span.IsRecording() {
		t.Fatalf("valid %v, recording %v", span.SpanContext().IsValid(), span.IsRecording())
	}
	parent := telemetry.Traceparent(ctx)
	later := telemetry.WithTraceparent(context.Background(), parent)
	if got := trace.SpanContextFromContext(later); got.TraceID() != span.SpanContext().TraceID() || got.SpanID() != span.SpanContext().SpanID() {
		t.Fatalf("traceparent %q became %v", parent, got)
	}
	if telemetry.Traceparent(context.Background()) != "" {
		t.Error("a context without a span has a traceparent")
	}
	for _, bad := range []string{"", "x", "00-0-0-0"} {
		if trace.SpanContextFromContext(telemetry.WithTraceparent(context.Background(), bad)).IsValid() {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(body)
}

func TestMetricsAndHealth(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var sick error
	setup(t, telemetry.Config{MetricsListener: listener, Health: func(context.Context) error { return sick }})
	counter, err := telemetry.Meter("dhow.dev/pkg/test").Int64Counter("dhow.things")
	if err != nil {
		t.Fatal(err)
	}
	counter.Add(t.Context(), 3)
	call(t, t.Context())
	base := "http://" + listener.Addr().String()
	status, body := get(t, base+"/metrics")
	for _, want := range []string{"dhow_things_total", "rpc_server", "go_goroutines", `service_name="dhow-test"`} {
		if !strings.Contains(body, want) {
			t.Errorf("no %s in the metrics (%d)", want, status)
		}
	}
	if status, body := get(t, base+"/healthz"); status != http.StatusOK || body != "ok\n" {
		t.Errorf("healthy: %d %q", status, body)
	}
	sick = errors.New("etcd is away")
	if status, body := get(t, base+"/healthz"); status != http.StatusServiceUnavailable || !strings.Contains(body, "etcd is away") {
		t.Errorf("sick: %d %q", status, body)
	}
}

func TestSetupRefuses(t *testing.T) {
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	for want, config := range map[string]telemetry.Config{
		"service name":           {},
		"sample ratio":           {Service: "a", SampleRatio: 2},
		"give a URL":             {Service: "a", OTLPEndpoint: "host:4317"},
		"choose another address": {Service: "a", MetricsAddr: busy.Addr().String()},
	} {
		if _, err := telemetry.Setup(t.Context(), config); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", config, err, want)
		}
	}
}

func TestLoggerAddsTraceIDs(t *testing.T) {
	setup(t, telemetry.Config{})
	var out bytes.Buffer
	logger, err := telemetry.NewLogger(&out, telemetry.LogConfig{Service: "dhow-test", Format: "json", Level: "debug"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, span := telemetry.Tracer("test").Start(t.Context(), "x")
	defer span.End()
	logger.With(logkey.Node("n1")).DebugContext(ctx, "pod started", logkey.Pod("ns", "p"))
	var record map[string]any
	if err := json.Unmarshal(out.Bytes(), &record); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{"msg": "pod started", "pod": "ns/p", "node": "n1", "service": "dhow-test", "trace_id": span.SpanContext().TraceID().String(), "span_id": span.SpanContext().SpanID().String()} {
		if record[key] != want {
			t.Errorf("%s = %v, want %s", key, record[key], want)
		}
	}
	out.Reset()
	logger.Info("no span")
	if strings.Contains(out.String(), "trace_id") {
		t.Errorf("ids without a span: %s", out.String())
	}
}

func TestNewLoggerRefuses(t *testing.T) {
	for _, config := range []telemetry.LogConfig{{Format: "xml"}, {Level: "loud"}} {
		if _, err := telemetry.NewLogger(io.Discard, config); err == nil {
			t.Errorf("%+v accepted", config)
		}
	}
	logger, err := telemetry.NewLogger(io.Discard, telemetry.LogConfig{})
	if err != nil || logger.Enabled(t.Context(), slog.LevelDebug) || !logger.Enabled(t.Context(), slog.LevelInfo) {
		t.Errorf("defaults: %v", err)
	}
}
