// Package podgc removes pods that nobody else will: those whose node is gone or out of service, those that were deleted before they had a node, and
// the oldest of too many finished ones.
package podgc

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/informer"
	"dhow.dev/pkg/object"
	"dhow.dev/services/controller-manager/internal/apitime"
	"dhow.dev/services/controller-manager/internal/inventory"
	"dhow.dev/services/controller-manager/internal/podstate"
	"dhow.dev/services/controller-manager/internal/reconcile"
)

const taintOutOfService = "node.kubernetes.io/out-of-service"

// Config is what the controller is made of.
type Config struct {
	Conn    grpc.ClientConnInterface
	Stores  *inventory.Stores
	Logger  *slog.Logger
	Now     func() time.Time
	Workers int
	// Threshold is how many finished pods may stay; more are deleted, the oldest first. 0: any number. Kubernetes: 12500.
	Threshold int
	// Quarantine is how long a node must be missing before its pods are removed. Kubernetes: 40 s.
	Quarantine time.Duration
}

// key is one thing to look at: the pods of a node, one pod, or, when both are empty, the finished pods.
type key struct {
	node string
	pod  object.Key
}

// Controller removes pods.
type Controller struct {
	*reconcile.Runner[key]
	cfg    Config
	stores *inventory.Stores
	pods   *client.Client[*corev1.Pod]
	nodes  *client.Client[*corev1.Node]
}

// New returns the controller, listening to the stores.
func New(cfg Config) *Controller {
	c := &Controller{cfg: cfg, stores: cfg.Stores, pods: client.For[*corev1.Pod](cfg.Conn), nodes: client.For[*corev1.Node](cfg.Conn)}
	c.Runner = reconcile.New(reconcile.Config[key]{Name: "podgc", Source: cfg.Stores, Workers: cfg.Workers, Reconcile: c.reconcile, Logger: cfg.Logger})
	cfg.Stores.Nodes.OnChangeTraced(func(old, node *corev1.Node, cause *informer.Trace) {
		switch {
		case node == nil:
			c.AddAfter(key{node: old.GetMetadata().GetName()}, cfg.Quarantine)
		case outOfService(node):
			c.Add(key{node: node.GetMetadata().GetName()}, cause)
		}
	})
	cfg.Stores.Pods.OnChangeTraced(c.podChanged)
	return c
}

func (c *Controller) podChanged(old, pod *corev1.Pod, cause *informer.Trace) {
	if pod == nil {
		return
	}
	name := pod.GetSpec().GetNodeName()
	switch {
	case name == "":
		if object.IsDeleted(pod) {
			c.Add(key{pod: object.KeyOf(pod)}, cause)
		}
	case old == nil || old.GetSpec().GetNodeName() != name || object.IsDeleted(pod) != object.IsDeleted(old):
		if node, ok := c.stores.Nodes.Get("", name); !ok {
			c.AddAfter(key{node: name}, c.cfg.Quarantine)
		} else if object.IsDeleted(pod) && outOfService(node) {
			c.Add(key{node: name}, cause)
		}
	}
	if c.cfg.Threshold > 0 && podstate.IsFinished(pod) && (old == nil || !podstate.IsFinished(old)) {
		c.Add(key{}, cause)
	}
}

func (c *Controller) reconcile(ctx context.Context, turn *reconcile.Turn[key]) error {
	switch {
	case turn.Key.node != "":
		return c.collectNode(ctx, turn, turn.Key.node)
	case turn.Key.pod.Name != "":
		p, ok := c.stores.Pods.Get(turn.Key.pod.Namespace, turn.Key.pod.Name)
		if !ok || !object.IsDeleted(p) || p.GetSpec().GetNodeName() != "" {
			return nil
		}
		return c.remove(ctx, turn, p, "")
	}
	return c.collectFinished(ctx, turn)
}

