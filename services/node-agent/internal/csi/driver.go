package csi

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

// callTimeout bounds one call of a driver; Kubernetes' time.
const callTimeout = 2 * time.Minute

// Driver is the node's part of a registered driver.
type Driver struct {
	Name string
	conn *grpc.ClientConn
	node csispec.NodeClient
	can  map[csispec.NodeServiceCapability_RPC_Type]bool
}

// dial connects to a driver's socket. A path that is longer than a socket's address takes is reached through its folder.
func dial(path string) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///csi", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			dir, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			if err != nil {
				return nil, &os.PathError{Op: "open", Path: filepath.Dir(path), Err: err}
			}
			defer func() { _ = unix.Close(dir) }()
			return new(net.Dialer).DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d/%s", dir, filepath.Base(path)))
		}))
}

// connect asks a driver what it can do.
func connect(ctx context.Context, name, socket string) (*Driver, error) {
	conn, err := dial(socket)
	if err != nil {
		return nil, err
	}
	d := &Driver{Name: name, conn: conn, node: csispec.NewNodeClient(conn), can: map[csispec.NodeServiceCapability_RPC_Type]bool{}}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	answer, err := d.node.NodeGetCapabilities(ctx, &csispec.NodeGetCapabilitiesRequest{}, grpc.WaitForReady(true))
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("capabilities of driver %s: %w", name, err)
	}
	for _, c := range answer.GetCapabilities() {
		d.can[c.GetRpc().GetType()] = true
	}
	return d, nil
}

// Stages says that volumes are staged on the node before they are published to pods.
func (d *Driver) Stages() bool {
	return d.can[csispec.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME]
}

// Expands says that the driver has something to do on the node when a volume grows.
func (d *Driver) Expands() bool { return d.can[csispec.NodeServiceCapability_RPC_EXPAND_VOLUME] }

// SetsGroup says that the driver itself gives volumes to a pod's fsGroup.
func (d *Driver) SetsGroup() bool { return d.can[csispec.NodeServiceCapability_RPC_VOLUME_MOUNT_GROUP] }

// Measures says that the driver tells how full volumes are.
func (d *Driver) Measures() bool { return d.can[csispec.NodeServiceCapability_RPC_GET_VOLUME_STATS] }

// KnowsHealth says that what the driver tells of volumes includes their health.
func (d *Driver) KnowsHealth() bool { return d.can[csispec.NodeServiceCapability_RPC_VOLUME_CONDITION] }

// SingleWriter says that the driver knows the access modes for one writer and for one pod apart.
func (d *Driver) SingleWriter() bool {
	return d.can[csispec.NodeServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER]
}

func call[Q, A any](ctx context.Context, d *Driver, what string, f func(context.Context, Q, ...grpc.CallOption) (A, error), request Q) (A, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	answer, err := f(ctx, request)
	if err != nil {
		return answer, fmt.Errorf("driver %s: %s: %w", d.Name, what, err)
	}
	return answer, nil
}

// Stage makes a volume ready on the node. All calls may be repeated.
func (d *Driver) Stage(ctx context.Context, request *csispec.NodeStageVolumeRequest) error {
	_, err := call(ctx, d, "NodeStageVolume", d.node.NodeStageVolume, request)
	return err
}

// Unstage undoes Stage.
func (d *Driver) Unstage(ctx context.Context, volumeID, path string) error {
	_, err := call(ctx, d, "NodeUnstageVolume", d.node.NodeUnstageVolume, &csispec.NodeUnstageVolumeRequest{VolumeId: volumeID, StagingTargetPath: path})
	return ignoreMissing(err)
}

// Publish makes a volume appear at a pod's path.
func (d *Driver) Publish(ctx context.Context, request *csispec.NodePublishVolumeRequest) error {
	_, err := call(ctx, d, "NodePublishVolume", d.node.NodePublishVolume, request)
	return err
}

// Unpublish undoes Publish.
func (d *Driver) Unpublish(ctx context.Context, volumeID, path string) error {
	_, err := call(ctx, d, "NodeUnpublishVolume", d.node.NodeUnpublishVolume, &csispec.NodeUnpublishVolumeRequest{VolumeId: volumeID, TargetPath: path})
	return ignoreMissing(err)
}

// Expand makes the file system as large as the volume.
func (d *Driver) Expand(ctx context.Context, request *csispec.NodeExpandVolumeRequest) error {
	_, err := call(ctx, d, "NodeExpandVolume", d.node.NodeExpandVolume, request)
	return err
}

// Stats tells how full a volume is.
func (d *Driver) Stats(ctx context.Context, request *csispec.NodeGetVolumeStatsRequest) (*csispec.NodeGetVolumeStatsResponse, error) {
	return call(ctx, d, "NodeGetVolumeStats", d.node.NodeGetVolumeStats, request)
}

// ignoreMissing takes what a driver does not know any more for undone.
func ignoreMissing(err error) error {
	if status.Code(err) == codes.NotFound {
		return nil
	}
	return err
}
