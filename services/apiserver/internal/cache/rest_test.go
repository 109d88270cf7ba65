package cache

import (
	"context"
	"testing"
	"time"

	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/resource"
)

// TestIdleWatchesRest: a watch that knows the revision is not woken again until there is another one, and learns that then. A closed one is forgotten.
func TestIdleWatchesRest(t *testing.T) {
	c, err := New(Config{ProgressInterval: 2 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	reach := func(revision int64) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.reach(revision)
	}
	reach(1)
	close(c.ready)
	selection, err := Select(resource.Stored()[0], "", "", "")
	if err != nil {
		t.Fatal(err)
	}
	w, err := c.Watch(t.Context(), []Watched{{Selection: selection}}, WatchOptions{After: new(int64(1))})
	if err != nil {
		t.Fatal(err)
	}
	resting := func() bool {
		c.mu.RLock()
		defer c.mu.RUnlock()
		_, ok := c.resting[w]
		return ok
	}
	type told struct {
		batch *Batch
		err   error
	}
	for revision := int64(2); revision < 5; revision++ {
		next := make(chan told, 1)
		go func() {
			batch, err := w.Next(t.Context())
			next <- told{batch, err}
		}()
		for !resting() {
			select {
			case got := <-next:
				t.Fatalf("with nothing to tell: %+v", got)
			case <-time.After(time.Millisecond):
			}
		}
		reach(revision)
		if got := <-next; got.err != nil || got.batch.Revision != revision || got.batch.Mark != metav1.WatchMark_WATCH_MARK_PROGRESS {
			t.Fatalf("%+v, want a progress mark of %d", got, revision)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := w.Next(ctx)
		ended <- err
	}()
	for !resting() {
		<-time.After(time.Millisecond)
	}
	cancel()
	if err := <-ended; err == nil {
		t.Fatal("a watch went on after its end")
	}
	w.Close()
	if resting() {
		t.Error("a closed watch is kept")
	}
}
