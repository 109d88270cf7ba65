package snapshot

import (
	"fmt"
	"slices"
	"strconv"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
)

// RequiredAffinityWeight is what a required affinity of a pod that is there is worth to a pod that it selects, as by Kubernetes' default of
// hardPodAffinityWeight.
const RequiredAffinityWeight = 1

// AffinityTerm is pods of a group within one domain of a topology.
type AffinityTerm struct {
	Key      string
	Topology int32
	Group    int32
	// Weight is of preferences alone; it is negative for those of anti-affinity.
	Weight int32
}

// Held is a term that others are to see when they are placed near a pod of the class.
type Held struct {
	Holder int32
	Weight int32
}

// PodAffinity is what pods of a class ask of other pods.
type PodAffinity struct {
	// Near must all have a pod in the node's domain that all of them select: all have the same group.
	Near []AffinityTerm
	// Far must have none.
	Far       []AffinityTerm
	Preferred []AffinityTerm
	Held      []Held
}

// PodTerm selects pods by namespace and labels.
type PodTerm struct {
	// Namespaces is sorted.
	Namespaces []string
	// ByLabel adds the namespaces whose labels meet NamespaceSelector.
	ByLabel           bool
	NamespaceSelector []Requirement
	Labels            []Requirement
	Nothing           bool
}

func (t *PodTerm) selects(namespace string, labels, namespaceLabels map[string]string) bool {
	if t.Nothing || !slices.Contains(t.Namespaces, namespace) && !(t.ByLabel && matchAll(t.NamespaceSelector, namespaceLabels)) {
		return false
	}
	return matchAll(t.Labels, labels)
}

func (t *PodTerm) appendKey(b []byte) []byte {
	b = appendStrings(b, t.Namespaces)
	b = strconv.AppendBool(b, t.ByLabel)
	b = appendRequirements(b, t.NamespaceSelector)
	b = strconv.AppendBool(b, t.Nothing)
	return appendRequirements(b, t.Labels)
}

func (c *Class) compileAffinity(r Resolver, spec *corev1.PodSpec) error {
	near, far := spec.GetAffinity().GetPodAffinity(), spec.GetAffinity().GetPodAntiAffinity()
	var all []PodTerm
	for _, t := range near.GetRequiredDuringSchedulingIgnoredDuringExecution() {
		all = append(all, c.podTerm(t))
	}
	for i, t := range near.GetRequiredDuringSchedulingIgnoredDuringExecution() {
		term, err := c.affinityTerm(r, t.GetTopologyKey(), all)
		if err != nil {
			return err
		}
		c.Affinity.Near = append(c.Affinity.Near, term)
		if err := c.hold(r, t.GetTopologyKey(), all[i], RequiredAffinityWeight); err != nil {
			return err
		}
	}
	for _, t := range far.GetRequiredDuringSchedulingIgnoredDuringExecution() {
		term, err := c.affinityTerm(r, t.GetTopologyKey(), []PodTerm{c.podTerm(t)})
		if err != nil {
			return err
		}
		c.Affinity.Far = append(c.Affinity.Far, term)
		if holder := r.ResolveHolder(term.Group, term.Topology, true); holder >= 0 {
			c.Affinity.Held = append(c.Affinity.Held, Held{Holder: holder, Weight: 1})
		}
	}
	prefer := func(terms []*corev1.WeightedPodAffinityTerm, sign int32) error {
		for _, w := range terms {
			t := w.GetPodAffinityTerm()
			term, err := c.affinityTerm(r, t.GetTopologyKey(), []PodTerm{c.podTerm(t)})
			if err != nil {
				return err
			}
			term.Weight = sign * w.GetWeight()
			c.Affinity.Preferred = append(c.Affinity.Preferred, term)
			if err := c.hold(r, t.GetTopologyKey(), c.podTerm(t), term.Weight); err != nil {
				return err
			}
		}
		return nil
	}
	if err := prefer(near.GetPreferredDuringSchedulingIgnoredDuringExecution(), 1); err != nil {
		return err
	}
	return prefer(far.GetPreferredDuringSchedulingIgnoredDuringExecution(), -1)
}

