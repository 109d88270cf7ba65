// Package nodelifecycle follows what becomes of nodes: it taints those that are not well, tells Services that their pods take no traffic, and evicts the
// pods that do not tolerate it.
//
// That a node is lost is the API server's finding (the node's session ended; its condition Ready becomes Unknown). Here is what follows.
package nodelifecycle

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/commit"
	"dhow.dev/pkg/event"
	"dhow.dev/pkg/informer"
	"dhow.dev/pkg/object"
	"dhow.dev/services/controller-manager/internal/apitime"
	"dhow.dev/services/controller-manager/internal/inventory"
	"dhow.dev/services/controller-manager/internal/podstate"
	"dhow.dev/services/controller-manager/internal/reconcile"
)

// perCommit bounds the pods that one commit marks.
const perCommit = 100

// Config is what the controller is made of.
type Config struct {
	Conn    grpc.ClientConnInterface
	Stores  *inventory.Stores
	Events  *event.Recorder
	Logger  *slog.Logger
	Now     func() time.Time
	Workers int
	// EvictionRate is how many nodes a second may begin to lose their pods in a zone; the first one does at once. Kubernetes: 0.1.
	EvictionRate float64
	// StartGrace is how long after its start the controller leaves alone the nodes that were not ready before: after an outage of the control plane
	// they come back a little later than it does.
	StartGrace time.Duration
}

// Controller reconciles nodes; Evictions, the pods on tainted nodes.
type Controller struct {
	*reconcile.Runner[string]
	Evictions *reconcile.Runner[object.Key]

	conn       grpc.ClientConnInterface
	stores     *inventory.Stores
	nodes      *client.Client[*corev1.Node]
	pods       *client.Client[*corev1.Pod]
	nodeEvents event.Source
	podEvents  event.Source
	now        func() time.Time
	limiter    *limiter
	// started is when the controller began (to the second, like the times of conditions), evictFrom when evictions may begin on nodes that were not ready before.
	started, evictFrom time.Time
}

// New returns the controller, listening to the stores. Its start is now.
func New(cfg Config) *Controller {
	c := &Controller{
		conn: cfg.Conn, stores: cfg.Stores, nodes: client.For[*corev1.Node](cfg.Conn), pods: client.For[*corev1.Pod](cfg.Conn),
		nodeEvents: cfg.Events.Source("node-controller"), podEvents: cfg.Events.Source("taint-eviction-controller"),
		now: cfg.Now, limiter: &limiter{rate: cfg.EvictionRate}, started: cfg.Now().Truncate(time.Second),
	}
	c.evictFrom = c.started.Add(cfg.StartGrace)
	c.Runner = reconcile.New(reconcile.Config[string]{
		Name: "node", Source: cfg.Stores, Workers: cfg.Workers, Reconcile: c.reconcile, Logger: cfg.Logger,
	})
	c.Evictions = reconcile.New(reconcile.Config[object.Key]{
		Name: "eviction", Source: cfg.Stores, Workers: cfg.Workers, Reconcile: c.evict, Logger: cfg.Logger,
	})
	cfg.Stores.Nodes.OnChangeTraced(c.nodeChanged)
	cfg.Stores.Pods.OnChangeTraced(c.podChanged)
	return c
}

func (c *Controller) nodeChanged(old, node *corev1.Node, cause *informer.Trace) {
	if node == nil {
		node = old
	}
	name := node.GetMetadata().GetName()
	c.Add(name, cause)
	if was, is := readiness(old) == statusTrue, readiness(node) == statusTrue; old != nil && was != is {
		reason := "NodeNotReady"
		if is {
			reason = "NodeReady"
		}
		c.nodeEvents.Report(node, event.Normal, reason, "Node %s status is now: %s", name, reason)
	}
	// How much of a zone is down decides about its other nodes as well.
	if old == nil || node == old || readiness(old) != readiness(node) {
		for _, n := range c.stores.Nodes.List() {
			if readiness(n) != statusTrue {
				c.Add(n.GetMetadata().GetName(), cause)
			}
		}
	}
	if len(executionTaints(old))+len(executionTaints(node)) > 0 {
		for _, p := range c.stores.Pods.ByIndex(inventory.ByNode, name) {
			c.Evictions.Add(object.KeyOf(p), cause)
		}
	}
}

