// Package snapshot is the cluster as the scheduler's decisions see it: flat arrays over node slots, one element a node, with what decisions
// need and nothing else.
//
// A Snapshot is changed by deltas only. Fork gives an independent copy at the cost of a few slice headers: the arrays are copied when one side
// first writes to them. A snapshot that nobody writes to (what internal/cluster hands out) may be read and forked by any number of goroutines.
package snapshot

import "slices"

// The first columns are the same in every snapshot; the others are given out as resources are first named.
const (
	CPU = iota // millicores
	Memory
	EphemeralStorage
	fixedColumns
)

// Snapshot is the nodes, what is requested of them, and how many pods of each group they hold. Slots are indexes of nodes; they are used again.
type Snapshot struct {
	nodes       cow[*Node]
	live        int
	columns     []string
	allocatable []cow[int64]
	requested   []cow[int64]
	// weighed is what pods request of cpu and memory for scoring, where no request counts as a small one.
	weighed [2]cow[int64]
	allowed cow[int32]
	pods    cow[int32]
	ports   cow[[]Port]
	disks   cow[[]Disk]
	uses    cow[[]Use]
	storage Storage

	topologies []topology
	groups     []group
	holders    []holder
	// links are by the class's id.
	links cow[Links]
}

// cow is an array that is copied before the first write after it was shared.
type cow[T any] struct {
	items  []T
	shared bool
}

// share marks the array as shared and returns it. It writes nothing when it is shared already, so that snapshots at rest can be forked concurrently.
func (c *cow[T]) share() cow[T] {
	if !c.shared {
		c.shared = true
	}
	return *c
}

func (c *cow[T]) write() []T {
	if c.shared {
		// Room for a few more, because a new node appends to every array.
		c.items = append(make([]T, 0, len(c.items)+len(c.items)/8+8), c.items...)
		c.shared = false
	}
	return c.items
}

func (c *cow[T]) grow(v T) {
	c.write()
	c.items = append(c.items, v)
}

// New returns a snapshot without nodes.
func New() *Snapshot {
	s := &Snapshot{}
	for _, name := range []string{"cpu", "memory", "ephemeral-storage"} {
		s.AddColumn(name)
	}
	return s
}

// Fork returns an independent copy.
func (s *Snapshot) Fork() *Snapshot {
	f := &Snapshot{
		nodes: s.nodes.share(), live: s.live, columns: slices.Clip(s.columns),
		allocatable: make([]cow[int64], len(s.allocatable)), requested: make([]cow[int64], len(s.requested)),
		allowed: s.allowed.share(), pods: s.pods.share(), ports: s.ports.share(), disks: s.disks.share(), uses: s.uses.share(), storage: s.storage.share(), links: s.links.share(),
		topologies: make([]topology, len(s.topologies)), groups: make([]group, len(s.groups)),
		holders: make([]holder, len(s.holders)),
	}
	for i := range s.allocatable {
		f.allocatable[i], f.requested[i] = s.allocatable[i].share(), s.requested[i].share()
	}
	for i := range s.weighed {
		f.weighed[i] = s.weighed[i].share()
	}
	for i := range s.topologies {
		f.topologies[i] = s.topologies[i].share()
	}
	for i := range s.groups {
		f.groups[i] = s.groups[i].share()
	}
	for i := range s.holders {
		f.holders[i] = s.holders[i].share()
	}
	return f
}

// Slots returns the number of slots; some may have no node.
func (s *Snapshot) Slots() int { return len(s.nodes.items) }

// Len returns the number of nodes.
func (s *Snapshot) Len() int { return s.live }

// Node returns the node of a slot, or nil.
func (s *Snapshot) Node(slot int) *Node { return s.nodes.items[slot] }

// Find returns the slot of a node by name, or -1. It looks at every node.
func (s *Snapshot) Find(name string) int {
	return slices.IndexFunc(s.nodes.items, func(n *Node) bool { return n != nil && n.Name == name })
}

// Columns returns the number of resources.
func (s *Snapshot) Columns() int { return len(s.columns) }

// Column returns a resource's name.
func (s *Snapshot) Column(column int) string { return s.columns[column] }

// Allocatable returns what a node has of a resource. Units: millicores for cpu, else the resource's own.
func (s *Snapshot) Allocatable(column, slot int) int64 { return s.allocatable[column].items[slot] }

// Requested returns what the node's pods request of a resource.
func (s *Snapshot) Requested(column, slot int) int64 { return s.requested[column].items[slot] }

// Weighed returns what the node's pods request of CPU or Memory for scoring.
func (s *Snapshot) Weighed(column, slot int) int64 { return s.weighed[column].items[slot] }

// Pods returns how many pods a node has, and how many it may have.
func (s *Snapshot) Pods(slot int) (has, allowed int32) {
	return s.pods.items[slot], s.allowed.items[slot]
}

// Ports returns the host ports in use on a node.
func (s *Snapshot) Ports(slot int) []Port { return s.ports.items[slot] }

