package nodeagent

import (
	"context"
	"fmt"
	"testing"

	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"dhow.dev/services/node-agent/internal/volume"
)

// TestVolumesHaveMetrics: what is not known has none.
func TestVolumesHaveMetrics(t *testing.T) {
	reader := sdkmetric.NewManualReader()
	unwell := true
	err := volumeMetrics(sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader)).Meter("test"), func(context.Context) []volume.Stat {
		return []volume.Stat{{Namespace: "shop", Claim: "data", Capacity: 1000, Available: 600, Used: 400, Inodes: -1, InodesFree: -1, InodesUsed: -1, Abnormal: &unwell},
			{Namespace: "shop", Claim: "folder", Capacity: 7, Available: 5, Used: 2, Inodes: 10, InodesFree: 8, InodesUsed: 2}}
	})
	if err != nil {
		t.Fatal(err)
	}
	var seen metricdata.ResourceMetrics
	if err := reader.Collect(t.Context(), &seen); err != nil {
		t.Fatal(err)
	}
	got := map[string]int64{}
	for _, m := range seen.ScopeMetrics[0].Metrics {
		points, ok := m.Data.(metricdata.Gauge[int64])
		if !ok {
			t.Fatalf("%s is no gauge", m.Name)
		}
		for _, p := range points.DataPoints {
			namespace, _ := p.Attributes.Value("namespace")
			claim, _ := p.Attributes.Value("persistentvolumeclaim")
			got[fmt.Sprintf("%s %s/%s", m.Name, namespace.AsString(), claim.AsString())] = p.Value
		}
	}
	want := map[string]int64{
		"kubelet.volume.stats.capacity shop/data": 1000, "kubelet.volume.stats.available shop/data": 600, "kubelet.volume.stats.used shop/data": 400,
		"kubelet.volume.stats.health.status.abnormal shop/data": 1, "kubelet.volume.stats.capacity shop/folder": 7, "kubelet.volume.stats.available shop/folder": 5,
		"kubelet.volume.stats.used shop/folder": 2, "kubelet.volume.stats.inodes shop/folder": 10, "kubelet.volume.stats.inodes.free shop/folder": 8, "kubelet.volume.stats.inodes.used shop/folder": 2,
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%v\nwant %v", got, want)
	}
}
