// Package horizontalpodautoscaler changes how many pods something has by what is measured of them, as HorizontalPodAutoscalers ask for.
//
// An autoscaler is looked at every 15 seconds, and when its spec changes. calculator.go says what single metrics ask for, evaluate.go what comes of all of
// them, normalize.go how fast that may happen.
package horizontalpodautoscaler

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	k8s "k8s.io/api/autoscaling/v2"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	kmetav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"

	autoscalingv1 "dhow.dev/gen/go/dhow/autoscaling/v1"
	autoscalingv2 "dhow.dev/gen/go/dhow/autoscaling/v2"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/apistatus"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/event"
	"dhow.dev/pkg/informer"
	"dhow.dev/pkg/object"
	"dhow.dev/pkg/resource"
	"dhow.dev/services/controller-manager/internal/inventory"
	"dhow.dev/services/controller-manager/internal/reconcile"
)

// period is how often an autoscaler is looked at; Kubernetes' number, and about how often nodes measure.
const period = 15 * time.Second

// Config is what the controller is made of.
type Config struct {
	Conn    grpc.ClientConnInterface
	Stores  *inventory.Stores
	Metrics Metrics
	Events  *event.Recorder
	Logger  *slog.Logger
	Now     func() time.Time
	Workers int
}

// Controller reconciles HorizontalPodAutoscalers.
type Controller struct {
	*reconcile.Runner[object.Key]
	conn    grpc.ClientConnInterface
	stores  *inventory.Stores
	metrics Metrics
	scalers *client.Client[*autoscalingv2.HorizontalPodAutoscaler]
	events  event.Source
	now     func() time.Time

	// mu guards the maps, not what a history holds: that is the turn's alone.
	mu        sync.Mutex
	histories map[object.Key]*history
	selectors map[object.Key]labels.Selector
}

// New returns the controller, listening to the stores.
func New(cfg Config) *Controller {
	c := &Controller{
		conn: cfg.Conn, stores: cfg.Stores, metrics: cfg.Metrics, scalers: client.For[*autoscalingv2.HorizontalPodAutoscaler](cfg.Conn),
		events: cfg.Events.Source("horizontal-pod-autoscaler"), now: cfg.Now,
		histories: map[object.Key]*history{}, selectors: map[object.Key]labels.Selector{},
	}
	c.Runner = reconcile.New(reconcile.Config[object.Key]{
		Name: "horizontalpodautoscaler", Source: cfg.Stores, Workers: cfg.Workers, Reconcile: c.reconcile, Logger: cfg.Logger,
	})
	cfg.Stores.HorizontalAutoscalers.OnChangeTraced(func(old, hpa *autoscalingv2.HorizontalPodAutoscaler, cause *informer.Trace) {
		switch {
		case hpa == nil:
			c.Add(object.KeyOf(old), cause)
		case old == nil || !proto.Equal(old.GetSpec(), hpa.GetSpec()):
			// The status is written at every look: it may not bring the next one.
			c.Add(object.KeyOf(hpa), cause)
		}
	})
	return c
}

// historyOf returns what is remembered of an autoscaler.
func (c *Controller) historyOf(key object.Key) *history {
	c.mu.Lock()
	defer c.mu.Unlock()
	h := c.histories[key]
	if h == nil {
		h = &history{}
		c.histories[key] = h
	}
	return h
}

func (c *Controller) forget(key object.Key) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.histories, key)
	delete(c.selectors, key)
}

// others remembers what an autoscaler selects, and returns the names of all that select one of the pods when there are several.
func (c *Controller) others(key object.Key, selector labels.Selector, pods []*corev1.Pod) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.selectors[key] = selector
	var names []string
	for other, s := range c.selectors {
		if other.Namespace == key.Namespace && (other == key ||
			slices.ContainsFunc(pods, func(p *corev1.Pod) bool { return s.Matches(labels.Set(p.GetMetadata().GetLabels())) })) {
			names = append(names, other.String())
		}
	}
	if len(names) < 2 {
		return nil
	}
	slices.Sort(names)
	return names
}

