package pod

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/services/node-agent/internal/cgroup"
	"dhow.dev/services/node-agent/internal/status"
)

// admit checks once more what the scheduler has checked: it may have decided on an older state of the node; and what only the node knows. m.mu is held.
func (m *Manager) admit(p *corev1.Pod) *status.End {
	if end := m.Host.refuse(p); end != nil {
		return end
	}
	if m.Pressure != nil {
		if end := m.Pressure(p); end != nil {
			return end
		}
	}
	others := m.others(p.GetMetadata().GetUid())
	var labels map[string]string
	if m.NodeLabels != nil {
		labels = m.NodeLabels()
	}
	end := Admit(m.NodeName, labels, m.allocatable(), others, p)
	if end == nil || !IsCritical(p) || !strings.HasPrefix(end.Reason, "OutOf") {
		return end
	}
	victims, ok := m.victims(labels, others, p)
	if !ok {
		return end
	}
	for _, v := range victims {
		m.evict(v.GetMetadata().GetUid(), &status.End{Reason: "Preempting", Message: "Preempted in order to admit critical pod", Disrupted: true})
	}
	return nil
}

// allocatable returns all that pods may use.
func (m *Manager) allocatable() map[string]*metav1.Quantity {
	if m.Extended == nil {
		return m.Allocatable
	}
	all := m.Extended()
	maps.Copy(all, m.Allocatable)
	return all
}

// others are the pods that have resources of the node, but for one. m.mu is held.
func (m *Manager) others(but string) []*corev1.Pod {
	var others []*corev1.Pod
	for uid, w := range m.workers {
		if other, ended := w.claims(); other != nil && !ended && uid != but {
			others = append(others, other)
		}
	}
	return others
}

// Admit says whether a pod fits on a node beside others, and if not, why, in Kubernetes' words. Without labels the node selector is not looked at.
func Admit(node string, labels map[string]string, allocatable map[string]*metav1.Quantity, others []*corev1.Pod, p *corev1.Pod) *status.End {
	for k, v := range p.GetSpec().GetNodeSelector() {
		if have, ok := labels[k]; labels != nil && (!ok || have != v) {
			return &status.End{Reason: "NodeAffinity", Message: fmt.Sprintf("Pod was rejected: Predicate NodeAffinity failed: node %q has no label %s=%s", node, k, v)}
		}
	}
	if required := p.GetSpec().GetAffinity().GetNodeAffinity().GetRequiredDuringSchedulingIgnoredDuringExecution(); labels != nil && required != nil && !matches(required, node, labels) {
		return &status.End{Reason: "NodeAffinity", Message: "Pod was rejected: Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector"}
	}
	var used cgroup.Amount
	for _, o := range others {
		a := cgroup.OfPod(o)
		used.CPURequest += a.CPURequest
		used.MemoryRequest += a.MemoryRequest
		used.StorageRequest += a.StorageRequest
	}
	need := cgroup.OfPod(p)
	if limit, ok := amount(allocatable, "pods"); ok && int64(len(others))+1 > limit {
		return outOf("pods", 1, int64(len(others)), limit)
	}
	for _, r := range []struct {
		name       string
		need, used int64
	}{{"cpu", need.CPURequest, used.CPURequest}, {"memory", need.MemoryRequest, used.MemoryRequest}, {"ephemeral-storage", need.StorageRequest, used.StorageRequest}} {
		if limit, ok := amount(allocatable, r.name); ok && r.need > 0 && r.need > limit-r.used {
			return outOf(r.name, r.need, r.used, limit)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(allocatable)) {
		if !strings.HasPrefix(name, "hugepages-") && !strings.Contains(name, "/") {
			continue
		}
		need, used := cgroup.Counted(p, name), int64(0)
		for _, o := range others {
			used += cgroup.Counted(o, name)
		}
		if limit, ok := amount(allocatable, name); ok && need > 0 && need > limit-used {
			return outOf(name, need, used, limit)
		}
	}
	taken := map[string]bool{}
	for _, o := range others {
		for _, port := range hostPorts(o) {
			taken[port] = true
		}
	}
	if i := slices.IndexFunc(hostPorts(p), func(port string) bool { return taken[port] }); i >= 0 {
		return &status.End{Reason: "NodePorts", Message: fmt.Sprintf(
			"Pod was rejected: Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports: %s", hostPorts(p)[i])}
	}
	return nil
}

func outOf(name string, need, used, limit int64) *status.End {
	return &status.End{Reason: "OutOf" + name, Message: fmt.Sprintf(
		"Pod was rejected: Node didn't have enough resource: %s, requested: %d, used: %d, capacity: %d", name, need, used, limit)}
}

func amount(list map[string]*metav1.Quantity, name string) (int64, bool) {
	q, ok := list[name]
	if !ok {
		return 0, false
	}
	parsed, err := resource.ParseQuantity(q.GetString())
	if err != nil {
		return 0, false
	}
	if name == "cpu" {
		return parsed.MilliValue(), true
	}
	return parsed.Value(), true
}

// hostPorts lists a pod's ports on the node, as protocol/port and the host address if one is named. That 0.0.0.0 overlaps with every
// address is the scheduler's to know; this is its backstop.
func hostPorts(p *corev1.Pod) []string {
	var ports []string
	for _, c := range slices.Concat(p.GetSpec().GetInitContainers(), p.GetSpec().GetContainers()) {
		for _, port := range c.GetPorts() {
			n := port.GetHostPort()
			if n == 0 && p.GetSpec().GetHostNetwork() {
				n = port.GetContainerPort()
			}
			if n == 0 {
				continue
			}
			protocol := "TCP"
			if port.GetProtocol() != "" {
				protocol = strings.ToUpper(port.GetProtocol())
			}
			key := fmt.Sprintf("%s/%d", protocol, n)
			if ip := port.GetHostIp(); ip != "" && ip != "0.0.0.0" {
				key += "@" + ip
			}
			ports = append(ports, key)
		}
	}
	return ports
}
