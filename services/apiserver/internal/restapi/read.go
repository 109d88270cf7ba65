package restapi

import (
	"net/http"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"dhow.dev/services/apiserver/internal/cache"
	"dhow.dev/services/apiserver/internal/request"
	"dhow.dev/services/apiserver/internal/respond"
)

func (d *Door) get(w http.ResponseWriter, r *http.Request, info *request.Info) {
	p, err := d.rendering(r, info, asTable, asMetadata)
	if err != nil {
		respond.Error(w, r, err)
		return
	}
	least, err := revision(info.Query.Get("resourceVersion"))
	if err != nil {
		respond.Error(w, r, err)
		return
	}
	e, err := d.config.Cache.Get(r.Context(), info.Kind, namespaceOf(info), info.Name, least)
	if apierrors.IsNotFound(err) {
		err = apierrors.NewNotFound(info.Kind.GroupResource(), info.Name)
	}
	if err != nil {
		respond.Error(w, r, err)
		return
	}
	if info.Subresource == scale {
		d.getScale(w, r, info, p, e)
		return
	}
	p.one(w, r, http.StatusOK, d.version(e))
}

func (d *Door) getScale(w http.ResponseWriter, r *http.Request, info *request.Info, p *rendering, e *cache.Entry) {
	of, err := d.config.Registry.Scale(info.Kind, e.Object, e.Revision)
	if err != nil {
		respond.Error(w, r, err)
		return
	}
	data, err := of.Marshal()
	if err != nil {
		respond.Error(w, r, err)
		return
	}
	p.one(w, r, http.StatusOK, fresh{resource: p.row, data: data})
}

// version is an entry with what is known of it but not stored.
func (d *Door) version(e *cache.Entry) version {
	if extra := d.config.Extras[e.Resource]; extra != nil {
		if more := extra(e); more != nil {
			encoded := e.Encoded()
			return fresh{resource: e.Resource, data: append(encoded[:len(encoded):len(encoded)], more...)}
		}
	}
	return e
}

func (d *Door) list(w http.ResponseWriter, r *http.Request, info *request.Info) {
	p, err := d.rendering(r, info, asTable, asMetadataList)
	if err != nil {
		respond.Error(w, r, err)
		return
	}
	o, err := listOptions(info)
	if err != nil {
		respond.Error(w, r, err)
		return
	}
	l, err := d.page(r, info, o)
	if err != nil {
		respond.Error(w, r, err)
		return
	}
	p.list(w, r, l)
}

// page reads what a list selects.
func (d *Door) page(r *http.Request, info *request.Info, o *metav1.ListOptions) (page, error) {
	selected, err := selection(info, o)
	if err != nil {
		return page{}, err
	}
	options, err := cacheOptions(o)
	if err != nil {
		return page{}, err
	}
	list, err := d.config.Cache.List(r.Context(), selected, options)
	if err != nil {
		return page{}, err
	}
	l := page{versions: make([]version, len(list.Entries)), meta: metav1.ListMeta{ResourceVersion: formatRevision(list.Revision), Continue: list.Continue}}
	for i, e := range list.Entries {
		l.versions[i] = d.version(e)
	}
	if list.Continue != "" && list.Remaining > 0 {
		l.meta.RemainingItemCount = &list.Remaining
	}
	return l, nil
}

// cacheOptions reads a list's resource version as Kubernetes does: with a limit and no match it is exact, otherwise the least.
func cacheOptions(o *metav1.ListOptions) (cache.ListOptions, error) {
	options := cache.ListOptions{Limit: o.Limit, Continue: o.Continue}
	asked, err := revision(o.ResourceVersion)
	if err != nil {
		return options, err
	}
	switch {
	case o.Limit < 0:
		options.Limit = 0
	case o.Continue != "" && asked != nil && *asked == 0:
		return options, nil
	}
	exact := o.ResourceVersionMatch == metav1.ResourceVersionMatchExact || o.ResourceVersionMatch == "" && o.Limit > 0
	if asked != nil && *asked > 0 && exact && o.Continue == "" {
		options.At = *asked
		return options, nil
	}
	options.MinRevision = asked
	return options, nil
}
