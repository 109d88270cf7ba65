package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"dhow.dev/pkg/apistatus"
	"dhow.dev/pkg/resource"
	"dhow.dev/services/apiserver/internal/admission"
	"dhow.dev/services/apiserver/internal/codec"
)

// collectionParallelism is how many objects of a collection are deleted at once; the store puts such commits together.
const collectionParallelism = 64

// immortal namespaces hold the cluster together.
var immortal = []string{metav1.NamespaceDefault, metav1.NamespaceSystem, metav1.NamespacePublic}

func (r *Registry) deleteStep(op Operation) step {
	res, options := op.Resource, op.Delete
	// last is the object as an attempt that was not answered would have removed it.
	var last []byte
	return func(ctx context.Context, tx *txn) (*outcome, error) {
		if isNamespace(res) && slices.Contains(immortal, op.Name) {
			return nil, apierrors.NewForbidden(res.GroupResource(), op.Name, errors.New("this namespace may not be deleted"))
		}
		if g := options.GracePeriodSeconds; g != nil && *g < 0 {
			// Kubernetes reads a negative period as the shortest that still is one.
			one := int64(1)
			options.GracePeriodSeconds = &one
		}
		entry, old, err := r.current(ctx, tx, res, op.Namespace, op.Name)
		if err != nil {
			if tx.uncertain() && apierrors.IsNotFound(err) {
				// The attempt that was not answered has done it.
				return &outcome{result: Result{Object: last, Deleted: true}}, nil
			}
			return nil, err
		}
		if o := tx.done(Key(res, op.Namespace, op.Name), entry, nil); o != nil {
			return o, nil
		}
		old.SetResourceVersion(version(entry.Revision))
		if err := preconditions(res, old, options); err != nil {
			return nil, err
		}
		q := tx.request(admission.Delete, res, "", nil, old)
		if err := r.admitted(ctx, q); err != nil {
			return nil, err
		}
		o, err := r.delete(ctx, tx, res, entry, old, options)
		if err == nil && o.result.Deleted {
			last = o.result.Object
		}
		return o, err
	}
}

func preconditions(res *resource.Resource, old codec.Object, options DeleteOptions) error {
	if options.UID != "" && options.UID != string(old.GetUID()) {
		return lasting(apierrors.NewConflict(res.GroupResource(), old.GetName(),
			fmt.Errorf("the UID in the precondition (%s) does not match the UID in record (%s). The object might have been deleted and then recreated", options.UID, old.GetUID())))
	}
	if options.ResourceVersion != "" && options.ResourceVersion != old.GetResourceVersion() {
		return lasting(apierrors.NewConflict(res.GroupResource(), old.GetName(),
			fmt.Errorf("the ResourceVersion in the precondition (%s) does not match the ResourceVersion in record (%s). The object might have been modified", options.ResourceVersion, old.GetResourceVersion())))
	}
	return nil
}

// lasting marks a conflict that reading again and retrying does not solve: on gRPC it is FAILED_PRECONDITION, not ABORTED.
func lasting(err *apierrors.StatusError) error {
	return apistatus.WithCode(codes.FailedPrecondition, err)
}

// delete plans the end of an object, or the beginning of its end.
func (r *Registry) delete(ctx context.Context, tx *txn, res *resource.Resource, entry Entry, old codec.Object, options DeleteOptions) (*outcome, error) {
	obj := old.DeepCopyObject().(codec.Object)
	graceful, pending := r.grace(obj, options)
	if !pending {
		obj.SetFinalizers(propagate(obj.GetFinalizers(), options.Propagation))
		if !graceful && isHeld(obj) {
			r.markDeleting(obj)
		}
	}
	if ns, ok := obj.(*corev1.Namespace); ok {
		ns.Status.Phase = corev1.NamespaceTerminating
		// From this commit on nothing can be created in it.
		if old.GetDeletionTimestamp() == nil {
			tx.Release(namespaceClaim(ns.Name))
		}
	}
	if !isHeld(obj) && (!graceful || *obj.GetDeletionGracePeriodSeconds() == 0) && !pending {
		return r.remove(ctx, tx, res, obj, old, nil)
	}
	data, err := r.codec.EncodeProto(obj)
	if err != nil {
		return nil, err
	}
	key := Key(res, old.GetNamespace(), old.GetName())
	o := &outcome{key: key, result: Result{Object: data, Revision: entry.Revision}}
	if bytes.Equal(data, entry.Object) {
		return o, nil
	}
	return o, tx.put(res, key, data)
}

