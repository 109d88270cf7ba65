// Package usage measures what the node and its containers use, as Kubernetes' resource metrics count it: CPU as the mean over the time between two
// looks, memory as the working set.
package usage

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	nodev1 "dhow.dev/gen/go/dhow/node/v1"
	"dhow.dev/pkg/telemetry/logkey"
	"dhow.dev/services/node-agent/internal/cri"
)

// Interval is how often the meter looks: what Kubernetes' metrics server does too.
const Interval = 15 * time.Second

// first is when the meter looks for the second time, so that a new node is soon known.
const first = 5 * time.Second

// Config configures a Meter.
type Config struct {
	// Containers tells what the containers of pods have used.
	Containers func(context.Context) ([]cri.Usage, error)
	// Node tells what all of the node has used: CPU time, and the working set in bytes.
	Node func() (time.Duration, uint64, error)
	// Volumes tells how full the volumes of pods' claims are, by the pods' UIDs; nil: nobody knows.
	Volumes func(context.Context) map[string][]*nodev1.PodUsage_Volume
	// Report takes what has changed. It must not block.
	Report func(*nodev1.NodeUsage)
	Logger *slog.Logger
}

// Meter measures.
type Meter struct {
	config Config
	// before is the CPU time at the last look, by container ID; node that of the node.
	before map[string]sample
	node   sample
	last   *nodev1.NodeUsage
}

// sample is a CPU counter at a moment.
type sample struct {
	cpu time.Duration
	at  time.Time
}

// New returns a meter.
func New(config Config) *Meter { return &Meter{config: config, before: map[string]sample{}} }

// Run measures until ctx ends.
func (m *Meter) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	wait := first
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		m.look(ctx)
		timer.Reset(wait)
		wait = Interval
	}
}

// look measures once. A container that is seen for the first time has no rate yet and is left out, as in Kubernetes.
func (m *Meter) look(ctx context.Context) {
	containers, err := m.config.Containers(ctx)
	if err != nil {
		if ctx.Err() == nil {
			m.config.Logger.DebugContext(ctx, "usage of containers not read", logkey.Err(err))
		}
		return
	}
	cpu, memory, err := m.config.Node()
	if err != nil {
		m.config.Logger.DebugContext(ctx, "usage of the node not read", logkey.Err(err))
		return
	}
	now := time.Now()
	node := sample{cpu, now}
	before, first := m.node, m.node.at.IsZero()
	m.node = node
	pods := map[string]*nodev1.PodUsage{}
	seen := make(map[string]sample, len(containers))
	for _, c := range containers {
		s := sample{c.CPU, c.At}
		// A runtime that answers from a cache shows a moment twice; the rate is then that of the moments before.
		old, known := m.before[c.ID]
		if known && !s.at.After(old.at) {
			s = old
		}
		seen[c.ID] = s
		if !known || s == old {
			continue
		}
		p := pods[c.PodUID]
		if p == nil {
			p = nodev1.PodUsage_builder{Namespace: c.PodNamespace, Name: c.PodName, Uid: c.PodUID}.Build()
			pods[c.PodUID] = p
		}
		p.SetContainers(append(p.GetContainers(), nodev1.PodUsage_Container_builder{Name: c.Name, Usage: rate(old, s, c.Memory)}.Build()))
	}
	m.before = seen
	if first {
		return
	}
	var volumes map[string][]*nodev1.PodUsage_Volume
	if m.config.Volumes != nil {
		volumes = m.config.Volumes(ctx)
	}
	list := make([]*nodev1.PodUsage, 0, len(pods))
	for _, p := range pods {
		slices.SortFunc(p.GetContainers(), func(a, b *nodev1.PodUsage_Container) int { return cmp.Compare(a.GetName(), b.GetName()) })
		p.SetVolumes(volumes[p.GetUid()])
		list = append(list, p)
	}
	slices.SortFunc(list, func(a, b *nodev1.PodUsage) int { return cmp.Compare(a.GetUid(), b.GetUid()) })
	usage := nodev1.NodeUsage_builder{Node: rate(before, node, memory), Pods: list, WindowMilliseconds: now.Sub(before.at).Milliseconds()}.Build()
	if m.last != nil && same(m.last, usage) {
		return
	}
	usage.SetTimestamp(metav1.Time_builder{Seconds: proto.Int64(now.Unix()), Nanos: proto.Int32(int32(now.Nanosecond()))}.Build())
	m.last = usage
	m.config.Report(usage)
}

// same compares what is told, but for the moment.
func same(a, b *nodev1.NodeUsage) bool {
	return proto.Equal(a.GetNode(), b.GetNode()) && slices.EqualFunc(a.GetPods(), b.GetPods(), func(x, y *nodev1.PodUsage) bool { return proto.Equal(x, y) })
}

func rate(before, now sample, memory uint64) *nodev1.Usage {
	usage := nodev1.Usage_builder{MemoryBytes: memory, CpuNanoseconds: uint64(max(now.cpu, 0))}.Build()
	if window, used := now.at.Sub(before.at), now.cpu-before.cpu; window > 0 && used > 0 {
		usage.SetCpuNanocores(uint64(float64(used) / window.Seconds()))
	}
	return usage
}
