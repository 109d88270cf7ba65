//go:build e2e

package shutdown

import (
	"context"
	"testing"
	"time"

	"dhow.dev/services/node-agent/internal/shutdown/logindtest"
)

// TestOnARealBus has logind wait longer than it would, holds a shutdown back, hears of it, and lets it go.
func TestOnARealBus(t *testing.T) {
	daemon := logindtest.Start(t, 5*time.Second)
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", daemon.Address)
	l, err := dial(daemon.ConfDir)
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	if d, err := l.delay(); err != nil || d != 5*time.Second {
		t.Errorf("%s, %v", d, err)
	}
	if err := l.extend(t.Context(), 90*time.Second); err != nil {
		t.Error(err)
	}
	if d, err := l.delay(); err != nil || d != 90*time.Second {
		t.Errorf("after its settings changed %s, %v", d, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	held, err := l.inhibit()
	if err != nil {
		t.Fatal(err)
	}
	if err := daemon.Await(ctx, 1); err != nil {
		t.Error(err)
	}
	for _, begins := range []bool{true, false} {
		if err := daemon.Shutdown(begins); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []bool{true, false} {
		select {
		case got := <-l.announcements():
			if got != want {
				t.Errorf("heard %v, want %v", got, want)
			}
		case <-ctx.Done():
			t.Fatal(ctx.Err())
		}
	}
	if err := held.Close(); err != nil {
		t.Error(err)
	}
	if err := daemon.Await(ctx, 0); err != nil {
		t.Error(err)
	}
}
