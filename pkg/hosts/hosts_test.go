package hosts

import (
	"net/netip"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func network(t *testing.T, name, subnet string) *Network {
	t.Helper()
	n, err := New(Config{Name: name, Subnet: netip.MustParsePrefix(subnet)})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestNewRefusesBadNames(t *testing.T) {
	subnet := netip.MustParsePrefix("10.0.0.0/24")
	for _, name := range []string{"", "a_b", "Upper", "-dash", "dash-", "a/b", "a.b", strings.Repeat("a", 64)} {
		if _, err := New(Config{Name: name, Subnet: subnet}); err == nil {
			t.Errorf("name %q was accepted", name)
		}
	}
	for _, bad := range []netip.Prefix{{}, netip.MustParsePrefix("10.0.0.0/31"), netip.MustParsePrefix("fd00::/64")} {
		if _, err := New(Config{Name: "ok", Subnet: bad}); err == nil {
			t.Errorf("subnet %s was accepted", bad)
		}
	}
}

func TestInterfaceNamesFitAndDiffer(t *testing.T) {
	seen := map[string]string{}
	for _, name := range []string{"a", "a-b", "default", "tencharsxx", "a-very-long-cluster-name", "a-very-long-cluster-name2"} {
		n := network(t, name, "10.0.0.0/24")
		for what, got := range map[string]string{"bridge": n.Bridge(), "veth b": n.veth("b"), "veth node-1": n.veth("node-1")} {
			if len(got) > maxInterface {
				t.Errorf("%s of %s: %q is too long", what, name, got)
			}
			if other, clash := seen[got]; clash {
				t.Errorf("%s of %s: %q is also %s", what, name, got, other)
			}
			seen[got] = what + " of " + name
		}
	}
	if got := network(t, "demo", "10.0.0.0/24").Bridge(); got != "dhow-demo" {
		t.Errorf("short bridge name: got %q", got)
	}
}

func TestAddresses(t *testing.T) {
	n := network(t, "x", "10.1.2.77/29")
	if got := n.Gateway().String(); got != "10.1.2.73" {
		t.Errorf("gateway: got %s", got)
	}
	for i, want := range map[int]string{1: "10.1.2.74", 5: "10.1.2.78"} {
		if got, err := n.Address(i); err != nil || got.String() != want {
			t.Errorf("host %d: got %s, %v; want %s", i, got, err, want)
		}
	}
	for _, i := range []int{-1, 0, 6} {
		if got, err := n.Address(i); err == nil {
			t.Errorf("host %d: got %s, want an error", i, got)
		}
	}
}

func TestFreeSubnetAvoidsKnownNetworks(t *testing.T) {
	// Loopback is known on every machine.
	if got, err := FreeSubnet(netip.MustParsePrefix("127.0.0.0/16"), 24); err == nil {
		t.Errorf("got %s inside loopback's network", got)
	}
	if _, err := FreeSubnet(netip.MustParsePrefix("203.0.113.0/24"), 16); err == nil {
		t.Error("a subnet larger than its pool was accepted")
	}
	// Documentation addresses (RFC 5737) are on no machine.
	if got, err := FreeSubnet(netip.MustParsePrefix("203.0.113.0/24"), 28); err != nil || got.String() != "203.0.113.0/28" {
		t.Errorf("got %s, %v", got, err)
	}
}

func TestOnOwnThreadNeverTakesTheMainThread(t *testing.T) {
	// Goroutines that hold other threads make the main thread's turn likely.
	for range 200 {
		if err := OnOwnThread(func() error {
			if unix.Gettid() == os.Getpid() {
				t.Error("f ran on the main thread")
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
}
