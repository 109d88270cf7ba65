// Package dns answers the pods of one node: names of the cluster from a local index that follows the API (no query asks the API server), all
// others through the machine's own name servers. It implements the DNS-based service discovery specification of Kubernetes, version 1.1.0.
package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"go.opentelemetry.io/otel/metric"
	"golang.org/x/sys/unix"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	discoveryv1 "dhow.dev/gen/go/dhow/discovery/v1"
	"dhow.dev/pkg/informer"
)

const (
	// Interface carries the DNS address in the node's network namespace, so that the kernel hands the node's own queries to this server.
	Interface = "dhow-dns"
	// maxUDP bounds UDP answers so that they are not fragmented on any usual network (DNS flag day 2020).
	maxUDP = 1232
)

// Source tells all objects of a kind and every change, from one goroutine. *informer.Store is one.
type Source[T any] interface {
	OnChangeTraced(func(old, new T, trace *informer.Trace))
}

// Config is what a server needs.
type Config struct {
	// Domain of the cluster; empty means cluster.local.
	Domain string
	// Address is the cluster IP of the DNS Service; it is put on the interface dhow-dns. Port 0 means 53.
	Address netip.Addr
	Port    int
	// ReverseCIDRs are the pod and Service networks: their addresses are looked up nowhere else.
	ReverseCIDRs []netip.Prefix
	// ResolvConf names the name servers for all other names; empty means /etc/resolv.conf, or systemd-resolved's own file when that one leads
	// only to a loopback address.
	ResolvConf string

	Services       Source[*corev1.Service]
	EndpointSlices Source[*discoveryv1.EndpointSlice]
	// Synced waits until the sources have told their first state. Names of the cluster fail temporarily before.
	Synced func(context.Context) error

	Logger *slog.Logger
	Meter  metric.Meter
}

// Server answers queries.
type Server struct {
	config   Config
	zone     *zone
	upstream *upstream
	metrics  *metrics
	synced   atomic.Bool
	ready    chan struct{}
}

// New registers with the sources; call it before they run.
func New(config Config) (*Server, error) {
	if config.Services == nil || config.EndpointSlices == nil || config.Synced == nil {
		return nil, errors.New("dns: Services, EndpointSlices and Synced are required")
	}
	if !config.Address.IsValid() {
		return nil, errors.New("dns: Address is required: the cluster IP of the DNS Service")
	}
	if config.Domain == "" {
		config.Domain = "cluster.local"
	}
	if config.Port == 0 {
		config.Port = 53
	}
	domain := dns.CanonicalName(config.Domain)
	if _, ok := dns.IsDomainName(domain); !ok {
		return nil, fmt.Errorf("dns: cluster domain %q is not a domain name", config.Domain)
	}
	m, err := newMetrics(config.Meter)
	if err != nil {
		return nil, err
	}
	s := &Server{config: config, zone: newZone(domain), upstream: newUpstream(config.ResolvConf, config.Address), metrics: m, ready: make(chan struct{})}
	config.Services.OnChangeTraced(s.zone.service)
	config.EndpointSlices.OnChangeTraced(s.zone.slice)
	return s, nil
}

// Ready is closed when the server listens and knows the cluster's names.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// Run serves until ctx ends. The sockets belong to the network namespace of the calling goroutine's thread. The address stays on its
// interface, so that queries in the time of a restart are refused at once instead of waiting.
func (s *Server) Run(ctx context.Context) error {
	if err := s.assignAddress(); err != nil {
		return err
	}
	at := netip.AddrPortFrom(s.config.Address, uint16(s.config.Port)).String()
	packets, err := net.ListenPacket("udp", at)
	if err != nil {
		return fmt.Errorf("cluster DNS: listen on %s/udp: %w", at, err)
	}
	listener, err := net.Listen("tcp", at)
	if err != nil {
		packets.Close()
		return fmt.Errorf("cluster DNS: listen on %s/tcp: %w", at, err)
	}
	servers := []*dns.Server{
		{PacketConn: packets, Handler: dns.HandlerFunc(s.handle), UDPSize: dns.MaxMsgSize},
		{Listener: listener, Handler: dns.HandlerFunc(s.handle)},
	}
	ended := make(chan error, len(servers))
	for _, server := range servers {
		go func() { ended <- server.ActivateAndServe() }()
	}
	go func() {
		if s.config.Synced(ctx) == nil {
			s.synced.Store(true)
			close(s.ready)
		}
	}()
	var failure error
	running := len(servers)
	select {
	case <-ctx.Done():
	case err := <-ended:
		running--
		failure = fmt.Errorf("cluster DNS: server ended: %w", err)
	}
	// Queries that are being answered get a moment; closing the sockets ends a server that had not started yet.
	stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	for _, server := range servers {
		_ = server.ShutdownContext(stopping)
	}
	packets.Close()
	listener.Close()
	for range running {
		<-ended
	}
	return failure
}

