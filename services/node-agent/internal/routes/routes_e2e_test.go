//go:build e2e

package routes

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/pkg/hosts"
	"dhow.dev/pkg/informer"
	"dhow.dev/services/node-agent/internal/cni"
)

const patience = 30 * time.Second

// pool is for benchmarking networks (RFC 2544), which no machine routes.
var pool = netip.MustParsePrefix("198.18.0.0/16")

// nodeUnderTest is a host with a router and a pod network.
type nodeUnderTest struct {
	t       *testing.T
	host    hosts.Host
	nodes   *fanOut
	gateway netip.Addr
	confDir string
	stop    func()
}

// fanOut is a Source with several listeners.
type fanOut struct {
	handlers []func(old, new *corev1.Node, trace *informer.Trace)
}

func (f *fanOut) OnChangeTraced(h func(old, new *corev1.Node, trace *informer.Trace)) {
	f.handlers = append(f.handlers, h)
}

func (f *fanOut) change(old, new *corev1.Node) {
	for _, h := range f.handlers {
		h(old, new, nil)
	}
}

func cluster(t *testing.T, names ...string) []*nodeUnderTest {
	t.Helper()
	subnet, err := hosts.FreeSubnet(pool, 28)
	must(t, err)
	network, err := hosts.New(hosts.Config{Name: fmt.Sprintf("routes%d", os.Getpid()), Subnet: subnet})
	must(t, err)
	t.Cleanup(func() { must(t, network.Down()) })
	must(t, network.Up())
	var list []*nodeUnderTest
	var objects []*corev1.Node
	for i, name := range names {
		address, err := network.Address(i + 1)
		must(t, err)
		host, err := network.Add(name, address)
		must(t, err)
		list = append(list, &nodeUnderTest{t: t, host: host, gateway: network.Gateway(), nodes: &fanOut{}})
		objects = append(objects, node(name, fmt.Sprintf("10.244.%d.0/24", i+1), address.String()))
	}
	for _, n := range list {
		n.start(objects)
	}
	return list
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (n *nodeUnderTest) start(objects []*corev1.Node) {
	t := n.t
	n.confDir = t.TempDir()
	logger := slog.New(slog.NewTextHandler(t.Output(), nil)).With("node", n.host.Name)
	network, err := cni.New(cni.Config{NodeName: n.host.Name, ConfDir: n.confDir, DataDir: t.TempDir(), Nodes: n.nodes, Logger: logger})
	must(t, err)
	router, err := New(Config{
		NodeName: n.host.Name, ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}, Nodes: n.nodes,
		Synced: func(context.Context) error { return nil }, Logger: logger,
	})
	must(t, err)
	for _, o := range objects {
		n.nodes.change(nil, o)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 2)
	go func() { done <- network.Run(ctx) }()
	go func() { done <- n.inside(func() error { return router.Run(ctx) }) }()
	n.stop = func() {
		cancel()
		for range 2 {
			if err := <-done; err != nil {
				t.Errorf("Run: %v", err)
			}
		}
		n.stop = func() {}
	}
	t.Cleanup(func() { n.stop() })
	for _, ready := range []<-chan struct{}{network.Ready(), router.Ready()} {
		select {
		case <-ready:
		case <-time.After(patience):
			t.Fatalf("%s is not ready", n.host.Name)
		}
	}
}

// inside runs f on a thread of the node's network namespace and waits for it.
func (n *nodeUnderTest) inside(f func() error) error { return insideFile(n.host.NetNS, f) }

