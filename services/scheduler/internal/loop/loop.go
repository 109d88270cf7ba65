// Package loop is the plumbing around the plan: changes come in from the informer, pods that are ready go through plan.Make in batches, decisions are assumed
// and go out through the binder.
//
// One mutex guards cluster and queue. It is held for deltas and for taking and settling a batch, never while planning or calling.
package loop

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	policyv1 "dhow.dev/gen/go/dhow/policy/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/event"
	"dhow.dev/pkg/informer"
	"dhow.dev/pkg/object"
	"dhow.dev/pkg/telemetry"
	"dhow.dev/pkg/telemetry/logkey"
	"dhow.dev/services/scheduler/internal/binder"
	"dhow.dev/services/scheduler/internal/cluster"
	"dhow.dev/services/scheduler/internal/filter"
	"dhow.dev/services/scheduler/internal/plan"
	"dhow.dev/services/scheduler/internal/queue"
	"dhow.dev/services/scheduler/internal/snapshot"
)

const (
	// batch bounds a plan, and with it a call of Bind: the API server commits 256 pods at once.
	batch = 512
	// repeat is how often an unchanged reason is told again.
	repeat = 5 * time.Minute
)

// Component names the scheduler in events, as users of Kubernetes know it, and the reasons are Kubernetes' too.
const (
	Component = "default-scheduler"

	reasonScheduled = "Scheduled"
	reasonFailed    = "FailedScheduling"
)

// Reasons of the condition PodScheduled, as in Kubernetes.
const (
	reasonUnschedulable = "Unschedulable"
	reasonGated         = "SchedulingGated"
	messageGated        = "Scheduling is blocked due to non-empty scheduling gates"
)

// Config configures New.
type Config struct {
	// Conn is the connection to the API server.
	Conn grpc.ClientConnInterface
	// Informer is what Pods, Nodes and Services belong to; it must not run yet.
	Informer *informer.Informer
	Pods     *informer.Store[*corev1.Pod]
	Nodes    *informer.Store[*corev1.Node]
	Services *informer.Store[*corev1.Service]
	// Namespaces are asked by terms of pod affinity, Budgets by preemption.
	Namespaces *informer.Store[*corev1.Namespace]
	Budgets    *informer.Store[*policyv1.PodDisruptionBudget]
	Storage    Storage
	Events     event.Source
	// SchedulerName is which pods are decided about.
	SchedulerName string
	Seed          uint64
	Logger        *slog.Logger
	Tracer        trace.Tracer
	Meter         metric.Meter
	Now           func() time.Time
}

// ByNamespace is the index that Services must have.
const ByNamespace = "namespace"

// Loop decides about pods.
type Loop struct {
	config  Config
	binder  *binder.Binder
	pods    *client.Client[*corev1.Pod]
	metrics *metrics
	wake    chan struct{}
	// working are the calls of preemption, and the pods that wait for volumes.
	working sync.WaitGroup

	mu      sync.Mutex
	cluster *cluster.Cluster
	queue   *queue.Queue
	// tell is what pods are to be told that are not decided about.
	tell map[object.Key]binder.Binding
	// changed is closed when the picture changes, for those who follow it; nil while nobody does.
	changed chan struct{}
	// stored is closed when a claim or volume changes, for pods that wait for theirs; nil while none does.
	stored chan struct{}
}

// New returns a loop that takes in the informer's changes from its first run on.
func New(config Config) (*Loop, error) {
	l := &Loop{config: config, pods: client.For[*corev1.Pod](config.Conn), wake: make(chan struct{}, 1), queue: queue.New(), tell: map[object.Key]binder.Binding{}}
	l.cluster = cluster.New(l.services)
	l.binder = binder.New(binder.Config{Conn: config.Conn, Logger: config.Logger, Tracer: config.Tracer, Done: l.done})
	var err error
	if l.metrics, err = newMetrics(config.Meter, l); err != nil {
		return nil, err
	}
	config.Namespaces.OnChange(l.onNamespace)
	l.watchStorage(config.Storage)
	config.Nodes.OnChange(l.onNode)
	config.Pods.OnChangeTraced(l.onPod)
	return l, nil
}

func (l *Loop) services(namespace string) []*corev1.Service {
	return l.config.Services.ByIndex(ByNamespace, namespace)
}

