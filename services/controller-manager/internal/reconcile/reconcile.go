// Package reconcile runs the loops of controllers: a queue of keys, workers, back-off, one span per turn that continues the trace of the change
// which caused it, and metrics.
//
// It also keeps the one promise that every controller here rests on: a key's turn never sees a cache that is older than what the key's own
// earlier turns wrote. A controller tells the turn what it wrote; the key then waits until the cache has reached that revision. What Kubernetes
// does with expectations (counting the creations and deletions that are still to be observed) follows from the one revision of the cluster.
package reconcile

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/util/workqueue"

	"dhow.dev/pkg/informer"
	"dhow.dev/pkg/object"
	"dhow.dev/pkg/telemetry"
	"dhow.dev/pkg/telemetry/logkey"
)

const (
	scope = "dhow.dev/services/controller-manager"

	// Failed turns are repeated after a delay between these two, doubling. Kubernetes begins with 5 ms too; its upper bound of 16 minutes
	// would leave a healed cluster unattended for that long.
	minBackoff = 5 * time.Millisecond
	maxBackoff = time.Minute

	// maxCauses bounds the traces that one turn is linked to when many changes fall together.
	maxCauses = 16
)

// Source is the cache that a controller reads: an informer.
type Source interface {
	Revision() int64
	WaitForSync(ctx context.Context) error
	WaitForRevision(ctx context.Context, revision int64) error
}

// Config is what a runner is made of.
type Config[K comparable] struct {
	// Name of the controller, for logs, spans and metrics.
	Name string
	// Source is where the controller reads what it decides on.
	Source Source
	// Workers is how many keys are worked on at once; a key is never worked on twice at once. 0 is 1.
	Workers int
	// Reconcile makes the world of one key as it should be. An error repeats the turn after a delay.
	Reconcile func(ctx context.Context, turn *Turn[K]) error
	Logger    *slog.Logger
}

// Runner runs one controller. Its methods are safe for concurrent use.
type Runner[K comparable] struct {
	cfg    Config[K]
	queue  workqueue.TypedRateLimitingInterface[K]
	tracer trace.Tracer
	turns  metric.Int64Counter
	took   metric.Float64Histogram

	mu sync.Mutex
	// causes are the traceparents of the changes that the next turn of a key answers.
	causes map[K][]string
	// wrote is the revision that the cache must reach before the next turn of a key.
	wrote map[K]int64
	// parked are the keys that wait for wrote; arrived wakes the goroutine that releases them.
	parked  map[K]int64
	arrived chan struct{}
}

// New returns a runner. Keys may be added before Run.
func New[K comparable](cfg Config[K]) *Runner[K] {
	cfg.Workers = max(cfg.Workers, 1)
	meter := telemetry.Meter(scope)
	// Instruments fail only for names that break OpenTelemetry's rules; these are constants, and a nil-safe instrument comes back in any case.
	turns, _ := meter.Int64Counter("dhow.controller.turns", metric.WithDescription("turns of controllers by result"))
	took, _ := meter.Float64Histogram("dhow.controller.turn.duration", metric.WithUnit("s"), metric.WithDescription("duration of a controller's turn"))
	r := &Runner[K]{
		cfg: cfg, tracer: telemetry.Tracer(scope), turns: turns, took: took,
		queue: workqueue.NewTypedRateLimitingQueueWithConfig(
			workqueue.NewTypedItemExponentialFailureRateLimiter[K](minBackoff, maxBackoff),
			workqueue.TypedRateLimitingQueueConfig[K]{Name: cfg.Name}),
		causes: map[K][]string{}, wrote: map[K]int64{}, parked: map[K]int64{}, arrived: make(chan struct{}, 1),
	}
	// A callback of each runner's own: of callbacks given with an instrument the SDK keeps the first runner's alone.
	length, _ := meter.Int64ObservableGauge("dhow.controller.queue.length", metric.WithDescription("keys that wait for a turn"))
	_, _ = meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		o.ObserveInt64(length, int64(r.queue.Len()), metric.WithAttributes(attribute.String("controller", cfg.Name)))
		return nil
	}, length)
	return r
}

// Add asks for a turn of a key because of a change, nil when there is none to name. A key that waits already is not added twice.
func (r *Runner[K]) Add(key K, cause *informer.Trace) {
	if cause != nil && cause.Traceparent != "" {
		r.mu.Lock()
		if known := r.causes[key]; len(known) < maxCauses && (len(known) == 0 || known[len(known)-1] != cause.Traceparent) {
			r.causes[key] = append(known, cause.Traceparent)
		}
		r.mu.Unlock()
	}
	r.queue.Add(key)
}

// AddAfter asks for a turn of a key after a time, or at once when it is not positive.
func (r *Runner[K]) AddAfter(key K, delay time.Duration) { r.queue.AddAfter(key, delay) }

