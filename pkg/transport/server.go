// Package transport is how Dhow's services talk: gRPC servers and clients with one set of settings and interceptors, over mutual
// TLS between processes and over memory inside one. A handler cannot tell which; it finds the caller's identity in its context.
//
// Every call passes one edge (interceptor.go): the caller is identified, or refused; panics become errors; the handler's error is
// converted to a gRPC status exactly once; internal errors are logged once, all calls at debug level.
package transport

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"time"

	"dhow.dev/pkg/rawcodec"
	"dhow.dev/pkg/telemetry/logkey"
	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"
)

// MaxMessageSize bounds a message in both directions. An object is at most 1.5 MiB (etcd's request limit), so this bounds lists and
// batches between own services.
const MaxMessageSize = 64 << 20

// shutdownGrace is how long Serve lets calls finish before it cancels them.
const shutdownGrace = 5 * time.Second

// ServerConfig configures NewServer.
type ServerConfig struct {
	// Credentials authenticate callers: TLSServer, TLSDoor or Memory.ServerCredentials. Required.
	Credentials credentials.TransportCredentials
	// Tokens authenticate calls on TLS connections without a client certificate, which TLSDoor allows, by their metadata
	// `authorization: Bearer <token>`. Nil: such calls are refused, except health checks.
	Tokens Tokens
	// Logger gets the records of calls. Nil discards them.
	Logger *slog.Logger
	// Health answers health checks. Nil: a server that is always serving.
	Health *health.Server
	// Lifetime, when set, is the service's: when it ends, streaming calls are cancelled and end with UNAVAILABLE, so that watches do
	// not hold up a graceful stop and their clients turn to another server at once. Usually the context that Serve gets.
	Lifetime context.Context
	// Options are further options; their interceptors run inside those of this package, with the identity in the context.
	Options []grpc.ServerOption
}

// NewServer returns a gRPC server with the shared settings, health and reflection registered. It panics without credentials: a
// server that lets anyone in does not exist.
func NewServer(config ServerConfig) *grpc.Server {
	if config.Credentials == nil {
		panic("transport.NewServer: no credentials")
	}
	logger := config.Logger
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	lifetime := config.Lifetime
	if lifetime == nil {
		lifetime = context.Background()
	}
	e := &edge{logger: logger, lifetime: lifetime, tokens: config.Tokens}
	options := []grpc.ServerOption{
		grpc.Creds(config.Credentials),
		grpc.ForceServerCodecV2(rawcodec.Codec{}),
		grpc.StatsHandler(otelgrpc.NewServerHandler()),
		grpc.ChainUnaryInterceptor(e.unary),
		grpc.ChainStreamInterceptor(e.stream),
		grpc.MaxRecvMsgSize(MaxMessageSize),
		grpc.MaxSendMsgSize(MaxMessageSize),
		grpc.SharedWriteBuffer(true),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 10 * time.Second, Timeout: 5 * time.Second}),
		// Half of what own clients do, so that a late timer is not taken for an attack.
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		// Handlers use resources that the service closes after Serve returns.
		grpc.WaitForHandlers(true),
	}
	server := grpc.NewServer(append(options, config.Options...)...)
	checks := config.Health
	if checks == nil {
		checks = health.NewServer()
	}
	healthpb.RegisterHealthServer(server, checks)
	reflection.Register(server)
	return server
}

// Serve accepts calls until the context ends, then stops: no new calls, the running ones get a few seconds (streams of a server
// with Lifetime end at once), the rest is cancelled. It returns nil after a stop, with no handler running any more.
func Serve(ctx context.Context, server *grpc.Server, listener net.Listener) error {
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	select {
	case err := <-served:
		server.Stop()
		if err == nil || errors.Is(err, grpc.ErrServerStopped) {
			return nil
		}
		return fmt.Errorf("serve on %s: %w", listener.Addr(), err)
	case <-ctx.Done():
	}
	force := time.AfterFunc(shutdownGrace, server.Stop)
	defer force.Stop()
	server.GracefulStop()
	<-served
	return nil
}

// Listen opens a TCP listener on an address, or one that hears several, separated by commas. Its error says what to do when an address cannot be
// had.
func Listen(ctx context.Context, addresses string, logger *slog.Logger) (net.Listener, error) {
	var listeners []net.Listener
	for address := range strings.SplitSeq(addresses, ",") {
		listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
		if err != nil {
			for _, open := range listeners {
				open.Close()
			}
			return nil, fmt.Errorf("listen on %s: %w: choose another address, or stop the process that has it (ss -ltnp)", address, err)
		}
		logger.InfoContext(ctx, "listening", logkey.Address(listener.Addr().String()))
		listeners = append(listeners, listener)
	}
	if len(listeners) == 1 {
		return listeners[0], nil
	}
	return Several(listeners[0], listeners[1:]...), nil
}
