// Package report brings pods' statuses to the API server: the newest of each pod, never two of one pod at once, again until it is there. A pod
// whose end is confirmed is then deleted for good.
package report

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/telemetry/logkey"
	"dhow.dev/services/node-agent/internal/status"
)

const (
	// writers is how many statuses are on their way at once.
	writers = 8
	// callTimeout bounds a write; it is tried again.
	callTimeout = 10 * time.Second
	// hold is how long the status of a pod waits of which nothing runs yet: containers start soon after their sandbox, and one write says both.
	hold       = 250 * time.Millisecond
	minBackoff = 100 * time.Millisecond
	maxBackoff = 10 * time.Second
)

// Reporter writes statuses.
type Reporter struct {
	client *client.Client[*corev1.Pod]
	logger *slog.Logger

	mu      sync.Mutex
	entries map[string]*entry
	ready   []string // UIDs to write, each once
	wake    chan struct{}
	// wrote is closed and replaced when a writer has come back.
	wrote chan struct{}
}

// entry is what there is to say of one pod.
type entry struct {
	pod    *corev1.Pod
	status *corev1.PodStatus
	span   trace.SpanContext
	// finish says that the pod is deleted for good once its status is written.
	finish bool
	// dirty says that something is to be written; queued that the UID is in ready; busy that a writer has it; held that it will be queued.
	dirty, queued, busy, held bool
	backoff                   time.Duration
}

// New returns a reporter.
func New(conn grpc.ClientConnInterface, logger *slog.Logger) *Reporter {
	return &Reporter{client: client.For[*corev1.Pod](conn), logger: logger, entries: map[string]*entry{}, wake: make(chan struct{}, 1), wrote: make(chan struct{})}
}

// Publish takes a pod's newest status. ctx carries the trace that led to it.
func (r *Reporter) Publish(ctx context.Context, pod *corev1.Pod, status *corev1.PodStatus) {
	r.put(ctx, pod, status, false)
}

// Finish takes a pod's last status; the pod is deleted for good after it.
func (r *Reporter) Finish(ctx context.Context, pod *corev1.Pod, status *corev1.PodStatus) {
	r.put(ctx, pod, status, true)
}

func (r *Reporter) put(ctx context.Context, pod *corev1.Pod, status *corev1.PodStatus, finish bool) {
	uid := pod.GetMetadata().GetUid()
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.entries[uid]
	if e == nil {
		e = &entry{}
		r.entries[uid] = e
	}
	e.pod, e.status, e.span, e.dirty, e.backoff = pod, status, trace.SpanContextFromContext(ctx), true, 0
	e.finish = e.finish || finish
	if e.finish || !onItsWay(status) {
		r.queue(uid, e)
		return
	}
	if e.held {
		return
	}
	e.held = true
	time.AfterFunc(hold, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		e.held = false
		if r.entries[uid] == e {
			r.queue(uid, e)
		}
	})
}

// onItsWay says that no container of a pod has run yet, and none has met a problem.
func onItsWay(s *corev1.PodStatus) bool {
	return s.GetPhase() == "Pending" && !slices.ContainsFunc(slices.Concat(s.GetInitContainerStatuses(), s.GetContainerStatuses(), s.GetEphemeralContainerStatuses()), func(c *corev1.ContainerStatus) bool {
		reason := c.GetState().GetWaiting().GetReason()
		return c.GetLastState().HasTerminated() || reason != status.ReasonContainerCreating && reason != status.ReasonPodInitializing
	})
}

// queue lets a writer come. r.mu is held.
func (r *Reporter) queue(uid string, e *entry) {
	if e.queued || e.busy || !e.dirty {
		return
	}
	e.queued = true
	r.ready = append(r.ready, uid)
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Forget drops what is not written yet.
func (r *Reporter) Forget(uid string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e := r.entries[uid]; e != nil {
		e.dirty = false
		delete(r.entries, uid)
	}
}

// Flush waits until all that was published is written, or ctx ends.
func (r *Reporter) Flush(ctx context.Context) error {
	for {
		r.mu.Lock()
		left, wrote := 0, r.wrote
		for _, e := range r.entries {
			if e.dirty || e.busy {
				left++
			}
		}
		r.mu.Unlock()
		if left == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d statuses of pods are not written: %w", left, ctx.Err())
		case <-wrote:
		}
	}
}

