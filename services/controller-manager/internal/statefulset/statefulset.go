// Package statefulset runs pods with identities: each with a name, an address in DNS and volume claims that stay when the pod is replaced.
package statefulset

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strconv"
	"strings"
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
	"dhow.dev/services/controller-manager/internal/history"
	"dhow.dev/services/controller-manager/internal/inventory"
	"dhow.dev/services/controller-manager/internal/ownership"
	"dhow.dev/services/controller-manager/internal/podcontrol"
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

// Controller reconciles StatefulSets.
type Controller struct {
	*reconcile.Runner[object.Key]
	stores       *inventory.Stores
	sets         *client.Client[*appsv1.StatefulSet]
	volumeClaims *client.Client[*corev1.PersistentVolumeClaim]
	pods         *podcontrol.Control
	history      *history.History
	events       event.Source
	logger       *slog.Logger
	now          func() time.Time
}

// New returns the controller, listening to the stores.
func New(cfg Config) *Controller {
	events := cfg.Events.Source("statefulset-controller")
	c := &Controller{
		stores: cfg.Stores, sets: client.For[*appsv1.StatefulSet](cfg.Conn), volumeClaims: client.For[*corev1.PersistentVolumeClaim](cfg.Conn),
		pods: podcontrol.New(cfg.Conn, events, words()), history: history.New(cfg.Conn, cfg.Stores), events: events, logger: cfg.Logger, now: cfg.Now,
	}
	c.Runner = reconcile.New(reconcile.Config[object.Key]{
		Name: "statefulset", Source: cfg.Stores, Workers: cfg.Workers, Reconcile: c.reconcile, Logger: cfg.Logger,
	})
	cfg.Stores.StatefulSets.OnChangeTraced(func(old, set *appsv1.StatefulSet, cause *informer.Trace) {
		if set == nil {
			set = old
		}
		c.Add(object.KeyOf(set), cause)
	})
	cfg.Stores.Pods.OnChangeTraced(c.podChanged)
	cfg.Stores.PersistentVolumeClaims.OnChangeTraced(c.claimChanged)
	cfg.Stores.ControllerRevisions.OnChangeTraced(c.revisionChanged)
	return c
}

// words are Kubernetes' texts for what happens to pods of stateful sets.
func words() podcontrol.Words {
	said := func(verb string) func(object.Object, string) string {
		return func(set object.Object, pod string) string {
			return fmt.Sprintf("%s Pod %s in StatefulSet %s successful", verb, pod, set.GetMetadata().GetName())
		}
	}
	failed := func(verb string) func(object.Object, string, error) string {
		return func(set object.Object, pod string, err error) string {
			return fmt.Sprintf("%s Pod %s in StatefulSet %s failed error: %v", verb, pod, set.GetMetadata().GetName(), err)
		}
	}
	return podcontrol.Words{Created: said("create"), CreateFailed: failed("create"), Deleted: said("delete"), DeleteFailed: failed("delete")}
}

// podChanged wakes the pod's set: the one that controls it, the one that did before, or one that may adopt it.
func (c *Controller) podChanged(old, pod *corev1.Pod, cause *informer.Trace) {
	for _, p := range []*corev1.Pod{old, pod} {
		if p == nil {
			continue
		}
		if r := object.ControllerOf(p); r.GetKind() == "StatefulSet" {
			c.Add(object.Key{Namespace: p.GetMetadata().GetNamespace(), Name: r.GetName()}, cause)
		}
	}
	if pod == nil || object.ControllerOf(pod) != nil || object.IsDeleted(pod) {
		return
	}
	// Its name names the only set that it may belong to.
	if name, _, ok := parse(pod.GetMetadata().GetName()); ok {
		c.wakeSelecting(pod, cause, func(set *appsv1.StatefulSet) bool { return set.GetMetadata().GetName() == name })
	}
}

// wakeSelecting wakes those sets of an object's namespace that select it.
func (c *Controller) wakeSelecting(o object.Object, cause *informer.Trace, among func(*appsv1.StatefulSet) bool) {
	for _, set := range c.stores.StatefulSets.ByIndex(inventory.ByNamespace, o.GetMetadata().GetNamespace()) {
		if !among(set) {
			continue
		}
		selector, err := ownership.Selector(set.GetSpec().GetSelector())
		if err == nil && !selector.Empty() && selector.Matches(labels.Set(o.GetMetadata().GetLabels())) {
			c.Add(object.KeyOf(set), cause)
		}
	}
}

