package explain

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"dhow.dev/services/scheduler/internal/filter"
	"dhow.dev/services/scheduler/internal/loop"
	"dhow.dev/services/scheduler/internal/snapshot"
)

// conditionTaint says whether a controller sets the taint from the node's state: to remove it changes nothing for long, and to tolerate it sends pods to
// nodes that cannot run them.
func conditionTaint(key string) bool {
	return strings.HasPrefix(key, "node.kubernetes.io/") || strings.HasPrefix(key, "node.cloudprovider.kubernetes.io/")
}

// given says whether a label is the machine's own, which nobody should change to place a pod.
func given(key string) bool {
	switch key {
	case snapshot.HostnameLabel, snapshot.ZoneLabel, "topology.kubernetes.io/region", "kubernetes.io/os", "kubernetes.io/arch", "node.kubernetes.io/instance-type":
		return true
	}
	return false
}

// changeNode looks for edits of a node that answer all its rejections, or returns nil.
func changeNode(v loop.View, n verdict, filters []filter.Filter) *change {
	before := v.Snapshot.Node(n.slot)
	after := *before
	c := &change{node: &after, nodeSlot: n.slot}
	for _, rejection := range n.rejections {
		ok := false
		switch filters[rejection.Filter].Name {
		case "NodeUnschedulable":
			after.Unschedulable = false
			c.add(costUncordon, "uncordon", "uncordon node "+before.Name, operation{Op: "replace", Path: "/spec/unschedulable", Value: false})
			ok = true
		case "TaintToleration":
			ok = removeTaints(c, v.Class, &after)
		case "NodeAffinity":
			ok = label(c, v.Class, &after)
		}
		if !ok {
			return nil
		}
	}
	if len(c.ops) == 0 {
		return nil
	}
	return c
}

// removeTaints removes those that the pod does not tolerate, last first so that the places of the others hold.
func removeTaints(c *change, class *snapshot.Class, n *snapshot.Node) bool {
	taints := slices.Clone(n.Taints)
	for i := len(taints) - 1; i >= 0; i-- {
		t := taints[i]
		if t.Effect != snapshot.NoSchedule && t.Effect != snapshot.NoExecute || class.TolerateTaint(&t) {
			continue
		}
		// The taint of a cordon goes with it.
		if conditionTaint(t.Key) && t.Key != snapshot.UnschedulableTaint {
			return false
		}
		at := path("spec", "taints", strconv.Itoa(i))
		c.add(costTaint, "taint "+t.Key, "remove the taint "+describe(t)+" from node "+n.Name,
			operation{Op: "test", Path: at + "/key", Value: t.Key}, operation{Op: "test", Path: at + "/effect", Value: t.Effect}, operation{Op: "remove", Path: at})
		taints = slices.Delete(taints, i, i+1)
	}
	n.Taints = taints
	return true
}

func describe(t snapshot.Taint) string {
	if t.Value == "" {
		return t.Key + ":" + t.Effect
	}
	return t.Key + "=" + t.Value + ":" + t.Effect
}

// label sets what the pod's node selector and one alternative of its required affinity ask for.
func label(c *change, class *snapshot.Class, n *snapshot.Node) bool {
	want, ok := labelsFor(class.NodeSelector, n.Labels)
	if !ok {
		return false
	}
	if class.Required != nil {
		var best map[string]string
		for i := range class.Required {
			term := &class.Required[i]
			// A term that names nodes is met by those nodes only.
			if len(term.Fields) > 0 || len(term.Labels) == 0 {
				continue
			}
			if labels, ok := labelsFor(term.Labels, n.Labels); ok && (best == nil || len(labels) < len(best)) {
				best = labels
			}
		}
		if best == nil {
			return false
		}
		for key, value := range best {
			if other, set := want[key]; set && other != value {
				return false
			}
			want[key] = value
		}
	}
	labels := maps.Clone(n.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	for _, key := range slices.Sorted(maps.Keys(want)) {
		var ops []operation
		if len(labels) == 0 {
			ops = append(ops, operation{Op: "add", Path: "/metadata/labels", Value: map[string]string{}})
		}
		ops = append(ops, operation{Op: "add", Path: path("metadata", "labels", key), Value: want[key]})
		c.add(costNodeLabel, "label "+key+"="+want[key], "label node "+n.Name+" with "+key+"="+want[key], ops...)
		labels[key] = want[key]
	}
	n.Labels = labels
	return true
}

// labelsFor returns the labels that are to be set so that the requirements hold. False: that is not possible by setting labels.
func labelsFor(requirements []snapshot.Requirement, labels map[string]string) (map[string]string, bool) {
	want := map[string]string{}
	for i := range requirements {
		r := &requirements[i]
		if r.Matches(labels) {
			continue
		}
		value := ""
		switch {
		case given(r.Key):
			return nil, false
		case r.Operator == "In" && len(r.Values) > 0:
			value = r.Values[0]
		case r.Operator == "Exists":
		case (r.Operator == "Gt" || r.Operator == "Lt") && len(r.Values) == 1:
			bound, err := strconv.ParseInt(r.Values[0], 10, 64)
			if err != nil {
				return nil, false
			}
			if r.Operator == "Gt" {
				value = strconv.FormatInt(bound+1, 10)
			} else {
				value = strconv.FormatInt(bound-1, 10)
			}
		default:
			return nil, false
		}
		want[r.Key] = value
	}
	return want, true
}
