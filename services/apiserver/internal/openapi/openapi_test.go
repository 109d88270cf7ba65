package openapi_test

import (
	"compress/gzip"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/runtime/schema"
	clientdiscovery "k8s.io/client-go/discovery"
	"k8s.io/client-go/openapi3"
	"k8s.io/client-go/rest"
	"k8s.io/kube-openapi/pkg/spec3"
	"k8s.io/kube-openapi/pkg/util/proto"
	"k8s.io/kube-openapi/pkg/validation/spec"

	"dhow.dev/pkg/resource"
	"dhow.dev/services/apiserver/internal/discovery"
	"dhow.dev/services/apiserver/internal/openapi"
)

func serve(t *testing.T) (*httptest.Server, *clientdiscovery.DiscoveryClient) {
	t.Helper()
	mux := http.NewServeMux()
	for path, handler := range openapi.New(openapi.Config{Version: "v1.36.3"}) {
		mux.Handle(path, handler)
	}
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return server, clientdiscovery.NewDiscoveryClientForConfigOrDie(&rest.Config{Host: server.URL})
}

// TestVersion3 reads every document as kubectl does, and looks for each kind's schema and paths.
func TestVersion3(t *testing.T) {
	_, client := serve(t)
	root := openapi3.NewRoot(client.OpenAPIV3())
	versions, err := root.GroupVersions()
	if err != nil {
		t.Fatal(err)
	}
	documents := map[schema.GroupVersion]*spec3.OpenAPI{}
	for _, v := range versions {
		if documents[v], err = root.GVSpec(v); err != nil {
			t.Fatalf("%s: %v", v, err)
		}
	}
	for _, r := range resource.All() {
		gvk := r.GroupVersionKind()
		document := documents[gvk.GroupVersion()]
		if document == nil {
			t.Errorf("%s: no document", gvk)
			continue
		}
		if s := schemaOf(document, gvk); s == nil || s.Description == "" {
			t.Errorf("%s has no schema, or one without description", gvk)
		}
		prefix := "/apis/" + gvk.GroupVersion().String()
		if gvk.Group == "" {
			prefix = "/api/v1"
		}
		collection := prefix + "/" + r.Plural
		if r.Namespaced {
			collection = prefix + "/namespaces/{namespace}/" + r.Plural
		}
		if p := document.Paths.Paths[collection]; r.Allows("create") && (p == nil || p.Post == nil || p.Post.Extensions["x-kubernetes-action"] != "post") {
			t.Errorf("%s: no POST %s", gvk, collection)
		}
		if p := document.Paths.Paths[collection+"/{name}"]; r.Allows("patch") {
			if p == nil || p.Patch == nil || !slices.ContainsFunc(p.Patch.Parameters, func(p *spec3.Parameter) bool { return p.Name == "fieldValidation" && p.In == "query" }) {
				t.Errorf("%s: PATCH %s/{name} without fieldValidation", gvk, collection)
			}
		}
		for _, s := range discovery.Subresources(r) {
			if document.Paths.Paths[collection+"/{name}/"+s.Name] == nil {
				t.Errorf("%s: no path for %s", gvk, s.Name)
			}
		}
	}
}

func schemaOf(document *spec3.OpenAPI, gvk schema.GroupVersionKind) *spec.Schema {
	for _, s := range document.Components.Schemas {
		var kinds []map[string]string
		if s.Extensions.GetObject("x-kubernetes-group-version-kind", &kinds) != nil {
			continue
		}
		for _, k := range kinds {
			if k["group"] == gvk.Group && k["version"] == gvk.Version && k["kind"] == gvk.Kind {
				return s
			}
		}
	}
	return nil
}

