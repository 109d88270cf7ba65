package transport

import (
	"context"
	"errors"
	"testing"

	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/rawcodec"
)

// traced gives all unary calls of a connection a span.
func traced(flags trace.TraceFlags) grpc.DialOption {
	span := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}, TraceFlags: flags})
	return grpc.WithUnaryInterceptor(func(ctx context.Context, method string, request, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, options ...grpc.CallOption) error {
		return invoke(trace.ContextWithSpanContext(ctx, span), method, request, reply, conn, options...)
	})
}

// startShort is startMemory with clients whose traces are not recorded.
func startShort(t *testing.T) *server {
	memory := NewMemory()
	s := start(t, memory.ServerCredentials(), memory.Listen("probe"))
	s.dial = func(id identity.Identity) (*grpc.ClientConn, error) { return memory.Dial("probe", id, traced(0)) }
	return s
}

// guide is a service whose method says by which way it was called, and does as told.
type guide struct {
	does func(context.Context) error
}

func (g guide) desc() *grpc.ServiceDesc {
	return &grpc.ServiceDesc{ServiceName: "test.Guide", HandlerType: (*any)(nil), Methods: []grpc.MethodDesc{{
		MethodName: "Way", Handler: func(_ any, ctx context.Context, decode func(any) error, interceptor grpc.UnaryServerInterceptor) (any, error) {
			var request rawcodec.Frame
			if err := decode(&request); err != nil {
				return nil, err
			}
			return interceptor(ctx, request, &grpc.UnaryServerInfo{Server: g, FullMethod: "/test.Guide/Way"}, func(ctx context.Context, _ any) (any, error) {
				if g.does != nil {
					if err := g.does(ctx); err != nil {
						return nil, err
					}
				}
				if _, short := grpc.ServerTransportStreamFromContext(ctx).(*directAnswer); short {
					return rawcodec.New([]byte("short")), nil
				}
				return rawcodec.New([]byte("long")), nil
			})
		},
	}}}
}

// guided is a server of a guide over memory.
type guided struct {
	memory *Memory
	stop   context.CancelFunc
	done   chan error
}

func startGuide(t *testing.T, does func(context.Context) error, interceptors ...Interceptor) *guided {
	t.Helper()
	g := &guided{memory: NewMemory(), done: make(chan error, 1)}
	server := NewServer(ServerConfig{Credentials: g.memory.ServerCredentials(), Interceptors: interceptors})
	service := guide{does}
	server.RegisterService(service.desc(), service)
	var ctx context.Context
	ctx, g.stop = context.WithCancel(t.Context())
	listener := g.memory.Listen("guide")
	ready := make(chan struct{})
	go func() {
		close(ready)
		g.done <- Serve(ctx, server, listener)
		close(g.done)
	}()
	<-ready
	t.Cleanup(func() {
		g.stop()
		for range g.done {
		}
	})
	return g
}

func (g *guided) dial(t *testing.T, flags trace.TraceFlags) *grpc.ClientConn {
	t.Helper()
	conn, err := g.memory.Dial("guide", identity.Node("n1"), traced(flags))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	// What has been answered once by a connection is served: from here on there is a short way.
	if _, err := way(t.Context(), conn, grpc.WaitForReady(true), grpc.UseCompressor("")); err != nil {
		t.Fatal(err)
	}
	return conn
}

func way(ctx context.Context, conn *grpc.ClientConn, options ...grpc.CallOption) (string, error) {
	var reply rawcodec.Frame
	err := conn.Invoke(ctx, "/test.Guide/Way", rawcodec.New(), &reply, options...)
	return string(reply.Clone()), err
}

func TestTheShortWayIsForPlainCalls(t *testing.T) {
	g := startGuide(t, nil)
	for name, c := range map[string]struct {
		flags   trace.TraceFlags
		options []grpc.CallOption
		want    string
	}{
		"not recorded":      {0, nil, "short"},
		"recorded":          {trace.FlagsSampled, nil, "long"},
		"generated clients": {0, []grpc.CallOption{grpc.StaticMethod()}, "short"},
		"headers":           {0, []grpc.CallOption{grpc.Header(&metadata.MD{}), grpc.Trailer(&metadata.MD{})}, "short"},
		"an unusual option": {0, []grpc.CallOption{grpc.UseCompressor("")}, "long"},
	} {
		if got, err := way(t.Context(), g.dial(t, c.flags), c.options...); err != nil || got != c.want {
			t.Errorf("%s: the %s way, %v; want the %s one", name, got, err, c.want)
		}
	}
}

