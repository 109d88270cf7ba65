// Package request says what an HTTP request of the Kubernetes API asks for: the verb, the kind and the object that its method and path name, as Kubernetes reads them
// (https://kubernetes.io/docs/reference/using-api/api-concepts/).
package request

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"

	"dhow.dev/pkg/resource"
)

// Bounds of what a request's line may hold: far more than any client sends, far less than what would cost anything to parse.
const (
	maxPath       = 8 << 10
	maxQuery      = 64 << 10
	maxParameters = 512
)

// Info is what a request asks for.
type Info struct {
	Path string
	// IsResource says that the path is one of a resource: /api/v1/… or /apis/GROUP/VERSION/….
	IsResource bool
	// Verb is Kubernetes' word: get, list, watch, create, update, patch, delete or deletecollection. Of other paths it is the method in lower case.
	Verb                                  string
	Group, Version, Resource, Subresource string
	// Namespace of a request for one namespace is its name, as in Kubernetes: a role in the namespace may allow to read it.
	Namespace string
	// Name is also set for a list or watch that a field selector narrows to one name.
	Name string
	// SubPath is what follows the subresource; it begins with / or is empty.
	SubPath string
	Query   url.Values
	// Kind is the row of the resource, nil when the table has none.
	Kind *resource.Resource
}

// Parse reads a request's method and path. Errors are API errors.
func Parse(r *http.Request) (*Info, error) {
	if len(r.URL.Path) > maxPath || len(r.URL.RawQuery) > maxQuery {
		return nil, tooLong()
	}
	if strings.Count(r.URL.RawQuery, "&") >= maxParameters {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("the query has more than %d parameters", maxParameters))
	}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, apierrors.NewBadRequest("the query cannot be parsed: " + err.Error())
	}
	i := &Info{Path: r.URL.Path, Query: query, Verb: strings.ToLower(r.Method)}
	rest := path{rest: r.URL.Path}
	switch rest.next() {
	case "api":
		if i.Version = rest.next(); i.Version == "" {
			return i, nil
		}
	case "apis":
		i.Group, i.Version = rest.next(), rest.next()
		if i.Version == "" {
			i.Group = ""
			return i, nil
		}
	default:
		return i, nil
	}
	if rest.empty() {
		i.Group, i.Version = "", ""
		return i, nil
	}
	i.IsResource = true
	i.locate(&rest)
	i.judge(r.Method)
	return i, nil
}

// locate reads namespace, resource, name and subresource.
func (i *Info) locate(rest *path) {
	first := rest.next()
	if first == "watch" {
		// The old way to ask for a watch.
		i.Verb = "watch"
		first = rest.next()
	}
	if first == "namespaces" {
		i.Namespace = rest.next()
		after := *rest
		// What follows a namespace is a resource in it, unless it is a subresource of the namespace.
		if second := after.next(); i.Namespace != "" && second != "" && (second != "status" && second != "finalize" || i.Verb == "watch") {
			first = second
			*rest = after
		} else {
			i.Resource, i.Name = first, i.Namespace
			i.Subresource = second
			if second != "" {
				i.SubPath = after.rest
			}
			i.Kind = resource.LookupVersion(i.Group, i.Version, i.Resource)
			return
		}
	}
	i.Resource = first
	i.Name = rest.next()
	if i.Subresource = rest.next(); i.Subresource != "" {
		i.SubPath = rest.rest
	}
	i.Kind = resource.LookupVersion(i.Group, i.Version, i.Resource)
}

var verbs = map[string]string{
	http.MethodPost: "create", http.MethodGet: "get", http.MethodHead: "get", http.MethodPut: "update", http.MethodPatch: "patch", http.MethodDelete: "delete",
}

// judge finds the verb.
func (i *Info) judge(method string) {
	legacy := i.Verb == "watch"
	i.Verb = verbs[method]
	switch {
	case legacy && method != http.MethodGet:
		// No verb at all: nothing allows it.
		i.Verb = ""
		return
	case legacy:
		i.Verb = "watch"
	case i.Name != "":
		return
	case i.Verb == "get" && i.Bool("watch"):
		i.Verb = "watch"
	case i.Verb == "get":
		i.Verb = "list"
	case i.Verb == "delete":
		i.Verb = "deletecollection"
	}
	if i.Name != "" || i.Verb != "list" && i.Verb != "watch" && i.Verb != "deletecollection" {
		return
	}
	if selector, err := fields.ParseSelector(i.Query.Get("fieldSelector")); err == nil {
		if name, exact := selector.RequiresExactMatch("metadata.name"); exact && !strings.ContainsAny(name, "/%") && name != "." && name != ".." {
			i.Name = name
		}
	}
}

// Bool reads a parameter as Kubernetes does: one that is there is true unless it says false or 0.
func (i *Info) Bool(parameter string) bool {
	values := i.Query[parameter]
	return len(values) > 0 && values[0] != "0" && !strings.EqualFold(values[0], "false")
}

func tooLong() error {
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusRequestURITooLong, Reason: metav1.StatusReasonBadRequest,
		Message: fmt.Sprintf("the request's path may have %d bytes and its query %d", maxPath, maxQuery),
	}}
}

// path takes the segments of a path one by one. Empty segments at the front are passed over.
type path struct{ rest string }

func (p *path) next() string {
	trimmed := strings.TrimLeft(p.rest, "/")
	if trimmed == "" {
		// What is left is kept: a proxied path may end with a slash.
		return ""
	}
	segment, _, _ := strings.Cut(trimmed, "/")
	p.rest = trimmed[len(segment):]
	return segment
}

func (p *path) empty() bool { return strings.Trim(p.rest, "/") == "" }

type contextKey struct{}

// NewContext returns a context that carries what the request asks for.
func NewContext(ctx context.Context, i *Info) context.Context {
	return context.WithValue(ctx, contextKey{}, i)
}

// FromContext returns what the request asks for, and false outside of a request.
func FromContext(ctx context.Context) (*Info, bool) {
	i, ok := ctx.Value(contextKey{}).(*Info)
	return i, ok
}
