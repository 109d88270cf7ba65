// Package metadata watches all objects of all kinds and keeps nothing of them but who they are and who owns them.
//
// It is a stream of its own beside the informer's: only the collector needs every kind, and it needs so little of each object that whole objects (every
// Secret, every ConfigMap) must not be held for it. What it keeps is 1 to 2 % of what an informer would.
package metadata

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	clusterv1 "dhow.dev/gen/go/dhow/cluster/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/apistatus"
	"dhow.dev/pkg/informer"
	"dhow.dev/pkg/object"
	"dhow.dev/pkg/resource"
	"dhow.dev/pkg/telemetry/logkey"
)

const (
	minBackoff = 50 * time.Millisecond
	maxBackoff = 5 * time.Second
)

// Owner is one owner of an object.
type Owner struct {
	// APIVersion is group/version, or the version alone for core.
	APIVersion, Kind, Name, UID string
	// Blocks says that an owner that is deleted in the foreground waits for the object.
	Blocks bool
}

// Object is who an object is and who owns it. Values are shared and must not be changed.
type Object struct {
	Resource   *resource.Resource
	Key        object.Key
	UID        string
	Owners     []Owner
	Finalizers []string
	Deleted    bool
	Revision   int64
}

// Handler is told of each change: the object as it is now, or as it was last when gone. It is called in revision order, from one goroutine, and
// must not block. The cause is nil for what vanished while the watch was away.
type Handler func(o *Object, gone bool, cause *informer.Trace)

// Watcher is the watch. It is a reconcile.Source.
type Watcher struct {
	client    clusterv1.ObjectsClient
	logger    *slog.Logger
	resources []*resource.Resource
	handlers  []Handler

	// known and unseen belong to the watch's goroutine. Unseen are, during a snapshot, those that it has not mentioned so far.
	known, unseen map[id]*Object

	mu       sync.Mutex
	revision int64
	synced   bool
	changed  chan struct{}
}

type id struct {
	resource *resource.Resource
	key      object.Key
}

// Kinds returns the kinds that can own or be owned. Events are of neither sort, and too many.
func Kinds() []*resource.Resource {
	return slices.DeleteFunc(resource.Stored(), func(r *resource.Resource) bool { return r.Kind == "Event" })
}

// New returns a watcher of all kinds that can own or be owned.
func New(conn grpc.ClientConnInterface, logger *slog.Logger) *Watcher {
	return &Watcher{
		client: clusterv1.NewObjectsClient(conn), logger: logger, resources: Kinds(), known: map[id]*Object{}, changed: make(chan struct{}),
	}
}

// OnChange registers a handler, before Run.
func (w *Watcher) OnChange(h Handler) { w.handlers = append(w.handlers, h) }

// Run watches until ctx ends. It returns an error only when the server refuses the watch for good.
func (w *Watcher) Run(ctx context.Context) error {
	backoff := minBackoff
	for {
		progressed, err := w.watch(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case apierrors.IsForbidden(err) || apierrors.IsInvalid(err) || apierrors.IsBadRequest(err):
			return fmt.Errorf("watch metadata: %w", err)
		case apierrors.IsResourceExpired(err) || apierrors.IsGone(err):
			w.logger.InfoContext(ctx, "metadata watch expired, starting over with a snapshot", logkey.Err(err))
			w.advance(0, false)
		default:
			w.logger.DebugContext(ctx, "metadata watch ended, reconnecting", logkey.Err(err))
		}
		if progressed {
			backoff = minBackoff
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(backoff/2 + rand.N(backoff/2)):
		}
		backoff = min(2*backoff, maxBackoff)
	}
}

