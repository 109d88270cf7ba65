package csi

import (
	"context"
	"fmt"
	"slices"
	"time"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/proto"

	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	storagev1 "dhow.dev/gen/go/dhow/storage/v1"
	"dhow.dev/pkg/telemetry/logkey"
)

// keepAllocatable asks a driver again how many volumes the node can have, as often as its CSIDriver says, until ctx ends. Most say nothing.
func (r *Registry) keepAllocatable(ctx context.Context, d *Driver) {
	periods := make(chan time.Duration)
	r.group.Go(func() {
		r.withRetries(ctx, func() error { return r.followPeriod(ctx, d.Name, periods) })
	})
	var ticks <-chan time.Time
	ticker := time.NewTicker(time.Hour)
	defer ticker.Stop()
	ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case period := <-periods:
			ticker.Stop()
			if ticks = nil; period > 0 {
				ticker.Reset(period)
				ticks = ticker.C
			}
		case <-ticks:
			if err := r.updateAllocatable(ctx, d); err != nil && ctx.Err() == nil {
				r.Logger.WarnContext(ctx, "how many volumes a CSI driver can have on the node is not known anew", logkey.Err(err))
			}
		}
	}
}

// followPeriod tells how often a driver is to be asked, 0 for never, whenever that changes.
func (r *Registry) followPeriod(ctx context.Context, driver string, periods chan<- time.Duration) error {
	watch, err := r.csiDrivers.Watch(ctx, metav1.WatchRequest_builder{FieldSelector: "metadata.name=" + driver, Conflate: true}.Build())
	if err != nil {
		return err
	}
	told := time.Duration(-1)
	for {
		batch, err := watch.Next()
		if err != nil {
			return err
		}
		for _, change := range batch.Changes {
			period := time.Duration(change.Object.GetSpec().GetNodeAllocatableUpdatePeriodSeconds()) * time.Second
			if change.Type == metav1.EventType_EVENT_TYPE_DELETED {
				period = 0
			}
			if period == told {
				continue
			}
			told = period
			select {
			case periods <- period:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
}

// updateAllocatable writes the driver's number into the CSINode.
func (r *Registry) updateAllocatable(ctx context.Context, d *Driver) error {
	ask, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	self, err := d.node.NodeGetInfo(ask, &csispec.NodeGetInfoRequest{})
	if err != nil {
		return fmt.Errorf("driver %s: NodeGetInfo: %w", d.Name, err)
	}
	r.writing.Lock()
	defer r.writing.Unlock()
	return r.edit(ctx, func(node *storagev1.CSINode) {
		drivers := slices.Clone(node.GetSpec().GetDrivers())
		i := slices.IndexFunc(drivers, func(one *storagev1.CSINodeDriver) bool { return one.GetName() == d.Name })
		if i < 0 {
			return
		}
		entry := proto.CloneOf(drivers[i])
		entry.SetAllocatable(allocatable(self))
		drivers[i] = entry
		node.GetSpec().SetDrivers(drivers)
	})
}

// allocatable is what a driver says of the number of volumes; nil: as many as one likes.
func allocatable(self *csispec.NodeGetInfoResponse) *storagev1.VolumeNodeResources {
	n := self.GetMaxVolumesPerNode()
	if n <= 0 {
		return nil
	}
	return storagev1.VolumeNodeResources_builder{Count: proto.Int32(int32(min(n, 1<<31-1)))}.Build()
}
