// Package strategy holds what is particular to each kind when it is written: its defaults, what is set for the user, and what is valid.
//
// The registry applies the rules that all kinds share (metadata, status apart from spec, generation) by itself, with the functions of this
// package's meta.go; a kind's Strategy adds to them and must not repeat them. A kind without rules of its own has the Generic strategy.
package strategy

import (
	"context"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"dhow.dev/pkg/resource"
	"dhow.dev/services/apiserver/internal/fieldtable"
)

// Strategy is the rules of one kind. Objects are pointers to the kind's struct of k8s.io/api. Methods must be safe for concurrent use, must
// not keep the objects, and must not change old.
type Strategy interface {
	// Default fills in what the user left out, for every write (create, update, patch, apply).
	Default(obj runtime.Object)
	// PrepareForCreate sets what the user may not choose. Status has been emptied before (not that of nodes).
	PrepareForCreate(obj runtime.Object)
	// Validate says what is wrong with a new object's content; metadata has been looked at.
	Validate(obj runtime.Object) field.ErrorList
	// PrepareForUpdate sets what the user may not change. Status has been taken from old before.
	PrepareForUpdate(obj, old runtime.Object)
	// ValidateUpdate says what is wrong with an object's new content, and with the change.
	ValidateUpdate(obj, old runtime.Object) field.ErrorList
	// PrepareForStatusUpdate is PrepareForUpdate for writes of the status; all but status and managedFields has been taken from old before.
	PrepareForStatusUpdate(obj, old runtime.Object)
	// ValidateStatusUpdate says what is wrong with the new status.
	ValidateStatusUpdate(obj, old runtime.Object) field.ErrorList
	// Warnings tells the user what was accepted but should be known. Old is nil on create.
	Warnings(obj, old runtime.Object) []string
}

// Written is the rules of one kind with what the table of fields adds to them.
type Written interface {
	Strategy
	// Drop takes from an object what Kubernetes has behind gates that are closed by default, and returns what the user is told of it. It runs for creations
	// and updates of the whole object, after what else changes it. Old is nil on create.
	Drop(obj, old runtime.Object) []string
}

// Admitter is implemented by strategies whose rules look at other objects or answer with other errors than field errors. Admit runs after
// PrepareForCreate or PrepareForUpdate and before validation; it may change obj. Old is nil on create. Errors are API errors.
type Admitter interface {
	Admit(ctx context.Context, obj, old runtime.Object) error
}

// Config is what the strategies need to know of the cluster.
type Config struct {
	// TolerationSeconds is how long pods stay on a node that is not ready or not reachable, when they do not say it. Kubernetes: 300.
	TolerationSeconds int64
	// Lookup finds other objects for admission, such as priority classes. Nil finds nothing.
	Lookup Lookup
}

// Lookup reads other objects as the API server has them cached.
type Lookup interface {
	// Get decodes the object into obj, and returns false when there is none.
	Get(res *resource.Resource, namespace, name string, obj runtime.Object) (bool, error)
	// List calls visit with each object of the kind until visit returns false.
	List(res *resource.Resource, namespace string, visit func(runtime.Object) bool) error
}

// Set is the strategies of all kinds.
type Set struct {
	byKind map[schema.GroupKind]Written
}

// New returns the strategies of all kinds of the resource table that are written.
func New(cfg Config) *Set {
	s := &Set{byKind: map[schema.GroupKind]Written{}}
	special := kinds(cfg)
	for _, res := range resource.All() {
		// Nothing of a virtual kind is written, and objects of another version are written as those of the preferred one.
		if res.Virtual || resource.Lookup(res.Group, res.Plural) != res {
			continue
		}
		gk := res.GroupVersionKind().GroupKind()
		kind := special[gk]
		if kind == nil {
			kind = Generic{}
		}
		s.byKind[gk] = warn(kind, fieldtable.NewWarner(res))
	}
	return s
}

// warned adds to a kind's warnings those of the table of fields.
type warned struct {
	Strategy
	warner *fieldtable.Warner
}

// warnedAdmitter is a warned strategy with an admission of its own.
type warnedAdmitter struct {
	warned
	Admitter
}

func warn(s Strategy, warner *fieldtable.Warner) Written {
	w := warned{Strategy: s, warner: warner}
	if a, ok := s.(Admitter); ok {
		return warnedAdmitter{warned: w, Admitter: a}
	}
	return w
}

// Warnings names what is set and has no effect yet.
func (w warned) Warnings(obj, old runtime.Object) []string {
	return append(w.warner.Warnings(obj), w.Strategy.Warnings(obj, old)...)
}

// Drop takes away what is off by default in Kubernetes.
func (w warned) Drop(obj, old runtime.Object) []string { return w.warner.Drop(obj, old) }

// For returns the rules of a kind of the resource table: not of a virtual one, nor of one that is written in another version.
func (s *Set) For(res *resource.Resource) Written {
	return s.byKind[res.GroupVersionKind().GroupKind()]
}

// Generic adds nothing to what all kinds share. Strategies embed it and override what their kind has.
type Generic struct{}

// Default fills in nothing.
func (Generic) Default(runtime.Object) {}

// PrepareForCreate sets nothing.
func (Generic) PrepareForCreate(runtime.Object) {}

// Validate accepts all content.
func (Generic) Validate(runtime.Object) field.ErrorList { return nil }

// PrepareForUpdate sets nothing.
func (Generic) PrepareForUpdate(runtime.Object, runtime.Object) {}

// ValidateUpdate accepts all changes.
func (Generic) ValidateUpdate(runtime.Object, runtime.Object) field.ErrorList { return nil }

// PrepareForStatusUpdate sets nothing.
func (Generic) PrepareForStatusUpdate(runtime.Object, runtime.Object) {}

// ValidateStatusUpdate accepts all statuses.
func (Generic) ValidateStatusUpdate(runtime.Object, runtime.Object) field.ErrorList { return nil }

// Warnings has nothing to tell.
func (Generic) Warnings(runtime.Object, runtime.Object) []string { return nil }
