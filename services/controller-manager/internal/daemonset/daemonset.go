// Package daemonset runs one pod of a template on every node that it belongs on.
package daemonset

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/util/flowcontrol"

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
	"dhow.dev/services/controller-manager/internal/podstate"
	"dhow.dev/services/controller-manager/internal/reconcile"
)

const (
	// Kubernetes' bounds between two failed pods on a node. This is the one thing that the controller remembers between turns: a restart begins anew.
	minBackoff = time.Second
	maxBackoff = 15 * time.Minute

	// burst bounds the pods that one turn makes or deletes, as in Kubernetes.
	burst = 250

	generationAnnotation = "deprecated.daemonset.template.generation"
	generationLabel      = "pod-template-generation"
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

// Controller reconciles DaemonSets.
type Controller struct {
	*reconcile.Runner[object.Key]
	stores  *inventory.Stores
	sets    *client.Client[*appsv1.DaemonSet]
	pods    *podcontrol.Control
	history *history.History
	backoff *flowcontrol.Backoff
	events  event.Source
	logger  *slog.Logger
	now     func() time.Time
}

// New returns the controller, listening to the stores.
func New(cfg Config) *Controller {
	events := cfg.Events.Source("daemonset-controller")
	c := &Controller{
		stores: cfg.Stores, sets: client.For[*appsv1.DaemonSet](cfg.Conn), pods: podcontrol.New(cfg.Conn, events, podcontrol.Plain()),
		history: history.New(cfg.Conn, cfg.Stores), backoff: flowcontrol.NewBackOff(minBackoff, maxBackoff), events: events, logger: cfg.Logger, now: cfg.Now,
	}
	c.Runner = reconcile.New(reconcile.Config[object.Key]{
		Name: "daemonset", Source: cfg.Stores, Workers: cfg.Workers, Reconcile: c.reconcile, Logger: cfg.Logger,
	})
	cfg.Stores.DaemonSets.OnChangeTraced(func(old, ds *appsv1.DaemonSet, cause *informer.Trace) {
		if ds == nil {
			ds = old
		}
		c.Add(object.KeyOf(ds), cause)
	})
	cfg.Stores.Pods.OnChangeTraced(func(old, p *corev1.Pod, cause *informer.Trace) { wake(c, old, p, old == nil, p == nil, cause) })
	cfg.Stores.ControllerRevisions.OnChangeTraced(func(old, r *appsv1.ControllerRevision, cause *informer.Trace) {
		wake(c, old, r, old == nil, r == nil, cause)
	})
	cfg.Stores.Nodes.OnChangeTraced(c.nodeChanged)
	return c
}

// wake wakes the set of a pod or a revision: the one that controls it, the one that did before, or those that may adopt it.
func wake[T object.Object](c *Controller, old, o T, isNew, isGone bool, cause *informer.Trace) {
	of := func(o T) {
		if r := object.ControllerOf(o); r.GetKind() == "DaemonSet" {
			c.Add(object.Key{Namespace: o.GetMetadata().GetNamespace(), Name: r.GetName()}, cause)
		}
	}
	if !isNew {
		of(old)
	}
	if isGone {
		return
	}
	of(o)
	if object.ControllerOf(o) != nil || object.IsDeleted(o) {
		return
	}
	for _, ds := range c.stores.DaemonSets.ByIndex(inventory.ByNamespace, o.GetMetadata().GetNamespace()) {
		selector, err := ownership.Selector(ds.GetSpec().GetSelector())
		if err == nil && !selector.Empty() && selector.Matches(labels.Set(o.GetMetadata().GetLabels())) {
			c.Add(object.KeyOf(ds), cause)
		}
	}
}

// nodeChanged wakes the sets for which the node counts otherwise than before, all of them for one that is new or gone.
func (c *Controller) nodeChanged(old, node *corev1.Node, cause *informer.Trace) {
	if old != nil && node != nil && maps.Equal(old.GetMetadata().GetLabels(), node.GetMetadata().GetLabels()) &&
		slices.EqualFunc(old.GetSpec().GetTaints(), node.GetSpec().GetTaints(), func(a, b *corev1.Taint) bool { return proto.Equal(a, b) }) {
		return
	}
	for _, ds := range c.stores.DaemonSets.List() {
		if old != nil && node != nil {
			should, mayStay := eligible(ds, old)
			shouldNow, mayStayNow := eligible(ds, node)
			if should == shouldNow && mayStay == mayStayNow {
				continue
			}
		}
		c.Add(object.KeyOf(ds), cause)
	}
}

// round is one turn with one set.
type round struct {
	*Controller
	turn *reconcile.Turn[object.Key]
	ds   *appsv1.DaemonSet
}

func (c *Controller) reconcile(ctx context.Context, turn *reconcile.Turn[object.Key]) error {
	ds, ok := c.stores.DaemonSets.Get(turn.Key.Namespace, turn.Key.Name)
	if !ok || object.IsDeleted(ds) {
		return nil // what it leaves behind is the garbage collector's
	}
	selector, err := ownership.Selector(ds.GetSpec().GetSelector())
	if err != nil {
		c.logger.ErrorContext(ctx, "daemon set cannot select pods", slog.Any("key", turn.Key), slog.Any("error", err))
		return nil
	}
	if selector.Empty() {
		c.events.Report(ds, event.Warning, "SelectingAll", "This daemon set is selecting all pods. A non-empty selector is required.")
		return nil
	}
	r := &round{Controller: c, turn: turn, ds: ds}
	owner := history.Owner{
		Object: ds, Selector: selector, Template: ds.GetSpec().GetTemplate(), HashLabel: history.PodLabel, Collisions: ds.GetStatus().GetCollisionCount(), Live: r.live,
	}
	revisions, err := c.history.Claimed(ctx, turn, owner)
	if err != nil {
		return err
	}
	newest, err := c.history.Current(ctx, turn, owner, revisions)
	if podcontrol.Terminating(err) {
		return nil // all of it will go
	}
	if err != nil {
		return err
	}
	pods, err := r.claim(ctx, selector)
	if err != nil {
		return err
	}
	s := r.situation(pods, newest)
	p := s.place()
	if p.empty() {
		again := p.again
		p = s.roll()
		p.again = again
	}
	if p.again > 0 {
		turn.Again(p.again)
	}
	if err = r.carryOut(ctx, p, newest); podcontrol.Terminating(err) {
		err = nil
	}
	status, next := s.status(newest.Collisions)
	if next > 0 {
		turn.Again(next)
	}
	return errors.Join(err, r.updateStatus(ctx, status), r.forget(ctx, pods, newest))
}

func (r *round) live(ctx context.Context) (object.Object, error) {
	return r.sets.Get(ctx, r.turn.Key.Namespace, r.turn.Key.Name)
}

// claim returns the pods of the set, adopting and releasing as the selector says.
func (r *round) claim(ctx context.Context, selector labels.Selector) ([]*corev1.Pod, error) {
	candidates := r.stores.Pods.ByIndex(inventory.ByController, r.ds.GetMetadata().GetUid())
	candidates = append(candidates, r.stores.Pods.ByIndex(inventory.Orphans, r.turn.Key.Namespace)...)
	claim := ownership.Claim[*corev1.Pod]{
		Owner: r.ds, Selector: selector, Live: r.live,
		Update: func(ctx context.Context, p *corev1.Pod) (*corev1.Pod, error) { return r.pods.Update(ctx, r.turn, p) },
	}
	return claim.Of(ctx, candidates)
}

func (r *round) situation(pods []*corev1.Pod, newest history.Current) *situation {
	s := &situation{ds: r.ds, nodes: map[string]*corev1.Node{}, pods: map[string][]*corev1.Pod{}, hashes: map[string]bool{}, backoff: r.wait, now: r.now()}
	for _, n := range r.stores.Nodes.List() {
		s.nodes[n.GetMetadata().GetName()] = n
	}
	for _, p := range pods {
		if node := target(p); node != "" && !(object.IsDeleted(p) && podstate.IsFinished(p)) {
			s.pods[node] = append(s.pods[node], p)
		}
	}
	for _, revision := range newest.All {
		if newest.Equal[revision.GetMetadata().GetName()] {
			s.hashes[hashOf(revision)] = true
		}
	}
	return s
}

// hashOf returns what pods of a revision are labelled with. A revision without the label, adopted from somewhere, is known by its name.
func hashOf(r *appsv1.ControllerRevision) string {
	if hash := r.GetMetadata().GetLabels()[history.PodLabel]; hash != "" {
		return hash
	}
	return r.GetMetadata().GetName()
}

func (r *round) backoffKey(node string) string { return r.ds.GetMetadata().GetUid() + "/" + node }

// wait says how long a failed pod on a node is let be.
func (r *round) wait(node string) time.Duration {
	now := r.now()
	if key := r.backoffKey(node); r.backoff.IsInBackOffSinceUpdate(key, now) {
		return r.backoff.Get(key)
	}
	return 0
}

// carryOut does what was decided.
func (r *round) carryOut(ctx context.Context, p plan, newest history.Current) error {
	for _, pod := range p.failed {
		r.backoff.Next(r.backoffKey(target(pod)), r.now())
		r.events.Report(r.ds, event.Warning, "FailedDaemonPod", "Found failed daemon pod %s on node %s, will try to kill it", object.KeyOf(pod), target(pod))
	}
	for _, pod := range p.succeeded {
		r.events.Report(r.ds, event.Normal, "SucceededDaemonPod", "Found succeeded daemon pod %s on node %s, will try to delete it", object.KeyOf(pod), target(pod))
	}
	r.backoff.GC()
	if len(p.create) > burst || len(p.remove) > burst {
		r.turn.Again(0)
	}
	var wanted []*corev1.Pod
	for _, node := range p.create[:min(burst, len(p.create))] {
		wanted = append(wanted, podOf(r.ds, node, hashOf(newest.Revision)))
	}
	_, err := r.pods.Create(ctx, r.turn, r.ds, wanted)
	return errors.Join(err, r.pods.Delete(ctx, r.turn, r.ds, p.remove[:min(burst, len(p.remove))]))
}

// podOf returns a new pod for a node.
func podOf(ds *appsv1.DaemonSet, node, hash string) *corev1.Pod {
	template := ds.GetSpec().GetTemplate()
	m := &metav1.ObjectMeta{}
	m.SetNamespace(ds.GetMetadata().GetNamespace())
	m.SetGenerateName(ds.GetMetadata().GetName() + "-")
	labelled := maps.Clone(template.GetMetadata().GetLabels())
	if labelled == nil {
		labelled = map[string]string{}
	}
	labelled[history.PodLabel] = hash
	if generation := ds.GetMetadata().GetAnnotations()[generationAnnotation]; generation != "" {
		labelled[generationLabel] = generation
	}
	m.SetLabels(labelled)
	m.SetAnnotations(maps.Clone(template.GetMetadata().GetAnnotations()))
	m.SetFinalizers(slices.Clone(template.GetMetadata().GetFinalizers()))
	m.SetOwnerReferences([]*metav1.OwnerReference{ownership.Reference(ds)})
	spec := &corev1.PodSpec{}
	if template.HasSpec() {
		spec = proto.Clone(template.GetSpec()).(*corev1.PodSpec)
	}
	spec.SetTolerations(tolerations(spec))
	spec.SetAffinity(pinned(spec.GetAffinity(), node))
	pod := &corev1.Pod{}
	pod.SetMetadata(m)
	pod.SetSpec(spec)
	return pod
}

// updateStatus writes the status if it differs from what is stored.
func (r *round) updateStatus(ctx context.Context, status *appsv1.DaemonSetStatus) error {
	if r.ds.HasStatus() && proto.Equal(status, r.ds.GetStatus()) {
		return nil
	}
	updated := proto.Clone(r.ds).(*appsv1.DaemonSet)
	updated.SetStatus(status)
	updated, err := r.sets.UpdateStatus(ctx, updated)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("status of daemon set %s: %w", r.turn.Key, err)
	}
	r.turn.Wrote(updated)
	return nil
}

// forget deletes revisions that no pod has and that the set keeps no longer.
func (r *round) forget(ctx context.Context, pods []*corev1.Pod, newest history.Current) error {
	live := map[string]bool{}
	for _, p := range pods {
		live[p.GetMetadata().GetLabels()[history.PodLabel]] = true
	}
	// As in Kubernetes, those of running pods take from the number that is kept.
	old := 0
	for _, revision := range newest.All {
		if revision != newest.Revision && live[hashOf(revision)] {
			old++
		}
	}
	isLive := func(revision *appsv1.ControllerRevision) bool {
		return revision == newest.Revision || live[hashOf(revision)]
	}
	return r.history.Truncate(ctx, r.turn, newest.All, isLive, max(0, r.ds.GetSpec().GetRevisionHistoryLimit()-int32(old)))
}
