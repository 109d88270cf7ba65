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
	s := &server{build: sync.OnceValues(func() (*documents, error) { return build(config) })}
	return map[string]http.Handler{
		"/openapi/v2":  http.HandlerFunc(s.v2),
		"/openapi/v3":  http.HandlerFunc(s.index),
		"/openapi/v3/": http.HandlerFunc(s.v3),
	}
}

type server struct {
	build func() (*documents, error)
}

// documents is all that is served.
type documents struct {
	v2    *document
	index *document
	// v3 are the documents by path below /openapi/v3/, for example apis/apps/v1.
	v3 map[string]*document
}

// built returns the documents, or answers why there are none.
func (s *server) built(w http.ResponseWriter, r *http.Request) (*documents, bool) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		respond.Error(w, r, apierrors.NewMethodNotSupported(schema.GroupResource{Resource: r.URL.Path}, strings.ToLower(r.Method)))
		return nil, false
	}
	all, err := s.build()
	if err != nil {
		respond.Error(w, r, apierrors.NewInternalError(err))
		return nil, false
	}
	return all, true
}

func (s *server) v2(w http.ResponseWriter, r *http.Request) {
	if all, ok := s.built(w, r); ok {
		all.v2.serve(w, r)
	}
}

func (s *server) index(w http.ResponseWriter, r *http.Request) {
	if all, ok := s.built(w, r); ok {
		all.index.serve(w, r)
	}
}

// v3 serves one document. A client that names the hash it knows from the index may keep the answer for ever; one that names another is sent to the new one.
func (s *server) v3(w http.ResponseWriter, r *http.Request) {
	all, ok := s.built(w, r)
	if !ok {
		return
	}
	name := strings.TrimSuffix(strings.TrimPrefix(r.URL.Path, "/openapi/v3/"), "/")
	d := all.v3[name]
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
