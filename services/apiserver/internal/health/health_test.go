package health_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	utilversion "k8s.io/apimachinery/pkg/util/version"
	clientdiscovery "k8s.io/client-go/discovery"
	"k8s.io/client-go/rest"

	"dhow.dev/services/apiserver/internal/health"
)

func serve(t *testing.T, config health.Config) *httptest.Server {
	t.Helper()
	mux := http.NewServeMux()
	for path, handler := range health.New(config) {
		mux.Handle(path, handler)
	}
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return server
}

func ask(t *testing.T, method, url string) (int, string, http.Header) {
	t.Helper()
	r, err := http.NewRequest(method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(body), response.Header
}

func TestChecks(t *testing.T) {
	well := func(context.Context) error { return nil }
	server := serve(t, health.Config{Version: "v1.36.3", Checks: []health.Check{
		{Name: "store", Ready: true, Run: func(context.Context) error { return errors.New("store.dhow:7400: connection refused") }},
		{Name: "cache", Live: true, Ready: true, Run: well},
	}})
	for _, test := range []struct {
		path string
		code int
		body string
	}{
		{"/livez", 200, "ok"},
		{"/livez?verbose", 200, "[+]ping ok\n[+]cache ok\nlivez check passed\n"},
		{"/livez/", 200, "ok"},
		{"/livez/ping", 200, "ok"},
		{"/livez/store", 404, "404 page not found\n"},
		{"/readyz", 500, "[+]ping ok\n[-]store failed: reason withheld\n[+]cache ok\nreadyz check failed\n"},
		{"/readyz?exclude=store", 200, "ok"},
		{"/readyz?verbose=true&exclude=store&exclude=gizmo", 200, "[+]ping ok\n[+]store excluded: ok\n[+]cache ok\nwarn: some health checks cannot be excluded: no matches for \"gizmo\"\nreadyz check passed\n"},
		{"/readyz/store", 500, "internal server error: store.dhow:7400: connection refused\n"},
		{"/readyz/cache", 200, "ok"},
		{"/healthz", 500, "[+]ping ok\n[-]store failed: reason withheld\n[+]cache ok\nhealthz check failed\n"},
		{"/healthz/ping", 200, "ok"},
		{"/healthz/gizmo", 404, "404 page not found\n"},
	} {
		code, body, header := ask(t, http.MethodGet, server.URL+test.path)
		if code != test.code || body != test.body {
			t.Errorf("%s: %d %q, not %d %q", test.path, code, body, test.code, test.body)
		}
		if got := header.Get("Content-Type"); got != "text/plain; charset=utf-8" {
			t.Errorf("%s: %s", test.path, got)
		}
	}
	if code, _, _ := ask(t, http.MethodPost, server.URL+"/livez"); code != http.StatusMethodNotAllowed {
		t.Errorf("POST /livez: %d", code)
	}
}

// TestVersion: clients parse the version, and compare it as Kubernetes'.
func TestVersion(t *testing.T) {
	server := serve(t, health.Config{Version: "v1.36.3", Build: "v0.1.0-3-gabc (dirty)"})
	info, err := clientdiscovery.NewDiscoveryClientForConfigOrDie(&rest.Config{Host: server.URL}).ServerVersion()
	if err != nil {
		t.Fatal(err)
	}
	if info.Major != "1" || info.Minor != "36" || info.GitVersion != "v1.36.3+dhow.v0.1.0-3-gabc-dirty-" || !strings.Contains(info.Platform, "/") {
		t.Errorf("%+v", info)
	}
	parsed, err := utilversion.ParseSemantic(info.GitVersion)
	if err != nil || !parsed.AtLeast(utilversion.MustParseSemantic("v1.36.0")) || parsed.PreRelease() != "" {
		t.Errorf("%v, %v", parsed, err)
	}
}

func TestMetrics(t *testing.T) {
	server := serve(t, health.Config{})
	if code, body, _ := ask(t, http.MethodGet, server.URL+"/metrics"); code != 200 || !strings.Contains(body, "go_goroutines") {
		t.Errorf("%d %s", code, body)
	}
	own := serve(t, health.Config{Metrics: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("own 1\n")) })})
	if code, body, _ := ask(t, http.MethodGet, own.URL+"/metrics"); code != 200 || body != "own 1\n" {
		t.Errorf("%d %s", code, body)
	}
}
