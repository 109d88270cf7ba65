package defaulting

import (
	"maps"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	storagev1 "k8s.io/api/storage/v1"
)

// Namespace labels the namespace with its name, so that selectors can choose it. A generated name is not known yet; the label follows when it is.
func Namespace(ns *corev1.Namespace) {
	if ns.Name == "" {
		return
	}
	if ns.Labels == nil {
		ns.Labels = map[string]string{}
	}
	ns.Labels[corev1.LabelMetadataName] = ns.Name
}

// Node lets pods have all of a node that does not keep a part of it for itself.
func Node(node *corev1.Node) {
	if node.Status.Allocatable == nil && node.Status.Capacity != nil {
		node.Status.Allocatable = maps.Clone(node.Status.Capacity)
	}
}

// Secret gives a secret the type of those without any form.
func Secret(s *corev1.Secret) { orDefault(&s.Type, corev1.SecretTypeOpaque) }

// PriorityClass lets pods of the class preempt others.
func PriorityClass(p *schedulingv1.PriorityClass) {
	orPointer(&p.PreemptionPolicy, corev1.PreemptLowerPriority)
}

// PersistentVolume completes a volume.
func PersistentVolume(pv *corev1.PersistentVolume) {
	orDefault(&pv.Status.Phase, corev1.VolumePending)
	orDefault(&pv.Spec.PersistentVolumeReclaimPolicy, corev1.PersistentVolumeReclaimRetain)
	orPointer(&pv.Spec.VolumeMode, corev1.PersistentVolumeFilesystem)
	if pv.Spec.HostPath != nil {
		orPointer(&pv.Spec.HostPath.Type, corev1.HostPathUnset)
	}
	if pv.Spec.ISCSI != nil {
		orDefault(&pv.Spec.ISCSI.ISCSIInterface, "default")
	}
}

// PersistentVolumeClaim completes a claim.
func PersistentVolumeClaim(pvc *corev1.PersistentVolumeClaim) {
	orDefault(&pvc.Status.Phase, corev1.ClaimPending)
	PersistentVolumeClaimSpec(&pvc.Spec)
}

// LimitRange fills the limits of containers from one another: default from max, defaultRequest from default, then from min.
func LimitRange(l *corev1.LimitRange) {
	for i := range l.Spec.Limits {
		item := &l.Spec.Limits[i]
		if item.Type != corev1.LimitTypeContainer {
			continue
		}
		for _, list := range []*corev1.ResourceList{&item.Default, &item.DefaultRequest} {
			if *list == nil {
				*list = corev1.ResourceList{}
			}
		}
		for _, fill := range []struct{ to, from corev1.ResourceList }{{item.Default, item.Max}, {item.DefaultRequest, item.Default}, {item.DefaultRequest, item.Min}} {
			for name, q := range fill.from {
				if _, ok := fill.to[name]; !ok {
					fill.to[name] = q.DeepCopy()
				}
			}
		}
	}
}

// StorageClass completes a class of volumes.
func StorageClass(s *storagev1.StorageClass) {
	orPointer(&s.ReclaimPolicy, corev1.PersistentVolumeReclaimDelete)
	orPointer(&s.VolumeBindingMode, storagev1.VolumeBindingImmediate)
}

// CSIDriver completes the description of a driver.
func CSIDriver(d *storagev1.CSIDriver) {
	orPointer(&d.Spec.AttachRequired, true)
	orPointer(&d.Spec.PodInfoOnMount, false)
	orPointer(&d.Spec.StorageCapacity, false)
	orPointer(&d.Spec.FSGroupPolicy, storagev1.ReadWriteOnceWithFSTypeFSGroupPolicy)
	orPointer(&d.Spec.RequiresRepublish, false)
	orPointer(&d.Spec.SELinuxMount, false)
	if len(d.Spec.VolumeLifecycleModes) == 0 {
		d.Spec.VolumeLifecycleModes = []storagev1.VolumeLifecycleMode{storagev1.VolumeLifecyclePersistent}
	}
}

