package memlimit

import (
	"context"
	"runtime"
	"runtime/debug"
	"testing"
)

func TestPace(t *testing.T) {
	for _, c := range []struct {
		live uint64
		want int
	}{{0, 100}, {10 << 20, 100}, {64 << 20, 100}, {80 << 20, 80}, {128 << 20, 50}, {4 << 30, 50}} {
		if got := pace(c.live); got != c.want {
			t.Errorf("%d MB live: %d %%, want %d", c.live>>20, got, c.want)
		}
	}
}

func TestLeaves(t *testing.T) {
	const mb = 1 << 20
	for name, c := range map[string]struct {
		before, now usage
		want        bool
	}{
		"first look":             {usage{}, usage{total: 300 * mb, live: 100 * mb}, false},
		"after a burst":          {usage{total: 300 * mb, allocated: 900 * mb}, usage{total: 300 * mb, live: 100 * mb, allocated: 901 * mb}, true},
		"in the burst":           {usage{total: 300 * mb, allocated: 900 * mb}, usage{total: 300 * mb, live: 100 * mb, allocated: 1000 * mb}, false},
		"nothing to give":        {usage{total: 110 * mb, allocated: 900 * mb}, usage{total: 110 * mb, live: 100 * mb, allocated: 901 * mb}, false},
		"given already":          {usage{total: 130 * mb, freed: 125 * mb, allocated: 900 * mb}, usage{total: 130 * mb, live: 100 * mb, allocated: 901 * mb}, false},
		"grown since it was":     {usage{total: 180 * mb, freed: 125 * mb, allocated: 900 * mb}, usage{total: 180 * mb, live: 100 * mb, allocated: 901 * mb}, true},
		"stacks are not garbage": {usage{total: 180 * mb, allocated: 900 * mb}, usage{total: 180 * mb, live: 100 * mb, stacks: 70 * mb, allocated: 901 * mb}, false},
	} {
		now := c.now
		if got := now.leaves(c.before); got != c.want || now.freed != c.before.freed {
			t.Errorf("%s: %v, freed %d", name, got, now.freed)
		}
	}
}

func TestReadsThisProcess(t *testing.T) {
	runtime.GC()
	if u := read(); u.live == 0 || u.total < u.live || u.allocated == 0 || u.stacks == 0 {
		t.Errorf("%+v", u)
	}
}

func TestEveryCollectionIsFollowed(t *testing.T) {
	seen := make(chan uint64, 100)
	stop := afterCollections(func(live uint64) {
		select {
		case seen <- live:
		default:
		}
	})
	defer stop()
	for range 3 {
		runtime.GC()
		if live := <-seen; live == 0 {
			t.Error("nothing lives")
		}
	}
}

func TestKeepPutsThePaceBack(t *testing.T) {
	before := debug.SetGCPercent(77)
	defer debug.SetGCPercent(before)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	Keep(ctx)
	if now := debug.SetGCPercent(77); now != 77 {
		t.Errorf("%d %% afterwards", now)
	}
}
