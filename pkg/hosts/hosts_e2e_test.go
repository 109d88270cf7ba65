//go:build e2e

package hosts

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// pool is for benchmarking networks (RFC 2544), which no machine routes.
var pool = netip.MustParsePrefix("198.18.0.0/16")

func freshNetwork(t *testing.T, name string) *Network {
	t.Helper()
	subnet, err := FreeSubnet(pool, 28)
	if err != nil {
		t.Fatal(err)
	}
	n := network(t, fmt.Sprintf("%s%d", name, os.Getpid()), subnet.String())
	t.Cleanup(func() {
		if err := n.Down(); err != nil {
			t.Errorf("down: %v", err)
		}
		assertGone(t, n)
	})
	if err := n.Up(); err != nil {
		t.Fatal(err)
	}
	return n
}

func addHost(t *testing.T, n *Network, name string, i int) Host {
	t.Helper()
	address, err := n.Address(i)
	if err != nil {
		t.Fatal(err)
	}
	host, err := n.Add(name, address)
	if err != nil {
		t.Fatal(err)
	}
	return host
}

func assertGone(t *testing.T, n *Network) {
	t.Helper()
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		if name := link.Attrs().Name; name == n.Bridge() || name == n.veth("a") || name == n.veth("b") {
			t.Errorf("interface %s is left", name)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), "dhow_"+n.name+"_") {
		t.Error("a namespace is still mounted")
	}
	if hosts, err := n.Hosts(); err != nil || len(hosts) != 0 {
		t.Errorf("hosts left: %v, %v", hosts, err)
	}
}

func run(t *testing.T, host Host, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := host.Command(ctx, name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("in %s: %s %s: %v\n%s", host.Name, name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// listenIn accepts one connection on the host and answers with a line.
func listenIn(t *testing.T, host Host, line string) string {
	t.Helper()
	ns, err := os.Open(host.NetNS)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	var l net.Listener
	if err := inNamespace(ns, func() (err error) {
		l, err = net.Listen("tcp4", host.Address.String()+":0")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprintln(conn, line)
			conn.Close()
		}
	}()
	return l.Addr().String()
}

func readLine(t *testing.T, dial func() (net.Conn, error)) string {
	t.Helper()
	conn, err := dial()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(line)
}

func TestHostsReachEachOtherAndTheMachine(t *testing.T) {
	n := freshNetwork(t, "reach")
	a, b := addHost(t, n, "a", 1), addHost(t, n, "b", 2)

	addr := listenIn(t, b, "from b")
	if got := readLine(t, func() (net.Conn, error) { return net.DialTimeout("tcp", addr, time.Minute) }); got != "from b" {
		t.Errorf("machine to b: got %q", got)
	}
	ns, err := os.Open(a.NetNS)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	got := readLine(t, func() (conn net.Conn, err error) {
		err = inNamespace(ns, func() (err error) {
			conn, err = net.DialTimeout("tcp", addr, time.Minute)
			return err
		})
		return conn, err
	})
	if got != "from b" {
		t.Errorf("a to b: got %q", got)
	}

	gateway, err := net.Listen("tcp4", n.Gateway().String()+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer gateway.Close()
	if err := inNamespace(ns, func() error {
		conn, err := net.DialTimeout("tcp", gateway.Addr().String(), time.Minute)
		if err == nil {
			conn.Close()
		}
		return err
	}); err != nil {
		t.Errorf("a to the machine: %v", err)
	}

	if got := run(t, a, "cat", "/proc/sys/net/ipv4/ip_forward"); strings.TrimSpace(got) != "1" {
		t.Errorf("forwarding in a: %q", got)
	}
	// Cgroups stay visible, which `ip netns exec` would hide.
	run(t, a, "test", "-e", "/sys/fs/cgroup")
}

func TestAddIsIdempotentAndRepairs(t *testing.T) {
	n := freshNetwork(t, "repair")
	if err := n.Up(); err != nil {
		t.Fatalf("second Up: %v", err)
	}
	first := addHost(t, n, "a", 1)
	if again := addHost(t, n, "a", 1); again != first {
		t.Errorf("second Add: %+v, want %+v", again, first)
	}
	if err := deleteLink(n.veth("a")); err != nil {
		t.Fatal(err)
	}
	addHost(t, n, "a", 3)
	hosts, err := n.Hosts()
	want, _ := n.Address(3)
	if err != nil || len(hosts) != 1 || hosts[0].Address != want {
		t.Errorf("hosts after repair: %+v, %v; want address %s", hosts, err, want)
	}
	if err := n.Remove("a"); err != nil {
		t.Fatal(err)
	}
	if err := n.Remove("a"); err != nil {
		t.Errorf("second Remove: %v", err)
	}
}

func TestNetworksDoNotClash(t *testing.T) {
	first := freshNetwork(t, "one")
	second := freshNetwork(t, "two")
	addHost(t, first, "a", 1)
	addHost(t, second, "a", 1)
	overlap := network(t, "three", first.subnet.String())
	if err := overlap.Up(); err == nil || !strings.Contains(err.Error(), "choose another subnet") {
		t.Errorf("overlapping subnet: got %v", err)
		_ = overlap.Down()
	}
	if err := first.Down(); err != nil {
		t.Fatal(err)
	}
	if hosts, err := second.Hosts(); err != nil || len(hosts) != 1 {
		t.Errorf("the other network's hosts: %v, %v", hosts, err)
	}
}

func TestProcesses(t *testing.T) {
	n := freshNetwork(t, "procs")
	host := addHost(t, n, "a", 1)
	cmd := host.Command(t.Context(), "cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	// One line through cat shows that it runs in the namespace by now.
	fmt.Fprintln(in, "ready")
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	if pids, err := host.Processes(); err != nil || len(pids) != 1 || pids[0] != cmd.Process.Pid {
		t.Errorf("processes: %v, %v; want %d", pids, err, cmd.Process.Pid)
	}
	in.Close()
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	if pids, err := host.Processes(); err != nil || len(pids) != 0 {
		t.Errorf("processes after exit: %v, %v", pids, err)
	}
}
