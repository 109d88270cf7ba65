package replicaset

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"

	"google.golang.org/protobuf/proto"
	corek8s "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/commit"
	"dhow.dev/pkg/event"
	"dhow.dev/pkg/object"
	"dhow.dev/services/controller-manager/internal/ownership"
	"dhow.dev/services/controller-manager/internal/reconcile"
)

const (
	// burst bounds what one turn creates or deletes, as in Kubernetes.
	burst = 500
	// perCommit and commitBytes bound one commit: an etcd request is at most 1.5 MiB, and claims and headers need room in it.
	perCommit   = 100
	commitBytes = 512 << 10
	// parallel bounds the single calls that are under way at once.
	parallel = 32
)

// podOf returns a new pod of the template, controlled by rs.
func podOf(rs Set) *corev1.Pod {
	template := rs.GetSpec().GetTemplate()
	m := &metav1.ObjectMeta{}
	m.SetNamespace(rs.GetMetadata().GetNamespace())
	m.SetGenerateName(rs.GetMetadata().GetName() + "-")
	m.SetLabels(maps.Clone(template.GetMetadata().GetLabels()))
	m.SetAnnotations(maps.Clone(template.GetMetadata().GetAnnotations()))
	m.SetFinalizers(slices.Clone(template.GetMetadata().GetFinalizers()))
	m.SetOwnerReferences([]*metav1.OwnerReference{ownership.Reference(rs.Owner)})
	pod := &corev1.Pod{}
	pod.SetMetadata(m)
	if template.HasSpec() {
		pod.SetSpec(proto.Clone(template.GetSpec()).(*corev1.PodSpec))
	}
	return pod
}

// create makes n pods and returns those that were made. All in as few commits as sensible; when a commit is refused, one by one in batches that
// double from 1 (so that a quota or an admission rule that refuses all of them is asked a few times, not n times).
func (c *Controller) create(ctx context.Context, turn *reconcile.Turn[object.Key], rs Set, n int) ([]*corev1.Pod, error) {
	pod := podOf(rs)
	chunk := max(1, min(perCommit, commitBytes/(proto.Size(pod)+1)))
	var created []*corev1.Pod
	for len(created) < n && chunk > 1 {
		size := min(chunk, n-len(created))
		if size == 1 {
			break
		}
		made, err := c.createTogether(ctx, turn, pod, size)
		if err != nil {
			if ctx.Err() != nil || !refused(err) {
				return created, c.createFailed(rs, err)
			}
			break
		}
		created = append(created, made...)
		for _, p := range made {
			c.events.Report(rs.Owner, event.Normal, "SuccessfulCreate", "Created pod: %s", p.GetMetadata().GetName())
		}
	}
	var mu sync.Mutex
	_, err := slowStart(n-len(created), func() error {
		made, err := c.pods.Create(ctx, pod, nil)
		if err != nil {
			return c.createFailed(rs, err)
		}
		turn.Wrote(made)
		c.events.Report(rs.Owner, event.Normal, "SuccessfulCreate", "Created pod: %s", made.GetMetadata().GetName())
		mu.Lock()
		defer mu.Unlock()
		created = append(created, made)
		return nil
	})
	return created, err
}

// refused says that the server judged the request, so that asking for less may succeed; other failures (it is away, it is busy) would meet single
// calls too.
func refused(err error) bool {
	return apierrors.IsInvalid(err) || apierrors.IsBadRequest(err) || apierrors.IsForbidden(err) || apierrors.IsAlreadyExists(err) ||
		apierrors.IsConflict(err) || apierrors.IsRequestEntityTooLargeError(err)
}

// namespaceTerminating says that nothing can be made because all of the namespace is about to go: no failure, and nothing to repeat.
func namespaceTerminating(err error) bool {
	return apierrors.HasStatusCause(err, corek8s.NamespaceTerminatingCause)
}

// createFailed reports that a pod could not be made.
func (c *Controller) createFailed(rs Set, err error) error {
	if !namespaceTerminating(err) {
		c.events.Report(rs.Owner, event.Warning, "FailedCreate", "Error creating: %v", err)
	}
	return err
}

// createTogether makes n pods in one commit, or none.
func (c *Controller) createTogether(ctx context.Context, turn *reconcile.Turn[object.Key], pod *corev1.Pod, n int) ([]*corev1.Pod, error) {
	var batch commit.Batch
	for range n {
		batch.Create(pod)
	}
	revision, objects, err := batch.Commit(ctx, c.conn)
	if err != nil {
		return nil, err
	}
	turn.WroteAt(revision)
	pods := make([]*corev1.Pod, 0, n)
	for _, encoded := range objects {
		p := &corev1.Pod{}
		if err := proto.Unmarshal(encoded, p); err != nil {
			return nil, fmt.Errorf("decode a pod that was just made: %w", err)
		}
		pods = append(pods, p)
	}
	return pods, nil
}

// delete deletes pods. One that is gone already is no failure.
func (c *Controller) delete(ctx context.Context, turn *reconcile.Turn[object.Key], rs Set, pods []*corev1.Pod) error {
	next := 0
	var mu sync.Mutex
	return together(len(pods), func() error {
		mu.Lock()
		p := pods[next].GetMetadata()
		next++
		mu.Unlock()
		gone, err := c.pods.Delete(ctx, p.GetNamespace(), p.GetName(), metav1.DeletionOptions_builder{Uid: p.GetUid()}.Build())
		switch {
		case apierrors.IsNotFound(err), apierrors.IsConflict(err):
			return nil // gone, or another of its name
		case err != nil:
			c.events.Report(rs.Owner, event.Warning, "FailedDelete", "Error deleting: %v", err)
			return fmt.Errorf("delete pod %s/%s: %w", p.GetNamespace(), p.GetName(), err)
		}
		turn.Wrote(gone)
		c.events.Report(rs.Owner, event.Normal, "SuccessfulDelete", "Deleted pod: %s", p.GetName())
		return nil
	})
}

// slowStart calls f up to n times in batches of 1, 2, 4, …; after a batch with a failure it stops. It returns how many calls succeeded.
func slowStart(n int, f func() error) (succeeded int, err error) {
	for size := 1; n > 0; size *= 2 {
		batch := min(size, n)
		failed := 0
		var mu sync.Mutex
		err := together(batch, func() error {
			err := f()
			if err != nil {
				mu.Lock()
				failed++
				mu.Unlock()
			}
			return err
		})
		succeeded += batch - failed
		if err != nil {
			return succeeded, err
		}
		n -= batch
	}
	return succeeded, nil
}

// together calls f n times, several at once, and returns the first failure: those of equal pods are equal.
func together(n int, f func() error) error {
	errs := make([]error, n)
	slots := make(chan struct{}, parallel)
	var group sync.WaitGroup
	for i := range n {
		slots <- struct{}{}
		group.Go(func() {
			defer func() { <-slots }()
			errs[i] = f()
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
