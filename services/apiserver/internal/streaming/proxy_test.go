package streaming_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// fetch reads an answer.
func fetch(t *testing.T, method, url string) (code int, header http.Header, body string) {
	t.Helper()
	r, err := http.NewRequestWithContext(within(t), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := (&http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer.StatusCode, answer.Header, string(text)
}

// TestConformanceProxy passes every method on to pods and services, with a path and without, over HTTP and TLS, as the suite's tests of «Proxy version v1» do.
func TestConformanceProxy(t *testing.T) {
	n, c := world(t)
	echo := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Method", r.Method)
		fmt.Fprintf(w, "%s %s tls=%t", r.Method, r.URL, r.TLS != nil)
	})
	for scheme, backend := range map[string]*httptest.Server{"http": httptest.NewServer(echo), "https": httptest.NewTLSServer(echo)} {
		n.backend = backend.Listener.Addr().String()
		t.Cleanup(backend.Close)
		for _, place := range []string{"pods/" + scheme + ":p:8080/proxy", "services/" + scheme + ":s:web/proxy"} {
			for _, method := range []string{"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"} {
				// Without a slash at the end GET and HEAD are sent on, others arrive at the root.
				if code, header, _ := fetch(t, method, at(c, place).String()+"?method="+method); method == "GET" || method == "HEAD" {
					if code != http.StatusMovedPermanently || !strings.HasSuffix(header.Get("Location"), "/proxy/?method="+method) {
						t.Errorf("%s %s: %d %v", method, place, code, header)
					}
				} else if code != http.StatusOK || header.Get("X-Method") != method {
					t.Errorf("%s %s: %d %v", method, place, code, header)
				}
				for _, path := range []string{"/", "/some/path/with/" + method} {
					code, header, body := fetch(t, method, at(c, place).String()+path)
					if code != http.StatusOK || header.Get("X-Method") != method {
						t.Errorf("%s %s%s: %d %v", method, place, path, code, header)
					}
					if want := fmt.Sprintf("%s %s tls=%t", method, path, scheme == "https"); method != "HEAD" && body != want {
						t.Errorf("%s %s%s: %q, want %q", method, place, path, body, want)
					}
				}
			}
		}
	}
}

// TestProxyOutside: endpoints that are no pods are connected to by the API server.
func TestProxyOutside(t *testing.T) {
	n, c := world(t)
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Host, r.URL) }))
	defer backend.Close()
	n.backend = backend.Listener.Addr().String()
	if code, _, body := fetch(t, "GET", at(c, "services/manual/proxy/a?b=c").String()); code != http.StatusOK || !strings.HasSuffix(body, "/a?b=c") || !n.has("outside 192.0.2.7:8081") {
		t.Errorf("%d %q %v", code, body, n.seen)
	}
}

// TestNodeProxy: what a kubelet would answer and the API server knows.
func TestNodeProxy(t *testing.T) {
	n, c := world(t)
	for path, want := range map[string]string{
		"n1/proxy/healthz": "ok", "n2/proxy/healthz": "node n2 is not ready", "n1:10250/proxy/pods": `"name":"done-on-n1"`, "n1/proxy/runningpods/": `"name":"running-on-n1"`,
		"n1/proxy/stats/summary": `"usageNanoCores":3`, "n2/proxy/stats/summary": "has not told yet", "n1/proxy/metrics/resource": `container_memory_working_set_bytes{container="main",namespace="default",pod="p"} 4`,
		"n1/proxy/containerLogs/default/p/main?stream=Stderr&sinceTime=2026-01-02T03:04:05Z&limitBytes=9&insecureSkipTLSVerifyBackend=true": "one\ntwo\n",
		"n2/proxy/containerLogs/default/p/main": `pods \"p\" not found`, "n1/proxy/containerLogs/default/p": "NAMESPACE/POD/CONTAINER", "n1/proxy/run": "nodes accept no connections",
		// The same again, for what it says of volumes.
		"n1/proxy/stats/summary/": `"capacityBytes":9,"name":"v","pvcRef":{"name":"data","namespace":"default"},"volumeHealthStats":{"abnormal":true}}`,
	} {
		_, _, body := fetch(t, "GET", c.Host+"/api/v1/nodes/"+path)
		if !strings.Contains(body, want) || strings.Contains(path, "runningpods") && strings.Contains(body, "done-on") {
			t.Errorf("%s: %s", path, body)
		}
	}
	if !n.has("log stream=Stderr since=1767323045 limit=9") {
		t.Error(n.seen)
	}
}
