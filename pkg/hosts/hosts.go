// Package hosts makes several hosts out of one machine: network namespaces on a private bridge, each with its own interfaces,
// addresses, routes and packet filter. Only the network is separate; files, processes and cgroups are the machine's.
//
// Everything is found again by its name, so another process can list, extend and delete what one made. All calls are idempotent and
// need root.
package hosts

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// netnsDir is where iproute2 keeps named network namespaces, so that `ip netns` shows these too.
const netnsDir = "/run/netns"

// maxInterface is the longest interface name, IFNAMSIZ without its terminator.
const maxInterface = 15

// label is what clusters and hosts may be called. It has no underscore: that separates the parts of a namespace's name, so that no
// cluster's prefix is another's.
var label = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

// Config names a network.
type Config struct {
	// Name tells this network's hosts from those of other networks on the machine.
	Name string
	// Subnet holds the bridge (its first address) and the hosts. It must not overlap any network that the machine knows.
	Subnet netip.Prefix
}

// Network is a bridge and the hosts on it.
type Network struct {
	name   string
	subnet netip.Prefix
}

// Host is one network namespace.
type Host struct {
	Name string
	// NetNS is the namespace's file, /run/netns/NAME.
	NetNS string
	// Address is that of eth0; the zero Addr when the host exists only in part (Network.Add repairs it).
	Address netip.Addr
}

// New checks the configuration. It changes nothing on the machine.
func New(cfg Config) (*Network, error) {
	if !label.MatchString(cfg.Name) {
		return nil, fmt.Errorf("network name %q: use lower-case letters, digits and dashes", cfg.Name)
	}
	if !cfg.Subnet.IsValid() || !cfg.Subnet.Addr().Is4() || cfg.Subnet.Bits() > 30 {
		return nil, fmt.Errorf("network %s: subnet %q must be an IPv4 network of /30 or larger", cfg.Name, cfg.Subnet)
	}
	return &Network{name: cfg.Name, subnet: cfg.Subnet.Masked()}, nil
}

// Bridge is the name of the bridge interface.
func (n *Network) Bridge() string { return interfaceName("dhow-", n.name) }

// Gateway is the bridge's address: the machine as its hosts see it.
func (n *Network) Gateway() netip.Addr { return n.subnet.Addr().Next() }

// Address is the i-th host's address; hosts count from 1.
func (n *Network) Address(i int) (netip.Addr, error) {
	base := n.subnet.Addr().As4()
	value := uint64(base[0])<<24 | uint64(base[1])<<16 | uint64(base[2])<<8 | uint64(base[3])
	// The first address is the network's, the second the bridge's, the last is for broadcast.
	if size := uint64(1) << (32 - n.subnet.Bits()); i < 1 || uint64(i)+1 >= size-1 {
		return netip.Addr{}, fmt.Errorf("network %s: %s has no address for host %d: choose a larger subnet", n.name, n.subnet, i)
	}
	value += uint64(i) + 1
	return netip.AddrFrom4([4]byte{byte(value >> 24), byte(value >> 16), byte(value >> 8), byte(value)}), nil
}

// Up makes the bridge.
func (n *Network) Up() error {
	link, err := netlink.LinkByName(n.Bridge())
	if isMissing(err) {
		if err := n.checkFree(); err != nil {
			return err
		}
		// A bridge without an address of its own takes the lowest of its ports, and would change it as hosts come and go.
		bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: n.Bridge(), HardwareAddr: hardwareAddress(n.Bridge())}}
		if err := netlink.LinkAdd(bridge); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("create bridge %s: %w", n.Bridge(), hint(err))
		}
		link, err = netlink.LinkByName(n.Bridge())
	}
	if err != nil {
		return fmt.Errorf("bridge %s: %w", n.Bridge(), err)
	}
	if link.Type() != "bridge" {
		return fmt.Errorf("interface %s exists and is a %s, not a bridge: delete it or choose another network name", n.Bridge(), link.Type())
	}
	if err := setAddress(&netlink.Handle{}, link, netip.PrefixFrom(n.Gateway(), n.subnet.Bits())); err != nil {
		return fmt.Errorf("bridge %s: %w", n.Bridge(), err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring up bridge %s: %w", n.Bridge(), err)
	}
	return nil
}

