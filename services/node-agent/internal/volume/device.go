package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
)

// A local volume may be a block device that pods use as a file system. It is mounted once on the node, formatted first if there is nothing on it, and
// unmounted after the last pod. Which pods have it is on the disk, in their folders.

const (
	// localVolumes below a pod's folder has a folder for each local volume that the pod has.
	localVolumes = "volumes/kubernetes.io~local-volume"
	// localMounts below the agent's folder is where devices are mounted; Kubernetes' place.
	localMounts = "plugins/kubernetes.io/local-volume/mounts"
	// defaultFSType is the file system of devices whose volume names none; Kubernetes' choice.
	defaultFSType = "ext4"
)

func (m *Manager) deviceMount(name string) string {
	return filepath.Join(m.config.DataDir, localMounts, name)
}

// mountDevice mounts the device of a volume, unless it is, and returns where.
func (m *Manager) mountDevice(ctx context.Context, uid string, pv *corev1.PersistentVolume, device string, readOnly bool) (string, error) {
	name := pv.GetMetadata().GetName()
	defer m.lock(localMounts + "/" + name)()
	target := m.deviceMount(name)
	// Before anything is mounted: an agent that is killed here finds by it what to take down.
	if err := os.MkdirAll(filepath.Join(m.PodDir(uid), localVolumes, name+".device"), 0o750); err != nil {
		return "", err
	}
	if is, err := mounted(target); err != nil || is {
		return target, err
	}
	if err := os.MkdirAll(target, 0o750); err != nil {
		return "", err
	}
	kind := pv.GetSpec().GetPersistentVolumeSource().GetLocal().GetFsType()
	if kind == "" {
		kind = defaultFSType
	}
	has, err := fileSystemOf(ctx, device)
	switch {
	case err != nil:
		return "", err
	case has == "" && readOnly:
		return "", fmt.Errorf("device %s has no file system, and cannot be given one because the pod may only read it", device)
	case has == "":
		if err := format(ctx, device, kind); err != nil {
			return "", err
		}
	case has != kind:
		return "", fmt.Errorf("device %s is to be mounted as %s, but has a %s file system on it", device, kind, has)
	case !readOnly:
		if err := repair(ctx, device); err != nil {
			return "", err
		}
	}
	options := []string{"defaults"}
	if readOnly {
		options = []string{"ro"}
	}
	options = append(options, pv.GetSpec().GetMountOptions()...)
	_, err = run(ctx, "mount", "-t", kind, "-o", strings.Join(options, ","), device, target)
	return target, err
}

// releaseDevices unmounts devices that no pod has any more.
func (m *Manager) releaseDevices(uid string) error {
	names, err := m.devicesOf(uid)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := m.releaseDevice(uid, name); err != nil {
			return err
		}
	}
	return nil
}

func (m *Manager) releaseDevice(uid, name string) error {
	defer m.lock(localMounts + "/" + name)()
	if err := os.Remove(filepath.Join(m.PodDir(uid), localVolumes, name+".device")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	pods, err := m.Pods()
	if err != nil {
		return err
	}
	for _, other := range pods {
		if names, err := m.devicesOf(other); err != nil || slices.Contains(names, name) {
			return err
		}
	}
	if err := unmount(m.deviceMount(name)); err != nil {
		return err
	}
	if err := os.Remove(m.deviceMount(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// devicesOf returns the names of the volumes of a pod that are devices with a file system.
func (m *Manager) devicesOf(uid string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(m.PodDir(uid), localVolumes))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var names []string
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), ".device"); ok {
			names = append(names, name)
		}
	}
	return names, err
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

// run runs a program of the machine's.
func run(ctx context.Context, program string, arguments ...string) (string, error) {
	out, err := exec.CommandContext(ctx, program, arguments...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", program, strings.Join(arguments, " "), err, strings.TrimSpace(string(out)))
	}
	return string(out), nil
}
