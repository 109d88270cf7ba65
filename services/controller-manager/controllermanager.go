// Package controllermanager is the service of all reconcile loops: it reads the cluster's state through one watch, and writes what brings the
// world closer to what users asked for. It talks to the API server and to nothing else.
//
// This file is its composition. A new controller is a package in internal/ and a line in controllers (docs/checklists/add-a-controller.md).
package controllermanager

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	coordinationv1 "dhow.dev/gen/go/dhow/coordination/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/event"
	"dhow.dev/pkg/leader"
	"dhow.dev/pkg/pki"
	"dhow.dev/pkg/telemetry"
	"dhow.dev/pkg/transport"
	"dhow.dev/services/controller-manager/internal/attachdetach"
	"dhow.dev/services/controller-manager/internal/bootstraptoken"
	"dhow.dev/services/controller-manager/internal/certificate"
	"dhow.dev/services/controller-manager/internal/clusterrole"
	"dhow.dev/services/controller-manager/internal/cronjob"
	"dhow.dev/services/controller-manager/internal/daemonset"
	"dhow.dev/services/controller-manager/internal/deployment"
	"dhow.dev/services/controller-manager/internal/disruption"
	"dhow.dev/services/controller-manager/internal/endpoints"
	"dhow.dev/services/controller-manager/internal/endpointslice"
	"dhow.dev/services/controller-manager/internal/ephemeralvolume"
	"dhow.dev/services/controller-manager/internal/garbage"
	"dhow.dev/services/controller-manager/internal/horizontalpodautoscaler"
	"dhow.dev/services/controller-manager/internal/inventory"
	"dhow.dev/services/controller-manager/internal/job"
	"dhow.dev/services/controller-manager/internal/localpath"
	"dhow.dev/services/controller-manager/internal/metadata"
	"dhow.dev/services/controller-manager/internal/namespace"
	"dhow.dev/services/controller-manager/internal/nodelifecycle"
	"dhow.dev/services/controller-manager/internal/persistentvolume"
	"dhow.dev/services/controller-manager/internal/podgc"
	"dhow.dev/services/controller-manager/internal/replicaset"
	"dhow.dev/services/controller-manager/internal/replicationcontroller"
	"dhow.dev/services/controller-manager/internal/resourcequota"
	"dhow.dev/services/controller-manager/internal/serviceaccount"
	"dhow.dev/services/controller-manager/internal/statefulset"
	"dhow.dev/services/controller-manager/internal/storageprotection"
	"dhow.dev/services/controller-manager/internal/ttlafterfinished"
	"dhow.dev/services/controller-manager/internal/volumeexpand"
)

// Health is the name under which the health service tells whether this process does the work; under the empty name it tells that it is well, also
// while another process leads.
const Health = "dhow.controllers"

// Config configures Run.
type Config struct {
	// Listener is where health and reflection are served. Run closes it. Nil: nowhere.
	Listener net.Listener
	// Credentials authenticate callers. Required with a listener.
	Credentials credentials.TransportCredentials
	// Logger gets the service's records. Nil discards them.
	Logger *slog.Logger
	// APIServer is the connection to the API server, as identity system:kube-controller-manager.
	APIServer grpc.ClientConnInterface

	// LeaderElect lets only one of several processes work at a time. Identity tells them apart; empty: host name and process id.
	LeaderElect bool
	Identity    string
	// LeaseDuration is how long a leader that has vanished is waited for; 0: 15 s, at least 3 s.
	LeaseDuration time.Duration

	// CACert is the cluster's root certificate, PEM, put into every namespace. Empty: not put.
	CACert []byte
	// ClusterSigner signs what was approved of certificate requests to the cluster's own signers. Nil: nothing signs them.
	ClusterSigner *pki.Authority
	// NodeEvictionRate is how many nodes a second in a zone may begin to lose their pods, the first one at once; 0: 0.1.
	NodeEvictionRate float64
	// EvictionStartGrace is how long after its start the service evicts nothing from nodes that were not ready before, so that they can come back
	// after the control plane does; 0: 40 s, negative: none.
	EvictionStartGrace time.Duration
	// FinishedPods is how many finished pods may stay; 0: 12500, negative: any number.
	FinishedPods int
	// OrphanQuarantine is how long a node must be missing before its pods are removed; 0: 40 s, negative: none.
	OrphanQuarantine time.Duration
	// MetricsAPI serves custom.metrics.k8s.io and external.metrics.k8s.io: what autoscalers ask for that nodes do not measure. Nil: metrics of types Pods, Object and External cannot be had.
	MetricsAPI *url.URL
	// MetricsClient calls it. Nil: http.DefaultClient.
	MetricsClient *http.Client
	// Now tells the time of controllers that compare with it; nil: time.Now.
	Now func() time.Time
	// Ready is told what the service waits for. Optional.
	Ready *telemetry.Readiness
	// Started is called each time the controllers have their first view of the cluster and begin to work. Optional.
	Started func()
}

