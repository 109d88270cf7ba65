package shim

import (
	"testing"
	"testing/synctest"
	"time"
)

var sink []byte

// TestAfterWork: ticks count when something was allocated since the last that did.
func TestAfterWork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		sink = make([]byte, 2*work)
		var at []time.Duration
		for range afterWork(time.Second) {
			at = append(at, time.Since(began))
			if len(at) == 3 {
				break
			}
			// The next two ticks find nothing, the third does.
			time.AfterFunc(2500*time.Millisecond, func() { sink = make([]byte, 2*work) })
		}
		// What was allocated before counts.
		if at[0] != time.Second || at[1]-at[0] != 3*time.Second || at[2]-at[1] != 3*time.Second {
			t.Errorf("ticks at %v", at)
		}
	})
}
