package health

import (
	"context"
	"net/http"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	clusterv1 "dhow.dev/gen/go/dhow/cluster/v1"
	"dhow.dev/pkg/resource"
	"dhow.dev/pkg/table"
	"dhow.dev/services/apiserver/internal/request"
	"dhow.dev/services/apiserver/internal/respond"
)

// Components answers for the kind ComponentStatus, which is not stored: an object for each service of the cluster, as it is now.
func Components(status func(context.Context) []*clusterv1.Component) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		kind := resource.Lookup("", "componentstatuses")
		info, ok := request.FromContext(r.Context())
		if !ok || info.Verb != "get" && info.Verb != "list" {
			respond.Error(w, r, apierrors.NewMethodNotSupported(kind.GroupResource(), strings.ToLower(r.Method)))
			return
		}
		items := []corev1.ComponentStatus{}
		for _, c := range status(r.Context()) {
			if info.Name == "" || info.Name == c.GetName() {
				items = append(items, componentStatus(c))
			}
		}
		if info.Verb == "get" && len(items) == 0 {
			respond.Error(w, r, apierrors.NewNotFound(kind.GroupResource(), info.Name))
			return
		}
		if err := writeComponents(w, r, kind, info.Verb == "get", items); err != nil {
			respond.Error(w, r, err)
		}
	})
}

func componentStatus(c *clusterv1.Component) corev1.ComponentStatus {
	condition := corev1.ComponentCondition{Type: corev1.ComponentHealthy, Status: corev1.ConditionTrue, Message: "ok"}
	if !c.GetHealthy() {
		condition.Status, condition.Message, condition.Error = corev1.ConditionFalse, "", c.GetMessage()
	}
	return corev1.ComponentStatus{ObjectMeta: metav1.ObjectMeta{Name: c.GetName()}, Conditions: []corev1.ComponentCondition{condition}}
}

// writeComponents writes one object or a list, as a table when that is what the client wants.
func writeComponents(w http.ResponseWriter, r *http.Request, kind *resource.Resource, one bool, items []corev1.ComponentStatus) error {
	const asTable = "Table"
	form, err := respond.Negotiate(r, asTable)
	if err != nil {
		return err
	}
	var object runtime.Object = &corev1.ComponentStatusList{Items: items}
	switch {
	case form.As == asTable:
		rows, err := table.Rows(kind, object, time.Now())
		if err != nil {
			return err
		}
		for i := range rows {
			rows[i].Object.Object = &metav1.PartialObjectMetadata{
				TypeMeta: metav1.TypeMeta{APIVersion: "meta.k8s.io/v1", Kind: "PartialObjectMetadata"}, ObjectMeta: items[i].ObjectMeta,
			}
		}
		object = &metav1.Table{ColumnDefinitions: table.Columns(kind), Rows: rows}
	case one:
		object = &items[0]
	}
	if err := respond.SetKind(object); err != nil {
		return err
	}
	body, media, err := respond.Encode(form, object)
	if err != nil {
		return err
	}
	respond.Write(w, r, http.StatusOK, media.ContentType(), body)
	return nil
}