// Run decides until ctx ends. It may be run again.
func (l *Loop) Run(ctx context.Context) error {
	defer l.binder.Wait()
	defer l.working.Wait()
	// Before that, nodes would look emptier than they are.
	if err := l.config.Informer.WaitForSync(ctx); err != nil {
		return nil
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		next := l.step(ctx)
		if ctx.Err() != nil {
			return nil
		}
		now := l.config.Now()
		if next.IsZero() {
			timer.Stop()
		} else {
			timer.Reset(next.Sub(now))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-l.wake:
		case <-timer.C:
		}
	}
}

// step decides about one batch, and returns when the next is due.
func (l *Loop) step(ctx context.Context) time.Time {
	started := l.config.Now()
	l.mu.Lock()
	items, bindings := l.queue.Pop(batch, started), slices.Collect(maps.Values(l.tell))
	clear(l.tell)
	if len(items) == 0 {
		next := l.queue.Next(started)
		l.mu.Unlock()
		l.binder.Submit(ctx, bindings)
		return next
	}
	known, pods := l.known(items)
	reserved := l.cluster.Reserved(deciding(known))
	view := l.cluster.Snapshot()
	l.mu.Unlock()

	decisions := plan.MakeAround(view, pods, reserved, l.config.Seed)
	planned := l.config.Now()

	l.mu.Lock()
	var placed filter.Event
	for i, item := range known {
		if decisions[i].Slot >= 0 {
			bindings = l.settle(ctx, bindings, item, pods[i].Class, decisions[i], planned)
			placed = filter.PodPlaced
		}
	}
	hunt := l.hunt(known, pods, decisions, reserved)
	l.mu.Unlock()

	hunt.run()

	l.mu.Lock()
	var evictions []eviction
	for i := range hunt.preys {
		prey := &hunt.preys[i]
		evictions = l.nominate(evictions, prey)
		bindings = l.wait(bindings, prey, planned)
	}
	l.queue.Help(placed, planned)
	next := l.queue.Next(planned)
	l.broadcast()
	l.mu.Unlock()

	l.metrics.planned(ctx, len(known), planned.Sub(started))
	for _, item := range known {
		l.trace(item, started, planned)
	}
	l.binder.Submit(ctx, bindings)
	l.evict(ctx, evictions)
	return next
}

// known returns what is to be decided: of equal priority first those for which others leave, since they hold a place.
func (l *Loop) known(items []*queue.Item) ([]*queue.Item, []plan.Pod) {
	pods := make([]plan.Pod, 0, len(items))
	known := items[:0]
	nominated := false
	for _, i := range items {
		if p, ok := l.cluster.Pod(i.Key); ok {
			known = append(known, i)
			nominated = nominated || p.Nominated != ""
		}
	}
	pod := func(i *queue.Item) *cluster.Pod {
		p, _ := l.cluster.Pod(i.Key)
		return p
	}
	if nominated {
		slices.SortStableFunc(known, func(a, b *queue.Item) int {
			if a.Priority != b.Priority || (pod(a).Nominated != "") == (pod(b).Nominated != "") {
				return cmp.Compare(b.Priority, a.Priority)
			}
			return cmp.Compare(pod(b).Nominated, pod(a).Nominated)
		})
	}
	for _, i := range known {
		p := pod(i)
		pods = append(pods, plan.Pod{Key: i.Key.String(), Class: p.Class(), Priority: p.Priority(), Nominated: p.Nominated})
	}
	return known, pods
}

func deciding(items []*queue.Item) map[object.Key]bool {
	out := make(map[object.Key]bool, len(items))
	for _, i := range items {
		out[i.Key] = true
	}
	return out
}

// settle assumes a decision for a node, and appends what is to be written. A pod whose volumes are not bound yet is bound once they are.
func (l *Loop) settle(
	ctx context.Context, bindings []binder.Binding, item *queue.Item, class *snapshot.Class, d plan.Decision, now time.Time,
) []binder.Binding {
	assumed := l.cluster.Assume(item.Key, class, d.Node)
	if assumed && !l.cluster.Reserve(d.Volumes, d.Node) {
		l.cluster.Forget(item.Key, item.UID)
		assumed = false
	}
	if !assumed {
		l.queue.Backoff(item, now)
		return bindings
	}
	item.Reasons = nil
	b := binder.Binding{Key: item.Key, UID: item.UID, Traceparent: item.Traceparent, Added: item.Added, Node: d.Node}
	if len(d.Volumes) > 0 {
		l.bindVolumes(ctx, b, d.Volumes, class.Claims)
		return bindings
	}
	return append(bindings, b)
}

