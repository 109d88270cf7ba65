package describe

import (
	"strconv"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
)

func (d *document) statefulSet(o *appsv1.StatefulSet) {
	d.time("CreationTimestamp", o.CreationTimestamp)
	d.field("Selector", labelSelector(o.Spec.Selector))
	d.metadata(o)
	d.fieldf("Replicas", "%d desired | %d total | %d ready | %d available | %d updated", value(o.Spec.Replicas), o.Status.Replicas, o.Status.ReadyReplicas, o.Status.AvailableReplicas, o.Status.UpdatedReplicas)
	d.field("Service Name", orNone(o.Spec.ServiceName))
	d.field("Pod Management Policy", string(o.Spec.PodManagementPolicy))
	d.field("Update Strategy", string(o.Spec.UpdateStrategy.Type))
	if r := o.Spec.UpdateStrategy.RollingUpdate; r != nil {
		d.level++
		d.fieldf("Partition", "%d", value(r.Partition))
		if r.MaxUnavailable != nil {
			d.field("Max Unavailable", r.MaxUnavailable.String())
		}
		d.level--
	}
	d.field("Current Revision", orNone(o.Status.CurrentRevision))
	d.field("Update Revision", orNone(o.Status.UpdateRevision))
	d.template(o.Spec.Template)
	var claims []string
	for _, c := range o.Spec.VolumeClaimTemplates {
		storage := c.Spec.Resources.Requests[corev1.ResourceStorage]
		class := "the default class"
		if c.Spec.StorageClassName != nil {
			class = *c.Spec.StorageClassName
		}
		claims = append(claims, c.Name+" ("+storage.String()+" of "+class+")")
	}
	d.list("Volume Claims", claims)
	if p := o.Spec.PersistentVolumeClaimRetentionPolicy; p != nil {
		d.fieldf("Claims Kept", "when deleted: %s, when scaled: %s", p.WhenDeleted, p.WhenScaled)
	}
	var rows [][]string
	for _, c := range o.Status.Conditions {
		rows = append(rows, []string{string(c.Type), string(c.Status), c.Reason, c.Message})
	}
	d.conditions(rows)
}

func (d *document) daemonSet(o *appsv1.DaemonSet) {
	d.field("Selector", labelSelector(o.Spec.Selector))
	d.mapping("Node-Selector", o.Spec.Template.Spec.NodeSelector)
	d.metadata(o)
	s := o.Status
	for _, n := range []struct {
		label string
		count int32
	}{
		{"Desired Number of Nodes Scheduled", s.DesiredNumberScheduled}, {"Current Number of Nodes Scheduled", s.CurrentNumberScheduled},
		{"Number of Nodes Scheduled with Up-to-date Pods", s.UpdatedNumberScheduled}, {"Number of Nodes Scheduled with Available Pods", s.NumberAvailable},
		{"Number of Nodes Misscheduled", s.NumberMisscheduled},
	} {
		d.field(n.label, strconv.Itoa(int(n.count)))
	}
	d.field("Update Strategy", string(o.Spec.UpdateStrategy.Type))
	if r := o.Spec.UpdateStrategy.RollingUpdate; r != nil {
		d.level++
		d.fieldf("Max Unavailable", "%s", r.MaxUnavailable.String())
		d.fieldf("Max Surge", "%s", r.MaxSurge.String())
		d.level--
	}
	d.template(o.Spec.Template)
	var rows [][]string
	for _, c := range o.Status.Conditions {
		rows = append(rows, []string{string(c.Type), string(c.Status), c.Reason, c.Message})
	}
	d.conditions(rows)
}
