// Package replicaset keeps as many pods of a template running as ReplicaSets ask for.
package replicaset

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/labels"

	appsv1 "dhow.dev/gen/go/dhow/apps/v1"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/event"
	"dhow.dev/pkg/informer"
	"dhow.dev/pkg/object"
	"dhow.dev/services/controller-manager/internal/inventory"
	"dhow.dev/services/controller-manager/internal/ownership"
	"dhow.dev/services/controller-manager/internal/podrank"
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

// Set is a ReplicaSet, or another object in the form of one.
type Set struct {
	*appsv1.ReplicaSet
	// Owner is the object itself, which owns the pods and bears the status.
	Owner object.Object
}

// Kind is how the controller reads and writes the sets of a kind.
type Kind struct {
	// Name is the controller's, Kind that of the owner references, Component that of Events.
	Name, Kind, Component string
	// OnChange registers what is told of changes. The new object is nil when it is gone.
	OnChange func(func(old, new object.Object, cause *informer.Trace))
	Get      func(namespace, name string) (Set, bool)
	// In returns all sets of a namespace.
	In func(namespace string) []Set
	// Live reads the owner from the API server.
	Live func(ctx context.Context, namespace, name string) (object.Object, error)
	// WriteStatus writes the status of an owner.
	WriteStatus func(ctx context.Context, owner object.Object, status *appsv1.ReplicaSetStatus) (object.Object, error)
}

// Controller reconciles the sets of a kind.
type Controller struct {
	*reconcile.Runner[object.Key]
	kind   Kind
	stores *inventory.Stores
	pods   *client.Client[*corev1.Pod]
	conn   grpc.ClientConnInterface
	events event.Source
	logger *slog.Logger
	now    func() time.Time
}

// New returns the controller of ReplicaSets, listening to the stores.
func New(cfg Config) *Controller {
	sets := client.For[*appsv1.ReplicaSet](cfg.Conn)
	return For(cfg, Kind{
		Name: "replicaset", Kind: "ReplicaSet", Component: "replicaset-controller",
		OnChange: func(f func(old, new object.Object, cause *informer.Trace)) {
			cfg.Stores.ReplicaSets.OnChangeTraced(func(old, rs *appsv1.ReplicaSet, cause *informer.Trace) {
				if rs == nil {
					f(old, nil, cause)
					return
				}
				f(old, rs, cause)
			})
		},
		Get: func(namespace, name string) (Set, bool) {
			rs, ok := cfg.Stores.ReplicaSets.Get(namespace, name)
			return Set{rs, rs}, ok
		},
		In: func(namespace string) []Set {
			var all []Set
			for _, rs := range cfg.Stores.ReplicaSets.ByIndex(inventory.ByNamespace, namespace) {
				all = append(all, Set{rs, rs})
			}
			return all
		},
		Live: func(ctx context.Context, namespace, name string) (object.Object, error) {
			return sets.Get(ctx, namespace, name)
		},
		WriteStatus: func(ctx context.Context, owner object.Object, status *appsv1.ReplicaSetStatus) (object.Object, error) {
			updated := proto.Clone(owner).(*appsv1.ReplicaSet)
			updated.SetStatus(status)
			return sets.UpdateStatus(ctx, updated)
		},
	})
}

// For returns the controller of a kind, listening to the stores.
func For(cfg Config, kind Kind) *Controller {
	c := &Controller{
		kind: kind, stores: cfg.Stores, pods: client.For[*corev1.Pod](cfg.Conn),
		conn: cfg.Conn, events: cfg.Events.Source(kind.Component), logger: cfg.Logger, now: cfg.Now,
	}
	c.Runner = reconcile.New(reconcile.Config[object.Key]{
		Name: kind.Name, Source: cfg.Stores, Workers: cfg.Workers, Reconcile: c.reconcile, Logger: cfg.Logger,
	})
	kind.OnChange(c.setChanged)
	cfg.Stores.Pods.OnChangeTraced(c.podChanged)
	return c
}

func (c *Controller) setChanged(old, rs object.Object, cause *informer.Trace) {
	if rs == nil {
		rs = old
	}
	c.Add(object.KeyOf(rs), cause)
}

// podChanged wakes the pod's replica set: the one that controls it, the one that did before, or any that may adopt it.
func (c *Controller) podChanged(old, pod *corev1.Pod, cause *informer.Trace) {
	before, after := c.controllerOf(old), c.controllerOf(pod)
	if before != "" && before != after {
		c.Add(object.Key{Namespace: old.GetMetadata().GetNamespace(), Name: before}, cause)
	}
	switch {
	case pod == nil:
	case after != "":
		c.Add(object.Key{Namespace: pod.GetMetadata().GetNamespace(), Name: after}, cause)
	case object.ControllerOf(pod) == nil && !object.IsDeleted(pod):
		for _, rs := range c.kind.In(pod.GetMetadata().GetNamespace()) {
			selector, err := ownership.Selector(rs.GetSpec().GetSelector())
			if err == nil && !selector.Empty() && selector.Matches(labels.Set(pod.GetMetadata().GetLabels())) {
				c.Add(object.KeyOf(rs.Owner), cause)
			}
		}
	}
}

