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

// What may be on its way to a reader that has not read yet, in bytes: of one stream, and of a connection. Fixed, since gRPC otherwise asks with a ping after each
// message how much the path holds, which costs more than a small message does. A stream's fills a path of 1 Gbit/s and 8 ms.
const (
	streamWindow     = 1 << 20
	connectionWindow = 4 << 20
)

// shutdownGrace is how long Serve lets calls finish before it cancels them.
const shutdownGrace = 5 * time.Second

// ServerConfig configures NewServer.
type ServerConfig struct {
	// Credentials authenticate callers: TLSServer, TLSDoor or Memory.ServerCredentials. Required.
	Credentials credentials.TransportCredentials
	// Tokens authenticate calls on TLS connections without a client certificate, which TLSDoor allows, by their metadata
	// `authorization: Bearer <token>`. Nil: such calls are refused, except health checks.
	Tokens Tokens
	// Refused hears of calls whose callers are not known, before they are answered with the error. Nil: nobody does.
	Refused func(ctx context.Context, method string, err error)
	// Logger gets the records of calls. Nil discards them.
	Logger *slog.Logger
	// Health answers health checks. Nil: a server that is always serving.
	Health *health.Server
	// Lifetime, when set, is the service's: when it ends, streaming calls are cancelled and end with UNAVAILABLE, so that watches do
	// not hold up a graceful stop and their clients turn to another server at once. Usually the context that Serve gets.
	Lifetime context.Context
	// Options are further options, none of them interceptors.
	Options []grpc.ServerOption
	// Interceptors run inside those of this package, with the identity in the context, the first one outermost.
	Interceptors []Interceptor
}

// Interceptor sees every call of a server. Both are required.
type Interceptor struct {
	Unary  grpc.UnaryServerInterceptor
	Stream grpc.StreamServerInterceptor
}

// Server is a gRPC server. Unary calls from the same process may take the short way to it (direct.go).
type Server struct {
	*grpc.Server
	short *shortcut
}

// RegisterService implements grpc.ServiceRegistrar.
func (s *Server) RegisterService(desc *grpc.ServiceDesc, service any) {
	s.Server.RegisterService(desc, service)
	s.short.register(desc, service)
}

// NewServer returns a gRPC server with the shared settings, health and reflection registered. It panics without credentials: a
// server that lets anyone in does not exist.
func NewServer(config ServerConfig) *Server {
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
	e := &edge{logger: logger, lifetime: lifetime, tokens: config.Tokens, refused: config.Refused}
	unary, stream := []grpc.UnaryServerInterceptor{e.unary}, []grpc.StreamServerInterceptor{e.stream}
	for _, i := range config.Interceptors {
		unary, stream = append(unary, i.Unary), append(stream, i.Stream)
	}
	options := []grpc.ServerOption{
		grpc.Creds(config.Credentials),
		grpc.ForceServerCodecV2(rawcodec.Codec{}),
		grpc.StatsHandler(otelgrpc.NewServerHandler()),
		grpc.ChainUnaryInterceptor(append([]grpc.UnaryServerInterceptor{grown}, unary...)...),
		grpc.ChainStreamInterceptor(stream...),
		grpc.MaxRecvMsgSize(MaxMessageSize),
		grpc.MaxSendMsgSize(MaxMessageSize),
		grpc.SharedWriteBuffer(true),
		grpc.StaticStreamWindowSize(streamWindow),
		grpc.StaticConnWindowSize(connectionWindow),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 10 * time.Second, Timeout: 5 * time.Second}),
		// Half of what own clients do, so that a late timer is not taken for an attack.
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		// Handlers use resources that the service closes after Serve returns.
		grpc.WaitForHandlers(true),
	}
	server := &Server{Server: grpc.NewServer(append(options, config.Options...)...), short: newShortcut(unary)}
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
func Serve(ctx context.Context, server *Server, listener net.Listener) error {
	leave := server.short.admit(listener)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	select {
	case err := <-served:
		server.short.cancel()
		server.Stop()
		leave()
		if err == nil || errors.Is(err, grpc.ErrServerStopped) {
			return nil
		}
		return fmt.Errorf("serve on %s: %w", listener.Addr(), err)
	case <-ctx.Done():
	}
	server.short.refuse()
	force := time.AfterFunc(shutdownGrace, func() {
		server.short.cancel()
		server.Stop()
	})
	defer force.Stop()
	server.GracefulStop()
	leave()
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
