// Package deployment rolls templates out: it keeps a replica set per template of a Deployment and moves the replicas between them.
package deployment

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/labels"

	appsv1 "dhow.dev/gen/go/dhow/apps/v1"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
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

// Controller reconciles Deployments.
type Controller struct {
	*reconcile.Runner[object.Key]
	stores      *inventory.Stores
	deployments *client.Client[*appsv1.Deployment]
	sets        *client.Client[*appsv1.ReplicaSet]
	events      event.Source
	logger      *slog.Logger
	now         func() time.Time
}

// New returns the controller, listening to the stores.
func New(cfg Config) *Controller {
	c := &Controller{
		stores: cfg.Stores, deployments: client.For[*appsv1.Deployment](cfg.Conn), sets: client.For[*appsv1.ReplicaSet](cfg.Conn),
		events: cfg.Events.Source("deployment-controller"), logger: cfg.Logger, now: cfg.Now,
	}
	c.Runner = reconcile.New(reconcile.Config[object.Key]{
		Name: "deployment", Source: cfg.Stores, Workers: cfg.Workers, Reconcile: c.reconcile, Logger: cfg.Logger,
	})
	cfg.Stores.Deployments.OnChangeTraced(func(old, d *appsv1.Deployment, cause *informer.Trace) {
		if d == nil {
			d = old
		}
		c.Add(object.KeyOf(d), cause)
	})
	cfg.Stores.ReplicaSets.OnChangeTraced(c.setChanged)
	cfg.Stores.Pods.OnChangeTraced(c.podChanged)
	return c
}

// setChanged wakes the replica set's deployment: the one that controls it, the one that did, or those that may adopt it.
func (c *Controller) setChanged(old, rs *appsv1.ReplicaSet, cause *informer.Trace) {
	for _, o := range []*appsv1.ReplicaSet{old, rs} {
		if o == nil {
			continue
		}
		if r := object.ControllerOf(o); r.GetKind() == "Deployment" {
			c.Add(object.Key{Namespace: o.GetMetadata().GetNamespace(), Name: r.GetName()}, cause)
		}
	}
	if rs == nil || object.ControllerOf(rs) != nil || object.IsDeleted(rs) {
		return
	}
	for _, d := range c.stores.Deployments.ByIndex(inventory.ByNamespace, rs.GetMetadata().GetNamespace()) {
		selector, err := ownership.Selector(d.GetSpec().GetSelector())
		if err == nil && !selector.Empty() && selector.Matches(labels.Set(rs.GetMetadata().GetLabels())) {
			c.Add(object.KeyOf(d), cause)
		}
	}
}

// podChanged wakes a deployment of strategy Recreate when a pod of it is gone or has finished: the new ones wait for the last old one.
func (c *Controller) podChanged(old, pod *corev1.Pod, cause *informer.Trace) {
	if old == nil || (pod != nil && (!podstate.IsFinished(pod) || podstate.IsFinished(old))) {
		return
	}
	owner := object.ControllerOf(old)
	if owner.GetKind() != "ReplicaSet" {
		return
	}
	namespace := old.GetMetadata().GetNamespace()
	rs, ok := c.stores.ReplicaSets.Get(namespace, owner.GetName())
	if !ok || rs.GetMetadata().GetUid() != owner.GetUid() {
		return
	}
	d, ok := c.stores.Deployments.Get(namespace, object.ControllerOf(rs).GetName())
	if ok && d.GetMetadata().GetUid() == ownership.ControllerUID(rs) && d.GetSpec().GetStrategy().GetType() == recreate {
		c.Add(object.KeyOf(d), cause)
	}
}

// rollout is one turn with one deployment. Objects in it are its own: the newest that the turn has read or written.
type rollout struct {
	*Controller
	turn *reconcile.Turn[object.Key]
	d    *appsv1.Deployment
	sets []*appsv1.ReplicaSet
	// current is the replica set with the deployment's template, nil without one. Old are all others.
	current *appsv1.ReplicaSet
}

