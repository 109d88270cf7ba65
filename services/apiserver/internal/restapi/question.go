package restapi

import (
	"context"
	"net/http"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"dhow.dev/services/apiserver/internal/registry"
	"dhow.dev/services/apiserver/internal/request"
	"dhow.dev/services/apiserver/internal/respond"
)

// Asked is a question: an object that was posted, and that is answered but not stored.
type Asked[T any] struct {
	Object *T
	// Namespace and Name are those of the path.
	Namespace, Name string
	Options         registry.WriteOptions
	// Warn adds a warning to the answer.
	Warn func(text string)
}

// Question makes the handler of a kind, or of a subresource, that answers what is posted to it. A nil answer is a Status that says success.
func Question[T any, O interface {
	*T
	runtime.Object
	metav1.Object
}](answer func(ctx context.Context, q Asked[T]) (runtime.Object, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		info, ok := request.FromContext(r.Context())
		if !ok || info.Verb != "create" || info.Subresource == "" && info.Name != "" {
			respond.Error(w, r, NotAllowed())
			return
		}
		options, err := createOptions(r, info)
		if err != nil {
			respond.Error(w, r, err)
			return
		}
		q := Asked[T]{Object: new(T), Namespace: info.Namespace, Name: info.Name, Options: options, Warn: func(text string) { respond.Warn(w, text) }}
		if err := respond.Decode(r, O(q.Object)); err != nil {
			respond.Error(w, r, err)
			return
		}
		if err := settle(O(q.Object), info); err != nil {
			respond.Error(w, r, err)
			return
		}
		o, err := answer(r.Context(), q)
		if err != nil {
			respond.Error(w, r, err)
			return
		}
		if o == nil {
			o = &metav1.Status{Status: metav1.StatusSuccess, Code: http.StatusCreated}
		}
		respond.Object(w, r, http.StatusCreated, o)
	})
}

// settle holds an object's namespace to that of the path.
func settle(o metav1.Object, info *request.Info) error {
	if info.Namespace == "" || !info.Kind.Namespaced {
		return nil
	}
	if o.GetNamespace() == "" {
		o.SetNamespace(info.Namespace)
	}
	if o.GetNamespace() != info.Namespace {
		return apierrors.NewBadRequest("the namespace of the provided object does not match the namespace sent on the request (" + o.GetNamespace() + " != " + info.Namespace + ")")
	}
	return nil
}
