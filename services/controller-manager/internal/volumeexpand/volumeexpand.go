// Package volumeexpand tells users whose claims ask for more than they have who makes the volume larger: the driver's own resizer, as in Kubernetes. The resizer of
// a driver that serves a plugin which Kubernetes had built in is named on the claim: it looks for its name. Volumes of FlexVolume drivers, which have no resizer, are the business of the node that has
// the driver. Volumes of the built-in provisioner grow in package localpath.
package volumeexpand

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"k8s.io/apimachinery/pkg/api/resource"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/csimigration"
	"dhow.dev/pkg/event"
	"dhow.dev/pkg/informer"
	"dhow.dev/pkg/object"
	"dhow.dev/services/controller-manager/internal/apitime"
	"dhow.dev/services/controller-manager/internal/inventory"
	"dhow.dev/services/controller-manager/internal/localpath"
	"dhow.dev/services/controller-manager/internal/reconcile"
)

// resizer is the annotation of claims that says who makes them larger.
const resizer = "volume.kubernetes.io/storage-resizer"

// What a claim says that has grown but for its node's part.
const (
	nodeResizePending       = "NodeResizePending"
	fileSystemResizePending = "FileSystemResizePending"
)

// Config is what the controller is made of.
type Config struct {
	Conn    grpc.ClientConnInterface
	Stores  *inventory.Stores
	Events  *event.Recorder
	Logger  *slog.Logger
	Workers int
}

// Controller reconciles bound claims.
type Controller struct {
	*reconcile.Runner[object.Key]
	stores  *inventory.Stores
	events  event.Source
	claims  *client.Client[*corev1.PersistentVolumeClaim]
	volumes *client.Client[*corev1.PersistentVolume]
}

// New returns the controller, listening to the stores.
func New(cfg Config) *Controller {
	c := &Controller{stores: cfg.Stores, events: cfg.Events.Source("volume_expand"), claims: client.For[*corev1.PersistentVolumeClaim](cfg.Conn),
		volumes: client.For[*corev1.PersistentVolume](cfg.Conn)}
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

func (c *Controller) reconcile(ctx context.Context, turn *reconcile.Turn[object.Key]) error {
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
	if csimigration.IsPersistent(v) {
		return c.migrated(ctx, turn, claim, v)
	}
	if v.GetSpec().GetPersistentVolumeSource().HasFlexVolume() {
		return c.onNode(ctx, turn, claim, v)
	}
	c.events.Report(claim, "Normal", "ExternalExpanding", "waiting for an external controller to expand this PVC")
	return nil
}

// onNode gives a volume the size that its claim asks for and leaves it to the node that uses it to make that true: first the volume, which the node takes the size from, then the claim.
func (c *Controller) onNode(ctx context.Context, turn *reconcile.Turn[object.Key], claim *corev1.PersistentVolumeClaim, v *corev1.PersistentVolume) error {
	want := claim.GetSpec().GetResources().GetRequests()["storage"]
	if less(v.GetSpec().GetCapacity()["storage"], want) {
		next := proto.CloneOf(v)
		next.GetSpec().SetCapacity(with(next.GetSpec().GetCapacity(), want))
		written, err := c.volumes.Update(ctx, next, nil)
		if err != nil {
			return fmt.Errorf("grow volume %s: %w", v.GetMetadata().GetName(), err)
		}
		turn.Wrote(written)
	}
	next := proto.CloneOf(claim)
	s := next.GetStatus()
	s.SetAllocatedResources(with(s.GetAllocatedResources(), want))
	s.SetAllocatedResourceStatuses(with(s.GetAllocatedResourceStatuses(), nodeResizePending))
	if !slices.ContainsFunc(s.GetConditions(), func(c *corev1.PersistentVolumeClaimCondition) bool { return c.GetType() == fileSystemResizePending }) {
		s.SetConditions(append(s.GetConditions(), corev1.PersistentVolumeClaimCondition_builder{
			Type: proto.String(fileSystemResizePending), Status: proto.String("True"), LastTransitionTime: apitime.Of(time.Now()),
			Message: proto.String("Waiting for user to (re-)start a pod to finish file system resize of volume on node."),
		}.Build()))
	}
	if proto.Equal(next, claim) {
		return nil
	}
	written, err := c.claims.UpdateStatus(ctx, next)
	if err != nil {
		return fmt.Errorf("claim %s waits for its node: %w", object.KeyOf(claim), err)
	}
	turn.Wrote(written)
	c.events.Report(claim, "Normal", "FileSystemResizeRequired", "Require file system resize of volume on node")
	return nil
}

// with returns a list in which storage has another value.
func with[V any](list map[string]V, value V) map[string]V {
	next := maps.Clone(list)
	if next == nil {
		next = map[string]V{}
	}
	next["storage"] = value
	return next
}

// less compares quantities; one that is absent is nothing.
func less(a, b *metav1.Quantity) bool {
	x, errX := resource.ParseQuantity(a.GetString())
	y, errY := resource.ParseQuantity(b.GetString())
	return errY == nil && (errX != nil || x.Cmp(y) < 0)
}

// migrated names the resizer of the driver that serves a volume's plugin now.
func (c *Controller) migrated(ctx context.Context, turn *reconcile.Turn[object.Key], claim *corev1.PersistentVolumeClaim, v *corev1.PersistentVolume) error {
	plugin, err := csimigration.Plugin(v)
	if err != nil {
		return err
	}
	driver, ok := csimigration.Driver(plugin)
	if !ok {
		return fmt.Errorf("no driver serves the plugin %s", plugin)
	}
	c.events.Report(claim, "Normal", "ExternalExpanding", "CSI migration enabled for %s; waiting for external resizer to expand the pvc", plugin)
	if claim.GetMetadata().GetAnnotations()[resizer] == driver {
		return nil
	}
	next := proto.CloneOf(claim)
	annotations := map[string]string{}
	maps.Copy(annotations, claim.GetMetadata().GetAnnotations())
	annotations[resizer] = driver
	next.GetMetadata().SetAnnotations(annotations)
	written, err := c.claims.Update(ctx, next, nil)
	if err != nil {
		return fmt.Errorf("resizer of claim %s: %w", object.KeyOf(claim), err)
	}
	turn.Wrote(written)
	return nil
}
