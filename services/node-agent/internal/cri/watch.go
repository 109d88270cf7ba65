package cri

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"time"
)

// How often all pods are listed: a safety net beside events, the only source without them.
const (
	relistWithEvents = 5 * time.Minute
	// A subscription is not confirmed by the runtime: what happened between it and the first list is found by a second list.
	firstRelist         = 10 * time.Second
	relistWithoutEvents = time.Second
	maxWatchBackoff     = 5 * time.Second
)

// Watcher tells what changes in a runtime.
type Watcher struct {
	Runtime Runtime
	Logger  *slog.Logger
	// OnEvent is told of each event; it must not block.
	OnEvent func(Event)
	// OnList is told of the state of all pods after each (re)subscription and from time to time.
	OnList func([]PodState)
}

// Run watches until ctx ends.
func (w *Watcher) Run(ctx context.Context) error {
	backoff := 50 * time.Millisecond
	for ctx.Err() == nil {
		listed, err := w.session(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if listed {
			backoff = 50 * time.Millisecond
		}
		w.Logger.DebugContext(ctx, "runtime events ended, subscribing again", "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(backoff/2 + rand.N(backoff/2)):
		}
		backoff = min(2*backoff, maxWatchBackoff)
	}
	return nil
}

// session follows one subscription to its end and says whether a list succeeded in it.
func (w *Watcher) session(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	subscribed := make(chan struct{})
	ended := make(chan error, 1)
	go func() { ended <- w.Runtime.Events(ctx, func() { close(subscribed) }, w.OnEvent) }()

	interval := firstRelist
	select {
	case <-ctx.Done():
		return false, ctx.Err()
	case <-subscribed:
	case err := <-ended:
		if !errors.Is(err, ErrEventsUnsupported) {
			return false, err
		}
		interval, ended = relistWithoutEvents, nil
	}
	listed := false
	for {
		pods, err := w.Runtime.Pods(ctx)
		if err != nil {
			return listed, err
		}
		listed = true
		w.OnList(pods)
		select {
		case <-ctx.Done():
			return listed, ctx.Err()
		case err := <-ended:
			if !errors.Is(err, ErrEventsUnsupported) {
				return listed, err
			}
			interval, ended = relistWithoutEvents, nil
		case <-time.After(interval):
		}
		if interval == firstRelist {
			interval = relistWithEvents
		}
	}
}
