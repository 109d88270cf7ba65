package strategy

import (
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1 "k8s.io/api/batch/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	certificatesv1beta1 "k8s.io/api/certificates/v1beta1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	eventsv1 "k8s.io/api/events/v1"
	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	networkingv1 "k8s.io/api/networking/v1"
	nodev1 "k8s.io/api/node/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	resourcev1 "k8s.io/api/resource/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"dhow.dev/services/apiserver/internal/strategy/defaulting"
	"dhow.dev/services/apiserver/internal/strategy/validation"
)

// kinds has a row per kind with rules of its own.
func kinds(cfg Config) map[schema.GroupKind]Strategy {
	return map[schema.GroupKind]Strategy{
		{Kind: "Pod"}: podStrategy{rules: podRules, config: cfg},
		{Kind: "Namespace"}: rules[*corev1.Namespace]{
			defaults: defaulting.Namespace, create: newNamespace, validate: validation.Namespace, update: keepFinalizers, validateState: validation.NamespaceStatusUpdate,
		},
		{Kind: "Node"}: rules[*corev1.Node]{
			defaults: defaulting.Node, validate: validation.Node, validateNext: validation.NodeUpdate, validateState: validation.NodeStatusUpdate,
		},
		{Kind: "Service"}: rules[*corev1.Service]{
			defaults: defaulting.Service, validate: validation.Service, update: changeServiceType,
			validateNext: validation.ServiceUpdate, validateState: validation.ServiceStatusUpdate,
		},
		{Kind: "Endpoints"}:             rules[*corev1.Endpoints]{defaults: defaulting.Endpoints, validate: validation.Endpoints},
		{Kind: "ConfigMap"}:             rules[*corev1.ConfigMap]{validate: validation.ConfigMap, validateNext: validation.ConfigMapUpdate},
		{Kind: "Secret"}:                rules[*corev1.Secret]{defaults: defaulting.Secret, validate: validation.Secret, validateNext: validation.SecretUpdate},
		{Kind: "Event"}:                 rules[*corev1.Event]{validate: validation.CoreEvent},
		{Kind: "ReplicationController"}: rules[*corev1.ReplicationController]{defaults: defaulting.ReplicationController, validate: validation.ReplicationController},
		{Kind: "PersistentVolume"}:      rules[*corev1.PersistentVolume]{defaults: defaulting.PersistentVolume, validate: validation.PersistentVolume, validateNext: validation.PersistentVolumeUpdate},
		{Kind: "PersistentVolumeClaim"}: rules[*corev1.PersistentVolumeClaim]{
			defaults: defaulting.PersistentVolumeClaim, validate: validation.PersistentVolumeClaim, validateNext: validation.PersistentVolumeClaimUpdate, validateState: validation.PersistentVolumeClaimStatusUpdate,
		},
		{Kind: "LimitRange"}: rules[*corev1.LimitRange]{defaults: defaulting.LimitRange},

		{Group: "apps", Kind: "Deployment"}: rules[*appsv1.Deployment]{
			defaults: defaulting.Deployment, validate: validation.Deployment, validateNext: validation.DeploymentUpdate, validateState: validation.DeploymentStatusUpdate,
		},
		{Group: "apps", Kind: "ReplicaSet"}: rules[*appsv1.ReplicaSet]{
			defaults: defaulting.ReplicaSet, validate: validation.ReplicaSet, validateNext: validation.ReplicaSetUpdate, validateState: validation.ReplicaSetStatusUpdate,
		},
		{Group: "apps", Kind: "DaemonSet"}:   rules[*appsv1.DaemonSet]{defaults: defaulting.DaemonSet, validate: validation.DaemonSet, validateNext: validation.DaemonSetUpdate},
		{Group: "apps", Kind: "StatefulSet"}: rules[*appsv1.StatefulSet]{defaults: defaulting.StatefulSet, validate: validation.StatefulSet, validateNext: validation.StatefulSetUpdate},

		{Group: "batch", Kind: "Job"}: rules[*batchv1.Job]{
			defaults: defaulting.Job, create: defaulting.JobSelector, validate: validation.Job, validateNext: validation.JobUpdate, validateState: validation.JobStatusUpdate,
		},
		{Group: "batch", Kind: "CronJob"}: rules[*batchv1.CronJob]{defaults: defaulting.CronJob, validate: validation.CronJob, validateNext: validation.CronJobUpdate},

		{Group: "discovery.k8s.io", Kind: "EndpointSlice"}: rules[*discoveryv1.EndpointSlice]{
			defaults: defaulting.EndpointSlice, validate: validation.EndpointSlice, validateNext: validation.EndpointSliceUpdate,
		},
		{Group: "coordination.k8s.io", Kind: "Lease"}: rules[*coordinationv1.Lease]{validate: validation.Lease},
		{Group: "scheduling.k8s.io", Kind: "PriorityClass"}: rules[*schedulingv1.PriorityClass]{
			defaults: defaulting.PriorityClass, validate: validation.PriorityClass, validateNext: validation.PriorityClassUpdate,
		},
		{Group: "events.k8s.io", Kind: "Event"}: rules[*eventsv1.Event]{validate: validation.Event, validateNext: validation.EventUpdate},

		{Group: "autoscaling", Kind: "HorizontalPodAutoscaler"}: rules[*autoscalingv2.HorizontalPodAutoscaler]{defaults: defaulting.HorizontalPodAutoscaler, validate: validation.HorizontalPodAutoscaler},
		{Group: "networking.k8s.io", Kind: "NetworkPolicy"}:     rules[*networkingv1.NetworkPolicy]{defaults: defaulting.NetworkPolicy},
		{Group: "networking.k8s.io", Kind: "IngressClass"}:      rules[*networkingv1.IngressClass]{defaults: defaulting.IngressClass},
		{Group: "storage.k8s.io", Kind: "StorageClass"}:         rules[*storagev1.StorageClass]{defaults: defaulting.StorageClass, validate: validation.StorageClass, validateNext: validation.StorageClassUpdate},
		{Group: "storage.k8s.io", Kind: "CSIDriver"}:            rules[*storagev1.CSIDriver]{defaults: defaulting.CSIDriver},
		{Group: "storage.k8s.io", Kind: "VolumeAttachment"}:     rules[*storagev1.VolumeAttachment]{validate: validation.VolumeAttachment, validateNext: validation.VolumeAttachmentUpdate},
		{Group: rbacv1.GroupName, Kind: "RoleBinding"}: rules[*rbacv1.RoleBinding]{
			defaults: defaulting.RoleBinding, validate: validation.RoleBinding, validateNext: validation.RoleBindingUpdate,
		},
		{Group: rbacv1.GroupName, Kind: "ClusterRoleBinding"}: rules[*rbacv1.ClusterRoleBinding]{
			defaults: defaulting.ClusterRoleBinding, validate: validation.ClusterRoleBinding, validateNext: validation.ClusterRoleBindingUpdate,
		},
		{Group: rbacv1.GroupName, Kind: "Role"}:        rules[*rbacv1.Role]{validate: validation.Role},
		{Group: rbacv1.GroupName, Kind: "ClusterRole"}: rules[*rbacv1.ClusterRole]{validate: validation.ClusterRole},
		{Group: "policy", Kind: "PodDisruptionBudget"}: rules[*policyv1.PodDisruptionBudget]{validate: validation.PodDisruptionBudget},
		{Kind: "PodTemplate"}:                          rules[*corev1.PodTemplate]{defaults: defaulting.StoredTemplate, validate: validation.StoredTemplate},

		{Group: certificatesv1.GroupName, Kind: "CertificateSigningRequest"}: certificateStrategy{rules: certificateRules},
		{Group: certificatesv1beta1.GroupName, Kind: "ClusterTrustBundle"}: rules[*certificatesv1beta1.ClusterTrustBundle]{
			validate: validation.ClusterTrustBundle, validateNext: validation.ClusterTrustBundleUpdate,
		},
		{Group: nodev1.GroupName, Kind: "RuntimeClass"}: rules[*nodev1.RuntimeClass]{validate: validation.RuntimeClass, validateNext: validation.RuntimeClassUpdate},
		{Group: flowcontrolv1.GroupName, Kind: "FlowSchema"}: rules[*flowcontrolv1.FlowSchema]{
			defaults: defaulting.FlowSchema, validate: validation.FlowSchema, validateState: validation.FlowSchemaStatus,
		},
		{Group: flowcontrolv1.GroupName, Kind: "PriorityLevelConfiguration"}: rules[*flowcontrolv1.PriorityLevelConfiguration]{
			defaults: defaulting.PriorityLevelConfiguration, validate: validation.PriorityLevelConfiguration, validateState: validation.PriorityLevelConfigurationStatus,
		},
		{Group: resourcev1.GroupName, Kind: "DeviceClass"}: rules[*resourcev1.DeviceClass]{validate: validation.DeviceClass},
		{Group: resourcev1.GroupName, Kind: "ResourceClaim"}: rules[*resourcev1.ResourceClaim]{
			defaults: defaulting.ResourceClaim, validate: validation.ResourceClaim, validateNext: validation.ResourceClaimUpdate, validateState: validation.ResourceClaimStatusUpdate,
		},
		{Group: resourcev1.GroupName, Kind: "ResourceClaimTemplate"}: rules[*resourcev1.ResourceClaimTemplate]{
			defaults: defaulting.ResourceClaimTemplate, validate: validation.ResourceClaimTemplate, validateNext: validation.ResourceClaimTemplateUpdate,
		},
		{Group: resourcev1.GroupName, Kind: "ResourceSlice"}: rules[*resourcev1.ResourceSlice]{
			defaults: defaulting.ResourceSlice, validate: validation.ResourceSlice, validateNext: validation.ResourceSliceUpdate,
		},
	}
}
