package persistentvolume

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	storagev1 "dhow.dev/gen/go/dhow/storage/v1"
	"dhow.dev/pkg/csimigration"
	"dhow.dev/services/controller-manager/internal/inventory"
	"dhow.dev/services/controller-manager/internal/podstate"
)

// noProvisioner is the provisioner of classes whose volumes people make.
const noProvisioner = "kubernetes.io/no-provisioner"

// unboundClaim looks for a volume for a claim, or completes what was begun.
func (b *binding) unboundClaim(ctx context.Context, claim *corev1.PersistentVolumeClaim) error {
	if name := claim.GetSpec().GetVolumeName(); name != "" {
		return b.namedVolume(ctx, claim, name)
	}
	class, hasClass := b.stores.StorageClasses.Get("", inventory.ClassOf(claim))
	delayed := hasClass && class.GetVolumeBindingMode() == waitForConsumer
	volume, err := match(claim, b.stores.PersistentVolumes.List(), delayed)
	if err != nil {
		b.events.Report(claim, "Warning", "FailedBinding", "%v", err)
		return nil
	}
	if volume != nil {
		return b.bind(ctx, volume, claim)
	}
	_, legacy := claim.GetMetadata().GetAnnotations()[betaClass]
	if !claim.GetSpec().HasStorageClassName() && !legacy {
		if name := b.defaultClass(); name != "" {
			// The claim was there before the class. The change brings it back here.
			_, err := b.editClaim(ctx, claim, func(next *corev1.PersistentVolumeClaim) { next.GetSpec().SetStorageClassName(name) })
			return err
		}
	}
	if claim, err = b.setClaimPhase(ctx, claim, pending, nil); err != nil {
		return err
	}
	switch {
	case delayed && claim.GetMetadata().GetAnnotations()[selectedNode] == "":
		b.waits(claim)
		return nil
	case inventory.ClassOf(claim) != "":
		return b.provision(ctx, claim, class, hasClass)
	}
	b.events.Report(claim, "Normal", "FailedBinding", "no persistent volumes available for this claim and no storage class is set")
	return nil
}

// waits tells the user what a claim waits for whose volume the scheduler chooses.
func (b *binding) waits(claim *corev1.PersistentVolumeClaim) {
	var pods []string
	for _, p := range b.stores.Pods.ByIndex(inventory.ByClaim, b.turn.Key.String()) {
		if podstate.IsActive(p) {
			pods = append(pods, p.GetMetadata().GetName())
		}
	}
	if len(pods) == 0 {
		b.events.Report(claim, "Normal", "WaitForFirstConsumer", "waiting for first consumer to be created before binding")
		return
	}
	slices.Sort(pods)
	b.events.Report(claim, "Normal", "WaitForPodScheduled", "waiting for pod %s to be scheduled", pods[0])
}

// defaultClass returns the name of the newest default class, of several as new the first; empty when there is none.
func (b *binding) defaultClass() string {
	all := slices.DeleteFunc(b.stores.StorageClasses.List(), func(c *storagev1.StorageClass) bool { return !isDefault(c) })
	if len(all) == 0 {
		return ""
	}
	newest := slices.MinFunc(all, func(x, y *storagev1.StorageClass) int {
		return cmp.Or(cmp.Compare(y.GetMetadata().GetCreationTimestamp().GetSeconds(), x.GetMetadata().GetCreationTimestamp().GetSeconds()),
			cmp.Compare(x.GetMetadata().GetName(), y.GetMetadata().GetName()))
	})
	return newest.GetMetadata().GetName()
}

// provision asks the class' provisioner for a volume: it waits for claims with its name.
func (b *binding) provision(ctx context.Context, claim *corev1.PersistentVolumeClaim, class *storagev1.StorageClass, hasClass bool) error {
	if !hasClass {
		b.events.Report(claim, "Warning", "ProvisioningFailed", "storageclass.storage.k8s.io %q not found", inventory.ClassOf(claim))
		return nil
	}
	provisioner := class.GetProvisioner()
	if provisioner == noProvisioner {
		b.events.Report(claim, "Warning", "ProvisioningFailed", "no volume plugin matched name: %s", noProvisioner)
		return nil
	}
	// Who asks for a plugin that Kubernetes had built in gets a volume of the driver that serves it now: its provisioner knows such classes.
	if driver, ok := csimigration.Driver(provisioner); ok {
		provisioner = driver
	}
	claim, err := b.editClaim(ctx, claim, func(next *corev1.PersistentVolumeClaim) {
		annotate(next, storageProvisioner, provisioner)
		annotate(next, betaProvisioner, provisioner)
	})
	if err != nil {
		return err
	}
	b.events.Report(claim, "Normal", "ExternalProvisioning", "Waiting for a volume to be created either by the external provisioner '%s' or manually by the system administrator. If volume creation is delayed, please verify that the provisioner is running and correctly registered.", provisioner)
	return nil
}

