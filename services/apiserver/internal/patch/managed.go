package patch

import (
	stdjson "encoding/json"
	"fmt"
	"slices"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/json"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/client-go/applyconfigurations"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
	"sigs.k8s.io/yaml"

	"dhow.dev/pkg/resource"
	"dhow.dev/services/apiserver/internal/codec"
	"dhow.dev/services/apiserver/internal/conversion"
	"dhow.dev/services/apiserver/internal/strategy"
)

// Configuration is what a manager applies: a tree as JSON has it, with just the fields that the manager wants to own.
type Configuration struct {
	tree     *unstructured.Unstructured
	warnings []string
}

// Metadata returns the configuration's metadata as far as it is given.
func (c Configuration) Metadata() metav1.Object { return c.tree }

// Warnings are the unknown and duplicate fields of a configuration that was read leniently.
func (c Configuration) Warnings() []string { return c.warnings }

// ParseText reads a configuration of JSON or YAML. Errors are BadRequest.
func (p *Patcher) ParseText(res *resource.Resource, data []byte, validation codec.FieldValidation) (Configuration, error) {
	_, warnings, err := p.codec.DecodeText(res, data, validation)
	if err != nil {
		return Configuration{}, err
	}
	raw := data
	if !stdjson.Valid(data) {
		if raw, err = yaml.YAMLToJSON(data); err != nil {
			return Configuration{}, apierrors.NewBadRequest(fmt.Sprintf("error decoding YAML: %v", err))
		}
	}
	var tree map[string]any
	if err := json.Unmarshal(raw, &tree); err != nil {
		return Configuration{}, apierrors.NewBadRequest(fmt.Sprintf("error decoding YAML: %v", err))
	}
	return newConfiguration(res, tree, warnings), nil
}

func newConfiguration(res *resource.Resource, tree map[string]any, warnings []string) Configuration {
	u := &unstructured.Unstructured{Object: tree}
	u.SetGroupVersionKind(res.GroupVersionKind())
	// Clients of typed languages send a zero creation time; nobody can own it.
	unstructured.RemoveNestedField(tree, "metadata", "creationTimestamp")
	return Configuration{tree: u, warnings: warnings}
}

// Apply merges a configuration into live, which is empty (but for its name) when there is no object yet, and returns a new, defaulted object with its
// managedFields. A field of another manager is a Conflict with a cause per field, unless forced.
func (p *Patcher) Apply(res *resource.Resource, subresource string, live codec.Object, config Configuration, manager string, force bool) (codec.Object, error) {
	m, err := p.managers.get(res, subresource)
	if err != nil {
		return nil, err
	}
	current := live.DeepCopyObject().(codec.Object)
	codec.SetKind(res, current)
	applied, err := guarded(func() (runtime.Object, error) { return m.Apply(current, config.tree.DeepCopy(), manager, force) })
	if err != nil {
		if apierrors.ReasonForError(err) != metav1.StatusReasonUnknown {
			return nil, err
		}
		return nil, apierrors.NewBadRequest(err.Error())
	}
	obj, ok := applied.(codec.Object)
	if !ok {
		return nil, fmt.Errorf("apply to %s returned a %T", res, applied)
	}
	codec.ClearKind(obj)
	if len(obj.GetManagedFields()) == 0 {
		// A manager that owns nothing is not kept by the library. Without any, the next apply would take the object for one that was never applied, and
		// everything in it for somebody else's.
		now := metav1.Now()
		obj.SetManagedFields([]metav1.ManagedFieldsEntry{{
			Manager: manager, Operation: metav1.ManagedFieldsOperationApply, APIVersion: res.APIVersion(), Time: &now, Subresource: subresource,
			FieldsType: "FieldsV1", FieldsV1: &metav1.FieldsV1{Raw: []byte("{}")},
		}})
	}
	return obj, nil
}

// Track brings obj's managedFields up to date with the change from live, made by an update or a patch. Objects that were never applied are
// not tracked (docs/decisions/0004-managed-fields.md).
func (p *Patcher) Track(res *resource.Resource, subresource string, live, obj codec.Object, manager string) error {
	if len(live.GetManagedFields()) == 0 && len(obj.GetManagedFields()) == 0 {
		return nil
	}
	m, err := p.managers.get(res, subresource)
	if err != nil {
		return err
	}
	codec.SetKind(res, live)
	codec.SetKind(res, obj)
	defer codec.ClearKind(live)
	defer codec.ClearKind(obj)
	// The manager writes into obj; it never fails, but drops managedFields that it cannot understand.
	m.UpdateNoErrors(live, obj, manager)
	return nil
}

// SameManagers says whether two lists of managedFields differ in their times at most.
func SameManagers(a, b []metav1.ManagedFieldsEntry) bool {
	return slices.EqualFunc(a, b, func(x, y metav1.ManagedFieldsEntry) bool {
		return x.Manager == y.Manager && x.Operation == y.Operation && x.APIVersion == y.APIVersion && x.FieldsType == y.FieldsType &&
			x.Subresource == y.Subresource && (x.FieldsV1 == nil) == (y.FieldsV1 == nil) && (x.FieldsV1 == nil || slices.Equal(x.FieldsV1.Raw, y.FieldsV1.Raw))
	})
}

// managers makes the field managers, one per kind and subresource, when they are first needed: most clusters apply few kinds, and the schema of
// all of them takes some time to parse.
type managers struct {
	codec      *codec.Codec
	strategies *strategy.Set
	converter  func() managedfields.TypeConverter
	mu         sync.Mutex
	byKey      map[managerKey]*managedfields.FieldManager
}

