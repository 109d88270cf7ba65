// Package replicationcontroller keeps as many pods running as ReplicationControllers ask for. They are replica sets in an older form, and are treated as
// such.
package replicationcontroller

import (
	"context"

	"google.golang.org/protobuf/proto"

	appsv1 "dhow.dev/gen/go/dhow/apps/v1"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/informer"
	"dhow.dev/pkg/object"
	"dhow.dev/services/controller-manager/internal/inventory"
	"dhow.dev/services/controller-manager/internal/replicaset"
)

// New returns the controller, listening to the stores.
func New(cfg replicaset.Config) *replicaset.Controller {
	all := client.For[*corev1.ReplicationController](cfg.Conn)
	store := cfg.Stores.ReplicationControllers
	return replicaset.For(cfg, replicaset.Kind{
		Name: "replicationcontroller", Kind: "ReplicationController", Component: "replication-controller",
		OnChange: func(f func(old, new object.Object, cause *informer.Trace)) {
			store.OnChangeTraced(func(old, rc *corev1.ReplicationController, cause *informer.Trace) {
				if rc == nil {
					f(old, nil, cause)
					return
				}
				f(old, rc, cause)
			})
		},
		Get: func(namespace, name string) (replicaset.Set, bool) {
			rc, ok := store.Get(namespace, name)
			if !ok {
				return replicaset.Set{}, false
			}
			return setOf(rc), true
		},
		In: func(namespace string) []replicaset.Set {
			var sets []replicaset.Set
			for _, rc := range store.ByIndex(inventory.ByNamespace, namespace) {
				sets = append(sets, setOf(rc))
			}
			return sets
		},
		Live: func(ctx context.Context, namespace, name string) (object.Object, error) {
			return all.Get(ctx, namespace, name)
		},
		WriteStatus: func(ctx context.Context, owner object.Object, status *appsv1.ReplicaSetStatus) (object.Object, error) {
			wanted := statusOf(status)
			if rc := owner.(*corev1.ReplicationController); rc.HasStatus() && proto.Equal(rc.GetStatus(), wanted) {
				return rc, nil
			}
			rc := proto.Clone(owner).(*corev1.ReplicationController)
			rc.SetStatus(wanted)
			return all.UpdateStatus(ctx, rc)
		},
	})
}

// setOf returns the form of a replica set.
func setOf(rc *corev1.ReplicationController) replicaset.Set {
	from := rc.GetSpec()
	spec := appsv1.ReplicaSetSpec_builder{
		Replicas: proto.Int32(from.GetReplicas()), MinReadySeconds: proto.Int32(from.GetMinReadySeconds()), Template: from.GetTemplate(),
	}.Build()
	if len(from.GetSelector()) > 0 {
		spec.SetSelector(metav1.LabelSelector_builder{MatchLabels: from.GetSelector()}.Build())
	}
	set := appsv1.ReplicaSet_builder{Metadata: rc.GetMetadata(), Spec: spec}.Build()
	if rc.HasStatus() {
		s := rc.GetStatus()
		status := appsv1.ReplicaSetStatus_builder{
			Replicas: proto.Int32(s.GetReplicas()), FullyLabeledReplicas: proto.Int32(s.GetFullyLabeledReplicas()),
			ReadyReplicas: proto.Int32(s.GetReadyReplicas()), AvailableReplicas: proto.Int32(s.GetAvailableReplicas()),
			ObservedGeneration: proto.Int64(s.GetObservedGeneration()),
		}.Build()
		for _, c := range s.GetConditions() {
			status.SetConditions(append(status.GetConditions(), appsv1.ReplicaSetCondition_builder{
				Type: proto.String(c.GetType()), Status: proto.String(c.GetStatus()), LastTransitionTime: c.GetLastTransitionTime(),
				Reason: proto.String(c.GetReason()), Message: proto.String(c.GetMessage()),
			}.Build()))
		}
		set.SetStatus(status)
	}
	return replicaset.Set{ReplicaSet: set, Owner: rc}
}

// statusOf is the way back. A replication controller does not tell of pods that are about to go.
func statusOf(s *appsv1.ReplicaSetStatus) *corev1.ReplicationControllerStatus {
	status := corev1.ReplicationControllerStatus_builder{
		Replicas: proto.Int32(s.GetReplicas()), FullyLabeledReplicas: proto.Int32(s.GetFullyLabeledReplicas()),
		ReadyReplicas: proto.Int32(s.GetReadyReplicas()), AvailableReplicas: proto.Int32(s.GetAvailableReplicas()),
		ObservedGeneration: proto.Int64(s.GetObservedGeneration()),
	}.Build()
	for _, c := range s.GetConditions() {
		status.SetConditions(append(status.GetConditions(), corev1.ReplicationControllerCondition_builder{
			Type: proto.String(c.GetType()), Status: proto.String(c.GetStatus()), LastTransitionTime: c.GetLastTransitionTime(),
			Reason: proto.String(c.GetReason()), Message: proto.String(c.GetMessage()),
		}.Build()))
	}
	return status
}