// NetworkPolicy completes a policy: its ports are TCP, and it is about what comes in, and about what goes out when it says so.
func NetworkPolicy(p *networkingv1.NetworkPolicy) {
	if len(p.Spec.PolicyTypes) == 0 {
		p.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
		if len(p.Spec.Egress) > 0 {
			p.Spec.PolicyTypes = append(p.Spec.PolicyTypes, networkingv1.PolicyTypeEgress)
		}
	}
	tcp := func(ports []networkingv1.NetworkPolicyPort) {
		for i := range ports {
			orPointer(&ports[i].Protocol, corev1.ProtocolTCP)
		}
	}
	for i := range p.Spec.Ingress {
		tcp(p.Spec.Ingress[i].Ports)
	}
	for i := range p.Spec.Egress {
		tcp(p.Spec.Egress[i].Ports)
	}
}

// IngressClass says what the class's parameters reach when it has any.
func IngressClass(c *networkingv1.IngressClass) {
	if c.Spec.Parameters != nil {
		orPointer(&c.Spec.Parameters.Scope, networkingv1.IngressClassParametersReferenceScopeCluster)
	}
}

// RoleBinding names the API group of the role and of the subjects.
func RoleBinding(b *rbacv1.RoleBinding) {
	orDefault(&b.RoleRef.APIGroup, rbacv1.GroupName)
	subjects(b.Subjects)
}

// ClusterRoleBinding names the API group of the role and of the subjects.
func ClusterRoleBinding(b *rbacv1.ClusterRoleBinding) {
	orDefault(&b.RoleRef.APIGroup, rbacv1.GroupName)
	subjects(b.Subjects)
}

// subjects gives users and groups their API group; service accounts are of the core group, which is empty.
func subjects(list []rbacv1.Subject) {
	for i := range list {
		if k := list[i].Kind; k == rbacv1.UserKind || k == rbacv1.GroupKind {
			orDefault(&list[i].APIGroup, rbacv1.GroupName)
		}
	}
}

// scalingRules completes the rules of one direction: without policies, all of the size in 15 seconds, or as more says.
func scalingRules(r *autoscalingv2.HPAScalingRules, more ...autoscalingv2.HPAScalingPolicy) *autoscalingv2.HPAScalingRules {
	if r == nil {
		r = &autoscalingv2.HPAScalingRules{}
	}
	orPointer(&r.SelectPolicy, autoscalingv2.MaxChangePolicySelect)
	if r.Policies == nil {
		r.Policies = append(more, autoscalingv2.HPAScalingPolicy{Type: autoscalingv2.PercentScalingPolicy, Value: 100, PeriodSeconds: 15})
	}
	return r
}

// HorizontalPodAutoscaler completes an autoscaler: one replica at least, and 80 % of the requested CPU when it measures nothing else.
func HorizontalPodAutoscaler(h *autoscalingv2.HorizontalPodAutoscaler) {
	orPointer(&h.Spec.MinReplicas, 1)
	if b := h.Spec.Behavior; b != nil {
		b.ScaleUp = scalingRules(b.ScaleUp, autoscalingv2.HPAScalingPolicy{Type: autoscalingv2.PodsScalingPolicy, Value: 4, PeriodSeconds: 15})
		orPointer(&b.ScaleUp.StabilizationWindowSeconds, 0)
		// How long the highest size holds is the controller's to know.
		b.ScaleDown = scalingRules(b.ScaleDown)
	}
	if len(h.Spec.Metrics) == 0 {
		utilization := int32(80)
		h.Spec.Metrics = []autoscalingv2.MetricSpec{{
			Type: autoscalingv2.ResourceMetricSourceType,
			Resource: &autoscalingv2.ResourceMetricSource{
				Name:   corev1.ResourceCPU,
				Target: autoscalingv2.MetricTarget{Type: autoscalingv2.UtilizationMetricType, AverageUtilization: &utilization},
			},
		}}
	}
}
