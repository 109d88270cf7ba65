package server

import (
	"bytes"
	"fmt"

	"google.golang.org/grpc"

	storev1 "dhow.dev/gen/go/dhow/store/v1"
	"dhow.dev/services/store/internal/engine"
	"dhow.dev/services/store/internal/record"
)

// responseBytes is about where a response of a watch ends. Commits are small, so a reader that is behind gets many in one.
const responseBytes = 1 << 20

// Watch implements storev1.StoreServer.
func (s *Server) Watch(request *storev1.WatchRequest, stream grpc.ServerStreamingServer[storev1.WatchResponse]) error {
	ctx := stream.Context()
	prefix, err := prefixOf(request)
	if err != nil {
		return err
	}
	if request.GetAfterRevision() < 0 {
		return invalid("after_revision: %d is negative", request.GetAfterRevision())
	}
	newest, err := s.revision.get(ctx)
	if err != nil {
		return grpcError(err)
	}
	after := request.GetAfterRevision()
	if after == 0 {
		after = record.Whole(newest.Revision)
	}
	from, index := record.Split(after)
	if from > newest.Revision {
		// Waiting for it would hide that the store lost data or was restored.
		return grpcError(fmt.Errorf("after_revision %d: %w, %d: read its state again", after, engine.ErrFuture, record.Whole(newest.Revision)))
	}
	if index == record.Slots {
		from++
	}
	watcher, err := s.engine.Watch(ctx, from)
	if err != nil {
		return grpcError(err)
	}
	defer watcher.Close()
	s.watchers.Add(ctx, 1)
	defer s.watchers.Add(ctx, -1)

	w := watch{server: s, stream: stream, prefix: prefix, after: after}
	if err := stream.Send(storev1.WatchResponse_builder{Started: true, Revision: after}.Build()); err != nil {
		return err
	}
	for {
		commits, err := watcher.Next(ctx)
		if err != nil {
			return grpcError(err)
		}
		if err := w.send(commits); err != nil {
			return grpcError(err)
		}
	}
}

// watch is one stream.
type watch struct {
	server *Server
	stream grpc.ServerStreamingServer[storev1.WatchResponse]
	prefix []byte
	// after is the revision that the caller has seen.
	after int64

	changes []*storev1.Change
	size    int
}

// send sends commits, at least as progress: callers wait for revisions that changed nothing of theirs.
func (w *watch) send(commits []engine.Commit) error {
	for i, commit := range commits {
		changes, err := record.Changes(commit, func(key []byte) bool { return bytes.HasPrefix(key, w.prefix) })
		if err != nil {
			return err
		}
		for _, c := range changes {
			// Only the commit in the middle of which the caller left off has such changes.
			if c.Revision <= w.after {
				continue
			}
			if w.size > responseBytes {
				if err := w.flush(w.position(), w.within(commit)); err != nil {
					return err
				}
			}
			w.add(c)
		}
		if i == len(commits)-1 || w.size > responseBytes {
			if err := w.flush(record.Whole(commit.Revision), false); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *watch) add(c record.Change) {
	w.changes = append(w.changes, storev1.Change_builder{
		Key: c.Key, Value: c.Value, Revision: c.Revision, PreviousRevision: c.Previous,
		EncryptionKeyId: c.KeyID, Traceparent: c.Trace.String(),
	}.Build())
	w.size += len(c.Key) + len(c.Value) + changeOverhead
}

// changeOverhead is about what a change adds to its key and value on the wire.
const changeOverhead = 32

// position is the revision of the last change that waits to be sent.
func (w *watch) position() int64 { return w.changes[len(w.changes)-1].GetRevision() }

// within says whether the last change that waits belongs to the commit, so that a response which ends with it is partial.
func (w *watch) within(commit engine.Commit) bool {
	r, _ := record.Split(w.position())
	return r == commit.Revision
}

func (w *watch) flush(revision int64, partial bool) error {
	w.server.changes.Add(w.stream.Context(), int64(len(w.changes)))
	err := w.stream.Send(storev1.WatchResponse_builder{Changes: w.changes, Revision: revision, Partial: partial}.Build())
	w.changes, w.size = nil, 0
	return err
}