// namedVolume binds a claim to the volume that it names.
func (b *binding) namedVolume(ctx context.Context, claim *corev1.PersistentVolumeClaim, name string) error {
	volume, ok := b.stores.PersistentVolumes.Get("", name)
	switch {
	case !ok:
		_, err := b.setClaimPhase(ctx, claim, pending, nil)
		return err
	case volume.GetSpec().GetClaimRef() == nil:
		if err := mismatch(volume, claim); err != nil {
			b.events.Report(claim, "Warning", "VolumeMismatch", "Cannot bind to requested volume %q: %v", name, err)
			_, err := b.setClaimPhase(ctx, claim, pending, nil)
			return err
		}
		return b.bind(ctx, volume, claim)
	case isReservedFor(volume, claim):
		return b.bind(ctx, volume, claim)
	}
	b.events.Report(claim, "Warning", "FailedBinding", "volume %q already bound to a different claim.", name)
	_, err := b.setClaimPhase(ctx, claim, pending, nil)
	return err
}

// boundClaim sees to it that a bound claim still has its volume.
func (b *binding) boundClaim(ctx context.Context, claim *corev1.PersistentVolumeClaim) error {
	name := claim.GetSpec().GetVolumeName()
	if name == "" {
		return b.lose(ctx, claim, "ClaimLost", "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!")
	}
	volume, ok := b.stores.PersistentVolumes.Get("", name)
	switch ref := volume.GetSpec().GetClaimRef(); {
	case !ok:
		return b.lose(ctx, claim, "ClaimLost", "Bound claim has lost its PersistentVolume. Data on the volume is lost!")
	case ref == nil, ref.GetUid() == claim.GetMetadata().GetUid():
		return b.bind(ctx, volume, claim)
	}
	return b.lose(ctx, claim, "ClaimMisbound", "Two claims are bound to the same volume, this one is bound incorrectly")
}

func (b *binding) lose(ctx context.Context, claim *corev1.PersistentVolumeClaim, reason, message string) error {
	if claim.GetStatus().GetPhase() == lost {
		return nil
	}
	b.events.Report(claim, "Warning", reason, "%s", message)
	_, err := b.setClaimPhase(ctx, claim, lost, nil)
	return err
}

// bind makes volume and claim name each other and says so; what is done already is left as it is.
func (b *binding) bind(ctx context.Context, volume *corev1.PersistentVolume, claim *corev1.PersistentVolumeClaim) error {
	m := claim.GetMetadata()
	volume, err := b.editVolume(ctx, volume, func(next *corev1.PersistentVolume) {
		if ref := next.GetSpec().GetClaimRef(); ref.GetUid() == m.GetUid() {
			return
		} else if ref == nil {
			// The controller chose: it may take the choice back.
			annotate(next, boundByController, "yes")
		}
		next.GetSpec().SetClaimRef(corev1.ObjectReference_builder{
			Kind: proto.String("PersistentVolumeClaim"), ApiVersion: proto.String("v1"), Namespace: proto.String(m.GetNamespace()),
			Name: proto.String(m.GetName()), Uid: proto.String(m.GetUid()), ResourceVersion: proto.String(m.GetResourceVersion()),
		}.Build())
	})
	if err != nil {
		return err
	}
	if volume, err = b.setVolumePhase(ctx, volume, bound, ""); err != nil {
		return err
	}
	claim, err = b.editClaim(ctx, claim, func(next *corev1.PersistentVolumeClaim) {
		if next.GetSpec().GetVolumeName() == "" {
			next.GetSpec().SetVolumeName(volume.GetMetadata().GetName())
			annotate(next, boundByController, "yes")
		}
		annotate(next, bindCompleted, "yes")
	})
	if err != nil {
		return err
	}
	if _, err := b.setClaimPhase(ctx, claim, bound, volume); err != nil {
		return fmt.Errorf("bind %s: %w", volume.GetMetadata().GetName(), err)
	}
	return nil
}
