package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/vishvananda/netlink"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"golang.org/x/sys/unix"
	"sigs.k8s.io/knftables"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	discoveryv1 "dhow.dev/gen/go/dhow/discovery/v1"
	"dhow.dev/pkg/informer"
)

// recorder is a fake table that counts transactions and can refuse the next ones.
type recorder struct {
	*knftables.Fake
	mu           sync.Mutex
	transactions []string
	refuse       int
}

func (r *recorder) Run(ctx context.Context, tx *knftables.Transaction) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.transactions = append(r.transactions, tx.String())
	if r.refuse > 0 {
		r.refuse--
		return errors.New("refused by the test")
	}
	return r.Fake.Run(ctx, tx)
}

func (r *recorder) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.transactions)
}

type proxyUnderTest struct {
	*Proxy
	table    *recorder
	services *source[*corev1.Service]
	slices   *source[*discoveryv1.EndpointSlice]
	synced   chan struct{}
	stale    chan flowFilter
}

func startProxy(t *testing.T) *proxyUnderTest {
	u := &proxyUnderTest{
		table: &recorder{Fake: newTable()}, services: &source[*corev1.Service]{}, slices: &source[*discoveryv1.EndpointSlice]{}, synced: make(chan struct{}),
		stale: make(chan flowFilter, 16),
	}
	p, err := New(Config{
		NodeName: "n1", NodeIPs: []netip.Addr{netip.MustParseAddr("192.168.0.1")}, ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")},
		ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")},
		Services:     u.services, EndpointSlices: u.slices, NFT: u.table, Logger: slog.New(slog.DiscardHandler),
		Synced: func(ctx context.Context) error {
			select {
			case <-u.synced:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	p.forget = func(f flowFilter) (uint, error) {
		if len(f) > 0 {
			u.stale <- f
		}
		return uint(len(f)), nil
	}
	u.Proxy = p
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return u
}

func (u *proxyUnderTest) isReady() bool {
	select {
	case <-u.Ready():
		return true
	default:
		return false
	}
}

func TestReadyAfterFirstState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := startProxy(t)
		u.services.change(nil, service("web", "10.96.0.5", nil, port("http", "TCP", 80, 0)))
		synctest.Wait()
		if u.isReady() || u.table.count() != 0 {
			t.Fatal("wrote rules before the first state was complete: Services would be refused for a moment")
		}
		u.slices.change(nil, slice("web", "s", http8080, backend{ip: "10.244.2.2"}))
		close(u.synced)
		<-u.Ready()
		if got := u.table.Dump(); !strings.Contains(got, "service-ips { 10.96.0.5 . tcp . 80 : goto svc-default/web/tcp/http }") {
			t.Errorf("table:\n%s", got)
		}
	})
}

func TestBurstIsOneTransaction(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := startProxy(t)
		close(u.synced)
		<-u.Ready()
		before := u.table.count()
		for i := range 100 {
			u.services.change(nil, service(fmt.Sprintf("s%d", i), fmt.Sprintf("10.96.0.%d", i+20), nil, port("http", "TCP", 80, 0)))
		}
		synctest.Wait()
		for u.table.count() == before {
			<-syncTick()
		}
		if n := u.table.count() - before; n != 1 {
			t.Errorf("%d transactions for one burst", n)
		}
	})
}

func TestRefusedTransactionIsFollowedByRebuild(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := startProxy(t)
		close(u.synced)
		<-u.Ready()
		u.table.mu.Lock()
		u.table.refuse = 3
		u.table.mu.Unlock()
		u.services.change(nil, service("web", "10.96.0.5", nil, port("http", "TCP", 80, 0)))
		for !strings.Contains(u.table.Dump(), "no-endpoint-services { 10.96.0.5 . tcp . 80 : goto reject-service }") {
			<-syncTick()
		}
	})
}