// controllerOf returns the name of the replica set that controls the pod, or "". A namesake of another UID may be woken in vain.
func (c *Controller) controllerOf(pod *corev1.Pod) string {
	if pod == nil {
		return ""
	}
	if r := object.ControllerOf(pod); r.GetKind() == c.kind.Kind {
		return r.GetName()
	}
	return ""
}

func (c *Controller) reconcile(ctx context.Context, turn *reconcile.Turn[object.Key]) error {
	rs, ok := c.kind.Get(turn.Key.Namespace, turn.Key.Name)
	if !ok {
		return nil // its pods are the garbage collector's
	}
	selector, err := ownership.Selector(rs.GetSpec().GetSelector())
	if err != nil {
		// Validation does not let such an object in; repeating would not help.
		c.logger.ErrorContext(ctx, "replica set cannot select pods", slog.Any("key", turn.Key), slog.Any("error", err))
		return nil
	}
	pods, err := c.claim(ctx, turn, rs, selector)
	if err != nil {
		return err
	}
	var active []*corev1.Pod
	terminating := 0
	for _, p := range pods {
		switch {
		case podstate.IsActive(p):
			active = append(active, p)
		case podstate.IsTerminating(p):
			terminating++
		}
	}
	var failed *failure
	if !object.IsDeleted(rs.Owner) {
		active, failed = c.manage(ctx, turn, rs, active)
	}
	statusErr := c.updateStatus(ctx, turn, rs, active, terminating, failed)
	if failed != nil {
		return errors.Join(failed, statusErr)
	}
	return statusErr
}

// claim returns the pods of the replica set, adopting and releasing as the selector says.
func (c *Controller) claim(ctx context.Context, turn *reconcile.Turn[object.Key], rs Set, selector labels.Selector) ([]*corev1.Pod, error) {
	candidates := c.stores.Pods.ByIndex(inventory.ByController, rs.GetMetadata().GetUid())
	for _, p := range c.stores.Pods.ByIndex(inventory.Orphans, turn.Key.Namespace) {
		// A finished pod is not worth adopting.
		if !podstate.IsFinished(p) {
			candidates = append(candidates, p)
		}
	}
	claim := ownership.Claim[*corev1.Pod]{
		Owner: rs.Owner, Selector: selector,
		Live: func(ctx context.Context) (object.Object, error) {
			return c.kind.Live(ctx, turn.Key.Namespace, turn.Key.Name)
		},
		Update: func(ctx context.Context, p *corev1.Pod) (*corev1.Pod, error) {
			p, err := c.pods.Update(ctx, p, nil)
			if err == nil {
				turn.Wrote(p)
			}
			return p, err
		},
	}
	return claim.Of(ctx, candidates)
}

// manage creates or deletes pods until there are as many as asked for. It returns the active pods, new ones included; deleted ones are counted until
// the cache shows them gone.
func (c *Controller) manage(ctx context.Context, turn *reconcile.Turn[object.Key], rs Set, active []*corev1.Pod) ([]*corev1.Pod, *failure) {
	switch diff := int(rs.GetSpec().GetReplicas()) - len(active); {
	case diff > 0:
		created, err := c.create(ctx, turn, rs, min(diff, burst))
		active = append(active, created...)
		if namespaceTerminating(err) {
			return active, nil
		}
		if err != nil {
			return active, &failure{reason: "FailedCreate", err: err}
		}
		if diff > burst {
			turn.Again(0)
		}
	case diff < 0:
		doomed := podrank.Victims(active, c.related(rs), min(-diff, burst), c.now())
		if err := c.delete(ctx, turn, rs, doomed); err != nil {
			return active, &failure{reason: "FailedDelete", err: err}
		}
		if -diff > burst {
			turn.Again(0)
		}
	}
	return active, nil
}

// related returns the pods of all replica sets that have the same controller, those of rs itself when it has none.
func (c *Controller) related(rs Set) []*corev1.Pod {
	sets := []*appsv1.ReplicaSet{rs.ReplicaSet}
	if owner := ownership.ControllerUID(rs.Owner); owner != "" {
		sets = c.stores.ReplicaSets.ByIndex(inventory.ByController, owner)
	}
	var pods []*corev1.Pod
	for _, s := range sets {
		pods = append(pods, c.stores.Pods.ByIndex(inventory.ByController, s.GetMetadata().GetUid())...)
	}
	return pods
}

func (c *Controller) updateStatus(ctx context.Context, turn *reconcile.Turn[object.Key], rs Set, active []*corev1.Pod, terminating int, failed *failure) error {
	wanted, next := status(rs.ReplicaSet, active, terminating, failed, c.now())
	if next > 0 {
		turn.Again(next)
	}
	if rs.HasStatus() && proto.Equal(wanted, rs.GetStatus()) {
		return nil
	}
	// A conflict means that the replica set has changed; its change will bring another turn, with fresh counts.
	updated, err := c.kind.WriteStatus(ctx, rs.Owner, wanted)
	switch {
	case apierrors.IsNotFound(err):
		return nil
	case err != nil:
		return fmt.Errorf("status of replica set %s: %w", turn.Key, err)
	}
	turn.Wrote(updated)
	return nil
}
