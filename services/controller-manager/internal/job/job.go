// Package job runs pods until a number of them has succeeded, as Jobs ask for.
//
// Every pod bears a finalizer until it is counted. A pod that ended is counted in three steps, as Kubernetes does: its UID is written into the job's
// status, its finalizer is removed, the UID is traded for a count. Whatever happens between two of them, no pod is counted twice and none is lost.
package job

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"google.golang.org/grpc"
	batchk8s "k8s.io/api/batch/v1"
	"k8s.io/apimachinery/pkg/labels"

	batchv1 "dhow.dev/gen/go/dhow/batch/v1"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
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

// key is one thing to look at: a job, or a pod whose job may not care for it any more.
type key struct {
	job, pod object.Key
}

// String is how logs and spans name it.
func (k key) String() string {
	if k.job.Name != "" {
		return k.job.String()
	}
	return "pod " + k.pod.String()
}

// Controller reconciles Jobs.
type Controller struct {
	*reconcile.Runner[key]
	stores *inventory.Stores
	jobs   *client.Client[*batchv1.Job]
	pods   *client.Client[*corev1.Pod]
	conn   grpc.ClientConnInterface
	events event.Source
	logger *slog.Logger
	now    func() time.Time
}

// New returns the controller, listening to the stores.
func New(cfg Config) *Controller {
	c := &Controller{
		stores: cfg.Stores, jobs: client.For[*batchv1.Job](cfg.Conn), pods: client.For[*corev1.Pod](cfg.Conn),
		conn: cfg.Conn, events: cfg.Events.Source("job-controller"), logger: cfg.Logger, now: cfg.Now,
	}
	c.Runner = reconcile.New(reconcile.Config[key]{Name: "job", Source: cfg.Stores, Workers: cfg.Workers, Reconcile: c.reconcile, Logger: cfg.Logger})
	cfg.Stores.Jobs.OnChangeTraced(c.jobChanged)
	cfg.Stores.Pods.OnChangeTraced(c.podChanged)
	return c
}

func (c *Controller) jobChanged(old, j *batchv1.Job, cause *informer.Trace) {
	if j != nil {
		c.Add(key{job: object.KeyOf(j)}, cause)
	}
	gone := j
	if j == nil {
		gone = old
	} else if !IsFinished(j) {
		return
	}
	for _, p := range c.stores.Pods.ByIndex(inventory.ByController, gone.GetMetadata().GetUid()) {
		if isTracked(p) {
			c.Add(key{pod: object.KeyOf(p)}, cause)
		}
	}
}

// podChanged wakes the pod's job: the one that controls it, the one that did before, or any that may adopt it. A pod that is tracked is looked at for
// itself too when no job will.
func (c *Controller) podChanged(old, pod *corev1.Pod, cause *informer.Trace) {
	before, after := jobOf(old), jobOf(pod)
	if before.Name != "" && before != after {
		c.Add(key{job: before}, cause)
	}
	if pod == nil {
		return
	}
	switch {
	case after.Name != "":
		c.Add(key{job: after}, cause)
	case object.ControllerOf(pod) == nil && !object.IsDeleted(pod):
		for _, j := range c.stores.Jobs.ByIndex(inventory.ByNamespace, pod.GetMetadata().GetNamespace()) {
			selector, err := ownership.Selector(j.GetSpec().GetSelector())
			if err == nil && !selector.Empty() && selector.Matches(labels.Set(pod.GetMetadata().GetLabels())) {
				c.Add(key{job: object.KeyOf(j)}, cause)
			}
		}
	}
	if isTracked(pod) && c.isForgotten(pod) {
		c.Add(key{pod: object.KeyOf(pod)}, cause)
	}
}

// jobOf returns the key of the job that controls the pod, without a name when none does. A namesake of another UID may be woken in vain.
func jobOf(pod *corev1.Pod) object.Key {
	if pod == nil {
		return object.Key{}
	}
	if r := object.ControllerOf(pod); r.GetKind() == "Job" {
		return object.Key{Namespace: pod.GetMetadata().GetNamespace(), Name: r.GetName()}
	}
	return object.Key{}
}

// isForgotten says that no job will count the pod: it has none, or its job is gone or has finished.
func (c *Controller) isForgotten(pod *corev1.Pod) bool {
	owner := object.ControllerOf(pod)
	if owner == nil {
		return object.IsDeleted(pod)
	}
	if owner.GetKind() != "Job" {
		return true
	}
	j, ok := c.stores.Jobs.Get(pod.GetMetadata().GetNamespace(), owner.GetName())
	switch {
	case !ok || j.GetMetadata().GetUid() != owner.GetUid():
		return true
	case !isOurs(j):
		return false
	}
	return IsFinished(j)
}

