// Package cluster keeps the scheduler's picture of the cluster: it turns changes of nodes, pods and services into deltas of a snapshot, knows the pods that
// were placed and are not yet seen bound, and says which changes may help pods that wait.
//
// A Cluster is not safe for concurrent use; snapshots that it hands out are.
package cluster

import (
	"fmt"
	"maps"
	"slices"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/pkg/object"
	"dhow.dev/services/scheduler/internal/filter"
	"dhow.dev/services/scheduler/internal/snapshot"
)

// Cluster is the picture.
type Cluster struct {
	snapshot *snapshot.Snapshot
	// services returns those of a namespace.
	services func(namespace string) []*corev1.Service

	slots     map[string]int
	freeSlots []int
	pods      map[object.Key]*Pod
	// byNode has the pods with a node name, whether the node is known or not.
	byNode map[string]map[object.Key]*Pod

	classes    map[string]*class
	freeClass  []int32
	namespaces map[string]*namespace

	columns    map[string]int32
	topologies map[string]int32
	groups     map[string]*group
	freeGroup  []int32
	holders    map[holderKey]*holder
	freeHolder []int32
	// wide are the groups that may count pods of several namespaces, labelsOf the labels of namespaces.
	wide     map[*group]struct{}
	labelsOf map[string]map[string]string

	// nominated are the pods of which Nominated is set.
	nominated map[object.Key]*Pod
	// priorities counts the pods with a node by priority.
	priorities map[int32]int
	storage    storage
}

// Pod is a pod that is not finished.
type Pod struct {
	Key    object.Key
	UID    string
	Object *corev1.Pod
	// NodeName is where it is or is assumed to be; empty while it is pending.
	NodeName string
	// Assumed says that the node is the scheduler's decision, not seen bound yet.
	Assumed bool
	// Nominated is the node where others were asked to leave for it; empty when it is placed or when none was.
	Nominated string
	// Leaving says that it was asked to leave its node, which is not seen yet.
	Leaving bool

	class *class
	// counted says that it counts for spreading: it does not terminate.
	counted bool
	// holder is Key as the holder of ports.
	holder string
}

// Terminating says that the pod is being deleted.
func (p *Pod) Terminating() bool { return !p.counted }

// Priority returns the pod's, which never changes.
func (p *Pod) Priority() int32 { return p.Object.GetSpec().GetPriority() }

// Class returns what the pod has in common with others.
func (p *Pod) Class() *snapshot.Class { return p.class.Class }

// class is a class with what the picture needs to end it.
type class struct {
	*snapshot.Class
	key     string
	refs    int
	groups  []*group
	holders []*holder
	// perNode counts the pods by slot, from which new groups begin.
	perNode map[int]occupancy
}

// occupancy is how many pods there are, and how many of them do not terminate.
type occupancy struct{ present, counted int32 }

func (o occupancy) seen(s *snapshot.Selector) int32 {
	if len(s.Terms) > 0 {
		return o.present
	}
	return o.counted
}

type holderKey struct {
	group, topology int32
	required        bool
}

type holder struct {
	id   int32
	key  holderKey
	refs int
}

type group struct {
	id       int32
	key      string
	selector snapshot.Selector
	refs     int
}

// namespace finds who may count whom: most groups and classes only meet within one.
type namespace struct {
	classes map[*class]struct{}
	// byOwner are the classes by their controller's UID.
	byOwner map[string]map[*class]struct{}
	// owners are the groups that select by controller, labels the others.
	owners map[string]*group
	labels map[*group]struct{}
}