// Run writes until ctx ends.
func (r *Reporter) Run(ctx context.Context) error {
	var group sync.WaitGroup
	for range writers {
		group.Go(func() { r.write(ctx) })
	}
	group.Wait()
	return nil
}

// next waits for an entry to write.
func (r *Reporter) next(ctx context.Context) (string, *entry, entry) {
	for {
		r.mu.Lock()
		for len(r.ready) > 0 {
			uid := r.ready[0]
			r.ready = r.ready[1:]
			e := r.entries[uid]
			if e == nil || !e.dirty {
				continue
			}
			e.queued, e.dirty, e.busy = false, false, true
			if len(r.ready) > 0 {
				select { // the next writer may come too
				case r.wake <- struct{}{}:
				default:
				}
			}
			now := *e
			r.mu.Unlock()
			return uid, e, now
		}
		r.mu.Unlock()
		select {
		case <-ctx.Done():
			return "", nil, entry{}
		case <-r.wake:
		}
	}
}

func (r *Reporter) write(ctx context.Context) {
	for {
		uid, e, now := r.next(ctx)
		if e == nil {
			return
		}
		err := r.send(ctx, now)
		r.mu.Lock()
		e.busy = false
		switch {
		case err == nil:
			if !e.dirty && now.finish {
				delete(r.entries, uid)
			}
		case ctx.Err() == nil:
			e.dirty = true
			e.backoff = min(max(2*e.backoff, minBackoff), maxBackoff)
			wait := e.backoff/2 + rand.N(e.backoff/2)
			md := now.pod.GetMetadata()
			r.logger.DebugContext(ctx, "pod status not written, trying again", logkey.Pod(md.GetNamespace(), md.GetName()), logkey.Err(err), logkey.Delay(wait))
			e.queued = true // nobody else queues it before its time
			time.AfterFunc(wait, func() {
				r.mu.Lock()
				defer r.mu.Unlock()
				e.queued = false
				if r.entries[uid] == e {
					r.queue(uid, e)
				}
			})
		}
		if err == nil {
			r.queue(uid, e)
		}
		close(r.wrote)
		r.wrote = make(chan struct{})
		r.mu.Unlock()
	}
}

// send writes one status. What the API server will never take counts as done.
func (r *Reporter) send(ctx context.Context, e entry) error {
	ctx, cancel := context.WithTimeout(trace.ContextWithSpanContext(ctx, e.span), callTimeout)
	defer cancel()
	md := e.pod.GetMetadata()
	// No resourceVersion: the node's word on status stands whatever else changed. The UID keeps it from a namesake.
	o := corev1.Pod_builder{Status: e.status, Metadata: metav1.ObjectMeta_builder{
		Namespace: proto.String(md.GetNamespace()), Name: proto.String(md.GetName()), Uid: proto.String(md.GetUid())}.Build()}.Build()
	_, err := r.client.UpdateStatus(ctx, o, grpc.WaitForReady(true))
	switch {
	case err == nil:
	case apierrors.IsNotFound(err):
		return nil
	case apierrors.IsConflict(err), apierrors.IsForbidden(err), apierrors.IsInvalid(err):
		r.logger.WarnContext(ctx, "pod status refused", logkey.Pod(md.GetNamespace(), md.GetName()), logkey.UID(md.GetUid()), logkey.Err(err))
		if !e.finish {
			return nil
		}
	default:
		return err
	}
	if !e.finish {
		return nil
	}
	_, err = r.client.Delete(ctx, md.GetNamespace(), md.GetName(), metav1.DeletionOptions_builder{
		GracePeriodSeconds: proto.Int64(0), Uid: md.GetUid()}.Build(), grpc.WaitForReady(true))
	switch {
	case apierrors.IsNotFound(err), apierrors.IsConflict(err):
		return nil // gone, or another pod of the name
	}
	return err
}
