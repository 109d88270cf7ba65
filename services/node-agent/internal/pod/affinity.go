package pod

import (
	"slices"
	"strconv"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
)

// matches says whether a node is one of those that a required node affinity names: one of the terms holds, and a term with nothing in it never does.
func matches(selector *corev1.NodeSelector, node string, labels map[string]string) bool {
	return slices.ContainsFunc(selector.GetNodeSelectorTerms(), func(term *corev1.NodeSelectorTerm) bool {
		if len(term.GetMatchExpressions())+len(term.GetMatchFields()) == 0 {
			return false
		}
		for _, e := range term.GetMatchExpressions() {
			value, has := labels[e.GetKey()]
			if !holds(e, value, has) {
				return false
			}
		}
		for _, e := range term.GetMatchFields() {
			if e.GetKey() != "metadata.name" || !holds(e, node, true) {
				return false
			}
		}
		return true
	})
}

func holds(e *corev1.NodeSelectorRequirement, value string, has bool) bool {
	switch e.GetOperator() {
	case "In":
		return has && slices.Contains(e.GetValues(), value)
	case "NotIn":
		return !has || !slices.Contains(e.GetValues(), value)
	case "Exists":
		return has
	case "DoesNotExist":
		return !has
	case "Gt", "Lt":
		if !has || len(e.GetValues()) != 1 {
			return false
		}
		a, errA := strconv.ParseInt(value, 10, 64)
		b, errB := strconv.ParseInt(e.GetValues()[0], 10, 64)
		return errA == nil && errB == nil && (e.GetOperator() == "Gt" && a > b || e.GetOperator() == "Lt" && a < b)
	}
	return false
}
