package explain

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/services/scheduler/internal/loop"
	"dhow.dev/services/scheduler/internal/snapshot"
	"dhow.dev/services/scheduler/internal/spread"
)

// podEdit is a pod's copy with edits, which the change also holds as a patch.
type podEdit struct {
	pod *corev1.Pod
	// recreate says that an edit cannot be made in place.
	recreate bool
}

func newPodEdit(pod *corev1.Pod) *podEdit { return &podEdit{pod: proto.CloneOf(pod)} }

func (e *podEdit) removeGates(c *change) {
	spec := e.pod.GetSpec()
	var names []string
	for _, g := range spec.GetSchedulingGates() {
		names = append(names, g.GetName())
	}
	spec.SetSchedulingGates(nil)
	c.add(costGate, "gates", "remove the scheduling gates "+strings.Join(names, ", "), operation{Op: "remove", Path: "/spec/schedulingGates"})
}

// tolerate adds tolerations, which a pod may get in place.
func (e *podEdit) tolerate(c *change, class *snapshot.Class, n *snapshot.Node) bool {
	spec := e.pod.GetSpec()
	for i := range n.Taints {
		t := n.Taints[i]
		if t.Effect != snapshot.NoSchedule && t.Effect != snapshot.NoExecute || class.TolerateTaint(&t) {
			continue
		}
		if conditionTaint(t.Key) {
			return false
		}
		added := corev1.Toleration_builder{Key: proto.String(t.Key), Operator: proto.String("Equal"), Value: proto.String(t.Value), Effect: proto.String(t.Effect)}.Build()
		value := map[string]string{"key": t.Key, "operator": "Equal", "effect": t.Effect}
		if t.Value != "" {
			value["value"] = t.Value
		}
		op := operation{Op: "add", Path: "/spec/tolerations/-", Value: value}
		if len(spec.GetTolerations()) == 0 {
			op = operation{Op: "add", Path: "/spec/tolerations", Value: []any{value}}
		}
		spec.SetTolerations(append(spec.GetTolerations(), added))
		c.add(costToleration, "tolerate "+describe(t), "add a toleration of the taint "+describe(t), op)
	}
	return true
}

// loosenAffinity removes what of node selector and required affinity the node does not meet.
func (e *podEdit) loosenAffinity(c *change, class *snapshot.Class, n *snapshot.Node) bool {
	spec := e.pod.GetSpec()
	selector := spec.GetNodeSelector()
	for i := range class.NodeSelector {
		r := &class.NodeSelector[i]
		if r.Matches(n.Labels) {
			continue
		}
		delete(selector, r.Key)
		c.add(costSelector, "selector "+r.Key, "remove "+r.Key+"="+r.Values[0]+" from the node selector", operation{Op: "remove", Path: path("spec", "nodeSelector", r.Key)})
		e.recreate = true
	}
	spec.SetNodeSelector(selector)
	if class.Required != nil && !slices.ContainsFunc(class.Required, func(t snapshot.Term) bool { return t.Matches(n) }) {
		spec.GetAffinity().GetNodeAffinity().ClearRequiredDuringSchedulingIgnoredDuringExecution()
		c.add(costAffinity, "affinity", "remove the required node affinity",
			operation{Op: "remove", Path: "/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution"})
		e.recreate = true
	}
	return true
}

// dropPorts gives up the host ports that are taken. With host networking a container's port is the host's, and stays.
func (e *podEdit) dropPorts(c *change, used []snapshot.Port) bool {
	spec := e.pod.GetSpec()
	if spec.GetHostNetwork() {
		return false
	}
	drop := func(field string, containers []*corev1.Container, all bool) {
		for i, container := range containers {
			if !all && container.GetRestartPolicy() != "Always" {
				continue
			}
			for k, p := range container.GetPorts() {
				port := snapshot.PortOf(p)
				at := slices.IndexFunc(used, func(u snapshot.Port) bool { return port.Conflicts(&u) })
				if port.Number <= 0 || at < 0 {
					continue
				}
				p.ClearHostPort()
				c.add(costHostPort, "port "+strconv.Itoa(int(port.Number)),
					fmt.Sprintf("remove the host port %d of container %s, which pod %s has", port.Number, container.GetName(), used[at].Holder),
					operation{Op: "remove", Path: path("spec", field, strconv.Itoa(i), "ports", strconv.Itoa(k), "hostPort")})
				e.recreate = true
			}
		}
	}
	drop("containers", spec.GetContainers(), true)
	drop("initContainers", spec.GetInitContainers(), false)
	return e.recreate
}

// softenSpread makes preferences of the constraints that the node does not meet.
func (e *podEdit) softenSpread(c *change, v loop.View, slot int) bool {
	constraints := e.pod.GetSpec().GetTopologySpreadConstraints()
	for _, k := range spread.NewHard(v.Snapshot, v.Class).Unmet(slot) {
		t := constraints[k.Index]
		at := path("spec", "topologySpreadConstraints", strconv.Itoa(k.Index))
		ops := []operation{{Op: "replace", Path: at + "/whenUnsatisfiable", Value: "ScheduleAnyway"}}
		t.SetWhenUnsatisfiable("ScheduleAnyway")
		if t.HasMinDomains() {
			// Only a hard constraint may have it.
			ops = append(ops, operation{Op: "remove", Path: at + "/minDomains"})
			t.ClearMinDomains()
		}
		c.add(costSpread, "spread "+strconv.Itoa(k.Index), "make the topology spread over "+k.Key+" a preference (ScheduleAnyway)", ops...)
		e.recreate = true
	}
	return e.recreate
}
