package cluster

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

var errNotYet = errors.New("not yet")

func TestTheLastRealAnswerIsReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		asked := 0
		err := eventually(ctx, func(ctx context.Context) error {
			if asked++; asked == 1 {
				return errNotYet
			}
			<-ctx.Done() // as a call that hangs until its context ends
			return ctx.Err()
		})
		if !errors.Is(err, errNotYet) || asked != 2 {
			t.Errorf("asked %d times: %v", asked, err)
		}
	})
}

func TestTheDeadlineIsReportedWhenNothingWasAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		err := eventually(ctx, func(ctx context.Context) error {
			<-ctx.Done()
			return ctx.Err()
		})
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	})
}

func TestAnAnswerEndsTheWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		if err := eventually(t.Context(), func(context.Context) error {
			if asked++; asked < 3 {
				return errNotYet
			}
			return nil
		}); err != nil || asked != 3 {
			t.Errorf("asked %d times: %v", asked, err)
		}
	})
}