func insideFile(path string, f func() error) error {
	done := make(chan error, 1)
	go func() {
		// Never unlocked: the thread ends with the goroutine.
		runtime.LockOSThread()
		ns, err := netns.GetFromPath(path)
		if err == nil {
			err = netns.Set(ns)
			ns.Close()
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

func (n *nodeUnderTest) routeTo(network string) (found bool) {
	n.t.Helper()
	must(n.t, n.inside(func() error {
		list, err := netlink.RouteList(nil, netlink.FAMILY_V4)
		for _, r := range list {
			if r.Dst != nil && r.Dst.String() == network {
				found = true
			}
		}
		return err
	}))
	return found
}

// await waits for a condition that kernel events bring about.
func await(t *testing.T, what string, condition func() bool) {
	t.Helper()
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for deadline := time.After(patience); !condition(); {
		select {
		case <-deadline:
			t.Fatalf("waited in vain: %s", what)
		case <-ticker.C:
		}
	}
}

func TestRoutesFollowNodes(t *testing.T) {
	nodes := cluster(t, "n1", "n2")
	n1 := nodes[0]
	if !n1.routeTo("10.244.2.0/24") || n1.routeTo("10.244.1.0/24") {
		t.Fatal("routes are not those to the other node")
	}
	_, foreign, err := net.ParseCIDR("10.9.9.0/24")
	must(t, err)
	must(t, n1.inside(func() error {
		return netlink.RouteAdd(&netlink.Route{Dst: foreign, Gw: nodes[1].host.Address.AsSlice(), Protocol: 4})
	}))

	// Someone deletes the route.
	_, pods, err := net.ParseCIDR("10.244.2.0/24")
	must(t, err)
	must(t, n1.inside(func() error { return netlink.RouteDel(&netlink.Route{Dst: pods}) }))
	await(t, "a deleted route comes back", func() bool { return n1.routeTo("10.244.2.0/24") })

	// The uplink flaps: the kernel drops its routes.
	must(t, n1.inside(func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetDown(link); err != nil {
			return err
		}
		return netlink.LinkSetUp(link)
	}))
	await(t, "routes come back with their link", func() bool { return n1.routeTo("10.244.2.0/24") })

	must(t, n1.inside(func() error {
		return netlink.RouteReplace(&netlink.Route{Dst: foreign, Gw: nodes[1].host.Address.AsSlice(), Protocol: 4})
	}))
	n1.nodes.change(node("n2", "10.244.2.0/24", nodes[1].host.Address.String()), nil)
	await(t, "the route of a deleted node goes", func() bool { return !n1.routeTo("10.244.2.0/24") })
	if !n1.routeTo("10.9.9.0/24") {
		t.Error("a foreign route was removed")
	}

	// A node comes while the agent is down; another's route is left over.
	n1.stop()
	n1.start([]*corev1.Node{node("n1", "10.244.1.0/24", n1.host.Address.String()), node("n2", "10.244.7.0/24", nodes[1].host.Address.String())})
	if !n1.routeTo("10.244.7.0/24") || n1.routeTo("10.244.2.0/24") {
		t.Error("a restarted router does not correct its routes")
	}
}

func TestKernelSettings(t *testing.T) {
	n1 := cluster(t, "n1")[0]
	must(t, n1.inside(func() error {
		for path, want := range map[string]string{
			"/proc/sys/net/ipv4/ip_forward": "1", "/proc/sys/net/ipv4/conf/all/send_redirects": "0", "/proc/sys/net/ipv4/conf/eth0/send_redirects": "0",
			"/proc/sys/net/ipv4/conf/default/send_redirects": "0",
		} {
			got, err := os.ReadFile(path)
			if err != nil || strings.TrimSpace(string(got)) != want {
				t.Errorf("%s = %s, %v; want %s", path, got, err, want)
			}
		}
		return nil
	}))
}

// TestPodsOfTwoNodes runs the real plugins with the configuration that package cni writes.
func TestPodsOfTwoNodes(t *testing.T) {
	plugins, err := filepath.Abs("../../../../bin/runtime")
	must(t, err)
	if _, err := os.Stat(filepath.Join(plugins, "bridge")); err != nil {
		t.Fatalf("the CNI plugins are missing: %v: run make setup", err)
	}
	nodes := cluster(t, "n1", "n2")
	a, b, c := nodes[0].pod(plugins, "a"), nodes[0].pod(plugins, "b"), nodes[1].pod(plugins, "c")
	for _, pair := range [][2]pod{{a, b}, {a, c}, {c, a}} {
		if got := pair[0].call(t, pair[1]); got != pair[0].ip {
			t.Errorf("%s calls %s: it sees %q as the source", pair[0].ip, pair[1].ip, got)
		}
	}
	// From a node to a pod of another.
	if got := (pod{netns: nodes[1].host.NetNS}).call(t, a); got != nodes[1].host.Address.String() {
		t.Errorf("node n2 calls %s: it sees %q as the source", a.ip, got)
	}
	// To the world outside, here the machine itself, pods appear as their node.
	listener, err := net.Listen("tcp4", net.JoinHostPort(nodes[0].gateway.String(), "0"))
	must(t, err)
	t.Cleanup(func() { listener.Close() })
	go answer(listener)
	if got := a.callAddress(t, listener.Addr().String()); got != nodes[0].host.Address.String() {
		t.Errorf("outside sees %q as the source, want the node", got)
	}
}

// TestForeignForwardPolicy has a filter like Docker's drop what it does not know.
func TestForeignForwardPolicy(t *testing.T) {
	plugins, err := filepath.Abs("../../../../bin/runtime")
	must(t, err)
	nodes := cluster(t, "n1", "n2")
	n1 := nodes[0]
	a, c := n1.pod(plugins, "a"), nodes[1].pod(plugins, "c")
	nft := func(command string) string {
		t.Helper()
		out, err := n1.host.Command(t.Context(), "nft", command).CombinedOutput()
		if err != nil {
			t.Fatalf("nft %s: %v: %s", command, err, out)
		}
		return string(out)
	}
	nft("table ip filter { chain FORWARD { type filter hook forward priority filter; policy drop; }; }")
	n1.nodes.change(nil, node("n3", "10.244.3.0/24", n1.gateway.String()))
	await(t, "rules that accept pods", func() bool { return strings.Contains(nft("list table ip filter"), acceptComment) })
	if got := a.call(t, c); got != a.ip {
		t.Errorf("a pod of the other node sees %q as the source", got)
	}
	if n := strings.Count(nft("list table ip filter"), acceptComment); n != 2 {
		t.Errorf("%d rules, want one for each direction", n)
	}
}

type pod struct {
	netns, ip string
}

// pod adds a pod by calling the plugin as a runtime does (CNI specification 1.0.0, section 2) and makes it listen.
func (n *nodeUnderTest) pod(plugins, id string) pod {
	t := n.t
	t.Helper()
	p := pod{netns: fmt.Sprintf("/run/netns/dhow-test-%d-%s", os.Getpid(), id)}
	name := filepath.Base(p.netns)
	if out, err := exec.Command("ip", "netns", "add", name).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Cleanup(func() { must(t, exec.Command("ip", "netns", "delete", name).Run()) })
	content, err := os.ReadFile(filepath.Join(n.confDir, cni.FileName))
	must(t, err)
	config := singlePlugin(t, content)
	call := func(command string) {
		cmd := n.host.Command(context.Background(), filepath.Join(plugins, "bridge"))
		cmd.Env = append(os.Environ(), "CNI_COMMAND="+command, "CNI_CONTAINERID="+id, "CNI_NETNS="+p.netns, "CNI_IFNAME=eth0", "CNI_PATH="+plugins)
		cmd.Stdin = strings.NewReader(config)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("plugin %s: %v: %s", command, err, out)
		}
	}
	call("ADD")
	t.Cleanup(func() { call("DEL") })
	must(t, insideFile(p.netns, func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		addresses, err := netlink.AddrList(link, netlink.FAMILY_V4)
		if err != nil {
			return err
		}
		p.ip = addresses[0].IP.String()
		listener, err := net.Listen("tcp4", ":8080")
		if err != nil {
			return err
		}
		t.Cleanup(func() { listener.Close() })
		go answer(listener)
		return nil
	}))
	return p
}