func (c *Controller) podChanged(_, pod *corev1.Pod, cause *informer.Trace) {
	if pod == nil || pod.GetSpec().GetNodeName() == "" {
		return
	}
	node, ok := c.stores.Nodes.Get("", pod.GetSpec().GetNodeName())
	if !ok {
		return
	}
	if len(executionTaints(node)) > 0 {
		c.Evictions.Add(object.KeyOf(pod), cause)
	}
	// An agent that is reachable says itself what is ready; of one that is not, a late word may still have arrived.
	if readiness(node) == statusUnknown && podstate.IsReady(pod) {
		c.Add(node.GetMetadata().GetName(), cause)
	}
}

func (c *Controller) reconcile(ctx context.Context, turn *reconcile.Turn[string]) error {
	node, ok := c.stores.Nodes.Get("", turn.Key)
	if !ok || object.IsDeleted(node) {
		return nil
	}
	// Traffic first: it must not wait for the taints' write.
	markErr := c.markNotReady(ctx, turn, node)
	taints, changed := withTaints(node, schedulingTaints(node), c.execution(turn, node), c.now())
	if !changed {
		return markErr
	}
	updated := proto.Clone(node).(*corev1.Node)
	if !updated.HasSpec() {
		updated.SetSpec(&corev1.NodeSpec{})
	}
	updated.GetSpec().SetTaints(taints)
	updated, err := c.nodes.Update(ctx, updated, nil)
	if err != nil {
		return errors.Join(markErr, fmt.Errorf("taint node %s: %w", turn.Key, err))
	}
	turn.Wrote(updated)
	return markErr
}

// execution returns the NoExecute taint that the node should have now. What may not begin yet is looked at again later.
func (c *Controller) execution(turn *reconcile.Turn[string], node *corev1.Node) string {
	want, have := executionTaint(node), executing(node)
	if want == "" {
		return ""
	}
	states, sizes, everything := survey(c.stores.Nodes.List())
	if everything {
		return "" // no node is reachable: evicting all pods would help nobody
	}
	if have != "" {
		return want
	}
	now := c.now()
	if wait := c.evictFrom.Sub(now); wait > 0 && unreadySince(node).Before(c.started) {
		turn.Again(wait)
		return ""
	}
	zone := zoneOf(node)
	allowed, wait := c.limiter.take(zone, states[zone], sizes[zone], now)
	if wait > 0 {
		turn.Again(wait)
	}
	if !allowed {
		return ""
	}
	return want
}

// markNotReady takes the pods of a node that is not ready out of Services. The agent sets them ready again when it is back.
func (c *Controller) markNotReady(ctx context.Context, turn *reconcile.Turn[string], node *corev1.Node) error {
	if r := readiness(node); r != statusFalse && r != statusUnknown {
		return nil
	}
	var marked []*corev1.Pod
	for _, p := range c.stores.Pods.ByIndex(inventory.ByNode, turn.Key) {
		ready := podstate.Condition(p, podstate.ConditionReady)
		if ready.GetStatus() != podstate.True {
			continue
		}
		p = proto.Clone(p).(*corev1.Pod)
		condition := proto.Clone(ready).(*corev1.PodCondition)
		condition.SetStatus(podstate.False)
		condition.SetLastTransitionTime(apitime.Of(c.now()))
		podstate.SetCondition(p.GetStatus(), condition)
		marked = append(marked, p)
	}
	for len(marked) > 0 {
		n := min(perCommit, len(marked))
		if err := c.writeStatuses(ctx, turn, marked[:n]); err != nil {
			return err
		}
		for _, p := range marked[:n] {
			c.nodeEvents.Report(p, event.Warning, "NodeNotReady", "Node is not ready")
		}
		marked = marked[n:]
	}
	return nil
}

// writeStatuses writes the statuses of pods together, or one by one when some of them have changed meanwhile.
func (c *Controller) writeStatuses(ctx context.Context, turn *reconcile.Turn[string], pods []*corev1.Pod) error {
	var batch commit.Batch
	for _, p := range pods {
		batch.UpdateStatus(p)
	}
	revision, _, err := batch.Commit(ctx, c.conn)
	if err == nil {
		turn.WroteAt(revision)
		return nil
	}
	if !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) {
		return fmt.Errorf("mark the pods of node %s not ready: %w", turn.Key, err)
	}
	var errs []error
	for _, p := range pods {
		updated, err := c.pods.UpdateStatus(ctx, p)
		switch {
		case apierrors.IsNotFound(err):
		case err != nil:
			errs = append(errs, fmt.Errorf("mark pod %s not ready: %w", object.KeyOf(p), err))
		default:
			turn.Wrote(updated)
		}
	}
	return errors.Join(errs...)
}
