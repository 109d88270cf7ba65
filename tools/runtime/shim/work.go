// Package shim is a file that is added to containerd's package of the same name when its shim is built, see tools/setup.sh and docs/decisions/0011-quiet-shims.md.
package shim

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	// work is how many bytes a shim allocates before its memory is worth looking through: less than what one container's start or one exec needs.
	work = 256 << 10
	// room is how many bytes a resting shim may take before it collects: about as many as with Go's own pace, whose heaps have 4 MiB at least.
	room = 4 << 20
)

// afterWork stands in for time.Tick where a shim gives back its memory, which takes some 5 ms: it leaves out the ticks before which nothing was done. At the first of
// those the shim goes to rest, since the many shims of a node have nothing to do most of the time.
func afterWork(every time.Duration) func(yield func() bool) {
	return func(yield func() bool) {
		var before uint64
		for {
			time.Sleep(every)
			if allocated()-before < work {
				rest()
				continue
			}
			if !yield() {
				return
			}
			before = allocated()
		}
	}
}

// rest returns when the garbage collector had to run because of what was allocated meanwhile. Until then nothing ticks, and Go does not collect every two minutes
// whatever happens, as it does with a pace.
func rest() {
	collected := make(chan struct{})
	runtime.AddCleanup(new([64]byte), func(c chan struct{}) { close(c) }, collected)
	limit := debug.SetMemoryLimit(held() + room)
	pace := debug.SetGCPercent(-1)
	<-collected
	debug.SetMemoryLimit(limit)
	debug.SetGCPercent(pace)
}

// allocated is how many bytes were ever allocated.
func allocated() uint64 {
	sample := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}

// held is what counts against Go's memory limit.
func held() int64 {
	samples := []metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
	metrics.Read(samples)
	return int64(samples[0].Value.Uint64() - samples[1].Value.Uint64())
}
