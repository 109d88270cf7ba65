package volume

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
)

// expandFlex makes a volume of a FlexVolume driver, and the file system on it, as large as its claim asks for, and says so in the claim. Kubernetes' control plane calls the driver for the volume
// and its nodes for the file system; here the node calls it for both, because a control plane rarely has the drivers of nodes. A volume that cannot grow now is still what it was: the user is told,
// and it is tried again later.
func (m *Manager) expandFlex(ctx context.Context, d *described, claim *corev1.PersistentVolumeClaim, source *corev1.FlexPersistentVolumeSource) error {
	uid, md := d.pod.GetMetadata().GetUid(), claim.GetMetadata()
	m.watchClaim(uid, claim)
	size := bytesOf(d.pv.GetSpec().GetCapacity())
	if !waitsForNode(claim) || size <= bytesOf(claim.GetStatus().GetCapacity()) {
		return nil
	}
	v, err := m.flexVolume(ctx, d, source)
	if err != nil || v.readOnly {
		return err // who may only read it changes nothing of it
	}
	defer m.lock(v.record.lock())()
	// Another pod of the claim may have done it since.
	ask, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	if claim, err = m.claims.Get(ask, md.GetNamespace(), md.GetName()); err != nil {
		return err
	}
	had := bytesOf(claim.GetStatus().GetCapacity())
	if !waitsForNode(claim) || size <= had {
		return nil
	}
	record, err := readMountRecord(v.record.file())
	if err != nil {
		return err
	}
	if record == nil {
		return fmt.Errorf("volume %s: what was mounted is not known any more", d.name)
	}
	record.dir, record.uid = v.record.dir, v.record.uid
	v.record = record
	if err := m.growFlex(ctx, v, had, size); err != nil {
		m.notGrown(uid, d.name, err, d.sources)
		return nil
	}
	return m.grown(ctx, claim, d.pv, d.sources)
}

// growFlex has the driver make the volume larger, and then the file system; what it does not support there, the agent does.
func (m *Manager) growFlex(ctx context.Context, v *mounting, from, to int64) error {
	r, driver := v.record, v.flex.driver
	options, err := v.flex.of(nil)
	if err != nil {
		return err
	}
	sizes := []string{strconv.FormatInt(to, 10), strconv.FormatInt(from, 10)}
	if r.Grown < to {
		staged := filepath.Join(m.config.DataDir, pluginMounts, kindFlex, driver.place(r.Name))
		// A driver without this command has volumes whose size is nobody's business but its own.
		if _, err := driver.call(ctx, "expandvolume", append([]string{options, staged}, sizes...)...); err != nil && !errors.Is(err, errNotSupported) {
			return err
		}
		// The file system may take another attempt; the volume is not to be made larger twice.
		r.Grown = to
		if err := r.save(); err != nil {
			return err
		}
	}
	if !driver.capabilities.RequiresFSResize {
		return nil
	}
	at := r.Staging
	if at == "" {
		at = r.Target
	}
	_, err = driver.call(ctx, "expandfs", append([]string{options, r.Device, at}, sizes...)...)
	if errors.Is(err, errNotSupported) {
		return growFileSystem(ctx, r.Device, at)
	}
	return err
}

// growFileSystem makes a mounted file system as large as its device. Without a device there is none that is the agent's to change.
func growFileSystem(ctx context.Context, device, at string) error {
	if device == "" {
		return nil
	}
	kind, err := fileSystemOf(ctx, device)
	if err != nil {
		return err
	}
	switch kind {
	case "ext3", "ext4":
		_, err = run(ctx, "resize2fs", device)
	case "xfs":
		_, err = run(ctx, "xfs_growfs", "-d", at)
	case "btrfs":
		_, err = run(ctx, "btrfs", "filesystem", "resize", "max", at)
	default:
		err = fmt.Errorf("resize of format %s is not supported for device %s mounted at %s", kind, device, at)
	}
	return err
}
