package admission

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// topologyLabels gives pods that are created on a node the labels that say where the node is. Pods that are bound later get them with the binding, which the
// registry writes itself: TopologyLabels has the rule for both.
type topologyLabels struct{}

func (topologyLabels) mutate(ctx context.Context, q *Request) error {
	pod, ok := q.Object.(*corev1.Pod)
	if !ok || !q.is("", "pods") || q.Operation != Create || pod.Spec.NodeName == "" {
		return nil
	}
	node, found, err := get[*corev1.Node](ctx, q.View, nodes, "", pod.Spec.NodeName)
	if err != nil || !found {
		return err
	}
	for key, value := range TopologyLabels(node.Labels) {
		if _, has := pod.Labels[key]; !has {
			metav1.SetMetaDataLabel(&pod.ObjectMeta, key, value)
		}
	}
	return nil
}

// TopologyLabels are those of a node's labels that its pods get as well.
func TopologyLabels(node map[string]string) map[string]string {
	labels := map[string]string{}
	for _, key := range []string{corev1.LabelTopologyZone, corev1.LabelTopologyRegion} {
		if value, ok := node[key]; ok {
			labels[key] = value
		}
	}
	return labels
}