// collectNode removes the pods of a node that does not exist, and the terminating pods of one that is out of service.
func (c *Controller) collectNode(ctx context.Context, turn *reconcile.Turn[key], name string) error {
	pods := c.stores.Pods.ByIndex(inventory.ByNode, name)
	if len(pods) == 0 {
		return nil
	}
	message := "PodGC: node no longer exists"
	if node, ok := c.stores.Nodes.Get("", name); ok {
		if !outOfService(node) {
			return nil
		}
		pods = slices.DeleteFunc(pods, func(p *corev1.Pod) bool { return !podstate.IsTerminating(p) })
		message = "PodGC: node out-of-service"
	} else if _, err := c.nodes.Get(ctx, "", name); err == nil || !apierrors.IsNotFound(err) {
		return err // it is there after all, or nobody knows
	}
	var errs []error
	for _, p := range pods {
		errs = append(errs, c.remove(ctx, turn, p, message))
	}
	return errors.Join(errs...)
}

// collectFinished removes the oldest finished pods beyond the threshold; evicted ones first.
func (c *Controller) collectFinished(ctx context.Context, turn *reconcile.Turn[key]) error {
	finished := slices.DeleteFunc(c.stores.Pods.ByIndex(inventory.Finished, "true"), func(p *corev1.Pod) bool { return object.IsDeleted(p) })
	excess := len(finished) - c.cfg.Threshold
	if excess <= 0 {
		return nil
	}
	slices.SortFunc(finished, func(a, b *corev1.Pod) int {
		evictedA, evictedB := a.GetStatus().GetReason() == "Evicted", b.GetStatus().GetReason() == "Evicted"
		switch {
		case evictedA && !evictedB:
			return -1
		case evictedB && !evictedA:
			return 1
		}
		ma, mb := a.GetMetadata(), b.GetMetadata()
		return cmp.Or(apitime.Go(ma.GetCreationTimestamp()).Compare(apitime.Go(mb.GetCreationTimestamp())), cmp.Compare(ma.GetName(), mb.GetName()))
	})
	var errs []error
	for _, p := range finished[:excess] {
		errs = append(errs, c.remove(ctx, turn, p, ""))
	}
	return errors.Join(errs...)
}

// remove deletes a pod without waiting for a node. With a message, a pod that has not finished is first marked as failed, so that those who
// count outcomes see one.
func (c *Controller) remove(ctx context.Context, turn *reconcile.Turn[key], p *corev1.Pod, message string) error {
	id := object.KeyOf(p)
	if message != "" && !podstate.IsFinished(p) {
		failed := proto.Clone(p).(*corev1.Pod)
		if !failed.HasStatus() {
			failed.SetStatus(&corev1.PodStatus{})
		}
		failed.GetStatus().SetPhase(podstate.Failed)
		podstate.SetCondition(failed.GetStatus(), corev1.PodCondition_builder{
			Type: proto.String(podstate.ConditionDisruptionTarget), Status: proto.String(podstate.True), LastTransitionTime: apitime.Of(c.cfg.Now()),
			Reason: proto.String("DeletionByPodGC"), Message: proto.String(message),
		}.Build())
		updated, err := c.pods.UpdateStatus(ctx, failed)
		switch {
		case apierrors.IsNotFound(err):
			return nil
		case err != nil:
			return fmt.Errorf("mark pod %s as failed: %w", id, err)
		}
		turn.Wrote(updated)
	}
	gone, err := c.pods.Delete(ctx, id.Namespace, id.Name, metav1.DeletionOptions_builder{
		Uid: p.GetMetadata().GetUid(), GracePeriodSeconds: proto.Int64(0),
	}.Build())
	switch {
	case apierrors.IsNotFound(err):
		return nil
	case err != nil:
		return fmt.Errorf("remove pod %s: %w", id, err)
	}
	turn.Wrote(gone)
	return nil
}

// outOfService says that somebody declared the node dead: it is not ready and bears the taint.
func outOfService(node *corev1.Node) bool {
	for _, c := range node.GetStatus().GetConditions() {
		if c.GetType() == "Ready" && c.GetStatus() == "True" {
			return false
		}
	}
	return slices.ContainsFunc(node.GetSpec().GetTaints(), func(t *corev1.Taint) bool { return t.GetKey() == taintOutOfService })
}
