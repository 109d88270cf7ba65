// Package evictor keeps a node from running out of memory, disk or process IDs: it looks at what is left, frees what nobody needs, and then evicts pods, one
// after the other, in Kubernetes' order. It also says which pods the node takes meanwhile.
package evictor

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/pkg/telemetry/logkey"
	"dhow.dev/services/node-agent/internal/cgroup"
	"dhow.dev/services/node-agent/internal/machine"
	"dhow.dev/services/node-agent/internal/pod"
	"dhow.dev/services/node-agent/internal/status"
)

const (
	// interval is how often the evictor looks, as Kubernetes does: nothing tells of a disk that fills.
	interval = 10 * time.Second
	// After an eviction the evictor looks again when the pod is gone, every moment, but goes on after patience.
	moment   = 250 * time.Millisecond
	patience = 30 * time.Second
	// hardGrace is what a pod has to end when a hard threshold is crossed.
	hardGrace = time.Second
)

// Observation is what is left of something.
type Observation struct{ Available, Capacity int64 }

// Pressures are the node's conditions.
type Pressures = machine.Pressures

// Config configures an Evictor.
type Config struct {
	Thresholds []Threshold
	// Observe says what is left. Signals that it does not know of are never crossed.
	Observe func(context.Context) (map[Signal]Observation, error)
	// Pods are the pods that have resources of the node, Uses what they use of what a signal is about, by UID.
	Pods func() []*corev1.Pod
	Uses func(context.Context, Signal) (map[string]Use, error)
	// Stored is what pods have on the disk, by UID; it is asked for pods with limits only. Nil: such limits bound nothing.
	Stored func(context.Context, []*corev1.Pod) (map[string]Stored, error)
	// Evict ends a pod, and says whether there was one to end.
	Evict func(uid string, end *status.End) bool
	// Reclaim frees disk of what nobody needs.
	Reclaim func(context.Context) error
	// Changed is told when the pressures change.
	Changed func()
	// MaxGrace bounds what pods have to end when a soft threshold is crossed. Transition is how long a pressure stays after it was last seen.
	MaxGrace, Transition time.Duration
	Logger               *slog.Logger
}

// Evictor is what keeps the node from running out.
type Evictor struct {
	config Config

	mu sync.Mutex
	// since is when a threshold was first seen crossed, without a look in between at which it was not; last when it was last.
	since, last map[int]time.Time
	pressures   Pressures

	// over are the pods that were evicted for storing too much and have not ended yet. Only Run's goroutine touches it.
	over map[string]bool
}

// New returns an evictor.
func New(config Config) *Evictor {
	return &Evictor{config: config, since: map[int]time.Time{}, last: map[int]time.Time{}}
}

// Run looks until ctx ends.
func (e *Evictor) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		e.bound(ctx)
		if uid := e.look(ctx); uid != "" {
			e.await(ctx, uid)
			timer.Reset(0)
			continue
		}
		timer.Reset(interval)
	}
}

