package apiserver_test

import (
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	storev1 "dhow.dev/gen/go/dhow/store/v1"
	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/pki"
	"dhow.dev/services/apiserver"
)

// kubernetesCluster is a cluster whose API servers have a Kubernetes door.
type kubernetesCluster struct {
	*cluster
	authority *pki.Authority
	dir       string
	root      *rest.Config
}

func newKubernetesCluster(t testing.TB) *kubernetesCluster {
	t.Helper()
	k := &kubernetesCluster{dir: t.TempDir()}
	var err error
	if k.authority, err = pki.LoadOrCreate(k.dir); err != nil {
		t.Fatal(err)
	}
	k.issue(t, "apiserver", pki.Request{Identity: identity.Identity{Name: identity.APIServer}, DNSNames: []string{"localhost"}, IPs: []net.IP{net.IPv4(127, 0, 0, 1)}, Server: true, Client: true})
	k.issue(t, "admin", pki.Request{Identity: identity.Identity{Name: identity.Admin, Groups: []string{identity.Masters}}, Client: true})
	k.cluster = newClusterWith(t, func(c *apiserver.Config) { k.root = k.door(t, c) })
	return k
}

func (k *kubernetesCluster) issue(t testing.TB, name string, request pki.Request) pki.Files {
	t.Helper()
	files := pki.FilesIn(k.dir, name)
	if _, err := k.authority.Ensure(files, request); err != nil {
		t.Fatal(err)
	}
	return files
}

// door gives an API server a Kubernetes door, and returns how its admin connects.
func (k *kubernetesCluster) door(t testing.TB, c *apiserver.Config) *rest.Config {
	t.Helper()
	pair, err := pki.LoadKeyPair(pki.FilesIn(k.dir, "apiserver"))
	if err != nil {
		t.Fatal(err)
	}
	if c.Kubernetes, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	c.KubernetesTLS = pair
	return k.as("admin", c.Kubernetes.Addr().String())
}

// as is how somebody who has a certificate connects. An empty name has none.
func (k *kubernetesCluster) as(name, address string) *rest.Config {
	config := &rest.Config{Host: "https://" + address, QPS: -1, TLSClientConfig: rest.TLSClientConfig{CAData: k.authority.CertificatePEM()}}
	if name != "" {
		files := pki.FilesIn(k.dir, name)
		config.CertFile, config.KeyFile = files.Certificate, files.Key
	}
	return config
}

// encodedAs is a copy of a configuration with another content type.
func encodedAs(config *rest.Config, contentType string) *rest.Config {
	own := rest.CopyConfig(config)
	own.ContentType = contentType
	own.AcceptContentTypes = contentType
	return own
}

const (
	jsonType     = "application/json"
	protobufType = "application/vnd.kubernetes.protobuf"
)

