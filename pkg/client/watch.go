package client

import (
	"context"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/apistatus"
	"dhow.dev/pkg/object"
)

// Change is one change of an object.
type Change[T object.Object] struct {
	Type     metav1.EventType
	Object   T
	Revision int64
}

// Batch is one response of a watch (proto/dhow/meta/v1/watch.proto).
type Batch[T object.Object] struct {
	Changes  []Change[T]
	Revision int64
	// Synced says that the state is complete with this batch.
	Synced bool
}

// Watch is a running watch. It ends with its context.
type Watch[T object.Object] struct {
	client *Client[T]
	stream grpc.ClientStream
}

// Watch begins a watch of the kind.
func (c *Client[T]) Watch(ctx context.Context, request *metav1.WatchRequest, opts ...grpc.CallOption) (*Watch[T], error) {
	stream, err := c.stream(ctx, "Watch", request, opts)
	if err != nil {
		return nil, err
	}
	return &Watch[T]{client: c, stream: stream}, nil
}

// Next waits for the next batch.
func (w *Watch[T]) Next() (Batch[T], error) {
	// A kind's WatchResponse is this message on the wire.
	var response metav1.WatchResponse
	if err := w.stream.RecvMsg(&response); err != nil {
		return Batch[T]{}, apistatus.FromGRPC(err)
	}
	batch := Batch[T]{Revision: response.GetRevision(), Synced: response.GetMark() == metav1.WatchMark_WATCH_MARK_SYNCED}
	for _, change := range response.GetChanges() {
		o := w.client.resource.New()
		if err := proto.Unmarshal(change.GetObject(), o); err != nil {
			return Batch[T]{}, fmt.Errorf("watch %s: decode the object of revision %d: %w", w.client.resource, change.GetRevision(), err)
		}
		batch.Changes = append(batch.Changes, Change[T]{Type: change.GetType(), Object: o.(T), Revision: change.GetRevision()})
	}
	return batch, nil
}
