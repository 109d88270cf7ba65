package cluster

import (
	"iter"
	"maps"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/services/scheduler/internal/filter"
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
	n := &class{Class: compiled, key: key, refs: 1, groups: r.groups, holders: r.holders, perNode: map[int]occupancy{}}
	if last := len(c.freeClass) - 1; last >= 0 {
		compiled.ID, c.freeClass = c.freeClass[last], c.freeClass[:last]
	} else {
		compiled.ID = c.nextClass()
	}
	for _, g := range n.groups {
		g.refs++
	}
	for _, h := range n.holders {
		h.refs++
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
	var links snapshot.Links
	if g := space.owners[compiled.OwnerUID]; g != nil {
		links = links.With(g.id, &g.selector)
	}
	for _, groups := range []map[*group]struct{}{space.labels, c.wide} {
		for g := range groups {
			if c.selects(g, n) {
				links = links.With(g.id, &g.selector)
			}
		}
	}
	c.snapshot.Link(compiled.ID, links)
	return n, nil
}

func (c *Cluster) selects(g *group, n *class) bool {
	return g.selector.Selects(n.Class, c.labelsOf[n.Namespace])
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

// selected yields the classes that a selector may select.
func (c *Cluster) selected(s *snapshot.Selector) iter.Seq[*class] {
	return func(yield func(*class) bool) {
		home, ok := s.Home()
		if !ok {
			for _, n := range c.classes {
				if !yield(n) {
					return
				}
			}
			return
		}
		space := c.namespaces[home]
		if space == nil {
			return
		}
		classes := space.classes
		if s.OwnerUID != "" {
			classes = space.byOwner[s.OwnerUID]
		}
		for n := range classes {
			if !yield(n) {
				return
			}
		}
	}
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
	c.snapshot.Link(n.ID, snapshot.Links{})
	c.freeClass = append(c.freeClass, n.ID)
	for _, h := range n.holders {
		if h.refs--; h.refs == 0 {
			c.snapshot.ClearHolder(h.id)
			delete(c.holders, h.key)
			c.freeHolder = append(c.freeHolder, h.id)
		}
	}
	for _, g := range n.groups {
		if g.refs--; g.refs == 0 {
			c.endGroup(g)
		}
	}
	c.leave(n.Namespace)
}

// leave forgets a namespace that neither classes nor groups are in.
func (c *Cluster) leave(name string) {
	if space := c.namespaces[name]; space != nil && len(space.classes)+len(space.owners)+len(space.labels) == 0 {
		delete(c.namespaces, name)
	}
}

func (c *Cluster) endGroup(g *group) {
	for other := range c.selected(&g.selector) {
		if links := c.snapshot.Links(other.ID); links.Has(g.id) {
			c.snapshot.Link(other.ID, links.Without(g.id))
		}
	}
	home, ok := g.selector.Home()
	switch {
	case !ok:
		delete(c.wide, g)
	case g.selector.OwnerUID != "":
		delete(c.namespaces[home].owners, g.selector.OwnerUID)
	default:
		delete(c.namespaces[home].labels, g)
	}
	c.leave(home)
	c.snapshot.ClearGroup(g.id)
	delete(c.groups, g.key)
	c.freeGroup = append(c.freeGroup, g.id)
}

// collector resolves for a class that is being compiled, and remembers the groups and holders that it asks for.
type collector struct {
	*Cluster
	groups  []*group
	holders []*holder
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
		home, ok := selector.Home()
		switch {
		case !ok:
			r.wide[g] = struct{}{}
		case selector.OwnerUID != "":
			r.namespace(home).owners[selector.OwnerUID] = g
		default:
			r.namespace(home).labels[g] = struct{}{}
		}
		for n := range r.selected(&selector) {
			if r.selects(g, n) {
				r.join(g, n)
			}
		}
	}
	r.groups = append(r.groups, g)
	return g.id
}

// join lets a group count the pods of a class.
func (c *Cluster) join(g *group, n *class) {
	c.snapshot.Link(n.ID, c.snapshot.Links(n.ID).With(g.id, &g.selector))
	for slot, pods := range n.perNode {
		c.snapshot.CountTo(g.id, slot, pods.seen(&g.selector))
	}
}

// part is its opposite.
func (c *Cluster) part(g *group, n *class) {
	c.snapshot.Link(n.ID, c.snapshot.Links(n.ID).Without(g.id))
	for slot, pods := range n.perNode {
		c.snapshot.CountTo(g.id, slot, -pods.seen(&g.selector))
	}
}

// ResolveHolder finds or begins a holder. A new one counts from zero: only the class that is being compiled has its term.
func (r *collector) ResolveHolder(g, topology int32, required bool) int32 {
	key := holderKey{g, topology, required}
	h := r.Cluster.holders[key]
	if h == nil {
		h = &holder{key: key}
		if last := len(r.freeHolder) - 1; last >= 0 {
			h.id, r.freeHolder = r.freeHolder[last], r.freeHolder[:last]
		} else {
			h.id = int32(r.snapshot.Holders())
		}
		r.Cluster.holders[key] = h
		r.snapshot.SetHolder(h.id, g, topology, required)
	}
	r.holders = append(r.holders, h)
	return h.id
}

// SetNamespace takes in the labels of a namespace; nil when it is gone.
func (c *Cluster) SetNamespace(name string, labels map[string]string) filter.Event {
	before := c.labelsOf[name]
	if maps.Equal(before, labels) {
		return 0
	}
	if labels == nil {
		delete(c.labelsOf, name)
	} else {
		c.labelsOf[name] = labels
	}
	space := c.namespaces[name]
	if space == nil {
		return 0
	}
	var helps filter.Event
	change := func(g *group) {
		if !g.selector.ByNamespaceLabels() {
			return
		}
		for n := range space.classes {
			was, is := c.snapshot.Links(n.ID).Has(g.id), c.selects(g, n)
			switch {
			case is && !was:
				c.join(g, n)
			case was && !is:
				c.part(g, n)
			default:
				continue
			}
			helps |= filter.PodPlaced | filter.PodGone
		}
	}
	for g := range c.wide {
		change(g)
	}
	for g := range space.labels {
		change(g)
	}
	return helps
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

// ResolveHolder is for compiling nodes, which ask for none.
func (c *Cluster) ResolveHolder(int32, int32, bool) int32 { return -1 }