type managerKey struct {
	resource    *resource.Resource
	subresource string
}

func newManagers(c *codec.Codec, strategies *strategy.Set) *managers {
	return &managers{
		codec: c, strategies: strategies, byKey: map[managerKey]*managedfields.FieldManager{},
		converter: sync.OnceValue(func() managedfields.TypeConverter { return applyconfigurations.NewTypeConverter(c.Scheme()) }),
	}
}

func (m *managers) get(res *resource.Resource, subresource string) (*managedfields.FieldManager, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	key := managerKey{res, subresource}
	if known := m.byKey[key]; known != nil {
		return known, nil
	}
	gvk := res.GroupVersionKind()
	kind := kindAdapter{codec: m.codec, resource: res}
	if res.Storage == nil {
		// Objects of another version are defaulted as what is stored.
		kind.strategy = m.strategies.For(res)
	}
	converter := m.converter()
	if res.Subresource != "" {
		// Kinds of subresources are not among those that the schema is about; their fields tell enough.
		converter = managedfields.NewDeducedTypeConverter()
	}
	made, err := managedfields.NewDefaultFieldManager(converter, kind, kind, kind, gvk, res.StoredAs().GroupVersionKind().GroupVersion(), subresource, resetFields(res, subresource))
	if err != nil {
		return nil, fmt.Errorf("field manager of %s: %w", res, err)
	}
	m.byKey[key] = made
	return made, nil
}

// resetFields are the fields that a write of the object or of a subresource cannot change, and so cannot own.
func resetFields(res *resource.Resource, subresource string) map[fieldpath.APIVersion]fieldpath.Filter {
	var excluded *fieldpath.Set
	switch {
	case subresource == "status":
		excluded = fieldpath.NewSet(fieldpath.MakePathOrDie("spec"))
		if strategy.StateOnly(res) {
			excluded.Insert(fieldpath.MakePathOrDie("metadata"))
		}
	case res.HasStatus:
		excluded = fieldpath.NewSet(fieldpath.MakePathOrDie("status"))
	default:
		return nil
	}
	filters := map[fieldpath.APIVersion]fieldpath.Filter{}
	for _, version := range versions(res) {
		filters[fieldpath.APIVersion(version.APIVersion())] = fieldpath.NewExcludeSetFilter(excluded)
	}
	return filters
}

// versions are all rows whose objects are the same as those of a row.
func versions(res *resource.Resource) []*resource.Resource {
	all := []*resource.Resource{res.StoredAs()}
	for _, r := range resource.All() {
		if r.Storage != nil && r.Storage == res.StoredAs() {
			all = append(all, r)
		}
	}
	if res.Subresource != "" {
		return []*resource.Resource{res}
	}
	return all
}

// kindAdapter is a kind, in all its versions, as the field manager wants to see it.
type kindAdapter struct {
	codec    *codec.Codec
	resource *resource.Resource
	strategy strategy.Strategy
}

// New returns an empty object.
func (k kindAdapter) New(gvk schema.GroupVersionKind) (runtime.Object, error) {
	for _, r := range versions(k.resource) {
		if r.GroupVersionKind() == gvk {
			o := k.codec.New(r)
			codec.SetKind(r, o)
			return o, nil
		}
	}
	return nil, runtime.NewNotRegisteredErrForKind("dhow", gvk)
}

// Default fills in the kind's defaults. Kinds of subresources and of versions that are not stored have no strategy here.
func (k kindAdapter) Default(o runtime.Object) {
	if k.strategy != nil {
		k.strategy.Default(o)
	}
}

// ConvertToVersion makes a struct of a tree, and converts between the kind's versions: managers may have applied different ones.
func (k kindAdapter) ConvertToVersion(in runtime.Object, target runtime.GroupVersioner) (runtime.Object, error) {
	all := versions(k.resource)
	kinds := make([]schema.GroupVersionKind, len(all))
	for i, r := range all {
		kinds[i] = r.GroupVersionKind()
	}
	wanted, _ := target.KindForGroupVersionKinds(kinds)
	index := slices.Index(kinds, wanted)
	if index < 0 {
		return nil, runtime.NewNotRegisteredGVKErrForTarget("dhow", k.resource.GroupVersionKind(), target)
	}
	to := all[index]
	if tree, ok := in.(*unstructured.Unstructured); ok {
		from := k.resource
		if i := slices.Index(kinds, tree.GroupVersionKind()); i >= 0 {
			from = all[i]
		}
		o := k.codec.New(from)
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(tree.Object, o); err != nil {
			return nil, apierrors.NewBadRequest(err.Error())
		}
		codec.SetKind(from, o)
		in = o
	}
	if len(all) == 1 || in.GetObjectKind().GroupVersionKind() == to.GroupVersionKind() {
		return in, nil
	}
	converted, err := conversion.Convert(in, to)
	if err != nil {
		return nil, err
	}
	codec.SetKind(to, converted.(codec.Object))
	return converted, nil
}

// Convert is not needed by the field manager.
func (k kindAdapter) Convert(in, out, _ any) error {
	return fmt.Errorf("convert %T to %T: not a way to convert %s", in, out, k.resource)
}

// ConvertFieldLabel is not needed by the field manager.
func (k kindAdapter) ConvertFieldLabel(gvk schema.GroupVersionKind, label, _ string) (string, string, error) {
	return "", "", fmt.Errorf("field label %q of %s: selectors are not read here", label, gvk)
}
