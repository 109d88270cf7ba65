package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	storev1 "dhow.dev/gen/go/dhow/store/v1"
	"dhow.dev/pkg/object"
	"dhow.dev/pkg/resource"
	"dhow.dev/pkg/telemetry"
	"dhow.dev/pkg/telemetry/logkey"
)

// Reconnecting waits between these two, doubling, with jitter.
const (
	minBackoff = 20 * time.Millisecond
	maxBackoff = 2 * time.Second
)

var errReplaced = errors.New("the store's history is gone")

// Run keeps the cache up to date until ctx ends. It reconnects by itself, without losing an event as long as the store still has them; otherwise the
// state is read anew and all watches end with Expired.
func (c *Cache) Run(ctx context.Context) error {
	backoff := minBackoff
	filled := false
	var cluster uint64
	for {
		err := func() error {
			if !filled {
				id, err := c.fill(ctx)
				if err != nil {
					return err
				}
				filled, cluster = true, id
				backoff = minBackoff
			}
			return c.follow(ctx, cluster, func() { backoff = minBackoff })
		}()
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, errReplaced) || status.Code(err) == codes.OutOfRange {
			c.config.Logger.WarnContext(ctx, "store history lost, reading the whole state again", logkey.Err(err))
			filled = false
		} else {
			// Once loudly: the connection's own attempts go on behind these.
			level := slog.LevelDebug
			if backoff == minBackoff {
				level = slog.LevelWarn
			}
			c.config.Logger.LogAttrs(ctx, level, "no connection to the store, connecting again", logkey.Err(err), logkey.Delay(backoff))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(backoff/2 + rand.N(backoff/2)):
		}
		backoff = min(2*backoff, maxBackoff)
	}
}

// fill reads the whole state and replaces what the cache has. It returns the store's cluster id.
func (c *Cache) fill(ctx context.Context) (uint64, error) {
	ctx, span := telemetry.Tracer(scope).Start(ctx, "cache.fill")
	defer span.End()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	before, err := c.config.Store.Revision(ctx, &storev1.RevisionRequest{})
	if err != nil {
		return 0, fmt.Errorf("read the store's revision: %w", err)
	}
	stream, err := c.config.Store.List(ctx, storev1.ListRequest_builder{Prefix: []byte(registryPrefix)}.Build())
	if err != nil {
		return 0, fmt.Errorf("list the store: %w", err)
	}
	fresh := map[*resource.Resource]*table{}
	revision := int64(0)
	for {
		chunk, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return 0, fmt.Errorf("list the store: %w", err)
		}
		revision = chunk.GetRevision()
		for _, item := range chunk.GetEntries() {
			t, key, e := c.parse(ctx, item.GetKey(), item.GetValue(), item.GetRevision(), item.GetEncryptionKeyId(), item.GetTraceparent())
			if e == nil {
				continue
			}
			if fresh[t.resource] == nil {
				fresh[t.resource] = newTable(t.resource, &c.texts)
			}
			fresh[t.resource].set(key, e)
		}
	}
	if revision == 0 {
		return 0, errors.New("list the store: the answer has no revision")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for r, t := range c.tables {
		t.clear()
		if f := fresh[r]; f != nil {
			t.objects, t.ordered, t.found = f.objects, f.ordered, f.found
		}
	}
	c.log.clear(revision)
	c.revision = 0 // after a restore the store may be behind what the cache had
	c.reach(revision)
	c.epoch++
	for _, t := range c.tables {
		t.wake()
	}
	c.makeOnce.Do(func() { close(c.ready) })
	return before.GetClusterId(), nil
}

// parse makes the entry of a stored value; it is nil for what is not an object. An object that cannot be read is left out, loudly: the others must go on.
func (c *Cache) parse(ctx context.Context, rawKey, value []byte, revision int64, keyID uint32, traceparent string) (*table, object.Key, *Entry) {
	key := string(rawKey)
	r, namespace, name, ok := ParseKey(key)
	if !ok {
		return nil, object.Key{}, nil
	}
	t := c.tables[r]
	objectKey := object.Key{Namespace: namespace, Name: name}
	value, err := c.config.Transform(key, value, keyID)
	if err == nil {
		var e *Entry
		if e, err = newEntry(t, key, value, revision, traceparent); err == nil {
			return t, objectKey, e
		}
	}
	c.metrics.unreadable.Add(ctx, 1)
	c.config.Logger.ErrorContext(ctx, "stored object cannot be read", logkey.Key(key), logkey.Revision(revision), logkey.Err(err))
	return t, objectKey, nil
}

// follow applies the store's changes from the cache's revision on until the watch ends.
func (c *Cache) follow(ctx context.Context, cluster uint64, progressed func()) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	now, err := c.config.Store.Revision(ctx, &storev1.RevisionRequest{})
	if err != nil {
		return fmt.Errorf("read the store's revision: %w", err)
	}
	if now.GetClusterId() != cluster || now.GetRevision() < c.Revision() {
		return fmt.Errorf("%w: it was restored or replaced", errReplaced)
	}
	// The store tells each revision at once, also of commits that changed no object: consistent reads wait for it.
	stream, err := c.config.Store.Watch(ctx, storev1.WatchRequest_builder{Prefix: []byte(registryPrefix), AfterRevision: c.Revision()}.Build())
	if err != nil {
		return fmt.Errorf("watch the store: %w", err)
	}
	var held []*storev1.Change
	for {
		response, err := stream.Recv()
		if err != nil {
			return fmt.Errorf("watch the store: %w", err)
		}
		progressed()
		held = append(held, response.GetChanges()...)
		if response.GetPartial() {
			continue
		}
		c.apply(ctx, held, response.GetRevision())
		held = held[:0]
	}
}

// apply applies whole commits and publishes the revision.
func (c *Cache) apply(ctx context.Context, changes []*storev1.Change, revision int64) {
	now := time.Now()
	parsed := make([]*event, 0, len(changes))
	keys := make([]object.Key, 0, len(changes))
	for _, change := range changes {
		var t *table
		var key object.Key
		var e *Entry
		if change.HasValue() {
			t, key, e = c.parse(ctx, change.GetKey(), change.GetValue(), change.GetRevision(), change.GetEncryptionKeyId(), change.GetTraceparent())
		} else if r, namespace, name, ok := ParseKey(string(change.GetKey())); ok {
			t, key = c.tables[r], object.Key{Namespace: namespace, Name: name}
		}
		if t != nil {
			parsed = append(parsed, &event{table: t, revision: change.GetRevision(), new: e, traceparent: change.GetTraceparent(), at: now})
			keys = append(keys, key)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, e := range parsed {
		// A watch that was resumed may repeat what is known.
		if e.revision <= c.revision {
			continue
		}
		e.old = e.table.set(keys[i], e.new)
		if e.old == nil && e.new == nil {
			continue
		}
		c.append(e)
	}
	c.trim(now)
	c.reach(revision)
	c.metrics.events.Add(ctx, int64(len(parsed)))
}
