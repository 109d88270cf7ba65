package impersonate

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"dhow.dev/pkg/identity"
	"dhow.dev/services/apiserver/internal/authorizer"
)

// gate allows what is in its list, and remembers what it was asked.
type gate struct {
	mu      sync.Mutex
	allowed []string
	asked   []string
}

func (g *gate) Authorize(_ context.Context, a authorizer.Attributes) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	key := fmt.Sprintf("%s %s/%s/%s %s/%s", a.Verb, a.Group, a.Resource, a.Subresource, a.Namespace, a.Name)
	g.asked = append(g.asked, key)
	if !slices.Contains(g.allowed, key) && !slices.Contains(g.allowed, "all") {
		return authorizer.Forbidden(a, "")
	}
	return nil
}

// pass sends a request with headers through the filter and returns whom the handler saw.
func pass(t *testing.T, g *gate, headers http.Header) (identity.Identity, int, string) {
	t.Helper()
	var seen identity.Identity
	handler := New(Config{Authorizer: g}).Wrap(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		seen, _ = identity.FromContext(r.Context())
		for name := range r.Header {
			if strings.HasPrefix(name, "Impersonate-") {
				t.Errorf("the handler sees %s", name)
			}
		}
	}))
	r := httptest.NewRequest(http.MethodGet, "/api/v1/pods", nil)
	r.Header = headers
	r = r.WithContext(identity.NewContext(r.Context(), identity.Identity{Name: "root", Groups: []string{"admins"}}))
	w := httptest.NewRecorder()
	handler.ServeHTTP(w, r)
	return seen, w.Code, w.Body.String()
}

func TestImpersonation(t *testing.T) {
	for name, c := range map[string]struct {
		headers http.Header
		want    identity.Identity
		asked   []string
	}{
		"nobody": {want: identity.Identity{Name: "root", Groups: []string{"admins"}}},
		"a user": {
			headers: http.Header{"Impersonate-User": {"jane"}},
			want:    identity.Identity{Name: "jane", Groups: []string{identity.AllAuthenticated}},
			asked:   []string{"impersonate /users/ /jane"},
		},
		"with groups": {
			headers: http.Header{"Impersonate-User": {"jane"}, "Impersonate-Group": {"a", "b"}},
			want:    identity.Identity{Name: "jane", Groups: []string{"a", "b", identity.AllAuthenticated}},
			asked:   []string{"impersonate /users/ /jane", "impersonate /groups/ /a", "impersonate /groups/ /b"},
		},
		"with all": {
			headers: http.Header{"Impersonate-User": {"jane"}, "Impersonate-Uid": {"42"}, "Impersonate-Extra-Example.org%2fscopes": {"x", "y"}},
			want: identity.Identity{
				Name: "jane", UID: "42", Groups: []string{identity.AllAuthenticated}, Extra: map[string][]string{"example.org/scopes": {"x", "y"}},
			},
			asked: []string{
				"impersonate /users/ /jane", "impersonate authentication.k8s.io/userextras/example.org/scopes /x",
				"impersonate authentication.k8s.io/userextras/example.org/scopes /y", "impersonate authentication.k8s.io/uids/ /42",
			},
		},
		"a service account": {
			headers: http.Header{"Impersonate-User": {"system:serviceaccount:shop:robot"}},
			want: identity.Identity{Name: "system:serviceaccount:shop:robot", Groups: []string{
				identity.ServiceAccounts, identity.ServiceAccountGroup("shop"), identity.AllAuthenticated,
			}},
			asked: []string{"impersonate /serviceaccounts/ shop/robot"},
		},
		"the anonymous": {
			headers: http.Header{"Impersonate-User": {identity.Anonymous}},
			want:    identity.Identity{Name: identity.Anonymous, Groups: []string{identity.AllUnauthenticated}},
			asked:   []string{"impersonate /users/ /" + identity.Anonymous},
		},
		"one who is not authenticated": {
			headers: http.Header{"Impersonate-User": {"jane"}, "Impersonate-Group": {identity.AllUnauthenticated}},
			want:    identity.Identity{Name: "jane", Groups: []string{identity.AllUnauthenticated}},
			asked:   []string{"impersonate /users/ /jane", "impersonate /groups/ /" + identity.AllUnauthenticated},
		},
	} {
		t.Run(name, func(t *testing.T) {
			g := &gate{allowed: []string{"all"}}
			got, code, body := pass(t, g, c.headers)
			if code != http.StatusOK || !reflect.DeepEqual(got, c.want) {
				t.Errorf("%d %s\ngot  %+v\nwant %+v", code, body, got, c.want)
			}
			if !slices.Equal(g.asked, c.asked) {
				t.Errorf("asked %q\nwant  %q", g.asked, c.asked)
			}
			// Each single thing must be allowed.
			for i := range c.asked {
				g := &gate{allowed: slices.Delete(slices.Clone(c.asked), i, i+1)}
				if _, code, _ := pass(t, g, c.headers.Clone()); code != http.StatusForbidden {
					t.Errorf("without %q: %d", c.asked[i], code)
				}
			}
		})
	}
}

func TestWithoutAUser(t *testing.T) {
	for _, headers := range []http.Header{{"Impersonate-Group": {"a"}}, {"Impersonate-Uid": {"1"}}, {"Impersonate-Extra-X": {"y"}}} {
		if _, code, body := pass(t, &gate{allowed: []string{"all"}}, headers); code != http.StatusBadRequest || !strings.Contains(body, "without impersonating a user") {
			t.Errorf("%v: %d %s", headers, code, body)
		}
	}
}

// TestClientGo impersonates as client-go writes the headers.
func TestClientGo(t *testing.T) {
	var seen identity.Identity
	filter := New(Config{Authorizer: &gate{allowed: []string{"all"}}})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		filter.Wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			seen, _ = identity.FromContext(r.Context())
			http.Error(w, "seen", http.StatusTeapot)
		})).ServeHTTP(w, r.WithContext(identity.NewContext(r.Context(), identity.Identity{Name: "root"})))
	}))
	defer server.Close()
	client, err := kubernetes.NewForConfig(&rest.Config{Host: server.URL, Impersonate: rest.ImpersonationConfig{
		UserName: "jane", UID: "7", Groups: []string{"devs"}, Extra: map[string][]string{"Example.org/Scopes": {"a b"}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	_, err = client.CoreV1().Pods("x").List(t.Context(), metav1.ListOptions{})
	if err == nil {
		t.Fatal("the handler gives no list")
	}
	want := identity.Identity{Name: "jane", UID: "7", Groups: []string{"devs", identity.AllAuthenticated}, Extra: map[string][]string{"example.org/scopes": {"a b"}}}
	if !reflect.DeepEqual(seen, want) {
		t.Errorf("got  %+v\nwant %+v", seen, want)
	}
}
