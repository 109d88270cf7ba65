package restapi

import (
	"context"
	"fmt"
	"mime"
	"net/http"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"dhow.dev/pkg/identity"
	"dhow.dev/services/apiserver/internal/cache"
	"dhow.dev/services/apiserver/internal/codec"
	"dhow.dev/services/apiserver/internal/patch"
	"dhow.dev/services/apiserver/internal/registry"
	"dhow.dev/services/apiserver/internal/request"
	"dhow.dev/services/apiserver/internal/respond"
)

func (d *Door) create(w http.ResponseWriter, r *http.Request, info *request.Info) {
	if info.Name != "" {
		respond.Error(w, r, NotAllowed())
		return
	}
	if info.Kind.Namespaced && info.Namespace == "" {
		respond.Error(w, r, apierrors.NewBadRequest("an empty namespace may not be set during creation"))
		return
	}
	d.write(w, r, info, createOptions, func(in registry.Input, options registry.WriteOptions) (registry.Result, error) {
		return d.config.Registry.Create(r.Context(), info.Kind.StoredAs(), in, options)
	})
}

func (d *Door) update(w http.ResponseWriter, r *http.Request, info *request.Info) {
	d.write(w, r, info, updateOptions, func(in registry.Input, options registry.WriteOptions) (registry.Result, error) {
		return d.config.Registry.Update(r.Context(), info.Kind.StoredAs(), in, options)
	})
}

// write is what create and update share: a body that is an object, and an answer that is one.
func (d *Door) write(w http.ResponseWriter, r *http.Request, info *request.Info,
	options func(*http.Request, *request.Info) (registry.WriteOptions, error), commit func(registry.Input, registry.WriteOptions) (registry.Result, error),
) {
	p, err := d.rendering(r, info, asTable, asMetadata)
	if err != nil {
		respond.Error(w, r, err)
		return
	}
	o, err := options(r, info)
	if err != nil {
		respond.Error(w, r, err)
		return
	}
	in, warnings, err := d.input(r, info, o.FieldValidation)
	if err != nil {
		respond.Error(w, r, err)
		return
	}
	result, err := commit(in, o)
	p.result(w, r, result, warnings, err)
}

// input reads the object of a request's body, as the kind that is stored.
func (d *Door) input(r *http.Request, info *request.Info, validation codec.FieldValidation) (registry.Input, []string, error) {
	in := registry.Input{Namespace: namespaceOf(info), Name: info.Name}
	data, media, err := respond.Body(r)
	if err != nil {
		return in, nil, err
	}
	if len(data) == 0 {
		return in, nil, apierrors.NewBadRequest("the body is empty: it must hold the object")
	}
	in.Data, in.Text = data, media != respond.Protobuf
	if !in.Text {
		raw, kind, err := respond.Unwrap(data)
		if err != nil {
			return in, nil, err
		}
		if want := info.Kind.GroupVersionKind(); !kind.Empty() && kind != want {
			return in, nil, apierrors.NewBadRequest(fmt.Sprintf("the kind in the data (%s) does not match the expected kind (%s)", kind, want))
		}
		in.Data = raw
	}
	if info.Kind.Storage == nil {
		return in, nil, nil
	}
	var o codec.Object
	var warnings []string
	if in.Text {
		o, warnings, err = d.config.Codec.DecodeText(info.Kind, in.Data, validation)
	} else {
		o, err = d.config.Codec.DecodeProto(info.Kind, in.Data)
	}
	if err != nil {
		return in, nil, err
	}
	in.Data, err = d.stored(o, info)
	in.Text = false
	return in, warnings, err
}

// stored encodes an object of another version as the kind that is stored.
func (d *Door) stored(o runtime.Object, info *request.Info) ([]byte, error) {
	converted, err := d.convert(o, info.Kind.Storage)
	if err != nil {
		return nil, err
	}
	object, ok := converted.(codec.Object)
	if !ok {
		return nil, fmt.Errorf("%T cannot be encoded", converted)
	}
	// Unlike the stored form, that of a request says which version the caller has seen.
	return object.Marshal()
}

// result writes the answer to a write.
func (p *rendering) result(w http.ResponseWriter, r *http.Request, result registry.Result, warnings []string, err error) {
	for _, text := range warnings {
		respond.Warn(w, text)
	}
	for _, text := range result.Warnings {
		respond.Warn(w, text)
	}
	if err != nil {
		respond.Error(w, r, err)
		return
	}
	code := http.StatusOK
	if result.Created {
		code = http.StatusCreated
	}
	p.one(w, r, code, p.written(result))
}

