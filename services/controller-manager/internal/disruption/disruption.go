// Package disruption keeps the status of PodDisruptionBudgets: how many pods a budget is about, how many are healthy, and how many may be evicted now.
//
// Evictions take from what the status allows, in the commit that deletes the pod (the API server). The status is written on the condition that the budget is
// the one that was counted for: an eviction that came between changes it, and the count starts over.
package disruption

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	policyk8s "k8s.io/api/policy/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metak8s "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	appsv1 "dhow.dev/gen/go/dhow/apps/v1"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	policyv1 "dhow.dev/gen/go/dhow/policy/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/event"
	"dhow.dev/pkg/informer"
	"dhow.dev/pkg/object"
	"dhow.dev/services/controller-manager/internal/inventory"
	"dhow.dev/services/controller-manager/internal/ownership"
	"dhow.dev/services/controller-manager/internal/podstate"
	"dhow.dev/services/controller-manager/internal/reconcile"
)

// Config is what the controller is made of.
type Config struct {
	Conn    grpc.ClientConnInterface
	Stores  *inventory.Stores
	Events  *event.Recorder
	Logger  *slog.Logger
	Now     func() time.Time
	Workers int
}

// Controller reconciles PodDisruptionBudgets.
type Controller struct {
	*reconcile.Runner[object.Key]
	stores  *inventory.Stores
	owners  owners
	budgets *client.Client[*policyv1.PodDisruptionBudget]
	events  event.Source
	now     func() time.Time
}

// New returns the controller, listening to the stores.
func New(cfg Config) *Controller {
	s := cfg.Stores
	c := &Controller{
		stores: s, budgets: client.For[*policyv1.PodDisruptionBudget](cfg.Conn), events: cfg.Events.Source("controllermanager"), now: cfg.Now,
		owners: owners{s.ReplicaSets, s.Deployments, s.StatefulSets, s.ReplicationControllers},
	}
	c.Runner = reconcile.New(reconcile.Config[object.Key]{Name: "disruption", Source: s, Workers: cfg.Workers, Reconcile: c.reconcile, Logger: cfg.Logger})
	s.PodDisruptionBudgets.OnChangeTraced(func(_, b *policyv1.PodDisruptionBudget, cause *informer.Trace) {
		if b != nil {
			c.Add(object.KeyOf(b), cause)
		}
	})
	s.Pods.OnChangeTraced(c.podChanged)
	// Kubernetes counts when pods change and when the budget does. What their owners want changes the sum as well.
	listen(c, s.ReplicaSets, func(o *appsv1.ReplicaSet) int32 { return o.GetSpec().GetReplicas() })
	listen(c, s.Deployments, func(o *appsv1.Deployment) int32 { return o.GetSpec().GetReplicas() })
	listen(c, s.StatefulSets, func(o *appsv1.StatefulSet) int32 { return o.GetSpec().GetReplicas() })
	listen(c, s.ReplicationControllers, func(o *corev1.ReplicationController) int32 { return o.GetSpec().GetReplicas() })
	return c
}

// listen has the budgets of a namespace counted when an owner of pods there wants another number, comes, goes, or gets another owner.
func listen[T interface {
	comparable
	object.Object
}](c *Controller, store *informer.Store[T], replicas func(T) int32) {
	var none T
	store.OnChangeTraced(func(old, o T, cause *informer.Trace) {
		if old != none && o != none && replicas(old) == replicas(o) && ownership.ControllerUID(old) == ownership.ControllerUID(o) {
			return
		}
		if o == none {
			o = old
		}
		for _, b := range c.stores.PodDisruptionBudgets.ByIndex(inventory.ByNamespace, o.GetMetadata().GetNamespace()) {
			c.Add(object.KeyOf(b), cause)
		}
	})
}

// podChanged has those budgets counted that select a pod, or did.
func (c *Controller) podChanged(old, pod *corev1.Pod, cause *informer.Trace) {
	if old != nil && pod != nil && podstate.IsReady(old) == podstate.IsReady(pod) && object.IsDeleted(old) == object.IsDeleted(pod) &&
		ownership.ControllerUID(old) == ownership.ControllerUID(pod) && maps.Equal(old.GetMetadata().GetLabels(), pod.GetMetadata().GetLabels()) {
		return
	}
	some := pod
	if some == nil {
		some = old
	}
	for _, b := range c.stores.PodDisruptionBudgets.ByIndex(inventory.ByNamespace, some.GetMetadata().GetNamespace()) {
		selector, err := ownership.Selector(b.GetSpec().GetSelector())
		if err != nil {
			continue // its own turn says so
		}
		if old != nil && selector.Matches(labels.Set(old.GetMetadata().GetLabels())) || pod != nil && selector.Matches(labels.Set(pod.GetMetadata().GetLabels())) {
			c.Add(object.KeyOf(b), cause)
		}
	}
}

