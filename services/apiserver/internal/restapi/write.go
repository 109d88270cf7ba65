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
		return d.config.Registry.Create(r.Context(), info.Kind, in, options)
	})
}

func (d *Door) update(w http.ResponseWriter, r *http.Request, info *request.Info) {
	if info.Name == "" {
		respond.Error(w, r, NotAllowed())
		return
	}
	d.write(w, r, info, updateOptions, func(in registry.Input, options registry.WriteOptions) (registry.Result, error) {
		options.MayCreate = d.mayCreate(info)
		return d.config.Registry.Update(r.Context(), info.Kind, in, options)
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
	in, err := d.input(r, info)
	if err != nil {
		respond.Error(w, r, err)
		return
	}
	result, err := commit(in, o)
	d.result(w, r, info, p, result, err)
}

// input reads the object of a request's body.
func (d *Door) input(r *http.Request, info *request.Info) (registry.Input, error) {
	in := registry.Input{Namespace: namespaceOf(info), Name: info.Name}
	data, media, err := respond.Body(r)
	if err != nil {
		return in, err
	}
	if len(data) == 0 {
		return in, apierrors.NewBadRequest("the body is empty: it must hold the object")
	}
	in.Data, in.Text = data, media != respond.Protobuf
	if !in.Text {
		raw, kind, err := respond.Unwrap(data)
		if err != nil {
			return in, err
		}
		if want := carried(info).GroupVersionKind(); !kind.Empty() && kind != want {
			return in, apierrors.NewBadRequest(fmt.Sprintf("the kind in the data (%s) does not match the expected kind (%s)", kind, want))
		}
		in.Data = raw
	}
	return in, nil
}

// result writes the answer to a write.
func (d *Door) result(w http.ResponseWriter, r *http.Request, info *request.Info, p *rendering, result registry.Result, err error) {
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
	p.one(w, r, code, written(info, result))
}

// written is the version that a write has made.
func written(info *request.Info, result registry.Result) version {
	v := fresh{resource: carried(info), data: result.Object}
	if result.Revision != 0 {
		v.data = cache.WithRevision(result.Object, result.Revision).Bytes()
	}
	return v
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
	if err != nil {
		respond.Error(w, r, err)
		return
	}
	in := registry.PatchInput{Namespace: namespaceOf(info), Name: info.Name, Type: format, Data: data}
	options.MayCreate = d.mayCreate(info)
	result, err := d.config.Registry.Patch(r.Context(), info.Kind, in, options)
	d.result(w, r, info, p, result, err)
}

// mayCreate holds who updates or applies what does not exist to the right to create it.
func (d *Door) mayCreate(info *request.Info) func(context.Context) error {
	return func(ctx context.Context) error {
		caller, _ := identity.FromContext(ctx)
		a := Attributes(info, caller)
		a.Verb, a.Name = "create", ""
		return d.config.Authorizer.Authorize(ctx, a)
	}
}
