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
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

func setup(t *testing.T, config telemetry.Config) {
	t.Helper()
	for _, signal := range []string{"", "TRACES_", "METRICS_", "LOGS_"} {
		t.Setenv("OTEL_EXPORTER_OTLP_"+signal+"ENDPOINT", "")
	}
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
	ready := telemetry.NewReadiness()
	setup(t, telemetry.Config{MetricsListener: listener, Ready: ready.Check})
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
	says := func(readyStatus int, lacks string) {
		t.Helper()
		if status, body := get(t, base+"/readyz"); status != readyStatus || !strings.Contains(body, lacks) {
			t.Errorf("/readyz: %d %q, want %d and %q", status, body, readyStatus, lacks)
		}
		// Whatever a service waits for, its process works: to begin it anew would not help.
		for _, path := range []string{"/livez", "/healthz"} {
			if status, body := get(t, base+path); status != http.StatusOK || body != "ok\n" {
				t.Errorf("%s: %d %q", path, status, body)
			}
		}
	}
	says(http.StatusServiceUnavailable, "has not begun to serve")
	ready.Set(func(context.Context) error { return nil })
	says(http.StatusOK, "ok\n")
	ready.Lacks(errors.New("etcd is away"))
	says(http.StatusServiceUnavailable, "not ready: etcd is away")
	var nobodyAsks *telemetry.Readiness
	nobodyAsks.Lacks(errors.New("anything"))
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
