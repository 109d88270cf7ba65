package transport

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"dhow.dev/pkg/apistatus"
	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/pki"
	"dhow.dev/pkg/rawcodec"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
)

// probe is a service that echoes the caller's identity, fails on demand and streams.
type probe struct {
	mu      sync.Mutex
	failure error
	panics  bool
}

func (p *probe) answer(ctx context.Context, request rawcodec.Frame) (rawcodec.Frame, error) {
	p.mu.Lock()
	failure, panics := p.failure, p.panics
	p.mu.Unlock()
	if panics {
		panic("boom")
	}
	if failure != nil {
		return nil, failure
	}
	caller, ok := identity.FromContext(ctx)
	if !ok {
		return nil, errors.New("no identity in the context")
	}
	return rawcodec.New([]byte(caller.Name+"|"+strings.Join(caller.Groups, ",")+"|"), request.Clone()), nil
}

func (p *probe) desc() *grpc.ServiceDesc {
	return &grpc.ServiceDesc{
		ServiceName: "test.Probe", HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{MethodName: "Echo", Handler: func(_ any, ctx context.Context, decode func(any) error, interceptor grpc.UnaryServerInterceptor) (any, error) {
			var request rawcodec.Frame
			if err := decode(&request); err != nil {
				return nil, err
			}
			return interceptor(ctx, request, &grpc.UnaryServerInfo{Server: p, FullMethod: "/test.Probe/Echo"}, func(ctx context.Context, request any) (any, error) {
				return p.answer(ctx, request.(rawcodec.Frame))
			})
		}}},
		Streams: []grpc.StreamDesc{{StreamName: "Watch", ServerStreams: true, Handler: func(_ any, stream grpc.ServerStream) error {
			var request rawcodec.Frame
			if err := stream.RecvMsg(&request); err != nil {
				return err
			}
			reply, err := p.answer(stream.Context(), request)
			if err != nil {
				return err
			}
			if err := stream.SendMsg(reply); err != nil {
				return err
			}
			<-stream.Context().Done()
			return fmt.Errorf("watching: %w", stream.Context().Err())
		}}},
	}
}

// logs collects records; its text is read after the calls ended.
type logs struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logs) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// server is one under test, over memory or TLS.
type server struct {
	probe *probe
	logs  *logs
	stop  context.CancelFunc
	done  chan error
	dial  func(identity.Identity) (*grpc.ClientConn, error)
	// address and credentials are set over TLS only.
	address     string
	credentials credentials.TransportCredentials
}

var transports = map[string]func(*testing.T) *server{"memory": startMemory, "memory, the short way": startShort, "tls": startTLS}

func start(t *testing.T, creds credentials.TransportCredentials, listener net.Listener) *server {
	t.Helper()
	return startWith(t, creds, listener, nil)
}

