package bootstrap

import (
	"context"
	"fmt"
	"log/slog"

	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"dhow.dev/pkg/resource"
	"dhow.dev/pkg/telemetry/logkey"
	"dhow.dev/services/apiserver/internal/authorizer/defaults"
	"dhow.dev/services/apiserver/internal/authorizer/mirror"
	"dhow.dev/services/apiserver/internal/registry"
)

// Conditions keeps the condition Dangling of the FlowSchemas true: whether the level that one refers to is missing. All API servers do so, and write the same.
type Conditions struct {
	Cache  mirror.Cache
	Keeper defaults.Keeper
	// Now is the clock.
	Now    func() metav1.Time
	Logger *slog.Logger
}

// Run works until ctx ends, whose identity must be allowed to write the status.
func (c Conditions) Run(ctx context.Context) error {
	flowSchemas := resource.Lookup(flowcontrolv1.GroupName, "flowschemas")
	priorityLevels := resource.Lookup(flowcontrolv1.GroupName, "prioritylevelconfigurations")
	if flowSchemas == nil || priorityLevels == nil {
		<-ctx.Done()
		return nil
	}
	return mirror.Follow(ctx, c.Cache, []*resource.Resource{flowSchemas, priorityLevels}, c.Logger, func([]*resource.Resource) {
		levels := map[string]bool{}
		for _, e := range mirror.Entries(c.Cache, priorityLevels) {
			levels[e.Name] = true
		}
		for _, e := range mirror.Entries(c.Cache, flowSchemas) {
			schema := &flowcontrolv1.FlowSchema{}
			if err := schema.Unmarshal(e.Encoded()); err != nil {
				c.Logger.ErrorContext(ctx, "flow schema cannot be decoded", logkey.Name(e.Name), logkey.Err(err))
				continue
			}
			if !c.set(schema, levels[schema.Spec.PriorityLevelConfiguration.Name]) {
				continue
			}
			// A conflict means that it has changed: that change calls this again.
			if err := c.write(ctx, flowSchemas, schema); err != nil && !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) && ctx.Err() == nil {
				c.Logger.WarnContext(ctx, "status of flow schema not written", logkey.Name(e.Name), logkey.Err(err))
			}
		}
	})
}

func (c Conditions) write(ctx context.Context, r *resource.Resource, schema *flowcontrolv1.FlowSchema) error {
	data, err := schema.Marshal()
	if err != nil {
		return err
	}
	_, err = c.Keeper.Registry.Update(ctx, r, registry.Input{Data: data}, registry.WriteOptions{FieldManager: "dhow-apiserver", Subresource: "status"})
	return err
}

// set brings the condition up to date and says whether it was not.
func (c Conditions) set(schema *flowcontrolv1.FlowSchema, exists bool) bool {
	name := schema.Spec.PriorityLevelConfiguration.Name
	wanted := flowcontrolv1.FlowSchemaCondition{
		Type: flowcontrolv1.FlowSchemaConditionDangling, Status: flowcontrolv1.ConditionFalse, Reason: "Found",
		Message: fmt.Sprintf("This FlowSchema references the PriorityLevelConfiguration object named %q and it exists", name),
	}
	if !exists {
		wanted.Status, wanted.Reason = flowcontrolv1.ConditionTrue, "NotFound"
		wanted.Message = fmt.Sprintf("This FlowSchema references the PriorityLevelConfiguration object named %q but there is no such object", name)
	}
	for i := range schema.Status.Conditions {
		known := &schema.Status.Conditions[i]
		if known.Type != wanted.Type {
			continue
		}
		if known.Status == wanted.Status && known.Reason == wanted.Reason && known.Message == wanted.Message {
			return false
		}
		if wanted.LastTransitionTime = known.LastTransitionTime; known.Status != wanted.Status {
			wanted.LastTransitionTime = c.Now()
		}
		*known = wanted
		return true
	}
	wanted.LastTransitionTime = c.Now()
	schema.Status.Conditions = append(schema.Status.Conditions, wanted)
	return true
}
