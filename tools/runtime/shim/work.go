// Package shim is a file that is added to containerd's package of the same name when its shim is built, see tools/setup.sh and docs/decisions/0011-quiet-shims.md.
package shim

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// room is how many bytes a resting shim may take before it collects: about as many as with Go's own pace, whose heaps have 4 MiB at least, and more than a container's start and an exec take.
const room = 4 << 20

// afterWork stands in for time.Tick where a shim gives back its memory, which takes some 5 ms: once after its start and once after each time that it has worked, instead of at every tick. In
// between the shim rests, since the many shims of a node have nothing to do most of the time.
func afterWork(every time.Duration) func(yield func() bool) {
	return func(yield func() bool) {
		for {
			time.Sleep(every)
			if !yield() {
				return
			}
			rest()
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

// held is what counts against Go's memory limit.
func held() int64 {
	samples := []metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
	metrics.Read(samples)
	return int64(samples[0].Value.Uint64() - samples[1].Value.Uint64())
}