func TestEndpointRemovalForgetsFlows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := startProxy(t)
		dns := []*discoveryv1.EndpointPort{endpointPort("dns", "UDP", 53)}
		svc := service("web", "10.96.0.5", nil, port("dns", "UDP", 53, 0))
		two := slice("web", "s", dns, backend{ip: "10.244.2.2"}, backend{ip: "10.244.2.3"})
		u.services.change(nil, svc)
		u.slices.change(nil, two)
		close(u.synced)
		<-u.Ready()
		<-u.stale // of the first rebuild
		u.slices.change(two, slice("web", "s", dns, backend{ip: "10.244.2.3"}))
		stale := <-u.stale
		flow := func(protocol uint8, to, from string) *netlink.ConntrackFlow {
			f := &netlink.ConntrackFlow{}
			f.Forward.Protocol, f.Forward.DstIP, f.Forward.DstPort = protocol, netip.MustParseAddr(to).AsSlice(), 53
			f.Reverse.SrcIP, f.Reverse.SrcPort = netip.MustParseAddr(from).AsSlice(), 53
			return f
		}
		for _, test := range []struct {
			flow *netlink.ConntrackFlow
			want bool
		}{
			{flow(unix.IPPROTO_UDP, "10.96.0.5", "10.244.2.2"), true},
			{flow(unix.IPPROTO_UDP, "10.96.0.5", "10.244.2.3"), false},
			{flow(unix.IPPROTO_UDP, "10.96.0.5", "10.96.0.5"), true},
			{flow(unix.IPPROTO_UDP, "10.96.0.6", "10.244.2.2"), false},
			{flow(unix.IPPROTO_TCP, "10.96.0.5", "10.244.2.2"), false},
		} {
			if got := stale.MatchConntrackFlow(test.flow); got != test.want {
				t.Errorf("flow to %v answered by %v: deleted %v, want %v", test.flow.Forward.DstIP, test.flow.Reverse.SrcIP, got, test.want)
			}
		}
	})
}

func TestSliceThatChangesItsService(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := startProxy(t)
		u.services.change(nil, service("a", "10.96.0.20", nil, port("http", "TCP", 80, 0)))
		u.services.change(nil, service("b", "10.96.0.21", nil, port("http", "TCP", 80, 0)))
		before := slice("a", "s", http8080, backend{ip: "10.244.2.2"})
		u.slices.change(nil, before)
		close(u.synced)
		<-u.Ready()
		u.slices.change(before, slice("b", "s", http8080, backend{ip: "10.244.2.2"}))
		for dump := ""; !strings.Contains(dump, "service-ips { 10.96.0.21") || strings.Contains(dump, "service-ips { 10.96.0.20"); dump = u.table.Dump() {
			<-syncTick()
		}
	})
}

// TestSpanInTheTraceOfAChange follows a change's trace context into the span of the transaction that applied it.
func TestSpanInTheTraceOfAChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := startProxy(t)
		spans := tracetest.NewSpanRecorder()
		u.config.Tracer = sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans)).Tracer("test")
		u.services.handlers[0](nil, service("web", "10.96.0.5", nil, port("http", "TCP", 80, 0)), &informer.Trace{Traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"})
		close(u.synced)
		<-u.Ready()
		ended := spans.Ended()
		if len(ended) != 1 || ended[0].SpanContext().TraceID().String() != "0af7651916cd43dd8448eb211c80319c" || ended[0].Parent().SpanID().String() != "b7ad6b7169203331" {
			t.Errorf("spans: %v", ended)
		}
	})
}

// The sources that the agent composes.
var (
	_ Source[*corev1.Service]            = (*informer.Store[*corev1.Service])(nil)
	_ Source[*discoveryv1.EndpointSlice] = (*informer.Store[*discoveryv1.EndpointSlice])(nil)
	_ Source[*corev1.Pod]                = (*informer.Store[*corev1.Pod])(nil)
	_ Source[*corev1.Node]               = (*informer.Store[*corev1.Node])(nil)
)

func TestConfigIsChecked(t *testing.T) {
	ok := Config{Services: &source[*corev1.Service]{}, EndpointSlices: &source[*discoveryv1.EndpointSlice]{}, Synced: func(context.Context) error { return nil }}
	if _, err := New(ok); err != nil {
		t.Errorf("minimal configuration: %v", err)
	}
	loopback := ok
	loopback.NodeIPs = []netip.Addr{netip.MustParseAddr("127.0.0.1")}
	if _, err := New(loopback); err == nil || !strings.Contains(err.Error(), "127.0.0.1") {
		t.Errorf("loopback node address: %v", err)
	}
	if _, err := New(Config{}); err == nil {
		t.Error("accepted a configuration without sources")
	}
}
