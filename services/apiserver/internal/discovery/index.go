package discovery

import (
	"encoding/json"
	"net/http"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"dhow.dev/services/apiserver/internal/respond"
)

// Index answers `/` with the paths that are served, and everything below that nobody else answers with Not Found.
func Index(paths []string) http.Handler {
	sorted := slices.Clone(paths)
	slices.Sort(sorted)
	body, err := json.MarshalIndent(metav1.RootPaths{Paths: sorted}, "", "  ")
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case err != nil:
			respond.Error(w, r, apierrors.NewInternalError(err))
		case r.URL.Path != "/" || r.Method != http.MethodGet && r.Method != http.MethodHead:
			respond.Error(w, r, apierrors.NewGenericServerResponse(http.StatusNotFound, r.Method, schema.GroupResource{}, "", "", 0, false))
		default:
			w.Header().Set("Content-Type", jsonType)
			_, _ = w.Write(body) // a client that is gone needs no answer
		}
	})
}
