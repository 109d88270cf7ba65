package command

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
)

// door returns a client of the cluster's Kubernetes door with the admin's certificate.
func (c *cluster) door() *http.Client {
	c.t.Helper()
	c.pair("admin", adminRequest())
	file := func(name string) string { return filepath.Join(c.dir, name) }
	client, err := rest.HTTPClientFor(&rest.Config{
		Host: "https://" + c.kubernetes, TLSClientConfig: rest.TLSClientConfig{CAFile: file("ca.crt"), CertFile: file("admin.crt"), KeyFile: file("admin.key")},
	})
	if err != nil {
		c.t.Fatal(err)
	}
	return client
}

// TestDocumentedPathsAreServed calls every path that OpenAPI documents with every method that it documents: what is answered may be that the body is wrong or that
// there is no such object, never that there is no such path or method.
func TestDocumentedPathsAreServed(t *testing.T) {
	c := newCluster(t)
	client := c.door()
	call := func(method, path string) (int, metav1.Status) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		r, err := http.NewRequestWithContext(ctx, strings.ToUpper(method), "https://"+c.kubernetes+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if r.Method == http.MethodPatch {
			r.Header.Set("Content-Type", "application/merge-patch+json")
		}
		response, err := client.Do(r)
		if err != nil {
			t.Fatalf("%s %s: %v", method, path, err)
		}
		defer response.Body.Close()
		var status metav1.Status
		if response.StatusCode >= 400 {
			// Streams have no end; refusals are short.
			body, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
			if err != nil {
				t.Fatal(err)
			}
			if json.Unmarshal(body, &status) != nil && r.Method != http.MethodHead {
				t.Errorf("%s %s: %d and no Status: %s", method, path, response.StatusCode, body)
			}
		}
		return response.StatusCode, status
	}
	var document struct {
		Paths map[string]map[string]json.RawMessage `json:"paths"`
	}
	response, err := client.Get("https://" + c.kubernetes + "/openapi/v2")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if err := json.NewDecoder(response.Body).Decode(&document); err != nil {
		t.Fatal(err)
	}
	if len(document.Paths) < 100 {
		t.Fatalf("%d paths", len(document.Paths))
	}
	fill := strings.NewReplacer("{namespace}", "default", "{name}", "nosuch", "{path}", "healthz")
	for path, methods := range document.Paths {
		at := fill.Replace(path)
		for method := range methods {
			// What a HEAD is answered cannot be told from a path that is not there.
			if method == "parameters" || method == "head" {
				continue
			}
			switch code, status := call(method, at); {
			case code == http.StatusMethodNotAllowed, code == http.StatusNotFound && status.Details == nil && !strings.Contains(path, "{path}"),
				code == http.StatusNotFound && status.Message == "the server could not find the requested resource", code >= 500 && code != http.StatusServiceUnavailable:
				t.Errorf("%s %s: %d %s", method, path, code, status.Message)
			}
		}
	}
}