func startWith(t *testing.T, creds credentials.TransportCredentials, listener net.Listener, tokens Tokens) *server {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	s := &server{probe: &probe{}, logs: &logs{}, stop: cancel, done: make(chan error, 1)}
	logger := slog.New(slog.NewTextHandler(s.logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	grpcServer := NewServer(ServerConfig{Credentials: creds, Logger: logger, Lifetime: ctx, Tokens: tokens})
	grpcServer.RegisterService(s.probe.desc(), s.probe)
	go func() {
		s.done <- Serve(ctx, grpcServer, listener)
		close(s.done)
	}()
	t.Cleanup(func() {
		cancel()
		for range s.done {
		}
	})
	return s
}

func startMemory(t *testing.T) *server {
	memory := NewMemory()
	s := start(t, memory.ServerCredentials(), memory.Listen("probe"))
	s.dial = func(id identity.Identity) (*grpc.ClientConn, error) { return memory.Dial("probe", id) }
	return s
}

func startTLS(t *testing.T) *server {
	dir := t.TempDir()
	authority, err := pki.LoadOrCreate(dir)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := authority.Ensure(pki.FilesIn(dir, "probe"), pki.Request{Identity: identity.Identity{Name: "probe"}, DNSNames: []string{"probe.dhow"}, Server: true})
	if err != nil {
		t.Fatal(err)
	}
	listener, err := Listen(t.Context(), "127.0.0.1:0", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	s := start(t, TLSServer(pair), listener)
	s.address = listener.Addr().String()
	own, err := authority.Ensure(pki.FilesIn(dir, "own"), pki.Request{Identity: identity.Node("own"), Client: true})
	if err != nil {
		t.Fatal(err)
	}
	s.credentials = TLSClient(own, "probe.dhow")
	s.dial = func(id identity.Identity) (*grpc.ClientConn, error) {
		client, err := authority.Ensure(pki.FilesIn(filepath.Join(dir, "clients"), id.Name), pki.Request{Identity: id, Client: true})
		if err != nil {
			return nil, err
		}
		return Dial(listener.Addr().String(), TLSClient(client, "probe.dhow"))
	}
	return s
}

func (s *server) connect(t *testing.T, id identity.Identity) *grpc.ClientConn {
	t.Helper()
	conn, err := s.dial(id)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func echo(t *testing.T, conn *grpc.ClientConn, text string) (string, error) {
	t.Helper()
	var reply rawcodec.Frame
	if err := conn.Invoke(t.Context(), "/test.Probe/Echo", rawcodec.New([]byte(text)), &reply); err != nil {
		return "", apistatus.FromGRPC(err)
	}
	return string(reply.Clone()), nil
}

func each(t *testing.T, test func(*testing.T, *server)) {
	for name, starter := range transports {
		t.Run(name, func(t *testing.T) { test(t, starter(t)) })
	}
}

func TestIdentityReachesTheHandler(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		for _, id := range []identity.Identity{identity.Node("n1"), {Name: identity.Scheduler}, {Name: identity.Admin, Groups: []string{identity.Masters}}} {
			conn := s.connect(t, id)
			want := id.Name + "|" + strings.Join(id.Authenticated().Groups, ",") + "|"
			if got, err := echo(t, conn, "hi"); err != nil || got != want+"hi" {
				t.Errorf("unary: %q, %v", got, err)
			}
			stream := watch(t, conn)
			var reply rawcodec.Frame
			if err := stream.RecvMsg(&reply); err != nil || string(reply.Clone()) != want {
				t.Errorf("stream: %q, %v", reply.Clone(), err)
			}
		}
	})
}

func watch(t *testing.T, conn *grpc.ClientConn) grpc.ClientStream {
	t.Helper()
	stream, err := conn.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true}, "/test.Probe/Watch")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(stream.SendMsg(rawcodec.New()), stream.CloseSend()); err != nil {
		t.Fatal(err)
	}
	return stream
}

func TestErrorsAtTheEdge(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		conn := s.connect(t, identity.Node("n1"))
		fail := func(err error) {
			s.probe.mu.Lock()
			s.probe.failure = err
			s.probe.mu.Unlock()
		}
		fail(fmt.Errorf("deep inside: %w", apierrors.NewNotFound(schema.GroupResource{Resource: "pods"}, "a")))
		if _, err := echo(t, conn, ""); !apierrors.IsNotFound(err) || err.Error() != `pods "a" not found` {
			t.Errorf("API error: %v", err)
		}
		if strings.Contains(s.logs.String(), "level=ERROR") {
			t.Errorf("a caller's mistake is logged as an error:\n%s", s.logs)
		}
		fail(errors.New("secret reason"))
		if _, err := echo(t, conn, ""); status.Code(err) != codes.Internal || strings.Contains(err.Error(), "secret") {
			t.Errorf("internal error: %v", err)
		}
		if err := watch(t, conn).RecvMsg(&rawcodec.Frame{}); status.Code(err) != codes.Internal || strings.Contains(err.Error(), "secret") {
			t.Errorf("internal error of a stream: %v", err)
		}
		if n := strings.Count(s.logs.String(), "secret reason"); n != 2 {
			t.Errorf("two internal errors are logged %d times:\n%s", n, s.logs)
		}
	})
}

