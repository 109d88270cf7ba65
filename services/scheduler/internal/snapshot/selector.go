package snapshot

import (
	"slices"
	"strconv"
	"strings"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
)

// Requirement is one condition on labels, with Kubernetes' operators.
type Requirement struct {
	Key string
	// In, NotIn, Exists, DoesNotExist, Gt or Lt. Any other matches nothing.
	Operator string
	Values   []string
}

// Matches follows Kubernetes: NotIn holds for an absent key, Gt and Lt need numbers on both sides.
func (r *Requirement) Matches(labels map[string]string) bool {
	value, ok := labels[r.Key]
	switch r.Operator {
	case "In":
		return ok && slices.Contains(r.Values, value)
	case "NotIn":
		return !ok || !slices.Contains(r.Values, value)
	case "Exists":
		return ok
	case "DoesNotExist":
		return !ok
	case "Gt", "Lt":
		if !ok || len(r.Values) != 1 {
			return false
		}
		have, err1 := strconv.ParseInt(value, 10, 64)
		bound, err2 := strconv.ParseInt(r.Values[0], 10, 64)
		if err1 != nil || err2 != nil {
			return false
		}
		return r.Operator == "Gt" && have > bound || r.Operator == "Lt" && have < bound
	}
	return false
}

func matchAll(requirements []Requirement, labels map[string]string) bool {
	for i := range requirements {
		if !requirements[i].Matches(labels) {
			return false
		}
	}
	return true
}

// Term is conditions on a node that hold together.
type Term struct {
	Labels []Requirement
	// Fields are conditions on metadata.name.
	Fields []Requirement
}

// Matches says whether a node meets the term. A term without conditions matches no node, as in Kubernetes.
func (t *Term) Matches(n *Node) bool {
	if len(t.Labels) == 0 && len(t.Fields) == 0 {
		return false
	}
	if !matchAll(t.Labels, n.Labels) {
		return false
	}
	for i := range t.Fields {
		f := &t.Fields[i]
		in := slices.Contains(f.Values, n.Name)
		if f.Key != "metadata.name" || f.Operator == "In" && !in || f.Operator == "NotIn" && in || f.Operator != "In" && f.Operator != "NotIn" {
			return false
		}
	}
	return true
}

// WeightedTerm is a term that a pod prefers.
type WeightedTerm struct {
	Term
	Weight int64
}

func compileTerm(t *corev1.NodeSelectorTerm) Term {
	return Term{Labels: nodeRequirements(t.GetMatchExpressions()), Fields: nodeRequirements(t.GetMatchFields())}
}

func nodeRequirements(in []*corev1.NodeSelectorRequirement) []Requirement {
	out := make([]Requirement, 0, len(in))
	for _, r := range in {
		out = append(out, Requirement{Key: r.GetKey(), Operator: r.GetOperator(), Values: r.GetValues()})
	}
	return out
}

func mapRequirements(labels map[string]string) []Requirement {
	out := make([]Requirement, 0, len(labels))
	for k, v := range labels {
		out = append(out, Requirement{Key: k, Operator: "In", Values: []string{v}})
	}
	sortRequirements(out)
	return out
}

// labelRequirements compiles a label selector. An absent one selects nothing, an empty one everything.
func labelRequirements(selector *metav1.LabelSelector) (requirements []Requirement, nothing bool) {
	if selector == nil {
		return nil, true
	}
	out := mapRequirements(selector.GetMatchLabels())
	for _, r := range selector.GetMatchExpressions() {
		out = append(out, Requirement{Key: r.GetKey(), Operator: r.GetOperator(), Values: slices.Sorted(slices.Values(r.GetValues()))})
	}
	sortRequirements(out)
	return out, false
}

func sortRequirements(requirements []Requirement) {
	slices.SortFunc(requirements, func(a, b Requirement) int {
		if c := strings.Compare(a.Key, b.Key); c != 0 {
			return c
		}
		if c := strings.Compare(a.Operator, b.Operator); c != 0 {
			return c
		}
		return slices.Compare(a.Values, b.Values)
	})
}

// key names the selector: equal ones have equal keys.
func (s *Selector) key() string {
	b := appendString(nil, s.Namespace)
	b = appendString(b, s.OwnerUID)
	b = strconv.AppendBool(b, s.Nothing)
	b = appendRequirements(b, s.Labels)
	for i := range s.Terms {
		b = append(b, '&')
		b = s.Terms[i].appendKey(b)
	}
	return string(b)
}

func appendRequirements(b []byte, requirements []Requirement) []byte {
	b = strconv.AppendInt(b, int64(len(requirements)), 10)
	for _, r := range requirements {
		b = appendString(b, r.Key)
		b = appendString(b, r.Operator)
		b = appendStrings(b, r.Values)
	}
	return b
}
