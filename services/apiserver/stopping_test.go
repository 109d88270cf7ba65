package apiserver

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"dhow.dev/services/apiserver/internal/cache"
)

// TestStopping: once told to stop, the service is not ready at once, and works on for as long as was configured.
func TestStopping(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		objects, err := cache.New(cache.Config{})
		if err != nil {
			t.Fatal(err)
		}
		told, tell := context.WithCancel(t.Context())
		serving, cancel := delayed(told, time.Minute)
		defer cancel()
		ready := func() error {
			for _, c := range (readiness{cache: objects, started: told.Done(), stopping: told.Done()}).checks() {
				if c.Name == "shutdown" {
					return c.Run(t.Context())
				}
			}
			return errors.New("no such check")
		}
		if err := ready(); err != nil {
			t.Error(err)
		}
		began := time.Now()
		tell()
		if err := ready(); !errors.Is(err, errStopping) {
			t.Errorf("%v, want %v", err, errStopping)
		}
		if serving.Err() != nil {
			t.Error("the service ended at once")
		}
		<-serving.Done()
		if passed := time.Since(began); passed != time.Minute {
			t.Errorf("the service ended after %s", passed)
		}
		// Without a delay it ends with its parent; what ends by itself leaves no timer behind.
		now, cancelNow := delayed(told, 0)
		<-now.Done()
		cancelNow()
	})
}
