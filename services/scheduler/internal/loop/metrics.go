package loop

import (
	"context"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"dhow.dev/services/scheduler/internal/queue"
)

const (
	outcomeBound         = "bound"
	outcomeUnschedulable = "unschedulable"
	outcomeError         = "error"
)

type metrics struct {
	pods      metric.Int64Counter
	latencies metric.Float64Histogram
	plans     metric.Float64Histogram
	batches   metric.Int64Histogram
}

func newMetrics(meter metric.Meter, l *Loop) (*metrics, error) {
	m := &metrics{}
	var err error
	if m.pods, err = meter.Int64Counter("dhow.scheduler.decisions", metric.WithDescription("Decisions written, by outcome.")); err != nil {
		return nil, err
	}
	if m.latencies, err = meter.Float64Histogram("dhow.scheduler.latency", metric.WithUnit("s"),
		metric.WithDescription("From when a pod was first seen until its binding was written.")); err != nil {
		return nil, err
	}
	if m.plans, err = meter.Float64Histogram("dhow.scheduler.plan.duration", metric.WithUnit("s"), metric.WithDescription("Time of one plan.")); err != nil {
		return nil, err
	}
	if m.batches, err = meter.Int64Histogram("dhow.scheduler.plan.pods", metric.WithDescription("Pods in one plan.")); err != nil {
		return nil, err
	}
	pending, err := meter.Int64ObservableGauge("dhow.scheduler.pending", metric.WithDescription("Pods without a node, by what they wait for."))
	if err != nil {
		return nil, err
	}
	reasons, err := meter.Int64ObservableGauge("dhow.scheduler.unschedulable", metric.WithDescription("Pods that no node can take, by reason; a pod counts under each of its reasons."))
	if err != nil {
		return nil, err
	}
	_, err = meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		l.mu.Lock()
		defer l.mu.Unlock()
		ready, backoff, unschedulable := l.queue.Lengths()
		for state, n := range map[string]int{"ready": ready, "backoff": backoff, "unschedulable": unschedulable} {
			o.ObserveInt64(pending, int64(n), metric.WithAttributes(attribute.String("queue", state)))
		}
		byReason := map[string]int64{}
		l.queue.Unschedulable(func(i *queue.Item) {
			for reason := range i.Reasons {
				byReason[reason]++
			}
		})
		for reason, n := range byReason {
			o.ObserveInt64(reasons, n, metric.WithAttributes(attribute.String("reason", reason)))
		}
		return nil
	}, pending, reasons)
	return m, err
}

func (m *metrics) outcome(ctx context.Context, outcome string) {
	m.pods.Add(ctx, 1, metric.WithAttributes(attribute.String("outcome", outcome)))
}

func (m *metrics) latency(ctx context.Context, d time.Duration) { m.latencies.Record(ctx, d.Seconds()) }

func (m *metrics) planned(ctx context.Context, pods int, d time.Duration) {
	m.plans.Record(ctx, d.Seconds())
	m.batches.Record(ctx, int64(pods))
}
