package dns

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

const (
	// ttl of every record, in seconds: short, because the server is one hop away and Services move. CoreDNS' default.
	ttl = 5
	// schemaVersion of the DNS-based service discovery specification (github.com/kubernetes/dns, docs/specification.md).
	schemaVersion = "1.1.0"
	// srvWeight is shared by the targets of one SRV answer.
	srvWeight = 100
)

// answer is what the zone says to a question. A name that exists without records of the asked type has rcode success and no records.
type answer struct {
	rcode  int
	answer []dns.RR
	extra  []dns.RR
	// alias is the target of a CNAME that ends the answer and that the zone does not know: outside of the cluster.
	alias string
}

var nameError = answer{rcode: dns.RcodeNameError}

// maxAliases bounds chains of ExternalName Services that name each other.
const maxAliases = 8

// resolve answers a question about a name in the zone. name may have any case; records carry it as it was asked.
func (s *Server) resolve(name string, qtype uint16) answer {
	var collected []dns.RR
	for range maxAliases {
		a := s.resolveOne(name, qtype)
		a.answer = append(collected, a.answer...)
		if a.alias == "" || !dns.IsSubDomain(s.zone.domain, a.alias) {
			return a
		}
		collected, name = a.answer, a.alias
	}
	return answer{rcode: dns.RcodeServerFailure}
}

func (s *Server) resolveOne(name string, qtype uint16) answer {
	relative := strings.TrimSuffix(strings.TrimSuffix(strings.ToLower(name), s.zone.domain), ".")
	if relative == "" {
		return s.apex(name, qtype)
	}
	labels := strings.Split(relative, ".")
	last := len(labels) - 1
	switch {
	case labels[last] == "svc":
		return s.services(name, qtype, labels[:last])
	case labels[last] == "pod":
		return s.pods(name, qtype, labels[:last])
	case relative == "dns-version":
		return only(qtype, &dns.TXT{Hdr: header(name, dns.TypeTXT), Txt: []string{schemaVersion}})
	case relative == "ns.dns":
		return addresses(name, qtype, []netip.Addr{s.config.Address})
	case relative == "dns":
		return answer{}
	}
	return nameError
}

func (s *Server) apex(name string, qtype uint16) answer {
	switch qtype {
	case dns.TypeSOA:
		return answer{answer: []dns.RR{s.soa(name)}}
	case dns.TypeNS:
		return answer{
			answer: []dns.RR{&dns.NS{Hdr: header(name, dns.TypeNS), Ns: "ns.dns." + s.zone.domain}},
			extra:  addresses("ns.dns."+s.zone.domain, dns.TypeA, []netip.Addr{s.config.Address}).answer,
		}
	}
	return answer{}
}

// services answers names under svc.DOMAIN; labels are what stands before that.
func (s *Server) services(name string, qtype uint16, labels []string) answer {
	n := len(labels)
	switch {
	case n == 0:
		return answer{}
	case n == 1:
		if s.zone.hasNamespace(labels[0]) {
			return answer{}
		}
		return nameError
	case n > 4:
		return nameError
	}
	r := s.zone.lookup(labels[n-1], labels[n-2])
	switch {
	case r == nil:
		return nameError
	case r.external != "":
		if n > 2 {
			return nameError
		}
		target := dns.Fqdn(r.external)
		a := answer{answer: []dns.RR{&dns.CNAME{Hdr: header(name, dns.TypeCNAME), Target: target}}}
		if qtype != dns.TypeCNAME {
			a.alias = target
		}
		return a
	case r.headless && len(r.addresses) == 0:
		// The specification: a headless Service without ready endpoints has no name.
		return nameError
	}
	switch {
	case n == 2 && qtype == dns.TypeSRV:
		return s.srv(name, r, func(portRecord) bool { return true })
	case n == 2:
		return addresses(name, qtype, r.addresses)
	case n == 3 && strings.HasPrefix(labels[0], "_"):
		if s.srv(name, r, func(p portRecord) bool { return "_"+p.protocol == labels[0] }).rcode == dns.RcodeSuccess {
			return answer{}
		}
		return nameError
	case n == 3:
		endpoints, ok := r.endpoints[labels[0]]
		if !ok {
			return nameError
		}
		var ips []netip.Addr
		for _, e := range endpoints {
			if !slices.Contains(ips, e.address) {
				ips = append(ips, e.address)
			}
		}
		return addresses(name, qtype, ips)
	}
	a := s.srv(name, r, func(p portRecord) bool {
		return p.name != "" && "_"+p.name == labels[0] && "_"+p.protocol == labels[1]
	})
	if qtype != dns.TypeSRV {
		a.answer, a.extra = nil, nil
	}
	return a
}