// Workers per controller: how many objects of it are worked on at once. What waits for the API server costs nothing here.
const (
	workers      = 8
	garbageCrew  = 20 // Kubernetes' number, too; a deleted deployment is hundreds of objects
	evictionCrew = 16
)

func (c *Config) setDefaults() error {
	if c.APIServer == nil {
		return errors.New("APIServer is required")
	}
	if c.Listener != nil && c.Credentials == nil {
		return errors.New("Credentials are required with a Listener")
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Identity == "" {
		host, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("the host has no name, so give an Identity: %w", err)
		}
		c.Identity = fmt.Sprintf("%s_%d", host, os.Getpid())
	}
	if c.LeaseDuration == 0 {
		c.LeaseDuration = 15 * time.Second
	}
	if c.LeaseDuration < 3*time.Second {
		return fmt.Errorf("LeaseDuration %s: at least 3 s", c.LeaseDuration)
	}
	if c.NodeEvictionRate == 0 {
		c.NodeEvictionRate = 0.1
	}
	if c.MetricsClient == nil {
		c.MetricsClient = http.DefaultClient
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	orDefault(&c.EvictionStartGrace, 40*time.Second)
	orDefault(&c.OrphanQuarantine, 40*time.Second)
	orDefault(&c.FinishedPods, 12500)
	return nil
}

// orDefault replaces 0 by the default and a negative number by 0.
func orDefault[T ~int | ~int64](v *T, value T) {
	switch {
	case *v == 0:
		*v = value
	case *v < 0:
		*v = 0
	}
}

// Run works until the context ends, and returns nil then.
func Run(ctx context.Context, config Config) error {
	if err := config.setDefaults(); err != nil {
		if config.Listener != nil {
			config.Listener.Close()
		}
		return fmt.Errorf("controller-manager: %w", err)
	}
	tasks, running := errgroup.WithContext(ctx)
	checks := health.NewServer()
	checks.SetServingStatus(Health, healthpb.HealthCheckResponse_NOT_SERVING)
	if config.Listener != nil {
		server := transport.NewServer(transport.ServerConfig{
			Credentials: config.Credentials, Logger: config.Logger, Health: checks, Lifetime: running,
		})
		tasks.Go(func() error { return transport.Serve(running, server, config.Listener) })
	}
	by := standby{leases: client.For[*coordinationv1.Lease](config.APIServer)}
	work := func(ctx context.Context) error {
		defer config.Ready.Set(by.check)
		return control(ctx, config, checks)
	}
	tasks.Go(func() error {
		if !config.LeaderElect {
			return work(running)
		}
		config.Ready.Set(by.check)
		return leader.New(leader.Config{
			Conn: config.APIServer, Namespace: leaseNamespace, Name: leaseName, Identity: config.Identity,
			Duration: config.LeaseDuration, Deadline: config.LeaseDuration * 2 / 3, Renew: config.LeaseDuration / 7, Retry: config.LeaseDuration / 7,
			Logger: config.Logger,
		}).Run(running, work)
	})
	if err := tasks.Wait(); err != nil && ctx.Err() == nil {
		return fmt.Errorf("controller-manager: %w", err)
	}
	return nil
}

// control runs all controllers until ctx ends. What they know is made anew each time: another process may have led meanwhile.
func control(ctx context.Context, config Config, checks *health.Server) error {
	stores := inventory.New(config.APIServer, config.Logger)
	watcher := metadata.New(config.APIServer, config.Logger)
	events := event.New(event.Config{Conn: config.APIServer, Logger: config.Logger})
	all := controllers(config, stores, watcher, events)
	config.Ready.Lacks(errUnsynced)

	tasks, running := errgroup.WithContext(ctx)
	tasks.Go(func() error { return stores.Run(running) })
	tasks.Go(func() error { return watcher.Run(running) })
	tasks.Go(func() error { return events.Run(running) })
	for _, c := range all {
		tasks.Go(func() error { return c.Run(running) })
	}
	tasks.Go(func() error {
		if stores.WaitForSync(running) != nil || watcher.WaitForSync(running) != nil {
			return nil // the context ended
		}
		checks.SetServingStatus(Health, healthpb.HealthCheckResponse_SERVING)
		config.Ready.Lacks(nil)
		config.Logger.InfoContext(running, "controllers work")
		if config.Started != nil {
			config.Started()
		}
		return nil
	})
	defer checks.SetServingStatus(Health, healthpb.HealthCheckResponse_NOT_SERVING)
	return tasks.Wait()
}

// runner is one reconcile loop.
type runner interface{ Run(context.Context) error }

// controllers returns every reconcile loop, wired to what it reads. They know nothing of each other.
func controllers(config Config, stores *inventory.Stores, watcher *metadata.Watcher, events *event.Recorder) []runner {
	conn, logger, now := config.APIServer, config.Logger, config.Now
	nodes := nodelifecycle.New(nodelifecycle.Config{
		Conn: conn, Stores: stores, Events: events, Logger: logger, Now: now, Workers: evictionCrew,
		EvictionRate: config.NodeEvictionRate, StartGrace: config.EvictionStartGrace,
	})
	budgets := disruption.Config{Conn: conn, Stores: stores, Events: events, Logger: logger, Now: now, Workers: workers}
	return []runner{
		deployment.New(deployment.Config{Conn: conn, Stores: stores, Events: events, Logger: logger, Now: now, Workers: workers}),
		replicationcontroller.New(replicaset.Config{Conn: conn, Stores: stores, Events: events, Logger: logger, Now: now, Workers: workers}),
		cronjob.New(cronjob.Config{Conn: conn, Stores: stores, Events: events, Logger: logger, Now: now, Workers: workers}),
		ttlafterfinished.New(ttlafterfinished.Config{Conn: conn, Stores: stores, Logger: logger, Now: now, Workers: workers}),
		horizontalpodautoscaler.New(horizontalpodautoscaler.Config{
			Conn: conn, Stores: stores, Metrics: horizontalpodautoscaler.NewMetrics(conn, config.MetricsAPI, config.MetricsClient), Events: events, Logger: logger, Now: now, Workers: workers,
		}),
		job.New(job.Config{Conn: conn, Stores: stores, Events: events, Logger: logger, Now: now, Workers: workers}),
		replicaset.New(replicaset.Config{Conn: conn, Stores: stores, Events: events, Logger: logger, Now: now, Workers: workers}),
		daemonset.New(daemonset.Config{Conn: conn, Stores: stores, Events: events, Logger: logger, Now: now, Workers: workers}),
		statefulset.New(statefulset.Config{Conn: conn, Stores: stores, Events: events, Logger: logger, Now: now, Workers: workers}),
		endpointslice.New(endpointslice.Config{Conn: conn, Stores: stores, Logger: logger, Workers: workers}),
		endpoints.New(endpoints.Config{Conn: conn, Stores: stores, Logger: logger, Workers: workers}),
		nodes,
		nodes.Evictions,
		podgc.New(podgc.Config{
			Conn: conn, Stores: stores, Logger: logger, Now: now, Workers: workers,
			Threshold: config.FinishedPods, Quarantine: config.OrphanQuarantine,
		}),
		serviceaccount.New(serviceaccount.Config{Conn: conn, Stores: stores, Logger: logger, Workers: workers, CACert: config.CACert}),
		serviceaccount.NewTokens(serviceaccount.TokensConfig{Conn: conn, Logger: logger, Workers: workers, CACert: config.CACert}),
		bootstraptoken.New(bootstraptoken.Config{Conn: conn, Logger: logger, Now: now, Workers: workers}),
		namespace.New(namespace.Config{Conn: conn, Stores: stores, Watcher: watcher, Logger: logger, Now: now, Workers: workers}),
		resourcequota.New(resourcequota.Config{Conn: conn, Stores: stores, Watcher: watcher, Logger: logger, Workers: workers}),
		disruption.New(budgets),
		disruption.NewTargets(budgets),
		clusterrole.New(clusterrole.Config{Conn: conn, Logger: logger, Workers: workers}),
		persistentvolume.New(persistentvolume.Config{Conn: conn, Stores: stores, Events: events, Logger: logger, Now: now, Workers: workers}),
		localpath.New(localpath.Config{Conn: conn, Stores: stores, Events: events, Logger: logger, Workers: workers}),
		attachdetach.New(attachdetach.Config{Conn: conn, Stores: stores, Events: events, Logger: logger, Now: now, Workers: workers}),
		ephemeralvolume.New(ephemeralvolume.Config{Conn: conn, Stores: stores, Events: events, Logger: logger, Workers: workers}),
		volumeexpand.New(volumeexpand.Config{Conn: conn, Stores: stores, Events: events, Logger: logger, Workers: workers}),
		storageprotection.New(storageprotection.Config{Conn: conn, Stores: stores, Logger: logger, Workers: workers}),
		storageprotection.NewClasses(storageprotection.Config{Conn: conn, Stores: stores, Logger: logger, Workers: workers}),
		certificate.New(certificate.Config{Conn: conn, Logger: logger, Now: now, Authority: config.ClusterSigner, Workers: workers}),
		garbage.New(garbage.Config{Conn: conn, Watcher: watcher, Logger: logger, Workers: garbageCrew}),
	}
}
