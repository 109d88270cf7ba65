package nodeagent

import (
	"cmp"
	"context"
	"errors"
	"slices"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	nodev1 "dhow.dev/gen/go/dhow/node/v1"
	"dhow.dev/services/node-agent/internal/volume"
)

// volumeMetrics registers how full the volumes of claims are, by the names that dashboards and alerts for a kubelet have.
func volumeMetrics(meter metric.Meter, stats func(context.Context) []volume.Stat) error {
	var failed error
	capacity, err := meter.Int64ObservableGauge("kubelet.volume.stats.capacity", metric.WithUnit("By"), metric.WithDescription("Size of the volume of a claim."))
	failed = errors.Join(failed, err)
	available, err := meter.Int64ObservableGauge("kubelet.volume.stats.available", metric.WithUnit("By"), metric.WithDescription("What is free of it."))
	failed = errors.Join(failed, err)
	used, err := meter.Int64ObservableGauge("kubelet.volume.stats.used", metric.WithUnit("By"), metric.WithDescription("What is used of it."))
	failed = errors.Join(failed, err)
	inodes, err := meter.Int64ObservableGauge("kubelet.volume.stats.inodes", metric.WithDescription("Inodes of the volume of a claim."))
	failed = errors.Join(failed, err)
	free, err := meter.Int64ObservableGauge("kubelet.volume.stats.inodes.free", metric.WithDescription("Inodes that are free."))
	failed = errors.Join(failed, err)
	taken, err := meter.Int64ObservableGauge("kubelet.volume.stats.inodes.used", metric.WithDescription("Inodes that are used."))
	failed = errors.Join(failed, err)
	abnormal, err := meter.Int64ObservableGauge("kubelet.volume.stats.health.status.abnormal", metric.WithDescription("1 when the driver says that the volume is not well, 0 when it says that it is."))
	failed = errors.Join(failed, err)
	if failed != nil {
		return failed
	}
	gauges := []struct {
		instrument metric.Int64Observable
		value      func(volume.Stat) int64
	}{
		{capacity, func(s volume.Stat) int64 { return s.Capacity }},
		{available, func(s volume.Stat) int64 { return s.Available }},
		{used, func(s volume.Stat) int64 { return s.Used }},
		{inodes, func(s volume.Stat) int64 { return s.Inodes }},
		{free, func(s volume.Stat) int64 { return s.InodesFree }},
		{taken, func(s volume.Stat) int64 { return s.InodesUsed }},
		{abnormal, health},
	}
	_, err = meter.RegisterCallback(func(ctx context.Context, o metric.Observer) error {
		for _, s := range stats(ctx) {
			of := metric.WithAttributes(attribute.String("namespace", s.Namespace), attribute.String("persistentvolumeclaim", s.Claim))
			for _, g := range gauges {
				if v := g.value(s); v >= 0 {
					o.ObserveInt64(g.instrument, v, of)
				}
			}
		}
		return nil
	}, capacity, available, used, inodes, free, taken, abnormal)
	return err
}

func health(s volume.Stat) int64 {
	switch {
	case s.Abnormal == nil:
		return -1
	case *s.Abnormal:
		return 1
	}
	return 0
}

// usedVolumes returns how full pods' volumes are, by the pods' UIDs.
func usedVolumes(stats []volume.Stat) map[string][]*nodev1.PodUsage_Volume {
	all := map[string][]*nodev1.PodUsage_Volume{}
	for _, s := range stats {
		v := nodev1.PodUsage_Volume_builder{Name: s.Volume, Claim: s.Claim, Message: s.Message, Abnormal: s.Abnormal}.Build()
		for _, field := range []struct {
			value int64
			set   func(int64)
		}{{s.Capacity, v.SetCapacityBytes}, {s.Available, v.SetAvailableBytes}, {s.Used, v.SetUsedBytes}, {s.Inodes, v.SetInodes}, {s.InodesFree, v.SetInodesFree}, {s.InodesUsed, v.SetInodesUsed}} {
			if field.value >= 0 {
				field.set(field.value)
			}
		}
		all[s.Pod] = append(all[s.Pod], v)
	}
	for _, list := range all {
		slices.SortFunc(list, func(a, b *nodev1.PodUsage_Volume) int { return cmp.Compare(a.GetName(), b.GetName()) })
	}
	return all
}
