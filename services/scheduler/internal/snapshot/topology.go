package snapshot

import (
	"maps"
	"slices"

	metav1 "dhow.dev/gen/go/dhow/meta/v1"
)

// NoDomain is the domain of nodes without the topology's label.
const NoDomain = -1

// topology is the nodes' values of one label as small numbers.
type topology struct {
	key      string
	ids      map[string]int32
	domainOf cow[int32]
	// shared says that others read ids.
	shared bool
}

func (t *topology) share() topology {
	if !t.shared {
		t.shared = true
	}
	out := *t
	out.domainOf = t.domainOf.share()
	return out
}

func (t *topology) set(slot int, n *Node) {
	domain := int32(NoDomain)
	if n != nil {
		if value, ok := n.Labels[t.key]; ok {
			if domain, ok = t.ids[value]; !ok {
				if t.shared {
					t.ids, t.shared = maps.Clone(t.ids), false
				}
				domain = int32(len(t.ids))
				t.ids[value] = domain
			}
		}
	}
	if t.domainOf.items[slot] != domain {
		t.domainOf.write()[slot] = domain
	}
}

// AddTopology begins to number the values of a node label that no topology has.
func (s *Snapshot) AddTopology(key string) int32 {
	t := topology{key: key, ids: map[string]int32{}, domainOf: cow[int32]{items: make([]int32, s.Slots())}}
	for slot, n := range s.nodes.items {
		t.domainOf.items[slot] = NoDomain
		t.set(slot, n)
	}
	s.topologies = append(s.topologies, t)
	return int32(len(s.topologies) - 1)
}

// Domains returns each slot's domain in a topology (NoDomain without one) and the number of domains. The slice is not to be changed.
func (s *Snapshot) Domains(topology int32) (domainOf []int32, domains int) {
	t := &s.topologies[topology]
	return t.domainOf.items, len(t.ids)
}

// group counts pods that one selector selects, on each node.
type group struct {
	key     string
	perNode cow[int32]
	// holders are the ids of those that count terms about the group's pods.
	holders []int32
}

func (g *group) share() group {
	out := *g
	out.perNode = g.perNode.share()
	return out
}

// Selector selects pods of one namespace: those that one controller owns, or those with certain labels. Or it has terms of pod affinity.
type Selector struct {
	Namespace string
	// OwnerUID selects by controller; Labels is then empty.
	OwnerUID string
	Labels   []Requirement
	// Nothing selects no pod at all.
	Nothing bool
	// Terms must all select a pod. What has terms also counts the pods that are being deleted: they are near until they are gone.
	Terms []PodTerm
}

// Selects says whether the selector selects the pods of a class, which is in a namespace of these labels.
func (s *Selector) Selects(c *Class, namespaceLabels map[string]string) bool {
	for i := range s.Terms {
		if !s.Terms[i].selects(c.Namespace, c.Labels, namespaceLabels) {
			return false
		}
	}
	if len(s.Terms) > 0 {
		return true
	}
	if s.Nothing || s.Namespace != c.Namespace {
		return false
	}
	if s.OwnerUID != "" {
		return s.OwnerUID == c.OwnerUID
	}
	return matchAll(s.Labels, c.Labels)
}

// LabelSelector is the pods of a namespace that an API's label selector selects.
func LabelSelector(namespace string, selector *metav1.LabelSelector) Selector {
	out := Selector{Namespace: namespace}
	out.Labels, out.Nothing = labelRequirements(selector)
	return out
}

// Home returns the only namespace whose pods the selector may select, or false.
func (s *Selector) Home() (string, bool) {
	if len(s.Terms) == 0 {
		return s.Namespace, true
	}
	for i := range s.Terms {
		if t := &s.Terms[i]; !t.ByLabel && len(t.Namespaces) == 1 {
			return t.Namespaces[0], true
		}
	}
	return "", false
}

// ByNamespaceLabels says whether the labels of namespaces decide.
func (s *Selector) ByNamespaceLabels() bool {
	return slices.ContainsFunc(s.Terms, func(t PodTerm) bool { return t.ByLabel && len(t.NamespaceSelector) > 0 })
}

// SetGroup begins to count the pods of a selector, from zero, under the given id: the id of a group that was cleared, or the next one.
func (s *Snapshot) SetGroup(id int32, key string) {
	g := group{key: key, perNode: cow[int32]{items: make([]int32, s.Slots())}}
	if int(id) == len(s.groups) {
		s.groups = append(s.groups, g)
		return
	}
	s.groups[id] = g
}

// ClearGroup stops counting. No class may link to the group any more.
func (s *Snapshot) ClearGroup(id int32) { s.SetGroup(id, "") }

// Groups returns the number of group ids given out.
func (s *Snapshot) Groups() int { return len(s.groups) }

// CountTo adds pods to one group.
func (s *Snapshot) CountTo(group int32, slot int, pods int32) {
	s.groups[group].perNode.write()[slot] += pods
}

// PerNode returns how many pods of a group each slot has. The slice is not to be changed.
func (s *Snapshot) PerNode(group int32) []int32 { return s.groups[group].perNode.items }

// Links are the groups that count the pods of a class: all but those being deleted, or all.
type Links struct{ Counted, Present []int32 }

// With returns the links with a group more.
func (l Links) With(group int32, selector *Selector) Links {
	if len(selector.Terms) > 0 {
		l.Present = append(slices.Clip(l.Present), group)
	} else {
		l.Counted = append(slices.Clip(l.Counted), group)
	}
	return l
}

// Without returns the links without a group.
func (l Links) Without(group int32) Links {
	is := func(id int32) bool { return id == group }
	return Links{Counted: slices.DeleteFunc(slices.Clone(l.Counted), is), Present: slices.DeleteFunc(slices.Clone(l.Present), is)}
}

// Has says whether a group is among them.
func (l Links) Has(group int32) bool {
	return slices.Contains(l.Counted, group) || slices.Contains(l.Present, group)
}

// Link sets the groups that count the pods of a class: of a known id, or the next one.
func (s *Snapshot) Link(class int32, links Links) {
	if int(class) == len(s.links.items) {
		s.links.grow(links)
		return
	}
	s.links.write()[class] = links
}

// Links returns the groups that count the pods of a class.
func (s *Snapshot) Links(class int32) Links { return s.links.items[class] }
