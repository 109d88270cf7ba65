package registry

import (
	"context"
	"errors"
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"

	"dhow.dev/pkg/resource"
	"dhow.dev/services/apiserver/internal/codec"
	"dhow.dev/services/apiserver/internal/patch"
)

// scales describes the kind that the subresource `scale` takes and gives.
var scales = &resource.Resource{Group: autoscalingv1.GroupName, Version: "v1", Kind: "Scale", Plural: "scale", Namespaced: true, Subresource: subresourceScale}

// IsScalable says whether a kind has the subresource `scale`.
func IsScalable(res *resource.Resource) bool { return checkSubresource(res, subresourceScale) == nil }

// Scale returns how many instances an object wants and has, from the object as it is stored.
func (r *Registry) Scale(res *resource.Resource, object []byte, revision int64) (*autoscalingv1.Scale, error) {
	if !IsScalable(res) {
		return nil, noSubresource(res, subresourceScale)
	}
	o, err := r.codec.DecodeProto(res, object)
	if err != nil {
		return nil, err
	}
	o.SetResourceVersion(version(revision))
	return scaleOf(res, o)
}

// replicated is what a scalable object says of its instances.
type replicated struct {
	wanted  **int32
	has     int32
	matches string
}

func replicas(res *resource.Resource, o codec.Object) (replicated, error) {
	var selector *metav1.LabelSelector
	var all replicated
	switch o := o.(type) {
	case *appsv1.Deployment:
		all, selector = replicated{wanted: &o.Spec.Replicas, has: o.Status.Replicas}, o.Spec.Selector
	case *appsv1.ReplicaSet:
		all, selector = replicated{wanted: &o.Spec.Replicas, has: o.Status.Replicas}, o.Spec.Selector
	case *appsv1.StatefulSet:
		all, selector = replicated{wanted: &o.Spec.Replicas, has: o.Status.Replicas}, o.Spec.Selector
	case *corev1.ReplicationController:
		return replicated{wanted: &o.Spec.Replicas, has: o.Status.Replicas, matches: labels.SelectorFromSet(o.Spec.Selector).String()}, nil
	default:
		return all, noSubresource(res, subresourceScale)
	}
	matcher, err := metav1.LabelSelectorAsSelector(selector)
	if err != nil {
		return all, fmt.Errorf("the selector of %s %s/%s: %w", res, o.GetNamespace(), o.GetName(), err)
	}
	all.matches = matcher.String()
	return all, nil
}

func scaleOf(res *resource.Resource, o codec.Object) (*autoscalingv1.Scale, error) {
	of, err := replicas(res, o)
	if err != nil {
		return nil, err
	}
	scale := &autoscalingv1.Scale{
		ObjectMeta: metav1.ObjectMeta{
			Name: o.GetName(), Namespace: o.GetNamespace(), UID: o.GetUID(), ResourceVersion: o.GetResourceVersion(), CreationTimestamp: o.GetCreationTimestamp(),
		},
		Status: autoscalingv1.ScaleStatus{Replicas: of.has, Selector: of.matches},
	}
	if *of.wanted != nil {
		scale.Spec.Replicas = **of.wanted
	}
	return scale, nil
}

// scaleStep plans a write of a scale: of the replicas of the object behind it, and of nothing else.
func (r *Registry) scaleStep(op Operation) step {
	res := op.Resource
	return func(ctx context.Context, tx *txn) (*outcome, error) {
		if err := checkSubresource(res, subresourceScale); err != nil {
			return nil, err
		}
		isApply := op.Action == ActionApply || op.Action == ActionPatch && op.Patch.Type == patch.Apply
		if err := checkManager("PatchOptions", op.Options, isApply); err != nil {
			return nil, err
		}
		if op.Options.Force && !isApply {
			return nil, invalidOptions("PatchOptions", field.Forbidden(field.NewPath("force"), "may not be specified for non-apply patch"))
		}
		write := r.scaleWrite(op, isApply)
		namespace, name, err := write.names(ctx)
		if err != nil {
			return nil, err
		}
		entry, old, err := r.current(ctx, tx, res, namespace, name)
		if err != nil {
			return nil, err
		}
		if o := tx.done(Key(res, namespace, name), entry, nil); o != nil {
			return r.scaleOutcome(res, o)
		}
		old.SetResourceVersion(version(entry.Revision))
		obj, warnings, err := r.rescale(res, old, write, r.manager(ctx, op.Options))
		if err != nil {
			return nil, err
		}
		o, err := r.update(ctx, tx, change{resource: res, options: op.Options, entry: entry, old: old, obj: obj, warnings: warnings, tracked: true})
		if err != nil {
			return nil, err
		}
		return r.scaleOutcome(res, o)
	}
}

// scaleWrite is the three ways to write a scale. Names says of which object; change makes the new scale, with managedFields if the old one has any.
type scaleWrite struct {
	names  func(ctx context.Context) (namespace, name string, err error)
	change func(old *autoscalingv1.Scale, manager string) (codec.Object, []string, error)
}

