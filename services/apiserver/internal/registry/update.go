package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"unicode"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/resource"
	"dhow.dev/services/apiserver/internal/admission"
	"dhow.dev/services/apiserver/internal/codec"
	"dhow.dev/services/apiserver/internal/patch"
	"dhow.dev/services/apiserver/internal/strategy"
)

const (
	modified = "the object has been modified; please apply your changes to the latest version and try again"
	// maxManager is Kubernetes' limit on the length of a field manager.
	maxManager = 128
)

// createdByUpdate are the kinds of which an update creates what is not there, those whose strategies AllowCreateOnUpdate in Kubernetes.
var createdByUpdate = map[schema.GroupResource]bool{
	{Resource: "endpoints"}: true, {Resource: "events"}: true, {Resource: "limitranges"}: true, {Resource: "services"}: true,
	{Group: "coordination.k8s.io", Resource: "leases"}: true, {Group: "node.k8s.io", Resource: "runtimeclasses"}: true,
	{Group: "rbac.authorization.k8s.io", Resource: "clusterroles"}: true, {Group: "rbac.authorization.k8s.io", Resource: "clusterrolebindings"}: true,
	{Group: "rbac.authorization.k8s.io", Resource: "roles"}: true, {Group: "rbac.authorization.k8s.io", Resource: "rolebindings"}: true,
}

func (r *Registry) updateStep(op Operation) step {
	born := &birth{uid: uuid.NewUUID()}
	creates := createdByUpdate[op.Resource.GroupResource()] && op.Options.Subresource == ""
	return func(ctx context.Context, tx *txn) (*outcome, error) {
		if err := checkSubresource(op.Resource, op.Options.Subresource); err != nil {
			return nil, err
		}
		obj, warnings, err := r.take(ctx, op)
		if err != nil {
			return nil, err
		}
		if err := checkManager("UpdateOptions", op.Options, false); err != nil {
			return nil, err
		}
		entry, old, err := r.current(ctx, tx, op.Resource, obj.GetNamespace(), obj.GetName())
		if creates && apierrors.IsNotFound(err) {
			return r.updateNew(ctx, tx, op, obj, warnings, born)
		}
		if err != nil {
			return nil, err
		}
		if o := tx.done(Key(op.Resource, obj.GetNamespace(), obj.GetName()), entry, warnings); o != nil {
			return o, nil
		}
		return r.update(ctx, tx, change{resource: op.Resource, view: op.view, options: op.Options, entry: entry, old: old, obj: obj, warnings: warnings})
	}
}

// updateNew creates the object that an update is of.
func (r *Registry) updateNew(ctx context.Context, tx *txn, op Operation, obj codec.Object, warnings []string, born *birth) (*outcome, error) {
	res := op.Resource
	if uid := obj.GetUID(); uid != "" {
		return nil, apierrors.NewConflict(res.GroupResource(), obj.GetName(),
			fmt.Errorf("Precondition failed: UID in precondition: %v, UID in object meta: ", uid)) //nolint:staticcheck // Kubernetes' words
	}
	// Who names a version means the object that he has read.
	if v := obj.GetResourceVersion(); v != "" && v != "0" {
		return nil, apierrors.NewConflict(res.GroupResource(), obj.GetName(), errors.New(modified))
	}
	obj.SetResourceVersion("")
	obj.SetManagedFields(nil)
	if op.Options.FieldManager != "" {
		absorb(obj)
		if err := r.patches.Begin(res, obj, op.Options.FieldManager); err != nil {
			return nil, err
		}
	}
	return r.createMissing(ctx, tx, op, obj, warnings, born)
}

// createMissing creates what an update or apply did not find.
func (r *Registry) createMissing(ctx context.Context, tx *txn, op Operation, obj codec.Object, warnings []string, born *birth) (*outcome, error) {
	if op.Options.MayCreate != nil {
		if err := op.Options.MayCreate(ctx); err != nil {
			return nil, err
		}
	}
	if errs := r.heldTo(op.view, obj, nil); len(errs) > 0 {
		return nil, invalid(op.Resource, obj, errs)
	}
	delete(tx.reads, Key(op.Resource, obj.GetNamespace(), obj.GetName())) // create reads it again
	return r.create(ctx, tx, op.Resource, obj, warnings, born)
}

