package telemetry_test

import (
	"net"
	"net/http/httptest"
	"strings"
	"testing"

	"dhow.dev/pkg/telemetry"
)

// TestHandler: servers with a /metrics of their own serve what Setup measures, whichever was made first.
func TestHandler(t *testing.T) {
	handler := telemetry.Handler()
	body := func() string {
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
		return w.Body.String()
	}
	if got := body(); !strings.Contains(got, "go_goroutines") || strings.Contains(got, "dhow_handled") {
		t.Errorf("before Setup: %s", got)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	for name, config := range map[string]telemetry.Config{"with an address": {MetricsListener: listener}, "without": {Measure: true}} {
		t.Run(name, func(t *testing.T) {
			setup(t, config)
			counter, err := telemetry.Meter("dhow.dev/pkg/test").Int64Counter("dhow.handled")
			if err != nil {
				t.Fatal(err)
			}
			counter.Add(t.Context(), 1)
			if got := body(); !strings.Contains(got, "dhow_handled_total") || !strings.Contains(got, "go_goroutines") {
				t.Errorf("after Setup: %s", got)
			}
		})
	}
}
