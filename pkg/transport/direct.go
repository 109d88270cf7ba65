package transport

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/semconv/v1.43.0/rpcconv"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/rawcodec"
)

// shortcut is how unary calls from the same process reach a server's handlers: through its interceptors, with messages encoded and decoded as ever, but on the caller's goroutine,
// without HTTP/2, which costs more than most calls of the store. The long way is taken by streams, by calls whose trace is recorded (its spans are the library's), and by whatever else
// is not plain: a client cannot tell the difference.
type shortcut struct {
	interceptor grpc.UnaryServerInterceptor
	methods     map[string]*directMethod
	duration    rpcconv.ServerCallDuration

	// lifetime ends when running calls are to be cancelled.
	lifetime context.Context
	cancel   context.CancelFunc
	mu       sync.RWMutex
	open     bool
	calls    sync.WaitGroup
}

// directMethod is a unary method of a registered service.
type directMethod struct {
	desc    *grpc.MethodDesc
	service any
	name    string
	// succeeded are the attributes of a call without error.
	succeeded metric.MeasurementOption
}

func newShortcut(chain []grpc.UnaryServerInterceptor) *shortcut {
	s := &shortcut{interceptor: chained(chain), methods: map[string]*directMethod{}}
	s.lifetime, s.cancel = context.WithCancel(context.Background())
	// The same instrument as that of calls on the long way.
	meter := otel.Meter(otelgrpc.ScopeName, metric.WithInstrumentationVersion(otelgrpc.Version), metric.WithSchemaURL(semconv.SchemaURL))
	duration, err := rpcconv.NewServerCallDuration(meter, metric.WithExplicitBucketBoundaries(
		0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10))
	if err != nil {
		otel.Handle(err)
	}
	s.duration = duration
	return s
}

// chained is one interceptor that calls all, the first one outermost.
func chained(all []grpc.UnaryServerInterceptor) grpc.UnaryServerInterceptor {
	if len(all) == 1 {
		return all[0]
	}
	first, others := all[0], chained(all[1:])
	return func(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		return first(ctx, request, info, func(ctx context.Context, request any) (any, error) { return others(ctx, request, info, handler) })
	}
}

func (s *shortcut) register(desc *grpc.ServiceDesc, service any) {
	for i := range desc.Methods {
		name := "/" + desc.ServiceName + "/" + desc.Methods[i].MethodName
		s.methods[name] = &directMethod{
			desc: &desc.Methods[i], service: service, name: name, succeeded: metric.WithAttributeSet(attribute.NewSet(outcome(name, codes.OK)...)),
		}
	}
}

// outcome are the attributes that the conventions give to a call that ended.
func outcome(method string, c codes.Code) []attribute.KeyValue {
	name := code.Code(c).String()
	attributes := []attribute.KeyValue{semconv.RPCMethod(method[1:]), semconv.RPCSystemNameGRPC, semconv.RPCResponseStatusCode(name)}
	switch c {
	case codes.Unknown, codes.DeadlineExceeded, codes.Unimplemented, codes.Internal, codes.Unavailable, codes.DataLoss:
		attributes = append(attributes, semconv.ErrorTypeKey.String(name))
	}
	return attributes
}

// admit lets calls in that come to the in-memory listeners among those of a listener. It returns what takes the way away again and waits for running calls.
func (s *shortcut) admit(listener net.Listener) (leave func()) {
	s.mu.Lock()
	s.open = true
	s.mu.Unlock()
	var places []*rendezvous
	for _, l := range listenersOf(listener) {
		if own, ok := l.(*memoryListener); ok {
			own.place.server.Store(s)
			places = append(places, own.place)
		}
	}
	return func() {
		s.refuse()
		for _, place := range places {
			place.server.CompareAndSwap(s, nil)
		}
		s.calls.Wait()
		s.cancel()
	}
}

// refuse lets no more calls in.
func (s *shortcut) refuse() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open = false
}

func (s *shortcut) enter() bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.open {
		s.calls.Add(1)
	}
	return s.open
}

