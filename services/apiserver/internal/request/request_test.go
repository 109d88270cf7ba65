package request_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"dhow.dev/services/apiserver/internal/request"
)

func TestParse(t *testing.T) {
	for _, c := range []struct {
		method, target string
		want           request.Info
	}{
		{"GET", "/version", request.Info{Verb: "get"}},
		{"GET", "/", request.Info{Verb: "get"}},
		{"GET", "/api/v1", request.Info{Verb: "get"}},
		{"GET", "/api/v1/", request.Info{Verb: "get"}},
		{"GET", "/apis/apps", request.Info{Verb: "get"}},
		{"GET", "/apis/apps/v1", request.Info{Verb: "get"}},
		{"GET", "/api/v1/pods", request.Info{IsResource: true, Verb: "list", Version: "v1", Resource: "pods"}},
		{"HEAD", "/api/v1/namespaces/a/pods/p", request.Info{IsResource: true, Verb: "get", Version: "v1", Resource: "pods", Namespace: "a", Name: "p"}},
		{"GET", "/api/v1/pods?watch=true", request.Info{IsResource: true, Verb: "watch", Version: "v1", Resource: "pods"}},
		{"GET", "/api/v1/pods?watch", request.Info{IsResource: true, Verb: "watch", Version: "v1", Resource: "pods"}},
		{"GET", "/api/v1/pods?watch=0", request.Info{IsResource: true, Verb: "list", Version: "v1", Resource: "pods"}},
		{"GET", "/api/v1/namespaces/a/pods/p?watch=1", request.Info{IsResource: true, Verb: "get", Version: "v1", Resource: "pods", Namespace: "a", Name: "p"}},
		{"GET", "/api/v1/watch/namespaces/a/pods/p", request.Info{IsResource: true, Verb: "watch", Version: "v1", Resource: "pods", Namespace: "a", Name: "p"}},
		{"GET", "/api/v1/watch/namespaces", request.Info{IsResource: true, Verb: "watch", Version: "v1", Resource: "namespaces"}},
		{"GET", "/api/v1/watch/namespaces/a", request.Info{IsResource: true, Verb: "watch", Version: "v1", Resource: "namespaces", Namespace: "a", Name: "a"}},
		{"GET", "/api/v1/namespaces", request.Info{IsResource: true, Verb: "list", Version: "v1", Resource: "namespaces"}},
		{"GET", "/api/v1/namespaces/a", request.Info{IsResource: true, Verb: "get", Version: "v1", Resource: "namespaces", Namespace: "a", Name: "a"}},
		{"PUT", "/api/v1/namespaces/a/finalize", request.Info{IsResource: true, Verb: "update", Version: "v1", Resource: "namespaces", Namespace: "a", Name: "a", Subresource: "finalize"}},
		{"POST", "/apis/apps/v1/namespaces/a/deployments", request.Info{IsResource: true, Verb: "create", Group: "apps", Version: "v1", Resource: "deployments", Namespace: "a"}},
		{"PATCH", "/apis/apps/v1/namespaces/a/deployments/d/scale", request.Info{IsResource: true, Verb: "patch", Group: "apps", Version: "v1", Resource: "deployments", Namespace: "a", Name: "d", Subresource: "scale"}},
		{"DELETE", "/apis/apps/v1/namespaces/a/deployments/d/", request.Info{IsResource: true, Verb: "delete", Group: "apps", Version: "v1", Resource: "deployments", Namespace: "a", Name: "d"}},
		{"DELETE", "/api/v1/namespaces/a/pods?fieldSelector=metadata.name%3Dx", request.Info{IsResource: true, Verb: "deletecollection", Version: "v1", Resource: "pods", Namespace: "a", Name: "x"}},
		{"POST", "/api/v1/namespaces/a/pods/p/exec?command=ls", request.Info{IsResource: true, Verb: "create", Version: "v1", Resource: "pods", Namespace: "a", Name: "p", Subresource: "exec"}},
		{"GET", "/api/v1/namespaces/a/services/s:80/proxy/x//y/", request.Info{IsResource: true, Verb: "get", Version: "v1", Resource: "services", Namespace: "a", Name: "s:80", Subresource: "proxy", SubPath: "/x//y/"}},
		{"GET", "/api/v1/nodes/n/proxy/", request.Info{IsResource: true, Verb: "get", Version: "v1", Resource: "nodes", Name: "n", Subresource: "proxy", SubPath: "/"}},
	} {
		got, err := request.Parse(httptest.NewRequest(c.method, c.target, nil))
		if err != nil {
			t.Errorf("%s %s: %v", c.method, c.target, err)
			continue
		}
		if got.IsResource && got.Kind == nil {
			t.Errorf("%s %s: no kind", c.method, c.target)
		}
		got.Path, got.Query, got.Kind = "", nil, nil
		if !same(*got, c.want) {
			t.Errorf("%s %s:\n got %+v\nwant %+v", c.method, c.target, *got, c.want)
		}
	}
}

func same(a, b request.Info) bool {
	return a.IsResource == b.IsResource && a.Verb == b.Verb && a.Group == b.Group && a.Version == b.Version && a.Resource == b.Resource &&
		a.Subresource == b.Subresource && a.Namespace == b.Namespace && a.Name == b.Name && a.SubPath == b.SubPath
}

func TestParseBounds(t *testing.T) {
	for _, target := range []string{
		"/" + strings.Repeat("a", 9<<10), "/api/v1/pods?x=" + strings.Repeat("a", 65<<10), "/api/v1/pods?" + strings.Repeat("a&", 600), "/api/v1/pods?a=%zz", "/api/v1/pods?a;b",
	} {
		if _, err := request.Parse(httptest.NewRequest(http.MethodGet, target, nil)); apierrors.ReasonForError(err) != "BadRequest" {
			t.Errorf("%.40s: %v, want BadRequest", target, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{"/api/v1/pods?watch=", "/apis/apps/v1/watch/namespaces/a/b/c/d/e", "//api//v1//", "/api/v1/watch", "/api/v1/namespaces//pods", "/apis/%2e%2e/x?a=b;c"} {
		f.Add("GET", seed)
	}
	f.Fuzz(func(t *testing.T, method, target string) {
		r, err := http.NewRequest(method, "http://x", nil)
		if err != nil {
			return
		}
		path, query, _ := strings.Cut(target, "?")
		r.URL.Path, r.URL.RawQuery = path, query
		i, err := request.Parse(r)
		if (i == nil) == (err == nil) {
			t.Fatalf("%q: %v and %v", target, i, err)
		}
		if i != nil && i.SubPath != "" && i.SubPath[0] != '/' {
			t.Fatalf("%q: sub-path %q", target, i.SubPath)
		}
	})
}
