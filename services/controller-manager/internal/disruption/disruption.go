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
	"k8s.io/apimachinery/pkg/api/meta"
	metak8s "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	policyv1 "dhow.dev/gen/go/dhow/policy/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/informer"
	"dhow.dev/pkg/object"
	"dhow.dev/services/controller-manager/internal/inventory"
	"dhow.dev/services/controller-manager/internal/ownership"
	"dhow.dev/services/controller-manager/internal/podstate"
	"dhow.dev/services/controller-manager/internal/reconcile"
)

// evictionTimeout is how long an eviction counts whose pod does not end. Kubernetes: 2 minutes.
const evictionTimeout = 2 * time.Minute

// Config is what the controller is made of.
type Config struct {
	Conn    grpc.ClientConnInterface
	Stores  *inventory.Stores
	Logger  *slog.Logger
	Now     func() time.Time
	Workers int
}

// Controller reconciles PodDisruptionBudgets.
type Controller struct {
	*reconcile.Runner[object.Key]
	stores  *inventory.Stores
	budgets *client.Client[*policyv1.PodDisruptionBudget]
	now     func() time.Time
}

// New returns the controller, listening to the stores.
func New(cfg Config) *Controller {
	c := &Controller{stores: cfg.Stores, budgets: client.For[*policyv1.PodDisruptionBudget](cfg.Conn), now: cfg.Now}
	c.Runner = reconcile.New(reconcile.Config[object.Key]{Name: "disruption", Source: cfg.Stores, Workers: cfg.Workers, Reconcile: c.reconcile, Logger: cfg.Logger})
	cfg.Stores.PodDisruptionBudgets.OnChangeTraced(func(_, b *policyv1.PodDisruptionBudget, cause *informer.Trace) {
		if b != nil {
			c.Add(object.KeyOf(b), cause)
		}
	})
	cfg.Stores.Pods.OnChangeTraced(func(old, pod *corev1.Pod, cause *informer.Trace) {
		if pod == nil {
			pod = old
		}
		namespace := pod.GetMetadata().GetNamespace()
		for _, b := range c.stores.PodDisruptionBudgets.ByIndex(inventory.ByNamespace, namespace) {
			c.Add(object.KeyOf(b), cause)
		}
	})
	return c
}

func (c *Controller) reconcile(ctx context.Context, turn *reconcile.Turn[object.Key]) error {
	stored, ok := c.stores.PodDisruptionBudgets.Get(turn.Key.Namespace, turn.Key.Name)
	if !ok || object.IsDeleted(stored) {
		return nil
	}
	data, err := proto.Marshal(stored)
	if err != nil {
		return fmt.Errorf("encode budget %s: %w", turn.Key, err)
	}
	budget := &policyk8s.PodDisruptionBudget{}
	if err := budget.Unmarshal(data); err != nil {
		return fmt.Errorf("decode budget %s: %w", turn.Key, err)
	}
	before := budget.Status.DeepCopy()
	if err := c.count(turn, budget); err != nil {
		return err
	}
	if apiequality.Semantic.DeepEqual(before, &budget.Status) {
		return nil
	}
	if data, err = budget.Marshal(); err != nil {
		return fmt.Errorf("encode budget %s: %w", turn.Key, err)
	}
	next := &policyv1.PodDisruptionBudget{}
	if err := proto.Unmarshal(data, next); err != nil {
		return fmt.Errorf("decode budget %s: %w", turn.Key, err)
	}
	written, err := c.budgets.UpdateStatus(ctx, next)
	switch {
	case err == nil:
		turn.Wrote(written)
		return nil
	case apierrors.IsNotFound(err):
		return nil
	}
	return fmt.Errorf("status of budget %s: %w", turn.Key, err)
}

