package restapi

import (
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	listvalidation "k8s.io/apimachinery/pkg/apis/meta/internalversion/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/conversion"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"dhow.dev/services/apiserver/internal/cache"
	"dhow.dev/services/apiserver/internal/codec"
	"dhow.dev/services/apiserver/internal/registry"
	"dhow.dev/services/apiserver/internal/request"
	"dhow.dev/services/apiserver/internal/respond"
)

// parameters reads options of a query.
func parameters[Options any](query url.Values, into *Options, convert func(*url.Values, *Options, conversion.Scope) error) error {
	if err := convert(&query, into, nil); err != nil {
		return apierrors.NewBadRequest(err.Error())
	}
	return nil
}

func invalidOptions(kind string, errs field.ErrorList) error {
	if len(errs) == 0 {
		return nil
	}
	return apierrors.NewInvalid(schema.GroupKind{Group: metav1.GroupName, Kind: kind}, "", errs)
}

// listOptions reads the options of list, watch and deletecollection.
func listOptions(info *request.Info) (*metav1.ListOptions, error) {
	o := &metav1.ListOptions{}
	if err := parameters(info.Query, o, metav1.Convert_url_Values_To_v1_ListOptions); err != nil {
		return nil, err
	}
	o.Watch = info.Verb == "watch"
	errs := listvalidation.ValidateListOptions(&internalversion.ListOptions{
		Watch: o.Watch, ResourceVersion: o.ResourceVersion, ResourceVersionMatch: o.ResourceVersionMatch, Continue: o.Continue, SendInitialEvents: o.SendInitialEvents,
	}, true)
	if err := invalidOptions("ListOptions", errs); err != nil {
		return nil, err
	}
	return o, nil
}

// selection is what a list or watch selects.
func selection(info *request.Info, o *metav1.ListOptions) (cache.Selection, error) {
	fieldSelector := o.FieldSelector
	// A name in the path, of the old way to watch, selects like the field.
	if info.Name != "" && !strings.Contains(fieldSelector, "metadata.name") {
		fieldSelector = strings.TrimPrefix(fieldSelector+",metadata.name="+info.Name, ",")
	}
	return cache.Select(info.Kind, namespaceOf(info), o.LabelSelector, fieldSelector)
}

// revision reads a resource version; nil for none.
func revision(version string) (*int64, error) {
	if version == "" {
		return nil, nil
	}
	n, err := strconv.ParseInt(version, 10, 64)
	if err != nil || n < 0 {
		return nil, invalidOptions("ListOptions", field.ErrorList{field.Invalid(field.NewPath("resourceVersion"), version, "must be a resource version of this cluster, or 0")})
	}
	return &n, nil
}

// writeOptions are the registry's options of a create, update or patch.
func writeOptions(r *http.Request, dryRun []string, fieldManager, fieldValidation, subresource string) registry.WriteOptions {
	o := registry.WriteOptions{
		FieldManager: fieldManager, DryRun: len(dryRun) > 0, Metadata: true, FieldValidation: codec.FieldValidation(fieldValidation), Subresource: subresource,
	}
	if o.FieldManager == "" {
		o.FieldManager = agent(r.UserAgent())
	}
	if o.FieldValidation == "" {
		o.FieldValidation = codec.Warn
	}
	return o
}

// agent makes a field manager of a User-Agent: what precedes the first slash, as far as it is printable and short enough.
func agent(userAgent string) string {
	name, _, _ := strings.Cut(userAgent, "/")
	var b strings.Builder
	for _, c := range name {
		if !unicode.IsPrint(c) || c == utf8.RuneError {
			continue
		}
		if b.Len()+utf8.RuneLen(c) > metavalidation.FieldManagerMaxLength {
			break
		}
		b.WriteRune(c)
	}
	return b.String()
}

