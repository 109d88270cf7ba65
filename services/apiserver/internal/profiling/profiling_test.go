package profiling

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestPaths(t *testing.T) {
	paths := Paths()
	for path, c := range map[string]struct{ handler, want string }{
		"/debug/pprof/":                  {"/debug/pprof/", "goroutine"},
		"/debug/pprof/goroutine?debug=1": {"/debug/pprof/", "TestPaths"},
		"/debug/pprof/cmdline":           {"/debug/pprof/cmdline", ""},
		"/debug/pprof/symbol":            {"/debug/pprof/symbol", "num_symbols"},
	} {
		w := httptest.NewRecorder()
		paths[c.handler].ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		if w.Code != http.StatusOK || w.Body.Len() == 0 || !strings.Contains(w.Body.String(), c.want) {
			t.Errorf("%s: %d, %d bytes without %q", path, w.Code, w.Body.Len(), c.want)
		}
	}
}
