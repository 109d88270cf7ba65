package resource

import (
	"k8s.io/apimachinery/pkg/runtime/schema"

	appsv1 "dhow.dev/gen/go/dhow/apps/v1"
	authenticationv1 "dhow.dev/gen/go/dhow/authentication/v1"
	authorizationv1 "dhow.dev/gen/go/dhow/authorization/v1"
	autoscalingv1 "dhow.dev/gen/go/dhow/autoscaling/v1"
	autoscalingv2 "dhow.dev/gen/go/dhow/autoscaling/v2"
	batchv1 "dhow.dev/gen/go/dhow/batch/v1"
	certificatesv1 "dhow.dev/gen/go/dhow/certificates/v1"
	certificatesv1beta1 "dhow.dev/gen/go/dhow/certificates/v1beta1"
	coordinationv1 "dhow.dev/gen/go/dhow/coordination/v1"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	discoveryv1 "dhow.dev/gen/go/dhow/discovery/v1"
	eventsv1 "dhow.dev/gen/go/dhow/events/v1"
	flowcontrolv1 "dhow.dev/gen/go/dhow/flowcontrol/v1"
	metricsv1beta1 "dhow.dev/gen/go/dhow/metrics/v1beta1"
	networkingv1 "dhow.dev/gen/go/dhow/networking/v1"
	policyv1 "dhow.dev/gen/go/dhow/policy/v1"
	rbacv1 "dhow.dev/gen/go/dhow/rbac/v1"
	resourcev1 "dhow.dev/gen/go/dhow/resource/v1"
	runtimev1 "dhow.dev/gen/go/dhow/runtime/v1"
	schedulingv1 "dhow.dev/gen/go/dhow/scheduling/v1"
	storagev1 "dhow.dev/gen/go/dhow/storage/v1"
)

// all is what the word `all` of the command line stands for.
var all = []string{"all"}

// noCollection are the verbs of namespaces, which are deleted one by one.
var noCollection = []string{"create", "delete", "get", "list", "patch", "update", "watch"}

// asks and reads are the verbs of virtual kinds: those that a question is sent to, and those that only show something.
var (
	asks  = []string{"create"}
	reads = []string{"get", "list"}
)

