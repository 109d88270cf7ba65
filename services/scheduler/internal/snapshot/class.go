package snapshot

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/object"
)

// What a container that requests nothing counts as in scores, as in Kubernetes' DefaultMilliCPURequest and DefaultMemoryRequest.
const (
	unrequestedCPU    = 100
	unrequestedMemory = 200 << 20
)

// Kubernetes' default constraints of pods that have none (List of the PodTopologySpread plugin's system defaults).
const (
	defaultHostnameSkew = 3
	defaultZoneSkew     = 5
)

// Class is what pods have in common that no decision can tell apart: same namespace, labels, controller and relevant spec. It is immutable.
type Class struct {
	// ID is the class's index into the links of the snapshot, given by the snapshot's owner.
	ID        int32
	Namespace string
	Labels    map[string]string
	OwnerUID  string

	// Requests are sorted by column and positive.
	Requests []Amount
	// Weighed is cpu and memory for scoring.
	Weighed [2]int64
	// BestEffort says that the pod requests neither cpu nor memory.
	BestEffort  bool
	Ports       []Port
	Tolerations []Toleration
	// NodeSelector is sorted by key.
	NodeSelector []Requirement
	// Required are alternatives; nil without required node affinity, and matching no node when empty.
	Required  []Term
	Preferred []WeightedTerm
	// Hard and Soft are the topology spread constraints.
	Hard, Soft []Constraint
	// DefaultSpread says that Soft are Kubernetes' defaults, which nodes without the labels do not lose by.
	DefaultSpread bool
	Affinity      PodAffinity
	// Claims are those of its volumes, sorted by key.
	Claims []ClaimRef
	// Disks are those of its own volumes that cannot be shared.
	Disks []Disk
	// Served are volumes of its own spec that count among their drivers'.
	Served []Served
	// Images are those of its containers, one for each, with their tags.
	Images []string
	Gates  []string
}

// Port is a host port.
type Port struct {
	Protocol, IP string
	Number       int32
	Holder       string
}

// Conflicts says whether both ports cannot be had on one node: an unspecified address is all addresses.
func (p *Port) Conflicts(other *Port) bool {
	return p.Number == other.Number && p.Protocol == other.Protocol && (p.IP == other.IP || p.IP == anyIP || other.IP == anyIP)
}

const anyIP = "0.0.0.0"

// Constraint is one topology spread constraint.
type Constraint struct {
	Key        string
	Topology   int32
	Group      int32
	MaxSkew    int32
	MinDomains int32
	// Self says that the pod itself is among those counted.
	Self                       bool
	HonorAffinity, HonorTaints bool
	// Index is its place in the pod's spec.
	Index int
}

// MatchesNode says whether a node satisfies the pod's node selector and required node affinity.
func (c *Class) MatchesNode(n *Node) bool {
	if !matchAll(c.NodeSelector, n.Labels) {
		return false
	}
	return c.Required == nil || slices.ContainsFunc(c.Required, func(t Term) bool { return t.Matches(n) })
}

// Untolerated returns the first taint that keeps the pod from the node, or nil.
func (c *Class) Untolerated(n *Node) *Taint {
	for i := range n.Taints {
		t := &n.Taints[i]
		if (t.Effect == NoSchedule || t.Effect == NoExecute) && !c.TolerateTaint(t) {
			return t
		}
	}
	return nil
}

// TolerateTaint says whether one of the pod's tolerations tolerates the taint.
func (c *Class) TolerateTaint(t *Taint) bool {
	return slices.ContainsFunc(c.Tolerations, func(o Toleration) bool { return o.Tolerates(t) })
}

// Request returns how much the pod requests of a column.
func (c *Class) Request(column int32) int64 {
	for _, a := range c.Requests {
		if a.Column == column {
			return a.Value
		}
	}
	return 0
}

// Social says that pods that are placed elsewhere can let a pod of the class in.
func (c *Class) Social() bool { return len(c.Hard) > 0 || len(c.Affinity.Near) > 0 }

// spreadOwners are the kinds of controllers whose pods are spread by default.
var spreadOwners = []string{"ReplicaSet", "StatefulSet", "ReplicationController"}

// Compile reads a pod. Services are those of its namespace that might select it. It fails when the resolver does not know a selector or label.
func Compile(r Resolver, pod *corev1.Pod, services []*corev1.Service) (*Class, error) {
	m, spec := pod.GetMetadata(), pod.GetSpec()
	c := &Class{Namespace: m.GetNamespace(), Labels: m.GetLabels(), NodeSelector: mapRequirements(spec.GetNodeSelector())}
	owner := object.ControllerOf(pod)
	c.OwnerUID = owner.GetUid()
	if err := c.compileResources(r, pod); err != nil {
		return nil, err
	}
	c.Ports, c.Claims, c.Disks, c.Served = hostPorts(spec), claimRefs(m, spec), disksOf(spec), servedOf(m, spec)
	for _, t := range spec.GetTolerations() {
		c.Tolerations = append(c.Tolerations, Toleration{Key: t.GetKey(), Operator: t.GetOperator(), Value: t.GetValue(), Effect: t.GetEffect()})
	}
	affinity := spec.GetAffinity().GetNodeAffinity()
	if affinity.HasRequiredDuringSchedulingIgnoredDuringExecution() {
		c.Required = []Term{}
		for _, t := range affinity.GetRequiredDuringSchedulingIgnoredDuringExecution().GetNodeSelectorTerms() {
			c.Required = append(c.Required, compileTerm(t))
		}
	}
	for _, p := range affinity.GetPreferredDuringSchedulingIgnoredDuringExecution() {
		c.Preferred = append(c.Preferred, WeightedTerm{Term: compileTerm(p.GetPreference()), Weight: int64(p.GetWeight())})
	}
	for _, containers := range [][]*corev1.Container{spec.GetInitContainers(), spec.GetContainers()} {
		for _, container := range containers {
			c.Images = append(c.Images, imageName(container.GetImage()))
		}
	}
	for _, g := range spec.GetSchedulingGates() {
		c.Gates = append(c.Gates, g.GetName())
	}
	if err := c.compileAffinity(r, spec); err != nil {
		return nil, err
	}
	if len(spec.GetTopologySpreadConstraints()) > 0 {
		return c, c.compileSpread(r, spec.GetTopologySpreadConstraints())
	}
	return c, c.defaultSpread(r, owner, services)
}