// answer tells every client its address.
func answer(listener net.Listener) {
	for {
		c, err := listener.Accept()
		if err != nil {
			return
		}
		host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
		fmt.Fprintln(c, host)
		c.Close()
	}
}

func (p pod) call(t *testing.T, to pod) string {
	t.Helper()
	return p.callAddress(t, net.JoinHostPort(to.ip, "8080"))
}

func (p pod) callAddress(t *testing.T, address string) (source string) {
	t.Helper()
	must(t, insideFile(p.netns, func() error {
		c, err := net.DialTimeout("tcp4", address, patience)
		if err != nil {
			return err
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
			return err
		}
		source, err = bufio.NewReader(c).ReadString('\n')
		return err
	}))
	return strings.TrimSpace(source)
}

// singlePlugin makes the configuration of one plugin out of the list's, as a runtime does.
func singlePlugin(t *testing.T, content []byte) string {
	t.Helper()
	var l struct {
		CNIVersion string           `json:"cniVersion"`
		Name       string           `json:"name"`
		Plugins    []map[string]any `json:"plugins"`
	}
	must(t, json.Unmarshal(content, &l))
	l.Plugins[0]["cniVersion"], l.Plugins[0]["name"] = l.CNIVersion, l.Name
	out, err := json.Marshal(l.Plugins[0])
	must(t, err)
	return string(out)
}