func (r *Registry) scaleWrite(op Operation, isApply bool) scaleWrite {
	if op.Action == ActionPatch && isApply {
		op.Input = Input{Namespace: op.Patch.Namespace, Name: op.Patch.Name, Data: op.Patch.Data, Text: true}
	}
	tracked := func(old *autoscalingv1.Scale, obj codec.Object, manager string) error {
		return r.patches.Track(scales, subresourceScale, old, obj, manager)
	}
	switch {
	case isApply:
		config, err := patch.Configuration{}, error(nil)
		return scaleWrite{
			names: func(ctx context.Context) (string, string, error) {
				scaled := op
				scaled.Resource = scales
				if config, err = r.configuration(ctx, scaled); err != nil {
					return "", "", err
				}
				return config.Metadata().GetNamespace(), config.Metadata().GetName(), nil
			},
			change: func(old *autoscalingv1.Scale, _ string) (codec.Object, []string, error) {
				obj, err := r.patches.Apply(scales, subresourceScale, old, config, op.Options.FieldManager, op.Options.Force)
				return obj, config.Warnings(), err
			},
		}
	case op.Action == ActionPatch:
		return scaleWrite{
			names: func(context.Context) (string, string, error) { return op.Patch.Namespace, op.Patch.Name, nil },
			change: func(old *autoscalingv1.Scale, manager string) (codec.Object, []string, error) {
				obj, warnings, err := r.patches.Patch(scales, old, op.Patch.Type, op.Patch.Data, op.Options.FieldValidation)
				if err != nil {
					return nil, nil, err
				}
				if err := placed(scales, obj, op.Patch.Namespace, op.Patch.Name); err != nil {
					return nil, nil, err
				}
				return obj, warnings, tracked(old, obj, manager)
			},
		}
	default:
		var obj codec.Object
		var warnings []string
		return scaleWrite{
			names: func(ctx context.Context) (string, string, error) {
				var err error
				if obj, warnings, err = r.decode(ctx, scales, op.Input, op.Options.FieldValidation); err != nil {
					return "", "", err
				}
				return obj.GetNamespace(), obj.GetName(), nil
			},
			change: func(old *autoscalingv1.Scale, manager string) (codec.Object, []string, error) {
				return obj, warnings, tracked(old, obj, manager)
			},
		}
	}
}

// rescale returns the object with the replicas that the write asks for, and with the fields of its scale owned by who set them.
func (r *Registry) rescale(res *resource.Resource, old codec.Object, write scaleWrite, manager string) (codec.Object, []string, error) {
	scale, err := scaleOf(res, old)
	if err != nil {
		return nil, nil, err
	}
	owners := managedfields.NewScaleHandler(old.GetManagedFields(), res.GroupVersionKind().GroupVersion(),
		managedfields.ResourcePathMappings{res.APIVersion(): fieldpath.MakePathOrDie("spec", "replicas")})
	fields, err := owners.ToSubresource()
	if err != nil {
		return nil, nil, fmt.Errorf("managedFields of %s %s/%s: %w", res, old.GetNamespace(), old.GetName(), err)
	}
	scale.SetManagedFields(fields)
	changed, warnings, err := write.change(scale, manager)
	if err != nil {
		return nil, nil, err
	}
	next, ok := changed.(*autoscalingv1.Scale)
	if !ok {
		return nil, nil, fmt.Errorf("the scale is a %T", changed)
	}
	if next.Spec.Replicas < 0 {
		return nil, nil, apierrors.NewInvalid(scales.GroupVersionKind().GroupKind(), next.Name,
			field.ErrorList{field.Invalid(field.NewPath("spec", "replicas"), next.Spec.Replicas, "must be greater than or equal to 0")})
	}
	if v := next.ResourceVersion; v != "" && v != "0" && v != old.GetResourceVersion() {
		return nil, nil, apierrors.NewConflict(res.GroupResource(), old.GetName(), errors.New(modified))
	}
	obj := old.DeepCopyObject().(codec.Object)
	of, err := replicas(res, obj)
	if err != nil {
		return nil, nil, err
	}
	wanted := next.Spec.Replicas
	*of.wanted = &wanted
	obj.SetUID(next.UID)
	parents, err := owners.ToParent(next.ManagedFields)
	if err != nil {
		return nil, nil, fmt.Errorf("managedFields of %s %s/%s: %w", res, old.GetNamespace(), old.GetName(), err)
	}
	obj.SetManagedFields(parents)
	return obj, warnings, nil
}

// scaleOutcome turns the outcome of the object's write into that of its scale's.
func (r *Registry) scaleOutcome(res *resource.Resource, o *outcome) (*outcome, error) {
	obj, err := r.codec.DecodeProto(res, o.result.Object)
	if err != nil {
		return nil, err
	}
	scale, err := scaleOf(res, obj)
	if err != nil {
		return nil, err
	}
	o.result.Object, err = r.codec.EncodeProto(scale)
	return o, err
}