func TestTheShortWayCarriesWhatAConnectionDoes(t *testing.T) {
	type private struct{}
	seen := make(chan context.Context, 8)
	order := make(chan string, 8)
	noted := func(name string) Interceptor {
		return Interceptor{
			Unary: func(ctx context.Context, request any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
				order <- name
				return handler(ctx, request)
			},
			Stream: func(service any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
				return handler(service, stream)
			},
		}
	}
	g := startGuide(t, func(ctx context.Context) error {
		seen <- ctx
		return errors.Join(grpc.SetHeader(ctx, metadata.Pairs("warning", "a", "warning", "b")), grpc.SetTrailer(ctx, metadata.Pairs("end", "c")))
	}, noted("outer"), noted("inner"))
	conn := g.dial(t, 0)
	<-seen
	<-order
	<-order
	ctx := metadata.NewOutgoingContext(context.WithValue(t.Context(), private{}, 1), metadata.Pairs("key", "value"))
	var header, trailer metadata.MD
	if got, err := way(ctx, conn, grpc.Header(&header), grpc.Trailer(&trailer)); err != nil || got != "short" {
		t.Fatal(got, err)
	}
	inner := <-seen
	if md, _ := metadata.FromIncomingContext(inner); len(md.Get("key")) != 1 || md.Get("key")[0] != "value" {
		t.Errorf("metadata %v", md)
	}
	if _, out := metadata.FromOutgoingContext(inner); out || inner.Value(private{}) != nil {
		t.Error("what is the client's own reached the handler")
	}
	if span := trace.SpanContextFromContext(inner); span.TraceID() != (trace.TraceID{1}) || !span.IsRemote() {
		t.Errorf("span %v", span)
	}
	if len(header.Get("warning")) != 2 || len(trailer.Get("end")) != 1 {
		t.Errorf("header %v, trailer %v", header, trailer)
	}
	if first, second := <-order, <-order; first != "outer" || second != "inner" {
		t.Errorf("interceptors in the order %s, %s", first, second)
	}
}

func TestTheShortWayEndsWithItsCaller(t *testing.T) {
	running := make(chan struct{}, 1)
	waits := false
	g := startGuide(t, func(ctx context.Context) error {
		if !waits {
			return nil
		}
		running <- struct{}{}
		<-ctx.Done()
		return ctx.Err()
	})
	conn := g.dial(t, 0)
	waits = true
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := way(ctx, conn)
		ended <- err
	}()
	<-running
	cancel()
	if err := <-ended; status.Code(err) != codes.Canceled {
		t.Errorf("a cancelled call: %v", err)
	}
	expired, done := context.WithTimeout(t.Context(), 1)
	defer done()
	<-expired.Done()
	if _, err := way(expired, conn); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("a call without time: %v", err)
	}
}

func TestAStoppedServerHasNoShortWay(t *testing.T) {
	running, finish := make(chan struct{}, 1), make(chan struct{})
	waits := false
	g := startGuide(t, func(context.Context) error {
		if waits {
			running <- struct{}{}
			<-finish
		}
		return nil
	})
	conn := g.dial(t, 0)
	waits = true
	ended := make(chan error, 1)
	go func() {
		_, err := way(t.Context(), conn)
		ended <- err
	}()
	<-running
	g.stop()
	select {
	case err := <-g.done:
		t.Fatalf("Serve returned while a handler was running: %v", err)
	case finish <- struct{}{}:
	}
	if err := <-ended; err != nil {
		t.Errorf("a call that was running: %v", err)
	}
	if err := <-g.done; err != nil {
		t.Error(err)
	}
	waits = false
	if _, err := way(t.Context(), conn); status.Code(err) != codes.Unavailable {
		t.Errorf("a call after the stop: %v", err)
	}
}
