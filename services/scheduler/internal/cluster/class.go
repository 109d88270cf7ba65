package cluster

import (
	"slices"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/services/scheduler/internal/snapshot"
)

// class returns the class of a pod, with one reference more.
func (c *Cluster) class(o *corev1.Pod) (*class, error) {
	services := c.services(o.GetMetadata().GetNamespace())
	key := snapshot.ClassKey(o, services)
	if known := c.classes[key]; known != nil {
		known.refs++
		return known, nil
	}
	r := &collector{Cluster: c}
	compiled, err := snapshot.Compile(r, o, services)
	if err != nil {
		return nil, err
	}
	n := &class{Class: compiled, key: key, refs: 1, groups: r.groups, perNode: map[int]int32{}}
	if last := len(c.freeClass) - 1; last >= 0 {
		compiled.ID, c.freeClass = c.freeClass[last], c.freeClass[:last]
	} else {
		compiled.ID = c.nextClass()
	}
	for _, g := range n.groups {
		g.refs++
	}
	c.classes[key] = n
	space := c.namespace(compiled.Namespace)
	space.classes[n] = struct{}{}
	if compiled.OwnerUID != "" {
		if space.byOwner[compiled.OwnerUID] == nil {
			space.byOwner[compiled.OwnerUID] = map[*class]struct{}{}
		}
		space.byOwner[compiled.OwnerUID][n] = struct{}{}
	}
	var links []int32
	if g := space.owners[compiled.OwnerUID]; g != nil {
		links = append(links, g.id)
	}
	for g := range space.labels {
		if g.selector.Selects(compiled) {
			links = append(links, g.id)
		}
	}
	c.snapshot.Link(compiled.ID, links)
	return n, nil
}

// nextClass is the first id that was never given out: ids in use and free ones fill the range below.
func (c *Cluster) nextClass() int32 { return int32(len(c.classes) + len(c.freeClass)) }

func (c *Cluster) namespace(name string) *namespace {
	space := c.namespaces[name]
	if space == nil {
		space = &namespace{
			classes: map[*class]struct{}{}, byOwner: map[string]map[*class]struct{}{}, owners: map[string]*group{}, labels: map[*group]struct{}{},
		}
		c.namespaces[name] = space
	}
	return space
}

// selected returns the classes that a selector may select.
func (n *namespace) selected(s *snapshot.Selector) map[*class]struct{} {
	if s.OwnerUID != "" {
		return n.byOwner[s.OwnerUID]
	}
	return n.classes
}

// release gives a reference back. The last one ends the class, and groups that no class asks for any more.
func (c *Cluster) release(n *class) {
	if n.refs--; n.refs > 0 {
		return
	}
	space := c.namespace(n.Namespace)
	delete(c.classes, n.key)
	delete(space.classes, n)
	if owned := space.byOwner[n.OwnerUID]; owned != nil {
		delete(owned, n)
		if len(owned) == 0 {
			delete(space.byOwner, n.OwnerUID)
		}
	}
	c.snapshot.Link(n.ID, nil)
	c.freeClass = append(c.freeClass, n.ID)
	for _, g := range n.groups {
		if g.refs--; g.refs == 0 {
			c.endGroup(space, g)
		}
	}
	if len(space.classes) == 0 {
		delete(c.namespaces, n.Namespace)
	}
}

func (c *Cluster) endGroup(space *namespace, g *group) {
	for other := range space.selected(&g.selector) {
		if links := c.snapshot.Links(other.ID); slices.Contains(links, g.id) {
			c.snapshot.Link(other.ID, slices.DeleteFunc(slices.Clone(links), func(id int32) bool { return id == g.id }))
		}
	}
	if g.selector.OwnerUID != "" {
		delete(space.owners, g.selector.OwnerUID)
	} else {
		delete(space.labels, g)
	}
	c.snapshot.ClearGroup(g.id)
	delete(c.groups, g.key)
	c.freeGroup = append(c.freeGroup, g.id)
}

// collector resolves for a class that is being compiled, and remembers the groups that it asks for.
type collector struct {
	*Cluster
	groups []*group
}

// ResolveGroup finds or begins a group; pods that are there already are counted by class.
func (r *collector) ResolveGroup(key string, selector snapshot.Selector) int32 {
	g := r.Cluster.groups[key]
	if g == nil {
		g = &group{key: key, selector: selector}
		if last := len(r.freeGroup) - 1; last >= 0 {
			g.id, r.freeGroup = r.freeGroup[last], r.freeGroup[:last]
		} else {
			g.id = int32(r.snapshot.Groups())
		}
		r.Cluster.groups[key] = g
		r.snapshot.SetGroup(g.id, key)
		space := r.namespace(selector.Namespace)
		if selector.OwnerUID != "" {
			space.owners[selector.OwnerUID] = g
		} else {
			space.labels[g] = struct{}{}
		}
		for n := range space.selected(&selector) {
			if !selector.Selects(n.Class) {
				continue
			}
			r.snapshot.Link(n.ID, append(slices.Clone(r.snapshot.Links(n.ID)), g.id))
			for slot, pods := range n.perNode {
				r.snapshot.CountTo(g.id, slot, pods)
			}
		}
	}
	r.groups = append(r.groups, g)
	return g.id
}

// ResolveColumn finds or adds a resource.
func (c *Cluster) ResolveColumn(name string) int32 {
	column, known := c.columns[name]
	if !known {
		column = int32(c.snapshot.AddColumn(name))
		c.columns[name] = column
	}
	return column
}

// ResolveTopology finds a label's numbering or begins it.
func (c *Cluster) ResolveTopology(key string) int32 {
	topology, known := c.topologies[key]
	if !known {
		topology = c.snapshot.AddTopology(key)
		c.topologies[key] = topology
	}
	return topology
}

// ResolveGroup is for compiling nodes, which ask for none.
func (c *Cluster) ResolveGroup(string, snapshot.Selector) int32 { return -1 }
