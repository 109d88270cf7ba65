package usage_test

import (
	"context"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	nodev1 "dhow.dev/gen/go/dhow/node/v1"
	"dhow.dev/services/node-agent/internal/cri"
	"dhow.dev/services/node-agent/internal/usage"
)

func TestRatesOverTheWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		var idle atomic.Bool
		var reports []*nodev1.NodeUsage
		m := usage.New(usage.Config{
			Logger: slog.New(slog.DiscardHandler),
			Containers: func(context.Context) ([]cri.Usage, error) {
				// Half a core; nothing at all once idle.
				cpu := time.Since(began) / 2
				if idle.Load() {
					cpu = time.Minute
				}
				return []cri.Usage{{PodUID: "u", PodNamespace: "n", PodName: "p", Name: "c", ID: "1", CPU: cpu, At: time.Now(), Memory: 42}}, nil
			},
			Node: func() (time.Duration, uint64, error) {
				if idle.Load() {
					return time.Minute, 7, nil
				}
				return 2 * time.Since(began), 7, nil
			},
			Volumes: func(context.Context) map[string][]*nodev1.PodUsage_Volume {
				return map[string][]*nodev1.PodUsage_Volume{"u": {nodev1.PodUsage_Volume_builder{Name: "v", Claim: "data", UsedBytes: proto.Int64(5)}.Build()}}
			},
			Report: func(u *nodev1.NodeUsage) { reports = append(reports, u) },
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- m.Run(ctx) }()
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if len(reports) != 1 {
			t.Fatalf("%d reports", len(reports))
		}
		r := reports[0]
		if c := r.GetPods()[0].GetContainers()[0]; c.GetUsage().GetCpuNanocores() != 5e8 || c.GetUsage().GetMemoryBytes() != 42 || c.GetName() != "c" {
			t.Errorf("%v", r)
		}
		if v := r.GetPods()[0].GetVolumes(); len(v) != 1 || v[0].GetClaim() != "data" || v[0].GetUsedBytes() != 5 {
			t.Errorf("%v", r)
		}
		if r.GetNode().GetCpuNanocores() != 2e9 || r.GetNode().GetMemoryBytes() != 7 || r.GetWindowMilliseconds() != 5000 {
			t.Errorf("%v", r)
		}
		// What stays as it is is told once.
		idle.Store(true)
		time.Sleep(10 * usage.Interval)
		synctest.Wait()
		before := len(reports)
		time.Sleep(10 * usage.Interval)
		synctest.Wait()
		if len(reports) != before {
			t.Errorf("%d more reports of nothing new", len(reports)-before)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
