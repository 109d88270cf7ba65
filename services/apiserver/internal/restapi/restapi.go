// Package restapi is the Kubernetes door: HTTP with the paths, verbs, parameters, encodings and errors of Kubernetes' API, over the same cache, registry and bytes as the
// gRPC door.
//
// A request passes the filters (filter.go) and then belongs to a path of its own, to a subresource's handler, or to the handlers of this package, one file per
// group of verbs: read.go, watch.go, write.go, delete.go. Answers are rendered from the cache's buffers (render.go): protobuf is spliced and never decoded,
// JSON is made once per version of an object.
package restapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/resource"
	"dhow.dev/services/apiserver/internal/authorizer"
	"dhow.dev/services/apiserver/internal/cache"
	"dhow.dev/services/apiserver/internal/codec"
	"dhow.dev/services/apiserver/internal/registry"
	"dhow.dev/services/apiserver/internal/request"
	"dhow.dev/services/apiserver/internal/respond"
)

// Authenticator says who makes a request; false when the request says nothing of it. Errors are Unauthorized.
type Authenticator interface {
	Authenticate(r *http.Request) (identity.Identity, bool, error)
}

// Filter is a step that requests pass. It finds what is asked for and by whom in the context.
type Filter interface {
	Wrap(next http.Handler) http.Handler
}

// Subresource names a part of the objects of a kind.
type Subresource struct{ Group, Resource, Name string }

// Config configures a Door.
type Config struct {
	Cache      *cache.Cache
	Registry   *registry.Registry
	Codec      *codec.Codec
	Authorizer authorizer.Authorizer
	// Authenticator says who calls; nil: certificates alone.
	Authenticator Authenticator
	// Auditor, Impersonation and Fairness are filters, in the order in which they are passed. May be nil.
	Auditor, Impersonation, Fairness Filter
	// Extras append to an object what is known but not stored. Keyed by kind.
	Extras map[*resource.Resource]func(*cache.Entry) []byte
	// Paths are what is served beside resources: a path, or a prefix that ends in a slash.
	Paths map[string]http.Handler
	// Subresources answer for a part of an object, whatever the verb.
	Subresources map[Subresource]http.Handler
	// Virtual answer for kinds that are not stored, whatever the verb.
	Virtual map[schema.GroupResource]http.Handler
	Logger  *slog.Logger

	// Lifetime ends when the service stops: watches end with it. Nil: never.
	Lifetime context.Context
	// Timeout is how long a request may take that does not say it; 0: Kubernetes' 60 s.
	Timeout time.Duration
	// BookmarkInterval is the least time between two bookmarks of a watch; 0: 10 s.
	BookmarkInterval time.Duration
	// Now is the clock; nil: the real one.
	Now func() time.Time
}

// Door is the handler of all requests.
type Door struct {
	config Config
	chain  http.Handler
	// encode makes the JSON of stored objects.
	encode func(*resource.Resource, []byte) ([]byte, error)
}

// New returns the door.
func New(config Config) (http.Handler, error) {
	if config.Cache == nil || config.Registry == nil || config.Codec == nil || config.Authorizer == nil {
		return nil, errors.New("restapi: Cache, Registry, Codec and Authorizer are required")
	}
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	if config.Lifetime == nil {
		config.Lifetime = context.Background()
	}
	if config.Timeout == 0 {
		config.Timeout = defaultTimeout
	}
	if config.BookmarkInterval == 0 {
		config.BookmarkInterval = 10 * time.Second
	}
	if config.Now == nil {
		config.Now = time.Now
	}
	if config.Authenticator == nil {
		config.Authenticator = Certificates{}
	}
	d := &Door{config: config}
	d.encode = d.encodeStored
	chain, err := d.filters(http.HandlerFunc(d.dispatch))
	if err != nil {
		return nil, fmt.Errorf("restapi: %w", err)
	}
	d.chain = chain
	return d, nil
}

// ServeHTTP implements http.Handler.
func (d *Door) ServeHTTP(w http.ResponseWriter, r *http.Request) { d.chain.ServeHTTP(w, r) }

// dispatch hands a request that passed all filters to what answers it.
func (d *Door) dispatch(w http.ResponseWriter, r *http.Request) {
	info, ok := request.FromContext(r.Context())
	switch {
	case !ok:
		respond.Error(w, r, errors.New("a request without info"))
	case !info.IsResource:
		d.servePath(w, r, info)
	case info.Kind == nil:
		respond.Error(w, r, NotServed())
	case info.Namespace != "" && !info.Kind.Namespaced && !isNamespace(info.Kind):
		respond.Error(w, r, NotServed())
	default:
		d.serveResource(w, r, info)
	}
}

func isNamespace(r *resource.Resource) bool { return r.Group == "" && r.Plural == "namespaces" }

