// Package inventory is what all controllers read: the local copies of the kinds that they reconcile, fed by one stream.
package inventory

import (
	"log/slog"

	"google.golang.org/grpc"
	corek8s "k8s.io/api/core/v1"

	appsv1 "dhow.dev/gen/go/dhow/apps/v1"
	autoscalingv2 "dhow.dev/gen/go/dhow/autoscaling/v2"
	batchv1 "dhow.dev/gen/go/dhow/batch/v1"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	discoveryv1 "dhow.dev/gen/go/dhow/discovery/v1"
	policyv1 "dhow.dev/gen/go/dhow/policy/v1"
	storagev1 "dhow.dev/gen/go/dhow/storage/v1"
	"dhow.dev/pkg/informer"
	"dhow.dev/pkg/object"
	"dhow.dev/services/controller-manager/internal/ownership"
	"dhow.dev/services/controller-manager/internal/podstate"
)

// Indexes of the stores.
const (
	// ByNamespace finds objects by their namespace: pods, workloads, services, quotas, volume claims.
	ByNamespace = "namespace"
	// ByController finds objects by the UID of their controller: pods, replica sets, revisions.
	ByController = "controller"
	// Orphans finds objects without a controller by their namespace: pods, replica sets, revisions.
	Orphans = "orphans"
	// ByNode finds pods by the node that they are bound to, "" for those that are not.
	ByNode = "node"
	// Finished finds the pods that have ended, under the value "true".
	Finished = "finished"
	// ByClaim finds pods by namespace/name of the volume claims that they use, volumes by that of the claim that they are reserved for.
	ByClaim = "claim"
	// ByClass finds volume claims that are not bound to a volume by the name of their storage class, "" for those without.
	ByClass = "class"
	// ByVolume finds attachments by the name of their volume.
	ByVolume = "volume"
	// ByService finds endpoint slices by namespace/name of their Service.
	ByService = "service"
)

// Names of the objects that each namespace has from the start.
const (
	DefaultServiceAccount = "default"
	RootCAConfigMap       = "kube-root-ca.crt"
)

// Stores holds the local copies. Fields are read only.
type Stores struct {
	*informer.Informer
	Pods           *informer.Store[*corev1.Pod]
	ReplicaSets    *informer.Store[*appsv1.ReplicaSet]
	Deployments    *informer.Store[*appsv1.Deployment]
	Services       *informer.Store[*corev1.Service]
	EndpointSlices *informer.Store[*discoveryv1.EndpointSlice]
	Endpoints      *informer.Store[*corev1.Endpoints]
	Nodes          *informer.Store[*corev1.Node]
	Namespaces     *informer.Store[*corev1.Namespace]
	// ResourceQuotas and PersistentVolumeClaims are for the accounts of quotas.
	ResourceQuotas         *informer.Store[*corev1.ResourceQuota]
	PersistentVolumeClaims *informer.Store[*corev1.PersistentVolumeClaim]
	// PodDisruptionBudgets are for evictions, StatefulSets and ReplicationControllers for how many pods they want.
	PodDisruptionBudgets *informer.Store[*policyv1.PodDisruptionBudget]
	StatefulSets         *informer.Store[*appsv1.StatefulSet]
	DaemonSets           *informer.Store[*appsv1.DaemonSet]
	// ControllerRevisions are the history of StatefulSets and DaemonSets.
	ControllerRevisions    *informer.Store[*appsv1.ControllerRevision]
	ReplicationControllers *informer.Store[*corev1.ReplicationController]
	Jobs                   *informer.Store[*batchv1.Job]
	CronJobs               *informer.Store[*batchv1.CronJob]
	HorizontalAutoscalers  *informer.Store[*autoscalingv2.HorizontalPodAutoscaler]
	// PersistentVolumes, StorageClasses, CSIDrivers and VolumeAttachments are for binding, provisioning, attaching and growing.
	PersistentVolumes *informer.Store[*corev1.PersistentVolume]
	StorageClasses    *informer.Store[*storagev1.StorageClass]
	CSIDrivers        *informer.Store[*storagev1.CSIDriver]
	VolumeAttachments *informer.Store[*storagev1.VolumeAttachment]
	// VolumeAttributesClasses are kept while they are used.
	VolumeAttributesClasses *informer.Store[*storagev1.VolumeAttributesClass]
	// ServiceAccounts holds only those named default, ConfigMaps only those named kube-root-ca.crt.
	ServiceAccounts *informer.Store[*corev1.ServiceAccount]
	ConfigMaps      *informer.Store[*corev1.ConfigMap]
}

