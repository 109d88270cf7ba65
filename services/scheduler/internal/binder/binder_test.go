package binder

import (
	"context"
	"log/slog"
	"sync"
	"testing"

	"go.opentelemetry.io/otel/trace/noop"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/object"
)

// api answers Bind: pods named "taken" are a conflict.
type api struct {
	grpc.ClientConnInterface
	mu    sync.Mutex
	calls [][]string
}

func (a *api) Invoke(_ context.Context, _ string, args, reply any, _ ...grpc.CallOption) error {
	request, response := args.(*corev1.PodBindRequest), reply.(*corev1.PodBindResponse)
	var names []string
	answer := func(name string) *metav1.Status {
		names = append(names, name)
		text := "Success"
		if name == "taken" {
			text = "Failure"
		}
		return metav1.Status_builder{Status: proto.String(text), Message: proto.String(name)}.Build()
	}
	var bound, marked []*metav1.Status
	for _, b := range request.GetBindings() {
		bound = append(bound, answer(b.GetName()))
	}
	for _, u := range request.GetUnschedulable() {
		marked = append(marked, answer(u.GetName()))
	}
	response.SetBindings(bound)
	response.SetUnschedulable(marked)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.calls = append(a.calls, names)
	return nil
}

func send(ctx context.Context, a *api, bindings []Binding) map[string]Result {
	var mu sync.Mutex
	results := map[string]Result{}
	b := New(Config{Conn: a, Logger: slog.New(slog.DiscardHandler), Tracer: noop.NewTracerProvider().Tracer(""), Done: func(_ context.Context, some []Result) {
		mu.Lock()
		defer mu.Unlock()
		for _, r := range some {
			results[r.Key.Name] = r
		}
	}})
	b.Submit(ctx, bindings)
	b.Wait()
	return results
}

func binding(name, node, traceparent string) Binding {
	b := Binding{Key: object.Key{Namespace: "default", Name: name}, UID: name, Node: node, Traceparent: traceparent}
	if node == "" {
		b.Reason = "Unschedulable"
	}
	return b
}

// Answers come as two lists; each decision gets its own, however placed and unplaced pods alternate.
func TestEachDecisionGetsItsAnswer(t *testing.T) {
	a := &api{}
	results := send(t.Context(), a, []Binding{binding("a", "n1", ""), binding("b", "", ""), binding("taken", "n1", ""), binding("c", "", ""), binding("d", "n2", "")})
	if len(a.calls) != 1 || len(results) != 5 {
		t.Fatalf("%d calls, results %v", len(a.calls), results)
	}
	for name, r := range results {
		if r.Status.GetMessage() != name || r.OK() != (name != "taken") {
			t.Errorf("pod %s: answer %v", name, r.Status)
		}
	}
}

func TestBatchesAreSplitByTraceUnlessThereAreMany(t *testing.T) {
	a := &api{}
	send(t.Context(), a, []Binding{binding("a", "n1", "one"), binding("b", "n1", "two"), binding("c", "n1", "one")})
	if len(a.calls) != 2 {
		t.Errorf("two traces went out in %d calls", len(a.calls))
	}
	a = &api{}
	var many []Binding
	for _, name := range []string{"a", "b", "c", "d", "e", "f", "g", "h", "i"} {
		many = append(many, binding(name, "n1", name))
	}
	send(t.Context(), a, many)
	if len(a.calls) != 1 || len(a.calls[0]) != len(many) {
		t.Errorf("many traces went out in calls %v", a.calls)
	}
}

// A decision that cannot be sent any more is answered, too: its room must not stay taken.
func TestWhatIsNotSentFails(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	b := New(Config{Conn: &api{}, Logger: slog.New(slog.DiscardHandler), Tracer: noop.NewTracerProvider().Tracer(""), Done: func(_ context.Context, results []Result) {
		if len(results) != 1 || results[0].OK() {
			t.Errorf("results %v", results)
		}
	}})
	for range calls {
		b.slots <- struct{}{}
	}
	b.Submit(ctx, []Binding{binding("a", "n1", "")})
}
