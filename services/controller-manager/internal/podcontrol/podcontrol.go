// Package podcontrol makes and deletes the pods of a controller's object: several at once, but carefully, and with Events that tell of it.
package podcontrol

import (
	"context"
	"fmt"
	"sync"

	"google.golang.org/grpc"
	corek8s "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/event"
	"dhow.dev/pkg/object"
)

// parallel bounds the calls that are under way at once.
const parallel = 32

// Turn is told what was written (reconcile.Turn).
type Turn interface{ Wrote(o object.Object) }

// Words are the texts of Events; Kubernetes' controllers differ in them.
type Words struct {
	Created      func(owner object.Object, pod string) string
	CreateFailed func(owner object.Object, pod string, err error) string
	Deleted      func(owner object.Object, pod string) string
	DeleteFailed func(owner object.Object, pod string, err error) string
}

// Plain are the words of most controllers.
func Plain() Words {
	return Words{
		Created:      func(_ object.Object, pod string) string { return "Created pod: " + pod },
		CreateFailed: func(_ object.Object, _ string, err error) string { return fmt.Sprintf("Error creating: %v", err) },
		Deleted:      func(_ object.Object, pod string) string { return "Deleted pod: " + pod },
		DeleteFailed: func(_ object.Object, _ string, err error) string { return fmt.Sprintf("Error deleting: %v", err) },
	}
}

// Control writes pods.
type Control struct {
	pods   *client.Client[*corev1.Pod]
	events event.Source
	words  Words
}

// New returns a Control that reports as a source of Events.
func New(conn grpc.ClientConnInterface, events event.Source, words Words) *Control {
	return &Control{pods: client.For[*corev1.Pod](conn), events: events, words: words}
}

// Terminating says that nothing can be made because all of the namespace is about to go: no failure, and nothing to repeat.
func Terminating(err error) bool {
	return apierrors.HasStatusCause(err, corek8s.NamespaceTerminatingCause)
}

// Create makes pods in batches of 1, 2, 4, … and stops after a batch with a failure, so that a quota or an admission rule that refuses all of them is
// asked a few times. It returns those that were made.
func (c *Control) Create(ctx context.Context, turn Turn, owner object.Object, pods []*corev1.Pod) ([]*corev1.Pod, error) {
	var mu sync.Mutex
	var created []*corev1.Pod
	for size := 1; len(pods) > 0; size *= 2 {
		batch := pods[:min(size, len(pods))]
		pods = pods[len(batch):]
		err := together(batch, func(p *corev1.Pod) error {
			made, err := c.pods.Create(ctx, p, nil)
			if err != nil {
				if !Terminating(err) {
					c.events.Report(owner, event.Warning, "FailedCreate", "%s", c.words.CreateFailed(owner, p.GetMetadata().GetName(), err))
				}
				return fmt.Errorf("create pod %s%s: %w", p.GetMetadata().GetGenerateName(), p.GetMetadata().GetName(), err)
			}
			turn.Wrote(made)
			c.events.Report(owner, event.Normal, "SuccessfulCreate", "%s", c.words.Created(owner, made.GetMetadata().GetName()))
			mu.Lock()
			defer mu.Unlock()
			created = append(created, made)
			return nil
		})
		if err != nil {
			return created, err
		}
	}
	return created, nil
}

// Delete deletes pods. One that is gone already is no failure.
func (c *Control) Delete(ctx context.Context, turn Turn, owner object.Object, pods []*corev1.Pod) error {
	return together(pods, func(p *corev1.Pod) error {
		m := p.GetMetadata()
		gone, err := c.pods.Delete(ctx, m.GetNamespace(), m.GetName(), metav1.DeletionOptions_builder{Uid: m.GetUid()}.Build())
		switch {
		case apierrors.IsNotFound(err), apierrors.IsConflict(err):
			return nil // gone, or another of its name
		case err != nil:
			c.events.Report(owner, event.Warning, "FailedDelete", "%s", c.words.DeleteFailed(owner, m.GetName(), err))
			return fmt.Errorf("delete pod %s: %w", object.KeyOf(p), err)
		}
		turn.Wrote(gone)
		c.events.Report(owner, event.Normal, "SuccessfulDelete", "%s", c.words.Deleted(owner, m.GetName()))
		return nil
	})
}

// Update writes a pod.
func (c *Control) Update(ctx context.Context, turn Turn, p *corev1.Pod) (*corev1.Pod, error) {
	p, err := c.pods.Update(ctx, p, nil)
	if err == nil {
		turn.Wrote(p)
	}
	return p, err
}

// together calls f for all pods, several at once, and returns the first failure.
func together(pods []*corev1.Pod, f func(*corev1.Pod) error) error {
	errs := make([]error, len(pods))
	slots := make(chan struct{}, parallel)
	var group sync.WaitGroup
	for i, p := range pods {
		slots <- struct{}{}
		group.Go(func() {
			defer func() { <-slots }()
			errs[i] = f(p)
		})
	}
	group.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
