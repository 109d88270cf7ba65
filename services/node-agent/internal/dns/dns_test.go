package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	"google.golang.org/protobuf/proto"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	discoveryv1 "dhow.dev/gen/go/dhow/discovery/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/informer"
)

type source[T any] struct {
	handlers []func(old, new T, trace *informer.Trace)
}

func (s *source[T]) OnChangeTraced(f func(old, new T, trace *informer.Trace)) {
	s.handlers = append(s.handlers, f)
}

func (s *source[T]) change(old, new T) {
	for _, h := range s.handlers {
		h(old, new, nil)
	}
}

type fixture struct {
	*Server
	services *source[*corev1.Service]
	slices   *source[*discoveryv1.EndpointSlice]
}

func newFixture(t testing.TB, address string, port int) *fixture {
	t.Helper()
	f := &fixture{services: &source[*corev1.Service]{}, slices: &source[*discoveryv1.EndpointSlice]{}}
	s, err := New(Config{
		Address: netip.MustParseAddr(address), Port: port, ReverseCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("10.244.0.0/16")},
		ResolvConf: filepath.Join(t.TempDir(), "resolv.conf"), Services: f.services, EndpointSlices: f.slices,
		Synced: func(context.Context) error { return nil }, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	f.Server = s
	s.synced.Store(true)
	return f
}

func service(name string, spec corev1.ServiceSpec_builder) *corev1.Service {
	return corev1.Service_builder{
		Metadata: metav1.ObjectMeta_builder{Namespace: proto.String("default"), Name: proto.String(name)}.Build(), Spec: spec.Build(),
	}.Build()
}

func port(name, protocol string, number int32) *corev1.ServicePort {
	return corev1.ServicePort_builder{Name: proto.String(name), Protocol: proto.String(protocol), Port: proto.Int32(number)}.Build()
}

func endpoint(address, hostname string, ready bool) *discoveryv1.Endpoint {
	e := discoveryv1.Endpoint_builder{
		Addresses: []string{address}, Conditions: discoveryv1.EndpointConditions_builder{Ready: proto.Bool(ready)}.Build(),
	}.Build()
	if hostname != "" {
		e.SetHostname(hostname)
	}
	return e
}

func slice(svc, name string, endpoints ...*discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
	return discoveryv1.EndpointSlice_builder{
		Metadata: metav1.ObjectMeta_builder{
			Namespace: proto.String("default"), Name: proto.String(name), Labels: map[string]string{labelService: svc},
		}.Build(),
		Endpoints: endpoints,
		Ports:     []*discoveryv1.EndpointPort{discoveryv1.EndpointPort_builder{Name: proto.String("peer"), Port: proto.Int32(7000)}.Build()},
	}.Build()
}

// populate makes a Service of every sort.
func (f *fixture) populate() {
	f.services.change(nil, service("web", corev1.ServiceSpec_builder{
		ClusterIp: proto.String("10.96.0.5"), ClusterIps: []string{"10.96.0.5", "fd00::5"}, Ports: []*corev1.ServicePort{port("http", "TCP", 80), port("dns", "UDP", 53)},
	}))
	f.services.change(nil, service("db", corev1.ServiceSpec_builder{ClusterIp: proto.String("None")}))
	f.services.change(nil, service("early", corev1.ServiceSpec_builder{ClusterIp: proto.String("None"), PublishNotReadyAddresses: proto.Bool(true)}))
	f.services.change(nil, service("empty", corev1.ServiceSpec_builder{ClusterIp: proto.String("None")}))
	for name, target := range map[string]string{"out": "example.org", "alias": "web.default.svc.cluster.local", "loop": "loop.default.svc.cluster.local", "dangling": "no.default.svc.cluster.local"} {
		f.services.change(nil, service(name, corev1.ServiceSpec_builder{Type: proto.String("ExternalName"), ExternalName: proto.String(target)}))
	}
	f.slices.change(nil, slice("db", "db-1", endpoint("10.244.1.2", "db-0", true), endpoint("10.244.2.2", "", true), endpoint("10.244.2.3", "db-2", false)))
	f.slices.change(nil, slice("early", "early-1", endpoint("10.244.1.9", "early-0", false)))
	f.slices.change(nil, slice("empty", "empty-1", endpoint("10.244.1.8", "", false)))
}

func ask(name, qtype string) *dns.Msg {
	return new(dns.Msg).SetQuestion(name, dns.StringToType[qtype])
}

// text lists records without header fields that are the same everywhere, in order.
func text(rrs []dns.RR) []string {
	var list []string
	for _, rr := range rrs {
		if rr.Header().Rrtype == dns.TypeOPT {
			continue
		}
		fields := strings.Fields(rr.String())
		list = append(list, strings.Join(append(fields[:1:1], fields[3:]...), " "))
	}
	slices.Sort(list)
	return list
}

func TestSpecification(t *testing.T) {
	f := newFixture(t, "10.96.0.10", 0)
	f.populate()
	const d = ".default.svc.cluster.local."
	for _, test := range []struct {
		name, qtype string
		rcode       int
		answer      []string
		extra       []string
	}{
		{"dns-version.cluster.local.", "TXT", 0, []string{`dns-version.cluster.local. TXT "1.1.0"`}, nil},
		{"cluster.local.", "NS", 0, []string{"cluster.local. NS ns.dns.cluster.local."}, []string{"ns.dns.cluster.local. A 10.96.0.10"}},
		{"ns.dns.cluster.local.", "A", 0, []string{"ns.dns.cluster.local. A 10.96.0.10"}, nil},

		{"web" + d, "A", 0, []string{"web" + d + " A 10.96.0.5"}, nil},
		{"web" + d, "AAAA", 0, []string{"web" + d + " AAAA fd00::5"}, nil},
		{"web" + d, "MX", 0, nil, nil},
		{"WeB" + d, "A", 0, []string{"WeB" + d + " A 10.96.0.5"}, nil},
		{"_http._tcp.web" + d, "SRV", 0, []string{"_http._tcp.web" + d + " SRV 0 100 80 web" + d}, []string{"web" + d + " A 10.96.0.5", "web" + d + " AAAA fd00::5"}},
		{"_http._udp.web" + d, "SRV", 3, nil, nil},
		{"_http._tcp.web" + d, "A", 0, nil, nil},
		{"_udp.web" + d, "A", 0, nil, nil},
		{"_sctp.web" + d, "A", 3, nil, nil},
		{"x.web" + d, "A", 3, nil, nil},
		{"none" + d, "A", 3, nil, nil},
		{"web.other.svc.cluster.local.", "A", 3, nil, nil},
		{"default.svc.cluster.local.", "A", 0, nil, nil},
		{"other.svc.cluster.local.", "A", 3, nil, nil},
		{"svc.cluster.local.", "A", 0, nil, nil},
		{"cluster.local.", "A", 0, nil, nil},
		{"www.example.org.cluster.local.", "A", 3, nil, nil},

		{"db" + d, "A", 0, []string{"db" + d + " A 10.244.1.2", "db" + d + " A 10.244.2.2"}, nil},
		{"db-0.db" + d, "A", 0, []string{"db-0.db" + d + " A 10.244.1.2"}, nil},
		{"10-244-2-2.db" + d, "A", 0, []string{"10-244-2-2.db" + d + " A 10.244.2.2"}, nil},
		{"db-2.db" + d, "A", 3, nil, nil},
		{"_peer._tcp.db" + d, "SRV", 0,
			[]string{"_peer._tcp.db" + d + " SRV 0 50 7000 10-244-2-2.db" + d, "_peer._tcp.db" + d + " SRV 0 50 7000 db-0.db" + d},
			[]string{"10-244-2-2.db" + d + " A 10.244.2.2", "db-0.db" + d + " A 10.244.1.2"}},
		{"early-0.early" + d, "A", 0, []string{"early-0.early" + d + " A 10.244.1.9"}, nil},
		{"empty" + d, "A", 3, nil, nil},

		{"out" + d, "CNAME", 0, []string{"out" + d + " CNAME example.org."}, nil},
		{"alias" + d, "A", 0, []string{"alias" + d + " CNAME web" + d, "web" + d + " A 10.96.0.5"}, nil},
		{"dangling" + d, "A", 3, []string{"dangling" + d + " CNAME no" + d}, nil},
		{"loop" + d, "A", 2, nil, nil},

		{"10-244-1-2.default.pod.cluster.local.", "A", 0, []string{"10-244-1-2.default.pod.cluster.local. A 10.244.1.2"}, nil},
		{"fd00--1.default.pod.cluster.local.", "AAAA", 0, []string{"fd00--1.default.pod.cluster.local. AAAA fd00::1"}, nil},
		{"10-244-1.default.pod.cluster.local.", "A", 3, nil, nil},

		{"5.0.96.10.in-addr.arpa.", "PTR", 0, []string{"5.0.96.10.in-addr.arpa. PTR web" + d}, nil},
		{"2.1.244.10.in-addr.arpa.", "PTR", 0, []string{"2.1.244.10.in-addr.arpa. PTR db-0.db" + d}, nil},
		{"2.2.244.10.in-addr.arpa.", "PTR", 0, []string{"2.2.244.10.in-addr.arpa. PTR 10-244-2-2.db" + d}, nil},
		{"9.9.244.10.in-addr.arpa.", "PTR", 3, nil, nil},
		{"5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa.", "PTR", 0,
			[]string{"5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa. PTR web" + d}, nil},
	} {
		reply, _ := f.reply(ask(test.name, test.qtype), "udp")
		if reply.Rcode != test.rcode {
			t.Errorf("%s %s: %s, want %s", test.name, test.qtype, dns.RcodeToString[reply.Rcode], dns.RcodeToString[test.rcode])
		}
		if diff := cmp.Diff(test.answer, text(reply.Answer)); diff != "" {
			t.Errorf("%s %s: answer (-want +got):\n%s", test.name, test.qtype, diff)
		}
		if diff := cmp.Diff(test.extra, text(reply.Extra)); diff != "" {
			t.Errorf("%s %s: additional (-want +got):\n%s", test.name, test.qtype, diff)
		}
		negative := reply.Rcode == dns.RcodeNameError || reply.Rcode == dns.RcodeSuccess && len(reply.Answer) == 0
		if hasSOA := len(reply.Ns) == 1 && reply.Ns[0].(*dns.SOA).Minttl == ttl; hasSOA != negative {
			t.Errorf("%s %s: authority %v", test.name, test.qtype, reply.Ns)
		}
		if !reply.Authoritative {
			t.Errorf("%s %s: not authoritative", test.name, test.qtype)
		}
		if _, err := reply.Pack(); err != nil {
			t.Errorf("%s %s: %v", test.name, test.qtype, err)
		}
	}
}

func TestZoneFollowsChanges(t *testing.T) {
	f := newFixture(t, "10.96.0.10", 0)
	f.populate()
	get := func(name, qtype string) string {
		reply, _ := f.reply(ask(name, qtype), "udp")
		return fmt.Sprint(dns.RcodeToString[reply.Rcode], " ", text(reply.Answer))
	}
	check := func(name, qtype, want string) {
		t.Helper()
		if got := get(name, qtype); got != want {
			t.Errorf("%s %s: %s, want %s", name, qtype, got, want)
		}
	}
	const db = "db.default.svc.cluster.local."
	before := slice("db", "db-1", endpoint("10.244.1.2", "db-0", true))
	after := slice("db", "db-1", endpoint("10.244.3.3", "db-0", true))
	f.slices.change(before, after)
	check(db, "A", "NOERROR ["+db+" A 10.244.3.3]")
	check("2.1.244.10.in-addr.arpa.", "PTR", "NXDOMAIN []")
	check("3.3.244.10.in-addr.arpa.", "PTR", "NOERROR [3.3.244.10.in-addr.arpa. PTR db-0."+db+"]")
	moved := slice("early", "db-1", endpoint("10.244.3.3", "db-0", true))
	f.slices.change(after, moved)
	check(db, "A", "NXDOMAIN []")
	check("db-0.early.default.svc.cluster.local.", "A", "NOERROR [db-0.early.default.svc.cluster.local. A 10.244.3.3]")
	f.slices.change(moved, nil)
	f.services.change(service("web", corev1.ServiceSpec_builder{}), service("web", corev1.ServiceSpec_builder{ClusterIp: proto.String("10.96.0.6")}))
	check("web.default.svc.cluster.local.", "A", "NOERROR [web.default.svc.cluster.local. A 10.96.0.6]")
	check("5.0.96.10.in-addr.arpa.", "PTR", "NXDOMAIN []")
	for _, name := range []string{"web", "db", "early", "empty", "out", "alias", "loop", "dangling"} {
		f.services.change(service(name, corev1.ServiceSpec_builder{}), nil)
	}
	check("default.svc.cluster.local.", "A", "NXDOMAIN []")
	if z := f.zone; len(z.records)+len(z.reverse)+len(z.namespaces)+len(z.services) != 0 {
		t.Errorf("left behind: %d records, %d addresses, %d namespaces", len(z.records), len(z.reverse), len(z.namespaces))
	}
}

func TestProtocolRules(t *testing.T) {
	f := newFixture(t, "10.96.0.10", 0)
	f.populate()
	chaos := ask("version.bind.", "TXT")
	chaos.Question[0].Qclass = dns.ClassCHAOS
	two := ask("web.default.svc.cluster.local.", "A")
	two.Question = append(two.Question, two.Question[0])
	future := ask("web.default.svc.cluster.local.", "A")
	future.SetEdns0(4096, false)
	future.IsEdns0().SetVersion(1)
	for name, test := range map[string]struct {
		query *dns.Msg
		rcode int
	}{
		"other classes":      {chaos, dns.RcodeRefused},
		"zone transfers":     {ask("cluster.local.", "AXFR"), dns.RcodeRefused},
		"two questions":      {two, dns.RcodeFormatError},
		"later EDNS version": {future, dns.RcodeBadVers},
		"ANY":                {ask("web.default.svc.cluster.local.", "ANY"), dns.RcodeSuccess},
		"no name servers":    {ask("example.org.", "A"), dns.RcodeServerFailure},
	} {
		if reply, _ := f.reply(test.query, "udp"); reply.Rcode != test.rcode {
			t.Errorf("%s: %s, want %s", name, dns.RcodeToString[reply.Rcode], dns.RcodeToString[test.rcode])
		}
	}
	f.synced.Store(false)
	if reply, _ := f.reply(ask("none.default.svc.cluster.local.", "A"), "udp"); reply.Rcode != dns.RcodeServerFailure {
		t.Errorf("before the first state: %s, want a temporary failure", dns.RcodeToString[reply.Rcode])
	}
}

// serve runs the server on a loopback port and returns its address.
func serve(t *testing.T, f func(port int) *fixture) (*fixture, string) {
	t.Helper()
	// A port that is free for both protocols; another program may take it in between, so there are several tries.
	for range 20 {
		probe, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		port := probe.Addr().(*net.TCPAddr).Port
		probe.Close()
		s := f(port)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		select {
		case <-s.Ready():
			t.Cleanup(func() {
				cancel()
				if err := <-done; err != nil {
					t.Errorf("Run: %v", err)
				}
			})
			return s, net.JoinHostPort("127.0.0.1", fmt.Sprint(port))
		case err := <-done:
			cancel()
			t.Logf("port %d: %v", port, err)
		}
	}
	t.Fatal("no free port")
	return nil, ""
}

func TestTruncationAndTCP(t *testing.T) {
	f, address := serve(t, func(port int) *fixture { return newFixture(t, "127.0.0.1", port) })
	f.populate()
	var many []*discoveryv1.Endpoint
	for i := range 200 {
		many = append(many, endpoint(fmt.Sprintf("10.244.9.%d", i), "", true))
	}
	f.slices.change(nil, slice("db", "db-2", many...))
	for _, test := range []struct {
		network   string
		size      uint16
		truncated bool
		limit     int
	}{{"udp", 0, true, 512}, {"udp", 4096, true, maxUDP}, {"tcp", 0, false, dns.MaxMsgSize}} {
		query := ask("db.default.svc.cluster.local.", "A")
		if test.size > 0 {
			query.SetEdns0(test.size, false)
		}
		reply, _, err := (&dns.Client{Net: test.network, Timeout: 30 * time.Second, UDPSize: dns.MaxMsgSize}).Exchange(query, address)
		if err != nil {
			t.Fatal(err)
		}
		reply.Compress = true // as it was sent
		if reply.Truncated != test.truncated || reply.Len() > test.limit || (reply.IsEdns0() != nil) != (test.size > 0) {
			t.Errorf("%s size %d: truncated %v, %d bytes, edns %v", test.network, test.size, reply.Truncated, reply.Len(), reply.IsEdns0())
		}
		if !test.truncated && len(reply.Answer) != 202 {
			t.Errorf("%s: %d records", test.network, len(reply.Answer))
		}
	}
}

func TestForwarding(t *testing.T) {
	// The machine's name server is another server of this package's library; a dead one stands before it.
	zone := dns.NewServeMux()
	zone.HandleFunc("example.org.", func(w dns.ResponseWriter, q *dns.Msg) {
		reply := new(dns.Msg).SetReply(q)
		rr, err := dns.NewRR(q.Question[0].Name + " 60 IN A 203.0.113.7")
		if err != nil {
			t.Error(err)
		}
		if q.Question[0].Qtype == dns.TypeA {
			reply.Answer = []dns.RR{rr}
		}
		if err := w.WriteMsg(reply); err != nil {
			t.Error(err)
		}
	})
	packets, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead.Close()
	server := &dns.Server{PacketConn: packets, Handler: zone}
	done := make(chan error, 1)
	go func() { done <- server.ActivateAndServe() }()
	t.Cleanup(func() { packets.Close(); <-done })

	f := newFixture(t, "10.96.0.10", 0)
	f.populate()
	f.upstream.checked = time.Now().Add(time.Hour) // keeps the file from being read
	f.upstream.servers = []string{dead.LocalAddr().String(), packets.LocalAddr().String()}
	query := ask("www.example.org.", "A")
	reply, from := f.reply(query, "udp")
	if reply.Rcode != 0 || from != fromUpstream || reply.Id != query.Id || !slices.Equal(text(reply.Answer), []string{"www.example.org. A 203.0.113.7"}) {
		t.Errorf("forwarded: %v", reply)
	}
	reply, _ = f.reply(ask("out.default.svc.cluster.local.", "A"), "udp")
	if want := []string{"example.org. A 203.0.113.7", "out.default.svc.cluster.local. CNAME example.org."}; !slices.Equal(text(reply.Answer), want) {
		t.Errorf("external name: %v", text(reply.Answer))
	}
	f.upstream.servers = f.upstream.servers[:1]
	if reply, _ := f.reply(query, "udp"); reply.Rcode != dns.RcodeServerFailure {
		t.Errorf("dead name server: %s", dns.RcodeToString[reply.Rcode])
	}
}

func TestResolvConf(t *testing.T) {
	file := filepath.Join(t.TempDir(), "resolv.conf")
	u := newUpstream(file, netip.MustParseAddr("10.96.0.10"))
	now := time.Now()
	check := func(want ...string) {
		t.Helper()
		now = now.Add(2 * recheck)
		got, err := u.current(now)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("name servers %v, %v; want %v", got, err, want)
		}
	}
	check()
	write := func(content string, at time.Time) {
		t.Helper()
		if err := errors.Join(os.WriteFile(file, []byte(content), 0o600), os.Chtimes(file, at, at)); err != nil {
			t.Fatal(err)
		}
	}
	write("search x\nnameserver 10.96.0.10\nnameserver 192.0.2.1\nnameserver 2001:db8::1\n", now)
	check("192.0.2.1:53", "[2001:db8::1]:53")
	write("nameserver 192.0.2.2\n", now.Add(time.Minute))
	check("192.0.2.2:53")
}

