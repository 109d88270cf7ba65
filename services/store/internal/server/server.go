// Package server is the store's gRPC service: it turns calls into commits, reads and watches of the engine.
//
// Each file is one group of methods. What they share is here: who may call, what errors mean on the wire, and the instruments.
package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	storev1 "dhow.dev/gen/go/dhow/store/v1"
	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/telemetry"
	"dhow.dev/pkg/telemetry/logkey"
	"dhow.dev/pkg/transport"
	"dhow.dev/services/store/internal/committer"
	"dhow.dev/services/store/internal/engine"
)

// Config configures New.
type Config struct {
	Engine    engine.Engine
	Committer *committer.Committer
	Logger    *slog.Logger
	Tracer    trace.Tracer
	Meter     metric.Meter
}

// Server implements storev1.StoreServer.
type Server struct {
	storev1.UnimplementedStoreServer

	engine    engine.Engine
	committer *committer.Committer
	logger    *slog.Logger
	tracer    trace.Tracer
	revision  *coalescer
	watchers  metric.Int64UpDownCounter
	changes   metric.Int64Counter
	sizes     metric.Registration
}

// New returns a Server.
func New(config Config) (*Server, error) {
	s := &Server{
		engine: config.Engine, committer: config.Committer, logger: config.Logger, tracer: config.Tracer,
		revision: &coalescer{read: config.Engine.Status},
	}
	var failed [3]error
	s.watchers, failed[0] = config.Meter.Int64UpDownCounter("dhow.store.watchers",
		metric.WithDescription("Watch streams that are open"), metric.WithUnit("{watcher}"))
	s.changes, failed[1] = config.Meter.Int64Counter("dhow.store.watch.changes",
		metric.WithDescription("Changes sent to watchers"), metric.WithUnit("{change}"))
	s.sizes, failed[2] = s.observeSize(config.Meter)
	return s, errors.Join(failed[:]...)
}

// Close stops what New started.
func (s *Server) Close() error { return s.sizes.Unregister() }

func (s *Server) observeSize(meter metric.Meter) (metric.Registration, error) {
	var failed [3]error
	var total, used, quota metric.Int64ObservableGauge
	total, failed[0] = meter.Int64ObservableGauge("dhow.store.database.size",
		metric.WithDescription("Size of the database's file"), metric.WithUnit("By"))
	used, failed[1] = meter.Int64ObservableGauge("dhow.store.database.used",
		metric.WithDescription("Part of the database's file that holds data"), metric.WithUnit("By"))
	quota, failed[2] = meter.Int64ObservableGauge("dhow.store.database.quota",
		metric.WithDescription("Size at which the database stops taking writes"), metric.WithUnit("By"))
	if err := errors.Join(failed[:]...); err != nil {
		return nil, err
	}
	return meter.RegisterCallback(func(ctx context.Context, observer metric.Observer) error {
		size, err := s.engine.Size(ctx)
		if err != nil {
			return err
		}
		observer.ObserveInt64(total, size.Total)
		observer.ObserveInt64(used, size.InUse)
		observer.ObserveInt64(quota, size.Quota)
		return nil
	}, total, used, quota)
}

// servicePrefix begins the full names of the store's methods. Health checks and reflection have others.
var servicePrefix = "/" + storev1.Store_ServiceDesc.ServiceName + "/"

// Interceptor keeps everyone but API servers out, whatever the method.
func Interceptor() transport.Interceptor {
	return transport.Interceptor{
		Unary: func(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
			if err := authorize(ctx, info.FullMethod); err != nil {
				return nil, err
			}
			return handler(ctx, request)
		},
		Stream: func(service any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
			if err := authorize(stream.Context(), info.FullMethod); err != nil {
				return err
			}
			return handler(service, stream)
		},
	}
}

func authorize(ctx context.Context, method string) error {
	if !strings.HasPrefix(method, servicePrefix) {
		return nil
	}
	if caller, _ := identity.FromContext(ctx); caller.Name != identity.APIServer {
		return status.Errorf(codes.PermissionDenied, "%q may not call %s: only %s may, ask an API server", caller.Name, method, identity.APIServer)
	}
	return nil
}

// grpcError gives an engine's error its code, whatever code etcd gave to what is behind it. Statuses of this package stay as they are; errors without a code are internal, and
// the transport logs and hides them.
func grpcError(err error) error {
	for _, known := range []struct {
		err  error
		code codes.Code
	}{
		{committer.ErrInvalid, codes.InvalidArgument},
		{engine.ErrRejected, codes.InvalidArgument},
		{engine.ErrCompacted, codes.OutOfRange},
		{engine.ErrFuture, codes.OutOfRange},
		{engine.ErrLeaseNotFound, codes.NotFound},
		{engine.ErrNoSpace, codes.ResourceExhausted},
		{engine.ErrTooLarge, codes.ResourceExhausted},
		{engine.ErrUnsupported, codes.Unimplemented},
		// Before what the store says of itself: the caller gave up.
		{context.Canceled, codes.Canceled},
		{context.DeadlineExceeded, codes.DeadlineExceeded},
		{engine.ErrUncertain, codes.Unavailable},
		{engine.ErrUnavailable, codes.Unavailable},
	} {
		if errors.Is(err, known.err) {
			return status.Error(known.code, err.Error())
		}
	}
	return err
}

// invalid is the error of a field that is not as the API says.
func invalid(format string, arguments ...any) error {
	return status.Error(codes.InvalidArgument, fmt.Sprintf(format, arguments...))
}

// Compact implements storev1.StoreServer.
func (s *Server) Compact(ctx context.Context, request *storev1.CompactRequest) (*storev1.CompactResponse, error) {
	revision, err := readRevision(request.GetRevision())
	if err != nil || revision == 0 {
		return nil, invalid("revision: %d is no revision", request.GetRevision())
	}
	if err := s.engine.Compact(ctx, revision); err != nil {
		return nil, grpcError(err)
	}
	s.logger.LogAttrs(ctx, slog.LevelInfo, "history compacted on demand", logkey.Revision(request.GetRevision()))
	return &storev1.CompactResponse{}, nil
}

// Snapshot implements storev1.StoreServer.
func (s *Server) Snapshot(_ *storev1.SnapshotRequest, stream grpc.ServerStreamingServer[storev1.SnapshotResponse]) error {
	s.logger.LogAttrs(stream.Context(), slog.LevelInfo, "a snapshot is made")
	return grpcError(s.engine.Snapshot(stream.Context(), func(data []byte) error {
		return stream.Send(storev1.SnapshotResponse_builder{Data: data}.Build())
	}))
}

// Spans implements storev1.StoreServer.
func (s *Server) Spans(_ *storev1.SpansRequest, stream grpc.ServerStreamingServer[storev1.SpansResponse]) error {
	stop := telemetry.Report(func(_ context.Context, spans []*tracepb.ResourceSpans) error {
		data, err := proto.Marshal(&tracepb.TracesData{ResourceSpans: spans})
		if err != nil {
			return err
		}
		return stream.Send(storev1.SpansResponse_builder{Traces: data}.Build())
	})
	defer stop()
	<-stream.Context().Done()
	return stream.Context().Err()
}
