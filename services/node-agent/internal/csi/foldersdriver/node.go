package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func (d *driver) NodeGetInfo(context.Context, *csi.NodeGetInfoRequest) (*csi.NodeGetInfoResponse, error) {
	most := int64(8)
	if text, err := os.ReadFile(filepath.Join(d.root, "most")); err == nil {
		if most, err = strconv.ParseInt(string(text), 10, 64); err != nil {
			return nil, answerOf(err)
		}
	}
	return &csi.NodeGetInfoResponse{NodeId: d.node, MaxVolumesPerNode: most, AccessibleTopology: &csi.Topology{Segments: d.segments()}}, nil
}

func (d *driver) NodeGetCapabilities(context.Context, *csi.NodeGetCapabilitiesRequest) (*csi.NodeGetCapabilitiesResponse, error) {
	answer := &csi.NodeGetCapabilitiesResponse{}
	for _, t := range []csi.NodeServiceCapability_RPC_Type{
		csi.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME, csi.NodeServiceCapability_RPC_EXPAND_VOLUME, csi.NodeServiceCapability_RPC_GET_VOLUME_STATS,
		csi.NodeServiceCapability_RPC_VOLUME_CONDITION,
	} {
		answer.Capabilities = append(answer.Capabilities, &csi.NodeServiceCapability{Type: &csi.NodeServiceCapability_Rpc{Rpc: &csi.NodeServiceCapability_RPC{Type: t}}})
	}
	return answer, nil
}

// NodeStageVolume mounts the volume's folder at the staging path; a block volume gets a loop device there.
func (d *driver) NodeStageVolume(_ context.Context, q *csi.NodeStageVolumeRequest) (*csi.NodeStageVolumeResponse, error) {
	if !local(q.GetVolumeId()) {
		return nil, status.Errorf(codes.NotFound, "volume %q", q.GetVolumeId())
	}
	if _, err := os.Stat(d.path(q.GetVolumeId())); err != nil {
		return nil, status.Error(codes.NotFound, err.Error())
	}
	if q.GetVolumeCapability().GetBlock() != nil {
		return &csi.NodeStageVolumeResponse{}, answerOf(d.loop(q.GetVolumeId(), filepath.Join(q.GetStagingTargetPath(), "device")))
	}
	return &csi.NodeStageVolumeResponse{}, answerOf(bind(d.path(q.GetVolumeId()), q.GetStagingTargetPath(), false))
}

func (d *driver) NodeUnstageVolume(_ context.Context, q *csi.NodeUnstageVolumeRequest) (*csi.NodeUnstageVolumeResponse, error) {
	device := filepath.Join(q.GetStagingTargetPath(), "device")
	if name, err := os.Readlink(device); err == nil {
		if err := detach(name); err != nil {
			return nil, answerOf(err)
		}
		return &csi.NodeUnstageVolumeResponse{}, answerOf(os.Remove(device))
	}
	return &csi.NodeUnstageVolumeResponse{}, answerOf(unbind(q.GetStagingTargetPath()))
}

// NodePublishVolume makes the volume appear at a pod's path. A volume that only a pod's spec describes is made first.
func (d *driver) NodePublishVolume(_ context.Context, q *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	if q.GetVolumeCapability().GetBlock() != nil {
		device, err := os.Readlink(filepath.Join(q.GetStagingTargetPath(), "device"))
		if err != nil {
			return nil, answerOf(err)
		}
		if err := os.WriteFile(q.GetTargetPath(), nil, 0o600); err != nil {
			return nil, answerOf(err)
		}
		return &csi.NodePublishVolumeResponse{}, answerOf(bind(device, q.GetTargetPath(), q.GetReadonly()))
	}
	from := q.GetStagingTargetPath()
	if q.GetVolumeContext()["csi.storage.k8s.io/ephemeral"] == "true" {
		from = d.path(q.GetVolumeId())
		if err := d.make(q.GetVolumeId(), 0, false); err != nil {
			return nil, answerOf(err)
		}
		for k, v := range q.GetVolumeContext() {
			if !strings.Contains(k, "/") {
				if err := os.WriteFile(filepath.Join(from, filepath.Base(k)), []byte(v), 0o644); err != nil {
					return nil, answerOf(err)
				}
			}
		}
	}
	if err := os.MkdirAll(q.GetTargetPath(), 0o755); err != nil {
		return nil, answerOf(err)
	}
	return &csi.NodePublishVolumeResponse{}, answerOf(bind(from, q.GetTargetPath(), q.GetReadonly()))
}

