package discovery_test

import (
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clientdiscovery "k8s.io/client-go/discovery"
	"k8s.io/client-go/rest"

	"dhow.dev/pkg/resource"
	"dhow.dev/services/apiserver/internal/discovery"
)

func serve(t *testing.T) *httptest.Server {
	t.Helper()
	mux := http.NewServeMux()
	for path, handler := range discovery.New(discovery.Config{Address: "10.96.0.1:443"}) {
		mux.Handle(path, handler)
	}
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return server
}

func client(t *testing.T, server *httptest.Server, contentType string) *clientdiscovery.DiscoveryClient {
	t.Helper()
	c, err := clientdiscovery.NewDiscoveryClientForConfig(&rest.Config{Host: server.URL, ContentConfig: rest.ContentConfig{ContentType: contentType}})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestClients: client-go finds the same kinds through the aggregated document and through one document a version, in JSON and in protobuf.
func TestClients(t *testing.T) {
	server := serve(t)
	groups, aggregated, err := client(t, server, "").ServerGroupsAndResources()
	if err != nil {
		t.Fatal(err)
	}
	legacy := client(t, server, "application/vnd.kubernetes.protobuf").WithLegacy()
	legacyGroups, single, err := legacy.ServerGroupsAndResources()
	if err != nil {
		t.Fatal(err)
	}
	if len(groups) == 0 || len(groups) != len(legacyGroups) {
		t.Errorf("%d groups, %d by single documents", len(groups), len(legacyGroups))
	}
	names := func(lists []*metav1.APIResourceList) map[string]string {
		found := map[string]string{}
		for _, l := range lists {
			for _, r := range l.APIResources {
				if strings.Contains(r.Name, "/") {
					// The client fills it from the resource's.
					r.SingularName = ""
				}
				found[l.GroupVersion+"/"+r.Name] = r.Kind + " " + strings.Join(r.Verbs, ",") + " " + strings.Join(r.ShortNames, ",") + " " + strings.Join(r.Categories, ",") + " " + r.SingularName
			}
		}
		return found
	}
	if d := cmp.Diff(names(single), names(aggregated)); d != "" {
		t.Errorf("the documents differ (-single +aggregated):\n%s", d)
	}
	for _, r := range resource.All() {
		if _, found := names(aggregated)[r.APIVersion()+"/"+r.Plural]; !found {
			t.Errorf("%s is not told", r)
		}
	}
	preferred, err := client(t, server, "").ServerPreferredResources()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range preferred {
		if l.GroupVersion == "autoscaling/v1" {
			for _, r := range l.APIResources {
				if r.Name == "horizontalpodautoscalers" {
					t.Errorf("autoscalers are preferred in version 1: %+v", r)
				}
			}
		}
	}
}

// TestSubresources compares with what `kubectl get --raw /api/v1` shows on Kubernetes v1.36.
func TestSubresources(t *testing.T) {
	list, err := client(t, serve(t), "").ServerResourcesForGroupVersion("v1")
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]metav1.APIResource{}
	var names []string
	for _, r := range list.APIResources {
		got[r.Name] = r
		names = append(names, r.Name)
	}
	if !slices.IsSorted(names) {
		t.Errorf("not sorted: %v", names)
	}
	for name, want := range map[string]metav1.APIResource{
		"pods":                         {SingularName: "pod", Namespaced: true, Kind: "Pod", ShortNames: []string{"po"}, Categories: []string{"all"}, StorageVersionHash: "xPOwRZ+Yhw8=", Verbs: []string{"create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"}},
		"pods/eviction":                {Namespaced: true, Group: "policy", Version: "v1", Kind: "Eviction", Verbs: []string{"create"}},
		"pods/exec":                    {Namespaced: true, Kind: "PodExecOptions", Verbs: []string{"create", "get"}},
		"pods/log":                     {Namespaced: true, Kind: "Pod", Verbs: []string{"get"}},
		"pods/proxy":                   {Namespaced: true, Kind: "PodProxyOptions", Verbs: []string{"create", "delete", "get", "patch", "update"}},
		"pods/status":                  {Namespaced: true, Kind: "Pod", Verbs: []string{"get", "patch", "update"}},
		"replicationcontrollers/scale": {Namespaced: true, Group: "autoscaling", Version: "v1", Kind: "Scale", Verbs: []string{"get", "patch", "update"}},
		"serviceaccounts/token":        {Namespaced: true, Group: "authentication.k8s.io", Version: "v1", Kind: "TokenRequest", Verbs: []string{"create"}},
		"namespaces/finalize":          {Kind: "Namespace", Verbs: []string{"update"}},
		"nodes/proxy":                  {Kind: "NodeProxyOptions", Verbs: []string{"create", "delete", "get", "patch", "update"}},
	} {
		want.Name = name
		if d := cmp.Diff(want, got[name]); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
}

func TestForms(t *testing.T) {
	server := serve(t)
	get := func(path string, headers ...string) *http.Response {
		t.Helper()
		r, err := http.NewRequest(http.MethodGet, server.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(headers); i += 2 {
			r.Header.Set(headers[i], headers[i+1])
		}
		response, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = response.Body.Close() })
		return response
	}
	const v2, beta = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList", "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList"
	for _, test := range []struct {
		path, accept, contentType string
		code                      int
	}{
		{"/apis", v2 + "," + beta + ",application/json", v2, 200},
		{"/apis", beta + ",application/json", beta, 200},
		{"/api", v2, v2, 200},
		{"/apis", "", "application/json", 200},
		{"/apis", "*/*", "application/json", 200},
		{"/apis/apps", v2 + ",application/json", "application/json", 200},
		{"/apis/apps/v1", "application/yaml", "application/yaml", 200},
		{"/apis/apps/v1", "application/vnd.kubernetes.protobuf", "application/vnd.kubernetes.protobuf", 200},
		{"/apis/apps/v1", "application/cbor", "application/json", 406},
		{"/apis/apps/v1", v2, "application/json", 406},
		{"/apis", ";;;=", "application/json", 406},
	} {
		response := get(test.path, "Accept", test.accept)
		if response.StatusCode != test.code || response.Header.Get("Content-Type") != test.contentType {
			t.Errorf("%s as %q: %d %s", test.path, test.accept, response.StatusCode, response.Header.Get("Content-Type"))
		}
	}
	etag := get("/apis", "Accept", v2).Header.Get("ETag")
	if etag == "" {
		t.Error("no ETag")
	}
	if response := get("/apis", "Accept", v2, "If-None-Match", etag); response.StatusCode != http.StatusNotModified {
		t.Errorf("with the same ETag: %d", response.StatusCode)
	}
	if response := get("/apis", "Accept", beta, "If-None-Match", etag); response.StatusCode != http.StatusOK {
		t.Errorf("with another version's ETag: %d", response.StatusCode)
	}
}

