// Package volumeexpand tells users whose claims ask for more than they have who makes the volume larger: the driver's own resizer, as in Kubernetes. Volumes of
// the built-in provisioner grow in package localpath.
package volumeexpand

import (
	"context"
	"log/slog"

	"k8s.io/apimachinery/pkg/api/resource"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/pkg/event"
	"dhow.dev/pkg/informer"
	"dhow.dev/pkg/object"
	"dhow.dev/services/controller-manager/internal/inventory"
	"dhow.dev/services/controller-manager/internal/localpath"
	"dhow.dev/services/controller-manager/internal/reconcile"
)

// Config is what the controller is made of.
type Config struct {
	Stores  *inventory.Stores
	Events  *event.Recorder
	Logger  *slog.Logger
	Workers int
}

// Controller reconciles bound claims.
type Controller struct {
	*reconcile.Runner[object.Key]
	stores *inventory.Stores
	events event.Source
}

// New returns the controller, listening to the stores.
func New(cfg Config) *Controller {
	c := &Controller{stores: cfg.Stores, events: cfg.Events.Source("volume_expand")}
	c.Runner = reconcile.New(reconcile.Config[object.Key]{
		Name: "volumeexpand", Source: cfg.Stores, Workers: cfg.Workers, Reconcile: c.reconcile, Logger: cfg.Logger,
	})
	cfg.Stores.PersistentVolumeClaims.OnChangeTraced(func(old, claim *corev1.PersistentVolumeClaim, cause *informer.Trace) {
		before, now := old.GetSpec().GetResources().GetRequests()["storage"], claim.GetSpec().GetResources().GetRequests()["storage"]
		if claim != nil && claim.GetStatus().GetPhase() == "Bound" && (old == nil || before.GetString() != now.GetString()) {
			c.Add(object.KeyOf(claim), cause)
		}
	})
	return c
}

func (c *Controller) reconcile(_ context.Context, turn *reconcile.Turn[object.Key]) error {
	claim, ok := c.stores.PersistentVolumeClaims.Get(turn.Key.Namespace, turn.Key.Name)
	if !ok {
		return nil
	}
	want, errWant := resource.ParseQuantity(claim.GetSpec().GetResources().GetRequests()["storage"].GetString())
	have, errHave := resource.ParseQuantity(claim.GetStatus().GetCapacity()["storage"].GetString())
	v, ok := c.stores.PersistentVolumes.Get("", claim.GetSpec().GetVolumeName())
	if errWant != nil || errHave != nil || want.Cmp(have) <= 0 || !ok || v.GetMetadata().GetAnnotations()["pv.kubernetes.io/provisioned-by"] == localpath.Provisioner {
		return nil
	}
	c.events.Report(claim, "Normal", "ExternalExpanding", "waiting for an external controller to expand this PVC")
	return nil
}