func (d *driver) NodeUnpublishVolume(_ context.Context, q *csi.NodeUnpublishVolumeRequest) (*csi.NodeUnpublishVolumeResponse, error) {
	if err := unbind(q.GetTargetPath()); err != nil {
		return nil, answerOf(err)
	}
	if err := os.Remove(q.GetTargetPath()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, answerOf(err)
	}
	if strings.HasPrefix(q.GetVolumeId(), "csi-") && local(q.GetVolumeId()) {
		// It lived with its pod.
		return &csi.NodeUnpublishVolumeResponse{}, answerOf(os.RemoveAll(d.path(q.GetVolumeId())))
	}
	return &csi.NodeUnpublishVolumeResponse{}, nil
}

func (d *driver) NodeExpandVolume(_ context.Context, q *csi.NodeExpandVolumeRequest) (*csi.NodeExpandVolumeResponse, error) {
	if _, err := os.Stat(q.GetVolumePath()); err != nil {
		return nil, status.Error(codes.NotFound, err.Error())
	}
	return &csi.NodeExpandVolumeResponse{CapacityBytes: q.GetCapacityRange().GetRequiredBytes()}, nil
}

// NodeGetVolumeStats tells of sizes that no disk has, so that they are known to come from here. A volume is not well while there is a file NAME.unwell beside it.
func (d *driver) NodeGetVolumeStats(_ context.Context, q *csi.NodeGetVolumeStatsRequest) (*csi.NodeGetVolumeStatsResponse, error) {
	if there, err := isMounted(q.GetVolumePath()); err != nil || !there {
		return nil, status.Errorf(codes.NotFound, "%s is not mounted, %v", q.GetVolumePath(), err)
	}
	_, err := os.Stat(d.path(q.GetVolumeId()) + ".unwell")
	return &csi.NodeGetVolumeStatsResponse{
		Usage: []*csi.VolumeUsage{
			{Unit: csi.VolumeUsage_BYTES, Total: 1001, Available: 601, Used: 400},
			{Unit: csi.VolumeUsage_INODES, Total: 101, Available: 60, Used: 41},
		},
		VolumeCondition: &csi.VolumeCondition{Abnormal: err == nil, Message: "looked at"},
	}, nil
}

func answerOf(err error) error {
	if err == nil {
		return nil
	}
	return status.Error(codes.Internal, err.Error())
}

// isMounted says whether something is mounted at a path.
func isMounted(path string) (bool, error) {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return false, err
	}
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	return slices.ContainsFunc(strings.Split(string(table), "\n"), func(line string) bool {
		fields := strings.Fields(line)
		return len(fields) > 4 && fields[4] == path
	}), nil
}

// bind mounts one path at another, unless it is.
func bind(from, to string, readOnly bool) error {
	if is, err := isMounted(to); err != nil || is {
		return err
	}
	if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s at %s: %w", from, to, err)
	}
	if !readOnly {
		return nil
	}
	return unix.Mount("", to, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, "")
}

func unbind(path string) error {
	if is, err := isMounted(path); err != nil || !is {
		return err
	}
	return unix.Unmount(path, 0)
}

// loop makes a loop device of a volume's file and leaves a link to it.
func (d *driver) loop(id, link string) error {
	if _, err := os.Readlink(link); err == nil {
		return nil
	}
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer control.Close()
	file, err := os.OpenFile(d.path(id), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	for {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return fmt.Errorf("no free loop device: %w", err)
		}
		name := fmt.Sprintf("/dev/loop%d", n)
		device, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		err = unix.IoctlSetInt(int(device.Fd()), unix.LOOP_SET_FD, int(file.Fd()))
		device.Close()
		if errors.Is(err, unix.EBUSY) {
			continue // somebody was faster
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		return os.Symlink(name, link)
	}
}

func detach(name string) error {
	device, err := os.OpenFile(name, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer device.Close()
	if err := unix.IoctlSetInt(int(device.Fd()), unix.LOOP_CLR_FD, 0); err != nil && !errors.Is(err, unix.ENXIO) {
		return err
	}
	return nil
}