// Add makes a host, or repairs what is missing of it: namespace, loopback, eth0 with the address, a default route by way of the bridge,
// and forwarding between interfaces, as a container host needs.
func (n *Network) Add(name string, address netip.Addr) (Host, error) {
	if !label.MatchString(name) {
		return Host{}, fmt.Errorf("host name %q: use lower-case letters, digits and dashes", name)
	}
	if !n.subnet.Contains(address) || address == n.Gateway() {
		return Host{}, fmt.Errorf("host %s: address %s is not a host's address in %s", name, address, n.subnet)
	}
	bridge, err := netlink.LinkByName(n.Bridge())
	if err != nil {
		return Host{}, fmt.Errorf("bridge %s: %w", n.Bridge(), err)
	}
	host := Host{Name: name, NetNS: n.netns(name), Address: address}
	if err := createNamespace(host.NetNS); err != nil {
		return Host{}, fmt.Errorf("host %s: %w", name, err)
	}
	if err := n.connect(host, bridge); err != nil {
		return Host{}, fmt.Errorf("host %s: %w", name, err)
	}
	return host, nil
}

func (n *Network) connect(host Host, bridge netlink.Link) error {
	ns, err := os.Open(host.NetNS)
	if err != nil {
		return err
	}
	defer ns.Close()
	inside, err := handleAt(ns)
	if err != nil {
		return err
	}
	defer inside.Close()

	loopback, err := inside.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	if err := inside.LinkSetUp(loopback); err != nil {
		return fmt.Errorf("bring up loopback: %w", err)
	}

	eth, err := inside.LinkByName("eth0")
	if isMissing(err) {
		// Half a pair is no use: the outer end, if there is one, leads into a namespace that is gone.
		if err := deleteLink(n.veth(host.Name)); err != nil {
			return err
		}
		pair := &netlink.Veth{
			LinkAttrs:     netlink.LinkAttrs{Name: n.veth(host.Name), MasterIndex: bridge.Attrs().Index},
			PeerName:      "eth0",
			PeerNamespace: netlink.NsFd(ns.Fd()),
		}
		if err := netlink.LinkAdd(pair); err != nil {
			return fmt.Errorf("create veth pair %s: %w", n.veth(host.Name), hint(err))
		}
		eth, err = inside.LinkByName("eth0")
	}
	if err != nil {
		return fmt.Errorf("eth0: %w", err)
	}
	outer, err := netlink.LinkByName(n.veth(host.Name))
	if err != nil {
		return fmt.Errorf("veth %s: %w", n.veth(host.Name), err)
	}
	if err := netlink.LinkSetMaster(outer, bridge); err != nil {
		return fmt.Errorf("attach %s to the bridge: %w", n.veth(host.Name), err)
	}
	if err := netlink.LinkSetUp(outer); err != nil {
		return fmt.Errorf("bring up %s: %w", n.veth(host.Name), err)
	}
	if err := setAddress(inside, eth, netip.PrefixFrom(host.Address, n.subnet.Bits())); err != nil {
		return fmt.Errorf("eth0: %w", err)
	}
	if err := inside.LinkSetUp(eth); err != nil {
		return fmt.Errorf("bring up eth0: %w", err)
	}
	route := &netlink.Route{LinkIndex: eth.Attrs().Index, Gw: n.Gateway().AsSlice()}
	if err := inside.RouteReplace(route); err != nil {
		return fmt.Errorf("default route: %w", err)
	}
	return inNamespace(ns, func() error {
		return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644)
	})
}

// Remove deletes a host. Processes that still run in it keep running, without a network: end them first (Host.Processes).
func (n *Network) Remove(name string) error {
	if err := deleteLink(n.veth(name)); err != nil {
		return fmt.Errorf("host %s: %w", name, err)
	}
	if err := deleteNamespace(n.netns(name)); err != nil {
		return fmt.Errorf("host %s: %w", name, err)
	}
	return nil
}

// Hosts lists the hosts that exist, sorted by name.
func (n *Network) Hosts() ([]Host, error) {
	return list(n.name)
}

