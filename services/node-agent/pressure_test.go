package nodeagent

import (
	"testing"

	"dhow.dev/services/node-agent/internal/evictor"
)

// TestAPartOfTheMachinesProcessIDs has nodes that share a machine: each has its part, and together they have no more than the machine.
func TestAPartOfTheMachinesProcessIDs(t *testing.T) {
	for _, c := range []struct{ used, own, available int64 }{
		{used: 300, own: 100, available: 400},
		{used: 900, own: 100, available: 100},
		{used: 700, own: 600, available: -100},
	} {
		got := partOf(evictor.Observation{Available: 1000 - c.used, Capacity: 1000}, c.own, 0.5)
		if got != (evictor.Observation{Available: c.available, Capacity: 500}) {
			t.Errorf("%+v: %+v", c, got)
		}
	}
}
