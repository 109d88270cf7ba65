// Package openapi serves the schema of the API as OpenAPI 2.0 and 3.0 documents (https://kubernetes.io/docs/concepts/overview/kubernetes-api/#openapi-interface-definition):
// kubectl explain, client-side validation and strategic merges read them.
//
// The schemas of the types are made ahead of time from the source of k8s.io/api (generate/generate.sh) and embedded compressed; the paths come from
// the resource table. Documents are put together on first use and kept compressed.
package openapi

//go:generate ./generate/generate.sh

import (
	"net/http"
	"strings"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"dhow.dev/pkg/resource"
	"dhow.dev/services/apiserver/internal/respond"
)

// Config says what the documents describe.
type Config struct {
	// Resources are the kinds with a path of their own; nil means all of the resource table.
	Resources []*resource.Resource
	// Version is the version of Kubernetes' API, for example v1.36.3.
	Version string
}

// New returns a handler for each path: those that end in a slash are prefixes.
func New(config Config) map[string]http.Handler {
	if config.Resources == nil {
		config.Resources = resource.All()
	}
	s := &server{
		version2: sync.OnceValues(func() (*document, error) { return buildV2(config) }),
		version3: sync.OnceValues(func() (*documents, error) { return buildV3(config) }),
	}
	return map[string]http.Handler{
		"/openapi/v2":  http.HandlerFunc(s.v2),
		"/openapi/v3":  http.HandlerFunc(s.index),
		"/openapi/v3/": http.HandlerFunc(s.v3),
	}
}

// server makes documents when they are first asked for.
type server struct {
	version2 func() (*document, error)
	version3 func() (*documents, error)
}

// documents are those of version 3.
type documents struct {
	index *document
	// byPath has them by path below /openapi/v3/, for example apis/apps/v1.
	byPath map[string]*document
}

// built returns what build makes, or answers why there is nothing.
func built[T any](w http.ResponseWriter, r *http.Request, build func() (T, error)) (made T, ok bool) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		respond.Error(w, r, apierrors.NewMethodNotSupported(schema.GroupResource{Resource: r.URL.Path}, strings.ToLower(r.Method)))
		return made, false
	}
	made, err := build()
	if err != nil {
		respond.Error(w, r, apierrors.NewInternalError(err))
		return made, false
	}
	return made, true
}

func (s *server) v2(w http.ResponseWriter, r *http.Request) {
	if d, ok := built(w, r, s.version2); ok {
		d.serve(w, r)
	}
}

func (s *server) index(w http.ResponseWriter, r *http.Request) {
	if all, ok := built(w, r, s.version3); ok {
		all.index.serve(w, r)
	}
}

// v3 serves one document. A client that names the hash it knows from the index may keep the answer for ever; one that names another is sent to the new one.
func (s *server) v3(w http.ResponseWriter, r *http.Request) {
	all, ok := built(w, r, s.version3)
	if !ok {
		return
	}
	name := strings.TrimSuffix(strings.TrimPrefix(r.URL.Path, "/openapi/v3/"), "/")
	d := all.byPath[name]
	if d == nil {
		respond.Error(w, r, apierrors.NewGenericServerResponse(http.StatusNotFound, "get", schema.GroupResource{}, "", "", 0, false))
		return
	}
	if hash := r.URL.Query().Get("hash"); hash != "" {
		if hash != d.hash {
			http.Redirect(w, r, location(name, d.hash), http.StatusMovedPermanently)
			return
		}
		w.Header().Set("Cache-Control", "public, immutable, max-age=31536000")
	}
	d.serve(w, r)
}

func location(name, hash string) string { return "/openapi/v3/" + name + "?hash=" + hash }
