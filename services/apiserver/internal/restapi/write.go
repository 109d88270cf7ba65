package restapi

import (
	"context"
	"fmt"
	"mime"
	"net/http"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
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
	if info.Name == "" {
		respond.Error(w, r, NotAllowed())
		return
	}
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
	d.result(w, r, info, p, result, warnings, err)
}

// input reads the object of a request's body, as the kind that is stored.
func (d *Door) input(r *http.Request, info *request.Info, validation codec.FieldValidation) (in registry.Input, warnings []string, err error) {
	in = registry.Input{Namespace: namespaceOf(info), Name: info.Name}
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
		if want := carried(info).GroupVersionKind(); !kind.Empty() && kind != want {
			return in, nil, apierrors.NewBadRequest(fmt.Sprintf("the kind in the data (%s) does not match the expected kind (%s)", kind, want))
		}
		in.Data = raw
	}
	if info.Kind.Storage == nil || info.Subresource == scale {
		return in, nil, nil
	}
	in.Data, warnings, err = d.stored(info, in.Data, in.Text, validation)
	in.Text = false
	return in, warnings, err
}

// stored makes an object of another version the kind that is stored. Unlike the stored form it still says which version of the object the caller has seen.
func (d *Door) stored(info *request.Info, data []byte, isText bool, validation codec.FieldValidation) (encoded []byte, warnings []string, err error) {
	if isText {
		var o codec.Object
		if o, warnings, err = d.config.Codec.DecodeText(info.Kind, data, validation); err != nil {
			return nil, nil, err
		}
		if data, err = o.Marshal(); err != nil {
			return nil, nil, err
		}
	}
	encoded, err = d.config.Convert(data, info.Kind, info.Kind.Storage)
	return encoded, warnings, err
}

// result writes the answer to a write.
func (d *Door) result(w http.ResponseWriter, r *http.Request, info *request.Info, p *rendering, result registry.Result, warnings []string, err error) {
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
	made, err := d.written(info, result)
	if err != nil {
		respond.Error(w, r, err)
		return
	}
	p.one(w, r, code, made)
}

// written is the version that a write has made, as the kind that was asked for.
func (d *Door) written(info *request.Info, result registry.Result) (version, error) {
	v := fresh{resource: carried(info), data: result.Object}
	if result.Revision != 0 {
		v.data = cache.WithRevision(result.Object, result.Revision).Bytes()
	}
	if info.Kind.Storage == nil || info.Subresource == scale {
		return v, nil
	}
	var err error
	v.data, err = d.config.Convert(v.data, info.Kind.Storage, info.Kind)
	return v, err
}

// patchTypes are the formats of patches by their content type.
var patchTypes = map[types.PatchType]patch.Type{
	types.JSONPatchType: patch.JSON, types.MergePatchType: patch.Merge, types.StrategicMergePatchType: patch.StrategicMerge, types.ApplyYAMLPatchType: patch.Apply,
}

func (d *Door) patch(w http.ResponseWriter, r *http.Request, info *request.Info) {
	if info.Name == "" {
		respond.Error(w, r, NotAllowed())
		return
	}
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
	d.result(w, r, info, p, result, nil, err)
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
		encoded, warnings, err := d.stored(info, data, true, options.FieldValidation)
		if err != nil {
			respond.Error(w, r, err)
			return
		}
		in := registry.Input{Namespace: namespaceOf(info), Name: info.Name, Data: encoded}
		result, err := d.config.Registry.Apply(r.Context(), info.Kind.Storage, in, options)
		d.result(w, r, info, p, result, warnings, err)
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
	d.result(w, r, info, p, result, warnings, err)
}

func (d *Door) tryPatch(r *http.Request, info *request.Info, p *rendering, format patch.Type, data []byte, options registry.WriteOptions) (registry.Result, []string, error) {
	e, err := d.config.Cache.Get(r.Context(), info.Kind, namespaceOf(info), info.Name, nil)
	if err != nil {
		return registry.Result{}, nil, err
	}
	current, err := p.object(e)
	if err != nil {
		return registry.Result{}, nil, err
	}
	patched, warnings, err := d.config.Patcher.Patch(info.Kind, current, format, data, options.FieldValidation)
	if err != nil {
		return registry.Result{}, nil, err
	}
	encoded, err := patched.Marshal()
	if err != nil {
		return registry.Result{}, nil, err
	}
	if encoded, _, err = d.stored(info, encoded, false, options.FieldValidation); err != nil {
		return registry.Result{}, nil, err
	}
	in := registry.Input{Namespace: namespaceOf(info), Name: info.Name, Data: encoded}
	result, err := d.config.Registry.Update(r.Context(), info.Kind.Storage, in, options)
	return result, warnings, err
}
