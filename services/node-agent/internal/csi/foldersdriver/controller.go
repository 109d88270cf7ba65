package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// topologyKey is the node's label that says where a folder is.
const topologyKey = "topology.folders.dhow.test/node"

func (d *driver) ControllerGetCapabilities(context.Context, *csi.ControllerGetCapabilitiesRequest) (*csi.ControllerGetCapabilitiesResponse, error) {
	answer := &csi.ControllerGetCapabilitiesResponse{}
	for _, t := range []csi.ControllerServiceCapability_RPC_Type{
		csi.ControllerServiceCapability_RPC_CREATE_DELETE_VOLUME, csi.ControllerServiceCapability_RPC_PUBLISH_UNPUBLISH_VOLUME, csi.ControllerServiceCapability_RPC_EXPAND_VOLUME,
	} {
		answer.Capabilities = append(answer.Capabilities, &csi.ControllerServiceCapability{Type: &csi.ControllerServiceCapability_Rpc{Rpc: &csi.ControllerServiceCapability_RPC{Type: t}}})
	}
	return answer, nil
}

func (d *driver) path(id string) string { return filepath.Join(d.root, "volumes", flat(id)) }

func (d *driver) CreateVolume(_ context.Context, q *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	if !local(q.GetName()) {
		return nil, status.Errorf(codes.InvalidArgument, "name %q", q.GetName())
	}
	if err := d.make(q.GetName(), q.GetCapacityRange().GetRequiredBytes(), len(q.GetVolumeCapabilities()) > 0 && q.GetVolumeCapabilities()[0].GetBlock() != nil); err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	return &csi.CreateVolumeResponse{Volume: &csi.Volume{
		VolumeId: q.GetName(), CapacityBytes: q.GetCapacityRange().GetRequiredBytes(), VolumeContext: map[string]string{"made": "yes"},
		AccessibleTopology: []*csi.Topology{{Segments: d.segments()}},
	}}, nil
}

// make makes the folder of a volume, or the file of a block volume.
func (d *driver) make(id string, size int64, block bool) error {
	if !block {
		if err := os.MkdirAll(d.path(id), 0o777); err != nil {
			return err
		}
		return os.Chmod(d.path(id), 0o777)
	}
	f, err := os.OpenFile(d.path(id), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(max(size, 1<<20)), f.Close())
}

func (d *driver) DeleteVolume(_ context.Context, q *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	if !local(q.GetVolumeId()) {
		return nil, status.Errorf(codes.InvalidArgument, "volume %q", q.GetVolumeId())
	}
	if err := os.RemoveAll(d.path(q.GetVolumeId())); err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	return &csi.DeleteVolumeResponse{}, nil
}

func (d *driver) ValidateVolumeCapabilities(_ context.Context, q *csi.ValidateVolumeCapabilitiesRequest) (*csi.ValidateVolumeCapabilitiesResponse, error) {
	return &csi.ValidateVolumeCapabilitiesResponse{Confirmed: &csi.ValidateVolumeCapabilitiesResponse_Confirmed{VolumeCapabilities: q.GetVolumeCapabilities()}}, nil
}

// ControllerPublishVolume attaches: it notes the node beside the volume, and tells the node's part that it did.
func (d *driver) ControllerPublishVolume(_ context.Context, q *csi.ControllerPublishVolumeRequest) (*csi.ControllerPublishVolumeResponse, error) {
	if !local(q.GetVolumeId()) {
		return nil, status.Errorf(codes.InvalidArgument, "volume %q", q.GetVolumeId())
	}
	if err := os.WriteFile(d.path(q.GetVolumeId())+".attached", []byte(q.GetNodeId()), 0o644); err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	return &csi.ControllerPublishVolumeResponse{PublishContext: map[string]string{"attached-to": q.GetNodeId()}}, nil
}

func (d *driver) ControllerUnpublishVolume(_ context.Context, q *csi.ControllerUnpublishVolumeRequest) (*csi.ControllerUnpublishVolumeResponse, error) {
	if !local(q.GetVolumeId()) {
		return nil, status.Errorf(codes.InvalidArgument, "volume %q", q.GetVolumeId())
	}
	if err := os.Remove(d.path(q.GetVolumeId()) + ".attached"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, status.Error(codes.Internal, err.Error())
	}
	return &csi.ControllerUnpublishVolumeResponse{}, nil
}

func (d *driver) ControllerExpandVolume(_ context.Context, q *csi.ControllerExpandVolumeRequest) (*csi.ControllerExpandVolumeResponse, error) {
	return &csi.ControllerExpandVolumeResponse{CapacityBytes: q.GetCapacityRange().GetRequiredBytes(), NodeExpansionRequired: true}, nil
}
