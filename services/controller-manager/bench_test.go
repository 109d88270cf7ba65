package controllermanager_test

import (
	"fmt"
	"testing"

	appsv1 "dhow.dev/gen/go/dhow/apps/v1"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
)

// BenchmarkHundredReplicas is the time from a new Deployment of 100 replicas to its last pod being stored, in one process, the store in memory.
func BenchmarkHundredReplicas(b *testing.B) {
	c := newCluster(b, nil)
	for i := 0; b.Loop(); i++ {
		name := fmt.Sprint("web-", i)
		create(c, deployment(name, 100))
		eventually(c, "default", "100 pods", func(pods []*corev1.Pod) bool {
			n := 0
			for _, p := range pods {
				if p.GetMetadata().GetLabels()["app"] == name {
					n++
				}
			}
			return n == 100
		})
		b.StopTimer()
		remove[*appsv1.Deployment](c, "default", name, nil)
		eventually(c, "default", "no pods", func(pods []*corev1.Pod) bool { return len(pods) == 0 })
		b.StartTimer()
	}
}
