package allocator

import (
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestPartsAndNumbersAreInverse(t *testing.T) {
	for _, c := range []struct {
		network string
		bits    int
		parts   map[int]string
	}{
		{"10.244.0.0/16", 24, map[int]string{0: "10.244.0.0/24", 255: "10.244.255.0/24"}},
		{"10.0.0.0/8", 24, map[int]string{256: "10.1.0.0/24"}},
		{"10.244.0.0/20", 26, map[int]string{5: "10.244.1.64/26"}},
		{"fd00:10:244::/48", 64, map[int]string{1: "fd00:10:244:1::/64", 65535: "fd00:10:244:ffff::/64"}},
		{"fd00:10:244::/104", 116, map[int]string{3: "fd00:10:244::3000/116"}},
	} {
		n, err := NewNodes(NodesConfig{Pods: netip.MustParsePrefix(c.network), NodeBits: c.bits})
		if err != nil {
			t.Fatal(err)
		}
		for i, want := range c.parts {
			if got := n.part(i).String(); got != want {
				t.Errorf("%s/%d: part %d is %s, want %s", c.network, c.bits, i, got, want)
			}
		}
		rapid.Check(t, func(t *rapid.T) {
			i := rapid.IntRange(0, n.ranges.size-1).Draw(t, "i")
			if back, ok := n.ranges.parse(n.ranges.name(i)); !ok || back != i {
				t.Errorf("%d becomes %s becomes %d, %v", i, n.ranges.name(i), back, ok)
			}
		})
		if _, ok := n.number("192.168.0.0/24"); ok {
			t.Error("a foreign range has a number")
		}
	}
}

func TestAddressesAndOffsetsAreInverse(t *testing.T) {
	for _, network := range []string{"10.96.0.0/16", "10.0.0.0/8", "fd00::/108", "fd00::/64"} {
		s, err := NewServices(ServicesConfig{Range: netip.MustParsePrefix(network), FirstNodePort: 1, LastNodePort: 2})
		if err != nil {
			t.Fatal(err)
		}
		rapid.Check(t, func(t *rapid.T) {
			i := rapid.IntRange(0, s.ips.size-1).Draw(t, "i")
			if back, ok := s.parseIP(s.ips.name(i)); !ok || back != i {
				t.Errorf("%s: %d becomes %s becomes %d, %v", network, i, s.ips.name(i), back, ok)
			}
		})
		if _, ok := s.parseIP("192.168.0.1"); ok {
			t.Errorf("%s holds 192.168.0.1", network)
		}
	}
}

func TestConfigurationsThatMakeNoSense(t *testing.T) {
	for words, cfg := range map[string]ServicesConfig{
		"is too small": {Range: netip.MustParsePrefix("10.0.0.0/31"), FirstNodePort: 1, LastNodePort: 2},
		"is empty":     {Range: netip.MustParsePrefix("10.0.0.0/24"), FirstNodePort: 3, LastNodePort: 2},
	} {
		if _, err := NewServices(cfg); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("got %v, want %s", err, words)
		}
	}
	for words, cfg := range map[string]NodesConfig{
		"has no parts of /15": {Pods: netip.MustParsePrefix("10.0.0.0/16"), NodeBits: 15},
		"has no parts of /31": {Pods: netip.MustParsePrefix("10.0.0.0/16"), NodeBits: 31},
		"has more than 65536": {Pods: netip.MustParsePrefix("fd00::/40"), NodeBits: 64},
	} {
		if _, err := NewNodes(cfg); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("got %v, want %s", err, words)
		}
	}
}