func clientset(t testing.TB, config *rest.Config) *kubernetes.Clientset {
	t.Helper()
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// compact makes the store forget what was before now.
func (k *kubernetesCluster) compact(t testing.TB) {
	t.Helper()
	store := storev1.NewStoreClient(k.dial("store", identity.Identity{Name: identity.APIServer}))
	now, err := store.Revision(within(t), &storev1.RevisionRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.Compact(within(t), storev1.CompactRequest_builder{Revision: now.GetRevision()}.Build()); err != nil {
		t.Fatal(err)
	}
}

// exchange is one request as it is on the wire, and what is wanted of the answer.
type exchange struct {
	method, path, body string
	header             map[string]string
	code               int
	reason             metav1.StatusReason
	// contains are pieces of the body, headers of the answer's header.
	contains []string
	headers  map[string]string
}

func (x exchange) run(t *testing.T, client *http.Client, host string) {
	t.Helper()
	r, err := http.NewRequestWithContext(within(t), x.method, host+x.path, strings.NewReader(x.body))
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range x.header {
		r.Header.Set(name, value)
	}
	w, err := client.Do(r)
	if err != nil {
		t.Errorf("%s %s: %v", x.method, x.path, err)
		return
	}
	defer w.Body.Close()
	body, err := io.ReadAll(w.Body)
	if err != nil {
		t.Errorf("%s %s: %v", x.method, x.path, err)
	}
	where := x.method + " " + x.path
	if len(where) > 120 {
		where = where[:120]
	}
	if w.StatusCode != x.code {
		t.Errorf("%s: %d, want %d: %.600s", where, w.StatusCode, x.code, body)
	}
	if x.reason != "" {
		var status metav1.Status
		if err := json.Unmarshal(body, &status); err != nil || status.Kind != "Status" || status.Reason != x.reason || int(status.Code) != w.StatusCode {
			t.Errorf("%s: %.600s, want a Status with reason %s (%v)", where, body, x.reason, err)
		}
	}
	for _, piece := range x.contains {
		if !strings.Contains(string(body), piece) {
			t.Errorf("%s: %.900s, want %s in it", where, body, piece)
		}
	}
	for name, value := range x.headers {
		if got := w.Header.Get(name); got != value {
			t.Errorf("%s: header %s is %q, want %q", where, name, got, value)
		}
	}
}

// TestDoorCodes sends requests as curl would and looks at codes, headers and words.
func TestDoorCodes(t *testing.T) {
	k := newKubernetesCluster(t)
	client, err := rest.HTTPClientFor(k.root)
	if err != nil {
		t.Fatal(err)
	}
	const maps = "/api/v1/namespaces/default/configmaps"
	config := func(name, extra string) string {
		return `{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"` + name + `"` + extra + `},"data":{"a":"b"}}`
	}
	as := func(pairs ...string) map[string]string {
		all := map[string]string{}
		for i := 0; i < len(pairs); i += 2 {
			all[pairs[i]] = pairs[i+1]
		}
		return all
	}
	deep := strings.Repeat(`{"a":`, 3000) + "1" + strings.Repeat("}", 3000)
	for _, x := range []exchange{
		{method: "GET", path: "/nothing", code: 404, reason: "NotFound"},
		{method: "GET", path: "/apis/none/v1/things", code: 404, reason: "NotFound"},
		{method: "GET", path: "/api/v1/namespaces/default/nodes", code: 404, reason: "NotFound"},
		{method: "GET", path: maps + "/x", code: 404, reason: "NotFound", contains: []string{`configmaps \"x\" not found`, `"details":{"name":"x","kind":"configmaps"}`}},
		{method: "POST", path: maps, body: config("c", ""), code: 201, contains: []string{`"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"c","namespace":"default","uid":"`}, headers: as("Content-Type", jsonType)},
		{method: "POST", path: maps, body: config("c", ""), code: 409, reason: "AlreadyExists"},
		{method: "POST", path: maps + "?dryRun=All", body: config("dry", ""), code: 201, contains: []string{`"name":"dry"`}},
		{method: "GET", path: maps + "/dry", code: 404},
		{method: "POST", path: maps + "?dryRun=Some", body: config("d", ""), code: 422, reason: "Invalid"},
		{method: "POST", path: maps + "?fieldValidation=Never", body: config("d", ""), code: 422, reason: "Invalid"},
		{method: "POST", path: maps, body: config("", `,"generateName":"gen-"`), code: 201, contains: []string{`"name":"gen-`}},
		{method: "POST", path: "/api/v1/configmaps", body: config("d", ""), code: 405, reason: "MethodNotAllowed"},
		{method: "POST", path: maps, body: config("d", `,"namespace":"other"`), code: 400, reason: "BadRequest"},
		{method: "POST", path: maps, body: `{"kind":"Pod","apiVersion":"v1"}`, code: 400, reason: "BadRequest"},
		{method: "POST", path: maps, body: `{`, code: 400, reason: "BadRequest"},
		{method: "POST", path: maps, body: deep, code: 400, reason: "BadRequest"},
		{method: "POST", path: maps, body: strings.Repeat(" ", 3<<20+1), code: 413, reason: "RequestEntityTooLarge"},
		{method: "POST", path: maps, body: config("d", ""), header: as("Content-Type", "text/plain"), code: 415, reason: "UnsupportedMediaType"},
		{method: "POST", path: maps, body: config("d", ""), header: as("Content-Type", protobufType), code: 400, reason: "BadRequest"},
		{method: "POST", path: maps, body: `{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"warned"},"dat":{}}`, code: 201, headers: as("Warning", `299 - "unknown field \"dat\""`)},
		{method: "POST", path: maps + "?fieldValidation=Strict", body: `{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"strict"},"dat":{}}`, code: 400, reason: "BadRequest", contains: []string{`strict decoding error: unknown field \"dat\"`}},
		{method: "POST", path: maps, body: "kind: ConfigMap\napiVersion: v1\nmetadata: {name: yaml}\n", header: as("Content-Type", "application/yaml", "Accept", "application/yaml"), code: 201, contains: []string{"name: yaml\n"}, headers: as("Content-Type", "application/yaml")},
		{method: "PUT", path: maps, body: config("c", ""), code: 405, reason: "MethodNotAllowed"},
		{method: "POST", path: maps + "/c", body: config("c", ""), code: 405, reason: "MethodNotAllowed"},
		{method: "DELETE", path: "/api/v1/namespaces", code: 405, reason: "MethodNotAllowed"},
		{method: "PUT", path: maps + "/c", body: config("other", ""), code: 400, reason: "BadRequest", contains: []string{"does not match the name on the URL"}},
		{method: "PUT", path: maps + "/c", body: config("c", `,"resourceVersion":"1"`), code: 409, reason: "Conflict", contains: []string{"the object has been modified"}},
		{method: "PUT", path: maps + "/c", body: config("c", `,"labels":{"x":"y"}`), code: 200, contains: []string{`"x":"y"`}},
		{method: "PUT", path: maps + "/absent", body: config("absent", ""), code: 404, reason: "NotFound"},
		{method: "GET", path: maps + "/c", header: as("Accept", "text/html"), code: 406, reason: "NotAcceptable"},
		{method: "GET", path: maps + "/c?pretty=true", code: 200, contains: []string{"{\n  \"kind\": \"ConfigMap\""}},
		{method: "HEAD", path: maps + "/c", code: 200},
		{method: "GET", path: maps + "/c", header: as("Accept", "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io"), code: 200, contains: []string{`"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1"`}},
		{method: "GET", path: maps, header: as("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io"), code: 200, contains: []string{`"kind":"Table"`, `"columnDefinitions":[{"name":"Name"`, `"kind":"PartialObjectMetadata"`}},
		{method: "GET", path: maps + "?includeObject=None", header: as("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io"), code: 200, contains: []string{`"object":null`}},
		{method: "GET", path: maps + "?labelSelector=x%3Dy", code: 200, contains: []string{`"kind":"ConfigMapList","apiVersion":"v1","metadata":{"resourceVersion":"`, `"items":[{"metadata":{"name":"c"`}},
		{method: "GET", path: maps + "?fieldSelector=spec.x%3Dy", code: 400, reason: "BadRequest", contains: []string{"field label not supported: spec.x"}},
		{method: "GET", path: maps + "?labelSelector=,,", code: 400, reason: "BadRequest"},
		{method: "GET", path: maps + "?limit=x", code: 400, reason: "BadRequest"},
		{method: "GET", path: maps + "?continue=x", code: 400, reason: "BadRequest"},
		{method: "GET", path: maps + "?resourceVersion=x", code: 422, reason: "Invalid"},
		{method: "GET", path: maps + "?resourceVersionMatch=Exact", code: 422, reason: "Invalid", contains: []string{"resourceVersionMatch is forbidden unless resourceVersion is provided"}},
		{method: "GET", path: maps + "?resourceVersion=0&resourceVersionMatch=Exact", code: 422, reason: "Invalid"},
		{method: "GET", path: maps + "?sendInitialEvents=true", code: 422, reason: "Invalid"},
		{method: "GET", path: maps + "?watch=1&sendInitialEvents=true", code: 422, reason: "Invalid"},
		{method: "GET", path: maps + "?watch=1", header: as("Accept", "application/yaml"), code: 406, contains: []string{"reason: NotAcceptable"}},
		{method: "GET", path: maps + "?watch=1&resourceVersion=1&timeoutSeconds=5", code: 200, contains: []string{`{"type":"ERROR","object":{"kind":"Status"`, `"reason":"Expired"`, `"code":410`}},
		{method: "GET", path: maps + "?timeout=soon", code: 400, reason: "BadRequest"},
		{method: "PATCH", path: maps + "/c", body: `{"data":{"m":"1"}}`, header: as("Content-Type", "application/merge-patch+json"), code: 200, contains: []string{`"m":"1"`}},
		{method: "PATCH", path: maps + "/c", body: `[{"op":"test","path":"/data/m","value":"2"}]`, header: as("Content-Type", "application/json-patch+json"), code: 422, reason: "Invalid"},
		{method: "PATCH", path: maps + "/c", body: `{}`, header: as("Content-Type", "application/json"), code: 415, reason: "UnsupportedMediaType"},
		{method: "PATCH", path: maps + "/c", body: `{}`, header: as("Content-Type", "application/apply-patch+cbor"), code: 415, reason: "UnsupportedMediaType"},
		{method: "PATCH", path: maps + "/c?force=true", body: `{}`, header: as("Content-Type", "application/merge-patch+json"), code: 422, reason: "Invalid"},
		{method: "PATCH", path: maps + "/new", body: config("new", ""), header: as("Content-Type", "application/apply-patch+yaml"), code: 422, reason: "Invalid", contains: []string{"fieldManager: Required value"}},
		{method: "PATCH", path: maps + "/new?fieldManager=me", body: config("new", ""), header: as("Content-Type", "application/apply-patch+yaml"), code: 201, contains: []string{`"operation":"Apply"`}},
		{method: "PATCH", path: maps + "/new?fieldManager=me", body: config("new", ""), header: as("Content-Type", "application/apply-patch+yaml"), code: 200},
		{method: "DELETE", path: maps + "/new", body: `{"kind":"DeleteOptions","apiVersion":"v1","preconditions":{"uid":"x"}}`, header: as("Content-Type", jsonType), code: 409, reason: "Conflict"},
		{method: "DELETE", path: maps + "/new?propagationPolicy=Never", code: 422, reason: "Invalid"},
		{method: "DELETE", path: maps + "/new", body: `{"kind":"DeleteOptions","apiVersion":"v1","propagationPolicy":"Background"}`, header: as("Content-Type", jsonType), code: 200, contains: []string{`"kind":"Status"`, `"status":"Success"`, `"details":{"name":"new","kind":"configmaps","uid":"`}},
		{method: "DELETE", path: maps + "?labelSelector=x%3Dy", code: 200, contains: []string{`"kind":"ConfigMapList"`, `"name":"c"`}},
		{method: "GET", path: maps + "/c", code: 404},
		{method: "GET", path: "/api/v1/namespaces/default/status", code: 200},
		{method: "GET", path: "/api/v1/namespaces/default/finalize", code: 405, reason: "MethodNotAllowed"},
		{method: "GET", path: "/version", code: 200, contains: []string{`"gitVersion": "v1.36`}},
		{method: "GET", path: "/readyz", code: 200, contains: []string{"ok"}},
		{method: "GET", path: "/apis", code: 200, contains: []string{"APIGroupList"}},
	} {
		x.run(t, client, k.root.Host)
	}
	t.Run("without credentials", func(t *testing.T) {
		anybody, err := rest.HTTPClientFor(k.as("", strings.TrimPrefix(k.root.Host, "https://")))
		if err != nil {
			t.Fatal(err)
		}
		exchange{method: "GET", path: maps, code: 401, reason: "Unauthorized"}.run(t, anybody, k.root.Host)
		exchange{method: "GET", path: "/livez", code: 200}.run(t, anybody, k.root.Host)
	})
	t.Run("without rights", func(t *testing.T) {
		k.issue(t, "nobody", pki.Request{Identity: identity.Identity{Name: "nobody"}, Client: true})
		nobody, err := rest.HTTPClientFor(k.as("nobody", strings.TrimPrefix(k.root.Host, "https://")))
		if err != nil {
			t.Fatal(err)
		}
		exchange{
			method: "GET", path: maps, code: 403, reason: "Forbidden",
			contains: []string{`configmaps is forbidden: User \"nobody\" cannot list resource \"configmaps\" in API group \"\" in the namespace \"default\"`},
		}.run(t, nobody, k.root.Host)
	})
}

// TestDoorMethods: what a path does not have is refused, and nothing happens.
func TestDoorMethods(t *testing.T) {
	k := newKubernetesCluster(t)
	client, err := rest.HTTPClientFor(k.root)
	if err != nil {
		t.Fatal(err)
	}
	kept := clientset(t, k.root).CoreV1().ConfigMaps("default")
	if _, err := kept.Create(within(t), labelled("kept", nil), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	const notAllowed, notFound = metav1.StatusReasonMethodNotAllowed, metav1.StatusReasonNotFound
	for _, x := range []exchange{
		// A collection is deleted in one namespace, never in all.
		{method: "DELETE", path: "/api/v1/configmaps", code: 405, reason: notAllowed},
		{method: "POST", path: "/api/v1/configmaps", body: "{}", code: 405, reason: notAllowed},
		{method: "GET", path: "/api/v1/configmaps/kept", code: 404, reason: notFound},
		{method: "DELETE", path: "/api/v1/configmaps/kept", code: 404, reason: notFound},
		{method: "DELETE", path: "/api/v1/watch/configmaps", code: 405, reason: notAllowed},
		{method: "DELETE", path: "/api/v1/watch/namespaces/default/configmaps", code: 405, reason: notAllowed},
		{method: "PUT", path: "/api/v1/namespaces/default/configmaps", body: "{}", code: 405, reason: notAllowed},
		{method: "GET", path: "/apis/authentication.k8s.io/v1/selfsubjectreviews", code: 405, reason: notAllowed},
		{method: "DELETE", path: "/apis/authentication.k8s.io/v1/selfsubjectreviews", code: 405, reason: notAllowed},
		{method: "GET", path: "/apis/authorization.k8s.io/v1/subjectaccessreviews", code: 405, reason: notAllowed},
		{method: "GET", path: "/", code: 200, contains: []string{`"/apis/apps/v1"`, `"/readyz"`, `"/openapi/v2"`}},
		{method: "GET", path: "/nothing", code: 404, reason: notFound},
		{method: "GET", path: "/api/v1/configmaps", code: 200, contains: []string{`"kept"`}},
	} {
		x.run(t, client, k.root.Host)
	}
}

// TestDoorHasHTTP2 and answers what is too large for one HTTP/1.1 header with an error, not with a hang.
func TestDoorHasHTTP2(t *testing.T) {
	k := newKubernetesCluster(t)
	client, err := rest.HTTPClientFor(k.root)
	if err != nil {
		t.Fatal(err)
	}
	w, err := client.Get(k.root.Host + "/version")
	if err != nil {
		t.Fatal(err)
	}
	w.Body.Close()
	if w.ProtoMajor != 2 {
		t.Errorf("HTTP/%d.%d, want 2", w.ProtoMajor, w.ProtoMinor)
	}
	r, err := http.NewRequestWithContext(within(t), http.MethodGet, k.root.Host+"/version", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("X-Large", strings.Repeat("x", 1<<20))
	if w, err := client.Do(r); err == nil {
		w.Body.Close()
		if w.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
			t.Errorf("a header of 1 MiB: %d", w.StatusCode)
		}
	}
}

func labelled(name string, labels map[string]string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}, Data: map[string]string{"k": "v"}}
}
