package pod

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
)

func TestBegunPodsAreFinishedFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &slots{free: 1}
		release, err := s.take(t.Context(), false)
		if err != nil {
			t.Fatal(err)
		}
		var order []string
		wait := func(ctx context.Context, name string, container bool) {
			go func() {
				release, err := s.take(ctx, container)
				if err != nil {
					order = append(order, name+" called off")
					return
				}
				order = append(order, name)
				release()
			}()
			synctest.Wait()
		}
		called, off := context.WithCancel(t.Context())
		wait(t.Context(), "sandbox 1", false)
		wait(called, "sandbox 2", false)
		wait(t.Context(), "sandbox 3", false)
		wait(t.Context(), "container 1", true)
		wait(t.Context(), "container 2", true)
		off()
		synctest.Wait()
		release()
		synctest.Wait()
		if want := []string{"sandbox 2 called off", "container 1", "container 2", "sandbox 1", "sandbox 3"}; !slices.Equal(order, want) {
			t.Errorf("order %v, want %v", order, want)
		}
		if s.free != 1 || len(s.sandboxes)+len(s.containers) != 0 {
			t.Errorf("left: %+v", s)
		}
		if _, err := s.take(called, true); err == nil || s.free != 1 {
			t.Errorf("called off before it waited: %v, %d free", err, s.free)
		}
	})
}