// Down deletes every host and the bridge.
func (n *Network) Down() error {
	hosts, err := n.Hosts()
	if err != nil {
		return err
	}
	var failed []error
	for _, host := range hosts {
		failed = append(failed, n.Remove(host.Name))
	}
	return errors.Join(append(failed, deleteLink(n.Bridge()))...)
}

// Names lists the networks that have hosts on this machine.
func Names() ([]string, error) {
	entries, err := os.ReadDir(netnsDir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	var names []string
	for _, entry := range entries {
		if parts := strings.Split(entry.Name(), "_"); len(parts) == 3 && parts[0] == "dhow" && !slices.Contains(names, parts[1]) {
			names = append(names, parts[1])
		}
	}
	return names, nil
}

// Command prepares a command that runs with the host's network. It uses nsenter and not `ip netns exec`, because that mounts a new /sys
// in which the cgroups are missing.
func (h Host) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "nsenter", append([]string{"--net=" + h.NetNS, "--", name}, args...)...)
}

// Processes lists the processes whose network is the host's.
func (h Host) Processes() ([]int, error) {
	var want unix.Stat_t
	if err := unix.Stat(h.NetNS, &want); err != nil {
		return nil, fmt.Errorf("host %s: %w", h.Name, err)
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		var have unix.Stat_t
		// Processes end while they are listed.
		if unix.Stat(filepath.Join("/proc", entry.Name(), "ns/net"), &have) == nil && have.Ino == want.Ino && have.Dev == want.Dev {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// FreeSubnet finds a subnet of the given size within pool that overlaps no address and no route of this machine, but the default route.
func FreeSubnet(pool netip.Prefix, bits int) (netip.Prefix, error) {
	if !pool.IsValid() || !pool.Addr().Is4() || bits < pool.Bits() || bits > 30 {
		return netip.Prefix{}, fmt.Errorf("no /%d subnet in %s: the pool must be IPv4 and larger", bits, pool)
	}
	taken, err := knownNetworks()
	if err != nil {
		return netip.Prefix{}, err
	}
	candidate := netip.PrefixFrom(pool.Masked().Addr(), bits)
	for pool.Contains(candidate.Addr()) {
		clash := slices.ContainsFunc(taken, func(k known) bool { return k.prefix.Overlaps(candidate) })
		if !clash {
			return candidate, nil
		}
		raw := candidate.Addr().As4()
		value := uint64(raw[0])<<24 | uint64(raw[1])<<16 | uint64(raw[2])<<8 | uint64(raw[3])
		if value += 1 << (32 - bits); value > 0xffffffff {
			break
		}
		candidate = netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(value >> 24), byte(value >> 16), byte(value >> 8), byte(value)}), bits)
	}
	return netip.Prefix{}, fmt.Errorf("every /%d subnet in %s is in use on this machine: choose another pool", bits, pool)
}

func (n *Network) netns(host string) string {
	return filepath.Join(netnsDir, "dhow_"+n.name+"_"+host)
}

func (n *Network) veth(host string) string {
	sum := sha256.Sum256([]byte(n.name + "_" + host))
	return "dv" + hex.EncodeToString(sum[:6])
}

// checkFree refuses a subnet that the machine already reaches in some other way.
func (n *Network) checkFree() error {
	taken, err := knownNetworks()
	if err != nil {
		return err
	}
	for _, k := range taken {
		if k.prefix.Overlaps(n.subnet) {
			return fmt.Errorf("network %s: subnet %s overlaps %s on %s: choose another subnet", n.name, n.subnet, k.prefix, k.device)
		}
	}
	return nil
}

// interfaceName keeps short names readable and shortens long ones to a hash.
func interfaceName(prefix, name string) string {
	if len(prefix)+len(name) <= maxInterface {
		return prefix + name
	}
	sum := sha256.Sum256([]byte(name))
	return prefix + hex.EncodeToString(sum[:])[:maxInterface-len(prefix)]
}

// hardwareAddress derives a stable, locally administered unicast address.
func hardwareAddress(name string) net.HardwareAddr {
	sum := sha256.Sum256([]byte(name))
	addr := net.HardwareAddr(sum[:6])
	addr[0] = addr[0]&^1 | 2
	return addr
}