func TestIndex(t *testing.T) {
	handler := discovery.Index([]string{"/version", "/api"})
	for path, want := range map[string]int{"/": 200, "/gizmo": 404} {
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		if w.Code != want || want == 200 && w.Body.String() != "{\n  \"paths\": [\n    \"/api\",\n    \"/version\"\n  ]\n}" || want == 404 && !strings.Contains(w.Body.String(), `"reason":"NotFound"`) {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
	}
}

// TestStorageVersionHashes compares with those of Kubernetes' own discovery documents: they name the version that objects are stored in.
func TestStorageVersionHashes(t *testing.T) {
	c := client(t, serve(t), "application/vnd.kubernetes.protobuf").WithLegacy()
	for version, hashes := range map[string]map[string]string{
		"v1":                   {"configmaps": "qFsyl6wFWjQ=", "endpoints": "fWeeMqaN/OA=", "events": "r2yiGXH7wu8=", "nodes": "XwShjMxG9Fs=", "services": "0/CO1lhkEBI=", "bindings": "", "componentstatuses": ""},
		"events.k8s.io/v1":     {"events": "r2yiGXH7wu8="},
		"autoscaling/v1":       {"horizontalpodautoscalers": "qwQve8ut294="},
		"autoscaling/v2":       {"horizontalpodautoscalers": "qwQve8ut294="},
		"networking.k8s.io/v1": {"ingresses": "39NQlfNR+bo=", "ingressclasses": "l/iqIbDgFyQ=", "networkpolicies": "YpfwF18m1G8="},
	} {
		list, err := c.ServerResourcesForGroupVersion(version)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range list.APIResources {
			if want, known := hashes[r.Name]; known && r.StorageVersionHash != want {
				t.Errorf("%s %s: %s, not %s", version, r.Name, r.StorageVersionHash, want)
			}
		}
	}
}

// FuzzAccept: whatever a client accepts, it gets an answer.
func FuzzAccept(f *testing.F) {
	f.Add("application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json", "GET")
	f.Add("application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io", "HEAD")
	f.Add(",;=\x00, */*;q=2", "POST")
	paths := discovery.New(discovery.Config{})
	f.Fuzz(func(t *testing.T, accept, method string) {
		for _, path := range []string{"/api", "/apis", "/apis/apps/v1"} {
			r, err := http.NewRequest(method, path, nil)
			if err != nil {
				return
			}
			r.Header["Accept"] = []string{accept}
			w := httptest.NewRecorder()
			paths[path].ServeHTTP(w, r)
			if w.Code != http.StatusOK && w.Code != http.StatusNotAcceptable && w.Code != http.StatusMethodNotAllowed {
				t.Errorf("%s %s as %q: %d", method, path, accept, w.Code)
			}
		}
	})
}

func TestLookup(t *testing.T) {
	pods := resource.Lookup("", "pods")
	for name, verbs := range map[string]string{"exec": "create,get", "status": "get,patch,update", "eviction": "create"} {
		s := discovery.Lookup(pods, name)
		if s == nil || strings.Join(s.Verbs, ",") != verbs || !s.Allows(s.Verbs[0]) || s.Allows("list") {
			t.Errorf("pods/%s: %+v", name, s)
		}
	}
	if s := discovery.Lookup(pods, "scale"); s != nil {
		t.Errorf("pods/scale: %+v", s)
	}
	if s := discovery.Lookup(resource.LookupVersion("autoscaling", "v1", "horizontalpodautoscalers"), "status"); s == nil || s.Kind.Version != "v1" {
		t.Errorf("the status of another version: %+v", s)
	}
	if !discovery.ReturnsDeleted(pods.GroupVersionKind().GroupKind()) || discovery.ReturnsDeleted(resource.Lookup("apps", "deployments").GroupVersionKind().GroupKind()) {
		t.Error("deletions answer with pods, and not with deployments")
	}
}
