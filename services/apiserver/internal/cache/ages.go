package cache

import (
	"sync"
	"time"
)

// ages knows since when paged lists go on at a revision, so that their tokens end: Kubernetes' last between five and ten minutes, and clients rely on that end.
type ages struct {
	mu    sync.Mutex
	since map[int64]time.Time
	// order has the revisions as they came, for forgetting.
	order []int64
}

// of returns how long ago the first page at a revision was cut, as far as this API server knows: another one's token is as old as its first use here. What is three
// times as old as lasting is forgotten; the store has compacted it by then.
func (a *ages) of(revision int64, now time.Time, lasting time.Duration) time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	if at, ok := a.since[revision]; ok {
		return now.Sub(at)
	}
	for len(a.order) > 0 && now.Sub(a.since[a.order[0]]) > 3*lasting {
		delete(a.since, a.order[0])
		a.order = a.order[1:]
	}
	if a.since == nil {
		a.since = map[int64]time.Time{}
	}
	a.since[revision] = now
	a.order = append(a.order, revision)
	return 0
}
