package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	// attemptTimeout is how long one name server may take, totalTimeout all together: less than the 5 seconds after which a client's resolver asks again.
	attemptTimeout = 2 * time.Second
	totalTimeout   = 4500 * time.Millisecond
	// recheck is how often resolv.conf is looked at, when there are queries at all.
	recheck = time.Second
	// maxForwards bounds what waits for name servers that do not answer.
	maxForwards = 512

	defaultResolvConf = "/etc/resolv.conf"
	// systemdResolvConf has the real name servers of a machine whose resolv.conf leads to systemd-resolved.
	systemdResolvConf = "/run/systemd/resolve/resolv.conf"
)

var (
	errNoUpstream = errors.New("no name server for names outside of the cluster")
	errBusy       = errors.New("too many queries wait for name servers")
)

// upstream asks the machine's name servers.
type upstream struct {
	file  string
	own   netip.Addr
	slots chan struct{}

	mu      sync.Mutex
	checked time.Time
	loaded  time.Time // modification time of the file
	servers []string  // host:port
}

func newUpstream(file string, own netip.Addr) *upstream {
	return &upstream{file: file, own: own, slots: make(chan struct{}, maxForwards)}
}

// exchange sends a query to one name server after the other until one answers. A truncated answer is returned as it is: the client will
// ask again over TCP, and then so does this.
func (u *upstream) exchange(query *dns.Msg, network string) (*dns.Msg, error) {
	servers, err := u.current(time.Now())
	if err != nil {
		return nil, err
	}
	if len(servers) == 0 {
		return nil, errNoUpstream
	}
	select {
	case u.slots <- struct{}{}:
		defer func() { <-u.slots }()
	default:
		return nil, errBusy
	}
	ctx, cancel := context.WithTimeout(context.Background(), totalTimeout)
	defer cancel()
	request := query.Copy()
	// An id of our own: a forged answer has to guess it, and two clients may have chosen the same.
	request.Id = dns.Id()
	request.RecursionDesired = true
	client := &dns.Client{Net: network, Timeout: attemptTimeout, UDPSize: dns.MaxMsgSize}
	var errs []error
	for _, server := range servers {
		reply, _, err := client.ExchangeContext(ctx, request, server)
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("name server %s: %w", server, err))
		case reply.Rcode == dns.RcodeServerFailure || reply.Rcode == dns.RcodeRefused:
			errs = append(errs, fmt.Errorf("name server %s: %s", server, dns.RcodeToString[reply.Rcode]))
		default:
			return reply, nil
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, errors.Join(errs...)
}

// current returns the name servers, reading the file again when it has changed.
func (u *upstream) current(now time.Time) ([]string, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !u.checked.IsZero() && now.Sub(u.checked) < recheck {
		return u.servers, nil
	}
	u.checked = now
	file := u.file
	if file == "" {
		file = defaultResolvConf
	}
	info, err := os.Stat(file)
	if errors.Is(err, os.ErrNotExist) {
		u.servers, u.loaded = nil, time.Time{}
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("name servers: %w", err)
	}
	if info.ModTime().Equal(u.loaded) {
		return u.servers, nil
	}
	servers, err := u.read(file)
	if err != nil {
		return nil, err
	}
	if u.file == "" && onlyLoopback(servers) {
		if real, err := u.read(systemdResolvConf); err == nil {
			servers = real
		}
	}
	u.servers, u.loaded = servers, info.ModTime()
	return servers, nil
}

// read returns a file's name servers but this server itself, which would ask itself forever.
func (u *upstream) read(file string) ([]string, error) {
	config, err := dns.ClientConfigFromFile(file)
	if err != nil {
		return nil, fmt.Errorf("name servers in %s: %w", file, err)
	}
	var servers []string
	for _, s := range config.Servers {
		if ip, err := netip.ParseAddr(s); err == nil && ip.WithZone("") != u.own {
			servers = append(servers, net.JoinHostPort(s, config.Port))
		}
	}
	return servers, nil
}

func onlyLoopback(servers []string) bool {
	for _, s := range servers {
		if at, err := netip.ParseAddrPort(s); err != nil || !at.Addr().IsLoopback() {
			return false
		}
	}
	return true
}
