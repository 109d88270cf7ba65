// Package filter has the rules that keep pods from nodes, one file each. A rule says why, in the words of Kubernetes' scheduler, because the words
// are read by people and by programs that were written for it.
package filter

import (
	"dhow.dev/services/scheduler/internal/affinity"
	"dhow.dev/services/scheduler/internal/snapshot"
	"dhow.dev/services/scheduler/internal/spread"
	"dhow.dev/services/scheduler/internal/volume"
)

// Context is what a rule may look at: a snapshot, the pod's class, and the class's counters.
type Context struct {
	Snapshot *snapshot.Snapshot
	Class    *snapshot.Class
	Spread   *spread.Hard
	Affinity *affinity.Required
	Volumes  *volume.Needs
}

// NewContext makes the counters that rules need for a class.
func NewContext(s *snapshot.Snapshot, c *snapshot.Class) *Context {
	return &Context{Snapshot: s, Class: c, Spread: spread.NewHard(s, c), Affinity: affinity.New(s, c), Volumes: volume.New(s, c)}
}

// Add takes in that pods of some class were placed on a node. The snapshot has changed already.
func (c *Context) Add(slot int, placed *snapshot.Class, pods int32) { c.Move(slot, placed, pods, true) }

// Move takes in that pods of some class were placed on a node, or were taken away (negative). Those that terminate are not counted by topology spread.
func (c *Context) Move(slot int, moved *snapshot.Class, pods int32, counted bool) {
	if counted {
		c.Spread.Add(c.Snapshot, slot, moved, pods)
	}
	c.Affinity.Add(slot, moved, pods)
	c.Volumes.Add(moved, pods)
}

// Excluded says that a rule whose verdict may change by pods on other nodes excludes the node, and that no placement of pods will change it.
func (c *Context) Excluded(slot int) bool {
	return c.Spread.Missing(slot) || c.Affinity.Missing(slot) || c.Affinity.Taken(slot)
}

// Barred says that the pods of the node's domains, or of the whole cluster, keep the class from it now.
func (c *Context) Barred(slot int) bool {
	return c.Volumes.InUse() || c.Spread.Violated(slot) != nil || c.Affinity.Violated(slot)
}

// Filter is one rule.
type Filter struct {
	// Name is that of Kubernetes' plugin.
	Name string
	// Helps are the events after which a pod that this rule kept pending may fit.
	Helps Event
	// Reject appends the reasons why the pod cannot run on the node of a slot; none when the rule lets it.
	Reject func(c *Context, slot int, reasons []string) []string
	// Shared says that the reasons change with pods on other nodes, too.
	Shared bool
	// Pods says that the reasons may change when pods leave the node.
	Pods bool
}

// Event is a set of things that happen in a cluster.
type Event uint32

// What may make a pending pod fit.
const (
	NodeAdded Event = 1 << iota
	NodeAllocatable
	NodeLabels
	NodeTaints
	NodeSchedulable
	// PodGone is a pod that left its node, or needs less of it now.
	PodGone
	// PodPlaced is a pod that got a node, or whose labels changed: counts of spreading changed.
	PodPlaced
	// NodeGone is a domain less to spread over.
	NodeGone
	// StorageChanged is a claim, a volume, or what a class or a node can do for them.
	StorageChanged
)

// All returns the rules in the order in which Kubernetes asks its plugins. The first that rejects a node decides what a pod's condition says of it.
// Kubernetes' NodeName is not among them: a pod that names its node never comes here.
func All() []Filter {
	return []Filter{
		{Name: "NodeUnschedulable", Helps: NodeAdded | NodeSchedulable, Reject: unschedulable},
		{Name: "TaintToleration", Helps: NodeAdded | NodeTaints, Reject: taints},
		{Name: "NodeAffinity", Helps: NodeAdded | NodeLabels, Reject: nodeAffinity},
		{Name: "NodePorts", Helps: NodeAdded | PodGone, Reject: ports, Pods: true},
		{Name: "NodeResourcesFit", Helps: NodeAdded | NodeAllocatable | PodGone, Reject: resources, Pods: true},
		// Two rules, for only the second looks at pods elsewhere.
		{Name: "VolumeRestrictions", Helps: NodeAdded | PodGone, Reject: diskConflicts, Pods: true},
		{Name: "VolumeRestrictions", Helps: NodeAdded | PodGone | StorageChanged, Reject: volumeRestrictions, Shared: true, Pods: true},
		{Name: "NodeVolumeLimits", Helps: NodeAdded | PodGone | StorageChanged, Reject: volumeLimits, Pods: true},
		{Name: "VolumeBinding", Helps: NodeAdded | NodeLabels | StorageChanged, Reject: volumeBinding},
		{Name: "VolumeZone", Helps: NodeAdded | NodeLabels | StorageChanged, Reject: volumeZone},
		{Name: "PodTopologySpread", Helps: NodeAdded | NodeGone | NodeLabels | NodeTaints | PodGone | PodPlaced, Reject: topologySpread, Shared: true, Pods: true},
		{Name: "InterPodAffinity", Helps: NodeAdded | NodeGone | NodeLabels | PodGone | PodPlaced, Reject: podAffinity, Shared: true, Pods: true},
	}
}

// Rejection is a rule's verdict on a node.
type Rejection struct {
	// Filter is the index in the list of rules.
	Filter  int
	Reasons []string
}

// First returns the first rule's rejection of a node, or false. Reasons may reuse buffer.
func First(filters []Filter, c *Context, slot int, buffer []string) (Rejection, bool) {
	for i := range filters {
		if reasons := filters[i].Reject(c, slot, buffer[:0]); len(reasons) > 0 {
			return Rejection{Filter: i, Reasons: reasons}, true
		}
	}
	return Rejection{}, false
}

// Preemptible says whether the node could take the pod if others left it: no rule excludes it but those that look at its pods, and not for a label that it
// lacks, or for more than it has.
func Preemptible(filters []Filter, c *Context, slot int) bool {
	if c.Spread.Missing(slot) || c.Affinity.Missing(slot) {
		return false
	}
	for _, a := range c.Class.Requests {
		if a.Value > c.Snapshot.Allocatable(int(a.Column), slot) {
			return false
		}
	}
	for i := range filters {
		if !filters[i].Pods && len(filters[i].Reject(c, slot, nil)) > 0 {
			return false
		}
	}
	return c.Affinity.Verdict(slot) != affinity.NotNear
}

// Every returns the rejections of all rules: what would have to change for the pod to run on the node.
func Every(filters []Filter, c *Context, slot int) []Rejection {
	var out []Rejection
	for i := range filters {
		if reasons := filters[i].Reject(c, slot, nil); len(reasons) > 0 {
			out = append(out, Rejection{Filter: i, Reasons: reasons})
		}
	}
	return out
}
