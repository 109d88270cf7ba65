package authenticator_test

import (
	"fmt"
	"maps"
	"testing"

	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"dhow.dev/services/apiserver/internal/authenticator"
)

func TestMetrics(t *testing.T) {
	reader := sdkmetric.NewManualReader()
	meter := sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader)).Meter("test")
	w := newWorld(t, func(c *authenticator.Config) { c.Meter = meter })
	w.put(builder())
	good := "Bearer " + w.issue("")
	for _, authorization := range []string{good, good, "Bearer x", ""} {
		for _, path := range []string{"/healthz", "/api"} {
			if _, _, err := w.verifier.Authenticate(ask(path, authorization)); err != nil && authorization != "Bearer x" {
				t.Fatal(err)
			}
		}
	}
	if _, err := w.verifier.Token(t.Context(), "x"); err == nil {
		t.Fatal("a bad token is taken")
	}
	var collected metricdata.ResourceMetrics
	if err := reader.Collect(t.Context(), &collected); err != nil {
		t.Fatal(err)
	}
	got := map[string]int64{}
	for _, scope := range collected.ScopeMetrics {
		for _, m := range scope.Metrics {
			for _, point := range m.Data.(metricdata.Sum[int64]).DataPoints {
				method, _ := point.Attributes.Value("method")
				result, _ := point.Attributes.Value("result")
				got[fmt.Sprintf("%s %s %s", m.Name, method.AsString(), result.AsString())] += point.Value
			}
		}
	}
	want := map[string]int64{
		"dhow.apiserver.authentications token known": 4, "dhow.apiserver.authentications token refused": 3,
		"dhow.apiserver.authentications anonymous known": 1, "dhow.apiserver.authentications anonymous refused": 1,
	}
	if !maps.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
