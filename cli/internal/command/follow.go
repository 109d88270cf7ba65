package command

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/object"
	"dhow.dev/pkg/resource"
)

var errTimedOut = errors.New("timed out")

// withTimeout ends the context after a while; 0: never. The API server is not told when: it would end the call a little earlier, in its own words.
func withTimeout(ctx context.Context, timeout time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	if timeout <= 0 {
		return ctx, func() { cancel(nil) }
	}
	timer := time.AfterFunc(timeout, func() { cancel(errTimedOut) })
	return ctx, func() {
		timer.Stop()
		cancel(nil)
	}
}

// batches passes the batches of a watch on until each says that it is done. A watch that breaks is taken up where it was, with the next API server if
// this one is gone; when that is too long ago, restart is called and the state comes again.
func (s *session) batches(ctx context.Context, r *resource.Resource, request *metav1.WatchRequest, restart func(), each func(client.Batch[object.Object]) (bool, error)) error {
	synced := false
	for {
		watch, err := client.Dynamic(s.conn, r).Watch(ctx, request)
		if err != nil {
			return err
		}
		for received := false; ; received = true {
			batch, err := watch.Next()
			if err != nil {
				// A server that ends every watch at once is not asked for ever.
				if ctx.Err() != nil || !received || !retriable(err) {
					return err
				}
				if !synced || status.Code(err) == codes.OutOfRange {
					request.ClearAfterRevision()
					synced = false
					restart()
				}
				break
			}
			if done, err := each(batch); done || err != nil {
				return err
			}
			synced = synced || batch.Synced
			if synced && batch.Revision > 0 {
				request.SetAfterRevision(batch.Revision)
			}
		}
	}
}

// retriable says that a watch which ended so can be taken up again.
func retriable(err error) bool {
	switch status.Code(err) {
	case codes.Unavailable, codes.OutOfRange, codes.Aborted:
		return true
	}
	return false
}

// follow watches one object, nil when it does not exist, until done says so.
func (s *session) follow(ctx context.Context, l located, done func(object.Object) (bool, error)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var now object.Object
	synced := false
	restart := func() { now, synced = nil, false }
	request := metav1.WatchRequest_builder{Namespace: l.namespace, FieldSelector: "metadata.name=" + l.name}.Build()
	err := s.batches(ctx, l.resource, request, restart, func(batch client.Batch[object.Object]) (bool, error) {
		for _, change := range batch.Changes {
			now = change.Object
			if change.Type == metav1.EventType_EVENT_TYPE_DELETED {
				now = nil
			}
			// Every state counts: what is deleted and made anew within one batch was deleted.
			if synced {
				if ok, err := done(now); ok || err != nil {
					return ok, err
				}
			}
		}
		if batch.Synced && !synced {
			synced = true
			return done(now)
		}
		return false, nil
	})
	if errors.Is(context.Cause(ctx), errTimedOut) {
		return fmt.Errorf("timed out waiting for the condition on %s/%s", l.resource, l.name)
	}
	return err
}
