package controllermanager_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/telemetry"
	"dhow.dev/pkg/transport"
	controllermanager "dhow.dev/services/controller-manager"
)

// becomes waits until a process is ready, or lacks what is wanted.
func becomes(ctx context.Context, t *testing.T, ready *telemetry.Readiness, lacks string) {
	t.Helper()
	for {
		err := ready.Check(ctx)
		if err == nil && lacks == "" || err != nil && lacks != "" && strings.Contains(err.Error(), lacks) {
			return
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("it says %v, want %q", err, lacks)
		}
	}
}

// The process that works is ready once its controllers know the cluster, one that stands by as long as an API server answers it.
func TestReadiness(t *testing.T) {
	c := newControlPlane(t)
	working, waiting := telemetry.NewReadiness(), telemetry.NewReadiness()
	c.startControllers(func(config *controllermanager.Config) {
		config.LeaderElect, config.Identity, config.Ready = true, "works", working
	})
	becomes(c.ctx, t, working, "")
	c.start("another controller-manager", func(ctx context.Context) error {
		return controllermanager.Run(ctx, controllermanager.Config{
			APIServer:   c.dial("apiserver", identity.Identity{Name: identity.ControllerManager}),
			LeaderElect: true, Identity: "stands by", Ready: waiting,
		})
	})
	becomes(c.ctx, t, waiting, "")
}

// Without an API server neither is ready, and both run on.
func TestReadinessWithoutAPIServer(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	c := &cluster{t: t, ctx: ctx, memory: transport.NewMemory()}
	for lacks, elected := range map[string]bool{"no API server tells it who works": true, "no API server has shown it the whole cluster yet": false} {
		ready := telemetry.NewReadiness()
		c.start("controller-manager", func(ctx context.Context) error {
			return controllermanager.Run(ctx, controllermanager.Config{
				APIServer: c.dial("apiserver", identity.Identity{Name: identity.ControllerManager}), LeaderElect: elected, Ready: ready,
			})
		})
		asked, stop := context.WithCancel(ctx)
		stop() // as one who does not wait for the answer
		for {
			err := ready.Check(asked)
			if err == nil {
				t.Fatal("ready without an API server")
			}
			if strings.Contains(err.Error(), lacks) {
				break
			}
			select {
			case <-time.After(5 * time.Millisecond):
			case <-ctx.Done():
				t.Fatalf("it says %v, want %q", err, lacks)
			}
		}
	}
}