func TestPanicsBecomeErrors(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		conn := s.connect(t, identity.Node("n1"))
		s.probe.mu.Lock()
		s.probe.panics = true
		s.probe.mu.Unlock()
		if _, err := echo(t, conn, ""); status.Code(err) != codes.Internal {
			t.Errorf("unary: %v", err)
		}
		if err := watch(t, conn).RecvMsg(&rawcodec.Frame{}); status.Code(err) != codes.Internal {
			t.Errorf("stream: %v", err)
		}
		s.stop()
		<-s.done
		if text := s.logs.String(); strings.Count(text, "level=ERROR") != 2 || strings.Count(text, "boom") != 2 || !strings.Contains(text, "transport_test.go") {
			t.Errorf("want one record with a stack for each panic:\n%s", text)
		}
	})
}

func TestCallsAreLogged(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		if _, err := echo(t, s.connect(t, identity.Node("n1")), ""); err != nil {
			t.Fatal(err)
		}
		s.stop()
		<-s.done
		for _, want := range []string{"level=DEBUG", "method=/test.Probe/Echo", "code=OK", "duration=", "identity=system:node:n1"} {
			if !strings.Contains(s.logs.String(), want) {
				t.Errorf("no %q in\n%s", want, s.logs)
			}
		}
	})
}

func TestHealthAndReflection(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		conn := s.connect(t, identity.Node("n1"))
		reply, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{})
		if err != nil || reply.GetStatus() != healthpb.HealthCheckResponse_SERVING {
			t.Errorf("health: %v, %v", reply, err)
		}
		stream, err := reflectionpb.NewServerReflectionClient(conn).ServerReflectionInfo(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Send(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{ListServices: "*"}}); err != nil {
			t.Fatal(err)
		}
		answer, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, service := range answer.GetListServicesResponse().GetService() {
			names = append(names, service.GetName())
		}
		if !slices.Contains(names, "test.Probe") || !slices.Contains(names, "grpc.health.v1.Health") {
			t.Errorf("services = %v", names)
		}
		if err := stream.CloseSend(); err != nil {
			t.Error(err)
		}
		if _, err := stream.Recv(); err != io.EOF {
			t.Errorf("end of reflection: %v", err)
		}
	})
}

func TestStopEndsWatches(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		conn := s.connect(t, identity.Node("n1"))
		stream := watch(t, conn)
		if err := stream.RecvMsg(&rawcodec.Frame{}); err != nil {
			t.Fatal(err)
		}
		s.stop()
		if err := stream.RecvMsg(&rawcodec.Frame{}); status.Code(err) != codes.Unavailable || !apierrors.IsServiceUnavailable(apistatus.FromGRPC(err)) {
			t.Errorf("the watch ended with %v, want Unavailable", err)
		}
		if err := <-s.done; err != nil {
			t.Errorf("Serve = %v", err)
		}
	})
}

func TestLargeMessages(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		conn := s.connect(t, identity.Node("n1"))
		text := strings.Repeat("x", 5<<20) // beyond gRPC's default of 4 MiB
		if got, err := echo(t, conn, text); err != nil || !strings.HasSuffix(got, "|"+text) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
	})
}

// anonymousAuth lets a connection in without saying who it is.
type anonymousAuth struct{ memoryCredentials }

func (anonymousAuth) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return conn, memoryAuth{CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}}, nil
}

func TestUnknownCallersOnlyGetHealth(t *testing.T) {
	memory := NewMemory()
	s := start(t, anonymousAuth{}, memory.Listen("probe"))
	s.dial = func(id identity.Identity) (*grpc.ClientConn, error) { return memory.Dial("probe", id) }
	conn := s.connect(t, identity.Node("n1"))
	if _, err := echo(t, conn, ""); !apierrors.IsUnauthorized(err) || status.Code(err) != codes.Unauthenticated {
		t.Errorf("unary: %v", err)
	}
	if err := watch(t, conn).RecvMsg(&rawcodec.Frame{}); status.Code(err) != codes.Unauthenticated {
		t.Errorf("stream: %v", err)
	}
	if _, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{}); err != nil {
		t.Errorf("health: %v", err)
	}
}