// TestReferences: a document refers to nothing that it does not hold, and holds nothing that is referred to nowhere.
func TestReferences(t *testing.T) {
	server, client := serve(t)
	paths, err := client.OpenAPIV3().Paths()
	if err != nil {
		t.Fatal(err)
	}
	for name := range paths {
		text := fetch(t, server.URL+"/openapi/v3/"+name)
		var document struct {
			Components struct {
				Schemas map[string]json.RawMessage `json:"schemas"`
			} `json:"components"`
		}
		if err := json.Unmarshal(text, &document); err != nil {
			t.Fatal(err)
		}
		for _, piece := range strings.Split(string(text), `"#/components/schemas/`)[1:] {
			if referred, _, _ := strings.Cut(piece, `"`); document.Components.Schemas[referred] == nil {
				t.Errorf("%s: no schema %s", name, referred)
			}
		}
		for schema := range document.Components.Schemas {
			if !strings.Contains(string(text), `"#/components/schemas/`+schema+`"`) {
				t.Errorf("%s: schema %s is not used", name, schema)
			}
		}
	}
}

func fetch(t *testing.T, url string) []byte {
	t.Helper()
	response, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("%s: %d %v", url, response.StatusCode, err)
	}
	return text
}

// TestSchemas looks at what clients build upon: types with a form of their own, merge keys, list types, defaults and enums.
func TestSchemas(t *testing.T) {
	_, client := serve(t)
	core, err := openapi3.NewRoot(client.OpenAPIV3()).GVSpec(schema.GroupVersion{Version: "v1"})
	if err != nil {
		t.Fatal(err)
	}
	schemas := core.Components.Schemas
	pod := schemas["io.k8s.api.core.v1.PodSpec"]
	containers := pod.Properties["containers"]
	for key, want := range map[string]string{"x-kubernetes-patch-merge-key": "name", "x-kubernetes-patch-strategy": "merge", "x-kubernetes-list-type": "map"} {
		if got, _ := containers.Extensions.GetString(key); got != want {
			t.Errorf("containers: %s is %q", key, got)
		}
	}
	if !slices.Contains(pod.Required, "containers") {
		t.Errorf("PodSpec requires %v", pod.Required)
	}
	if got, _ := pod.Properties["tolerations"].Extensions.GetString("x-kubernetes-list-type"); got != "atomic" {
		t.Errorf("tolerations are %q", got)
	}
	if got := schemas["io.k8s.api.core.v1.ContainerPort"].Properties["protocol"]; got.Default != "TCP" || len(got.Enum) != 3 {
		t.Errorf("protocol %+v", got)
	}
	if got := schemas["io.k8s.apimachinery.pkg.api.resource.Quantity"]; len(got.OneOf) != 2 {
		t.Errorf("Quantity %+v", got)
	}
	if got := schemas["io.k8s.apimachinery.pkg.util.intstr.IntOrString"]; got.Format != "int-or-string" || len(got.OneOf) != 2 {
		t.Errorf("IntOrString %+v", got)
	}
	if got := schemas["io.k8s.apimachinery.pkg.apis.meta.v1.Time"]; !got.Type.Contains("string") || got.Format != "date-time" {
		t.Errorf("Time %+v", got)
	}
	exec := core.Paths.Paths["/api/v1/namespaces/{namespace}/pods/{name}/exec"]
	if exec == nil || exec.Get == nil || exec.Get.Extensions["x-kubernetes-action"] != "connect" || exec.Get.OperationId != "connectCoreV1GetNamespacedPodExec" {
		t.Fatalf("exec %+v", exec)
	}
	if !slices.ContainsFunc(exec.Parameters, func(p *spec3.Parameter) bool { return p.Name == "command" && p.Schema.Type.Contains("string") }) {
		t.Error("exec takes no command")
	}
}

