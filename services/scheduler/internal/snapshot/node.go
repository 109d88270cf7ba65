package snapshot

import (
	"hash/fnv"
	"math"
	"strconv"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/pkg/demand"
)

// Labels and taints that Kubernetes gives a meaning.
const (
	HostnameLabel      = "kubernetes.io/hostname"
	ZoneLabel          = "topology.kubernetes.io/zone"
	UnschedulableTaint = "node.kubernetes.io/unschedulable"
)

// Effects of taints.
const (
	NoSchedule       = "NoSchedule"
	PreferNoSchedule = "PreferNoSchedule"
	NoExecute        = "NoExecute"
)

// Node is what the scheduler knows of a node beside what its pods take. It is immutable.
type Node struct {
	Name          string
	Labels        map[string]string
	Taints        []Taint
	Unschedulable bool
	Allocatable   []Amount
	AllowedPods   int32
	// Images are the sizes of the images that it has, by name; nil when it says nothing.
	Images map[string]int64
	// Tie orders nodes of one score, mixed with the plan's seed. It depends on the name alone.
	Tie uint64
}

// Amount is so much of one resource.
type Amount struct {
	Column int32
	Value  int64
}

// Taint is a node's taint.
type Taint struct{ Key, Value, Effect string }

// Toleration is a pod's toleration.
type Toleration struct{ Key, Operator, Value, Effect string }

// Tolerates follows Kubernetes: no effect means all effects, no key with Exists all taints; Gt and Lt compare numbers (the taint's with the toleration's).
func (t *Toleration) Tolerates(taint *Taint) bool {
	if t.Effect != "" && t.Effect != taint.Effect || t.Key != "" && t.Key != taint.Key {
		return false
	}
	switch t.Operator {
	case "", "Equal":
		return t.Value == taint.Value
	case "Exists":
		return true
	case "Gt", "Lt":
		have, err1 := strconv.ParseInt(taint.Value, 10, 64)
		bound, err2 := strconv.ParseInt(t.Value, 10, 64)
		if err1 != nil || err2 != nil {
			return false
		}
		return t.Operator == "Gt" && have > bound || t.Operator == "Lt" && have < bound
	}
	return false
}

// Resolver gives the numbers that a snapshot uses for resources, labels and selectors, or -1 when it has none.
type Resolver interface {
	ResolveColumn(name string) int32
	ResolveTopology(key string) int32
	ResolveGroup(key string, selector Selector) int32
	// ResolveHolder is for a term about a group; a snapshot that nobody has asked yet has none.
	ResolveHolder(group, topology int32, required bool) int32
}

// CompileNode reads a node.
func CompileNode(r Resolver, n *corev1.Node) *Node {
	name := n.GetMetadata().GetName()
	hash := fnv.New64a()
	hash.Write([]byte(name))
	out := &Node{Name: name, Labels: n.GetMetadata().GetLabels(), Unschedulable: n.GetSpec().GetUnschedulable(), Tie: hash.Sum64()}
	for _, t := range n.GetSpec().GetTaints() {
		out.Taints = append(out.Taints, Taint{Key: t.GetKey(), Value: t.GetValue(), Effect: t.GetEffect()})
	}
	for _, i := range n.GetStatus().GetImages() {
		if out.Images == nil {
			out.Images = make(map[string]int64, len(n.GetStatus().GetImages()))
		}
		for _, name := range i.GetNames() {
			out.Images[imageName(name)] = i.GetSizeBytes()
		}
	}
	for resourceName, q := range n.GetStatus().GetAllocatable() {
		if resourceName == "pods" {
			out.AllowedPods = int32(min(demand.Of(resourceName, q), math.MaxInt32))
			continue
		}
		if column := r.ResolveColumn(resourceName); column >= 0 {
			out.Allocatable = append(out.Allocatable, Amount{Column: column, Value: demand.Of(resourceName, q)})
		}
	}
	return out
}

// ResolveColumn finds a resource's column.
func (s *Snapshot) ResolveColumn(name string) int32 {
	for i, c := range s.columns {
		if c == name {
			return int32(i)
		}
	}
	return -1
}

// ResolveTopology finds a label's topology.
func (s *Snapshot) ResolveTopology(key string) int32 {
	for i := range s.topologies {
		if s.topologies[i].key == key {
			return int32(i)
		}
	}
	return -1
}

// ResolveGroup finds a selector's group.
func (s *Snapshot) ResolveGroup(key string, _ Selector) int32 {
	for i := range s.groups {
		if s.groups[i].key == key {
			return int32(i)
		}
	}
	return -1
}
