package server

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc"

	storev1 "dhow.dev/gen/go/dhow/store/v1"
	"dhow.dev/services/store/internal/engine"
	"dhow.dev/services/store/internal/record"
)

// maxKeys bounds a Get.
const maxKeys = 1000

// readRevision is the engine's revision at which to read what a caller saw at a revision; 0 stays 0. A commit is read whole, whichever
// of its revisions is named.
func readRevision(revision int64) (engine.Revision, error) {
	if revision == 0 {
		return 0, nil
	}
	r, _ := record.Split(revision)
	if r < 1 {
		return 0, invalid("revision: %d is no revision", revision)
	}
	return r, nil
}

// Get implements storev1.StoreServer.
func (s *Server) Get(ctx context.Context, request *storev1.GetRequest) (*storev1.GetResponse, error) {
	keys := request.GetKeys()
	if len(keys) == 0 || len(keys) > maxKeys {
		return nil, invalid("keys: want 1 to %d, got %d", maxKeys, len(keys))
	}
	for i, key := range keys {
		if !record.Public(key) {
			return nil, invalid("keys[%d]: %q does not begin with a slash", i, key)
		}
	}
	at, err := readRevision(request.GetRevision())
	if err != nil {
		return nil, err
	}
	items, at, err := s.engine.Get(ctx, keys, at)
	if err != nil {
		return nil, grpcError(err)
	}
	entries, err := entriesOf(items)
	if err != nil {
		return nil, err
	}
	return storev1.GetResponse_builder{Entries: entries, Revision: record.Whole(at)}.Build(), nil
}

func entriesOf(items []engine.Item) ([]*storev1.Entry, error) {
	entries := make([]*storev1.Entry, len(items))
	for i, item := range items {
		e, err := record.EntryOf(item)
		if err != nil {
			return nil, err
		}
		entries[i] = entry(e)
	}
	return entries, nil
}

// List implements storev1.StoreServer.
func (s *Server) List(request *storev1.ListRequest, stream grpc.ServerStreamingServer[storev1.ListResponse]) error {
	ctx := stream.Context()
	prefix, err := prefixOf(request)
	if err != nil {
		return err
	}
	if request.GetLimit() < 0 {
		return invalid("limit: %d is negative", request.GetLimit())
	}
	at, err := readRevision(request.GetRevision())
	if err != nil {
		return err
	}
	if at == 0 {
		newest, err := s.revision.get(ctx)
		if err != nil {
			return grpcError(err)
		}
		at = newest.Revision
	}
	selected := engine.Range{Start: prefix, End: prefixEnd(prefix), Revision: at, Limit: request.GetLimit()}
	if after := request.GetAfter(); len(after) > 0 {
		if next := append(bytes.Clone(after), 0); bytes.Compare(next, prefix) > 0 {
			selected.Start = next
		}
	}
	// One chunk is held back: only after the last one it is known whether there are more.
	held := &storev1.ListResponse{}
	held.SetRevision(record.Whole(at))
	first := true
	more := false
	if bytes.Compare(selected.Start, selected.End) < 0 {
		more, err = s.engine.List(ctx, selected, func(items []engine.Item) error {
			entries, err := entriesOf(items)
			if err != nil {
				return err
			}
			if !first {
				if err := stream.Send(held); err != nil {
					return err
				}
				held = &storev1.ListResponse{}
				held.SetRevision(record.Whole(at))
			}
			first = false
			held.SetEntries(entries)
			return nil
		})
		if err != nil {
			return grpcError(err)
		}
	}
	held.SetMore(more)
	return stream.Send(held)
}

// prefixOf returns the prefix of a list or a watch; none selects all keys.
func prefixOf(request interface{ GetPrefix() []byte }) ([]byte, error) {
	prefix := request.GetPrefix()
	if len(prefix) == 0 {
		return []byte("/"), nil
	}
	if !record.Public(prefix) {
		return nil, invalid("prefix: %q does not begin with a slash", prefix)
	}
	return prefix, nil
}

// prefixEnd is the first key after all that begin with the prefix. A prefix that begins with a slash has one.
func prefixEnd(prefix []byte) []byte {
	end := bytes.Clone(prefix)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i] < 0xff {
			end[i]++
			return end[:i+1]
		}
	}
	return nil
}

// Revision implements storev1.StoreServer.
func (s *Server) Revision(ctx context.Context, _ *storev1.RevisionRequest) (*storev1.RevisionResponse, error) {
	newest, err := s.revision.get(ctx)
	if err != nil {
		return nil, grpcError(err)
	}
	return storev1.RevisionResponse_builder{
		Revision: record.Whole(newest.Revision), ClusterId: newest.ClusterID, CompactedRevision: record.Whole(newest.Compacted),
	}.Build(), nil
}

// readTimeout bounds a linearizable read that several callers wait for.
const readTimeout = 10 * time.Second

// coalescer answers concurrent calls with one linearizable read. A call never gets the answer of a read that began before it: that one
// may not know what the caller knows.
type coalescer struct {
	read func(context.Context) (engine.Status, error)

	mu      sync.Mutex
	next    *shared // of the calls that wait for the next read
	reading bool
}

type shared struct {
	done   chan struct{}
	status engine.Status
	err    error
}

func (c *coalescer) get(ctx context.Context) (engine.Status, error) {
	c.mu.Lock()
	if c.next == nil {
		c.next = &shared{done: make(chan struct{})}
	}
	mine := c.next
	if !c.reading {
		c.reading = true
		go c.run()
	}
	c.mu.Unlock()
	select {
	case <-mine.done:
		return mine.status, mine.err
	case <-ctx.Done():
		return engine.Status{}, fmt.Errorf("read the revision: %w", ctx.Err())
	}
}

// run reads until nobody waits.
func (c *coalescer) run() {
	for {
		c.mu.Lock()
		current := c.next
		c.next = nil
		if current == nil {
			c.reading = false
			c.mu.Unlock()
			return
		}
		c.mu.Unlock()
		ctx, cancel := context.WithTimeout(context.Background(), readTimeout)
		current.status, current.err = c.read(ctx)
		cancel()
		close(current.done)
	}
}
