package scheduler_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/telemetry"
	"dhow.dev/pkg/transport"
	"dhow.dev/services/scheduler"
)

// A scheduler is ready, and healthy by gRPC, once it has seen the cluster, whether it works or stands by.
func TestReadiness(t *testing.T) {
	w := newWorld(t)
	for _, name := range []string{"works", "stands by"} {
		ready := telemetry.NewReadiness()
		w.schedule(func(c *scheduler.Config) {
			c.LeaderElect, c.Instance, c.Ready, c.Listener = true, name, ready, w.memory.Listen(name)
		})
		for ready.Check(w.ctx) != nil {
			w.pause("a scheduler is ready", ready.Check)
		}
		w.healthy(name)
	}
}

// One that no API server answers is not ready, says so, and runs on.
func TestReadinessBeforeTheFirstView(t *testing.T) {
	nowhere := transport.NewMemory()
	conn, err := nowhere.Dial("apiserver", identity.Identity{Name: identity.Scheduler})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	w := &world{t: t, ctx: ctx, memory: nowhere}
	ready := telemetry.NewReadiness()
	stop := w.schedule(func(c *scheduler.Config) { c.APIServer, c.Ready = conn, ready })
	for err := ready.Check(ctx); !strings.Contains(err.Error(), "no API server has shown it the whole cluster yet"); err = ready.Check(ctx) {
		w.pause("a scheduler says what it waits for", ready.Check)
	}
	if got := w.asked("scheduler"); got != healthpb.HealthCheckResponse_NOT_SERVING {
		t.Errorf("by gRPC it is %s", got)
	}
	stop()
	conn.Close()
}

// pause waits a moment, or fails with what is lacking.
func (w *world) pause(what string, lacks func(context.Context) error) {
	w.t.Helper()
	select {
	case <-time.After(5 * time.Millisecond):
	case <-w.ctx.Done():
		w.t.Fatalf("%s: not in time: %v", what, lacks(context.Background()))
	}
}

func (w *world) asked(name string) healthpb.HealthCheckResponse_ServingStatus {
	w.t.Helper()
	answer, err := healthpb.NewHealthClient(w.dial(name, identity.Identity{Name: identity.APIServer})).Check(w.ctx, &healthpb.HealthCheckRequest{}, grpc.WaitForReady(true))
	if err != nil {
		w.t.Fatal(err)
	}
	return answer.GetStatus()
}

// healthy waits until a scheduler says so by gRPC.
func (w *world) healthy(name string) {
	w.t.Helper()
	for w.asked(name) != healthpb.HealthCheckResponse_SERVING {
		w.pause(name+" serves", func(context.Context) error { return nil })
	}
}
