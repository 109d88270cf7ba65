package schema

import (
	"math/rand"
	"reflect"
	"runtime"
	"testing"

	"google.golang.org/protobuf/proto"
	k8scorev1 "k8s.io/api/core/v1"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
)

// BenchmarkDecodePod says what a reader pays that looks at the metadata alone, and one that looks at the spec too. heap-B/pod is what a pod that is
// kept takes.
func BenchmarkDecodePod(b *testing.B) {
	object := &k8scorev1.Pod{}
	fill(rand.New(rand.NewSource(7)), reflect.ValueOf(object).Elem(), 0.35)
	encoded, err := object.Marshal()
	if err != nil {
		b.Fatal(err)
	}
	for _, tc := range []struct {
		name        string
		lazy, touch bool
	}{{"eager", false, true}, {"lazy/metadata", true, false}, {"lazy/all", true, true}} {
		b.Run(tc.name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(encoded)))
			kept := make([]*corev1.Pod, b.N)
			before := heap()
			b.ResetTimer()
			for i := range kept {
				kept[i] = &corev1.Pod{}
				if err := (proto.UnmarshalOptions{NoLazyDecoding: !tc.lazy}).Unmarshal(encoded, kept[i]); err != nil {
					b.Fatal(err)
				}
				if tc.touch {
					kept[i].GetSpec().GetNodeName()
					kept[i].GetStatus().GetPhase()
				}
			}
			b.StopTimer()
			b.ReportMetric(float64(heap()-before)/float64(b.N), "heap-B/pod")
			runtime.KeepAlive(kept)
		})
	}
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
