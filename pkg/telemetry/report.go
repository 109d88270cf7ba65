package telemetry

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
)

const (
	// gatherFor is how long spans wait for others before they are sent together.
	gatherFor = 100 * time.Millisecond
	// maxGathered bounds the spans that wait. What is more is lost: a trace is worth less than the work it tells of.
	maxGathered = 4096
	// sendTimeout bounds how long an API server may take. A process that ends waits that long for its last spans.
	sendTimeout = time.Second
)

// reportMethod is what the calls that take spans are named by.
const reportMethod = "opentelemetry.proto.collector.trace.v1.TraceService/Export"

// Send takes spans to where they are remembered.
type Send func(context.Context, []*tracepb.ResourceSpans) error

// SendTo sends spans to an API server, which remembers them for `dhow trace`.
func SendTo(conn grpc.ClientConnInterface) Send {
	client := collectorpb.NewTraceServiceClient(conn)
	return func(ctx context.Context, spans []*tracepb.ResourceSpans) error {
		_, err := client.Export(ctx, &collectorpb.ExportTraceServiceRequest{ResourceSpans: spans})
		return err
	}
}

// Report sends the spans of the process that Setup was called in, as they end, until it is stopped; then the last are sent. Spans that cannot be sent are lost.
func Report(send Send) (stop func()) {
	provider, ok := otel.GetTracerProvider().(*sdktrace.TracerProvider)
	if !ok {
		return func() {} // nothing was set up: nothing is recorded
	}
	r := &reporter{exporter: otlptrace.NewUnstarted(upload(send)), news: make(chan struct{}, 1), ended: make(chan struct{}), stopping: make(chan struct{})}
	go r.run()
	provider.RegisterSpanProcessor(r)
	return func() {
		provider.UnregisterSpanProcessor(r)
		// A provider that was stopped before does not tell its processors.
		_ = r.Shutdown(context.Background()) // waits, and ends without an error
	}
}

// upload is an otlptrace.Client that is a function.
type upload Send

func (u upload) Start(context.Context) error { return nil }
func (u upload) Stop(context.Context) error  { return nil }
func (u upload) UploadTraces(ctx context.Context, spans []*tracepb.ResourceSpans) error {
	return u(ctx, spans)
}

// reporter is a span processor that sleeps while there are no spans.
type reporter struct {
	exporter *otlptrace.Exporter
	news     chan struct{}
	stopping chan struct{}
	once     sync.Once
	ended    chan struct{}

	mu    sync.Mutex
	spans []sdktrace.ReadOnlySpan
}

// OnStart implements sdktrace.SpanProcessor.
func (r *reporter) OnStart(context.Context, sdktrace.ReadWriteSpan) {}

// OnEnd implements sdktrace.SpanProcessor.
func (r *reporter) OnEnd(s sdktrace.ReadOnlySpan) {
	// Where all is recorded, a report is as well: it must not be what the next one is about.
	if !s.SpanContext().IsSampled() || strings.HasSuffix(s.Name(), reportMethod) {
		return
	}
	r.mu.Lock()
	if len(r.spans) < maxGathered {
		r.spans = append(r.spans, s)
	}
	r.mu.Unlock()
	select {
	case r.news <- struct{}{}:
	default:
	}
}

// Shutdown implements sdktrace.SpanProcessor.
func (r *reporter) Shutdown(ctx context.Context) error {
	r.once.Do(func() { close(r.stopping) })
	select {
	case <-r.ended:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// ForceFlush implements sdktrace.SpanProcessor.
func (r *reporter) ForceFlush(ctx context.Context) error { return r.flush(ctx) }

func (r *reporter) run() {
	defer close(r.ended)
	timer := time.NewTimer(0)
	<-timer.C
	defer timer.Stop()
	for {
		select {
		case <-r.news:
		case <-r.stopping:
			_ = r.flush(context.Background()) // as below
			return
		}
		timer.Reset(gatherFor)
		select {
		case <-timer.C:
		case <-r.stopping:
		}
		_ = r.flush(context.Background()) // an API server that is away: the spans are lost, the service is not disturbed
	}
}

func (r *reporter) flush(ctx context.Context) error {
	r.mu.Lock()
	spans := slices.Clone(r.spans)
	clear(r.spans)
	r.spans = r.spans[:0]
	r.mu.Unlock()
	if len(spans) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	return r.exporter.ExportSpans(ctx, spans)
}
