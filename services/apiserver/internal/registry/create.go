package registry

import (
	"context"
	"fmt"

	"go.opentelemetry.io/otel/trace"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	utilrand "k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"dhow.dev/pkg/resource"
	"dhow.dev/pkg/telemetry"
	"dhow.dev/services/apiserver/internal/admission"
	"dhow.dev/services/apiserver/internal/codec"
	"dhow.dev/services/apiserver/internal/strategy"
)

const (
	// suffixLength and maxGeneratedBase make generated names DNS labels, as Kubernetes' do: 58 characters and 5 random ones.
	suffixLength      = 5
	maxGeneratedBase  = 63 - suffixLength
	maxGenerateTrials = 8
)

// birth is what a new object keeps over all attempts to write it, so that an attempt whose outcome is not known can be recognized.
type birth struct {
	uid  types.UID
	name string
}

func (r *Registry) createStep(op Operation) step {
	born := &birth{uid: uuid.NewUUID()}
	return func(ctx context.Context, tx *txn) (*outcome, error) {
		if op.Options.Subresource != "" {
			return nil, noSubresource(op.Resource, op.Options.Subresource)
		}
		if err := checkManager("CreateOptions", op.Options, false); err != nil {
			return nil, err
		}
		obj, warnings, err := r.take(ctx, op)
		if err != nil {
			return nil, err
		}
		if obj.GetResourceVersion() != "" {
			return nil, apierrors.NewBadRequest("resourceVersion should not be set on objects to be created")
		}
		obj.SetManagedFields(nil)
		if op.Options.FieldManager != "" {
			// Whose name is known will apply the object some day, or meet somebody who does. Controllers, which give none, do not pay for it.
			absorb(obj)
			if err := r.patches.Begin(op.Resource, obj, op.Options.FieldManager); err != nil {
				return nil, err
			}
		}
		if errs := r.heldTo(op.view, obj, nil); len(errs) > 0 {
			return nil, invalid(op.Resource, obj, errs)
		}
		return r.create(ctx, tx, op.Resource, obj, warnings, born)
	}
}

// create plans a new object.
func (r *Registry) create(ctx context.Context, tx *txn, res *resource.Resource, obj codec.Object, warnings []string, born *birth) (*outcome, error) {
	s := r.strategies.For(res)
	obj.SetUID(born.uid)
	obj.SetCreationTimestamp(metav1.NewTime(r.now().Truncate(0)).Rfc3339Copy())
	existing, taken, err := tx.nameAndProbe(res, obj, born)
	if err != nil {
		return nil, err
	}

	r.timed(ctx, "default", func() {
		absorb(obj)
		s.Default(obj)
	})
	// What admission looks up lies in the namespace: that there is none is the better answer.
	if res.Namespaced && obj.GetNamespace() != "" {
		if err := tx.requireNamespace(ctx, res, obj); err != nil {
			return nil, err
		}
	}
	q := tx.request(admission.Create, res, "", obj, nil)
	if err := r.mutate(ctx, q); err != nil {
		return nil, err
	}
	r.timed(ctx, "prepare", func() {
		strategy.PrepareForCreate(res, obj)
		s.PrepareForCreate(obj)
		warnings = append(warnings, s.Drop(obj, nil)...)
		if a := r.allocators[res.GroupResource()]; a != nil {
			a.Prepare(obj, nil)
		}
	})
	if err := r.admit(ctx, s, obj, nil); err != nil {
		return nil, err
	}
	var errs field.ErrorList
	r.timed(ctx, "validate", func() {
		errs = append(strategy.ValidateMeta(res, obj), s.Validate(obj)...)
	})
	if len(errs) > 0 {
		return nil, invalid(res, obj, errs)
	}
	if taken {
		return r.alreadyThere(tx, res, existing, obj)
	}
	key := Key(res, obj.GetNamespace(), obj.GetName())
	if isNamespace(res) {
		tx.openNamespace(obj)
	}
	if err := r.allocate(ctx, tx, res, obj, nil); err != nil {
		return nil, err
	}
	if err := r.admitted(ctx, q); err != nil {
		return nil, err
	}
	warnings = append(append(warnings, s.Warnings(obj, nil)...), q.Warnings...)
	data, err := r.codec.EncodeProto(obj)
	if err != nil {
		return nil, err
	}
	if err := tx.put(res, key, data); err != nil {
		return nil, err
	}
	return &outcome{key: key, result: Result{Object: data, Warnings: warnings, Created: true}}, nil
}