// watch runs one stream to its end and says whether anything was received.
func (w *Watcher) watch(ctx context.Context) (progressed bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	request := clusterv1.ObjectsWatchRequest_builder{Conflate: true}.Build()
	for i, r := range w.resources {
		request.SetSelections(append(request.GetSelections(), clusterv1.Selection_builder{Id: uint32(i), Group: r.Group, Resource: r.Plural}.Build()))
	}
	snapshot := true
	if revision := w.Revision(); revision > 0 {
		request.SetAfterRevision(revision)
		snapshot = false
	}
	stream, err := w.client.Watch(ctx, request)
	if err != nil {
		return false, apistatus.FromGRPC(err)
	}
	if snapshot {
		w.unseen = make(map[id]*Object, len(w.known))
		for k, o := range w.known {
			w.unseen[k] = o
		}
	}
	for {
		response, err := stream.Recv()
		if err != nil {
			return progressed, apistatus.FromGRPC(err)
		}
		progressed = true
		for _, change := range response.GetChanges() {
			if err := w.apply(change); err != nil {
				return progressed, err
			}
		}
		switch {
		case snapshot && response.GetMark() == metav1.WatchMark_WATCH_MARK_SYNCED:
			for k, o := range w.unseen {
				delete(w.known, k)
				w.tell(o, true, nil)
			}
			w.unseen = nil
			snapshot = false
			w.advance(response.GetRevision(), true)
		case !snapshot && !response.GetPartial():
			w.advance(response.GetRevision(), true)
		}
	}
}

func (w *Watcher) apply(change *metav1.ObjectChange) error {
	if int(change.GetSelection()) >= len(w.resources) {
		return fmt.Errorf("watch metadata: change for unknown selection %d", change.GetSelection())
	}
	r := w.resources[change.GetSelection()]
	o, err := decode(r, change.GetObject())
	if err != nil {
		return err
	}
	cause := &informer.Trace{Traceparent: change.GetTraceparent(), Revision: change.GetRevision()}
	k := id{r, o.Key}
	delete(w.unseen, k)
	before := w.known[k]
	if change.GetType() == metav1.EventType_EVENT_TYPE_DELETED {
		if before != nil {
			delete(w.known, k)
			w.tell(before, true, cause)
		}
		return nil
	}
	if before != nil {
		if before.UID != o.UID {
			w.tell(before, true, cause)
		} else if o.Revision <= before.Revision {
			return nil // a snapshot repeats what is known
		}
	}
	w.known[k] = o
	w.tell(o, false, cause)
	return nil
}

func (w *Watcher) tell(o *Object, gone bool, cause *informer.Trace) {
	for _, h := range w.handlers {
		h(o, gone, cause)
	}
}

// decode reads an object's metadata, which is field 1 in every kind, and skips the rest.
func decode(r *resource.Resource, encoded []byte) (*Object, error) {
	var partial metav1.PartialObjectMetadata
	if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(encoded, &partial); err != nil {
		return nil, fmt.Errorf("watch metadata: decode a %s: %w", r.Kind, err)
	}
	m := partial.GetMetadata()
	o := &Object{
		Resource: r, Key: object.Key{Namespace: m.GetNamespace(), Name: m.GetName()}, UID: m.GetUid(),
		Finalizers: m.GetFinalizers(), Deleted: m.HasDeletionTimestamp(), Revision: object.Revision(&partial),
	}
	for _, owner := range m.GetOwnerReferences() {
		o.Owners = append(o.Owners, Owner{
			APIVersion: owner.GetApiVersion(), Kind: owner.GetKind(), Name: owner.GetName(), UID: owner.GetUid(), Blocks: owner.GetBlockOwnerDeletion(),
		})
	}
	return o, nil
}

func (w *Watcher) advance(revision int64, synced bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.revision = revision
	w.synced = w.synced || synced
	close(w.changed)
	w.changed = make(chan struct{})
}

// Revision returns the revision that was reached, or 0 before the first snapshot is complete.
func (w *Watcher) Revision() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.revision
}

// WaitForSync waits until the first snapshot is complete.
func (w *Watcher) WaitForSync(ctx context.Context) error {
	return w.wait(ctx, func() bool { return w.synced })
}

// WaitForRevision waits until everything up to a revision was told.
func (w *Watcher) WaitForRevision(ctx context.Context, revision int64) error {
	return w.wait(ctx, func() bool { return w.revision >= revision })
}

func (w *Watcher) wait(ctx context.Context, done func() bool) error {
	for {
		w.mu.Lock()
		ok, changed := done(), w.changed
		w.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}
