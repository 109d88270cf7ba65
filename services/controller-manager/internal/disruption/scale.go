package disruption

import (
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/runtime/schema"

	appsv1 "dhow.dev/gen/go/dhow/apps/v1"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/object"
	"dhow.dev/pkg/resource"
)

// scaler finds who decides how many pods a controller has, which is not always the controller itself, and how many that are. The UID is empty when there is
// nobody.
type scaler func(namespace string, controller *metav1.OwnerReference) (uid string, replicas int32, err error)

// reader is a local copy of a kind.
type reader[T object.Object] interface {
	Get(namespace, name string) (T, bool)
}

// owners are the kinds that have pods and a scale.
type owners struct {
	replicaSets            reader[*appsv1.ReplicaSet]
	deployments            reader[*appsv1.Deployment]
	statefulSets           reader[*appsv1.StatefulSet]
	replicationControllers reader[*corev1.ReplicationController]
}

// scale is a scaler.
func (o owners) scale(namespace string, controller *metav1.OwnerReference) (uid string, replicas int32, err error) {
	group, err := schema.ParseGroupVersion(controller.GetApiVersion())
	if err != nil {
		return "", 0, fmt.Errorf("apiVersion of the controller %s: %w", controller.GetName(), err)
	}
	switch kind := group.WithKind(controller.GetKind()).GroupKind(); kind {
	case schema.GroupKind{Group: "apps", Kind: "ReplicaSet"}:
		rs, ok := find(o.replicaSets, namespace, controller)
		if !ok {
			return "", 0, nil
		}
		if above := object.ControllerOf(rs); above.GetKind() == "Deployment" && strings.HasPrefix(above.GetApiVersion(), "apps/") {
			return o.scale(namespace, above)
		}
		return controller.GetUid(), rs.GetSpec().GetReplicas(), nil
	case schema.GroupKind{Group: "apps", Kind: "Deployment"}:
		return scaleOf(o.deployments, namespace, controller, func(d *appsv1.Deployment) int32 { return d.GetSpec().GetReplicas() })
	case schema.GroupKind{Group: "apps", Kind: "StatefulSet"}:
		return scaleOf(o.statefulSets, namespace, controller, func(s *appsv1.StatefulSet) int32 { return s.GetSpec().GetReplicas() })
	case schema.GroupKind{Kind: "ReplicationController"}:
		return scaleOf(o.replicationControllers, namespace, controller, func(r *corev1.ReplicationController) int32 { return r.GetSpec().GetReplicas() })
	default:
		if res := resource.ByKind(kind.Group, kind.Kind); res != nil {
			return "", 0, fmt.Errorf("%s does not implement the scale subresource", res.GroupResource())
		}
		return "", 0, nil
	}
}

// find returns the controller itself, and not another one of its name.
func find[T object.Object](all reader[T], namespace string, controller *metav1.OwnerReference) (T, bool) {
	o, ok := all.Get(namespace, controller.GetName())
	return o, ok && o.GetMetadata().GetUid() == controller.GetUid()
}

func scaleOf[T object.Object](all reader[T], namespace string, controller *metav1.OwnerReference, replicas func(T) int32) (string, int32, error) {
	o, ok := find(all, namespace, controller)
	if !ok {
		return "", 0, nil
	}
	return controller.GetUid(), replicas(o), nil
}
