package disruption

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"
	corek8s "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/informer"
	"dhow.dev/pkg/object"
	"dhow.dev/services/controller-manager/internal/apitime"
	"dhow.dev/services/controller-manager/internal/inventory"
	"dhow.dev/services/controller-manager/internal/podstate"
	"dhow.dev/services/controller-manager/internal/reconcile"
)

// targetTimeout is how long a pod may be said to be disrupted that does not end. Kubernetes: 2 minutes.
const targetTimeout = 2 * time.Minute

// Targets takes the condition DisruptionTarget back from pods that were about to be disrupted, and then were not: who wrote it has died in between, or changed
// its mind.
type Targets struct {
	*reconcile.Runner[object.Key]
	stores *inventory.Stores
	pods   *client.Client[*corev1.Pod]
	now    func() time.Time
}

// NewTargets returns the controller, listening to the stores.
func NewTargets(cfg Config) *Targets {
	c := &Targets{stores: cfg.Stores, pods: client.For[*corev1.Pod](cfg.Conn), now: cfg.Now}
	c.Runner = reconcile.New(reconcile.Config[object.Key]{Name: "disruption-targets", Source: cfg.Stores, Workers: cfg.Workers, Reconcile: c.reconcile, Logger: cfg.Logger})
	cfg.Stores.Pods.OnChangeTraced(func(_, pod *corev1.Pod, cause *informer.Trace) {
		if pod != nil && isTarget(pod) {
			c.Add(object.KeyOf(pod), cause)
		}
	})
	return c
}

// isTarget says that a pod is said to be disrupted although nothing ends it. What the node's agent says stays: it may take its time.
func isTarget(pod *corev1.Pod) bool {
	condition := podstate.Condition(pod, podstate.ConditionDisruptionTarget)
	return condition.GetStatus() == podstate.True && condition.GetReason() != corek8s.PodReasonTerminationByKubelet && podstate.IsActive(pod)
}

func (c *Targets) reconcile(ctx context.Context, turn *reconcile.Turn[object.Key]) error {
	pod, ok := c.stores.Pods.Get(turn.Key.Namespace, turn.Key.Name)
	if !ok || !isTarget(pod) {
		return nil
	}
	since := apitime.Go(podstate.Condition(pod, podstate.ConditionDisruptionTarget).GetLastTransitionTime())
	if left := targetTimeout - c.now().Sub(since); left > 0 {
		turn.Again(left)
		return nil
	}
	next := proto.Clone(pod).(*corev1.Pod)
	podstate.SetCondition(next.GetStatus(), corev1.PodCondition_builder{
		Type: proto.String(podstate.ConditionDisruptionTarget), Status: proto.String(podstate.False),
		ObservedGeneration: proto.Int64(pod.GetMetadata().GetGeneration()), LastTransitionTime: apitime.Of(c.now()),
	}.Build())
	written, err := c.pods.UpdateStatus(ctx, next)
	switch {
	case err == nil:
		turn.Wrote(written)
		return nil
	case apierrors.IsNotFound(err):
		return nil
	}
	return fmt.Errorf("take the disruption of pod %s back: %w", turn.Key, err)
}