// podTerm reads a term. matchLabelKeys and mismatchLabelKeys take the pod's own values; keys that it does not have are ignored, as in Kubernetes.
func (c *Class) podTerm(t *corev1.PodAffinityTerm) PodTerm {
	out := PodTerm{Namespaces: slices.Compact(slices.Sorted(slices.Values(t.GetNamespaces())))}
	if t.HasNamespaceSelector() {
		out.NamespaceSelector, _ = labelRequirements(t.GetNamespaceSelector())
		out.ByLabel = true
	} else if len(out.Namespaces) == 0 {
		out.Namespaces = []string{c.Namespace}
	}
	out.Labels, out.Nothing = labelRequirements(t.GetLabelSelector())
	c.merge(&out.Labels, t.GetMatchLabelKeys(), "In", out.Nothing)
	c.merge(&out.Labels, t.GetMismatchLabelKeys(), "NotIn", out.Nothing)
	sortRequirements(out.Labels)
	return out
}

// merge adds the pod's own values of keys to a selector. The API server may have done it already.
func (c *Class) merge(labels *[]Requirement, keys []string, operator string, nothing bool) {
	for _, key := range keys {
		value, ok := c.Labels[key]
		merged := Requirement{Key: key, Operator: operator, Values: []string{value}}
		if ok && !nothing && !slices.ContainsFunc(*labels, func(r Requirement) bool { return r.equal(merged) }) {
			*labels = append(*labels, merged)
		}
	}
}

func (c *Class) affinityTerm(r Resolver, key string, terms []PodTerm) (AffinityTerm, error) {
	selector := Selector{Terms: terms}
	out := AffinityTerm{Key: key, Topology: r.ResolveTopology(key), Group: r.ResolveGroup(selector.key(), selector)}
	if out.Topology < 0 || out.Group < 0 {
		return out, fmt.Errorf("pod affinity within %s: unknown to this snapshot", key)
	}
	return out, nil
}

// hold lets others see a preference.
func (c *Class) hold(r Resolver, key string, term PodTerm, weight int32) error {
	t, err := c.affinityTerm(r, key, []PodTerm{term})
	if err != nil {
		return err
	}
	if holder := r.ResolveHolder(t.Group, t.Topology, false); holder >= 0 {
		c.Affinity.Held = append(c.Affinity.Held, Held{Holder: holder, Weight: weight})
	}
	return nil
}

// holder counts, on each node, the pods that have a term about the pods of a group: those that must be apart from them, or the sum of the weights by which
// they prefer them near.
type holder struct {
	group, topology int32
	required        bool
	perNode         cow[int32]
}

func (h *holder) share() holder {
	out := *h
	out.perNode = h.perNode.share()
	return out
}

// SetHolder begins to count those that have a term, from zero, under an id: that of a holder that was cleared, or the next one.
func (s *Snapshot) SetHolder(id, group, topology int32, required bool) {
	h := holder{group: group, topology: topology, required: required, perNode: cow[int32]{items: make([]int32, s.Slots())}}
	if int(id) == len(s.holders) {
		s.holders = append(s.holders, h)
	} else {
		s.holders[id] = h
	}
	if group >= 0 {
		g := &s.groups[group]
		g.holders = append(slices.Clip(g.holders), id)
	}
}

// ClearHolder stops counting. No class may have the term any more.
func (s *Snapshot) ClearHolder(id int32) {
	g := &s.groups[s.holders[id].group]
	g.holders = slices.DeleteFunc(slices.Clone(g.holders), func(h int32) bool { return h == id })
	s.SetHolder(id, -1, -1, false)
}

// Holders returns the number of ids given out.
func (s *Snapshot) Holders() int { return len(s.holders) }

// HoldersOf returns the holders of terms about a group.
func (s *Snapshot) HoldersOf(group int32) []int32 { return s.groups[group].holders }

// Holder says what a holder counts.
func (s *Snapshot) Holder(id int32) (topology int32, required bool) {
	return s.holders[id].topology, s.holders[id].required
}

// Held returns what a holder counts on each slot. The slice is not to be changed.
func (s *Snapshot) Held(id int32) []int32 { return s.holders[id].perNode.items }

// ResolveHolder finds a holder.
func (s *Snapshot) ResolveHolder(group, topology int32, required bool) int32 {
	for _, id := range s.groups[group].holders {
		if h := &s.holders[id]; h.topology == topology && h.required == required {
			return id
		}
	}
	return -1
}

// Unique says whether no two nodes have the same value of a topology's label: its domains are single nodes then.
func (s *Snapshot) Unique(topology int32) bool {
	domainOf, domains := s.Domains(topology)
	seen := make([]bool, domains)
	for _, domain := range domainOf {
		if domain == NoDomain {
			continue
		}
		if seen[domain] {
			return false
		}
		seen[domain] = true
	}
	return true
}