// The sources that the agent composes.
var (
	_ Source[*corev1.Service]            = (*informer.Store[*corev1.Service])(nil)
	_ Source[*discoveryv1.EndpointSlice] = (*informer.Store[*discoveryv1.EndpointSlice])(nil)
)

func TestConfigIsChecked(t *testing.T) {
	ok := Config{
		Services: &source[*corev1.Service]{}, EndpointSlices: &source[*discoveryv1.EndpointSlice]{}, Synced: func(context.Context) error { return nil },
		Address: netip.MustParseAddr("10.96.0.10"),
	}
	if _, err := New(ok); err != nil {
		t.Errorf("minimal configuration: %v", err)
	}
	for name, edit := range map[string]func(*Config){
		"no address": func(c *Config) { c.Address = netip.Addr{} },
		"bad domain": func(c *Config) { c.Domain = strings.Repeat("x", 64) },
		"no sources": func(c *Config) { c.Services = nil },
	} {
		bad := ok
		edit(&bad)
		if _, err := New(bad); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// FuzzReply sends arbitrary packets: an answer can always be packed and never panics.
func FuzzReply(f *testing.F) {
	fix := newFixture(f, "10.96.0.10", 0)
	fix.populate()
	for _, name := range []string{"web.default.svc.cluster.local.", "_http._tcp.web.default.svc.cluster.local.", "5.0.96.10.in-addr.arpa.", "a.pod.cluster.local.", "loop.default.svc.cluster.local."} {
		packed, err := ask(name, "SRV").Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(packed)
	}
	f.Fuzz(func(t *testing.T, packet []byte) {
		query := new(dns.Msg)
		if query.Unpack(packet) != nil {
			return
		}
		reply, _ := fix.reply(query, "udp")
		if _, err := reply.Pack(); err != nil {
			t.Errorf("%v: %v", query, err)
		}
	})
}

func BenchmarkReply(b *testing.B) {
	f := newFixture(b, "10.96.0.10", 0)
	f.populate()
	query := ask("web.default.svc.cluster.local.", "A")
	for b.Loop() {
		f.reply(query, "udp")
	}
}