func (c *Controller) reconcile(ctx context.Context, turn *reconcile.Turn[object.Key]) error {
	stored, ok := c.stores.HorizontalAutoscalers.Get(turn.Key.Namespace, turn.Key.Name)
	if !ok {
		c.forget(turn.Key)
		return nil
	}
	hpa, err := decode(stored)
	if err != nil {
		return err
	}
	// Also what fails is looked at again in its time, not sooner: metrics do not come faster when they are asked for.
	turn.Again(period)
	e := &evaluation{
		hpa: hpa, metrics: c.metrics, history: c.historyOf(turn.Key), now: c.now(),
		pods: func(selector labels.Selector) []*corev1.Pod {
			return slices.DeleteFunc(c.stores.Pods.ByIndex(inventory.ByNamespace, turn.Key.Namespace), func(p *corev1.Pod) bool {
				return !selector.Matches(labels.Set(p.GetMetadata().GetLabels()))
			})
		},
		others: func(selector labels.Selector, pods []*corev1.Pod) []string { return c.others(turn.Key, selector, pods) },
		report: func(reason, message string) { c.events.Report(stored, event.Warning, reason, "%s", message) },
	}
	return errors.Join(c.scale(ctx, turn, &stored, e), c.writeStatus(ctx, turn, &stored, hpa))
}

// scale looks at the target and changes its size. What cannot be done is told in the status.
func (c *Controller) scale(ctx context.Context, turn *reconcile.Turn[object.Key], of **autoscalingv2.HorizontalPodAutoscaler, e *evaluation) error {
	status, stored := &e.hpa.Status, *of
	status.ObservedGeneration = &e.hpa.Generation
	target, kind, err := c.target(ctx, e.hpa)
	if err != nil {
		c.events.Report(stored, event.Warning, "FailedGetScale", "%v", err)
		e.condition(k8s.AbleToScale, false, "FailedGetScale", fmt.Sprintf("the HPA controller was unable to get the target's current scale: %v", err))
		return nil
	}
	e.condition(k8s.AbleToScale, true, "SucceededGetScale", "the HPA controller was able to get the target's current scale")
	current := target.GetSpec().GetReplicas()
	e.size, e.selector = size{wanted: current, existing: target.GetStatus().GetReplicas()}, target.GetStatus().GetSelector()
	status.CurrentReplicas = current
	d, err := e.decide(ctx)
	if err != nil {
		c.events.Report(stored, event.Warning, "FailedComputeMetricsReplicas", "%v", err)
		return nil
	}
	status.DesiredReplicas = d.replicas
	// That a target is woken is noted when it is: one that could not be would sleep on for ever.
	wakes := current == 0 && d.replicas > 0
	if current > 0 || !wakes && !e.isTrue(k8s.ScaledToZero) {
		e.noteZero(current, d.replicas)
	}
	if !d.rescale {
		return nil
	}
	if d.replicas == 0 {
		// That it was the autoscaler who did it is written first: a process that ends in between would leave a target that never wakes.
		if err := c.writeStatus(ctx, turn, of, e.hpa); err != nil {
			return err
		}
	}
	target.GetSpec().SetReplicas(d.replicas)
	if err := c.conn.Invoke(ctx, kind.Method("UpdateScale"), autoscalingv1.ScaleWriteRequest_builder{Object: target}.Build(), &autoscalingv1.Scale{}); err != nil {
		err = apistatus.FromGRPC(err)
		if apierrors.IsConflict(err) {
			// Somebody has written the target meanwhile, its own controller mostly: that is no reason to wait for the next look.
			status.DesiredReplicas = current
			return fmt.Errorf("scale of autoscaler %s's target: %w", turn.Key, err)
		}
		c.events.Report(stored, event.Warning, "FailedRescale", "New size: %d; reason: %s; error: %v", d.replicas, d.why, err)
		e.condition(k8s.AbleToScale, false, "FailedUpdateScale", fmt.Sprintf("the HPA controller was unable to update the target scale: %v", err))
		status.DesiredReplicas = current
		return nil
	}
	if wakes {
		e.noteZero(current, d.replicas)
	}
	e.condition(k8s.AbleToScale, true, "SucceededRescale", fmt.Sprintf("the HPA controller was able to update the target scale to %d", d.replicas))
	c.events.Report(stored, event.Normal, "SuccessfulRescale", "New size: %d; reason: %s", d.replicas, d.why)
	e.history.note(current, d.replicas, e.now)
	now := kmetav1.NewTime(e.now.Truncate(time.Second))
	status.LastScaleTime = &now
	return nil
}

