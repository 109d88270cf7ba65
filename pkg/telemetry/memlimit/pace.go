package memlimit

import (
	"context"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"time"
)

// How far the heap grows above what lives before it is collected. Go doubles it; for a control plane that holds some hundred megabytes of objects that is as much again for
// garbage. Above fullPace the room is fixed, so that a collection's work is spread over as many allocations as before, and from there on it is a share.
const (
	fullPace  = 64 << 20
	leastPace = 50
)

// Memory that a burst has left is given back when this long nothing much was allocated.
const (
	quietFor = 5 * time.Second
	// quiet is how much may be allocated in that time: a collection must be rare beside the work of the process.
	quiet = 32 << 20
	// worthwhile is how much there must be to give back.
	worthwhile = 16 << 20
)

const (
	liveBytes      = "/gc/heap/live:bytes"
	allocatedBytes = "/gc/heap/allocs:bytes"
	totalBytes     = "/memory/classes/total:bytes"
	releasedBytes  = "/memory/classes/heap/released:bytes"
	stackBytes     = "/memory/classes/heap/stacks:bytes"
)

// Keep paces the garbage collector by what lives on the heap, and gives memory back after bursts, until ctx ends. It leaves the collector alone where GOGC is set.
func Keep(ctx context.Context) {
	if _, ok := os.LookupEnv("GOGC"); !ok {
		before := debug.SetGCPercent(maxPace)
		defer debug.SetGCPercent(before)
		stop := afterCollections(func(live uint64) { debug.SetGCPercent(pace(live)) })
		defer stop()
	}
	ticker := time.NewTicker(quietFor)
	defer ticker.Stop()
	var last usage
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			now := read()
			if now.leaves(last) {
				debug.FreeOSMemory()
				now = read()
				now.freed = now.total
			}
			last = now
		}
	}
}

const maxPace = 100

// pace returns the percentage by which the heap may grow above what lives.
func pace(live uint64) int {
	if live <= fullPace {
		return maxPace
	}
	return max(int(maxPace*fullPace/live), leastPace)
}

// usage is the process's memory at one time, in bytes.
type usage struct {
	// total is what the process has of the system, live what the last collection found in use.
	total, live, stacks uint64
	// allocated is over the process's life.
	allocated uint64
	// freed is total as of the last time that all was given back that could be.
	freed uint64
}

// leaves says whether a burst is over and has left memory to give back.
func (u *usage) leaves(before usage) bool {
	u.freed = before.freed
	if before == (usage{}) || u.allocated-before.allocated > quiet {
		return false
	}
	if u.total < u.live+u.stacks+worthwhile {
		return false
	}
	// What was freed before and has hardly grown since would be freed in vain.
	return u.freed == 0 || u.total > u.freed+worthwhile
}

func read() usage {
	samples := []metrics.Sample{{Name: totalBytes}, {Name: releasedBytes}, {Name: liveBytes}, {Name: allocatedBytes}, {Name: stackBytes}}
	metrics.Read(samples)
	return usage{
		total: samples[0].Value.Uint64() - samples[1].Value.Uint64(), live: samples[2].Value.Uint64(),
		allocated: samples[3].Value.Uint64(), stacks: samples[4].Value.Uint64(),
	}
}

// afterCollections calls f after each collection with what lives, until stop is called; when stop has returned, f is not running.
func afterCollections(f func(live uint64)) (stop func()) {
	var mu sync.Mutex
	stopped := false
	var arm func()
	arm = func() {
		// An object that nothing refers to is found by the next collection.
		runtime.AddCleanup(new([16]byte), func(struct{}) {
			mu.Lock()
			defer mu.Unlock()
			if stopped {
				return
			}
			arm()
			sample := []metrics.Sample{{Name: liveBytes}}
			metrics.Read(sample)
			f(sample[0].Value.Uint64())
		}, struct{}{})
	}
	arm()
	return func() {
		mu.Lock()
		defer mu.Unlock()
		stopped = true
	}
}