// New returns an empty picture.
func New(services func(namespace string) []*corev1.Service) *Cluster {
	c := &Cluster{
		snapshot: snapshot.New(), services: services,
		slots: map[string]int{}, pods: map[object.Key]*Pod{}, byNode: map[string]map[object.Key]*Pod{},
		classes: map[string]*class{}, namespaces: map[string]*namespace{}, columns: map[string]int32{}, topologies: map[string]int32{}, groups: map[string]*group{},
		holders: map[holderKey]*holder{}, wide: map[*group]struct{}{}, labelsOf: map[string]map[string]string{},
		nominated: map[object.Key]*Pod{}, priorities: map[int32]int{}, storage: newStorage(),
	}
	for i := range c.snapshot.Columns() {
		c.columns[c.snapshot.Column(i)] = int32(i)
	}
	return c
}

// Snapshot returns the picture as it is now. It does not change any more.
func (c *Cluster) Snapshot() *snapshot.Snapshot { return c.snapshot.Fork() }

// Pod returns a pod by name.
func (c *Cluster) Pod(key object.Key) (*Pod, bool) {
	p, ok := c.pods[key]
	return p, ok
}

// Len returns the numbers of nodes and of pods that are not finished.
func (c *Cluster) Len() (nodes, pods int) { return len(c.slots), len(c.pods) }

// SetNode takes in a new or changed node and returns what that may help.
func (c *Cluster) SetNode(o *corev1.Node) filter.Event {
	n := snapshot.CompileNode(c, o)
	slot, known := c.slots[n.Name]
	if known {
		before := c.snapshot.Node(slot)
		c.snapshot.SetNode(slot, n)
		return changes(before, n)
	}
	if last := len(c.freeSlots) - 1; last >= 0 {
		slot, c.freeSlots = c.freeSlots[last], c.freeSlots[:last]
	} else {
		slot = c.snapshot.AddSlot()
	}
	c.slots[n.Name] = slot
	c.snapshot.SetNode(slot, n)
	for _, p := range c.byNode[n.Name] {
		c.attach(p, slot)
	}
	return filter.NodeAdded
}

func changes(before, after *snapshot.Node) filter.Event {
	var events filter.Event
	if !slices.Equal(sorted(before.Allocatable), sorted(after.Allocatable)) || before.AllowedPods != after.AllowedPods {
		events |= filter.NodeAllocatable
	}
	if !maps.Equal(before.Labels, after.Labels) {
		events |= filter.NodeLabels
	}
	if !slices.Equal(before.Taints, after.Taints) {
		events |= filter.NodeTaints
	}
	if before.Unschedulable && !after.Unschedulable {
		events |= filter.NodeSchedulable
	}
	return events
}

func sorted(amounts []snapshot.Amount) []snapshot.Amount {
	return slices.SortedFunc(slices.Values(amounts), func(a, b snapshot.Amount) int { return int(a.Column - b.Column) })
}

// DeleteNode takes in that a node is gone. Its pods stay known until they are gone themselves.
func (c *Cluster) DeleteNode(name string) filter.Event {
	slot, known := c.slots[name]
	if !known {
		return 0
	}
	for _, p := range c.byNode[name] {
		c.detach(p, slot)
	}
	c.snapshot.SetNode(slot, nil)
	delete(c.slots, name)
	c.freeSlots = append(c.freeSlots, slot)
	return filter.NodeGone
}

// SetPod takes in a new or changed pod and returns it with what the change may help others; finished pods are forgotten, and nil is returned.
// Respecified says that a pending pod's class changed: what was found out about it no longer holds.
func (c *Cluster) SetPod(o *corev1.Pod) (p *Pod, respecified bool, helps filter.Event, err error) {
	key := object.KeyOf(o)
	if finished(o) {
		return nil, false, c.DeletePod(key), nil
	}
	p, known := c.pods[key]
	node, uid := o.GetSpec().GetNodeName(), o.GetMetadata().GetUid()
	if known && p.UID != uid {
		helps |= c.DeletePod(key)
		known = false
	}
	if !known {
		p = &Pod{Key: key, UID: uid, holder: key.String()}
		c.pods[key] = p
	}
	// An assumed pod's node is not in its spec yet.
	assumed := known && p.Assumed && node == ""
	if assumed {
		node = p.NodeName
	}
	next, err := c.class(o)
	if err != nil {
		return nil, false, helps, fmt.Errorf("pod %s: %w", key, err)
	}
	counted := !object.IsDeleted(o)
	c.nominate(p, o, known)
	if known && p.class == next && p.NodeName == node && p.counted == counted {
		p.Assumed, p.Object = assumed, o
		c.release(next)
		return p, false, helps, nil
	}
	respecified = known && p.class != next
	if known {
		helps |= c.take(p)
		c.release(p.class)
	}
	p.Object = o
	p.class, p.counted, p.Assumed = next, counted, assumed
	if node != "" {
		c.put(p, node)
		helps |= filter.PodPlaced
	}
	return p, respecified, helps, nil
}

