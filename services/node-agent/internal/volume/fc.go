package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
)

// fcTarget is a disk in a Fibre Channel network: a number at one of some ports, or a name of its own.
type fcTarget struct {
	WWNs  []string `json:"targetWWNs,omitempty"`
	LUN   int32    `json:"lun,omitempty"`
	WWIDs []string `json:"wwids,omitempty"`
}

type fibreChannelDisks struct{ disks }

func (m *Manager) fibreChannel(d *described, source *corev1.FCVolumeSource) (*mounting, error) {
	t := &fcTarget{}
	var name string
	switch {
	case source.HasLun() && len(source.GetTargetWwns()) > 0:
		t.WWNs, t.LUN = source.GetTargetWwns(), source.GetLun()
		name = fmt.Sprintf("%s-lun-%d", strings.Join(t.WWNs, "-"), t.LUN)
	case len(source.GetWwids()) > 0:
		for _, id := range source.GetWwids() {
			t.WWIDs = append(t.WWIDs, strings.ReplaceAll(id, " ", "_")) // as in names of devices
		}
		name = strings.Join(t.WWIDs, "-")
	default:
		return nil, errors.New("fc: the volume names neither targetWWNs and lun, nor wwids")
	}
	v := m.mounting(d, kindFC, name)
	v.record.FC, v.fsType, v.readOnly, v.group = t, source.GetFsType(), v.readOnly || source.GetReadOnly(), true
	return v, nil
}

// find returns the device of a disk and the one that joins its paths, either empty if it is not there.
func (f fibreChannelDisks) find(t *fcTarget) (disk, joint string) {
	dir := f.m.dev("disk/by-id")
	ids := t.WWIDs
	if len(t.WWNs) > 0 {
		dir, ids = f.m.dev("disk/by-path"), t.WWNs
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", ""
	}
	for _, id := range ids {
		is := regexp.MustCompile("^scsi-" + regexp.QuoteMeta(id) + "$")
		if len(t.WWNs) > 0 {
			is = regexp.MustCompile(fmt.Sprintf("^(pci-.*-fc|fc)-0x%s-lun-%d$", regexp.QuoteMeta(id), t.LUN))
		}
		for _, e := range entries {
			if !is.MatchString(e.Name()) {
				continue
			}
			path, err := filepath.EvalSymlinks(filepath.Join(dir, e.Name()))
			if err != nil {
				continue
			}
			if joint := f.m.multipathOf(path); joint != "" {
				return path, joint
			}
			disk = path
		}
	}
	return disk, ""
}

func (f fibreChannelDisks) attach(ctx context.Context, v *mounting) (string, error) {
	if _, joint := f.find(v.record.FC); joint != "" {
		return joint, nil
	}
	// There may be paths that the kernel has not seen yet.
	scans, err := filepath.Glob(f.m.sys("class/scsi_host/*/scan"))
	if err != nil {
		return "", err
	}
	for _, scan := range scans {
		if err := tellKernel(scan, "- - -"); err != nil {
			return "", fmt.Errorf("fc: look for disks: %w", err)
		}
	}
	device := await(ctx, deviceWithin, func() string {
		disk, joint := f.find(v.record.FC)
		if joint != "" {
			return joint
		}
		return disk
	})
	if device == "" {
		return "", errors.New("no fc disk found")
	}
	return device, nil
}

// detach takes a disk's devices from the kernel, after what is still to be written is.
func (f fibreChannelDisks) detach(ctx context.Context, r *mountRecord) error {
	// A device that never came, or that had its name before the machine was started again: now another disk may have it.
	if now, err := boot(); err != nil || r.Device == "" || r.Boot != now {
		return err
	}
	if _, err := os.Stat(r.Device); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	names := []string{filepath.Base(r.Device)}
	if strings.HasPrefix(names[0], "dm-") {
		var err error
		if names, err = f.m.pathsOf(r.Device); err != nil {
			return err
		}
		if _, err := run(ctx, "multipath", "-f", r.Device); err != nil {
			return err
		}
	}
	for _, name := range names {
		// A device that cannot be flushed, for its network is gone, has to go nevertheless.
		_, _ = run(ctx, "blockdev", "--flushbufs", f.m.dev(name))
		if err := f.m.removeDevice(name); err != nil {
			return err
		}
	}
	return nil
}
