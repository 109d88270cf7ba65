package nodelifecycle

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/event"
	"dhow.dev/pkg/object"
	"dhow.dev/services/controller-manager/internal/apitime"
	"dhow.dev/services/controller-manager/internal/podstate"
	"dhow.dev/services/controller-manager/internal/reconcile"
)

// evict deletes a pod whose tolerations of its node's taints are over, or comes back when they will be.
//
// The pod then waits for its node to end it: on a node that is unreachable it stays, terminating, until the node returns or is deleted. What
// replaces it does not wait, because a terminating pod counts for nothing.
func (c *Controller) evict(ctx context.Context, turn *reconcile.Turn[object.Key]) error {
	pod, ok := c.stores.Pods.Get(turn.Key.Namespace, turn.Key.Name)
	if !ok || object.IsDeleted(pod) || pod.GetSpec().GetNodeName() == "" {
		return nil
	}
	node, ok := c.stores.Nodes.Get("", pod.GetSpec().GetNodeName())
	if !ok {
		return nil // the pod garbage collector's
	}
	now := c.now()
	v := judge(executionTaints(node), pod.GetSpec().GetTolerations(), now)
	if !v.evict {
		return nil
	}
	if executing(node) != "" && unreadySince(node).Before(c.started) && v.at.Before(c.evictFrom) {
		v.at = c.evictFrom
	}
	if wait := v.at.Sub(now); wait > 0 {
		turn.Again(wait)
		return nil
	}
	c.podEvents.Report(pod, event.Normal, "TaintManagerEviction", "Marking for deletion Pod %s", turn.Key)
	if err := c.markDisrupted(ctx, turn, pod, now); err != nil {
		return err
	}
	gone, err := c.pods.Delete(ctx, turn.Key.Namespace, turn.Key.Name, metav1.DeletionOptions_builder{Uid: pod.GetMetadata().GetUid()}.Build())
	switch {
	case apierrors.IsNotFound(err):
		return nil
	case err != nil:
		return fmt.Errorf("evict pod %s: %w", turn.Key, err)
	}
	turn.Wrote(gone)
	return nil
}

// markDisrupted says in the pod why it goes, for those who replace it.
func (c *Controller) markDisrupted(ctx context.Context, turn *reconcile.Turn[object.Key], pod *corev1.Pod, now time.Time) error {
	pod = proto.Clone(pod).(*corev1.Pod)
	if !pod.HasStatus() {
		pod.SetStatus(&corev1.PodStatus{})
	}
	if !podstate.SetCondition(pod.GetStatus(), corev1.PodCondition_builder{
		Type: proto.String(podstate.ConditionDisruptionTarget), Status: proto.String(podstate.True), LastTransitionTime: apitime.Of(now),
		Reason: proto.String("DeletionByTaintManager"), Message: proto.String("Taint manager: deleting due to NoExecute taint"),
	}.Build()) {
		return nil
	}
	updated, err := c.pods.UpdateStatus(ctx, pod)
	switch {
	case apierrors.IsNotFound(err):
		return nil
	case err != nil:
		return fmt.Errorf("mark pod %s for eviction: %w", turn.Key, err)
	}
	turn.Wrote(updated)
	return nil
}
