package command

import (
	"context"
	"net"
	"sync"
	"testing"

	collectorv1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
)

// spans is an OTLP receiver.
type spans struct {
	collectorv1.UnimplementedTraceServiceServer
	mu       sync.Mutex
	received []*tracev1.Span
}

// Export implements collectorv1.TraceServiceServer.
func (s *spans) Export(_ context.Context, request *collectorv1.ExportTraceServiceRequest) (*collectorv1.ExportTraceServiceResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, from := range request.GetResourceSpans() {
		for _, scope := range from.GetScopeSpans() {
			s.received = append(s.received, scope.GetSpans()...)
		}
	}
	return &collectorv1.ExportTraceServiceResponse{}, nil
}

func TestCommandsAreTraced(t *testing.T) {
	c := newCluster(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	collector := &spans{}
	server := grpc.NewServer()
	collectorv1.RegisterTraceServiceServer(server, collector)
	go server.Serve(listener)
	defer server.Stop()
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://"+listener.Addr().String())
	c.applied(settings)

	// The command has flushed before it ended.
	collector.mu.Lock()
	defer collector.mu.Unlock()
	var root *tracev1.Span
	for _, s := range collector.received {
		if s.GetName() == "dhow apply" && len(s.GetParentSpanId()) == 0 {
			root = s
		}
	}
	if root == nil {
		t.Fatalf("no root span of the command in %v", collector.received)
	}
	for _, s := range collector.received {
		if s.GetName() == "dhow.core.v1.ConfigMaps/Patch" && string(s.GetTraceId()) == string(root.GetTraceId()) {
			return
		}
	}
	t.Errorf("the command's call is not in its trace: %v", collector.received)
}

func TestCollectorThatIsGoneFailsNoCommand(t *testing.T) {
	c := newCluster(t)
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://"+gone.Addr().String())
	if err := gone.Close(); err != nil {
		t.Fatal(err)
	}
	equal(t, c.applied(settings), "configmap/settings created\n")
}
