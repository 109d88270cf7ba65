package describe

import (
	"fmt"
	"net"
	"sort"
	"strconv"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"dhow.dev/pkg/table"
)

// node shows a node and its pods that have not ended.
func (d *document) node(n *corev1.Node, pods []*corev1.Pod) {
	d.metadata(n)
	d.time("CreationTimestamp", n.CreationTimestamp)
	var taints []string
	for _, t := range n.Spec.Taints {
		taints = append(taints, t.ToString())
	}
	d.list("Taints", taints)
	d.fieldf("Unschedulable", "%t", n.Spec.Unschedulable)
	var rows [][]string
	for _, c := range n.Status.Conditions {
		rows = append(rows, []string{string(c.Type), string(c.Status), c.Reason, c.Message})
	}
	d.conditions(rows)
	var addresses []string
	for _, a := range n.Status.Addresses {
		addresses = append(addresses, fmt.Sprintf("%s %s", a.Type, a.Address))
	}
	d.list("Addresses", addresses)
	d.resources("Capacity", n.Status.Capacity)
	d.resources("Allocatable", n.Status.Allocatable)
	info := n.Status.NodeInfo
	d.section("System Info", func() {
		d.field("Kernel Version", info.KernelVersion)
		d.field("OS Image", info.OSImage)
		d.field("Operating System", info.OperatingSystem)
		d.field("Architecture", info.Architecture)
		d.field("Container Runtime Version", info.ContainerRuntimeVersion)
		d.field("Agent Version", info.KubeletVersion)
	})
	d.field("PodCIDR", orNone(n.Spec.PodCIDR))
	d.nodePods(pods)
}

// nodePods lists pods with what they ask for and may use.
func (d *document) nodePods(pods []*corev1.Pod) {
	rows := [][]string{{"Namespace", "Name", "CPU Requests", "CPU Limits", "Memory Requests", "Memory Limits", "Age"}, {"---------", "----", "------------", "----------", "---------------", "-------------", "---"}}
	for _, p := range pods {
		if p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
			continue
		}
		row := []string{p.Namespace, p.Name}
		for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
			requests, limits := resource.Quantity{}, resource.Quantity{}
			for _, c := range p.Spec.Containers {
				requests.Add(c.Resources.Requests[name])
				limits.Add(c.Resources.Limits[name])
			}
			row = append(row, requests.String(), limits.String())
		}
		rows = append(rows, append(row, table.Age(p.CreationTimestamp, d.now)))
	}
	if len(rows) == 2 {
		d.field("Pods", "<none>")
		return
	}
	d.section(fmt.Sprintf("Pods (%d that have not ended)", len(rows)-2), func() {
		for _, row := range rows {
			d.row(row...)
		}
	})
}

func (d *document) service(s *corev1.Service, slices []*discoveryv1.EndpointSlice) {
	d.metadata(s)
	d.mapping("Selector", s.Spec.Selector)
	d.field("Type", string(s.Spec.Type))
	d.field("IP", orNone(s.Spec.ClusterIP))
	if s.Spec.ExternalName != "" {
		d.field("External Name", s.Spec.ExternalName)
	}
	for _, p := range s.Spec.Ports {
		name := p.Name
		if name == "" {
			name = "<unset>"
		}
		d.fieldf("Port", "%s %d/%s", name, p.Port, p.Protocol)
		d.fieldf("TargetPort", "%s/%s", p.TargetPort.String(), p.Protocol)
		if p.NodePort != 0 {
			d.fieldf("NodePort", "%s %d/%s", name, p.NodePort, p.Protocol)
		}
	}
	d.field("Endpoints", orNone(strings.Join(readyEndpoints(slices), ",")))
	d.field("Session Affinity", string(s.Spec.SessionAffinity))
	if s.Spec.ExternalTrafficPolicy != "" {
		d.field("External Traffic Policy", string(s.Spec.ExternalTrafficPolicy))
	}
}

// readyEndpoints lists the addresses that a service's connections go to.
func readyEndpoints(slices []*discoveryv1.EndpointSlice) []string {
	var list []string
	for _, slice := range slices {
		for _, e := range slice.Endpoints {
			if e.Conditions.Ready != nil && !*e.Conditions.Ready {
				continue
			}
			for _, address := range e.Addresses {
				for _, port := range slice.Ports {
					if port.Port != nil {
						list = append(list, net.JoinHostPort(address, strconv.Itoa(int(*port.Port))))
					}
				}
				if len(slice.Ports) == 0 {
					list = append(list, address)
				}
			}
		}
	}
	sort.Strings(list)
	return list
}

func (d *document) deployment(o *appsv1.Deployment, sets []*appsv1.ReplicaSet) {
	d.time("CreationTimestamp", o.CreationTimestamp)
	d.metadata(o)
	d.field("Selector", labelSelector(o.Spec.Selector))
	s := o.Status
	d.fieldf("Replicas", "%d desired | %d updated | %d total | %d available | %d unavailable", value(o.Spec.Replicas), s.UpdatedReplicas, s.Replicas, s.AvailableReplicas, s.UnavailableReplicas)
	d.field("StrategyType", string(o.Spec.Strategy.Type))
	d.fieldf("MinReadySeconds", "%d", o.Spec.MinReadySeconds)
	if r := o.Spec.Strategy.RollingUpdate; r != nil {
		d.fieldf("RollingUpdateStrategy", "%s max unavailable, %s max surge", r.MaxUnavailable.String(), r.MaxSurge.String())
	}
	d.template(o.Spec.Template)
	var rows [][]string
	for _, c := range o.Status.Conditions {
		rows = append(rows, []string{string(c.Type), string(c.Status), c.Reason, c.Message})
	}
	d.conditions(rows)
	var shown []string
	for _, set := range sets {
		if metav1.IsControlledBy(set, o) && (set.Status.Replicas > 0 || value(set.Spec.Replicas) > 0) {
			shown = append(shown, fmt.Sprintf("%s (%d/%d replicas created)", set.Name, set.Status.Replicas, value(set.Spec.Replicas)))
		}
	}
	d.list("Replica Sets", shown)
}

func (d *document) replicaSet(o *appsv1.ReplicaSet) {
	d.field("Selector", labelSelector(o.Spec.Selector))
	d.metadata(o)
	d.controlledBy(o)
	d.fieldf("Replicas", "%d current / %d desired", o.Status.Replicas, value(o.Spec.Replicas))
	d.template(o.Spec.Template)
	var rows [][]string
	for _, c := range o.Status.Conditions {
		rows = append(rows, []string{string(c.Type), string(c.Status), c.Reason, c.Message})
	}
	d.conditions(rows)
}

func (d *document) template(t corev1.PodTemplateSpec) {
	d.section("Pod Template", func() {
		var labels []string
		for _, k := range sorted(t.Labels) {
			labels = append(labels, k+"="+t.Labels[k])
		}
		d.field("Labels", strings.Join(labels, ","))
		d.containers("Init Containers", t.Spec.InitContainers, nil)
		d.containers("Containers", t.Spec.Containers, nil)
		d.volumes(t.Spec.Volumes)
	})
}
