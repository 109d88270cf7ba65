package nodelifecycle

import (
	"sync"
	"time"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
)

// disruption is how much of a zone is not ready.
type disruption int

const (
	normal disruption = iota
	// partial: more than two nodes and at least 55 % of a zone are not ready.
	partial
	// full: no node of the zone is ready.
	full
)

const (
	partialThreshold = 0.55
	// largeZone is how many nodes a zone needs for evictions to go on, slowly, during a partial disruption.
	largeZone = 50
	// slowdown is how much slower they then are.
	slowdown = 10
)

// zoneOf returns the zone of a node; nodes without labels are one zone.
func zoneOf(node *corev1.Node) string {
	labels := node.GetMetadata().GetLabels()
	return labels["topology.kubernetes.io/region"] + "/" + labels["topology.kubernetes.io/zone"]
}

// survey returns the state of every zone, their sizes, and whether all of the cluster is unreachable, which says more about the control plane than
// about the nodes.
func survey(nodes []*corev1.Node) (states map[string]disruption, sizes map[string]int, everything bool) {
	ready, sizes := map[string]int{}, map[string]int{}
	for _, n := range nodes {
		sizes[zoneOf(n)]++
		if readiness(n) == statusTrue {
			ready[zoneOf(n)]++
		}
	}
	states, everything = map[string]disruption{}, len(nodes) > 0
	for zone, size := range sizes {
		down := size - ready[zone]
		switch {
		case ready[zone] == 0:
			states[zone] = full
		case down > 2 && float64(down)/float64(size) >= partialThreshold:
			states[zone] = partial
		}
		everything = everything && states[zone] == full
	}
	return states, sizes, everything
}

// limiter spaces out the nodes of a zone whose pods begin to be evicted: one at once, the next ones at the rate, less when much of the zone is down.
type limiter struct {
	rate float64 // nodes a second

	mu   sync.Mutex
	next map[string]time.Time // when the zone's next node may follow
}

// take allows one node of a zone to begin now, or says how long to wait; 0 and false means until the zone's state changes.
func (l *limiter) take(zone string, state disruption, size int, now time.Time) (ok bool, wait time.Duration) {
	rate := l.rate
	if state == partial {
		if size <= largeZone {
			return false, 0
		}
		rate /= slowdown
	}
	if rate <= 0 {
		return false, 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if wait := l.next[zone].Sub(now); wait > 0 {
		return false, wait
	}
	if l.next == nil {
		l.next = map[string]time.Time{}
	}
	l.next[zone] = now.Add(time.Duration(float64(time.Second) / rate))
	return true, 0
}