// New returns empty stores; Run fills them.
func New(conn grpc.ClientConnInterface, logger *slog.Logger) *Stores {
	inf := informer.New(conn, logger)
	return &Stores{
		Informer: inf,
		Pods: informer.Add(inf, informer.Options[*corev1.Pod]{Indexes: map[string]func(*corev1.Pod) []string{
			ByNamespace:  namespace[*corev1.Pod],
			ByController: controller[*corev1.Pod],
			Orphans:      orphan[*corev1.Pod],
			Finished: func(p *corev1.Pod) []string {
				if podstate.IsFinished(p) {
					return []string{"true"}
				}
				return nil
			},
			ByNode: func(p *corev1.Pod) []string { return []string{p.GetSpec().GetNodeName()} },
			ByClaim: func(p *corev1.Pod) []string {
				var keys []string
				for _, name := range ClaimsOf(p) {
					keys = append(keys, object.Key{Namespace: p.GetMetadata().GetNamespace(), Name: name}.String())
				}
				return keys
			},
		}}),
		ReplicaSets: informer.Add(inf, informer.Options[*appsv1.ReplicaSet]{Indexes: map[string]func(*appsv1.ReplicaSet) []string{
			ByNamespace:  namespace[*appsv1.ReplicaSet],
			ByController: controller[*appsv1.ReplicaSet],
			Orphans:      orphan[*appsv1.ReplicaSet],
		}}),
		Deployments: informer.Add(inf, informer.Options[*appsv1.Deployment]{Indexes: map[string]func(*appsv1.Deployment) []string{
			ByNamespace: namespace[*appsv1.Deployment],
		}}),
		Services: informer.Add(inf, informer.Options[*corev1.Service]{Indexes: map[string]func(*corev1.Service) []string{
			ByNamespace: namespace[*corev1.Service],
		}}),
		EndpointSlices: informer.Add(inf, informer.Options[*discoveryv1.EndpointSlice]{Indexes: map[string]func(*discoveryv1.EndpointSlice) []string{
			ByService: func(s *discoveryv1.EndpointSlice) []string {
				if name := s.GetMetadata().GetLabels()["kubernetes.io/service-name"]; name != "" {
					return []string{object.Key{Namespace: s.GetMetadata().GetNamespace(), Name: name}.String()}
				}
				return nil
			},
		}}),
		Endpoints:  informer.Add(inf, informer.Options[*corev1.Endpoints]{}),
		Nodes:      informer.Add(inf, informer.Options[*corev1.Node]{}),
		Namespaces: informer.Add(inf, informer.Options[*corev1.Namespace]{}),
		ResourceQuotas: informer.Add(inf, informer.Options[*corev1.ResourceQuota]{Indexes: map[string]func(*corev1.ResourceQuota) []string{
			ByNamespace: namespace[*corev1.ResourceQuota],
		}}),
		PersistentVolumeClaims: informer.Add(inf, informer.Options[*corev1.PersistentVolumeClaim]{Indexes: map[string]func(*corev1.PersistentVolumeClaim) []string{
			ByNamespace: namespace[*corev1.PersistentVolumeClaim],
			ByClass: func(c *corev1.PersistentVolumeClaim) []string {
				if c.GetMetadata().GetAnnotations()["pv.kubernetes.io/bind-completed"] != "" {
					return nil
				}
				return []string{ClassOf(c)}
			},
		}}),
		PodDisruptionBudgets: informer.Add(inf, informer.Options[*policyv1.PodDisruptionBudget]{Indexes: map[string]func(*policyv1.PodDisruptionBudget) []string{
			ByNamespace: namespace[*policyv1.PodDisruptionBudget],
		}}),
		StatefulSets: informer.Add(inf, informer.Options[*appsv1.StatefulSet]{Indexes: map[string]func(*appsv1.StatefulSet) []string{
			ByNamespace: namespace[*appsv1.StatefulSet],
		}}),
		DaemonSets: informer.Add(inf, informer.Options[*appsv1.DaemonSet]{Indexes: map[string]func(*appsv1.DaemonSet) []string{
			ByNamespace: namespace[*appsv1.DaemonSet],
		}}),
		ControllerRevisions: informer.Add(inf, informer.Options[*appsv1.ControllerRevision]{Indexes: map[string]func(*appsv1.ControllerRevision) []string{
			ByController: controller[*appsv1.ControllerRevision],
			Orphans:      orphan[*appsv1.ControllerRevision],
		}}),
		ReplicationControllers: informer.Add(inf, informer.Options[*corev1.ReplicationController]{Indexes: map[string]func(*corev1.ReplicationController) []string{
			ByNamespace: namespace[*corev1.ReplicationController],
		}}),
		Jobs: informer.Add(inf, informer.Options[*batchv1.Job]{Indexes: map[string]func(*batchv1.Job) []string{
			ByNamespace:  namespace[*batchv1.Job],
			ByController: controller[*batchv1.Job],
		}}),
		CronJobs:              informer.Add(inf, informer.Options[*batchv1.CronJob]{}),
		HorizontalAutoscalers: informer.Add(inf, informer.Options[*autoscalingv2.HorizontalPodAutoscaler]{}),
		PersistentVolumes: informer.Add(inf, informer.Options[*corev1.PersistentVolume]{Indexes: map[string]func(*corev1.PersistentVolume) []string{
			ByClaim: func(v *corev1.PersistentVolume) []string {
				if ref := v.GetSpec().GetClaimRef(); ref != nil {
					return []string{object.Key{Namespace: ref.GetNamespace(), Name: ref.GetName()}.String()}
				}
				return nil
			},
		}}),
		StorageClasses:          informer.Add(inf, informer.Options[*storagev1.StorageClass]{}),
		CSIDrivers:              informer.Add(inf, informer.Options[*storagev1.CSIDriver]{}),
		VolumeAttributesClasses: informer.Add(inf, informer.Options[*storagev1.VolumeAttributesClass]{}),
		VolumeAttachments: informer.Add(inf, informer.Options[*storagev1.VolumeAttachment]{Indexes: map[string]func(*storagev1.VolumeAttachment) []string{
			ByVolume: func(a *storagev1.VolumeAttachment) []string {
				return []string{a.GetSpec().GetSource().GetPersistentVolumeName()}
			},
			ByNode: func(a *storagev1.VolumeAttachment) []string { return []string{a.GetSpec().GetNodeName()} },
		}}),
		ServiceAccounts: informer.Add(inf, informer.Options[*corev1.ServiceAccount]{FieldSelector: "metadata.name=" + DefaultServiceAccount}),
		ConfigMaps:      informer.Add(inf, informer.Options[*corev1.ConfigMap]{FieldSelector: "metadata.name=" + RootCAConfigMap}),
	}
}

