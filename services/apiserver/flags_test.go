package apiserver

import (
	"io"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestFlags(t *testing.T) {
	required := []string{"--tls-cacert=a", "--tls-cert=b", "--tls-key=c", "--encryption-key-file=d"}
	o, err := parse(append(required, "--service-cidr=10.1.0.0/16", "--dns-address=10.1.0.53", "--node-ports=31000-31010", "--session-grace=4s"), io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	n := o.config.Network
	if n.Services != netip.MustParsePrefix("10.1.0.0/16") || n.DNS.String() != "10.1.0.53" || n.FirstNodePort != 31000 || n.LastNodePort != 31010 || o.config.SessionGrace != 4*time.Second {
		t.Errorf("%+v", o.config)
	}
	for _, c := range []struct{ flag, want string }{
		{"--tls-cert=", "--tls-cert is required"}, {"--node-ports=5", "FIRST-LAST"}, {"--session-grace=1s", "at least 2s"},
		{"--service-cidr=10.1.0.0", "service-cidr"}, {"extra", "unexpected argument"}, {"--server-ttl=1ms", "at least one second"},
	} {
		if _, err := parse(append(required, c.flag), io.Discard); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.flag, err, c.want)
		}
	}
}

func TestNetworks(t *testing.T) {
	var defaults Network
	if err := defaults.setDefaults(); err != nil || defaults.DNS.String() != "10.96.0.10" {
		t.Errorf("%+v, %v", defaults, err)
	}
	for _, c := range []struct {
		network Network
		want    string
	}{
		{Network{Services: netip.MustParsePrefix("10.244.1.0/24")}, "overlap"},
		{Network{NodeBits: 8}, "cannot be a /8"},
		{Network{DNS: netip.MustParseAddr("192.0.2.1")}, "not in the service range"},
		{Network{FirstNodePort: 5, LastNodePort: 4}, "above the last"},
	} {
		if err := c.network.setDefaults(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.network, err, c.want)
		}
	}
}