// written is the version that a write has made.
func (p *rendering) written(result registry.Result) version {
	data := result.Object
	if result.Revision != 0 {
		data = cache.WithRevision(result.Object, result.Revision).Bytes()
	}
	return fresh{resource: p.stored, data: data}
}

// patchTypes are the formats of patches by their content type.
var patchTypes = map[types.PatchType]patch.Type{
	types.JSONPatchType: patch.JSON, types.MergePatchType: patch.Merge, types.StrategicMergePatchType: patch.StrategicMerge, types.ApplyYAMLPatchType: patch.Apply,
}

func (d *Door) patch(w http.ResponseWriter, r *http.Request, info *request.Info) {
	p, err := d.rendering(r, info, asTable, asMetadata)
	if err != nil {
		respond.Error(w, r, err)
		return
	}
	name, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	format, known := patchTypes[types.PatchType(name)]
	if !known {
		respond.Error(w, r, respond.Unsupported(string(types.JSONPatchType), string(types.MergePatchType), string(types.StrategicMergePatchType), string(types.ApplyYAMLPatchType)))
		return
	}
	options, err := patchOptions(r, info, types.PatchType(name))
	if err != nil {
		respond.Error(w, r, err)
		return
	}
	data, err := respond.Read(r)
	if err == nil {
		err = respond.CheckDepth(data)
	}
	if err == nil && format == patch.Apply {
		err = d.mayCreate(r.Context(), info)
	}
	if err != nil {
		respond.Error(w, r, err)
		return
	}
	if info.Kind.Storage != nil {
		d.patchVersion(w, r, info, p, format, data, options)
		return
	}
	in := registry.PatchInput{Namespace: namespaceOf(info), Name: info.Name, Type: format, Data: data}
	result, err := d.config.Registry.Patch(r.Context(), info.Kind, in, options)
	p.result(w, r, result, nil, err)
}

// mayCreate holds who applies what does not exist to the right to create it. A race only decides which error a caller without that right gets.
func (d *Door) mayCreate(ctx context.Context, info *request.Info) error {
	if info.Subresource != "" || d.config.Cache.Peek(info.Kind.StoredAs(), namespaceOf(info), info.Name) != nil {
		return nil
	}
	caller, _ := identity.FromContext(ctx)
	a := Attributes(info, caller)
	a.Verb, a.Name = "create", ""
	return d.config.Authorizer.Authorize(ctx, a)
}

// attempts bounds how often a patch of another version is tried on an object that changes meanwhile.
const attempts = 5

// patchVersion patches an object as a version that is not the stored one: read, converted, patched, converted back and written on the condition that it is still the
// same.
func (d *Door) patchVersion(w http.ResponseWriter, r *http.Request, info *request.Info, p *rendering, format patch.Type, data []byte, options registry.WriteOptions) {
	if format == patch.Apply {
		o, warnings, err := d.config.Codec.DecodeText(info.Kind, data, options.FieldValidation)
		if err == nil {
			data, err = d.stored(o, info)
		}
		if err != nil {
			respond.Error(w, r, err)
			return
		}
		in := registry.Input{Namespace: namespaceOf(info), Name: info.Name, Data: data}
		result, err := d.config.Registry.Apply(r.Context(), p.stored, in, options)
		p.result(w, r, result, warnings, err)
		return
	}
	var result registry.Result
	var warnings []string
	var err error
	for range attempts {
		result, warnings, err = d.tryPatch(r, info, p, format, data, options)
		if !apierrors.IsConflict(err) {
			break
		}
	}
	p.result(w, r, result, warnings, err)
}

func (d *Door) tryPatch(r *http.Request, info *request.Info, p *rendering, format patch.Type, data []byte, options registry.WriteOptions) (registry.Result, []string, error) {
	e, err := d.config.Cache.Get(r.Context(), p.stored, namespaceOf(info), info.Name, nil)
	if err != nil {
		return registry.Result{}, nil, err
	}
	current, err := p.object(e)
	if err != nil {
		return registry.Result{}, nil, err
	}
	object, ok := current.(codec.Object)
	if !ok {
		return registry.Result{}, nil, fmt.Errorf("%T cannot be patched", current)
	}
	patched, warnings, err := d.config.Patcher.Patch(info.Kind, object, format, data, options.FieldValidation)
	if err != nil {
		return registry.Result{}, nil, err
	}
	encoded, err := d.stored(patched, info)
	if err != nil {
		return registry.Result{}, nil, err
	}
	in := registry.Input{Namespace: namespaceOf(info), Name: info.Name, Data: encoded}
	result, err := d.config.Registry.Update(r.Context(), p.stored, in, options)
	return result, warnings, err
}