// nameAndProbe gives the object its generated name and looks whether the name is taken.
func (tx *txn) nameAndProbe(res *resource.Resource, obj codec.Object, born *birth) (Entry, bool, error) {
	if obj.GetName() != "" || obj.GetGenerateName() == "" {
		return tx.probe(res, obj.GetNamespace(), obj.GetName())
	}
	for range maxGenerateTrials {
		if born.name == "" {
			born.name = generated(obj.GetGenerateName())
		}
		obj.SetName(born.name)
		entry, taken, err := tx.probe(res, obj.GetNamespace(), born.name)
		if err != nil || !taken {
			return entry, taken, err
		}
		if mine, err := tx.isMine(res, entry, obj); err != nil || mine {
			return entry, taken, err
		}
		// The name belongs to another object: the plan does not rest on it.
		key := Key(res, obj.GetNamespace(), born.name)
		delete(tx.reads, key)
		delete(tx.unconfirmed, key)
		born.name = ""
	}
	return Entry{}, false, apierrors.NewGenerateNameConflict(res.GroupResource(), obj.GetName(), 1)
}

// isMine says whether the object that has the name is the one of this call, written by an attempt that was not answered.
func (tx *txn) isMine(res *resource.Resource, entry Entry, obj codec.Object) (bool, error) {
	if !tx.uncertain() {
		return false, nil
	}
	current, err := tx.registry.codec.DecodeProto(res, entry.Object)
	if err != nil {
		return false, err
	}
	return current.GetUID() == obj.GetUID(), nil
}

// alreadyThere answers a create whose name is taken.
func (r *Registry) alreadyThere(tx *txn, res *resource.Resource, entry Entry, obj codec.Object) (*outcome, error) {
	mine, err := tx.isMine(res, entry, obj)
	if err != nil {
		return nil, err
	}
	if mine {
		return &outcome{key: Key(res, obj.GetNamespace(), obj.GetName()), result: Result{Object: entry.Object, Revision: entry.Revision, Created: true}}, nil
	}
	return nil, apierrors.NewAlreadyExists(res.GroupResource(), obj.GetName())
}

func generated(base string) string {
	if len(base) > maxGeneratedBase {
		base = base[:maxGeneratedBase]
	}
	return base + utilrand.String(suffixLength)
}

var namespaces = resource.Lookup("", "namespaces")

func isNamespace(res *resource.Resource) bool { return res == namespaces }

// openNamespace lets objects be created in a new namespace, in this commit already.
func (tx *txn) openNamespace(ns codec.Object) {
	key := namespaceClaim(ns.GetName())
	op := claimOf(key, []byte(ns.GetUID()))
	tx.write(key, op)
}

// requireNamespace makes the commit depend on the object's namespace being open.
func (tx *txn) requireNamespace(ctx context.Context, res *resource.Resource, obj codec.Object) error {
	name := obj.GetNamespace()
	claim := namespaceClaim(name)
	open, known := tx.Known(claim)
	if !known || open {
		if tx.writes[claim] == nil {
			tx.claims[claim] = exists
			// A refusal may be owed to the namespace's absence.
			tx.unconfirmed[claim] = !known
		}
		return nil
	}
	// It is closed. The cache may be too old to say whether it ends or never was.
	key := Key(namespaces, "", name)
	if tx.writes[claim] == nil {
		if _, err := tx.registry.fetch(ctx, tx.known, []string{key}); err != nil {
			return err
		}
		if !tx.known[key].HasValue() {
			return apierrors.NewNotFound(namespaces.GroupResource(), name)
		}
	}
	return terminating(res, obj)
}

