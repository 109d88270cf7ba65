// Package mirror tells what is derived from objects of the cache, such as an index of roles, when they have changed.
package mirror

import (
	"context"
	"log/slog"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"dhow.dev/pkg/resource"
	"dhow.dev/pkg/telemetry/logkey"
	"dhow.dev/services/apiserver/internal/cache"
)

// Cache is the part of cache.Cache that is needed.
type Cache interface {
	Snapshot(cache.Selection) []*cache.Entry
	Watch(context.Context, []cache.Watched, cache.WatchOptions) (*cache.Watcher, error)
	// Consistent returns a revision that holds all that was acknowledged before the call, once the cache has reached it.
	Consistent(context.Context) (int64, error)
	Revision() int64
}

// Entries returns all objects of a kind.
func Entries(objects Cache, r *resource.Resource) []*cache.Entry {
	return objects.Snapshot(everything(r))
}

func everything(r *resource.Resource) cache.Selection {
	s, err := cache.Select(r, "", "", "")
	if err != nil {
		panic("mirror: " + r.String() + " cannot be selected: " + err.Error()) // nothing is asked that could be wrong
	}
	return s
}

// again is how long a watch that failed is left alone. Only a state that was rebuilt ends one.
const again = 100 * time.Millisecond

// Follow calls refresh with all kinds once the cache is filled, and then with those of which something has changed, until ctx ends. Changes that fall
// together make one call.
func Follow(ctx context.Context, objects Cache, kinds []*resource.Resource, logger *slog.Logger, refresh func(changed []*resource.Resource)) error {
	selections := make([]cache.Watched, len(kinds))
	for i, r := range kinds {
		selections[i] = cache.Watched{Selection: everything(r)}
	}
	for ctx.Err() == nil {
		err := follow(ctx, objects, kinds, selections, refresh)
		if ctx.Err() != nil {
			return nil
		}
		if !apierrors.IsResourceExpired(err) && !apierrors.IsGone(err) {
			logger.WarnContext(ctx, "watch of the cache ended, beginning again", logkey.Err(err), logkey.Delay(again))
		}
		select {
		case <-time.After(again):
		case <-ctx.Done():
		}
	}
	return nil
}

func follow(ctx context.Context, objects Cache, kinds []*resource.Resource, selections []cache.Watched, refresh func([]*resource.Resource)) error {
	// Version 0: the cache as it is, without asking the store.
	w, err := objects.Watch(ctx, selections, cache.WatchOptions{MinRevision: new(int64)})
	if err != nil {
		return err
	}
	defer w.Close()
	// What went away while nobody watched is in no batch.
	refresh(kinds)
	for {
		batch, err := w.Next(ctx)
		if err != nil {
			return err
		}
		var changed []*resource.Resource
		for i := range batch.Changes {
			if r := batch.Changes[i].Object.Resource; !slices.Contains(changed, r) {
				changed = append(changed, r)
			}
		}
		if len(changed) > 0 {
			refresh(changed)
		}
	}
}
