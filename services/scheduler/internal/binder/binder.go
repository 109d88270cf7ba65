// Package binder carries decisions to the API server, many in a call, off the scheduling loop.
package binder

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/apistatus"
	"dhow.dev/pkg/object"
	"dhow.dev/pkg/telemetry"
	"dhow.dev/pkg/telemetry/logkey"
)

const (
	// Calls at once. While they are under way further decisions gather, so that batches grow with the load.
	calls = 4
	// maxTraces is how many calls one batch is split into so that each pod's commit belongs to the trace of its creation. Beyond, there is one call
	// with links: throughput before completeness of traces.
	maxTraces = 8
	// timeout of one call. What became of it is then seen on the watch.
	timeout = 30 * time.Second
)

// Binding is a decision. Exactly one of Node and Reason is set.
type Binding struct {
	Key         object.Key
	UID         string
	Node        string
	Traceparent string
	// Added is when the pod came to wait: the watch may tell of the binding, and take the pod off the queue, before its call is answered.
	Added time.Time
	// Reason and Message say why there is no node.
	Reason, Message string
}

// Result is what became of a binding. Status is nil when the call failed as a whole, with Err.
type Result struct {
	Binding
	Status *metav1.Status
	Err    error
}

// OK says that it was written.
func (r Result) OK() bool { return r.Err == nil && r.Status.GetStatus() == "Success" }

// Config configures New.
type Config struct {
	Conn   grpc.ClientConnInterface
	Logger *slog.Logger
	Tracer trace.Tracer
	// Done gets the results of a call. It is called from several goroutines.
	Done func(ctx context.Context, results []Result)
}

// Binder sends decisions.
type Binder struct {
	config Config
	pods   corev1.PodsClient
	slots  chan struct{}
	calls  sync.WaitGroup
}

// New returns a binder.
func New(config Config) *Binder {
	return &Binder{config: config, pods: corev1.NewPodsClient(config.Conn), slots: make(chan struct{}, calls)}
}

// Submit sends decisions. It waits while too many calls are under way, and returns before its own end.
func (b *Binder) Submit(ctx context.Context, bindings []Binding) {
	for _, group := range byTrace(bindings) {
		select {
		case b.slots <- struct{}{}:
		case <-ctx.Done():
			b.config.Done(ctx, failed(group, ctx.Err()))
			continue
		}
		b.calls.Go(func() {
			defer func() { <-b.slots }()
			b.send(ctx, group)
		})
	}
}

func failed(bindings []Binding, err error) []Result {
	results := make([]Result, len(bindings))
	for i, d := range bindings {
		results[i] = Result{Binding: d, Err: err}
	}
	return results
}

// Wait waits until no call is under way. No Submit may run.
func (b *Binder) Wait() { b.calls.Wait() }

// byTrace splits a batch by trace, unless it has too many.
func byTrace(bindings []Binding) [][]Binding {
	if len(bindings) == 0 {
		return nil
	}
	var order []string
	groups := map[string][]Binding{}
	for _, binding := range bindings {
		if _, seen := groups[binding.Traceparent]; !seen {
			if len(order) == maxTraces {
				return [][]Binding{bindings}
			}
			order = append(order, binding.Traceparent)
		}
		groups[binding.Traceparent] = append(groups[binding.Traceparent], binding)
	}
	out := make([][]Binding, 0, len(order))
	for _, traceparent := range order {
		out = append(out, groups[traceparent])
	}
	return out
}

func (b *Binder) send(ctx context.Context, bindings []Binding) {
	// A call that was begun ends, also when the service stops: its outcome is worth more than the time.
	ctx = telemetry.WithTraceparent(context.WithoutCancel(ctx), bindings[0].Traceparent)
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	ctx, span := b.config.Tracer.Start(ctx, "scheduler.bind", trace.WithAttributes(attribute.Int("pods", len(bindings))), trace.WithLinks(links(bindings)...))
	defer span.End()

	request := &corev1.PodBindRequest{}
	var placed []*corev1.PodBindRequest_Binding
	var unplaced []*corev1.PodBindRequest_Unschedulable
	for _, d := range bindings {
		if d.Node != "" {
			placed = append(placed, corev1.PodBindRequest_Binding_builder{Namespace: d.Key.Namespace, Name: d.Key.Name, Uid: d.UID, NodeName: d.Node}.Build())
		} else {
			unplaced = append(unplaced, corev1.PodBindRequest_Unschedulable_builder{
				Namespace: d.Key.Namespace, Name: d.Key.Name, Uid: d.UID, Reason: d.Reason, Message: d.Message,
			}.Build())
		}
	}
	request.SetBindings(placed)
	request.SetUnschedulable(unplaced)
	response, err := b.pods.Bind(ctx, request)
	if err = apistatus.FromGRPC(err); err != nil {
		span.SetStatus(codes.Error, err.Error())
		b.config.Logger.WarnContext(ctx, "binding failed", logkey.Count(len(bindings)), logkey.Err(err))
	}
	results := failed(bindings, err)
	bound, marked := response.GetBindings(), response.GetUnschedulable()
	for i, d := range bindings {
		if err != nil {
			continue
		}
		answers := &marked
		if d.Node != "" {
			answers = &bound
		}
		if len(*answers) > 0 {
			results[i].Status, *answers = (*answers)[0], (*answers)[1:]
		}
	}
	b.config.Done(ctx, results)
}

// links ties a call that serves several traces to all of them.
func links(bindings []Binding) []trace.Link {
	var out []trace.Link
	for _, d := range bindings {
		if d.Traceparent == bindings[0].Traceparent || len(out) == 128 {
			continue
		}
		if sc := trace.SpanContextFromContext(telemetry.WithTraceparent(context.Background(), d.Traceparent)); sc.IsValid() {
			out = append(out, trace.Link{SpanContext: sc})
		}
	}
	return out
}
