// Package persistentvolume binds volume claims and volumes to each other, asks provisioners for volumes that are not there, and does with volumes
// whose claims are gone what their policy says.
//
// The steps of a binding, in this order, so that the controller can die between any two: the volume names the claim (claimRef), the volume is
// Bound, the claim names the volume, the claim is Bound. What the scheduler or a user has reserved is completed in the same way. Annotations,
// phases, reasons and messages are Kubernetes'.
package persistentvolume

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	storagev1 "dhow.dev/gen/go/dhow/storage/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/event"
	"dhow.dev/pkg/informer"
	"dhow.dev/pkg/object"
	"dhow.dev/services/controller-manager/internal/apitime"
	"dhow.dev/services/controller-manager/internal/inventory"
	"dhow.dev/services/controller-manager/internal/reconcile"
)

// Phases of volumes and claims.
const (
	available = "Available"
	bound     = "Bound"
	released  = "Released"
	failed    = "Failed"
	pending   = "Pending"
	lost      = "Lost"
)

// Annotations that Kubernetes keeps on volumes and claims.
const (
	bindCompleted     = "pv.kubernetes.io/bind-completed"
	boundByController = "pv.kubernetes.io/bound-by-controller"
	provisionedBy     = "pv.kubernetes.io/provisioned-by"
	selectedNode      = "volume.kubernetes.io/selected-node"
	storageProvisioner,
	betaProvisioner = "volume.kubernetes.io/storage-provisioner", "volume.beta.kubernetes.io/storage-provisioner"
	betaClass        = "volume.beta.kubernetes.io/storage-class"
	defaultClass     = "storageclass.kubernetes.io/is-default-class"
	betaDefaultClass = "storageclass.beta.kubernetes.io/is-default-class"
)

// waitForConsumer is the binding mode of classes whose volumes the scheduler chooses.
const waitForConsumer = "WaitForFirstConsumer"

// Config is what the controller is made of.
type Config struct {
	Conn    grpc.ClientConnInterface
	Stores  *inventory.Stores
	Events  *event.Recorder
	Logger  *slog.Logger
	Now     func() time.Time
	Workers int
}

// Controller reconciles volumes and claims. A key without namespace is a volume's.
type Controller struct {
	*reconcile.Runner[object.Key]
	stores  *inventory.Stores
	events  event.Source
	now     func() time.Time
	claims  *client.Client[*corev1.PersistentVolumeClaim]
	volumes *client.Client[*corev1.PersistentVolume]
}

// New returns the controller, listening to the stores.
func New(cfg Config) *Controller {
	c := &Controller{
		stores: cfg.Stores, events: cfg.Events.Source("persistentvolume-controller"), now: cfg.Now,
		claims: client.For[*corev1.PersistentVolumeClaim](cfg.Conn), volumes: client.For[*corev1.PersistentVolume](cfg.Conn),
	}
	c.Runner = reconcile.New(reconcile.Config[object.Key]{
		Name: "persistentvolume", Source: cfg.Stores, Workers: cfg.Workers, Reconcile: c.reconcile, Logger: cfg.Logger,
	})
	cfg.Stores.PersistentVolumeClaims.OnChangeTraced(func(old, claim *corev1.PersistentVolumeClaim, cause *informer.Trace) {
		if claim == nil {
			for _, v := range c.stores.PersistentVolumes.ByIndex(inventory.ByClaim, object.KeyOf(old).String()) {
				c.Add(object.KeyOf(v), cause)
			}
			return
		}
		c.Add(object.KeyOf(claim), cause)
		if name := claim.GetSpec().GetVolumeName(); name != "" {
			c.Add(object.Key{Name: name}, cause)
		}
	})
	cfg.Stores.PersistentVolumes.OnChangeTraced(func(old, volume *corev1.PersistentVolume, cause *informer.Trace) {
		if volume != nil {
			c.Add(object.KeyOf(volume), cause)
		}
		for _, v := range []*corev1.PersistentVolume{old, volume} {
			if ref := v.GetSpec().GetClaimRef(); ref != nil {
				c.Add(object.Key{Namespace: ref.GetNamespace(), Name: ref.GetName()}, cause)
			}
		}
		// A volume that is free now is what claims of its class may wait for.
		if volume != nil && volume.GetSpec().GetClaimRef() == nil && volume.GetStatus().GetPhase() == available {
			c.wake(classOfVolume(volume), cause)
		}
	})
	cfg.Stores.StorageClasses.OnChangeTraced(func(_, class *storagev1.StorageClass, cause *informer.Trace) {
		if class == nil {
			return
		}
		c.wake(class.GetMetadata().GetName(), cause)
		if isDefault(class) {
			c.wake("", cause)
		}
	})
	// The messages of claims that wait for a pod name it.
	cfg.Stores.Pods.OnChangeTraced(func(old, pod *corev1.Pod, cause *informer.Trace) {
		if old != nil || pod == nil {
			return
		}
		for _, name := range inventory.ClaimsOf(pod) {
			c.Add(object.Key{Namespace: pod.GetMetadata().GetNamespace(), Name: name}, cause)
		}
	})
	return c
}

// wake asks for a turn of the claims of a class that are not bound.
func (c *Controller) wake(class string, cause *informer.Trace) {
	for _, claim := range c.stores.PersistentVolumeClaims.ByIndex(inventory.ByClass, class) {
		c.Add(object.KeyOf(claim), cause)
	}
}

