// Package store is Dhow's store service: the one source of truth, revisioned, conditional, batched commits over etcd.
//
// This file is its composition: every part is made here and nowhere else, then all of them run until the first fails or the context
// ends. A call's way is server → committer → engine; the compactor works beside it.
package store

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/credentials"

	storev1 "dhow.dev/gen/go/dhow/store/v1"
	"dhow.dev/pkg/telemetry"
	"dhow.dev/pkg/telemetry/logkey"
	"dhow.dev/pkg/transport"
	"dhow.dev/services/store/internal/committer"
	"dhow.dev/services/store/internal/compactor"
	"dhow.dev/services/store/internal/engine"
	"dhow.dev/services/store/internal/etcd"
	"dhow.dev/services/store/internal/memory"
	"dhow.dev/services/store/internal/server"
)

// Config configures Run. Exactly one of DataDir, Etcd.Endpoints and Memory says where the data is.
type Config struct {
	// Listener is where the service listens. Run closes it.
	Listener net.Listener
	// Credentials authenticate callers.
	Credentials credentials.TransportCredentials
	// Logger gets the service's records. Nil discards them.
	Logger *slog.Logger

	// DataDir is the folder of the embedded etcd.
	DataDir string
	// Members makes this one of several stores with an embedded etcd that keep one database. Nil: the only one.
	Members *Members
	// Etcd is an external cluster.
	Etcd Etcd
	// Memory keeps the data in memory: it ends with Run. For tests.
	Memory bool

	// QuotaBytes is the size at which the embedded etcd stops taking writes; 0: 8 GiB.
	QuotaBytes int64
	// History is how long old revisions stay readable; 0: 10 minutes.
	History time.Duration
	// Started is called once the data is open, before the first call is answered. Optional.
	Started func()
	// Ready is told what the store waits for. Optional.
	Ready *telemetry.Readiness
}

// Etcd is an etcd cluster that Dhow does not run itself, and that nobody else uses.
type Etcd struct {
	Endpoints []string
	TLS       *tls.Config
	// MaxTxnOps and MaxRequestBytes are what its members were started with; 0: etcd's defaults, 128 and 1.5 MiB.
	MaxTxnOps, MaxRequestBytes int
}

// Members are the stores that keep one database together.
type Members = etcd.Members

// component names the package's spans and instruments.
const component = "dhow.dev/services/store"

// Run serves until the context ends, and returns nil then. The data is complete on disk at any time, however the process ends.
func Run(ctx context.Context, config Config) (err error) {
	logger := config.Logger
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	config.Ready.Lacks(config.opening())
	db, failed, err := open(ctx, config, logger)
	if err != nil {
		config.Listener.Close()
		return fmt.Errorf("store: %w", err)
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	tracer, meter := telemetry.Tracer(component), telemetry.Meter(component)
	commits, err := committer.New(committer.Config{Engine: db, Tracer: tracer, Meter: meter})
	if err != nil {
		config.Listener.Close()
		return fmt.Errorf("store: %w", err)
	}
	defer commits.Close()
	service, err := server.New(server.Config{Engine: db, Committer: commits, Logger: logger, Tracer: tracer, Meter: meter})
	if err != nil {
		config.Listener.Close()
		return fmt.Errorf("store: %w", err)
	}
	defer service.Close()
	compaction := compactor.New(compactor.Config{Engine: db, History: config.History, Logger: logger})

	tasks, running := errgroup.WithContext(ctx)
	front := transport.NewServer(transport.ServerConfig{
		Credentials: config.Credentials, Logger: logger, Lifetime: running, Interceptors: []transport.Interceptor{server.Interceptor()},
	})
	storev1.RegisterStoreServer(front, service)
	if config.Started != nil {
		config.Started()
	}
	ready := &readiness{db: db}
	config.Ready.Set(ready.check)
	logger.LogAttrs(ctx, slog.LevelInfo, "store serves", logkey.Address(config.Listener.Addr().String()))
	if member, ok := db.(*etcd.Embedded); ok && config.Members != nil {
		// Clients of a member without a leader would wait for what never comes while another member could answer.
		door := newGate(config.Listener)
		config.Listener = door
		tasks.Go(func() error {
			member.Leader(running, func(has bool) {
				if has {
					logger.LogAttrs(running, slog.LevelInfo, "this member has a leader again and serves")
				} else {
					logger.LogAttrs(running, slog.LevelWarn, "this member has no leader, too few members reach each other: clients are sent to others")
				}
				ready.led(has, config.memberNames())
				door.set(has)
			})
			return nil
		})
	}
	tasks.Go(func() error { return transport.Serve(running, front, config.Listener) })
	tasks.Go(func() error { return compaction.Run(running) })
	tasks.Go(func() error { return failed(running) })
	if err := tasks.Wait(); err != nil {
		return fmt.Errorf("store: %w", err)
	}
	return nil
}

// open opens the database. The second result waits until it fails by itself.
func open(ctx context.Context, config Config, logger *slog.Logger) (engine.Engine, func(context.Context) error, error) {
	chosen := 0
	for _, is := range []bool{config.DataDir != "", len(config.Etcd.Endpoints) > 0, config.Memory} {
		if is {
			chosen++
		}
	}
	if chosen != 1 {
		return nil, nil, errors.New("where is the data? Give a data folder or etcd endpoints, one of them")
	}
	if config.Members != nil && config.DataDir == "" {
		return nil, nil, errors.New("only stores with a data folder have members")
	}
	never := func(context.Context) error { return nil }
	switch {
	case config.Memory:
		return memory.New(memory.Config{}), never, nil
	case config.DataDir != "":
		db, err := etcd.Embed(ctx, etcd.EmbedConfig{Dir: config.DataDir, Quota: config.QuotaBytes, Members: config.Members, Logger: logger})
		if err != nil {
			return nil, nil, err
		}
		return db, db.Wait, nil
	default:
		db, err := etcd.Connect(ctx, etcd.ConnectConfig{
			Endpoints: config.Etcd.Endpoints, TLS: config.Etcd.TLS,
			Operations: config.Etcd.MaxTxnOps, Bytes: config.Etcd.MaxRequestBytes, Logger: logger,
		})
		if err != nil {
			return nil, nil, err
		}
		return db, never, nil
	}
}