// servePath serves what is no resource: the exact path, or the longest prefix.
func (d *Door) servePath(w http.ResponseWriter, r *http.Request, info *request.Info) {
	path := info.Path
	if h := d.config.Paths[path]; h != nil {
		h.ServeHTTP(w, r)
		return
	}
	if trimmed := strings.TrimRight(path, "/"); trimmed != path {
		if h := d.config.Paths[trimmed]; h != nil {
			h.ServeHTTP(w, r)
			return
		}
	}
	for end := len(path); end > 0; {
		end = strings.LastIndexByte(path[:end], '/')
		if end < 0 {
			break
		}
		if h := d.config.Paths[path[:end+1]]; h != nil {
			h.ServeHTTP(w, r)
			return
		}
	}
	respond.Error(w, r, NotServed())
}

func (d *Door) serveResource(w http.ResponseWriter, r *http.Request, info *request.Info) {
	kind := info.Kind
	if kind.Namespaced && info.Namespace == "" {
		// Over all namespaces things are looked at, and nothing else: a deletion of a collection without namespace would be one of everything.
		switch {
		case info.Name != "" && info.Verb != "list" && info.Verb != "watch":
			respond.Error(w, r, NotServed())
			return
		case info.Verb != "list" && info.Verb != "watch":
			respond.Error(w, r, NotAllowed())
			return
		}
	}
	if info.Subresource != "" {
		d.serveSubresource(w, r, info)
		return
	}
	if h := d.config.Virtual[kind.GroupResource()]; h != nil {
		h.ServeHTTP(w, r)
		return
	}
	if kind.Subresource != "" {
		respond.Error(w, r, NotServed())
		return
	}
	if kind.Virtual || !kind.Allows(info.Verb) {
		respond.Error(w, r, NotAllowed())
		return
	}
	switch info.Verb {
	case "get":
		d.get(w, r, info)
	case "list":
		d.list(w, r, info)
	case "watch":
		d.watch(w, r, info)
	case "create":
		d.create(w, r, info)
	case "update":
		d.update(w, r, info)
	case "patch":
		d.patch(w, r, info)
	case "delete":
		d.delete(w, r, info)
	case "deletecollection":
		d.deleteCollection(w, r, info)
	default:
		respond.Error(w, r, NotAllowed())
	}
}

// parts are the subresources that the registry writes, beside status: which kinds have them, and their verbs.
var parts = map[Subresource]string{
	{"", "namespaces", "finalize"}:                                    "update",
	{"", "pods", "ephemeralcontainers"}:                               "get update patch",
	{"", "pods", "resize"}:                                            "get update patch",
	{"", "replicationcontrollers", scale}:                             "get update patch",
	{"apps", "deployments", scale}:                                    "get update patch",
	{"apps", "replicasets", scale}:                                    "get update patch",
	{"apps", "statefulsets", scale}:                                   "get update patch",
	{"certificates.k8s.io", "certificatesigningrequests", "approval"}: "get update patch",
}

// scale is the subresource that has a kind of its own.
const scale = "scale"

var scales = resource.ByGVK(autoscalingv1.SchemeGroupVersion.WithKind("Scale"))

// carried is the kind that a request and its answer carry.
func carried(info *request.Info) *resource.Resource {
	if info.Subresource == scale {
		return scales
	}
	return info.Kind
}

// serveSubresource serves what has a handler of its own, or what the registry writes.
func (d *Door) serveSubresource(w http.ResponseWriter, r *http.Request, info *request.Info) {
	kind := info.Kind
	if h := d.config.Subresources[Subresource{kind.Group, kind.Plural, info.Subresource}]; h != nil {
		h.ServeHTTP(w, r)
		return
	}
	verbs := parts[Subresource{kind.Group, kind.Plural, info.Subresource}]
	if info.Subresource == "status" && kind.HasStatus {
		verbs = "get update patch"
	}
	switch {
	case verbs == "" || kind.Virtual || strings.Trim(info.SubPath, "/") != "":
		respond.Error(w, r, NotServed())
	case !strings.Contains(verbs, info.Verb):
		respond.Error(w, r, NotAllowed())
	case info.Verb == "get":
		d.get(w, r, info)
	case info.Verb == "update":
		d.update(w, r, info)
	default:
		d.patch(w, r, info)
	}
}

// NotServed is Kubernetes' answer to a path that nothing serves.
func NotServed() error {
	return generic(http.StatusNotFound, metav1.StatusReasonNotFound, "the server could not find the requested resource")
}

// NotAllowed is Kubernetes' answer to a method that a path does not have.
func NotAllowed() error {
	return generic(http.StatusMethodNotAllowed, metav1.StatusReasonMethodNotAllowed, "the server does not allow this method on the requested resource")
}

func generic(code int32, reason metav1.StatusReason, message string) error {
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Code: code, Reason: reason, Message: message, Details: &metav1.StatusDetails{},
	}}
}

// namespaceOf is the namespace that objects of the request's kind are stored under.
func namespaceOf(info *request.Info) string {
	if !info.Kind.Namespaced {
		return ""
	}
	return info.Namespace
}