// table has one row per served kind: the one place to add a kind to. Names, scopes, verbs and categories are those of Kubernetes v1.36's discovery. Versions of one group are in
// the order of preference.
var table = []Resource{
	{Group: "", Version: "v1", Kind: "Binding", Plural: "bindings", message: (*corev1.Binding)(nil), Namespaced: true, Virtual: true, Verbs: asks},
	{Group: "", Version: "v1", Kind: "ComponentStatus", Plural: "componentstatuses", message: (*corev1.ComponentStatus)(nil), ShortNames: []string{"cs"}, Virtual: true, Verbs: reads},
	{Group: "", Version: "v1", Kind: "ConfigMap", Plural: "configmaps", ShortNames: []string{"cm"}, message: (*corev1.ConfigMap)(nil), Namespaced: true},
	{Group: "", Version: "v1", Kind: "Endpoints", Plural: "endpoints", ShortNames: []string{"ep"}, message: (*corev1.Endpoints)(nil), Namespaced: true},
	{Group: "", Version: "v1", Kind: "Event", Plural: "events", ShortNames: []string{"ev"}, message: (*corev1.Event)(nil), Namespaced: true},
	{Group: "", Version: "v1", Kind: "LimitRange", Plural: "limitranges", ShortNames: []string{"limits"}, message: (*corev1.LimitRange)(nil), Namespaced: true},
	{Group: "", Version: "v1", Kind: "Namespace", Plural: "namespaces", ShortNames: []string{"ns"}, message: (*corev1.Namespace)(nil), HasStatus: true, Verbs: noCollection},
	{Group: "", Version: "v1", Kind: "Node", Plural: "nodes", ShortNames: []string{"no"}, message: (*corev1.Node)(nil), HasStatus: true},
	{Group: "", Version: "v1", Kind: "PersistentVolume", Plural: "persistentvolumes", ShortNames: []string{"pv"}, message: (*corev1.PersistentVolume)(nil), HasStatus: true},
	{Group: "", Version: "v1", Kind: "PersistentVolumeClaim", Plural: "persistentvolumeclaims", ShortNames: []string{"pvc"}, message: (*corev1.PersistentVolumeClaim)(nil), Namespaced: true, HasStatus: true},
	{Group: "", Version: "v1", Kind: "Pod", Plural: "pods", ShortNames: []string{"po"}, message: (*corev1.Pod)(nil), Namespaced: true, HasStatus: true, Categories: all},
	{Group: "", Version: "v1", Kind: "PodTemplate", Plural: "podtemplates", message: (*corev1.PodTemplate)(nil), Namespaced: true},
	{Group: "", Version: "v1", Kind: "ReplicationController", Plural: "replicationcontrollers", ShortNames: []string{"rc"}, message: (*corev1.ReplicationController)(nil), Namespaced: true, HasStatus: true, Categories: all},
	{Group: "", Version: "v1", Kind: "ResourceQuota", Plural: "resourcequotas", ShortNames: []string{"quota"}, message: (*corev1.ResourceQuota)(nil), Namespaced: true, HasStatus: true},
	{Group: "", Version: "v1", Kind: "Secret", Plural: "secrets", message: (*corev1.Secret)(nil), Namespaced: true},
	{Group: "", Version: "v1", Kind: "Service", Plural: "services", ShortNames: []string{"svc"}, message: (*corev1.Service)(nil), Namespaced: true, HasStatus: true, Categories: all},
	{Group: "", Version: "v1", Kind: "ServiceAccount", Plural: "serviceaccounts", ShortNames: []string{"sa"}, message: (*corev1.ServiceAccount)(nil), Namespaced: true},
	{Group: "apps", Version: "v1", Kind: "ControllerRevision", Plural: "controllerrevisions", message: (*appsv1.ControllerRevision)(nil), Namespaced: true},
	{Group: "apps", Version: "v1", Kind: "DaemonSet", Plural: "daemonsets", ShortNames: []string{"ds"}, message: (*appsv1.DaemonSet)(nil), Namespaced: true, HasStatus: true, Categories: all},
	{Group: "apps", Version: "v1", Kind: "Deployment", Plural: "deployments", ShortNames: []string{"deploy"}, message: (*appsv1.Deployment)(nil), Namespaced: true, HasStatus: true, Categories: all},
	{Group: "apps", Version: "v1", Kind: "ReplicaSet", Plural: "replicasets", ShortNames: []string{"rs"}, message: (*appsv1.ReplicaSet)(nil), Namespaced: true, HasStatus: true, Categories: all},
	{Group: "apps", Version: "v1", Kind: "StatefulSet", Plural: "statefulsets", ShortNames: []string{"sts"}, message: (*appsv1.StatefulSet)(nil), Namespaced: true, HasStatus: true, Categories: all},
	{Group: "batch", Version: "v1", Kind: "CronJob", Plural: "cronjobs", ShortNames: []string{"cj"}, message: (*batchv1.CronJob)(nil), Namespaced: true, HasStatus: true, Categories: all},
	{Group: "batch", Version: "v1", Kind: "Job", Plural: "jobs", message: (*batchv1.Job)(nil), Namespaced: true, HasStatus: true, Categories: all},
	{Group: "autoscaling", Version: "v2", Kind: "HorizontalPodAutoscaler", Plural: "horizontalpodautoscalers", ShortNames: []string{"hpa"}, message: (*autoscalingv2.HorizontalPodAutoscaler)(nil), Namespaced: true, HasStatus: true, Categories: all},
	{Group: "autoscaling", Version: "v1", Kind: "HorizontalPodAutoscaler", Plural: "horizontalpodautoscalers", message: (*autoscalingv1.HorizontalPodAutoscaler)(nil), ShortNames: []string{"hpa"}, Namespaced: true, HasStatus: true, Categories: all,
		storedAs: schema.GroupVersionKind{Group: "autoscaling", Version: "v2", Kind: "HorizontalPodAutoscaler"}},
	{Group: "autoscaling", Version: "v1", Kind: "Scale", Plural: "scales", message: (*autoscalingv1.Scale)(nil), Namespaced: true, Virtual: true, Subresource: "scale"},
	{Group: "policy", Version: "v1", Kind: "PodDisruptionBudget", Plural: "poddisruptionbudgets", ShortNames: []string{"pdb"}, message: (*policyv1.PodDisruptionBudget)(nil), Namespaced: true, HasStatus: true},
	{Group: "policy", Version: "v1", Kind: "Eviction", Plural: "evictions", message: (*policyv1.Eviction)(nil), Namespaced: true, Virtual: true, Subresource: "eviction"},
	{Group: "networking.k8s.io", Version: "v1", Kind: "IPAddress", Plural: "ipaddresses", ShortNames: []string{"ip"}, message: (*networkingv1.IPAddress)(nil)},
	{Group: "networking.k8s.io", Version: "v1", Kind: "Ingress", Plural: "ingresses", ShortNames: []string{"ing"}, message: (*networkingv1.Ingress)(nil), Namespaced: true, HasStatus: true},
	{Group: "networking.k8s.io", Version: "v1", Kind: "IngressClass", Plural: "ingressclasses", message: (*networkingv1.IngressClass)(nil)},
	{Group: "networking.k8s.io", Version: "v1", Kind: "NetworkPolicy", Plural: "networkpolicies", ShortNames: []string{"netpol"}, message: (*networkingv1.NetworkPolicy)(nil), Namespaced: true},
	{Group: "networking.k8s.io", Version: "v1", Kind: "ServiceCIDR", Plural: "servicecidrs", message: (*networkingv1.ServiceCIDR)(nil), HasStatus: true},
	{Group: "discovery.k8s.io", Version: "v1", Kind: "EndpointSlice", Plural: "endpointslices", message: (*discoveryv1.EndpointSlice)(nil), Namespaced: true},
	{Group: "coordination.k8s.io", Version: "v1", Kind: "Lease", Plural: "leases", message: (*coordinationv1.Lease)(nil), Namespaced: true},
	{Group: "scheduling.k8s.io", Version: "v1", Kind: "PriorityClass", Plural: "priorityclasses", ShortNames: []string{"pc"}, message: (*schedulingv1.PriorityClass)(nil)},
	{Group: "storage.k8s.io", Version: "v1", Kind: "CSIDriver", Plural: "csidrivers", message: (*storagev1.CSIDriver)(nil)},
	{Group: "storage.k8s.io", Version: "v1", Kind: "CSINode", Plural: "csinodes", message: (*storagev1.CSINode)(nil)},
	{Group: "storage.k8s.io", Version: "v1", Kind: "CSIStorageCapacity", Plural: "csistoragecapacities", message: (*storagev1.CSIStorageCapacity)(nil), Namespaced: true},
	{Group: "storage.k8s.io", Version: "v1", Kind: "StorageClass", Plural: "storageclasses", ShortNames: []string{"sc"}, message: (*storagev1.StorageClass)(nil)},
	{Group: "storage.k8s.io", Version: "v1", Kind: "VolumeAttachment", Plural: "volumeattachments", message: (*storagev1.VolumeAttachment)(nil), HasStatus: true},
	{Group: "storage.k8s.io", Version: "v1", Kind: "VolumeAttributesClass", Plural: "volumeattributesclasses", ShortNames: []string{"vac"}, message: (*storagev1.VolumeAttributesClass)(nil)},
	{Group: "rbac.authorization.k8s.io", Version: "v1", Kind: "ClusterRole", Plural: "clusterroles", message: (*rbacv1.ClusterRole)(nil)},
	{Group: "rbac.authorization.k8s.io", Version: "v1", Kind: "ClusterRoleBinding", Plural: "clusterrolebindings", message: (*rbacv1.ClusterRoleBinding)(nil)},
	{Group: "rbac.authorization.k8s.io", Version: "v1", Kind: "Role", Plural: "roles", message: (*rbacv1.Role)(nil), Namespaced: true},
	{Group: "rbac.authorization.k8s.io", Version: "v1", Kind: "RoleBinding", Plural: "rolebindings", message: (*rbacv1.RoleBinding)(nil), Namespaced: true},
	{Group: "events.k8s.io", Version: "v1", Kind: "Event", Plural: "events", ShortNames: []string{"ev"}, message: (*eventsv1.Event)(nil), Namespaced: true,
		storedAs: schema.GroupVersionKind{Version: "v1", Kind: "Event"}},
	{Group: "certificates.k8s.io", Version: "v1", Kind: "CertificateSigningRequest", Plural: "certificatesigningrequests", message: (*certificatesv1.CertificateSigningRequest)(nil), ShortNames: []string{"csr"}, HasStatus: true},
	{Group: "certificates.k8s.io", Version: "v1beta1", Kind: "ClusterTrustBundle", Plural: "clustertrustbundles", message: (*certificatesv1beta1.ClusterTrustBundle)(nil)},
	{Group: "node.k8s.io", Version: "v1", Kind: "RuntimeClass", Plural: "runtimeclasses", message: (*runtimev1.RuntimeClass)(nil)},
	{Group: "resource.k8s.io", Version: "v1", Kind: "DeviceClass", Plural: "deviceclasses", message: (*resourcev1.DeviceClass)(nil)},
	{Group: "resource.k8s.io", Version: "v1", Kind: "ResourceClaim", Plural: "resourceclaims", message: (*resourcev1.ResourceClaim)(nil), Namespaced: true, HasStatus: true},
	{Group: "resource.k8s.io", Version: "v1", Kind: "ResourceClaimTemplate", Plural: "resourceclaimtemplates", message: (*resourcev1.ResourceClaimTemplate)(nil), Namespaced: true},
	{Group: "resource.k8s.io", Version: "v1", Kind: "ResourceSlice", Plural: "resourceslices", message: (*resourcev1.ResourceSlice)(nil)},
	{Group: "flowcontrol.apiserver.k8s.io", Version: "v1", Kind: "FlowSchema", Plural: "flowschemas", message: (*flowcontrolv1.FlowSchema)(nil), HasStatus: true},
	{Group: "flowcontrol.apiserver.k8s.io", Version: "v1", Kind: "PriorityLevelConfiguration", Plural: "prioritylevelconfigurations", message: (*flowcontrolv1.PriorityLevelConfiguration)(nil), HasStatus: true},
	{Group: "authentication.k8s.io", Version: "v1", Kind: "SelfSubjectReview", Plural: "selfsubjectreviews", message: (*authenticationv1.SelfSubjectReview)(nil), Virtual: true, Verbs: asks},
	{Group: "authentication.k8s.io", Version: "v1", Kind: "TokenReview", Plural: "tokenreviews", message: (*authenticationv1.TokenReview)(nil), Virtual: true, Verbs: asks},
	{Group: "authentication.k8s.io", Version: "v1", Kind: "TokenRequest", Plural: "tokenrequests", message: (*authenticationv1.TokenRequest)(nil), Namespaced: true, Virtual: true, Subresource: "token"},
	{Group: "authorization.k8s.io", Version: "v1", Kind: "LocalSubjectAccessReview", Plural: "localsubjectaccessreviews", message: (*authorizationv1.LocalSubjectAccessReview)(nil), Namespaced: true, Virtual: true, Verbs: asks},
	{Group: "authorization.k8s.io", Version: "v1", Kind: "SelfSubjectAccessReview", Plural: "selfsubjectaccessreviews", message: (*authorizationv1.SelfSubjectAccessReview)(nil), Virtual: true, Verbs: asks},
	{Group: "authorization.k8s.io", Version: "v1", Kind: "SelfSubjectRulesReview", Plural: "selfsubjectrulesreviews", message: (*authorizationv1.SelfSubjectRulesReview)(nil), Virtual: true, Verbs: asks},
	{Group: "authorization.k8s.io", Version: "v1", Kind: "SubjectAccessReview", Plural: "subjectaccessreviews", message: (*authorizationv1.SubjectAccessReview)(nil), Virtual: true, Verbs: asks},
	{Group: "metrics.k8s.io", Version: "v1beta1", Kind: "NodeMetrics", Plural: "nodes", message: (*metricsv1beta1.NodeMetrics)(nil), Virtual: true, Verbs: reads, nameless: true},
	{Group: "metrics.k8s.io", Version: "v1beta1", Kind: "PodMetrics", Plural: "pods", message: (*metricsv1beta1.PodMetrics)(nil), Namespaced: true, Virtual: true, Verbs: reads, nameless: true},
}
