// Package shim is a file that is added to containerd's package of the same name when its shim is built, see tools/setup.sh and docs/decisions/0011-quiet-shims.md.
package shim

import (
	"runtime/metrics"
	"time"
)

// work is how many bytes a shim allocates before its memory is worth looking through: less than what one container's start or one exec needs.
const work = 256 << 10

// afterWork stands in for time.Tick where a shim gives back its memory, which takes some 5 ms: it leaves out the ticks before which nothing was done. The
// many shims of a node have nothing to do most of the time.
func afterWork(every time.Duration) func(yield func() bool) {
	return func(yield func() bool) {
		allocated := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
		var before uint64
		for range time.Tick(every) {
			if metrics.Read(allocated); allocated[0].Value.Uint64()-before < work {
				continue
			}
			if !yield() {
				return
			}
			metrics.Read(allocated)
			before = allocated[0].Value.Uint64()
		}
	}
}