// direct is a client's interceptor that takes the short way where there is one.
func (r *rendezvous) direct(name string, caller identity.Identity) grpc.UnaryClientInterceptor {
	from := &peer.Peer{Addr: memoryAddr(name), LocalAddr: memoryAddr(name), AuthInfo: newMemoryAuth(caller)}
	return func(ctx context.Context, method string, request, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, options ...grpc.CallOption) error {
		if s := r.server.Load(); s != nil && ctx.Err() == nil {
			if span := trace.SpanContextFromContext(ctx); span.IsValid() && !span.IsSampled() && plain(options) {
				if m := s.methods[method]; m != nil && s.enter() {
					defer s.calls.Done()
					return s.call(ctx, m, from, request, reply, options)
				}
			}
		}
		return invoke(ctx, method, request, reply, conn, options...)
	}
}

// plain says whether the short way does what the options ask for.
func plain(options []grpc.CallOption) bool {
	for _, o := range options {
		switch o.(type) {
		case grpc.HeaderCallOption, grpc.TrailerCallOption, grpc.FailFastCallOption, grpc.StaticMethodCallOption, grpc.ForceCodecV2CallOption, grpc.MaxRecvMsgSizeCallOption, grpc.MaxSendMsgSizeCallOption:
		default:
			return false
		}
	}
	return true
}

// call does what the connection, gRPC's server and its client do on the long way.
func (s *shortcut) call(ctx context.Context, m *directMethod, from *peer.Peer, request, reply any, options []grpc.CallOption) error {
	began := time.Now()
	// Nothing of the client's context but what a connection carries reaches the handler.
	inner, cancel := context.WithCancel(s.lifetime)
	defer cancel()
	defer context.AfterFunc(ctx, cancel)()
	inner = peer.NewContext(inner, from)
	sent, _ := metadata.FromOutgoingContext(ctx)
	inner = metadata.NewIncomingContext(inner, sent)
	inner = trace.ContextWithRemoteSpanContext(inner, trace.SpanContextFromContext(ctx))
	answer := &directAnswer{method: m.name}
	inner = grpc.NewContextWithServerTransportStream(inner, answer)

	response, err := m.desc.Handler(m.service, inner, func(v any) error { return pass(request, v) }, s.interceptor)
	if err == nil {
		err = pass(response, reply)
	}
	if err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		st, ok := status.FromError(err)
		if !ok {
			st = status.FromContextError(err)
		}
		err = st.Err()
	}
	answer.give(options)
	if histogram := s.duration.Inst(); histogram.Enabled(inner) {
		ended := m.succeeded
		if err != nil {
			ended = metric.WithAttributeSet(attribute.NewSet(outcome(m.name, status.Code(err))...))
		}
		histogram.Record(inner, time.Since(began).Seconds(), ended)
	}
	return err
}

// pass gives a message to the other side, which shares nothing with it that may change.
func pass(from, to any) error {
	data, err := rawcodec.Codec{}.Marshal(from)
	if err != nil {
		return status.Errorf(codes.Internal, "grpc: error while marshaling: %v", err)
	}
	defer data.Free()
	if size := data.Len(); size > MaxMessageSize {
		return status.Errorf(codes.ResourceExhausted, "grpc: received message larger than max (%d vs. %d)", size, MaxMessageSize)
	}
	if err := (rawcodec.Codec{}).Unmarshal(data, to); err != nil {
		return status.Errorf(codes.Internal, "grpc: failed to unmarshal the received message: %v", err)
	}
	return nil
}

// directAnswer is what a handler says beside its message.
type directAnswer struct {
	method          string
	mu              sync.Mutex
	header, trailer metadata.MD
	sent            bool
}

// Method implements grpc.ServerTransportStream.
func (a *directAnswer) Method() string { return a.method }

// SetHeader implements grpc.ServerTransportStream.
func (a *directAnswer) SetHeader(md metadata.MD) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.sent {
		return fmt.Errorf("%s: the headers were sent already", a.method)
	}
	a.header = metadata.Join(a.header, md)
	return nil
}

// SendHeader implements grpc.ServerTransportStream.
func (a *directAnswer) SendHeader(md metadata.MD) error {
	if err := a.SetHeader(md); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.sent = true
	return nil
}

// SetTrailer implements grpc.ServerTransportStream.
func (a *directAnswer) SetTrailer(md metadata.MD) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.trailer = metadata.Join(a.trailer, md)
	return nil
}

func (a *directAnswer) give(options []grpc.CallOption) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, o := range options {
		switch o := o.(type) {
		case grpc.HeaderCallOption:
			*o.HeaderAddr = a.header
		case grpc.TrailerCallOption:
			*o.TrailerAddr = a.trailer
		}
	}
}