func (r *Registry) patchStep(op Operation) step {
	if op.Patch.Type == patch.Apply {
		op.Input = Input{Namespace: op.Patch.Namespace, Name: op.Patch.Name, Data: op.Patch.Data, Text: true}
		return r.applyStep(op)
	}
	return func(ctx context.Context, tx *txn) (*outcome, error) {
		if err := checkSubresource(op.Resource, op.Options.Subresource); err != nil {
			return nil, err
		}
		if op.Options.Force {
			return nil, invalidOptions("PatchOptions", field.Forbidden(field.NewPath("force"), "may not be specified for non-apply patch"))
		}
		if err := checkManager("PatchOptions", op.Options, false); err != nil {
			return nil, err
		}
		entry, old, err := r.current(ctx, tx, op.Resource, op.Patch.Namespace, op.Patch.Name)
		if err != nil {
			return nil, err
		}
		if o := tx.done(Key(op.Resource, op.Patch.Namespace, op.Patch.Name), entry, nil); o != nil {
			return o, nil
		}
		old.SetResourceVersion(version(entry.Revision))
		obj, warnings, err := r.patched(op, old)
		if err != nil {
			return nil, err
		}
		if err := placed(op.Resource, obj, op.Patch.Namespace, op.Patch.Name); err != nil {
			return nil, err
		}
		return r.update(ctx, tx, change{resource: op.Resource, view: op.view, options: op.Options, entry: entry, old: old, obj: obj, warnings: warnings})
	}
}

func (r *Registry) applyStep(op Operation) step {
	born := &birth{uid: uuid.NewUUID()}
	res, options := op.Resource, op.Options
	return func(ctx context.Context, tx *txn) (*outcome, error) {
		if err := checkSubresource(res, options.Subresource); err != nil {
			return nil, err
		}
		if err := checkManager("PatchOptions", options, true); err != nil {
			return nil, err
		}
		config, err := r.configuration(ctx, op)
		if err != nil {
			return nil, err
		}
		meta := config.Metadata()
		if meta.GetName() == "" {
			return nil, apierrors.NewInvalid(res.GroupVersionKind().GroupKind(), "", field.ErrorList{field.Required(field.NewPath("metadata", "name"), "apply needs the object's name")})
		}
		if !res.Namespaced && meta.GetNamespace() != "" {
			return nil, notNamespaced(res, meta.GetName())
		}
		entry, found, err := tx.read(ctx, res, meta.GetNamespace(), meta.GetName())
		if err != nil {
			return nil, err
		}
		if o := tx.done(Key(res, meta.GetNamespace(), meta.GetName()), entry, config.Warnings()); found && o != nil {
			return o, nil
		}
		if !found {
			if options.Subresource != "" {
				return nil, apierrors.NewNotFound(res.GroupResource(), meta.GetName())
			}
			if meta.GetUID() != "" {
				return nil, apierrors.NewConflict(res.GroupResource(), meta.GetName(),
					fmt.Errorf("uid mismatch: the provided object specified uid %s, and no existing object was found", meta.GetUID()))
			}
			return r.applyNew(ctx, tx, op, config, born)
		}
		old, err := r.codec.DecodeProto(res, entry.Object)
		if err != nil {
			return nil, err
		}
		old.SetResourceVersion(version(entry.Revision))
		if meta.GetResourceVersion() != "" && meta.GetResourceVersion() != old.GetResourceVersion() {
			return nil, apierrors.NewConflict(res.GroupResource(), old.GetName(), errors.New(modified))
		}
		obj, err := r.applied(op, options.Subresource, old, config)
		if err != nil {
			return nil, err
		}
		return r.update(ctx, tx, change{resource: res, view: op.view, options: options, entry: entry, old: old, obj: obj, warnings: config.Warnings(), tracked: true})
	}
}

// applyNew creates the object that is applied first.
func (r *Registry) applyNew(ctx context.Context, tx *txn, op Operation, config patch.Configuration, born *birth) (*outcome, error) {
	res := op.Resource
	obj, err := r.applied(op, "", r.codec.New(res), config)
	if err != nil {
		return nil, err
	}
	if obj.GetResourceVersion() != "" {
		return nil, apierrors.NewConflict(res.GroupResource(), obj.GetName(), errors.New("the configuration has a resourceVersion, and no existing object was found"))
	}
	return r.createMissing(ctx, tx, op, obj, config.Warnings(), born)
}

func (r *Registry) configuration(ctx context.Context, op Operation) (patch.Configuration, error) {
	var config patch.Configuration
	var err error
	r.timed(ctx, "decode", func() {
		if op.Input.Text {
			config, err = r.patches.ParseText(op.shown(), op.Input.Data, op.Options.FieldValidation)
		} else {
			config, err = r.patches.ParseProto(op.shown(), op.Input.Data)
		}
	})
	if err != nil {
		return config, err
	}
	return config, placed(op.Resource, config.Metadata(), op.Input.Namespace, op.Input.Name)
}

