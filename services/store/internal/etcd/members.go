package etcd

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"

	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/pki"
)

const (
	// peerTickMs and peerElectionMs are etcd's own defaults, made for members in one data centre: a leader that died is replaced in one to two
	// seconds.
	peerTickMs, peerElectionMs = 100, 1000
	// leaderlessFor is how long a member may be without a leader before it is of no use to its clients. An ordinary election is shorter.
	leaderlessFor = 3 * peerElectionMs * time.Millisecond
)

// Members are the stores that keep one database together. A majority of them is needed for reads and writes; each is started with the same
// Addresses and Token.
type Members struct {
	// Name is this member's in Addresses.
	Name string
	// Listen is where this member listens for its peers, host:port.
	Listen string
	// Addresses are where the members reach each other, host:port by name.
	Addresses map[string]string
	// Token tells databases apart that have the same addresses: a new one gets a new token.
	Token string
	// TLS is this store's certificate. Only stores of the same authority are peers.
	TLS pki.Files
}

// check refuses what no member can be started with.
func (m *Members) check() error {
	if err := m.checkAddresses(); err != nil {
		return err
	}
	if host, _, err := net.SplitHostPort(m.Listen); err != nil {
		return fmt.Errorf("address to listen on for peers: %w: give host:port", err)
	} else if host != "" && net.ParseIP(host) == nil {
		return fmt.Errorf("address to listen on for peers: %q is no IP address", host)
	}
	if m.TLS == (pki.Files{}) {
		return errors.New("members need a certificate: whoever may be a peer may write everything")
	}
	return nil
}

// checkAddresses refuses what no database can be made for.
func (m *Members) checkAddresses() error {
	if _, ok := m.Addresses[m.Name]; !ok {
		return fmt.Errorf("member %q is none of the members %s", m.Name, strings.Join(slices.Sorted(maps.Keys(m.Addresses)), ", "))
	}
	if len(m.Addresses)%2 == 0 {
		return fmt.Errorf("%d members: give an odd number, another one more would not survive more failures", len(m.Addresses))
	}
	for name, address := range m.Addresses {
		if _, _, err := net.SplitHostPort(address); err != nil {
			return fmt.Errorf("member %s: %w: give host:port", name, err)
		}
	}
	if m.Token == "" {
		return errors.New("members need a token that they share and no other database has")
	}
	return nil
}

func peerAddress(address string) url.URL { return url.URL{Scheme: "https", Host: address} }

func (m *Members) configure(c *embed.Config) {
	c.Name = m.Name
	c.ListenPeerUrls = []url.URL{peerAddress(m.Listen)}
	own := peerAddress(m.Addresses[m.Name])
	c.AdvertisePeerUrls = []url.URL{own}
	var all []string
	for _, name := range slices.Sorted(maps.Keys(m.Addresses)) {
		member := peerAddress(m.Addresses[name])
		all = append(all, name+"="+member.String())
	}
	c.InitialCluster, c.InitialClusterToken = strings.Join(all, ","), m.Token
	c.TickMs, c.ElectionMs = peerTickMs, peerElectionMs
	c.SnapshotCatchUpEntries = peerCatchUpEntries
	c.PeerTLSInfo = transport.TLSInfo{
		CertFile: m.TLS.Certificate, KeyFile: m.TLS.Key, TrustedCAFile: m.TLS.Authority, ClientCertAuth: true,
		// Not by address: members move. The authority signs the store's name for stores alone.
		AllowedCNs: []string{identity.Store}, SkipClientSANVerify: true,
	}
}

// Leader calls changed with false when this member has had no leader for a while, cut off from the majority or one of too few, and with true when
// it has one again, until the context ends. It has one when Embed returns.
func (e *Embedded) Leader(ctx context.Context, changed func(has bool)) {
	ticker := time.NewTicker(peerTickMs * time.Millisecond)
	defer ticker.Stop()
	last, led := time.Now(), true
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-ticker.C:
			has := e.server.Leader() != 0
			if has {
				last = now
			}
			if use := has || now.Sub(last) < leaderlessFor; use != led {
				led = use
				changed(led)
			}
		}
	}
}
