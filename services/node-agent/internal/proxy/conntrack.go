package proxy

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// flowFilter matches tracked UDP flows that lead to a backend which no longer serves the address that the client sends to. It holds,
// per such address, the backends that do.
type flowFilter map[netip.AddrPort]map[netip.AddrPort]bool

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (f flowFilter) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	if flow.Forward.Protocol != unix.IPPROTO_UDP {
		return false
	}
	front, ok := addrPort(flow.Forward.DstIP, flow.Forward.DstPort)
	if !ok {
		return false
	}
	backends, known := f[front]
	if !known {
		return false
	}
	// The reply comes from the backend. A flow without translation replies from the address itself, which is no backend: it began
	// while there was no endpoint and would stay a dead end.
	backend, ok := addrPort(flow.Reverse.SrcIP, flow.Reverse.SrcPort)
	return ok && !backends[backend]
}

func addrPort(ip []byte, port uint16) (netip.AddrPort, bool) {
	addr, ok := netip.AddrFromSlice(ip)
	return netip.AddrPortFrom(addr.Unmap(), port), ok
}

// forgetFlows deletes what the filter matches from the connection tracking table of the calling thread's network namespace.
func forgetFlows(filter flowFilter) (uint, error) {
	if len(filter) == 0 {
		return 0, nil
	}
	deleted, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, filter)
	// An interrupted dump means that flows came and went meanwhile; those that matter were deleted, new ones follow the new rules.
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return deleted, fmt.Errorf("forget stale UDP flows: %w", err)
	}
	return deleted, nil
}

// add adds to the filter the addresses whose backends differ between two plans of an owner.
func (f flowFilter) add(old, next plan) {
	for front, backends := range old.udp {
		now := next.udp[front]
		for b := range backends {
			if !now[b] {
				f[front] = now
			}
		}
	}
	for front, now := range next.udp {
		if len(now) > 0 && len(old.udp[front]) == 0 {
			f[front] = now
		}
	}
}