// Disks returns the disks in use on a node that cannot be shared.
func (s *Snapshot) Disks(slot int) []Disk { return s.disks.items[slot] }

// AddColumn adds a resource that no column has.
func (s *Snapshot) AddColumn(name string) int {
	s.columns = append(s.columns, name)
	s.allocatable = append(s.allocatable, cow[int64]{items: make([]int64, s.Slots())})
	s.requested = append(s.requested, cow[int64]{items: make([]int64, s.Slots())})
	return len(s.columns) - 1
}

// AddSlot adds a slot without a node.
func (s *Snapshot) AddSlot() int {
	s.nodes.grow(nil)
	for i := range s.allocatable {
		s.allocatable[i].grow(0)
		s.requested[i].grow(0)
	}
	for i := range s.weighed {
		s.weighed[i].grow(0)
	}
	s.allowed.grow(0)
	s.pods.grow(0)
	s.ports.grow(nil)
	s.disks.grow(nil)
	s.uses.grow(nil)
	for i := range s.topologies {
		s.topologies[i].domainOf.grow(NoDomain)
	}
	for i := range s.groups {
		s.groups[i].perNode.grow(0)
	}
	for i := range s.holders {
		s.holders[i].perNode.grow(0)
	}
	return s.Slots() - 1
}

// SetNode puts a node into a slot, in place of an earlier state of it. Nil empties the slot: its pods must have been removed.
func (s *Snapshot) SetNode(slot int, n *Node) {
	nodes := s.nodes.write()
	if nodes[slot] != nil {
		s.live--
	}
	nodes[slot] = n
	for i := range s.allocatable {
		if s.allocatable[i].items[slot] != 0 {
			s.allocatable[i].write()[slot] = 0
		}
	}
	s.allowed.write()[slot] = 0
	if n != nil {
		s.live++
		for _, a := range n.Allocatable {
			s.allocatable[a.Column].write()[slot] = a.Value
		}
		s.allowed.items[slot] = n.AllowedPods
	}
	for i := range s.topologies {
		s.topologies[i].set(slot, n)
	}
}

// AddPod places a pod of a class on a node. Holder names the pod for those who ask who holds a port.
func (s *Snapshot) AddPod(slot int, c *Class, holder string) {
	s.request(slot, c, 1)
	if len(c.Ports) > 0 {
		ports := append([]Port(nil), s.ports.items[slot]...)
		for _, p := range c.Ports {
			p.Holder = holder
			ports = append(ports, p)
		}
		s.ports.write()[slot] = ports
	}
	if len(c.Disks) > 0 {
		disks := slices.Clone(s.disks.items[slot])
		for _, d := range c.Disks {
			d.Holder = holder
			disks = append(disks, d)
		}
		s.disks.write()[slot] = disks
	}
	if len(c.Claims) > 0 || len(c.Served) > 0 {
		uses := slices.Clip(s.uses.items[slot])
		for _, ref := range c.Claims {
			uses = append(uses, Use{Claim: ref.Key, Holder: holder})
		}
		for _, v := range c.Served {
			uses = append(uses, Use{Served: v, Holder: holder})
		}
		s.uses.write()[slot] = uses
	}
}

// RemovePod takes a pod of a class off a node.
func (s *Snapshot) RemovePod(slot int, c *Class, holder string) {
	s.request(slot, c, -1)
	if len(c.Ports) > 0 {
		s.ports.write()[slot] = slices.DeleteFunc(append([]Port(nil), s.ports.items[slot]...), func(p Port) bool { return p.Holder == holder })
	}
	if len(c.Disks) > 0 {
		s.disks.write()[slot] = slices.DeleteFunc(slices.Clone(s.disks.items[slot]), func(d Disk) bool { return d.Holder == holder })
	}
	if len(c.Claims) > 0 || len(c.Served) > 0 {
		s.uses.write()[slot] = slices.DeleteFunc(slices.Clone(s.uses.items[slot]), func(u Use) bool { return u.Holder == holder })
	}
}

func (s *Snapshot) request(slot int, c *Class, sign int64) {
	for _, a := range c.Requests {
		s.requested[a.Column].write()[slot] += sign * a.Value
	}
	for i, v := range c.Weighed {
		s.weighed[i].write()[slot] += sign * v
	}
	s.pods.write()[slot] += int32(sign)
	for _, g := range s.links.items[c.ID].Present {
		s.groups[g].perNode.write()[slot] += int32(sign)
	}
	for _, h := range c.Affinity.Held {
		s.holders[h.Holder].perNode.write()[slot] += int32(sign) * h.Weight
	}
}

// Count adds pods of a class to, or takes them from, the groups of topology spread. Pods that terminate are not counted, though they hold resources.
func (s *Snapshot) Count(slot int, c *Class, pods int32) {
	for _, g := range s.links.items[c.ID].Counted {
		s.groups[g].perNode.write()[slot] += pods
	}
}

// Counts says whether a group counts the pods of a class.
func (s *Snapshot) Counts(group int32, c *Class) bool { return s.links.items[c.ID].Has(group) }