func isDefault(class *storagev1.StorageClass) bool {
	a := class.GetMetadata().GetAnnotations()
	return a[defaultClass] == "true" || a[betaDefaultClass] == "true"
}

func (c *Controller) reconcile(ctx context.Context, turn *reconcile.Turn[object.Key]) error {
	t := &binding{Controller: c, turn: turn}
	if turn.Key.Namespace == "" {
		volume, ok := c.stores.PersistentVolumes.Get("", turn.Key.Name)
		if !ok {
			return nil
		}
		volume, err := t.migrateVolume(ctx, volume)
		if err != nil {
			return err
		}
		return t.volume(ctx, volume)
	}
	claim, ok := c.stores.PersistentVolumeClaims.Get(turn.Key.Namespace, turn.Key.Name)
	if !ok {
		return nil
	}
	claim, err := t.migrateClaim(ctx, claim)
	if err != nil {
		return err
	}
	if claim.GetMetadata().GetAnnotations()[bindCompleted] != "" {
		return t.boundClaim(ctx, claim)
	}
	return t.unboundClaim(ctx, claim)
}

// binding is one turn.
type binding struct {
	*Controller
	turn *reconcile.Turn[object.Key]
}

// editVolume writes a changed volume. It returns the volume as it is then.
func (b *binding) editVolume(ctx context.Context, v *corev1.PersistentVolume, change func(*corev1.PersistentVolume)) (*corev1.PersistentVolume, error) {
	next := proto.Clone(v).(*corev1.PersistentVolume)
	change(next)
	if proto.Equal(next, v) {
		return v, nil
	}
	written, err := b.volumes.Update(ctx, next, nil)
	if err != nil {
		return nil, fmt.Errorf("volume %s: %w", v.GetMetadata().GetName(), err)
	}
	b.turn.Wrote(written)
	return written, nil
}

// setVolumePhase writes a volume's phase and why.
func (b *binding) setVolumePhase(ctx context.Context, v *corev1.PersistentVolume, phase, message string) (*corev1.PersistentVolume, error) {
	if s := v.GetStatus(); s.GetPhase() == phase && s.GetMessage() == message {
		return v, nil
	}
	next := proto.Clone(v).(*corev1.PersistentVolume)
	if !next.HasStatus() {
		next.SetStatus(&corev1.PersistentVolumeStatus{})
	}
	if next.GetStatus().GetPhase() != phase {
		next.GetStatus().SetLastPhaseTransitionTime(apitime.Of(b.now()))
	}
	next.GetStatus().SetPhase(phase)
	next.GetStatus().SetMessage(message)
	written, err := b.volumes.UpdateStatus(ctx, next)
	if err != nil {
		return nil, fmt.Errorf("status of volume %s: %w", v.GetMetadata().GetName(), err)
	}
	b.turn.Wrote(written)
	return written, nil
}

// editClaim writes a changed claim and returns it as it is then.
func (b *binding) editClaim(ctx context.Context, claim *corev1.PersistentVolumeClaim, change func(*corev1.PersistentVolumeClaim)) (*corev1.PersistentVolumeClaim, error) {
	next := proto.Clone(claim).(*corev1.PersistentVolumeClaim)
	change(next)
	if proto.Equal(next, claim) {
		return claim, nil
	}
	written, err := b.claims.Update(ctx, next, nil)
	if err != nil {
		return nil, fmt.Errorf("claim %s: %w", object.KeyOf(claim), err)
	}
	b.turn.Wrote(written)
	return written, nil
}

// setClaimPhase writes a claim's phase, and what it has of the volume; a nil volume is none.
func (b *binding) setClaimPhase(ctx context.Context, claim *corev1.PersistentVolumeClaim, phase string, v *corev1.PersistentVolume) (*corev1.PersistentVolumeClaim, error) {
	next := proto.Clone(claim).(*corev1.PersistentVolumeClaim)
	if !next.HasStatus() {
		next.SetStatus(&corev1.PersistentVolumeClaimStatus{})
	}
	s := next.GetStatus()
	was := s.GetPhase()
	s.SetPhase(phase)
	if v == nil {
		s.SetAccessModes(nil)
		s.SetCapacity(nil)
	} else {
		s.SetAccessModes(v.GetSpec().GetAccessModes())
		// Later changes are those of who makes the volume larger.
		if was != bound || len(s.GetCapacity()) == 0 {
			s.SetCapacity(v.GetSpec().GetCapacity())
		}
		if class := v.GetSpec().GetVolumeAttributesClassName(); class != "" && was != bound {
			s.SetCurrentVolumeAttributesClassName(class)
		}
	}
	if proto.Equal(next, claim) {
		return claim, nil
	}
	written, err := b.claims.UpdateStatus(ctx, next)
	if err != nil {
		return nil, fmt.Errorf("status of claim %s: %w", object.KeyOf(claim), err)
	}
	b.turn.Wrote(written)
	return written, nil
}

// annotate sets an annotation.
func annotate(o object.Object, key, value string) {
	m := o.GetMetadata()
	all := map[string]string{}
	for k, v := range m.GetAnnotations() {
		all[k] = v
	}
	all[key] = value
	m.SetAnnotations(all)
}

// without takes an annotation away.
func without(o object.Object, key string) {
	all := map[string]string{}
	for k, v := range o.GetMetadata().GetAnnotations() {
		if k != key {
			all[k] = v
		}
	}
	o.GetMetadata().SetAnnotations(all)
}