// current reads and decodes the object that is to be changed.
func (r *Registry) current(ctx context.Context, tx *txn, res *resource.Resource, namespace, name string) (Entry, codec.Object, error) {
	if name == "" {
		return Entry{}, nil, apierrors.NewInvalid(res.GroupVersionKind().GroupKind(), "", field.ErrorList{field.Required(field.NewPath("metadata", "name"), "")})
	}
	if res.Namespaced && namespace == "" {
		return Entry{}, nil, apierrors.NewInvalid(res.GroupVersionKind().GroupKind(), name, field.ErrorList{field.Required(field.NewPath("metadata", "namespace"), "")})
	}
	if !res.Namespaced && namespace != "" {
		return Entry{}, nil, notNamespaced(res, name)
	}
	entry, found, err := tx.read(ctx, res, namespace, name)
	if err != nil {
		return Entry{}, nil, err
	}
	if !found {
		return Entry{}, nil, apierrors.NewNotFound(res.GroupResource(), name)
	}
	old, err := r.codec.DecodeProto(res, entry.Object)
	return entry, old, err
}

func notNamespaced(res *resource.Resource, name string) error {
	return apierrors.NewInvalid(res.GroupVersionKind().GroupKind(), name, field.ErrorList{field.Forbidden(field.NewPath("metadata", "namespace"), "not allowed on this type")})
}

// change is a new state of an object and the one before.
type change struct {
	resource *resource.Resource
	// view is the row that the caller named, when that is another.
	view     *resource.Resource
	options  WriteOptions
	entry    Entry
	old, obj codec.Object
	warnings []string
	// tracked says that managedFields are up to date with the change.
	tracked bool
}

// update plans a changed object, or its end when nothing holds it any more.
func (r *Registry) update(ctx context.Context, tx *txn, c change) (*outcome, error) {
	res, old, obj := c.resource, c.old, c.obj
	s := r.strategies.For(res)
	key := Key(res, old.GetNamespace(), old.GetName())
	old.SetResourceVersion(version(c.entry.Revision))
	// Kubernetes reads 0 as no condition, like none.
	if v := obj.GetResourceVersion(); v != "" && v != "0" && v != old.GetResourceVersion() {
		return nil, apierrors.NewConflict(res.GroupResource(), old.GetName(), errors.New(modified))
	}
	obj.SetResourceVersion(old.GetResourceVersion())
	if uid := obj.GetUID(); uid != "" && uid != old.GetUID() {
		return nil, lasting(apierrors.NewConflict(res.GroupResource(), old.GetName(),
			fmt.Errorf("Precondition failed: UID in precondition: %v, UID in object meta: %v", uid, old.GetUID()))) //nolint:staticcheck // Kubernetes' words
	}
	obj, err := r.prepareUpdate(ctx, s, c)
	if err != nil {
		return nil, err
	}
	q := tx.request(admission.Update, res, c.options.Subresource, obj, old)
	if err := r.mutate(ctx, q); err != nil {
		return nil, err
	}
	warnings := c.warnings
	if c.options.Subresource == "" {
		warnings = append(warnings, s.Drop(obj, old)...)
	}
	var errs field.ErrorList
	r.timed(ctx, "validate", func() {
		errs = append(strategy.ValidateMetaUpdate(res, obj, old), validateUpdate(s, c.options.Subresource, obj, old)...)
		if c.options.Subresource == "" {
			errs = append(errs, r.heldTo(c.view, obj, old)...)
		}
	})
	if len(errs) > 0 {
		return nil, invalid(res, obj, errs)
	}
	if changesSpec(c.options.Subresource) {
		strategy.BumpGeneration(res, obj, old)
	}
	if err := r.admitted(ctx, q); err != nil {
		return nil, err
	}
	warnings = append(warnings, q.Warnings...)
	if changesSpec(c.options.Subresource) {
		warnings = append(warnings, s.Warnings(obj, old)...)
	}
	if isOver(obj) {
		return r.remove(ctx, tx, res, obj, old, warnings)
	}
	if changesSpec(c.options.Subresource) {
		if err := r.allocate(ctx, tx, res, obj, old); err != nil {
			return nil, err
		}
	}
	data, err := r.encodeChange(obj, old, c.entry.Object)
	if err != nil {
		return nil, err
	}
	result := Result{Object: data, Revision: c.entry.Revision, Warnings: warnings}
	if bytes.Equal(data, c.entry.Object) {
		return &outcome{key: key, result: result}, nil
	}
	return &outcome{key: key, result: result}, tx.put(res, key, data)
}