// srv lists the ports that match: of the Service itself, or of every endpoint when it is headless.
func (s *Server) srv(name string, r *record, match func(portRecord) bool) answer {
	var a answer
	add := func(ports []portRecord, target string, ips []netip.Addr) {
		found := false
		for _, p := range ports {
			if match(p) {
				found = true
				a.answer = append(a.answer, &dns.SRV{Hdr: header(name, dns.TypeSRV), Port: p.number, Target: target})
			}
		}
		if found {
			a.extra = append(a.extra, addresses(target, dns.TypeA, ips).answer...)
			a.extra = append(a.extra, addresses(target, dns.TypeAAAA, ips).answer...)
		}
	}
	if !r.headless {
		add(r.ports, s.zone.nameOf(r.key), r.addresses)
	}
	for host, endpoints := range r.endpoints {
		for _, e := range endpoints {
			add(e.ports, host+"."+s.zone.nameOf(r.key), []netip.Addr{e.address})
		}
	}
	if len(a.answer) == 0 {
		return nameError
	}
	for _, rr := range a.answer {
		rr.(*dns.SRV).Weight = uint16(max(1, srvWeight/len(a.answer)))
	}
	return a
}

// pods answers names under pod.DOMAIN: the address is in the name. As in Kubernetes' default, no pod has to exist there.
func (s *Server) pods(name string, qtype uint16, labels []string) answer {
	switch len(labels) {
	case 0, 1:
		return answer{}
	case 2:
		for _, separator := range []string{".", ":"} {
			if ip, err := netip.ParseAddr(strings.ReplaceAll(labels[0], "-", separator)); err == nil {
				return addresses(name, qtype, []netip.Addr{ip})
			}
		}
	}
	return nameError
}

// reverse answers a PTR question. known is false when the address is none of the cluster's and someone else may know it.
func (s *Server) reverse(name string, qtype uint16) (a answer, known bool) {
	ip, ok := addressOf(name)
	if !ok {
		return answer{}, false
	}
	names := s.zone.namesOf(ip)
	if len(names) == 0 {
		return nameError, slices.ContainsFunc(s.config.ReverseCIDRs, func(p netip.Prefix) bool { return p.Contains(ip) })
	}
	if qtype == dns.TypePTR {
		for _, n := range names {
			a.answer = append(a.answer, &dns.PTR{Hdr: header(name, dns.TypePTR), Ptr: n})
		}
	}
	return a, true
}

// addressOf reads the address in a name under in-addr.arpa or ip6.arpa.
func addressOf(name string) (netip.Addr, bool) {
	name = strings.ToLower(name)
	if rest, ok := strings.CutSuffix(name, ".in-addr.arpa."); ok {
		labels := strings.Split(rest, ".")
		slices.Reverse(labels)
		ip, err := netip.ParseAddr(strings.Join(labels, "."))
		return ip, err == nil && ip.Is4()
	}
	if rest, ok := strings.CutSuffix(name, ".ip6.arpa."); ok {
		nibbles := strings.Split(rest, ".")
		if len(nibbles) != 32 {
			return netip.Addr{}, false
		}
		slices.Reverse(nibbles)
		var text strings.Builder
		for i, n := range nibbles {
			if i > 0 && i%4 == 0 {
				text.WriteByte(':')
			}
			text.WriteString(n)
		}
		ip, err := netip.ParseAddr(text.String())
		return ip, err == nil
	}
	return netip.Addr{}, false
}

// addresses makes the records of the asked type. Their order is random: many clients take the first.
func addresses(name string, qtype uint16, ips []netip.Addr) answer {
	var a answer
	for _, ip := range ips {
		switch {
		case qtype == dns.TypeA && ip.Is4():
			a.answer = append(a.answer, &dns.A{Hdr: header(name, dns.TypeA), A: ip.AsSlice()})
		case qtype == dns.TypeAAAA && ip.Is6():
			a.answer = append(a.answer, &dns.AAAA{Hdr: header(name, dns.TypeAAAA), AAAA: ip.AsSlice()})
		}
	}
	rand.Shuffle(len(a.answer), func(i, j int) { a.answer[i], a.answer[j] = a.answer[j], a.answer[i] })
	return a
}

func only(qtype uint16, rr dns.RR) answer {
	if rr.Header().Rrtype != qtype {
		return answer{}
	}
	return answer{answer: []dns.RR{rr}}
}

func header(name string, rrtype uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: rrtype, Class: dns.ClassINET, Ttl: ttl}
}

// soa is the zone's start of authority. Its minimum is how long a client may remember that a name does not exist.
func (s *Server) soa(name string) dns.RR {
	return &dns.SOA{
		Hdr: header(name, dns.TypeSOA), Ns: "ns.dns." + s.zone.domain, Mbox: "hostmaster." + s.zone.domain,
		Serial: 1, Refresh: 7200, Retry: 1800, Expire: 86400, Minttl: ttl,
	}
}