// TestVersion2 reads the document in its protobuf form, as kubectl does, and follows a merge key in it.
func TestVersion2(t *testing.T) {
	server, client := serve(t)
	document, err := client.OpenAPISchema()
	if err != nil {
		t.Fatal(err)
	}
	models, err := proto.NewOpenAPIData(document)
	if err != nil {
		t.Fatal(err)
	}
	spec, ok := models.LookupModel("io.k8s.api.core.v1.PodSpec").(*proto.Kind)
	if !ok {
		t.Fatalf("PodSpec is %T", models.LookupModel("io.k8s.api.core.v1.PodSpec"))
	}
	containers := spec.Fields["containers"]
	if containers.GetExtensions()["x-kubernetes-patch-merge-key"] != "name" || !strings.Contains(containers.GetDescription(), "List of containers belonging to the pod") {
		t.Errorf("containers %+v: %s", containers.GetExtensions(), containers.GetDescription())
	}
	var plain struct {
		Swagger     string
		Info        struct{ Version string }
		Paths       map[string]map[string]json.RawMessage
		Definitions map[string]json.RawMessage
	}
	if err := json.Unmarshal(fetch(t, server.URL+"/openapi/v2"), &plain); err != nil {
		t.Fatal(err)
	}
	if plain.Swagger != "2.0" || plain.Info.Version != "v1.36.3" || len(plain.Definitions) != len(document.GetDefinitions().GetAdditionalProperties()) || len(plain.Paths) != len(document.GetPaths().GetPath()) {
		t.Errorf("%s %s: %d definitions, %d paths; in protobuf %d and %d", plain.Swagger, plain.Info.Version, len(plain.Definitions), len(plain.Paths),
			len(document.GetDefinitions().GetAdditionalProperties()), len(document.GetPaths().GetPath()))
	}
	if got := string(plain.Definitions["io.k8s.apimachinery.pkg.api.resource.Quantity"]); !strings.Contains(got, `"type":"string"`) || strings.Contains(got, "oneOf") {
		t.Errorf("Quantity %s", got)
	}
	if text := string(fetch(t, server.URL+"/openapi/v2")); strings.Contains(text, "#/components/") {
		t.Error("the document of version 2 refers as version 3 does")
	}
}

// TestAnswers goes through forms, hashes and refusals.
func TestAnswers(t *testing.T) {
	server, client := serve(t)
	paths, err := client.OpenAPIV3().Paths()
	if err != nil {
		t.Fatal(err)
	}
	apps := paths["apis/apps/v1"].ServerRelativeURL()
	plain := &http.Client{Transport: &http.Transport{DisableCompression: true}, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	do := func(method, path string, headers ...string) *http.Response {
		t.Helper()
		r, err := http.NewRequest(method, server.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(headers); i += 2 {
			r.Header.Set(headers[i], headers[i+1])
		}
		response, err := plain.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = response.Body.Close() })
		return response
	}
	known := do("GET", apps)
	if known.StatusCode != 200 || !strings.Contains(known.Header.Get("Cache-Control"), "immutable") {
		t.Errorf("%s: %d %v", apps, known.StatusCode, known.Header)
	}
	if r := do("GET", apps, "If-None-Match", known.Header.Get("ETag")); r.StatusCode != http.StatusNotModified {
		t.Errorf("with the same ETag: %d", r.StatusCode)
	}
	if r := do("GET", "/openapi/v3/apis/apps/v1?hash=OLD"); r.StatusCode != http.StatusMovedPermanently || r.Header.Get("Location") != apps {
		t.Errorf("an old hash: %d %s", r.StatusCode, r.Header.Get("Location"))
	}
	if r := do("GET", "/openapi/v3/apis/gizmo/v1"); r.StatusCode != http.StatusNotFound {
		t.Errorf("an unknown group: %d", r.StatusCode)
	}
	if r := do("POST", "/openapi/v2"); r.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST: %d", r.StatusCode)
	}
	for accept, want := range map[string]string{
		"application/com.github.proto-openapi.spec.v3@v1.0+protobuf":                "application/com.github.proto-openapi.spec.v3.v1.0+protobuf",
		"application/com.github.proto-openapi.spec.v3.v1.0+protobuf;q=1, */*;q=0.1": "application/com.github.proto-openapi.spec.v3.v1.0+protobuf",
		"text/plain, application/json":                                              "application/json",
	} {
		if r := do("GET", apps, "Accept", accept); r.StatusCode != 200 || r.Header.Get("Content-Type") != want {
			t.Errorf("%s: %d %s", accept, r.StatusCode, r.Header.Get("Content-Type"))
		}
	}
	if r := do("GET", apps, "Accept", "text/plain"); r.StatusCode != http.StatusNotAcceptable {
		t.Errorf("text: %d", r.StatusCode)
	}
	compressed := do("GET", "/openapi/v2", "Accept-Encoding", "gzip")
	if compressed.Header.Get("Content-Encoding") != "gzip" {
		t.Fatalf("not compressed: %v", compressed.Header)
	}
	reader, err := gzip.NewReader(compressed.Body)
	if err != nil {
		t.Fatal(err)
	}
	if text, err := io.ReadAll(reader); err != nil || !json.Valid(text) {
		t.Errorf("compressed: %d bytes, %v", len(text), err)
	}
}

