// Package inventory is what all controllers read: the local copies of the kinds that they reconcile, fed by one stream.
package inventory

import (
	"log/slog"

	"google.golang.org/grpc"

	appsv1 "dhow.dev/gen/go/dhow/apps/v1"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	discoveryv1 "dhow.dev/gen/go/dhow/discovery/v1"
	policyv1 "dhow.dev/gen/go/dhow/policy/v1"
	"dhow.dev/pkg/informer"
	"dhow.dev/pkg/object"
	"dhow.dev/services/controller-manager/internal/ownership"
	"dhow.dev/services/controller-manager/internal/podstate"
)

// Indexes of the stores.
const (
	// ByNamespace finds objects by their namespace: pods, replica sets, deployments, services, quotas, volume claims.
	ByNamespace = "namespace"
	// ByController finds objects by the UID of their controller: pods, replica sets.
	ByController = "controller"
	// Orphans finds objects without a controller by their namespace: pods, replica sets.
	Orphans = "orphans"
	// ByNode finds pods by the node that they are bound to, "" for those that are not.
	ByNode = "node"
	// Finished finds the pods that have ended, under the value "true".
	Finished = "finished"
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
	PodDisruptionBudgets   *informer.Store[*policyv1.PodDisruptionBudget]
	StatefulSets           *informer.Store[*appsv1.StatefulSet]
	ReplicationControllers *informer.Store[*corev1.ReplicationController]
	// PersistentVolumes are for their protection while they are used.
	PersistentVolumes *informer.Store[*corev1.PersistentVolume]
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
		}}),
		PodDisruptionBudgets: informer.Add(inf, informer.Options[*policyv1.PodDisruptionBudget]{Indexes: map[string]func(*policyv1.PodDisruptionBudget) []string{
			ByNamespace: namespace[*policyv1.PodDisruptionBudget],
		}}),
		StatefulSets:           informer.Add(inf, informer.Options[*appsv1.StatefulSet]{}),
		ReplicationControllers: informer.Add(inf, informer.Options[*corev1.ReplicationController]{}),
		PersistentVolumes:      informer.Add(inf, informer.Options[*corev1.PersistentVolume]{}),
		ServiceAccounts:        informer.Add(inf, informer.Options[*corev1.ServiceAccount]{FieldSelector: "metadata.name=" + DefaultServiceAccount}),
		ConfigMaps:             informer.Add(inf, informer.Options[*corev1.ConfigMap]{FieldSelector: "metadata.name=" + RootCAConfigMap}),
	}
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
