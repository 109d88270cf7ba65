package telemetry

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
)

// A check that waits for what is away is given up before the prober gives up, who would learn nothing.
func TestReadinessThatDoesNotAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ready := NewReadiness()
		ready.Set(func(ctx context.Context) error {
			<-ctx.Done()
			return ctx.Err()
		})
		routes := http.NewServeMux()
		health(routes, ready.Check)
		w := httptest.NewRecorder()
		routes.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/readyz", nil))
		if w.Code != http.StatusServiceUnavailable || !strings.Contains(w.Body.String(), context.DeadlineExceeded.Error()) {
			t.Errorf("%d %q", w.Code, w.Body.String())
		}
	})
}
