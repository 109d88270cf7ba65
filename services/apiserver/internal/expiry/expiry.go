// Package expiry deletes Events that nothing has been added to for a while.
//
// Events are ordinary objects, so that they are listed, watched and written like all others; a lease per event, as Kubernetes has it, would make each of
// them travel alone through the store. They are deleted in batches instead. Every API server does so: who is second finds nothing left.
package expiry

import (
	"context"
	"log/slog"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	kcorev1 "k8s.io/api/core/v1"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	storev1 "dhow.dev/gen/go/dhow/store/v1"
	"dhow.dev/pkg/resource"
	"dhow.dev/pkg/telemetry/logkey"
	"dhow.dev/services/apiserver/internal/cache"
	"dhow.dev/services/apiserver/internal/codec"
)

// batch bounds a commit: small enough that a refused one, because an event was written meanwhile, costs little.
const batch = 100

// Config configures a Reaper.
type Config struct {
	Store storev1.StoreClient
	Cache *cache.Cache
	Codec *codec.Codec
	// TTL is how long an event stays after it was last seen; 0: one hour, as in Kubernetes.
	TTL    time.Duration
	Logger *slog.Logger
	// Now is the clock, nil for the real one.
	Now func() time.Time
}

// Reaper deletes old events.
type Reaper struct {
	config Config
}

// events are stored as core's, whichever API group they were written through.
var events = resource.For[*corev1.Event]()

// New returns a reaper.
func New(config Config) *Reaper {
	if config.TTL == 0 {
		config.TTL = time.Hour
	}
	if config.Now == nil {
		config.Now = time.Now
	}
	return &Reaper{config: config}
}

// Run deletes old events until ctx ends. An event outlives its time by a sixtieth of it at most.
func (r *Reaper) Run(ctx context.Context) error {
	select {
	case <-r.config.Cache.Ready():
	case <-ctx.Done():
		return nil
	}
	tick := time.NewTicker(max(r.config.TTL/60, time.Second))
	defer tick.Stop()
	for {
		if deleted, err := r.Reap(ctx); err != nil && ctx.Err() == nil {
			r.config.Logger.WarnContext(ctx, "old events not deleted, trying again later", logkey.Err(err))
		} else if deleted > 0 {
			r.config.Logger.DebugContext(ctx, "old events deleted", logkey.Count(deleted))
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// Reap deletes what is too old now and returns how many events that were.
func (r *Reaper) Reap(ctx context.Context) (deleted int, err error) {
	before := r.config.Now().Add(-r.config.TTL)
	all, err := cache.Select(events, "", "", "")
	if err != nil {
		return 0, err
	}
	var old []*cache.Entry
	for _, e := range r.config.Cache.Snapshot(all) {
		if seen, ok := r.lastSeen(e); ok && seen.Before(before) {
			old = append(old, e)
		}
	}
	for len(old) > 0 {
		n := min(batch, len(old))
		done, err := r.remove(ctx, old[:n])
		if err != nil {
			return deleted, err
		}
		deleted += done
		old = old[n:]
	}
	return deleted, nil
}

// remove deletes events in one commit, unless one of them was written or deleted meanwhile: then the next round looks again.
func (r *Reaper) remove(ctx context.Context, events []*cache.Entry) (int, error) {
	var conditions []*storev1.Condition
	var operations []*storev1.Operation
	for _, e := range events {
		yes := true
		conditions = append(conditions, storev1.Condition_builder{Key: []byte(e.Key), Revision: e.Revision}.Build())
		operations = append(operations, storev1.Operation_builder{Key: []byte(e.Key), Delete: &yes}.Build())
	}
	_, err := r.config.Store.Commit(ctx, storev1.CommitRequest_builder{Conditions: conditions, Operations: operations}.Build())
	if status.Code(err) == codes.FailedPrecondition {
		return 0, nil
	}
	return len(events), err
}

// lastSeen is when something was last added to an event; false when it cannot be read.
func (r *Reaper) lastSeen(e *cache.Entry) (time.Time, bool) {
	o, err := r.config.Codec.DecodeProto(e.Resource, e.Object)
	if err != nil {
		return time.Time{}, false
	}
	latest := o.GetCreationTimestamp().Time
	later := func(t time.Time) {
		if t.After(latest) {
			latest = t
		}
	}
	if event, ok := o.(*kcorev1.Event); ok {
		later(event.LastTimestamp.Time)
		later(event.EventTime.Time)
		if event.Series != nil {
			later(event.Series.LastObservedTime.Time)
		}
	}
	return latest, true
}
