package pod

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/demand"
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
	allocatable := m.allocatable()
	if !IsCritical(p) {
		return Admit(m.NodeName, labels, allocatable, others, p)
	}
	// What is only short of room takes it from others.
	if end := misplaced(m.NodeName, labels, p); end != nil {
		return end
	}
	if end := portsTaken(others, p); end != nil {
		return end
	}
	victims, end := victims(p, others, shortages(allocatable, others, p))
	if end != nil {
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
	if end := misplaced(node, labels, p); end != nil {
		return end
	}
	if short := shortages(allocatable, others, p); len(short) > 0 {
		return short[0].refusal()
	}
	return portsTaken(others, p)
}

// misplaced says that the node is none of those that a pod may be on.
func misplaced(node string, labels map[string]string, p *corev1.Pod) *status.End {
	for k, v := range p.GetSpec().GetNodeSelector() {
		if have, ok := labels[k]; labels != nil && (!ok || have != v) {
			return &status.End{Reason: "NodeAffinity", Message: fmt.Sprintf("Pod was rejected: Predicate NodeAffinity failed: node %q has no label %s=%s", node, k, v)}
		}
	}
	if required := p.GetSpec().GetAffinity().GetNodeAffinity().GetRequiredDuringSchedulingIgnoredDuringExecution(); labels != nil && required != nil && !matches(required, node, labels) {
		return &status.End{Reason: "NodeAffinity", Message: "Pod was rejected: Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector"}
	}
	return nil
}

func portsTaken(others []*corev1.Pod, p *corev1.Pod) *status.End {
	wanted := hostPorts(p)
	if len(wanted) == 0 {
		return nil
	}
	taken := map[string]bool{}
	for _, o := range others {
		for _, port := range hostPorts(o) {
			taken[port] = true
		}
	}
	if i := slices.IndexFunc(wanted, func(port string) bool { return taken[port] }); i >= 0 {
		return &status.End{Reason: "NodePorts", Message: fmt.Sprintf(
			"Pod was rejected: Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports: %s", wanted[i])}
	}
	return nil
}

// shortage is a resource of which the node has not enough left.
type shortage struct {
	name              string
	need, used, limit int64
}

// missing is how much more there would have to be.
func (s shortage) missing() int64 { return s.need - (s.limit - s.used) }

func (s shortage) refusal() *status.End {
	return &status.End{Reason: "OutOf" + s.name, Message: fmt.Sprintf(
		"Pod was rejected: Node didn't have enough resource: %s, requested: %d, used: %d, capacity: %d", s.name, s.need, s.used, s.limit)}
}

// requested is all that a pod takes of its node, itself as one of so many pods.
func requested(p *corev1.Pod) demand.Amounts {
	all := cgroup.Requests(p)
	all["pods"] = 1
	return all
}

// shortages lists what is too little for a pod beside others: how many pods there may be, then cpu, memory and disk, then the rest by name.
func shortages(allocatable map[string]*metav1.Quantity, others []*corev1.Pod, p *corev1.Pod) []shortage {
	needs, used := requested(p), demand.Amounts{}
	for _, o := range others {
		used.Add(requested(o))
	}
	first := []string{"pods", "cpu", "memory", "ephemeral-storage"}
	names := slices.Clone(first)
	for _, name := range slices.Sorted(maps.Keys(needs)) {
		if !slices.Contains(first, name) {
			names = append(names, name)
		}
	}
	var short []shortage
	for _, name := range names {
		limit, has := amount(allocatable, name)
		// Of huge pages the node says all that it has. What others count it need not have heard of yet.
		if !has && !strings.HasPrefix(name, "hugepages-") {
			continue
		}
		if need := needs[name]; need > 0 && need > limit-used[name] {
			short = append(short, shortage{name, need, used[name], limit})
		}
	}
	return short
}

func amount(list map[string]*metav1.Quantity, name string) (int64, bool) {
	q, ok := list[name]
	if !ok {
		return 0, false
	}
	return demand.Of(name, q), true
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
