package volume

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const (
	// localVolumes below a pod's folder has a folder for each local volume that the pod has.
	localVolumes = "volumes/kubernetes.io~local-volume"
	// defaultFSType is the file system of devices whose volume names none; Kubernetes' choice.
	defaultFSType = "ext4"
)

// disks is what kinds of volumes have in common that are block devices with a file system. Such a kind says how a device comes to the node and leaves it.
type disks struct{ m *Manager }

func (d disks) stage(ctx context.Context, v *mounting) error {
	return formatAndMount(ctx, v.record.Device, v.record.Staging, v.fsType, withContext(v.options, v.record.Context), v.readOnly)
}

func (d disks) publish(ctx context.Context, v *mounting) error {
	return bind(ctx, v.record.Staging, v.record.Target, v.readOnly)
}

func (d disks) unpublish(_ context.Context, r *mountRecord) error { return leave(r.Target) }

func (d disks) unstage(_ context.Context, r *mountRecord) error { return leave(r.Staging) }

// localDevices are on the node already, and are where they are staged for all pods.
type localDevices struct{ disks }

func (localDevices) attach(_ context.Context, v *mounting) (string, error) {
	return v.record.Device, nil
}

func (localDevices) detach(context.Context, *mountRecord) error { return nil }

// mountDevice mounts the device of a local volume, unless it is, and returns where.
func (m *Manager) mountDevice(ctx context.Context, d *described, device string) (string, error) {
	v := m.mounting(d, kindLocal, filepath.Join("mounts", d.name))
	v.record.Target, v.record.Device = "", device
	if v.fsType = d.pv.GetSpec().GetPersistentVolumeSource().GetLocal().GetFsType(); v.fsType == "" {
		v.fsType = defaultFSType
	}
	return m.mountVolume(ctx, v)
}

// bind makes a mounted volume appear at another place too.
func bind(ctx context.Context, from, to string, readOnly bool) error {
	options := "bind"
	if readOnly {
		options = "bind,ro"
	}
	_, err := run(ctx, "mount", "-o", options, from, to)
	return err
}

// formatAndMount mounts a device, and gives it a file system first if there is nothing on it. Without a kind it is mounted as what is on it.
func formatAndMount(ctx context.Context, device, target, kind string, options []string, readOnly bool) error {
	has, err := fileSystemOf(ctx, device)
	switch {
	case err != nil:
		return err
	case has == "" && readOnly:
		return fmt.Errorf("device %s has no file system, and cannot be given one because the pod may only read it", device)
	case has == "":
		kind = cmp.Or(kind, defaultFSType)
		if err := format(ctx, device, kind); err != nil {
			return err
		}
	case kind != "" && has != kind:
		return fmt.Errorf("device %s is to be mounted as %s, but has a %s file system on it", device, kind, has)
	case !readOnly:
		if err := repair(ctx, device); err != nil {
			return err
		}
	}
	if readOnly {
		options = append(slices.Clone(options), "ro")
	}
	_, err = run(ctx, "mount", "-t", cmp.Or(kind, has), "-o", strings.Join(append(joined(options), "defaults"), ","), device, target)
	return err
}

// fileSystemOf returns what is on a device; empty: nothing.
func fileSystemOf(ctx context.Context, device string) (string, error) {
	out, err := run(ctx, "blkid", "-p", "-s", "TYPE", "-s", "PTTYPE", "-o", "export", device)
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == 2 {
		return "", nil // what blkid(8) says when it finds nothing
	}
	if err != nil {
		return "", err
	}
	table := ""
	for line := range strings.Lines(out) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		switch key {
		case "TYPE":
			return value, nil
		case "PTTYPE":
			table = value
		}
	}
	if table != "" {
		return "", fmt.Errorf("device %s has a partition table (%s) on it", device, table)
	}
	return "", nil
}

func format(ctx context.Context, device, kind string) error {
	arguments := []string{device}
	if kind == "ext3" || kind == "ext4" {
		arguments = []string{"-F", "-m0", device} // nothing is kept for root, who has no need of it
	}
	_, err := run(ctx, "mkfs."+kind, arguments...)
	return err
}

// repair checks a file system before it is mounted. One that cannot be repaired is not.
func repair(ctx context.Context, device string) error {
	_, err := run(ctx, "fsck", "-a", device)
	const uncorrected = 4
	var exit *exec.ExitError
	switch {
	case err == nil, errors.Is(err, exec.ErrNotFound):
		return nil
	case errors.As(err, &exit) && exit.ExitCode() != uncorrected:
		return nil // repaired, or there is no checker for such a file system
	}
	return err
}

// patience is how long a program that was told to end may take before its output is no longer waited for: what it has started may hold that open.
const patience = 5 * time.Second

// run runs a program of the machine's.
func run(ctx context.Context, program string, arguments ...string) (string, error) {
	command := exec.CommandContext(ctx, program, arguments...)
	command.WaitDelay = patience
	out, err := command.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", program, strings.Join(arguments, " "), err, strings.TrimSpace(string(out)))
	}
	return string(out), nil
}
