package describe

import (
	"fmt"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
)

func (d *document) node(n *corev1.Node) {
	d.metadata(n)
	d.field("CreationTimestamp", n.CreationTimestamp.Format(time.RFC1123Z))
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
}

func (d *document) service(s *corev1.Service) {
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
	d.field("Session Affinity", string(s.Spec.SessionAffinity))
	if s.Spec.ExternalTrafficPolicy != "" {
		d.field("External Traffic Policy", string(s.Spec.ExternalTrafficPolicy))
	}
}

func (d *document) deployment(o *appsv1.Deployment) {
	d.field("CreationTimestamp", o.CreationTimestamp.Format(time.RFC1123Z))
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