// await waits until a pod has given its resources back.
func (e *Evictor) await(ctx context.Context, uid string) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	ticker := time.NewTicker(moment)
	defer ticker.Stop()
	for slices.ContainsFunc(e.config.Pods(), func(p *corev1.Pod) bool { return p.GetMetadata().GetUid() == uid }) {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// look looks once, and returns the UID of the pod that it evicted.
func (e *Evictor) look(ctx context.Context) string {
	seen, err := e.config.Observe(ctx)
	if err != nil {
		e.config.Logger.WarnContext(ctx, "what is left on the node not known, no pod is evicted", logkey.Err(err))
		return ""
	}
	crossed, due := e.take(seen, time.Now())
	if len(crossed) > 0 && slices.ContainsFunc(due, func(t Threshold) bool { return isDisk(t.Signal) }) {
		if err := e.config.Reclaim(ctx); err != nil {
			e.config.Logger.WarnContext(ctx, "disk not freed", logkey.Err(err))
		}
		if seen, err = e.config.Observe(ctx); err != nil {
			return ""
		}
		_, due = e.take(seen, time.Now())
	}
	if len(due) == 0 {
		return ""
	}
	t := due[0]
	return e.evict(ctx, t, seen[t.Signal])
}

func isDisk(s Signal) bool { return s != Memory && s != PIDs }

// order is which of several thresholds is dealt with first: memory, because it cannot wait.
func order(s Signal) int {
	return slices.Index([]Signal{Memory, NodeDisk, NodeInodes, ImageDisk, ImageInodes, PIDs}, s)
}

// take notes what is crossed, and returns it, and those of them for which it is time to evict.
func (e *Evictor) take(seen map[Signal]Observation, now time.Time) (crossed, due []Threshold) {
	e.mu.Lock()
	before := e.pressures
	var p Pressures
	for i, t := range e.config.Thresholds {
		o, known := seen[t.Signal]
		limit := t.limit(o.Capacity)
		_, was := e.since[i]
		if was {
			limit += t.Reclaim
		}
		if known && o.Available < limit {
			if !was {
				e.since[i] = now
			}
			e.last[i] = now
			crossed = append(crossed, t)
			if now.Sub(e.since[i]) >= t.Grace {
				due = append(due, t)
			}
		} else {
			delete(e.since, i)
		}
		if last, ever := e.last[i]; ever && (known && o.Available < limit || now.Sub(last) < e.config.Transition) {
			p.Memory = p.Memory || t.Signal == Memory
			p.PIDs = p.PIDs || t.Signal == PIDs
			p.Disk = p.Disk || isDisk(t.Signal)
		}
	}
	e.pressures = p
	e.mu.Unlock()
	if p != before && e.config.Changed != nil {
		e.config.Changed()
	}
	slices.SortStableFunc(due, func(a, b Threshold) int {
		if d := order(a.Signal) - order(b.Signal); d != 0 {
			return d
		}
		switch { // a hard one does not wait for a soft one
		case !a.Soft && b.Soft:
			return -1
		case a.Soft && !b.Soft:
			return 1
		}
		return 0
	})
	return crossed, due
}

// evict evicts the first pod in the order of a signal, and returns its UID.
func (e *Evictor) evict(ctx context.Context, t Threshold, o Observation) string {
	uses, err := e.config.Uses(ctx, t.Signal)
	if err != nil {
		e.config.Logger.WarnContext(ctx, "what pods use is not known, the order of evictions goes by priority", logkey.Err(err))
	}
	pods := slices.DeleteFunc(slices.Clone(e.config.Pods()), pod.IsCritical)
	for _, p := range Rank(t.Signal, pods, uses) {
		uid, md := p.GetMetadata().GetUid(), p.GetMetadata()
		grace := hardGrace
		if t.Soft {
			grace = e.config.MaxGrace
		}
		end := &status.End{Reason: "Evicted", Message: message(t, o, p, uses[uid]), Disrupted: true, Grace: &grace}
		if e.config.Evict(uid, end) {
			e.config.Logger.WarnContext(ctx, "pod evicted", logkey.Pod(md.GetNamespace(), md.GetName()), logkey.Reason(string(t.Signal)))
			return uid
		}
	}
	return ""
}

// Pressures returns the node's conditions.
func (e *Evictor) Pressures() Pressures {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.pressures
}

// Admit says why a pod is not taken now. Memory pressure keeps away only those to whom nothing is promised.
func (e *Evictor) Admit(p *corev1.Pod) *status.End {
	is := e.Pressures()
	if is == (Pressures{}) || pod.IsCritical(p) {
		return nil
	}
	if !is.Disk && !is.PIDs && (cgroup.Class(p) != cgroup.BestEffort || slices.ContainsFunc(p.GetSpec().GetTolerations(), tolerates)) {
		return nil
	}
	var conditions []string
	for name, on := range map[string]bool{"MemoryPressure": is.Memory, "DiskPressure": is.Disk, "PIDPressure": is.PIDs} {
		if on {
			conditions = append(conditions, name)
		}
	}
	slices.Sort(conditions)
	return &status.End{Reason: "Evicted", Message: fmt.Sprintf("The node had condition: [%s]. ", strings.Join(conditions, ", "))}
}

// tolerates says whether a toleration is one of the taint of nodes with too little memory.
func tolerates(t *corev1.Toleration) bool {
	if t.GetEffect() != "" && t.GetEffect() != "NoSchedule" {
		return false
	}
	return t.GetKey() == "" && t.GetOperator() == "Exists" ||
		t.GetKey() == "node.kubernetes.io/memory-pressure" && (t.GetOperator() == "Exists" || t.GetValue() == "")
}