// grace starts or shortens the grace period of an object whose kind has one (pods). Graceful says that the object's grace period is set for this
// deletion, pending that it runs already and goes on as it is.
func (r *Registry) grace(obj codec.Object, options DeleteOptions) (graceful, pending bool) {
	pod, isPod := obj.(*corev1.Pod)
	if obj.GetDeletionTimestamp() != nil {
		running := obj.GetDeletionGracePeriodSeconds()
		if running == nil {
			return false, false
		}
		wanted := options.GracePeriodSeconds
		if wanted == nil || *wanted >= *running {
			return false, true
		}
		// Only shorter: the end moves to the front by the difference.
		end := metav1.NewTime(obj.GetDeletionTimestamp().Add(-time.Duration(*running-*wanted) * time.Second))
		obj.SetDeletionTimestamp(&end)
		obj.SetDeletionGracePeriodSeconds(wanted)
		return true, false
	}
	if !isPod {
		return false, false
	}
	period := int64(0)
	switch {
	case pod.Spec.NodeName == "", pod.Status.Phase == corev1.PodFailed, pod.Status.Phase == corev1.PodSucceeded:
		// Nothing runs that would need time to end.
	case options.GracePeriodSeconds != nil:
		period = *options.GracePeriodSeconds
	case pod.Spec.TerminationGracePeriodSeconds != nil:
		period = max(*pod.Spec.TerminationGracePeriodSeconds, 1)
		if *pod.Spec.TerminationGracePeriodSeconds == 0 {
			period = 0
		}
	}
	end := metav1.NewTime(r.now().Add(time.Duration(period) * time.Second)).Rfc3339Copy()
	pod.SetDeletionTimestamp(&end)
	pod.SetDeletionGracePeriodSeconds(&period)
	bumpForDeletion(pod)
	return true, false
}

// markDeleting sets the deletion time of an object that finalizers keep.
func (r *Registry) markDeleting(obj codec.Object) {
	now := metav1.NewTime(r.now()).Rfc3339Copy()
	if t := obj.GetDeletionTimestamp(); t == nil || t.After(now.Time) {
		if t == nil {
			bumpForDeletion(obj)
		}
		obj.SetDeletionTimestamp(&now)
	}
	// Namespaces have no grace period: their controller ends them.
	if _, ok := obj.(*corev1.Namespace); !ok {
		zero := int64(0)
		obj.SetDeletionGracePeriodSeconds(&zero)
	}
}

// bumpForDeletion counts the wish to delete as a change of what the user wants.
func bumpForDeletion(obj codec.Object) {
	if g := obj.GetGeneration(); g > 0 {
		obj.SetGeneration(g + 1)
	}
}

// propagate turns a propagation policy into finalizers, which the garbage collector acts on.
func propagate(finalizers []string, policy Propagation) []string {
	if policy == PropagationDefault {
		return finalizers
	}
	kept := slices.DeleteFunc(slices.Clone(finalizers), func(f string) bool {
		return f == metav1.FinalizerOrphanDependents || f == metav1.FinalizerDeleteDependents
	})
	switch policy {
	case PropagationOrphan:
		kept = append(kept, metav1.FinalizerOrphanDependents)
	case PropagationForeground:
		kept = append(kept, metav1.FinalizerDeleteDependents)
	}
	return kept
}

// isHeld says whether finalizers keep the object. Namespaces have their own, in spec.
func isHeld(obj codec.Object) bool {
	if ns, ok := obj.(*corev1.Namespace); ok && len(ns.Spec.Finalizers) > 0 {
		return true
	}
	return len(obj.GetFinalizers()) > 0
}

// isOver says whether an object that is being deleted has nothing left to wait for.
func isOver(obj codec.Object) bool {
	grace := obj.GetDeletionGracePeriodSeconds()
	return obj.GetDeletionTimestamp() != nil && !isHeld(obj) && (grace == nil || *grace == 0)
}

// remove plans that the object is gone, and what it held with it.
func (r *Registry) remove(ctx context.Context, tx *txn, res *resource.Resource, last, old codec.Object, warnings []string) (*outcome, error) {
	if err := r.allocate(ctx, tx, res, nil, old); err != nil {
		return nil, err
	}
	if isNamespace(res) && old.GetDeletionTimestamp() == nil {
		tx.Release(namespaceClaim(old.GetName()))
	}
	data, err := r.codec.EncodeProto(last)
	if err != nil {
		return nil, err
	}
	key := Key(res, old.GetNamespace(), old.GetName())
	tx.remove(key)
	return &outcome{key: key, result: Result{Object: data, Warnings: warnings, Deleted: true}}, nil
}

// DeleteCollection deletes what the selectors select, each object by itself, and returns how many are gone or going. Objects that are gone
// meanwhile are passed over; the first other error ends it.
func (r *Registry) DeleteCollection(ctx context.Context, res *resource.Resource, namespace, labelSelector, fieldSelector string, options DeleteOptions) (int64, error) {
	names, err := r.cache.Select(ctx, res, namespace, labelSelector, fieldSelector)
	if err != nil {
		return 0, err
	}
	deleted := make([]bool, len(names))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(collectionParallelism)
	for i, n := range names {
		group.Go(func() error {
			_, err := r.Delete(ctx, res, n.Namespace, n.Name, options)
			if apierrors.IsNotFound(err) {
				return nil
			}
			deleted[i] = err == nil
			return err
		})
	}
	err = group.Wait()
	count := int64(0)
	for _, d := range deleted {
		if d {
			count++
		}
	}
	return count, err
}