// Run works on keys, once the source is complete, until ctx ends.
func (r *Runner[K]) Run(ctx context.Context) error {
	defer r.queue.ShutDown()
	if err := r.cfg.Source.WaitForSync(ctx); err != nil {
		return nil // the context ended
	}
	var group sync.WaitGroup
	for range r.cfg.Workers {
		group.Go(func() {
			for r.next(ctx) {
			}
		})
	}
	group.Go(func() { r.release(ctx) })
	<-ctx.Done()
	r.queue.ShutDown()
	group.Wait()
	return nil
}

// next takes one key and works on it; it returns false when the queue is shut down.
func (r *Runner[K]) next(ctx context.Context) bool {
	key, shutdown := r.queue.Get()
	if shutdown {
		return false
	}
	defer r.queue.Done(key)
	if ctx.Err() != nil {
		return true // drains the queue
	}
	r.mu.Lock()
	if revision := r.wrote[key]; revision > r.cfg.Source.Revision() {
		r.parked[key] = revision
		r.mu.Unlock()
		select {
		case r.arrived <- struct{}{}:
		default:
		}
		return true
	}
	delete(r.wrote, key)
	causes := r.causes[key]
	delete(r.causes, key)
	r.mu.Unlock()
	r.turn(ctx, key, causes)
	return true
}

func (r *Runner[K]) turn(ctx context.Context, key K, causes []string) {
	options := []trace.SpanStartOption{trace.WithAttributes(attribute.String("controller", r.cfg.Name), attribute.String("key", fmt.Sprint(key)))}
	for i, cause := range causes {
		if i == 0 {
			ctx = telemetry.WithTraceparent(ctx, cause)
			continue
		}
		options = append(options, trace.WithLinks(trace.LinkFromContext(telemetry.WithTraceparent(context.Background(), cause))))
	}
	ctx, span := r.tracer.Start(ctx, "reconcile "+r.cfg.Name, options...)
	defer span.End()
	began := time.Now()
	t := &Turn[K]{Key: key}
	err := r.cfg.Reconcile(ctx, t)

	// Also a turn that failed may have written.
	if t.revision > 0 {
		r.mu.Lock()
		r.wrote[key] = max(r.wrote[key], t.revision)
		r.mu.Unlock()
	}
	result := "ok"
	switch {
	case err == nil:
		r.queue.Forget(key)
		if t.again != nil {
			r.queue.AddAfter(key, *t.again)
		}
	case ctx.Err() != nil:
		result = "stopped"
	default:
		result = "error"
		span.RecordError(err)
		attempt := r.queue.NumRequeues(key) + 1
		level := slog.LevelWarn
		if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
			// The cache was behind: ordinary.
			result, level = "conflict", slog.LevelDebug
		} else {
			span.SetStatus(codes.Error, err.Error())
		}
		r.cfg.Logger.Log(ctx, level, "turn failed, will be repeated", logkey.Component(r.cfg.Name), slog.Any("key", key), logkey.Attempt(attempt), logkey.Err(err))
		r.queue.AddRateLimited(key)
	}
	attributes := metric.WithAttributes(attribute.String("controller", r.cfg.Name), attribute.String("result", result))
	r.turns.Add(ctx, 1, attributes)
	r.took.Record(ctx, time.Since(began).Seconds(), attributes)
}

// release puts parked keys back into the queue as the source reaches their revisions.
func (r *Runner[K]) release(ctx context.Context) {
	for {
		r.mu.Lock()
		var lowest int64
		for _, revision := range r.parked {
			if lowest == 0 || revision < lowest {
				lowest = revision
			}
		}
		r.mu.Unlock()
		if lowest == 0 {
			select {
			case <-ctx.Done():
				return
			case <-r.arrived:
			}
			continue
		}
		if r.cfg.Source.WaitForRevision(ctx, lowest) != nil {
			return // the context ended
		}
		reached := r.cfg.Source.Revision()
		r.mu.Lock()
		for key, revision := range r.parked {
			if revision <= reached {
				delete(r.parked, key)
				r.queue.Add(key)
			}
		}
		r.mu.Unlock()
	}
}

// Turn is one turn of a key. Its methods may be called by several goroutines.
type Turn[K comparable] struct {
	Key K

	mu       sync.Mutex
	revision int64
	again    *time.Duration
}

// Wrote says that the turn wrote an object, which is as the API server returned it.
func (t *Turn[K]) Wrote(o object.Object) { t.WroteAt(object.Revision(o)) }

// WroteAt is Wrote for writes whose revision is all that is known.
func (t *Turn[K]) WroteAt(revision int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.revision = max(t.revision, revision)
}

// Again asks for another turn after a time, when this one ends well. The shortest of several counts.
func (t *Turn[K]) Again(after time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.again == nil || after < *t.again {
		t.again = &after
	}
}