// prepareUpdate completes the new state: defaults, field ownership, and what this kind of write may not change.
func (r *Registry) prepareUpdate(ctx context.Context, s strategy.Strategy, c change) (codec.Object, error) {
	res, old, obj := c.resource, c.old, c.obj
	_, span := r.span(ctx, "default")
	defer span.End()
	absorb(obj)
	s.Default(obj)
	if c.options.Subresource == subresourceStatus || c.options.Subresource == subresourceApproval {
		strategy.KeepMetadata(res, obj, old, !c.options.Metadata)
	}
	if !c.tracked {
		if err := r.patches.Track(res, c.options.Subresource, old, obj, r.manager(ctx, c.options)); err != nil {
			return nil, err
		}
	}
	switch c.options.Subresource {
	case subresourceStatus:
		obj = strategy.PrepareForStatusUpdate(obj, old)
		s.PrepareForStatusUpdate(obj, old)
		return obj, nil
	case subresourceFinalize:
		next := old.DeepCopyObject().(*corev1.Namespace)
		next.Spec.Finalizers = obj.(*corev1.Namespace).Spec.Finalizers
		return next, nil
	case subresourceEphemeral:
		next := keep(old, obj).(*corev1.Pod)
		next.Spec.EphemeralContainers = obj.(*corev1.Pod).Spec.EphemeralContainers
		return next, nil
	case subresourceResize:
		next := keep(old, obj).(*corev1.Pod)
		resize(next, obj.(*corev1.Pod))
		return next, nil
	case subresourceApproval:
		next := strategy.WithMetadata(obj, old).(*certificatesv1.CertificateSigningRequest)
		r.approve(next, obj.(*certificatesv1.CertificateSigningRequest))
		return next, nil
	}
	strategy.PrepareForUpdate(res, obj, old)
	if a := r.allocators[res.GroupResource()]; a != nil {
		a.Prepare(obj, old)
	}
	s.PrepareForUpdate(obj, old)
	return obj, r.admit(ctx, s, obj, old)
}

// encodeChange encodes a new state. When it differs from the stored bytes by nothing but the times of managedFields, it is the stored bytes: a
// write that changes nothing writes nothing.
func (r *Registry) encodeChange(obj, old codec.Object, stored []byte) ([]byte, error) {
	data, err := r.codec.EncodeProto(obj)
	if err != nil || bytes.Equal(data, stored) {
		return data, err
	}
	fields := obj.GetManagedFields()
	if len(fields) == 0 || !patch.SameManagers(fields, old.GetManagedFields()) {
		return data, nil
	}
	obj.SetManagedFields(old.GetManagedFields())
	quiet, err := r.codec.EncodeProto(obj)
	obj.SetManagedFields(fields)
	if err != nil {
		return nil, err
	}
	if bytes.Equal(quiet, stored) {
		return quiet, nil
	}
	return data, nil
}

// manager is who owns the fields of a write whose caller did not say.
func (r *Registry) manager(ctx context.Context, options WriteOptions) string {
	if options.FieldManager != "" {
		return options.FieldManager
	}
	if caller, ok := identity.FromContext(ctx); ok {
		return caller.Name
	}
	return "unknown"
}

func noSubresource(res *resource.Resource, subresource string) error {
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusNotFound, Reason: metav1.StatusReasonNotFound,
		Message: fmt.Sprintf("the server could not find the requested resource: %s has no subresource %q for this method", res, subresource),
		Details: &metav1.StatusDetails{Group: res.Group, Kind: res.Plural},
	}}
}

// checkManager holds the field manager to Kubernetes' rules.
func checkManager(kind string, options WriteOptions, apply bool) error {
	path, manager := field.NewPath("fieldManager"), options.FieldManager
	switch {
	case manager == "" && apply:
		return invalidOptions(kind, field.Required(path, "is required for apply patch"))
	case len(manager) > maxManager:
		return invalidOptions(kind, field.TooLong(path, "", maxManager))
	case slices.ContainsFunc([]rune(manager), func(c rune) bool { return !unicode.IsPrint(c) }):
		return invalidOptions(kind, field.Invalid(path, manager, "should only contain printable characters"))
	}
	return nil
}

func invalidOptions(kind string, err *field.Error) error {
	return apierrors.NewInvalid(schema.GroupKind{Group: metav1.GroupName, Kind: kind}, "", field.ErrorList{err})
}