// noteZero remembers whether it was the autoscaler that emptied its target. Only autoscalers that may are told of.
func (e *evaluation) noteZero(current, desired int32) {
	if e.limits().least != 0 || !e.wakes() {
		e.hpa.Status.Conditions = slices.DeleteFunc(e.hpa.Status.Conditions, func(c k8s.HorizontalPodAutoscalerCondition) bool { return c.Type == k8s.ScaledToZero })
		return
	}
	if current > 0 && desired == 0 {
		e.condition(k8s.ScaledToZero, true, "ScaledToZero", "the HPA controller scaled the workload to zero")
		return
	}
	e.condition(k8s.ScaledToZero, false, "NotScaledToZero", "the HPA controller did not scale the workload to zero")
}

// target reads the scale of what an autoscaler is for.
func (c *Controller) target(ctx context.Context, hpa *k8s.HorizontalPodAutoscaler) (*autoscalingv1.Scale, *resource.Resource, error) {
	ref := hpa.Spec.ScaleTargetRef
	version, err := schema.ParseGroupVersion(ref.APIVersion)
	if err != nil {
		return nil, nil, fmt.Errorf("invalid API version in scale target reference: %w", err)
	}
	kind := resource.ByKind(version.Group, ref.Kind)
	if kind == nil {
		return nil, nil, fmt.Errorf("unable to determine resource for scale target reference: %w",
			&meta.NoKindMatchError{GroupKind: version.WithKind(ref.Kind).GroupKind(), SearchedVersions: []string{version.Version}})
	}
	if kind.Service().Methods().ByName("GetScale") == nil {
		return nil, nil, fmt.Errorf("%s does not implement the scale subresource", kind.GroupResource())
	}
	scale := &autoscalingv1.Scale{}
	if err := c.conn.Invoke(ctx, kind.Method("GetScale"), metav1.GetRequest_builder{Namespace: hpa.Namespace, Name: ref.Name}.Build(), scale); err != nil {
		return nil, nil, apistatus.FromGRPC(err)
	}
	if !scale.HasSpec() {
		scale.SetSpec(&autoscalingv1.ScaleSpec{})
	}
	return scale, kind, nil
}

// writeStatus writes the status if it is not what is stored, and notes what then is.
func (c *Controller) writeStatus(ctx context.Context, turn *reconcile.Turn[object.Key], stored **autoscalingv2.HorizontalPodAutoscaler, hpa *k8s.HorizontalPodAutoscaler) error {
	updated, err := encode(hpa)
	if err != nil {
		return err
	}
	if proto.Equal(updated.GetStatus(), (*stored).GetStatus()) {
		return nil
	}
	written, err := c.scalers.UpdateStatus(ctx, updated)
	switch {
	case apierrors.IsNotFound(err):
		return nil
	case err != nil:
		return fmt.Errorf("status of autoscaler %s: %w", turn.Key, err)
	}
	turn.Wrote(written)
	*stored, hpa.ResourceVersion = written, written.GetMetadata().GetResourceVersion()
	return nil
}

// decode returns the Kubernetes struct of an autoscaler, whose bytes are the same. The structs come with quantities and optional fields.
func decode(in *autoscalingv2.HorizontalPodAutoscaler) (*k8s.HorizontalPodAutoscaler, error) {
	data, err := proto.Marshal(in)
	out := &k8s.HorizontalPodAutoscaler{}
	if err = errors.Join(err, out.Unmarshal(data)); err != nil {
		return nil, fmt.Errorf("decode autoscaler %s: %w", object.KeyOf(in), err)
	}
	return out, nil
}

// encode is the way back.
func encode(in *k8s.HorizontalPodAutoscaler) (*autoscalingv2.HorizontalPodAutoscaler, error) {
	data, err := in.Marshal()
	out := &autoscalingv2.HorizontalPodAutoscaler{}
	if err = errors.Join(err, proto.Unmarshal(data, out)); err != nil {
		return nil, fmt.Errorf("encode autoscaler %s/%s: %w", in.Namespace, in.Name, err)
	}
	return out, nil
}
