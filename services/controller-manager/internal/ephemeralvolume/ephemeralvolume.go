// Package ephemeralvolume makes the claims of pods' generic ephemeral volumes: each is the pod's own and goes with it.
package ephemeralvolume

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

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
	Workers int
}

// Controller reconciles pods with ephemeral volumes.
type Controller struct {
	*reconcile.Runner[object.Key]
	stores *inventory.Stores
	events event.Source
	claims *client.Client[*corev1.PersistentVolumeClaim]
}

// New returns the controller, listening to the stores.
func New(cfg Config) *Controller {
	c := &Controller{stores: cfg.Stores, events: cfg.Events.Source("ephemeral_volume"), claims: client.For[*corev1.PersistentVolumeClaim](cfg.Conn)}
	c.Runner = reconcile.New(reconcile.Config[object.Key]{
		Name: "ephemeralvolume", Source: cfg.Stores, Workers: cfg.Workers, Reconcile: c.reconcile, Logger: cfg.Logger,
	})
	cfg.Stores.Pods.OnChangeTraced(func(_, pod *corev1.Pod, cause *informer.Trace) {
		for _, v := range pod.GetSpec().GetVolumes() {
			if v.GetVolumeSource().HasEphemeral() {
				c.Add(object.KeyOf(pod), cause)
				return
			}
		}
	})
	// A claim that goes before its pod is made again; one that was in the way of another pod's is.
	cfg.Stores.PersistentVolumeClaims.OnChangeTraced(func(old, claim *corev1.PersistentVolumeClaim, cause *informer.Trace) {
		if claim != nil {
			return
		}
		for _, p := range c.stores.Pods.ByIndex(inventory.ByClaim, object.KeyOf(old).String()) {
			c.Add(object.KeyOf(p), cause)
		}
	})
	return c
}

func (c *Controller) reconcile(ctx context.Context, turn *reconcile.Turn[object.Key]) error {
	pod, ok := c.stores.Pods.Get(turn.Key.Namespace, turn.Key.Name)
	if !ok || !podstate.IsActive(pod) {
		return nil
	}
	var failed error
	for _, v := range pod.GetSpec().GetVolumes() {
		if !v.GetVolumeSource().HasEphemeral() {
			continue
		}
		if err := c.claim(ctx, turn, pod, v); err != nil {
			c.events.Report(pod, "Warning", "FailedBinding", "ephemeral volume %s: %v", v.GetName(), err)
			failed = errors.Join(failed, fmt.Errorf("pod %s, ephemeral volume %s: %w", turn.Key, v.GetName(), err))
		}
	}
	return failed
}

func (c *Controller) claim(ctx context.Context, turn *reconcile.Turn[object.Key], pod *corev1.Pod, v *corev1.Volume) error {
	name := pod.GetMetadata().GetName() + "-" + v.GetName()
	if have, ok := c.stores.PersistentVolumeClaims.Get(turn.Key.Namespace, name); ok {
		if object.ControllerOf(have).GetUid() != pod.GetMetadata().GetUid() {
			return fmt.Errorf("PVC %q was not created for pod %q (pod is not owner)", turn.Key.Namespace+"/"+name, turn.Key)
		}
		return nil
	}
	template := v.GetVolumeSource().GetEphemeral().GetVolumeClaimTemplate()
	claim := corev1.PersistentVolumeClaim_builder{
		Metadata: metav1.ObjectMeta_builder{
			Namespace: proto.String(turn.Key.Namespace), Name: proto.String(name), Labels: template.GetMetadata().GetLabels(),
			Annotations: template.GetMetadata().GetAnnotations(), OwnerReferences: []*metav1.OwnerReference{ownership.Reference(pod)},
		}.Build(),
		Spec: proto.Clone(template.GetSpec()).(*corev1.PersistentVolumeClaimSpec),
	}.Build()
	written, err := c.claims.Create(ctx, claim, nil)
	if apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("create PVC %s: %w", name, err)
	}
	if err != nil {
		return err
	}
	turn.Wrote(written)
	return nil
}
