package store_test

import (
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	storev1 "dhow.dev/gen/go/dhow/store/v1"
	"dhow.dev/pkg/telemetry"
	"dhow.dev/services/store"
	"dhow.dev/services/store/internal/storetest"
)

// TestSeen: a commit is one trace from the caller on, its batch is linked to it, and the instruments count.
func TestSeen(t *testing.T) {
	spans := tracetest.NewInMemoryExporter()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	shutdown, err := telemetry.Setup(t.Context(), telemetry.Config{Service: "dhow-store", SpanExporter: spans, MetricsListener: listener})
	if err != nil {
		t.Fatal(err)
	}
	client, stop := storetest.StartStop(t, store.Config{Memory: true})
	watch, err := client.Watch(t.Context(), storev1.WatchRequest_builder{Prefix: []byte("/")}.Build())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := watch.Recv(); err != nil {
		t.Fatal(err)
	}
	ctx, caller := telemetry.Tracer("test").Start(t.Context(), "caller")
	commit := storev1.CommitRequest_builder{
		Conditions: []*storev1.Condition{storev1.Condition_builder{Key: []byte("/a")}.Build()},
		Operations: []*storev1.Operation{storev1.Operation_builder{Key: []byte("/a"), Put: []byte("1")}.Build()},
	}.Build()
	if _, err := client.Commit(ctx, commit); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Commit(ctx, commit); storetest.ConflictOf(err) == nil {
		t.Fatal(err)
	}
	caller.End()
	if _, err := watch.Recv(); err != nil {
		t.Fatal(err)
	}

	response, err := http.Get("http://" + listener.Addr().String() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(response.Body)
	response.Body.Close()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{
		"dhow_store_batch_commits_count", "dhow_store_batch_operations_sum", "dhow_store_commit_duration_seconds_count",
		"dhow_store_commit_conflicts_total", "dhow_store_watchers", "dhow_store_watch_changes_total", "dhow_store_database_size_bytes",
	} {
		if !strings.Contains("\n"+string(body), "\n"+name) {
			t.Errorf("/metrics has no %s", name)
		}
	}

	stop()
	var commits, links int
	for _, span := range spans.GetSpans() {
		switch span.Name {
		case "store.commit":
			commits++
			if span.SpanContext.TraceID() != caller.SpanContext().TraceID() || !span.Parent.IsValid() {
				t.Errorf("store.commit is not in the caller's trace")
			}
		case "store.batch":
			for _, link := range span.Links {
				if link.SpanContext.TraceID() == caller.SpanContext().TraceID() {
					links++
				}
			}
		}
	}
	if commits != 2 || links != 2 {
		t.Errorf("%d spans of commits and %d links of batches, want 2 and 2", commits, links)
	}
	if err := shutdown(t.Context()); err != nil {
		t.Error(err)
	}
}
