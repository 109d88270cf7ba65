// Package scheduler is Dhow's scheduler service: it binds pods to nodes, and says why a pod is where it is or what keeps it from running.
//
// This file is its composition. Changes come in from the API server's watch (informer → loop → cluster, queue), decisions are made by a pure function
// (plan, of snapshot, filter, score and spread) and go out through the binder. Explain answers from the same picture with the same function.
package scheduler

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	policyv1 "dhow.dev/gen/go/dhow/policy/v1"
	schedulerv1 "dhow.dev/gen/go/dhow/scheduler/v1"
	"dhow.dev/pkg/event"
	"dhow.dev/pkg/informer"
	"dhow.dev/pkg/leader"
	"dhow.dev/pkg/telemetry"
	"dhow.dev/pkg/telemetry/logkey"
	"dhow.dev/pkg/transport"
	"dhow.dev/services/scheduler/internal/explain"
	"dhow.dev/services/scheduler/internal/loop"
)

// Config configures Run.
type Config struct {
	// Listener is where the service listens. Run closes it.
	Listener net.Listener
	// Credentials authenticate callers: API servers, which pass on Explain.
	Credentials credentials.TransportCredentials
	// Logger gets the service's records. Nil discards them.
	Logger *slog.Logger

	// APIServer is the connection to the API servers, as identity system:kube-scheduler.
	APIServer grpc.ClientConnInterface
	// SchedulerName is which pods are decided about; empty: default-scheduler.
	SchedulerName string
	// LeaderElect lets several schedulers run of which one decides at a time.
	LeaderElect bool
	// LeaseDuration is how long a scheduler that has vanished is waited for; 0: 15 s, as in Kubernetes, at least 3 s.
	LeaseDuration time.Duration
	// Instance tells processes apart in the lease; empty: host name and process id.
	Instance string
	// Ready is told what the scheduler waits for. Optional.
	Ready *telemetry.Readiness
	// Seed decides between equal nodes. The same seed, cluster and pods give the same decisions.
	Seed uint64
}

// component names the package's spans and instruments.
const component = "dhow.dev/services/scheduler"

// The lease, named as Kubernetes names it.
const (
	leaseNamespace = "kube-system"
	leaseName      = "kube-scheduler"
)

var errUnsynced = errors.New("no API server has shown it the whole cluster yet")

// Run serves until the context ends, and returns nil then.
func Run(ctx context.Context, config Config) error {
	if err := run(ctx, config); err != nil {
		config.Listener.Close()
		return fmt.Errorf("scheduler: %w", err)
	}
	return nil
}

func run(ctx context.Context, config Config) error {
	if err := config.setDefaults(); err != nil {
		return err
	}
	logger, tracer := config.Logger, telemetry.Tracer(component)
	objects := informer.New(config.APIServer, logger)
	events := event.New(event.Config{Conn: config.APIServer, Logger: logger})
	decisions, err := loop.New(loop.Config{
		Conn: config.APIServer, Informer: objects, Events: events.Source(loop.Component),
		Namespaces: informer.Add(objects, informer.Options[*corev1.Namespace]{}),
		Budgets:    informer.Add(objects, informer.Options[*policyv1.PodDisruptionBudget]{}),
		Storage:    loop.AddStorage(objects),
		// Nodes come before pods, so that in the first snapshot pods find theirs.
		Nodes: informer.Add(objects, informer.Options[*corev1.Node]{}),
		Services: informer.Add(objects, informer.Options[*corev1.Service]{Indexes: map[string]func(*corev1.Service) []string{
			loop.ByNamespace: func(s *corev1.Service) []string { return []string{s.GetMetadata().GetNamespace()} },
		}}),
		Pods:          informer.Add(objects, informer.Options[*corev1.Pod]{}),
		SchedulerName: config.SchedulerName, Seed: config.Seed,
		Logger: logger, Tracer: tracer, Meter: telemetry.Meter(component), Now: time.Now,
	})
	if err != nil {
		return err
	}
	elector := leader.New(leader.Config{
		Conn: config.APIServer, Namespace: leaseNamespace, Name: leaseName, Identity: config.Instance, Logger: logger,
		Duration: config.LeaseDuration, Deadline: config.LeaseDuration * 2 / 3, Renew: config.LeaseDuration / 3, Retry: config.LeaseDuration / 15,
	})

	tasks, running := errgroup.WithContext(ctx)
	checks := health.NewServer()
	checks.SetServingStatus("", healthpb.HealthCheckResponse_NOT_SERVING)
	front := transport.NewServer(transport.ServerConfig{Credentials: config.Credentials, Logger: logger, Health: checks, Lifetime: running})
	schedulerv1.RegisterSchedulerServer(front, explain.NewServer(explain.Config{Pictures: decisions, Synced: objects.WaitForSync, Seed: config.Seed}))
	logger.LogAttrs(ctx, slog.LevelInfo, "scheduler serves", logkey.Address(config.Listener.Addr().String()))
	tasks.Go(func() error { return transport.Serve(running, front, config.Listener) })
	tasks.Go(func() error { return objects.Run(running) })
	tasks.Go(func() error { return events.Run(running) })
	tasks.Go(func() error {
		// Healthy and ready once it knows the cluster, whether it leads or not.
		config.Ready.Lacks(errUnsynced)
		if objects.WaitForSync(running) == nil {
			config.Ready.Lacks(nil)
			checks.SetServingStatus("", healthpb.HealthCheckResponse_SERVING)
		}
		return nil
	})
	tasks.Go(func() error {
		if config.LeaderElect {
			return elector.Run(running, decisions.Run)
		}
		return decisions.Run(running)
	})
	return tasks.Wait()
}

func (c *Config) setDefaults() error {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.APIServer == nil || c.Credentials == nil {
		return errors.New("Credentials and APIServer are required")
	}
	if c.SchedulerName == "" {
		c.SchedulerName = loop.DefaultSchedulerName
	}
	if c.LeaseDuration == 0 {
		c.LeaseDuration = 15 * time.Second
	}
	if c.LeaseDuration < 3*time.Second {
		return fmt.Errorf("LeaseDuration %s: at least 3 s", c.LeaseDuration)
	}
	if c.Instance == "" {
		host, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("name of this host, for the lease: %w", err)
		}
		c.Instance = fmt.Sprintf("%s_%d", host, os.Getpid())
	}
	return nil
}
