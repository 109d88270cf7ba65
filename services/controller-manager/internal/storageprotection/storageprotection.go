// Package storageprotection lets volume claims and volumes go when nobody uses them any more: it takes away the finalizers that keep them until then.
//
// The API server gives every claim and volume its finalizer when it is created. A claim is used while a pod on a node refers to it, a volume while it is bound.
package storageprotection

import (
	"context"
	"fmt"
	"log/slog"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/informer"
	"dhow.dev/pkg/object"
	"dhow.dev/services/controller-manager/internal/inventory"
	"dhow.dev/services/controller-manager/internal/reconcile"
)

const (
	claimFinalizer  = "kubernetes.io/pvc-protection"
	volumeFinalizer = "kubernetes.io/pv-protection"
	bound           = "Bound"
)

// Config is what the controller is made of.
type Config struct {
	Conn    grpc.ClientConnInterface
	Stores  *inventory.Stores
	Logger  *slog.Logger
	Workers int
}

// Controller reconciles claims and volumes that are being deleted. A key without namespace is a volume's.
type Controller struct {
	*reconcile.Runner[object.Key]
	stores  *inventory.Stores
	claims  *client.Client[*corev1.PersistentVolumeClaim]
	volumes *client.Client[*corev1.PersistentVolume]
}

// New returns the controller, listening to the stores.
func New(cfg Config) *Controller {
	c := &Controller{stores: cfg.Stores, claims: client.For[*corev1.PersistentVolumeClaim](cfg.Conn), volumes: client.For[*corev1.PersistentVolume](cfg.Conn)}
	c.Runner = reconcile.New(reconcile.Config[object.Key]{
		Name: "storageprotection", Source: cfg.Stores, Workers: cfg.Workers, Reconcile: c.reconcile, Logger: cfg.Logger,
	})
	cfg.Stores.PersistentVolumeClaims.OnChangeTraced(func(_, claim *corev1.PersistentVolumeClaim, cause *informer.Trace) {
		if claim != nil && object.IsDeleted(claim) {
			c.Add(object.KeyOf(claim), cause)
		}
	})
	cfg.Stores.PersistentVolumes.OnChangeTraced(func(_, volume *corev1.PersistentVolume, cause *informer.Trace) {
		if volume != nil && object.IsDeleted(volume) {
			c.Add(object.KeyOf(volume), cause)
		}
	})
	cfg.Stores.Pods.OnChangeTraced(func(old, pod *corev1.Pod, cause *informer.Trace) {
		if pod != nil {
			return
		}
		for _, name := range inventory.ClaimsOf(old) {
			c.Add(object.Key{Namespace: old.GetMetadata().GetNamespace(), Name: name}, cause)
		}
	})
	return c
}

func (c *Controller) reconcile(ctx context.Context, turn *reconcile.Turn[object.Key]) error {
	if turn.Key.Namespace == "" {
		volume, ok := c.stores.PersistentVolumes.Get("", turn.Key.Name)
		if !ok || volume.GetStatus().GetPhase() == bound {
			return nil
		}
		return release(ctx, turn, c.volumes, volume, volumeFinalizer)
	}
	claim, ok := c.stores.PersistentVolumeClaims.Get(turn.Key.Namespace, turn.Key.Name)
	if !ok {
		return nil
	}
	for _, pod := range c.stores.Pods.ByIndex(inventory.ByClaim, turn.Key.String()) {
		// A pod without node uses nothing: it is not placed while its claim is being deleted.
		if pod.GetSpec().GetNodeName() != "" {
			return nil
		}
	}
	return release(ctx, turn, c.claims, claim, claimFinalizer)
}

// release takes a finalizer off an object that is being deleted, on the condition that the object is as it was looked at.
func release[T object.Object](ctx context.Context, turn *reconcile.Turn[object.Key], objects *client.Client[T], o T, finalizer string) error {
	if !object.IsDeleted(o) || !slices.Contains(o.GetMetadata().GetFinalizers(), finalizer) {
		return nil
	}
	next := proto.Clone(o).(T)
	next.GetMetadata().SetFinalizers(slices.DeleteFunc(slices.Clone(o.GetMetadata().GetFinalizers()), func(f string) bool { return f == finalizer }))
	written, err := objects.Update(ctx, next, nil)
	switch {
	case err == nil:
		turn.Wrote(written)
		return nil
	case apierrors.IsNotFound(err):
		return nil
	}
	return fmt.Errorf("take %s off %s: %w", finalizer, turn.Key, err)
}