func TestMemoryCredentialsRefuseTheNetwork(t *testing.T) {
	client, server := net.Pipe()
	defer client.Close()
	defer server.Close()
	if _, _, err := NewMemory().ServerCredentials().ServerHandshake(server); !errors.Is(err, errNotMemory) {
		t.Fatalf("handshake = %v", err)
	}
}

func TestMemoryDialBeforeListen(t *testing.T) {
	memory := NewMemory()
	if _, err := memory.Dial("probe", identity.Identity{}); err == nil {
		t.Error("dialed without an identity")
	}
	conn, err := memory.Dial("probe", identity.Node("n1"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.Connect()
	start(t, memory.ServerCredentials(), memory.Listen("probe"))
	var reply rawcodec.Frame
	if err := conn.Invoke(t.Context(), "/test.Probe/Echo", rawcodec.New(), &reply, grpc.WaitForReady(true)); err != nil {
		t.Fatal(err)
	}
}

func TestMemoryServerRestarts(t *testing.T) {
	memory := NewMemory()
	first := start(t, memory.ServerCredentials(), memory.Listen("probe"))
	conn, err := memory.Dial("probe", identity.Node("n1"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := echo(t, conn, ""); err != nil {
		t.Fatal(err)
	}
	first.stop()
	<-first.done
	if _, err := echo(t, conn, ""); status.Code(err) != codes.Unavailable {
		t.Errorf("with the server gone: %v", err)
	}
	start(t, memory.ServerCredentials(), memory.Listen("probe"))
	var reply rawcodec.Frame
	if err := conn.Invoke(t.Context(), "/test.Probe/Echo", rawcodec.New(), &reply, grpc.WaitForReady(true)); err != nil {
		t.Errorf("after a restart: %v", err)
	}
}

func TestDialSeveralServers(t *testing.T) {
	s := startTLS(t)
	dead, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone := dead.Addr().String()
	dead.Close()
	for _, target := range []string{s.address + "," + gone, gone + ", " + s.address} {
		several, err := Dial(target, s.credentials)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := echo(t, several, "x"); err != nil {
			t.Errorf("%s: %v", target, err)
		}
		several.Close()
	}
	if _, err := Dial("a:1,b", s.credentials); err == nil || !strings.Contains(err.Error(), "host:port") {
		t.Errorf("bad target: %v", err)
	}
}

func TestListenSaysWhatToDo(t *testing.T) {
	logger := slog.New(slog.DiscardHandler)
	listener, err := Listen(t.Context(), "127.0.0.1:0", logger)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	if _, err := Listen(t.Context(), listener.Addr().String(), logger); err == nil || !strings.Contains(err.Error(), "choose another address") {
		t.Fatalf("error = %v", err)
	}
}

// BenchmarkUnary is one small call and answer, through a connection in memory and without one.
func BenchmarkUnary(b *testing.B) {
	memory := NewMemory()
	p := &probe{}
	server := NewServer(ServerConfig{Credentials: memory.ServerCredentials()})
	server.RegisterService(p.desc(), p)
	ctx, stop := context.WithCancel(b.Context())
	served := make(chan error, 1)
	listener := memory.Listen("probe")
	go func() { served <- Serve(ctx, server, listener) }()
	defer func() {
		stop()
		<-served
	}()
	for name, flags := range map[string]trace.TraceFlags{"long": trace.FlagsSampled, "short": 0} {
		b.Run(name, func(b *testing.B) {
			conn, err := memory.Dial("probe", identity.Node("n1"), traced(flags))
			if err != nil {
				b.Fatal(err)
			}
			defer conn.Close()
			request := rawcodec.New(make([]byte, 512))
			b.ReportAllocs()
			for b.Loop() {
				var reply rawcodec.Frame
				if err := conn.Invoke(b.Context(), "/test.Probe/Echo", request, &reply); err != nil {
					b.Fatal(err)
				}
				reply.Free()
			}
		})
	}
}