// assignAddress puts the address on a dummy interface of its own; kernels without those have it on the loopback interface.
func (s *Server) assignAddress() error {
	if s.config.Address.IsLoopback() {
		return nil
	}
	link, err := netlink.LinkByName(Interface)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		err = netlink.LinkAdd(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: Interface}})
		if errors.Is(err, unix.EOPNOTSUPP) {
			link, err = netlink.LinkByName("lo")
		} else if err == nil {
			link, err = netlink.LinkByName(Interface)
		}
	}
	if err != nil {
		return fmt.Errorf("cluster DNS: make interface %s: %w", Interface, err)
	}
	address := &netlink.Addr{IPNet: &net.IPNet{IP: s.config.Address.AsSlice(), Mask: net.CIDRMask(s.config.Address.BitLen(), s.config.Address.BitLen())}}
	if err := netlink.AddrReplace(link, address); err != nil {
		return fmt.Errorf("cluster DNS: put %s on interface %s: %w", s.config.Address, link.Attrs().Name, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("cluster DNS: bring up interface %s: %w", link.Attrs().Name, err)
	}
	return nil
}

// handle answers one query.
func (s *Server) handle(w dns.ResponseWriter, query *dns.Msg) {
	began := time.Now()
	reply, from := s.reply(query, w.RemoteAddr().Network())
	if w.RemoteAddr().Network() == "udp" {
		size := dns.MinMsgSize
		if opt := query.IsEdns0(); opt != nil {
			size = min(max(int(opt.UDPSize()), dns.MinMsgSize), maxUDP)
		}
		reply.Truncate(size)
	} else {
		reply.Truncate(dns.MaxMsgSize)
	}
	err := w.WriteMsg(reply)
	s.metrics.answered(context.Background(), w.RemoteAddr().Network(), from, reply.Rcode, time.Since(began))
	if err != nil {
		s.config.Logger.Debug("dns answer not sent", "error", err)
	}
}

// Where an answer came from, for the metrics.
const (
	fromCluster  = "cluster"
	fromUpstream = "upstream"
	fromNowhere  = "refused"
)

// reply makes the answer to a query that came over network (udp or tcp), except for its truncation.
func (s *Server) reply(query *dns.Msg, network string) (*dns.Msg, string) {
	reply := new(dns.Msg)
	reply.SetReply(query)
	reply.RecursionAvailable = true
	opt := query.IsEdns0()
	if opt != nil {
		reply.SetEdns0(maxUDP, opt.Do())
		if opt.Version() != 0 {
			reply.Rcode = dns.RcodeBadVers
			return reply, fromNowhere
		}
	}
	if len(query.Question) != 1 {
		reply.Rcode = dns.RcodeFormatError
		return reply, fromNowhere
	}
	q := query.Question[0]
	if q.Qclass != dns.ClassINET || q.Qtype == dns.TypeAXFR || q.Qtype == dns.TypeIXFR {
		reply.Rcode = dns.RcodeRefused
		return reply, fromNowhere
	}
	qtype := q.Qtype
	if qtype == dns.TypeANY {
		// Any one type is an answer to ANY (RFC 8482).
		qtype = dns.TypeA
	}
	if dns.IsSubDomain(s.zone.domain, dns.CanonicalName(q.Name)) {
		if !s.synced.Load() {
			reply.Rcode = dns.RcodeServerFailure
			return reply, fromCluster
		}
		a := s.resolve(q.Name, qtype)
		if a.alias != "" && (qtype == dns.TypeA || qtype == dns.TypeAAAA) {
			a = s.follow(a, qtype, network)
		}
		s.fill(reply, a, s.zone.domain)
		return reply, fromCluster
	}
	if a, known := s.reverse(q.Name, qtype); known && s.synced.Load() {
		labels := dns.SplitDomainName(q.Name)
		s.fill(reply, a, dns.Fqdn(strings.Join(labels[len(labels)-2:], ".")))
		return reply, fromCluster
	}
	return s.forward(query, reply, network), fromUpstream
}

// follow completes an answer whose name is an alias of one outside of the cluster. When nobody knows that, the alias alone is the answer.
func (s *Server) follow(a answer, qtype uint16, network string) answer {
	question := new(dns.Msg)
	question.SetQuestion(a.alias, qtype)
	found, err := s.upstream.exchange(question, network)
	if err != nil {
		s.config.Logger.Debug("alias not resolved", "name", a.alias, "error", err)
		return answer{rcode: dns.RcodeServerFailure}
	}
	a.answer = append(a.answer, found.Answer...)
	a.rcode = found.Rcode
	return a
}

// fill completes a reply with an authoritative answer; one without records carries the zone's start of authority, which says how long
// that may be remembered.
func (s *Server) fill(reply *dns.Msg, a answer, authority string) {
	reply.Authoritative = true
	reply.Rcode = a.rcode
	reply.Answer = a.answer
	reply.Extra = append(reply.Extra, a.extra...)
	if a.rcode == dns.RcodeNameError || a.rcode == dns.RcodeSuccess && len(a.answer) == 0 {
		reply.Ns = []dns.RR{s.soa(authority)}
	}
}

// forward asks the machine's name servers.
func (s *Server) forward(query, reply *dns.Msg, network string) *dns.Msg {
	found, err := s.upstream.exchange(query, network)
	if err != nil {
		s.config.Logger.Debug("query not forwarded", "name", query.Question[0].Name, "error", err)
		reply.Rcode = dns.RcodeServerFailure
		return reply
	}
	found.Id = query.Id
	// An answer without EDNS to a question with it, or the other way around, would confuse the client.
	if query.IsEdns0() == nil {
		found.Extra = withoutEDNS(found.Extra)
	}
	return found
}

func withoutEDNS(extra []dns.RR) []dns.RR {
	var kept []dns.RR
	for _, rr := range extra {
		if rr.Header().Rrtype != dns.TypeOPT {
			kept = append(kept, rr)
		}
	}
	return kept
}