// claimChanged wakes the set whose pod waits for a claim to go, or whose claim has gone or changed its owners.
func (c *Controller) claimChanged(old, claim *corev1.PersistentVolumeClaim, cause *informer.Trace) {
	if old == nil {
		return
	}
	if claim != nil && len(old.GetMetadata().GetOwnerReferences()) == len(claim.GetMetadata().GetOwnerReferences()) {
		return
	}
	prefix, _, ok := parse(old.GetMetadata().GetName())
	if !ok {
		return
	}
	for _, set := range c.stores.StatefulSets.ByIndex(inventory.ByNamespace, old.GetMetadata().GetNamespace()) {
		for _, t := range set.GetSpec().GetVolumeClaimTemplates() {
			if t.GetMetadata().GetName()+"-"+set.GetMetadata().GetName() == prefix {
				c.Add(object.KeyOf(set), cause)
			}
		}
	}
}

// revisionChanged wakes the set whose history somebody else changed, or that may adopt a revision.
func (c *Controller) revisionChanged(old, r *appsv1.ControllerRevision, cause *informer.Trace) {
	for _, o := range []*appsv1.ControllerRevision{old, r} {
		if o == nil {
			continue
		}
		if owner := object.ControllerOf(o); owner.GetKind() == "StatefulSet" {
			c.Add(object.Key{Namespace: o.GetMetadata().GetNamespace(), Name: owner.GetName()}, cause)
		}
	}
	if r != nil && object.ControllerOf(r) == nil && !object.IsDeleted(r) {
		c.wakeSelecting(r, cause, func(*appsv1.StatefulSet) bool { return true })
	}
}

// update is one turn with one set.
type update struct {
	*Controller
	turn *reconcile.Turn[object.Key]
	set  *appsv1.StatefulSet
}

func (c *Controller) reconcile(ctx context.Context, turn *reconcile.Turn[object.Key]) error {
	set, ok := c.stores.StatefulSets.Get(turn.Key.Namespace, turn.Key.Name)
	if !ok {
		return nil // what it leaves behind is the garbage collector's
	}
	selector, err := ownership.Selector(set.GetSpec().GetSelector())
	if err != nil || selector.Empty() {
		// Validation does not let such an object in; repeating would not help.
		c.logger.ErrorContext(ctx, "stateful set cannot select pods", slog.Any("key", turn.Key), slog.Any("error", err))
		return nil
	}
	u := &update{Controller: c, turn: turn, set: set}
	owner := history.Owner{
		Object: set, Selector: selector, Template: set.GetSpec().GetTemplate(), HashLabel: history.HashLabel, Collisions: set.GetStatus().GetCollisionCount(), Live: u.live,
	}
	pods, err := u.claim(ctx, selector)
	if err != nil {
		return err
	}
	revisions, err := c.history.Claimed(ctx, turn, owner)
	if err != nil {
		return err
	}
	if object.IsDeleted(set) && len(revisions) == 0 {
		return nil
	}
	newest, err := c.history.Current(ctx, turn, owner, revisions)
	if podcontrol.Terminating(err) {
		return nil // all of it will go
	}
	if err != nil {
		return err
	}
	s := &situation{set: set, pods: pods, claims: u.existing, now: c.now()}
	s.update = revision{newest.Revision.GetMetadata().GetName(), set.GetSpec().GetTemplate()}
	s.current = s.update
	for _, r := range newest.All {
		if name := r.GetMetadata().GetName(); name == set.GetStatus().GetCurrentRevision() && name != s.update.name {
			template, err := history.Template(r)
			if err != nil {
				return err
			}
			s.current = revision{name, template}
		}
	}
	var created []*corev1.Pod
	if !object.IsDeleted(set) {
		created, err = u.carryOut(ctx, s.decide())
		if podcontrol.Terminating(err) {
			err = nil
		}
	}
	status, next := s.status(append(pods, created...), newest.Collisions)
	if next > 0 {
		turn.Again(next)
	}
	return errors.Join(err, u.updateStatus(ctx, status), u.forget(ctx, s, newest))
}

