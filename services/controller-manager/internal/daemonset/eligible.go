package daemonset

import (
	"slices"

	"google.golang.org/protobuf/proto"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"

	appsv1 "dhow.dev/gen/go/dhow/apps/v1"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/services/controller-manager/internal/taint"
)

// This file says on which nodes a daemon set's pods belong. The scheduler binds them, by the same rules and the room that is left.

// nodeName is the field that a pod's node affinity names its node by.
const nodeName = "metadata.name"

// eligible says whether a node should have a pod, and whether one that is there may stay: a taint against scheduling alone does not drive it away.
func eligible(ds *appsv1.DaemonSet, node *corev1.Node) (should, mayStay bool) {
	spec := ds.GetSpec().GetTemplate().GetSpec()
	if n := spec.GetNodeName(); n != "" && n != node.GetMetadata().GetName() {
		return false, false
	}
	if !matches(spec, node) {
		return false, false
	}
	tolerations := tolerations(spec)
	taints := node.GetSpec().GetTaints()
	if taint.Untolerated(taints, tolerations, taint.NoExecute) != nil {
		return false, false
	}
	return taint.Untolerated(taints, tolerations, taint.NoSchedule) == nil, true
}

// matches says whether the node has what the pod's node selector and its required node affinity ask for.
func matches(spec *corev1.PodSpec, node *corev1.Node) bool {
	labelled := labels.Set(node.GetMetadata().GetLabels())
	if !labels.SelectorFromSet(spec.GetNodeSelector()).Matches(labelled) {
		return false
	}
	affinity := spec.GetAffinity().GetNodeAffinity()
	if !affinity.HasRequiredDuringSchedulingIgnoredDuringExecution() {
		return true
	}
	fields := labels.Set{nodeName: node.GetMetadata().GetName()}
	return slices.ContainsFunc(affinity.GetRequiredDuringSchedulingIgnoredDuringExecution().GetNodeSelectorTerms(), func(t *corev1.NodeSelectorTerm) bool {
		// A term that asks for nothing matches nothing.
		return len(t.GetMatchExpressions())+len(t.GetMatchFields()) > 0 && meets(t.GetMatchExpressions(), labelled) && meets(t.GetMatchFields(), fields)
	})
}

var operators = map[string]selection.Operator{
	"In": selection.In, "NotIn": selection.NotIn, "Exists": selection.Exists, "DoesNotExist": selection.DoesNotExist, "Gt": selection.GreaterThan, "Lt": selection.LessThan,
}

// meets says whether values meet all requirements; one that cannot be read is met by nothing.
func meets(requirements []*corev1.NodeSelectorRequirement, values labels.Set) bool {
	for _, r := range requirements {
		requirement, err := labels.NewRequirement(r.GetKey(), operators[r.GetOperator()], r.GetValues())
		if err != nil || !requirement.Matches(values) {
			return false
		}
	}
	return true
}

// tolerations returns those of the template, and those that keep a daemon on its node whatever happens to it.
func tolerations(spec *corev1.PodSpec) []*corev1.Toleration {
	all := slices.Clone(spec.GetTolerations())
	add := func(key, effect string) {
		t := corev1.Toleration_builder{Key: proto.String(key), Operator: proto.String("Exists"), Effect: proto.String(effect)}.Build()
		// One for the same taints gives way.
		for i, has := range all {
			if has.GetKey() == key && has.GetEffect() == effect && has.GetOperator() == "Exists" && has.GetValue() == "" {
				all[i] = t
				return
			}
		}
		all = append(all, t)
	}
	add(taint.NotReady, taint.NoExecute)
	add(taint.Unreachable, taint.NoExecute)
	add(taint.DiskPressure, taint.NoSchedule)
	add(taint.MemoryPressure, taint.NoSchedule)
	add(taint.PIDPressure, taint.NoSchedule)
	add(taint.Unschedulable, taint.NoSchedule)
	if spec.GetHostNetwork() {
		add(taint.NetworkUnavailable, taint.NoSchedule)
	}
	return all
}

// target returns the node that a pod is on or is meant for; "" for a pod that names none.
func target(p *corev1.Pod) string {
	if n := p.GetSpec().GetNodeName(); n != "" {
		return n
	}
	required := p.GetSpec().GetAffinity().GetNodeAffinity().GetRequiredDuringSchedulingIgnoredDuringExecution()
	for _, t := range required.GetNodeSelectorTerms() {
		for _, r := range t.GetMatchFields() {
			if r.GetKey() == nodeName && r.GetOperator() == "In" && len(r.GetValues()) == 1 {
				return r.GetValues()[0]
			}
		}
	}
	return ""
}

// pinned returns the affinity with the node required by name, in place of what was required of nodes: that was looked at already.
func pinned(affinity *corev1.Affinity, node string) *corev1.Affinity {
	if affinity == nil {
		affinity = &corev1.Affinity{}
	}
	affinity = proto.Clone(affinity).(*corev1.Affinity)
	if !affinity.HasNodeAffinity() {
		affinity.SetNodeAffinity(&corev1.NodeAffinity{})
	}
	affinity.GetNodeAffinity().SetRequiredDuringSchedulingIgnoredDuringExecution(corev1.NodeSelector_builder{NodeSelectorTerms: []*corev1.NodeSelectorTerm{
		corev1.NodeSelectorTerm_builder{MatchFields: []*corev1.NodeSelectorRequirement{corev1.NodeSelectorRequirement_builder{
			Key: proto.String(nodeName), Operator: proto.String("In"), Values: []string{node},
		}.Build()}}.Build(),
	}}.Build())
	return affinity
}