// BenchmarkBuild measures what the first request costs, with its memory.
func BenchmarkBuild(b *testing.B) {
	for b.Loop() {
		handlers := openapi.New(openapi.Config{Version: "v1.36.3"})
		w := httptest.NewRecorder()
		handlers["/openapi/v3"].ServeHTTP(w, httptest.NewRequest("GET", "/openapi/v3", nil))
		if w.Code != 200 {
			b.Fatal(w.Code)
		}
	}
}

// BenchmarkProtobuf measures what the first request for version 2 in protobuf costs on top.
func BenchmarkProtobuf(b *testing.B) {
	for b.Loop() {
		handlers := openapi.New(openapi.Config{Version: "v1.36.3"})
		r := httptest.NewRequest("GET", "/openapi/v2", nil)
		r.Header.Set("Accept", "application/com.github.proto-openapi.spec.v2.v1.0+protobuf")
		w := httptest.NewRecorder()
		handlers["/openapi/v2"].ServeHTTP(w, r)
		if w.Code != 200 {
			b.Fatal(w.Code)
		}
	}
}

// TestSameBytes: hashes are the same in every process, so that clients may ask several API servers.
func TestSameBytes(t *testing.T) {
	etags := func() (found []string) {
		handlers := openapi.New(openapi.Config{Version: "v1.36.3"})
		for _, path := range []string{"/openapi/v2", "/openapi/v3"} {
			w := httptest.NewRecorder()
			handlers[path].ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
			found = append(found, w.Header().Get("ETag"))
		}
		return found
	}
	if one, other := etags(), etags(); !slices.Equal(one, other) || one[0] == "" {
		t.Errorf("%v and %v", one, other)
	}
}

// FuzzAnswers: whatever a client accepts and names, it gets an answer.
func FuzzAnswers(f *testing.F) {
	f.Add("/openapi/v3/apis/apps/v1?hash=A", "application/com.github.proto-openapi.spec.v3@v1.0+protobuf;q=1,*/*;q=0.1", "W/\"x\"")
	f.Add("/openapi/v3/", "application/json;;=", "")
	f.Add("/openapi/v2?x=%zz", ",,;,", "\"")
	handlers := openapi.New(openapi.Config{Version: "v1.36.3"})
	f.Fuzz(func(t *testing.T, target, accept, etag string) {
		r, err := http.NewRequest(http.MethodGet, target, nil)
		if err != nil {
			return
		}
		r.Header["Accept"], r.Header["If-None-Match"] = []string{accept}, []string{etag}
		for _, handler := range handlers {
			w := httptest.NewRecorder()
			handler.ServeHTTP(w, r)
			switch w.Code {
			case http.StatusOK, http.StatusMovedPermanently, http.StatusNotModified, http.StatusNotFound, http.StatusNotAcceptable:
			default:
				t.Errorf("%s %q: %d", target, accept, w.Code)
			}
		}
	})
}
