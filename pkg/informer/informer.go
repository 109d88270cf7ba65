// Package informer keeps local copies of objects of several kinds, fed by one multiplexed watch: first the state, then every change,
// in one revision order (proto/dhow/meta/v1/watch.proto). It reconnects by itself, and starts over with a snapshot when the server has
// forgotten the revision it had; what vanished meanwhile is then reported as deleted.
//
//	inf := informer.New(conn, logger)
//	pods := informer.Add[*corev1.Pod](inf, informer.Options{FieldSelector: "spec.nodeName=n1"})
//	pods.OnChange(func(old, new *corev1.Pod) { ... })
//	go inf.Run(ctx)
//	inf.WaitForSync(ctx)
//
// Objects are shared by all readers and must not be changed: proto.Clone them.
package informer

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	clusterv1 "dhow.dev/gen/go/dhow/cluster/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/apistatus"
	"dhow.dev/pkg/object"
	"dhow.dev/pkg/resource"
)

// Reconnecting waits between these two, doubling, with jitter: a restarted API server is found soon and not stormed.
const (
	minBackoff = 50 * time.Millisecond
	maxBackoff = 5 * time.Second
)

// Informer is the watch that several stores share.
type Informer struct {
	client clusterv1.ObjectsClient
	logger *slog.Logger
	stores []feed

	mu       sync.Mutex
	revision int64
	synced   bool
	// changed is closed and replaced whenever revision or synced change.
	changed chan struct{}
}

// feed is a Store of some type, as the watch sees it.
type feed interface {
	selection(id uint32) *clusterv1.Selection
	beginSnapshot()
	apply(metav1.EventType, []byte, *Trace) error
	endSnapshot()
}

// Trace tells what caused a change.
type Trace struct {
	// Traceparent is the W3C trace context of the write, or empty.
	Traceparent string
	Revision    int64
}

// New returns an informer without stores.
func New(conn grpc.ClientConnInterface, logger *slog.Logger) *Informer {
	return &Informer{client: clusterv1.NewObjectsClient(conn), logger: logger, changed: make(chan struct{})}
}

// Options select what a store holds and how it can be searched.
type Options[T object.Object] struct {
	// Empty: all namespaces.
	Namespace     string
	LabelSelector string
	FieldSelector string
	// Indexes by name: the values that an object is found under.
	Indexes map[string]func(T) []string
}

// Add adds a store for T. All stores are added before Run.
func Add[T object.Object](inf *Informer, options Options[T]) *Store[T] {
	s := newStore(resource.For[T](), options)
	inf.stores = append(inf.stores, s)
	return s
}

// Run keeps the stores up to date until ctx ends. It returns an error only when the server refuses the watch for good.
func (inf *Informer) Run(ctx context.Context) error {
	backoff := minBackoff
	for {
		progressed, err := inf.watch(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case apierrors.IsForbidden(err) || apierrors.IsInvalid(err) || apierrors.IsBadRequest(err):
			return fmt.Errorf("watch: %w", err)
		case apierrors.IsResourceExpired(err) || apierrors.IsGone(err):
			inf.logger.InfoContext(ctx, "watch expired, starting over with a snapshot", "error", err)
			inf.advance(0, false)
		default:
			inf.logger.DebugContext(ctx, "watch ended, reconnecting", "error", err)
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
func (inf *Informer) watch(ctx context.Context) (progressed bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	request := &clusterv1.ObjectsWatchRequest{}
	request.SetConflate(true)
	selections := make([]*clusterv1.Selection, len(inf.stores))
	for i, s := range inf.stores {
		selections[i] = s.selection(uint32(i))
	}
	request.SetSelections(selections)
	snapshot := true
	if revision := inf.Revision(); revision > 0 {
		request.SetAfterRevision(revision)
		snapshot = false
	}
	stream, err := inf.client.Watch(ctx, request)
	if err != nil {
		return false, apistatus.FromGRPC(err)
	}
	if snapshot {
		for _, s := range inf.stores {
			s.beginSnapshot()
		}
	}
	for {
		response, err := stream.Recv()
		if err != nil {
			return progressed, apistatus.FromGRPC(err)
		}
		progressed = true
		for _, change := range response.GetChanges() {
			if int(change.GetSelection()) >= len(inf.stores) {
				return progressed, fmt.Errorf("watch: change for unknown selection %d", change.GetSelection())
			}
			s := inf.stores[change.GetSelection()]
			if err := s.apply(change.GetType(), change.GetObject(), &Trace{Traceparent: change.GetTraceparent(), Revision: change.GetRevision()}); err != nil {
				return progressed, err
			}
		}
		switch {
		case snapshot && response.GetMark() == metav1.WatchMark_WATCH_MARK_SYNCED:
			for _, s := range inf.stores {
				s.endSnapshot()
			}
			snapshot = false
			inf.advance(response.GetRevision(), true)
		case !snapshot && !response.GetPartial():
			inf.advance(response.GetRevision(), true)
		}
	}
}

func (inf *Informer) advance(revision int64, synced bool) {
	inf.mu.Lock()
	defer inf.mu.Unlock()
	inf.revision = revision
	inf.synced = inf.synced || synced
	close(inf.changed)
	inf.changed = make(chan struct{})
}

// Revision returns the revision that the stores have reached, or 0 before the first snapshot is complete.
func (inf *Informer) Revision() int64 {
	inf.mu.Lock()
	defer inf.mu.Unlock()
	return inf.revision
}

// WaitForSync waits until the first snapshot is complete.
func (inf *Informer) WaitForSync(ctx context.Context) error {
	return inf.wait(ctx, func() bool { return inf.synced })
}

// WaitForRevision waits until the stores have seen everything up to a revision.
func (inf *Informer) WaitForRevision(ctx context.Context, revision int64) error {
	return inf.wait(ctx, func() bool { return inf.revision >= revision })
}

func (inf *Informer) wait(ctx context.Context, done func() bool) error {
	for {
		inf.mu.Lock()
		ok, changed := done(), inf.changed
		inf.mu.Unlock()
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

// decodeAs decodes an object of a kind.
func decodeAs(r *resource.Resource, encoded []byte) (object.Object, error) {
	o := r.New()
	if err := proto.Unmarshal(encoded, o); err != nil {
		return nil, fmt.Errorf("watch: decode a %s: %w", r.Kind, err)
	}
	return o, nil
}
