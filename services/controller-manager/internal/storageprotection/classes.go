package storageprotection

import (
	"context"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	storagev1 "dhow.dev/gen/go/dhow/storage/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/informer"
	"dhow.dev/pkg/object"
	"dhow.dev/services/controller-manager/internal/inventory"
	"dhow.dev/services/controller-manager/internal/reconcile"
)

const classFinalizer = "kubernetes.io/vac-protection"

// Classes reconciles VolumeAttributesClasses that are being deleted: one stays while a claim or a volume has it, gets it, or wants it.
type Classes struct {
	*reconcile.Runner[object.Key]
	stores  *inventory.Stores
	classes *client.Client[*storagev1.VolumeAttributesClass]
}

// NewClasses returns the controller of classes, listening to the stores.
func NewClasses(cfg Config) *Classes {
	c := &Classes{stores: cfg.Stores, classes: client.For[*storagev1.VolumeAttributesClass](cfg.Conn)}
	c.Runner = reconcile.New(reconcile.Config[object.Key]{
		Name: "attributesclassprotection", Source: cfg.Stores, Workers: cfg.Workers, Reconcile: c.reconcile, Logger: cfg.Logger,
	})
	cfg.Stores.VolumeAttributesClasses.OnChangeTraced(func(_, class *storagev1.VolumeAttributesClass, cause *informer.Trace) {
		if class != nil && object.IsDeleted(class) {
			c.Add(object.KeyOf(class), cause)
		}
	})
	cfg.Stores.PersistentVolumeClaims.OnChangeTraced(func(old, _ *corev1.PersistentVolumeClaim, cause *informer.Trace) {
		for _, name := range classesOf(old) {
			c.Add(object.Key{Name: name}, cause)
		}
	})
	cfg.Stores.PersistentVolumes.OnChangeTraced(func(old, _ *corev1.PersistentVolume, cause *informer.Trace) {
		if name := old.GetSpec().GetVolumeAttributesClassName(); name != "" {
			c.Add(object.Key{Name: name}, cause)
		}
	})
	return c
}

// classesOf returns the classes that a claim wants, gets and has.
func classesOf(claim *corev1.PersistentVolumeClaim) []string {
	var names []string
	for _, name := range []string{claim.GetSpec().GetVolumeAttributesClassName(), claim.GetStatus().GetModifyVolumeStatus().GetTargetVolumeAttributesClassName(),
		claim.GetStatus().GetCurrentVolumeAttributesClassName()} {
		if name != "" {
			names = append(names, name)
		}
	}
	return names
}

func (c *Classes) reconcile(ctx context.Context, turn *reconcile.Turn[object.Key]) error {
	class, ok := c.stores.VolumeAttributesClasses.Get("", turn.Key.Name)
	if !ok || !object.IsDeleted(class) {
		return nil
	}
	for _, v := range c.stores.PersistentVolumes.List() {
		if v.GetSpec().GetVolumeAttributesClassName() == turn.Key.Name {
			return nil
		}
	}
	for _, claim := range c.stores.PersistentVolumeClaims.List() {
		for _, name := range classesOf(claim) {
			if name == turn.Key.Name {
				return nil
			}
		}
	}
	return release(ctx, turn, c.classes, class, classFinalizer)
}
