package apiserver_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"dhow.dev/services/apiserver/internal/respond"
)

// FuzzDoor sends requests that hold anything: selectors, continue tokens, options, bodies in every encoding, and patches. Whatever comes, the door answers, and
// what is bad with a Status that blames the client.
func FuzzDoor(f *testing.F) {
	const (
		maps = "/api/v1/namespaces/default/configmaps"
		one  = maps + "/seed"
	)
	seed := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "seed"}, Data: map[string]string{"a": "b"}}
	encoded, _, err := respond.Encode(respond.Form{Media: respond.Protobuf}, seed)
	if err != nil {
		f.Fatal(err)
	}
	for _, s := range []struct{ method, path, query, contentType, body string }{
		{"GET", maps, "labelSelector=a in (b,c),!d&fieldSelector=metadata.name!=x", "", ""},
		{"GET", maps, "labelSelector=((((&fieldSelector=\\,=", "", ""},
		{"GET", maps, "limit=2&continue=Af7vCAIvcmVnaXN0cnkvY29yZS9jb25maWdtYXBzL2RlZmF1bHQvYQ", "", ""},
		{"GET", maps, "limit=-1&continue=AQ", "", ""},
		{"GET", maps, "resourceVersion=99999999999999999999&resourceVersionMatch=Exact", "", ""},
		{"GET", maps, "watch=1&timeoutSeconds=1&resourceVersion=1", "", ""},
		{"GET", maps, "watch=1&timeoutSeconds=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true", "", ""},
		{"POST", maps, "dryRun=All&fieldManager=m&fieldValidation=Strict", "application/json", `{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"x"}}`},
		{"POST", maps, "", "application/yaml", "kind: ConfigMap\napiVersion: v1\nmetadata: &m {name: y, labels: {<<: *m}}\n"},
		{"POST", maps, "", "application/vnd.kubernetes.protobuf", string(encoded)},
		{"PUT", one, "", "application/vnd.kubernetes.protobuf", string(encoded[:len(encoded)-3])},
		{"PATCH", one, "", "application/json-patch+json", `[{"op":"copy","from":"/data","path":"/data/a"},{"op":"remove","path":"/metadata"}]`},
		{"PATCH", one, "", "application/merge-patch+json", `{"data":null,"metadata":{"labels":{"a":null}}}`},
		{"PATCH", one, "", "application/strategic-merge-patch+json", `{"$patch":"replace","$retainKeys":[1],"metadata":{"$deleteFromPrimitiveList/finalizers":["x"]}}`},
		{"PATCH", one, "fieldManager=f&force=true", "application/apply-patch+yaml", "kind: ConfigMap\napiVersion: v1\nmetadata: {name: seed, managedFields: []}\ndata: {a: [1]}\n"},
		{"DELETE", one, "", "application/json", `{"kind":"DeleteOptions","apiVersion":"v1","gracePeriodSeconds":-9,"preconditions":{"uid":"x"},"dryRun":["All"]}`},
		{"DELETE", one, "propagationPolicy=Orphan&gracePeriodSeconds=x", "", ""},
		{"POST", "/api/v1/namespaces/default/pods/p/eviction", "", "application/json", `{"kind":"Eviction","apiVersion":"policy/v1"}`},
		{"POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", "", "application/json", `{"spec":{"resourceAttributes":{"fieldSelector":{"rawSelector":"=("}}}}`},
		{"POST", "/api/v1/namespaces/default/serviceaccounts/default/token", "", "application/json", `{"spec":{"expirationSeconds":-1}}`},
		{"PUT", "/apis/apps/v1/namespaces/default/deployments/d/scale", "", "application/json", `{"spec":{"replicas":1e99}}`},
	} {
		f.Add(s.method, s.path, s.query, s.contentType, []byte(s.body))
	}
	door := newFuzzedDoor(f, seed)
	f.Fuzz(func(t *testing.T, method, path, query, contentType string, body []byte) {
		r, err := http.NewRequest(method, "http://door", strings.NewReader(string(body)))
		if err != nil || !strings.HasPrefix(path, "/") {
			return
		}
		// The proxies and streams of nodes that are not there wait for them.
		if strings.Contains(path, "proxy") || strings.Contains(path, "/log") {
			return
		}
		r.URL = door.root.ResolveReference(&url.URL{Path: path, RawQuery: url.PathEscape(query)})
		if !strings.ContainsAny(query, " \\") {
			r.URL.RawQuery = query
		}
		r.Header["Content-Type"] = []string{contentType}
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		w, err := door.client.Do(r.WithContext(ctx))
		if err != nil {
			return // not a request that HTTP can carry, or a watch that goes on
		}
		defer w.Body.Close()
		answer, err := io.ReadAll(io.LimitReader(w.Body, 16<<20))
		if err != nil && ctx.Err() == nil {
			t.Fatalf("%s %s?%s: %v", method, path, query, err)
		}
		if w.StatusCode >= http.StatusInternalServerError && w.StatusCode != http.StatusGatewayTimeout {
			t.Errorf("%s %s?%s %q: %d %s", method, path, query, body, w.StatusCode, answer)
		}
		if w.StatusCode >= http.StatusBadRequest && w.Header.Get("Content-Type") == jsonType && method != http.MethodHead {
			var status metav1.Status
			if err := json.Unmarshal(answer, &status); err != nil || status.Kind != "Status" || int(status.Code) != w.StatusCode {
				t.Errorf("%s %s?%s: %d %s", method, path, query, w.StatusCode, answer)
			}
		}
	})
}

// fuzzedDoor is a door with an object in it.
type fuzzedDoor struct {
	client *http.Client
	root   *url.URL
}

func newFuzzedDoor(f *testing.F, seed *corev1.ConfigMap) fuzzedDoor {
	f.Helper()
	k := newKubernetesCluster(f)
	client, err := rest.HTTPClientFor(k.root)
	if err != nil {
		f.Fatal(err)
	}
	if _, err := clientset(f, k.root).CoreV1().ConfigMaps("default").Create(within(f), seed, metav1.CreateOptions{}); err != nil {
		f.Fatal(err)
	}
	root, err := url.Parse(k.root.Host)
	if err != nil {
		f.Fatal(err)
	}
	return fuzzedDoor{client: client, root: root}
}
