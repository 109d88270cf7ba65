package shim

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"testing"
	"time"
)

var sink []byte

// TestAfterWork: a shim's memory is given back after what it did, and then it rests: no tick, no collection, until it does something again.
func TestAfterWork(t *testing.T) {
	const pace = 40
	defer debug.SetGCPercent(debug.SetGCPercent(pace))
	ticks, again := make(chan struct{}), make(chan bool)
	go func() {
		for range afterWork(time.Millisecond) {
			ticks <- struct{}{}
			if !<-again {
				close(ticks)
				return
			}
		}
	}()
	<-ticks
	for range 3 {
		debug.FreeOSMemory() // as the caller does
		again <- true
		for gcPercent() != -1 {
			runtime.Gosched()
		}
		select {
		case <-ticks:
			t.Fatal("a tick though nothing was done")
		default:
		}
		for working := true; working; {
			sink = make([]byte, 256<<10)
			select {
			case <-ticks:
				working = false
			default:
			}
		}
		if got := gcPercent(); got != pace {
			t.Fatalf("a shim that works collects at a pace of %d percent, want %d", got, pace)
		}
	}
	again <- false
	<-ticks
}

// paceNow is read without allocating: to ask is no work.
var paceNow = []metrics.Sample{{Name: "/gc/gogc:percent"}}

func gcPercent() int {
	metrics.Read(paceNow)
	return int(int64(paceNow[0].Value.Uint64()))
}