func (c *Controller) reconcile(ctx context.Context, turn *reconcile.Turn[object.Key]) error {
	stored, ok := c.stores.PodDisruptionBudgets.Get(turn.Key.Namespace, turn.Key.Name)
	if !ok || object.IsDeleted(stored) {
		return nil
	}
	budget, err := decode(stored)
	if err != nil {
		return err
	}
	next := c.status(turn, stored, budget)
	if apiequality.Semantic.DeepEqual(budget.Status, next) {
		return nil
	}
	budget.Status = next
	changed, err := encode(budget)
	if err != nil {
		return err
	}
	written, err := c.budgets.UpdateStatus(ctx, changed)
	switch {
	case err == nil:
		turn.Wrote(written)
		return nil
	case apierrors.IsNotFound(err):
		return nil
	}
	return fmt.Errorf("status of budget %s: %w", turn.Key, err)
}

// status returns what the budget's status should be. When it cannot be counted, nothing may be evicted and the rest stays as it was: the cause is in the
// cluster, and a change of it brings the budget back.
func (c *Controller) status(turn *reconcile.Turn[object.Key], stored *policyv1.PodDisruptionBudget, budget *policyk8s.PodDisruptionBudget) policyk8s.PodDisruptionBudgetStatus {
	selector, err := metak8s.LabelSelectorAsSelector(budget.Spec.Selector)
	if err != nil {
		c.events.Report(stored, event.Warning, "NoPods", "Failed to get pods: %v", err)
		return failed(budget, err, c.now())
	}
	var pods []*corev1.Pod
	for _, p := range c.stores.Pods.ByIndex(inventory.ByNamespace, turn.Key.Namespace) {
		if selector.Matches(labels.Set(p.GetMetadata().GetLabels())) {
			pods = append(pods, p)
		}
	}
	if len(pods) == 0 {
		c.events.Report(stored, event.Normal, "NoPods", "No matching pods found")
	}
	sum, err := count(budget, pods, c.owners.scale, c.now())
	if err != nil {
		c.events.Report(stored, event.Warning, "CalculateExpectedPodCountFailed", "Failed to calculate the number of expected pods: %v", err)
		return failed(budget, err, c.now())
	}
	if sum.unmanaged {
		c.events.Report(stored, event.Warning, "UnmanagedPods", "Pods selected by this PodDisruptionBudget (selector: %v) were found to be unmanaged. "+
			"As a result, the status of the PDB cannot be calculated correctly, which may result in undefined behavior. "+
			"To account for these pods please set \".spec.minAvailable\" field of the PDB to an integer value.", budget.Spec.Selector)
	}
	for _, p := range sum.notDeleted {
		c.events.Report(p, event.Warning, "NotDeleted", "Pod was expected by PDB %s to be deleted but it wasn't", turn.Key)
	}
	if sum.again > 0 {
		turn.Again(sum.again)
	}
	return sum.status
}

// decode makes a struct of k8s.io/api of a message: the bytes are the same.
func decode(stored *policyv1.PodDisruptionBudget) (*policyk8s.PodDisruptionBudget, error) {
	data, err := proto.Marshal(stored)
	if err != nil {
		return nil, fmt.Errorf("encode budget %s: %w", object.KeyOf(stored), err)
	}
	budget := &policyk8s.PodDisruptionBudget{}
	if err := budget.Unmarshal(data); err != nil {
		return nil, fmt.Errorf("decode budget %s: %w", object.KeyOf(stored), err)
	}
	return budget, nil
}

func encode(budget *policyk8s.PodDisruptionBudget) (*policyv1.PodDisruptionBudget, error) {
	data, err := budget.Marshal()
	if err != nil {
		return nil, fmt.Errorf("encode budget %s/%s: %w", budget.Namespace, budget.Name, err)
	}
	message := &policyv1.PodDisruptionBudget{}
	if err := proto.Unmarshal(data, message); err != nil {
		return nil, fmt.Errorf("decode budget %s/%s: %w", budget.Namespace, budget.Name, err)
	}
	return message, nil
}