func (c *Class) compileSpread(r Resolver, constraints []*corev1.TopologySpreadConstraint) error {
	for i, t := range constraints {
		selector := Selector{Namespace: c.Namespace}
		selector.Labels, selector.Nothing = labelRequirements(t.GetLabelSelector())
		c.merge(&selector.Labels, t.GetMatchLabelKeys(), "In", selector.Nothing)
		sortRequirements(selector.Labels)
		constraint := Constraint{
			Index: i, MaxSkew: t.GetMaxSkew(), MinDomains: max(t.GetMinDomains(), 1),
			HonorAffinity: t.GetNodeAffinityPolicy() != "Ignore", HonorTaints: t.GetNodeTaintsPolicy() == "Honor",
		}
		if err := c.resolve(r, &constraint, t.GetTopologyKey(), selector); err != nil {
			return err
		}
		if t.GetWhenUnsatisfiable() == "ScheduleAnyway" {
			c.Soft = append(c.Soft, constraint)
		} else {
			c.Hard = append(c.Hard, constraint)
		}
	}
	return nil
}

// defaultSpread spreads the pods of one controller, or else of the services that select the pod, over hosts and zones.
func (c *Class) defaultSpread(r Resolver, owner *metav1.OwnerReference, services []*corev1.Service) error {
	selector := Selector{Namespace: c.Namespace}
	if slices.Contains(spreadOwners, owner.GetKind()) {
		selector.OwnerUID = c.OwnerUID
	} else {
		selected := map[string]string{}
		for _, s := range services {
			want := s.GetSpec().GetSelector()
			if len(want) > 0 && matchAll(mapRequirements(want), c.Labels) {
				maps.Copy(selected, want)
			}
		}
		if len(selected) == 0 {
			return nil
		}
		selector.Labels = mapRequirements(selected)
	}
	c.DefaultSpread = true
	for _, d := range []struct {
		key  string
		skew int32
	}{{HostnameLabel, defaultHostnameSkew}, {ZoneLabel, defaultZoneSkew}} {
		constraint := Constraint{Index: -1, MaxSkew: d.skew, MinDomains: 1, HonorAffinity: true}
		if err := c.resolve(r, &constraint, d.key, selector); err != nil {
			return err
		}
		c.Soft = append(c.Soft, constraint)
	}
	return nil
}

func (c *Class) resolve(r Resolver, constraint *Constraint, key string, selector Selector) error {
	constraint.Key = key
	constraint.Topology = r.ResolveTopology(key)
	constraint.Group = r.ResolveGroup(selector.key(), selector)
	constraint.Self = selector.Selects(c, nil)
	if constraint.Topology < 0 || constraint.Group < 0 {
		return fmt.Errorf("topology spread over %s: unknown to this snapshot", key)
	}
	return nil
}

func (r *Requirement) equal(o Requirement) bool {
	return r.Key == o.Key && r.Operator == o.Operator && slices.Equal(r.Values, o.Values)
}

func hostPorts(spec *corev1.PodSpec) []Port {
	var out []Port
	collect := func(containers []*corev1.Container, all bool) {
		for _, container := range containers {
			if !all && container.GetRestartPolicy() != "Always" {
				continue
			}
			for _, p := range container.GetPorts() {
				if p.GetHostPort() <= 0 {
					continue
				}
				out = append(out, PortOf(p))
			}
		}
	}
	collect(spec.GetContainers(), true)
	collect(spec.GetInitContainers(), false)
	return out
}

// PortOf reads a container's port.
func PortOf(p *corev1.ContainerPort) Port {
	port := Port{Protocol: p.GetProtocol(), IP: p.GetHostIp(), Number: p.GetHostPort()}
	if port.Protocol == "" {
		port.Protocol = "TCP"
	}
	if port.IP == "" || port.IP == "::" {
		port.IP = anyIP
	}
	return port
}

// Derive registers a changed pod of a class: same namespace, labels and controller, another spec. For what-if questions on a fork.
func (s *Snapshot) Derive(base *Class, pod *corev1.Pod, services []*corev1.Service) (*Class, error) {
	c, err := Compile(s, pod, services)
	if err != nil {
		return nil, err
	}
	c.ID = int32(len(s.links.items))
	s.Link(c.ID, s.links.items[base.ID])
	return c, nil
}

// imageName gives a name without a tag the one that it means.
func imageName(name string) string {
	if name != "" && strings.LastIndex(name, ":") <= strings.LastIndex(name, "/") {
		return name + ":latest"
	}
	return name
}

func appendString(b []byte, s string) []byte {
	b = strconv.AppendInt(b, int64(len(s)), 10)
	b = append(b, ':')
	return append(b, s...)
}

func appendStrings(b []byte, list []string) []byte {
	b = strconv.AppendInt(b, int64(len(list)), 10)
	b = append(b, '[')
	for _, s := range list {
		b = appendString(b, s)
	}
	return b
}