// ClaimsOf returns the names of the volume claims that a pod refers to, or that are made for its ephemeral volumes.
func ClaimsOf(pod *corev1.Pod) []string {
	var names []string
	for _, v := range pod.GetSpec().GetVolumes() {
		if claim := v.GetVolumeSource().GetPersistentVolumeClaim(); claim != nil {
			names = append(names, claim.GetClaimName())
		}
		if v.GetVolumeSource().GetEphemeral() != nil {
			names = append(names, pod.GetMetadata().GetName()+"-"+v.GetName())
		}
	}
	return names
}

// ClassOf returns the name of a claim's storage class, also where only the old annotation says it; "" when it has none.
func ClassOf(claim *corev1.PersistentVolumeClaim) string {
	if name, ok := claim.GetMetadata().GetAnnotations()[corek8s.BetaStorageClassAnnotation]; ok {
		return name
	}
	return claim.GetSpec().GetStorageClassName()
}

func namespace[T object.Object](o T) []string { return []string{o.GetMetadata().GetNamespace()} }

func controller[T object.Object](o T) []string {
	if uid := ownership.ControllerUID(o); uid != "" {
		return []string{uid}
	}
	return nil
}

func orphan[T object.Object](o T) []string {
	if ownership.ControllerUID(o) != "" {
		return nil
	}
	return []string{o.GetMetadata().GetNamespace()}
}
