package scheduler_test

import (
	"fmt"
	"testing"

	"golang.org/x/sync/errgroup"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/services/scheduler/internal/fixture"
)

// BenchmarkBind is from the scheduler's start until a watch has shown all waiting pods bound: store (in memory), API server and scheduler in this process,
// events written as well.
func BenchmarkBind(b *testing.B) {
	const nodes, pods = 100, 2000
	runs := 0
	for b.Loop() {
		b.StopTimer()
		w := newWorld(b)
		for i := range nodes {
			w.node(fmt.Sprintf("node-%d", i), "16")
		}
		creating, ctx := errgroup.WithContext(w.ctx)
		creating.SetLimit(64)
		for i := range pods {
			creating.Go(func() error {
				o := fixture.Pod(fmt.Sprintf(`{"metadata":{"namespace":"default","name":"web-%d","labels":{"app":"web"},"ownerReferences":[
					{"apiVersion":"apps/v1","kind":"ReplicaSet","name":"web","uid":"rs-%d","controller":true}]},"spec":%s}`, i, i%20, small))
				_, err := w.pods.Create(ctx, o, nil)
				return err
			})
		}
		if err := creating.Wait(); err != nil {
			b.Fatal(err)
		}
		request := &metav1.WatchRequest{}
		request.SetNamespace("default")
		watch, err := client.For[*corev1.Pod](w.admin).Watch(w.ctx, request)
		if err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		stop := w.schedule(nil)
		done := map[string]bool{}
		for len(done) < pods {
			batch, err := watch.Next()
			if err != nil {
				b.Fatal(err)
			}
			for _, c := range batch.Changes {
				if c.Object != nil && bound(c.Object) {
					done[c.Object.GetMetadata().GetName()] = true
				}
			}
		}
		runs++
		b.ReportMetric(float64(runs*pods)/b.Elapsed().Seconds(), "pods/s")
		b.StopTimer()
		stop()
		b.StartTimer()
	}
}
