package registry

import (
	"context"

	"k8s.io/apimachinery/pkg/util/validation/field"

	"dhow.dev/pkg/resource"
	"dhow.dev/services/apiserver/internal/codec"
	"dhow.dev/services/apiserver/internal/conversion"
	"dhow.dev/services/apiserver/internal/patch"
)

// Objects of a kind that is stored as another version are written as that one: what comes in is read in the caller's version and converted at once, patches and
// configurations are applied to the caller's view of the object, and the answer is converted back. Everything between knows the stored version alone.

// stored makes the operation one on the row whose objects are stored.
func (op Operation) stored() Operation {
	if storage := op.Resource.StoredAs(); storage != op.Resource {
		op.view, op.Resource = op.Resource, storage
	}
	return op
}

// shown is the row in whose version the caller writes.
func (op Operation) shown() *resource.Resource {
	if op.view != nil {
		return op.view
	}
	return op.Resource
}

// answered is a step whose answer is in the caller's version.
func (op Operation) answered(s step) step {
	if op.view == nil {
		return s
	}
	return func(ctx context.Context, tx *txn) (*outcome, error) {
		o, err := s(ctx, tx)
		if err != nil {
			return nil, err
		}
		o.result.Object, err = conversion.Encoded(o.result.Object, op.Resource, op.view)
		return o, err
	}
}

// take reads the operation's input as an object of the stored version.
func (r *Registry) take(ctx context.Context, op Operation) (codec.Object, []string, error) {
	obj, warnings, err := r.decode(ctx, op.shown(), op.Input, op.Options.FieldValidation)
	if err != nil || op.view == nil {
		return obj, warnings, err
	}
	obj, err = convert(obj, op.Resource)
	return obj, warnings, err
}

// patched applies the operation's patch to the caller's view of the object.
func (r *Registry) patched(op Operation, old codec.Object) (codec.Object, []string, error) {
	if op.view == nil {
		return r.patches.Patch(op.Resource, old, op.Patch.Type, op.Patch.Data, op.Options.FieldValidation)
	}
	seen, err := convert(old, op.view)
	if err != nil {
		return nil, nil, err
	}
	obj, warnings, err := r.patches.Patch(op.view, seen, op.Patch.Type, op.Patch.Data, op.Options.FieldValidation)
	if err != nil {
		return nil, nil, err
	}
	obj, err = convert(obj, op.Resource)
	return obj, warnings, err
}

// applied merges a configuration into the caller's view of the object.
func (r *Registry) applied(op Operation, subresource string, old codec.Object, config patch.Configuration) (codec.Object, error) {
	if op.view == nil {
		return r.patches.Apply(op.Resource, subresource, old, config, op.Options.FieldManager, op.Options.Force)
	}
	seen, err := convert(old, op.view)
	if err != nil {
		return nil, err
	}
	obj, err := r.patches.Apply(op.view, subresource, seen, config, op.Options.FieldManager, op.Options.Force)
	if err != nil {
		return nil, err
	}
	return convert(obj, op.Resource)
}

// heldTo says what is wrong with an object by the rules that the caller's API group has beyond those of the stored kind's. Old is nil for a new object.
func (r *Registry) heldTo(view *resource.Resource, obj, old codec.Object) field.ErrorList {
	if view == nil || view.Group == view.Storage.Group {
		return nil
	}
	next, err := convert(obj, view)
	if err != nil {
		return field.ErrorList{field.InternalError(nil, err)}
	}
	s := r.strategies.For(view)
	if old == nil {
		return s.Validate(next)
	}
	before, err := convert(old, view)
	if err != nil {
		return field.ErrorList{field.InternalError(nil, err)}
	}
	return s.ValidateUpdate(next, before)
}

// convert returns an object as one of another version.
func convert(obj codec.Object, to *resource.Resource) (codec.Object, error) {
	out, err := conversion.Convert(obj, to)
	if err != nil {
		return nil, err
	}
	return out.(codec.Object), nil
}