// wait lets a pod without a node wait, and appends what it is to be told.
func (l *Loop) wait(bindings []binder.Binding, prey *prey, now time.Time) []binder.Binding {
	item, failure := prey.item, prey.failure
	l.queue.Park(item, failure.Helps|filter.PodGone, now)
	item.Reasons = failure.Reasons
	p, ok := l.cluster.Pod(item.Key)
	message := prey.message()
	if !ok || p.Class() != prey.pod.Class || message == item.Told && now.Sub(item.ToldAt) < repeat {
		return bindings
	}
	item.Told, item.ToldAt = message, now
	l.config.Events.Report(p.Object, event.Warning, reasonFailed, "%s", message)
	if told(p.Object, reasonUnschedulable, message) {
		return bindings
	}
	return append(bindings, binder.Binding{
		Key: item.Key, UID: item.UID, Traceparent: item.Traceparent, Added: item.Added, Reason: reasonUnschedulable, Message: message,
	})
}

// told says whether the pod's condition says this already.
func told(pod *corev1.Pod, reason, message string) bool {
	for _, c := range pod.GetStatus().GetConditions() {
		if c.GetType() == "PodScheduled" {
			return c.GetStatus() == "False" && c.GetReason() == reason && c.GetMessage() == message
		}
	}
	return false
}

// done takes in what became of decisions.
func (l *Loop) done(ctx context.Context, results []binder.Result) {
	now := l.config.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	var helps filter.Event
	for _, r := range results {
		item, queued := l.queue.Get(r.Key)
		queued = queued && item.UID == r.UID
		switch {
		case r.Node == "":
			if !r.OK() && queued {
				item.Told = ""
			}
			l.metrics.outcome(ctx, outcomeUnschedulable)
		case r.OK():
			l.metrics.outcome(ctx, outcomeBound)
			l.metrics.latency(ctx, now.Sub(r.Added))
			if queued {
				l.queue.Remove(r.Key)
			}
			l.report(r)
		default:
			l.metrics.outcome(ctx, outcomeError)
			if r.Err == nil {
				l.config.Logger.WarnContext(ctx, "pod not bound", logkey.Pod(r.Key.Namespace, r.Key.Name), logkey.Node(r.Node), logkey.Reason(r.Status.GetMessage()))
			}
			if l.cluster.Forget(r.Key, r.UID) {
				helps |= filter.PodGone
				if queued {
					l.queue.Backoff(item, now)
				}
			}
		}
	}
	l.queue.Help(helps, now)
	l.broadcast()
	l.poke()
}

// report tells people that a pod was bound.
func (l *Loop) report(r binder.Result) {
	p, ok := l.cluster.Pod(r.Key)
	if !ok || p.UID != r.UID {
		return
	}
	l.config.Events.Report(p.Object, event.Normal, reasonScheduled, "Successfully assigned %s to %s", r.Key, r.Node)
}

// trace writes the spans of a pod's way through queue and plan, into the trace of its creation.
func (l *Loop) trace(item *queue.Item, started, planned time.Time) {
	if item.Traceparent == "" {
		return
	}
	ctx := telemetry.WithTraceparent(context.Background(), item.Traceparent)
	pod := trace.WithAttributes(attribute.String("k8s.namespace.name", item.Key.Namespace), attribute.String("k8s.pod.name", item.Key.Name))
	_, span := l.config.Tracer.Start(ctx, "scheduler.queue", trace.WithTimestamp(item.Queued), pod)
	span.End(trace.WithTimestamp(started))
	_, span = l.config.Tracer.Start(ctx, "scheduler.plan", trace.WithTimestamp(started), pod)
	span.End(trace.WithTimestamp(planned))
}

// poke wakes Run.
func (l *Loop) poke() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// broadcast tells followers that something changed.
func (l *Loop) broadcast() {
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
}