func createOptions(r *http.Request, info *request.Info) (registry.WriteOptions, error) {
	var o metav1.CreateOptions
	if err := parameters(info.Query, &o, metav1.Convert_url_Values_To_v1_CreateOptions); err != nil {
		return registry.WriteOptions{}, err
	}
	options := writeOptions(r, o.DryRun, o.FieldManager, o.FieldValidation, info.Subresource)
	// Who creates without a name does not own fields (docs/decisions/0004-managed-fields.md): tracking costs many times the create.
	options.FieldManager = o.FieldManager
	return options, invalidOptions("CreateOptions", metavalidation.ValidateCreateOptions(&o))
}

func updateOptions(r *http.Request, info *request.Info) (registry.WriteOptions, error) {
	var o metav1.UpdateOptions
	if err := parameters(info.Query, &o, metav1.Convert_url_Values_To_v1_UpdateOptions); err != nil {
		return registry.WriteOptions{}, err
	}
	return writeOptions(r, o.DryRun, o.FieldManager, o.FieldValidation, info.Subresource), invalidOptions("UpdateOptions", metavalidation.ValidateUpdateOptions(&o))
}

func patchOptions(r *http.Request, info *request.Info, kind types.PatchType) (registry.WriteOptions, error) {
	var o metav1.PatchOptions
	if err := parameters(info.Query, &o, metav1.Convert_url_Values_To_v1_PatchOptions); err != nil {
		return registry.WriteOptions{}, err
	}
	options := writeOptions(r, o.DryRun, o.FieldManager, o.FieldValidation, info.Subresource)
	options.Force = o.Force != nil && *o.Force
	return options, invalidOptions("PatchOptions", metavalidation.ValidatePatchOptions(&o, kind))
}

// deleteOptions reads the options of a deletion: those of the body if there is one, otherwise of the query.
func deleteOptions(r *http.Request, info *request.Info) (*metav1.DeleteOptions, error) {
	data, media, err := respond.Body(r)
	if err != nil {
		return nil, err
	}
	o := &metav1.DeleteOptions{}
	if len(data) == 0 {
		err = parameters(info.Query, o, metav1.Convert_url_Values_To_v1_DeleteOptions)
	} else {
		err = decodeOptions(data, media, info, o)
	}
	if err != nil {
		return nil, err
	}
	return o, invalidOptions("DeleteOptions", metavalidation.ValidateDeleteOptions(o))
}

// decodeOptions decodes DeleteOptions, which clients send as a kind of any group.
func decodeOptions(data []byte, media respond.Media, info *request.Info, o *metav1.DeleteOptions) error {
	for _, version := range []schema.GroupVersion{{Version: "v1"}, {Group: info.Group, Version: info.Version}, {Group: metav1.GroupName, Version: "v1"}} {
		o.SetGroupVersionKind(version.WithKind("DeleteOptions"))
		err := respond.DecodeBytes(data, media, o)
		if err == nil || version.Group == metav1.GroupName {
			return err
		}
		*o = metav1.DeleteOptions{}
	}
	return nil
}

// removal are the registry's options of a deletion.
func removal(o *metav1.DeleteOptions) registry.DeleteOptions {
	options := registry.DeleteOptions{GracePeriodSeconds: o.GracePeriodSeconds, DryRun: len(o.DryRun) > 0}
	if p := o.Preconditions; p != nil {
		if p.UID != nil {
			options.UID = string(*p.UID)
		}
		if p.ResourceVersion != nil {
			options.ResourceVersion = *p.ResourceVersion
		}
	}
	switch {
	case o.PropagationPolicy != nil:
		options.Propagation = map[metav1.DeletionPropagation]registry.Propagation{
			metav1.DeletePropagationOrphan: registry.PropagationOrphan, metav1.DeletePropagationBackground: registry.PropagationBackground,
			metav1.DeletePropagationForeground: registry.PropagationForeground,
		}[*o.PropagationPolicy]
	case o.OrphanDependents != nil && *o.OrphanDependents: //nolint:staticcheck // clients of old versions send it
		options.Propagation = registry.PropagationOrphan
	case o.OrphanDependents != nil: //nolint:staticcheck // as above
		options.Propagation = registry.PropagationBackground
	}
	return options
}
