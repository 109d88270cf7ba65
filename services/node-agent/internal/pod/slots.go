package pod

import (
	"context"
	"slices"
	"sync"
)

// slots bounds how many sandboxes and containers are started at once. Containers come before sandboxes: of many pods that come together those that are begun are finished first, and
// the first are ready while the last still wait.
type slots struct {
	mu                    sync.Mutex
	free                  int
	containers, sandboxes []chan struct{}
}

// take waits for a place and returns what gives it back.
func (s *slots) take(ctx context.Context, container bool) (release func(), err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	if s.free > 0 {
		s.free--
		s.mu.Unlock()
		return s.release, nil
	}
	queue := &s.sandboxes
	if container {
		queue = &s.containers
	}
	turn := make(chan struct{})
	*queue = append(*queue, turn)
	s.mu.Unlock()
	select {
	case <-turn:
		return s.release, nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	i := slices.Index(*queue, turn)
	if i >= 0 {
		*queue = slices.Delete(*queue, i, i+1)
	}
	s.mu.Unlock()
	if i < 0 {
		s.release() // the turn came meanwhile
	}
	return nil, ctx.Err()
}

func (s *slots) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, queue := range []*[]chan struct{}{&s.containers, &s.sandboxes} {
		if len(*queue) > 0 {
			close((*queue)[0])
			*queue = slices.Delete(*queue, 0, 1)
			return
		}
	}
	s.free++
}
