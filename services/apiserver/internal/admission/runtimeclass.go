package admission

import (
	"context"
	"slices"

	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"

	"dhow.dev/pkg/resource"
)

var runtimeClasses = resource.Lookup("node.k8s.io", "runtimeclasses")

// runtimeClass gives pods what the runtime that they ask for costs, and the nodes that have it.
type runtimeClass struct{}

func (runtimeClass) mutate(ctx context.Context, q *Request) error {
	pod, ok := q.Object.(*corev1.Pod)
	if !ok || !q.is("", "pods") || q.Operation != Create || pod.Spec.RuntimeClassName == nil {
		return nil
	}
	class, found, err := get[*nodev1.RuntimeClass](ctx, q.View, runtimeClasses, "", *pod.Spec.RuntimeClassName)
	if err != nil {
		return err
	}
	if !found {
		return q.forbidden("pod rejected: RuntimeClass %q not found", *pod.Spec.RuntimeClassName)
	}
	if class.Overhead != nil && pod.Spec.Overhead == nil {
		pod.Spec.Overhead = class.Overhead.PodFixed.DeepCopy()
	}
	if class.Scheduling == nil {
		return nil
	}
	for key, value := range class.Scheduling.NodeSelector {
		if was, ok := pod.Spec.NodeSelector[key]; ok && was != value {
			return q.forbidden("conflict: runtimeClass.scheduling.nodeSelector[%s] = %s; pod.spec.nodeSelector[%s] = %s", key, value, key, was)
		}
		if pod.Spec.NodeSelector == nil {
			pod.Spec.NodeSelector = map[string]string{}
		}
		pod.Spec.NodeSelector[key] = value
	}
	for _, t := range class.Scheduling.Tolerations {
		if !slices.ContainsFunc(pod.Spec.Tolerations, func(have corev1.Toleration) bool { return apiequality.Semantic.DeepEqual(have, t) }) {
			pod.Spec.Tolerations = append(pod.Spec.Tolerations, t)
		}
	}
	return nil
}

func (runtimeClass) validate(ctx context.Context, q *Request) error {
	pod, ok := q.Object.(*corev1.Pod)
	if !ok || !q.is("", "pods") || q.Operation != Create {
		return nil
	}
	var overhead *nodev1.Overhead
	if pod.Spec.RuntimeClassName != nil {
		class, found, err := get[*nodev1.RuntimeClass](ctx, q.View, runtimeClasses, "", *pod.Spec.RuntimeClassName)
		if err != nil {
			return err
		}
		if found {
			overhead = class.Overhead
		}
	}
	switch {
	case overhead == nil && len(pod.Spec.Overhead) > 0:
		return q.forbidden("pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead")
	case overhead != nil && !apiequality.Semantic.DeepEqual(overhead.PodFixed, pod.Spec.Overhead):
		return q.forbidden("pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead")
	}
	return nil
}