func (u *update) live(ctx context.Context) (object.Object, error) {
	return u.sets.Get(ctx, u.turn.Key.Namespace, u.turn.Key.Name)
}

// claim returns the pods of the set, adopting and releasing as the selector says. Only pods with the set's names are adopted.
func (u *update) claim(ctx context.Context, selector labels.Selector) ([]*corev1.Pod, error) {
	candidates := u.stores.Pods.ByIndex(inventory.ByController, u.set.GetMetadata().GetUid())
	for _, p := range u.stores.Pods.ByIndex(inventory.Orphans, u.turn.Key.Namespace) {
		if _, ok := ordinalOf(u.set, p); ok {
			candidates = append(candidates, p)
		}
	}
	claim := ownership.Claim[*corev1.Pod]{
		Owner: u.set, Selector: selector, Live: u.live,
		Update: func(ctx context.Context, p *corev1.Pod) (*corev1.Pod, error) { return u.pods.Update(ctx, u.turn, p) },
	}
	return claim.Of(ctx, candidates)
}

// carryOut does what was decided and returns the pods that it made.
func (u *update) carryOut(ctx context.Context, p plan) ([]*corev1.Pod, error) {
	for _, pod := range p.missing {
		if err := u.ensureClaims(ctx, pod); err != nil {
			return nil, err
		}
	}
	var ready []*corev1.Pod
	var errs []error
	for _, pod := range p.create {
		if err := u.ensureClaims(ctx, pod); err != nil {
			errs = append(errs, err)
			continue
		}
		ready = append(ready, pod)
	}
	created, err := u.pods.Create(ctx, u.turn, u.set, ready)
	errs = append(errs, err)
	for _, pod := range p.identify {
		ordinal, _ := ordinalOf(u.set, pod)
		pod = proto.Clone(pod).(*corev1.Pod)
		identify(u.set, pod, ordinal)
		if _, err := u.pods.Update(ctx, u.turn, pod); err != nil && !apierrors.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("identity of pod %s: %w", object.KeyOf(pod), err))
		}
	}
	for _, pod := range p.claims {
		if err := u.setOwners(ctx, pod); err != nil {
			// A pod that goes before its claims have their owner leaves them behind.
			return created, errors.Join(append(errs, err)...)
		}
	}
	errs = append(errs, u.pods.Delete(ctx, u.turn, u.set, p.remove))
	return created, errors.Join(errs...)
}

// updateStatus writes the status if it differs from what is stored.
func (u *update) updateStatus(ctx context.Context, status *appsv1.StatefulSetStatus) error {
	if u.set.HasStatus() && proto.Equal(status, u.set.GetStatus()) {
		return nil
	}
	updated := proto.Clone(u.set).(*appsv1.StatefulSet)
	updated.SetStatus(status)
	updated, err := u.sets.UpdateStatus(ctx, updated)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("status of stateful set %s: %w", u.turn.Key, err)
	}
	u.turn.Wrote(updated)
	return nil
}

// forget deletes revisions that no pod has and that the set keeps no longer.
func (u *update) forget(ctx context.Context, s *situation, newest history.Current) error {
	live := map[string]bool{s.current.name: true, s.update.name: true}
	for _, p := range s.pods {
		live[revisionOf(p)] = true
	}
	return u.history.Truncate(ctx, u.turn, newest.All, func(r *appsv1.ControllerRevision) bool { return live[r.GetMetadata().GetName()] },
		u.set.GetSpec().GetRevisionHistoryLimit())
}

// share returns a number, or the part of the total that a percentage is, rounded up.
func share(v *metav1.IntOrString, total int32) int32 {
	if v.GetType() == 0 {
		return v.GetIntVal()
	}
	text, ok := strings.CutSuffix(v.GetStrVal(), "%")
	percent, err := strconv.ParseInt(text, 10, 32)
	if !ok || err != nil {
		return 0
	}
	return int32(math.Ceil(float64(percent) * float64(total) / 100))
}