// terminating is Kubernetes' answer to a create in a namespace that is being deleted.
func terminating(res *resource.Resource, obj codec.Object) error {
	err := apierrors.NewForbidden(res.GroupResource(), obj.GetName(),
		fmt.Errorf("unable to create new content in namespace %s because it is being terminated", obj.GetNamespace()))
	err.ErrStatus.Details.Causes = append(err.ErrStatus.Details.Causes, metav1.StatusCause{
		Type:    corev1.NamespaceTerminatingCause,
		Message: fmt.Sprintf("namespace %s is being terminated", obj.GetNamespace()),
		Field:   "metadata.namespace",
	})
	return err
}

// absorb moves fields that exist for writers alone to where they are kept.
func absorb(obj codec.Object) {
	secret, ok := obj.(*corev1.Secret)
	if !ok || len(secret.StringData) == 0 {
		return
	}
	if secret.Data == nil {
		secret.Data = make(map[string][]byte, len(secret.StringData))
	}
	for key, value := range secret.StringData {
		secret.Data[key] = []byte(value)
	}
	secret.StringData = nil
}

// decode reads an input object and holds it to the request's path.
func (r *Registry) decode(ctx context.Context, res *resource.Resource, in Input, validation codec.FieldValidation) (codec.Object, []string, error) {
	var obj codec.Object
	var warnings []string
	var err error
	r.timed(ctx, "decode", func() {
		if in.Text {
			obj, warnings, err = r.codec.DecodeText(res, in.Data, validation)
		} else if obj, err = r.codec.DecodeProto(res, in.Data); err != nil {
			err = apierrors.NewBadRequest(err.Error())
		}
	})
	if err != nil {
		return nil, nil, err
	}
	if err := placed(res, obj, in.Namespace, in.Name); err != nil {
		return nil, nil, err
	}
	return obj, warnings, nil
}

// placed holds an object's name and namespace to those of the request's path, and takes them from there when the object has none.
func placed(res *resource.Resource, obj metav1.Object, namespace, name string) error {
	if res.Namespaced && namespace != "" {
		if obj.GetNamespace() == "" {
			obj.SetNamespace(namespace)
		}
		if obj.GetNamespace() != namespace {
			return apierrors.NewBadRequest(fmt.Sprintf("the namespace of the provided object does not match the namespace sent on the request (%s != %s)", obj.GetNamespace(), namespace))
		}
	}
	if name != "" {
		if obj.GetName() == "" {
			obj.SetName(name)
		}
		if obj.GetName() != name {
			return apierrors.NewBadRequest(fmt.Sprintf("the name of the object (%s) does not match the name on the URL (%s)", obj.GetName(), name))
		}
	}
	return nil
}

// admit runs the kind's own admission.
func (r *Registry) admit(ctx context.Context, s strategy.Strategy, obj, old codec.Object) error {
	a, ok := s.(strategy.Admitter)
	if !ok {
		return nil
	}
	ctx, span := r.span(ctx, "admit")
	defer span.End()
	// A nil codec.Object in a runtime.Object would not be nil.
	var before runtime.Object
	if old != nil {
		before = old
	}
	return a.Admit(ctx, obj, before)
}

// allocate lets the kind's allocator claim and release. Nil objects stand for none.
func (r *Registry) allocate(ctx context.Context, tx *txn, res *resource.Resource, obj, old codec.Object) error {
	a := r.allocators[res.GroupResource()]
	if a == nil {
		return nil
	}
	ctx, span := r.span(ctx, "allocate")
	defer span.End()
	var next, before runtime.Object
	if obj != nil {
		next = obj
	}
	if old != nil {
		before = old
	}
	if errs := a.Allocate(ctx, tx, next, before); len(errs) > 0 {
		named := obj
		if named == nil {
			named = old
		}
		return invalid(res, named, errs)
	}
	return nil
}

// timed runs f in a span.
func (r *Registry) timed(ctx context.Context, name string, f func()) {
	_, span := r.span(ctx, name)
	defer span.End()
	f()
}

// span starts a span of a step of a write.
func (r *Registry) span(ctx context.Context, name string) (context.Context, trace.Span) {
	return telemetry.Step(ctx, r.tracer, "registry.", name)
}

func invalid(res *resource.Resource, obj codec.Object, errs field.ErrorList) error {
	name := obj.GetName()
	if name == "" {
		name = obj.GetGenerateName()
	}
	return apierrors.NewInvalid(res.GroupVersionKind().GroupKind(), name, errs)
}
