package restapi

import (
	"net/http"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"dhow.dev/services/apiserver/internal/discovery"
	"dhow.dev/services/apiserver/internal/registry"
	"dhow.dev/services/apiserver/internal/request"
	"dhow.dev/services/apiserver/internal/respond"
)

func (d *Door) delete(w http.ResponseWriter, r *http.Request, info *request.Info) {
	p, err := d.rendering(r, info, asTable, asMetadata)
	if err != nil {
		respond.Error(w, r, err)
		return
	}
	o, err := deleteOptions(r, info)
	if err != nil {
		respond.Error(w, r, err)
		return
	}
	result, err := d.config.Registry.Delete(r.Context(), info.Kind, namespaceOf(info), info.Name, removal(o))
	if err != nil {
		respond.Error(w, r, err)
		return
	}
	for _, text := range result.Warnings {
		respond.Warn(w, text)
	}
	if result.Deleted && !discovery.ReturnsDeleted(info.Kind.GroupVersionKind().GroupKind()) {
		status, err := deleted(info, fresh{data: result.Object})
		if err != nil {
			respond.Error(w, r, err)
			return
		}
		respond.Object(w, r, http.StatusOK, status)
		return
	}
	code := http.StatusOK
	// Clients of old versions that ask for the dependents to go learn that this takes time.
	if !result.Deleted && o.OrphanDependents != nil && !*o.OrphanDependents { //nolint:staticcheck // they send it
		code = http.StatusAccepted
	}
	p.one(w, r, code, written(info, result))
}

// deleted is the Status that says that an object is gone.
func deleted(info *request.Info, last version) (*metav1.Status, error) {
	m, err := metadata(last)
	if err != nil {
		return nil, err
	}
	return &metav1.Status{Status: metav1.StatusSuccess, Details: &metav1.StatusDetails{
		Name: info.Name, Group: info.Kind.Group, Kind: info.Kind.Plural, UID: types.UID(m.UID),
	}}, nil
}

// deleteCollection deletes what the selectors select and answers with the list of it.
func (d *Door) deleteCollection(w http.ResponseWriter, r *http.Request, info *request.Info) {
	p, err := d.rendering(r, info, asTable, asMetadataList)
	if err != nil {
		respond.Error(w, r, err)
		return
	}
	list, err := listOptions(info)
	if err != nil {
		respond.Error(w, r, err)
		return
	}
	o, err := deleteOptions(r, info)
	if err != nil {
		respond.Error(w, r, err)
		return
	}
	// The limits of a list are not those of a deletion: all that is selected goes.
	list.Limit, list.Continue, list.ResourceVersion, list.ResourceVersionMatch = 0, "", "", ""
	selected, err := d.page(r, info, list)
	if err != nil {
		respond.Error(w, r, err)
		return
	}
	if err := d.removeAll(r, info, list, removal(o)); err != nil {
		respond.Error(w, r, err)
		return
	}
	p.list(w, r, selected)
}

func (d *Door) removeAll(r *http.Request, info *request.Info, list *metav1.ListOptions, options registry.DeleteOptions) error {
	_, err := d.config.Registry.DeleteCollection(r.Context(), info.Kind, namespaceOf(info), list.LabelSelector, list.FieldSelector, options)
	return err
}
