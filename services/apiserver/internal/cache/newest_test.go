package cache

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
)

// TestQuestionsAreCoalesced: who asks while a question is on its way shares the next one, because the answer under way may be older than their asking.
func TestQuestionsAreCoalesced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked, release := int64(0), make(chan struct{})
		n := &newest{ask: func(context.Context) (int64, error) {
			asked++
			answer := asked
			<-release
			return answer, nil
		}}
		var waiting sync.WaitGroup
		get := func(want int64) {
			waiting.Go(func() {
				if got, err := n.get(t.Context()); err != nil || got != want {
					t.Errorf("%d, %v, want answer %d", got, err, want)
				}
			})
		}
		get(1)
		synctest.Wait()
		for range 50 {
			get(2)
		}
		synctest.Wait()
		gone, leave := context.WithCancel(t.Context())
		waiting.Go(func() {
			if _, err := n.get(gone); !errors.Is(err, context.Canceled) {
				t.Errorf("%v, want Canceled", err)
			}
		})
		synctest.Wait()
		leave()
		synctest.Wait()
		close(release)
		waiting.Wait()
		if asked != 2 {
			t.Errorf("%d questions for 52 callers, want 2", asked)
		}
	})
}
