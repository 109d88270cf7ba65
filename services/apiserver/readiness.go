package apiserver

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc"

	storev1 "dhow.dev/gen/go/dhow/store/v1"
	"dhow.dev/services/apiserver/internal/cache"
	apihealth "dhow.dev/services/apiserver/internal/health"
)

var (
	errStopping  = errors.New("it was told to stop")
	errStarting  = errors.New("the objects that a cluster begins with are not there yet")
	errStoreLost = errors.New("the cache is behind the store")
)

// delayed returns a context that ends some time after its parent.
func delayed(parent context.Context, delay time.Duration) (context.Context, context.CancelFunc) {
	if delay <= 0 {
		return context.WithCancel(parent)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(parent))
	stop := context.AfterFunc(parent, func() {
		timer := time.NewTimer(delay)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
		cancel()
	})
	return ctx, func() {
		stop()
		cancel()
	}
}

// readiness is what an API server needs before requests should come to it.
type readiness struct {
	store grpc.ClientConnInterface
	cache *cache.Cache
	// started is closed when the first objects have been made, stopping when the service was told to stop.
	started, stopping <-chan struct{}
}

// checks are what /readyz and /healthz ask. None is a reason to restart the process: what is missing comes from elsewhere. What decides on rights and admits writes reads
// the cache, and catches up with it before it refuses anything: it is ready when the cache is.
func (r readiness) checks() []apihealth.Check {
	closed := func(c <-chan struct{}, otherwise error) func(context.Context) error {
		return func(context.Context) error {
			select {
			case <-c:
				return nil
			default:
				return otherwise
			}
		}
	}
	return []apihealth.Check{
		{Name: "store", Ready: true, Run: r.reach},
		{Name: "cache", Ready: true, Run: closed(r.cache.Ready(), errNotReady)},
		{Name: "bootstrap", Ready: true, Run: closed(r.started, errStarting)},
		{Name: "shutdown", Ready: true, Run: func(ctx context.Context) error {
			if closed(r.stopping, errStarting)(ctx) == nil {
				return errStopping
			}
			return nil
		}},
	}
}

// check makes all checks, for the endpoint that services have beside their metrics.
func (r readiness) check(ctx context.Context) error {
	var lacks []error
	for _, c := range r.checks() {
		if err := c.Run(ctx); err != nil {
			lacks = append(lacks, fmt.Errorf("%s: %w", c.Name, err))
		}
	}
	return errors.Join(lacks...)
}

// reach asks the store for its newest revision, and waits for the cache to have it: then both the store and its stream are well.
func (r readiness) reach(ctx context.Context) error {
	now, err := storev1.NewStoreClient(r.store).Revision(ctx, &storev1.RevisionRequest{})
	if err != nil {
		return err
	}
	if err := r.cache.WaitFor(ctx, now.GetRevision()); err != nil {
		return errStoreLost
	}
	return nil
}