// count brings the budget's status up to date.
func (c *Controller) count(turn *reconcile.Turn[object.Key], budget *policyk8s.PodDisruptionBudget) error {
	selector, err := metak8s.LabelSelectorAsSelector(budget.Spec.Selector)
	if err != nil {
		return fmt.Errorf("selector of budget %s: %w", turn.Key, err)
	}
	var pods []*corev1.Pod
	for _, p := range c.stores.Pods.ByIndex(inventory.ByNamespace, turn.Key.Namespace) {
		if selector.Matches(labels.Set(p.GetMetadata().GetLabels())) {
			pods = append(pods, p)
		}
	}
	expected, desired, err := c.wanted(budget, pods)
	if err != nil {
		return fmt.Errorf("budget %s: %w", turn.Key, err)
	}
	status := &budget.Status
	disrupted := map[string]metak8s.Time{}
	healthy := int32(0)
	for _, p := range pods {
		name := p.GetMetadata().GetName()
		if object.IsDeleted(p) {
			continue
		}
		if since, ok := status.DisruptedPods[name]; ok {
			if left := evictionTimeout - c.now().Sub(since.Time); left > 0 {
				disrupted[name] = since
				turn.Again(left)
				continue
			}
		}
		if isReady(p) {
			healthy++
		}
	}
	if len(disrupted) == 0 {
		disrupted = nil
	}
	if !maps.EqualFunc(status.DisruptedPods, disrupted, func(a, b metak8s.Time) bool { return a.Equal(&b) }) {
		status.DisruptedPods = disrupted
	}
	status.ObservedGeneration, status.ExpectedPods, status.DesiredHealthy, status.CurrentHealthy = budget.Generation, expected, desired, healthy
	status.DisruptionsAllowed = max(0, healthy-desired)
	if expected <= 0 {
		status.DisruptionsAllowed = 0
	}
	condition := metak8s.Condition{
		Type: policyk8s.DisruptionAllowedCondition, Status: metak8s.ConditionTrue, Reason: policyk8s.SufficientPodsReason, ObservedGeneration: budget.Generation,
	}
	if status.DisruptionsAllowed == 0 {
		condition.Status, condition.Reason = metak8s.ConditionFalse, policyk8s.InsufficientPodsReason
	}
	meta.SetStatusCondition(&status.Conditions, condition)
	return nil
}

func isReady(p *corev1.Pod) bool {
	for _, c := range p.GetStatus().GetConditions() {
		if c.GetType() == podstate.ConditionReady {
			return c.GetStatus() == podstate.True
		}
	}
	return false
}

// wanted returns how many pods there should be, and how many of them healthy.
func (c *Controller) wanted(budget *policyk8s.PodDisruptionBudget, pods []*corev1.Pod) (expected, desired int32, err error) {
	least, most := budget.Spec.MinAvailable, budget.Spec.MaxUnavailable
	switch {
	case most != nil:
		expected = c.replicas(pods)
		n, err := intstr.GetScaledValueFromIntOrPercent(most, int(expected), true)
		if err != nil {
			return 0, 0, fmt.Errorf("maxUnavailable: %w", err)
		}
		return expected, max(0, expected-int32(n)), nil
	case least != nil && least.Type == intstr.Int:
		return int32(len(pods)), least.IntVal, nil
	case least != nil:
		expected = c.replicas(pods)
		n, err := intstr.GetScaledValueFromIntOrPercent(least, int(expected), true)
		if err != nil {
			return 0, 0, fmt.Errorf("minAvailable: %w", err)
		}
		return expected, int32(n), nil
	}
	return int32(len(pods)), 0, nil
}

// replicas sums what the controllers of the pods want, each once. Pods that nobody controls do not count, as in Kubernetes.
func (c *Controller) replicas(pods []*corev1.Pod) int32 {
	sum := int32(0)
	seen := map[string]bool{}
	for _, p := range pods {
		owner := ownership.ControllerUID(p)
		if owner == "" || seen[owner] {
			continue
		}
		seen[owner] = true
		sum += c.wants(p, owner, seen)
	}
	return sum
}

// wants returns what a pod's controller wants: of a replica set of a deployment, the deployment.
func (c *Controller) wants(pod *corev1.Pod, owner string, seen map[string]bool) int32 {
	namespace := pod.GetMetadata().GetNamespace()
	for _, rs := range c.stores.ReplicaSets.ByIndex(inventory.ByNamespace, namespace) {
		if rs.GetMetadata().GetUid() != owner {
			continue
		}
		above := ownership.ControllerUID(rs)
		if above == "" {
			return rs.GetSpec().GetReplicas()
		}
		if seen[above] {
			return 0
		}
		seen[above] = true
		for _, d := range c.stores.Deployments.ByIndex(inventory.ByNamespace, namespace) {
			if d.GetMetadata().GetUid() == above {
				return d.GetSpec().GetReplicas()
			}
		}
	}
	return 0
}