func (c *Controller) reconcile(ctx context.Context, turn *reconcile.Turn[object.Key]) error {
	d, ok := c.stores.Deployments.Get(turn.Key.Namespace, turn.Key.Name)
	if !ok {
		return nil
	}
	selector, err := ownership.Selector(d.GetSpec().GetSelector())
	if err != nil {
		c.logger.ErrorContext(ctx, "deployment cannot select replica sets", slog.Any("key", turn.Key), slog.Any("error", err))
		return nil
	}
	r := &rollout{Controller: c, turn: turn, d: proto.Clone(d).(*appsv1.Deployment)}
	if selector.Empty() {
		c.events.Report(d, event.Warning, "SelectingAll", "This deployment is selecting all pods. A non-empty selector is required.")
		if d.GetStatus().GetObservedGeneration() < d.GetMetadata().GetGeneration() {
			status := proto.Clone(r.status()).(*appsv1.DeploymentStatus)
			status.SetObservedGeneration(d.GetMetadata().GetGeneration())
			return r.updateStatus(ctx, status)
		}
		return nil
	}
	if r.sets, err = r.claim(ctx, selector); err != nil {
		return err
	}
	r.current = findNew(r.d, r.sets)
	switch {
	case object.IsDeleted(d):
		return r.updateStatus(ctx, r.situation().counts())
	default:
		if err := r.markPaused(ctx); err != nil {
			return err
		}
	}
	switch {
	// Between several sets of a Recreate there is nothing to spread: the old ones go anyway.
	case r.d.GetSpec().GetPaused() || r.isScaling() && (r.d.GetSpec().GetStrategy().GetType() != recreate || len(active(r.sets)) == 1):
		return r.scale(ctx)
	case r.d.GetSpec().GetStrategy().GetType() == recreate:
		return r.recreate(ctx)
	default:
		return r.roll(ctx)
	}
}

// claim returns copies of the deployment's replica sets, adopting and releasing as the selector says.
func (r *rollout) claim(ctx context.Context, selector labels.Selector) ([]*appsv1.ReplicaSet, error) {
	candidates := r.stores.ReplicaSets.ByIndex(inventory.ByController, r.d.GetMetadata().GetUid())
	candidates = append(candidates, r.stores.ReplicaSets.ByIndex(inventory.Orphans, r.turn.Key.Namespace)...)
	claim := ownership.Claim[*appsv1.ReplicaSet]{
		Owner: r.d, Selector: selector,
		Live: func(ctx context.Context) (object.Object, error) {
			return r.deployments.Get(ctx, r.turn.Key.Namespace, r.turn.Key.Name)
		},
		Update: r.updateSet,
	}
	claimed, err := claim.Of(ctx, candidates)
	for i, rs := range claimed {
		claimed[i] = proto.Clone(rs).(*appsv1.ReplicaSet)
	}
	return byAge(claimed), err
}

func (r *rollout) situation() situation {
	return situation{d: r.d, all: r.sets, current: r.current, now: r.now()}
}

// status returns the deployment's status, never nil.
func (r *rollout) status() *appsv1.DeploymentStatus {
	if s := r.d.GetStatus(); s != nil {
		return s
	}
	return &appsv1.DeploymentStatus{}
}

func (r *rollout) old() []*appsv1.ReplicaSet {
	return slices.DeleteFunc(slices.Clone(r.sets), func(rs *appsv1.ReplicaSet) bool { return rs == r.current })
}

// markPaused notes in the condition Progressing that the deployment was paused or goes on, so that the time of a pause is no lack of progress.
func (r *rollout) markPaused(ctx context.Context) error {
	c := condition(r.d.GetStatus(), conditionProgressing)
	if !hasDeadline(r.d) || c.GetReason() == reasonTimedOut {
		return nil
	}
	paused := c.GetReason() == reasonPaused
	status := proto.Clone(r.status()).(*appsv1.DeploymentStatus)
	switch {
	case r.d.GetSpec().GetPaused() && !paused:
		r.situation().set(status, conditionProgressing, statusUnknown, reasonPaused, "Deployment is paused")
	case !r.d.GetSpec().GetPaused() && paused:
		r.situation().set(status, conditionProgressing, statusUnknown, reasonResumed, "Deployment is resumed")
	default:
		return nil
	}
	return r.updateStatus(ctx, status)
}

// isScaling says that the deployment's number of replicas differs from what its replica sets were sized for.
func (r *rollout) isScaling() bool {
	for _, rs := range active(r.sets) {
		if desired, ok := number(rs, desiredReplicasAnnotation); ok && desired != r.d.GetSpec().GetReplicas() {
			return true
		}
	}
	return false
}

// scale follows the number of replicas without rolling anything out.
func (r *rollout) scale(ctx context.Context) error {
	if err := r.ensureCurrent(ctx, false); err != nil {
		return err
	}
	if _, err := r.apply(ctx, resize(r.d, r.old(), r.current)); err != nil {
		return err
	}
	if r.d.GetSpec().GetPaused() {
		if err := r.forget(ctx); err != nil {
			return err
		}
	}
	return r.updateStatus(ctx, r.situation().counts())
}