// IsFinished says that a job is complete or has failed, for good.
func IsFinished(j *batchv1.Job) bool {
	return isTrue(j, batchk8s.JobComplete) || isTrue(j, batchk8s.JobFailed)
}

// isOurs says that no other controller is to look after the job.
func isOurs(j *batchv1.Job) bool {
	return !j.GetSpec().HasManagedBy() || j.GetSpec().GetManagedBy() == batchk8s.JobControllerName
}

func (c *Controller) reconcile(ctx context.Context, turn *reconcile.Turn[key]) error {
	if turn.Key.pod.Name != "" {
		p, ok := c.stores.Pods.Get(turn.Key.pod.Namespace, turn.Key.pod.Name)
		if !ok || !isTracked(p) || !c.isForgotten(p) {
			return nil
		}
		return c.untrack(ctx, turn, p)
	}
	j, ok := c.stores.Jobs.Get(turn.Key.job.Namespace, turn.Key.job.Name)
	if !ok || !isOurs(j) || IsFinished(j) {
		return nil // its pods are the garbage collector's
	}
	switch mode := batchk8s.CompletionMode(j.GetSpec().GetCompletionMode()); mode {
	case batchk8s.NonIndexedCompletion, batchk8s.IndexedCompletion, "":
	default:
		c.events.Report(j, event.Warning, "UnknownCompletionMode", "Skipped Job sync because completion mode %q is unknown", mode)
		return nil
	}
	pods, err := c.claim(ctx, turn, j)
	if err != nil {
		return err
	}
	r := newRound(j, pods, c.now())
	if ns, ok := c.stores.Namespaces.Get("", turn.Key.job.Namespace); ok && object.IsDeleted(ns) {
		// Pods go before the rest of their namespace, and nothing is made in it any more: a failed pod that waited for its successor would keep all of it for ever.
		clear(r.last)
	}
	manageErr := c.act(ctx, turn, r)
	// What happened is written also when not everything could be done.
	return errors.Join(c.track(ctx, turn, r), manageErr)
}

// claim returns the pods of the job, adopting and releasing as the selector says. What is adopted is tracked from then on.
func (c *Controller) claim(ctx context.Context, turn *reconcile.Turn[key], j *batchv1.Job) ([]*corev1.Pod, error) {
	selector, err := ownership.Selector(j.GetSpec().GetSelector())
	if err != nil {
		return nil, err
	}
	uid := j.GetMetadata().GetUid()
	claim := ownership.Claim[*corev1.Pod]{
		Owner: j, Selector: selector,
		Live: func(ctx context.Context) (object.Object, error) {
			return c.jobs.Get(ctx, turn.Key.job.Namespace, turn.Key.job.Name)
		},
		Update: func(ctx context.Context, p *corev1.Pod) (*corev1.Pod, error) {
			m := p.GetMetadata()
			finalizers := slices.DeleteFunc(slices.Clone(m.GetFinalizers()), func(f string) bool { return f == batchk8s.JobTrackingFinalizer })
			if ownership.ControllerUID(p) == uid {
				finalizers = append(finalizers, batchk8s.JobTrackingFinalizer)
			}
			m.SetFinalizers(finalizers)
			p, err := c.pods.Update(ctx, p, nil)
			if err == nil {
				turn.Wrote(p)
			}
			return p, err
		},
	}
	candidates := c.stores.Pods.ByIndex(inventory.ByController, uid)
	candidates = append(candidates, c.stores.Pods.ByIndex(inventory.Orphans, turn.Key.job.Namespace)...)
	return claim.Of(ctx, candidates)
}

// isTracked says that the pod has not been counted yet.
func isTracked(p *corev1.Pod) bool {
	return slices.Contains(p.GetMetadata().GetFinalizers(), batchk8s.JobTrackingFinalizer)
}

// isFailed says that the pod counts as failed: it has, or it is being deleted and its job does not wait for how it ends.
func isFailed(j *batchv1.Job, p *corev1.Pod) bool {
	switch p.GetStatus().GetPhase() {
	case podstate.Failed:
		return true
	case podstate.Succeeded:
		return false
	}
	return !replacesFailedAlone(j) && object.IsDeleted(p)
}

// replacesFailedAlone says that a pod which is being deleted is replaced only when it has ended.
func replacesFailedAlone(j *batchv1.Job) bool {
	return j.GetSpec().GetPodReplacementPolicy() == string(batchk8s.Failed) || j.GetSpec().HasPodFailurePolicy()
}

func isIndexed(j *batchv1.Job) bool {
	return j.GetSpec().GetCompletionMode() == string(batchk8s.IndexedCompletion)
}
