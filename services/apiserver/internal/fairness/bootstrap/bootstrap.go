// Package bootstrap keeps Kubernetes' default FlowSchemas and PriorityLevelConfigurations in the cluster.
package bootstrap

import (
	"context"

	"golang.org/x/sync/errgroup"
	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"dhow.dev/pkg/resource"
	"dhow.dev/services/apiserver/internal/authorizer/defaults"
	"dhow.dev/services/apiserver/internal/fairness"
)

const autoUpdate = "apf.kubernetes.io/autoupdate-spec"

// Reconcile makes the default objects that are missing, and brings those back to their defaults whose annotation apf.kubernetes.io/autoupdate-spec is "true",
// and the two mandatory ones always. The identity of ctx must be allowed to write them.
func Reconcile(ctx context.Context, k defaults.Keeper) error {
	flowSchemas := resource.Lookup(flowcontrolv1.GroupName, "flowschemas")
	priorityLevels := resource.Lookup(flowcontrolv1.GroupName, "prioritylevelconfigurations")
	if flowSchemas == nil || priorityLevels == nil {
		return nil
	}
	var tasks errgroup.Group
	for _, l := range fairness.Levels() {
		tasks.Go(func() error {
			return defaults.Ensure(ctx, k, priorityLevels, l, func(existing *flowcontrolv1.PriorityLevelConfiguration) defaults.Verdict {
				return merge(&existing.ObjectMeta, &existing.Spec, l.Spec)
			})
		})
	}
	for _, s := range fairness.Schemas() {
		tasks.Go(func() error {
			return defaults.Ensure(ctx, k, flowSchemas, s, func(existing *flowcontrolv1.FlowSchema) defaults.Verdict {
				return merge(&existing.ObjectMeta, &existing.Spec, s.Spec)
			})
		})
	}
	return tasks.Wait()
}

// merge brings a spec back to its default, if it is kept so.
func merge[Spec any](m *metav1.ObjectMeta, spec *Spec, wanted Spec) defaults.Verdict {
	mandatory := m.Name == flowcontrolv1.FlowSchemaNameExempt || m.Name == flowcontrolv1.FlowSchemaNameCatchAll
	if !mandatory && m.Annotations[autoUpdate] != "true" || equality.Semantic.DeepEqual(*spec, wanted) {
		return defaults.Leave
	}
	*spec = wanted
	return defaults.Write
}
