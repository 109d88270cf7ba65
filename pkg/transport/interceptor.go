package transport

import (
	"context"
	"errors"
	"log/slog"
	"runtime/debug"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"dhow.dev/pkg/apistatus"
	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/stack"
	"dhow.dev/pkg/telemetry/logkey"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

var (
	errPanic = errors.New("the handler panicked")
	errClose = errors.New("the server is shutting down")
)

// healthPrefix starts the methods that need no identity.
var healthPrefix = "/" + healthpb.Health_ServiceDesc.ServiceName + "/"

// edge is where calls enter and leave a server.
type edge struct {
	logger   *slog.Logger
	lifetime context.Context
	tokens   Tokens
	refused  func(ctx context.Context, method string, err error)
}

// grown is for calls that have a goroutine of their own: those of the short way run on their caller's, whose stack is large enough or full of frames.
func grown(ctx context.Context, request any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	stack.Grow()
	return handler(ctx, request)
}

func (e *edge) unary(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (response any, err error) {
	start := time.Now()
	ctx, err = e.identify(ctx, info.FullMethod)
	if err == nil {
		response, err = e.callUnary(ctx, request, info.FullMethod, handler)
	}
	return response, e.leave(ctx, info.FullMethod, start, err)
}

func (e *edge) callUnary(ctx context.Context, request any, method string, handler grpc.UnaryHandler) (response any, err error) {
	defer func() {
		if value := recover(); value != nil {
			response, err = nil, e.recovered(ctx, method, value)
		}
	}()
	return handler(ctx, request)
}

func (e *edge) stream(service any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	start := time.Now()
	ctx, err := e.identify(stream.Context(), info.FullMethod)
	if err == nil {
		var cancel context.CancelCauseFunc
		ctx, cancel = context.WithCancelCause(ctx)
		stop := context.AfterFunc(e.lifetime, func() { cancel(errClose) })
		err = e.callStream(service, &identified{ServerStream: stream, ctx: ctx}, info.FullMethod, handler)
		// The end of the service looks like a cancellation to the handler; the client, which cancelled nothing, has to see otherwise.
		if context.Cause(ctx) == errClose && (errors.Is(err, context.Canceled) || status.Code(err) == codes.Canceled) {
			err = apierrors.NewServiceUnavailable(errClose.Error() + "; connect again")
		}
		stop()
		cancel(nil)
	}
	return e.leave(ctx, info.FullMethod, start, err)
}

func (e *edge) callStream(service any, stream grpc.ServerStream, method string, handler grpc.StreamHandler) (err error) {
	defer func() {
		if value := recover(); value != nil {
			err = e.recovered(stream.Context(), method, value)
		}
	}()
	return handler(service, stream)
}

func (e *edge) recovered(ctx context.Context, method string, value any) error {
	e.logger.LogAttrs(ctx, slog.LevelError, "handler panicked", logkey.Method(method), logkey.Panic(value), logkey.Stack(debug.Stack()))
	return errPanic
}

// leave converts the handler's error and logs the call. The error is logged as the handler gave it: for internal errors the caller
// gets less.
func (e *edge) leave(ctx context.Context, method string, start time.Time, err error) error {
	sent := apistatus.ToGRPC(err)
	code := status.Code(sent)
	level, message := slog.LevelDebug, "call handled"
	switch code {
	case codes.Internal, codes.Unknown, codes.DataLoss:
		if err != errPanic { // the panic has its record
			level, message = slog.LevelError, "call failed"
		}
	}
	if !e.logger.Enabled(ctx, level) {
		return sent
	}
	caller, _ := identity.FromContext(ctx)
	attributes := []slog.Attr{logkey.Method(method), logkey.Code(code), logkey.Duration(time.Since(start)), logkey.Identity(caller.Name)}
	if err != nil {
		attributes = append(attributes, logkey.Err(err))
	}
	e.logger.LogAttrs(ctx, level, message, attributes...)
	return sent
}

// identify puts the caller's identity into the context. Health checks may come from anyone whom the connection let in.
func (e *edge) identify(ctx context.Context, method string) (context.Context, error) {
	caller, err := e.callerOf(ctx)
	if err == nil {
		return identity.NewContext(ctx, caller), nil
	}
	if strings.HasPrefix(method, healthPrefix) {
		return ctx, nil
	}
	if e.refused != nil {
		e.refused(ctx, method, err)
	}
	return ctx, err
}

// identified is a stream whose context carries the identity.
type identified struct {
	grpc.ServerStream
	ctx context.Context
}

func (s *identified) Context() context.Context { return s.ctx }
