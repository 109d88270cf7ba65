package replicaset

import (
	"errors"
	"testing"
)

func TestSlowStartStopsAfterAFailure(t *testing.T) {
	calls := 0
	made, err := slowStart(100, func() error {
		calls++
		return errTest
	})
	if made != 0 || err == nil || calls != 1 {
		t.Errorf("%d calls, %d made, %v", calls, made, err)
	}
	if made, err := slowStart(7, func() error { return nil }); made != 7 || err != nil {
		t.Errorf("%d made, %v", made, err)
	}
}

var errTest = errors.New("refused")
