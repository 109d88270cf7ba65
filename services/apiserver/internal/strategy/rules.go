package strategy

import (
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// rules is a strategy that is put together from functions over the kind's own struct. A rule that is nil has nothing to say.
type rules[T runtime.Object] struct {
	defaults      func(T)
	create        func(T)
	validate      func(T) field.ErrorList
	update        func(obj, old T)
	validateNext  func(obj, old T) field.ErrorList
	status        func(obj, old T)
	validateState func(obj, old T) field.ErrorList
}

// Default fills in what the user left out.
func (r rules[T]) Default(obj runtime.Object) {
	if r.defaults != nil {
		r.defaults(obj.(T))
	}
}

// PrepareForCreate sets what the user may not choose.
func (r rules[T]) PrepareForCreate(obj runtime.Object) {
	if r.create != nil {
		r.create(obj.(T))
	}
}

// Validate says what is wrong with a new object.
func (r rules[T]) Validate(obj runtime.Object) field.ErrorList {
	if r.validate == nil {
		return nil
	}
	return r.validate(obj.(T))
}

// PrepareForUpdate sets what the user may not change.
func (r rules[T]) PrepareForUpdate(obj, old runtime.Object) {
	if r.update != nil {
		r.update(obj.(T), old.(T))
	}
}

// ValidateUpdate says what is wrong with a change. A kind without rules for changes has those for new objects.
func (r rules[T]) ValidateUpdate(obj, old runtime.Object) field.ErrorList {
	if r.validateNext == nil {
		return r.Validate(obj)
	}
	return r.validateNext(obj.(T), old.(T))
}

// PrepareForStatusUpdate sets what a writer of the status may not change.
func (r rules[T]) PrepareForStatusUpdate(obj, old runtime.Object) {
	if r.status != nil {
		r.status(obj.(T), old.(T))
	}
}

// ValidateStatusUpdate says what is wrong with a status.
func (r rules[T]) ValidateStatusUpdate(obj, old runtime.Object) field.ErrorList {
	if r.validateState == nil {
		return nil
	}
	return r.validateState(obj.(T), old.(T))
}

// Warnings has nothing to tell by itself: New adds the table of fields.
func (r rules[T]) Warnings(runtime.Object, runtime.Object) []string { return nil }