// finished pods hold nothing.
func finished(o *corev1.Pod) bool {
	phase := o.GetStatus().GetPhase()
	return phase == "Succeeded" || phase == "Failed"
}

// DeletePod takes in that a pod is gone.
func (c *Cluster) DeletePod(key object.Key) filter.Event {
	p, known := c.pods[key]
	if !known {
		return 0
	}
	helps := c.take(p)
	c.release(p.class)
	delete(c.pods, key)
	delete(c.nominated, key)
	return helps
}

// Assume places a pending pod before its binding is seen. False: the pod that was decided about is gone, has changed or has a node, or the node is gone.
func (c *Cluster) Assume(key object.Key, decided *snapshot.Class, node string) bool {
	p, known := c.pods[key]
	if !known || p.Class() != decided || p.NodeName != "" || !p.counted {
		return false
	}
	if _, known := c.slots[node]; !known {
		return false
	}
	c.put(p, node)
	p.Assumed = true
	return true
}

// Forget takes back an assumption that did not come true. False: the pod is gone or bound meanwhile.
func (c *Cluster) Forget(key object.Key, uid string) bool {
	p, known := c.pods[key]
	if !known || p.UID != uid || !p.Assumed {
		return false
	}
	c.take(p)
	p.Assumed = false
	return true
}

// put gives the pod a node.
func (c *Cluster) put(p *Pod, node string) {
	p.NodeName = node
	c.priorities[p.Priority()]++
	if c.byNode[node] == nil {
		c.byNode[node] = map[object.Key]*Pod{}
	}
	c.byNode[node][p.Key] = p
	if slot, known := c.slots[node]; known {
		c.attach(p, slot)
	}
}

// take takes the pod off its node, if it has one.
func (c *Cluster) take(p *Pod) filter.Event {
	if p.NodeName == "" {
		return 0
	}
	if slot, known := c.slots[p.NodeName]; known {
		c.detach(p, slot)
	}
	if n := c.priorities[p.Priority()] - 1; n > 0 {
		c.priorities[p.Priority()] = n
	} else {
		delete(c.priorities, p.Priority())
	}
	pods := c.byNode[p.NodeName]
	delete(pods, p.Key)
	if len(pods) == 0 {
		delete(c.byNode, p.NodeName)
	}
	p.NodeName = ""
	return filter.PodGone
}

func (c *Cluster) attach(p *Pod, slot int) {
	c.snapshot.AddPod(slot, p.class.Class, p.holder)
	pods := p.class.perNode[slot]
	pods.present++
	if p.counted {
		c.snapshot.Count(slot, p.class.Class, 1)
		pods.counted++
	}
	p.class.perNode[slot] = pods
}

func (c *Cluster) detach(p *Pod, slot int) {
	c.snapshot.RemovePod(slot, p.class.Class, p.holder)
	pods := p.class.perNode[slot]
	pods.present--
	if p.counted {
		c.snapshot.Count(slot, p.class.Class, -1)
		pods.counted--
	}
	p.class.perNode[slot] = pods
	if pods.present == 0 {
		delete(p.class.perNode, slot)
	}
}