// recreate lets all old pods end before it makes new ones.
func (r *rollout) recreate(ctx context.Context) error {
	if err := r.ensureCurrent(ctx, false); err != nil {
		return err
	}
	var down []size
	for _, rs := range active(r.old()) {
		down = append(down, size{rs, 0})
	}
	if scaled, err := r.apply(ctx, down); scaled || err != nil {
		return errors.Join(err, r.finish(ctx))
	}
	if r.oldPodsRun() {
		return r.finish(ctx)
	}
	if err := r.ensureCurrent(ctx, true); err != nil || r.current == nil {
		return err
	}
	if _, err := r.apply(ctx, []size{{r.current, r.d.GetSpec().GetReplicas()}}); err != nil {
		return err
	}
	return r.finish(ctx)
}

// oldPodsRun says that a pod of an old replica set has not ended yet, terminating ones included.
func (r *rollout) oldPodsRun() bool {
	for _, rs := range r.old() {
		if rs.GetStatus().GetReplicas() > 0 {
			return true
		}
		for _, p := range r.stores.Pods.ByIndex(inventory.ByController, rs.GetMetadata().GetUid()) {
			if !podstate.IsFinished(p) {
				return true
			}
		}
	}
	return false
}

// roll does one step of a rolling update: the new set grows, or else the old ones shrink. The next step follows what the pods then do.
func (r *rollout) roll(ctx context.Context) error {
	if err := r.ensureCurrent(ctx, true); err != nil || r.current == nil {
		return err
	}
	if scaled, err := r.apply(ctx, growNew(r.d, r.sets, r.current)); scaled || err != nil {
		return errors.Join(err, r.finish(ctx))
	}
	if _, err := r.apply(ctx, shrinkOld(r.d, r.sets, r.old(), r.current)); err != nil {
		return err
	}
	return r.finish(ctx)
}

// finish writes the status of a rollout, and when it is complete forgets old revisions.
func (r *rollout) finish(ctx context.Context) error {
	if complete(r.d, r.situation().counts()) {
		if err := r.forget(ctx); err != nil {
			return err
		}
	}
	status := r.situation().rollout()
	if after, ok := deadlineIn(r.d, status, r.now()); ok {
		r.turn.Again(after)
	}
	return r.updateStatus(ctx, status)
}

// forget deletes the oldest replica sets beyond the history that the deployment keeps.
func (r *rollout) forget(ctx context.Context) error {
	limit := r.d.GetSpec().GetRevisionHistoryLimit()
	if !r.d.GetSpec().HasRevisionHistoryLimit() || limit == math.MaxInt32 {
		return nil
	}
	old := slices.DeleteFunc(r.old(), func(rs *appsv1.ReplicaSet) bool { return object.IsDeleted(rs) })
	excess := len(old) - int(limit)
	if excess <= 0 {
		return nil
	}
	slices.SortStableFunc(old, func(a, b *appsv1.ReplicaSet) int {
		if a, b := revision(a), revision(b); a != b {
			return int(a - b)
		}
		return compareAge(a, b)
	})
	for _, rs := range old[:excess] {
		m := rs.GetMetadata()
		if replicasOf(rs) != 0 || rs.GetStatus().GetReplicas() != 0 || m.GetGeneration() > rs.GetStatus().GetObservedGeneration() {
			continue // it still has pods, or may have
		}
		gone, err := r.Controller.sets.Delete(ctx, m.GetNamespace(), m.GetName(), metav1.DeletionOptions_builder{Uid: m.GetUid()}.Build())
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return fmt.Errorf("delete old replica set %s: %w", object.KeyOf(rs), err)
		}
		r.turn.Wrote(gone)
	}
	return nil
}

// updateStatus writes the status if it differs from what is stored.
func (r *rollout) updateStatus(ctx context.Context, status *appsv1.DeploymentStatus) error {
	if r.d.HasStatus() && proto.Equal(status, r.d.GetStatus()) {
		return nil
	}
	updated := proto.Clone(r.d).(*appsv1.Deployment)
	updated.SetStatus(status)
	updated, err := r.deployments.UpdateStatus(ctx, updated)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("status of deployment %s: %w", r.turn.Key, err)
	}
	r.turn.Wrote(updated)
	r.d = updated
	return nil
}
