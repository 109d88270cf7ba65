//go:build e2e

package proxy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"sigs.k8s.io/knftables"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	discoveryv1 "dhow.dev/gen/go/dhow/discovery/v1"
)

const (
	nodeIP    = "192.168.77.2"
	outsideIP = "192.168.77.1"
	gatewayIP = "10.244.1.1"
	// patience bounds waits for something that must happen.
	patience = 30 * time.Second
)

// world is a node, three pods on its bridge and a client outside, each a network namespace.
type world struct {
	t       testing.TB
	node    netns.NsHandle
	outside netns.NsHandle
	pods    map[string]netns.NsHandle // by address
	packets atomic.Int64              // UDP packets that backends got
}

func newWorld(t testing.TB) *world {
	w := &world{t: t, node: newNamespace(t), outside: newNamespace(t), pods: map[string]netns.NsHandle{}}
	node := w.handle(w.node)
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "pods"}}
	w.must(node.LinkAdd(bridge))
	w.address(node, "pods", gatewayIP+"/24")
	w.veth(w.node, "out", w.outside, "eth0")
	w.address(node, "out", nodeIP+"/24")
	w.address(w.handle(w.outside), "eth0", outsideIP+"/24")
	w.route(node, outsideIP)
	w.inside(w.node, func() { w.must(os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0)) })
	for i := range 3 {
		ns, ip := newNamespace(t), fmt.Sprintf("10.244.1.%d", i+2)
		port := fmt.Sprintf("pod%d", i)
		w.veth(w.node, port, ns, "eth0")
		link, err := node.LinkByName(port)
		w.must(err)
		w.must(node.LinkSetMaster(link, bridge))
		w.must(node.LinkSetHairpin(link, true))
		w.must(node.LinkSetUp(link))
		w.address(w.handle(ns), "eth0", ip+"/24")
		w.route(w.handle(ns), gatewayIP)
		w.pods[ip] = ns
	}
	return w
}

func newNamespace(t testing.TB) netns.NsHandle {
	made := make(chan netns.NsHandle, 1)
	failed := make(chan error, 1)
	go func() {
		// Never unlocked: the thread ends with the goroutine instead of returning to the pool in the wrong namespace.
		runtime.LockOSThread()
		ns, err := netns.New()
		if err != nil {
			failed <- err
			return
		}
		made <- ns
	}()
	select {
	case err := <-failed:
		t.Fatalf("make a network namespace: %v: these tests need root", err)
		return 0
	case ns := <-made:
		t.Cleanup(func() { ns.Close() })
		h, err := netlink.NewHandleAt(ns)
		if err != nil {
			t.Fatal(err)
		}
		defer h.Close()
		lo, err := h.LinkByName("lo")
		if err == nil {
			err = h.LinkSetUp(lo)
		}
		if err != nil {
			t.Fatal(err)
		}
		return ns
	}
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) handle(ns netns.NsHandle) *netlink.Handle {
	h, err := netlink.NewHandleAt(ns)
	w.must(err)
	w.t.Cleanup(h.Close)
	return h
}

func (w *world) veth(ns netns.NsHandle, name string, peer netns.NsHandle, peerName string) {
	h := w.handle(ns)
	w.must(h.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: peerName, PeerNamespace: netlink.NsFd(int(peer))}))
}

func (w *world) address(h *netlink.Handle, link, address string) {
	l, err := h.LinkByName(link)
	w.must(err)
	a, err := netlink.ParseAddr(address)
	w.must(err)
	w.must(h.AddrAdd(l, a))
	w.must(h.LinkSetUp(l))
}

func (w *world) route(h *netlink.Handle, gateway string) {
	w.must(h.RouteAdd(&netlink.Route{Gw: net.ParseIP(gateway)}))
}

// inside runs f on a thread of a namespace and waits for it.
func (w *world) inside(ns netns.NsHandle, f func()) {
	done := make(chan error, 1)
	go func() {
		// Deferred: a failed assertion ends this goroutine in the middle of f.
		err := errors.New("ended early")
		defer func() { done <- err }()
		runtime.LockOSThread()
		if err = netns.Set(ns); err == nil {
			f()
		}
	}()
	w.must(<-done)
}

// serve makes a pod answer on TCP and UDP 8080 with its own address and the client's.
func (w *world) serve(ip string) {
	w.inside(w.pods[ip], func() { w.listen("", ip) })
}

// listen answers with name on an address of the calling thread's namespace.
func (w *world) listen(address, name string) {
	listener, err := net.Listen("tcp4", address+":8080")
	w.must(err)
	w.t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
			fmt.Fprintf(c, "%s %s\n", name, host)
			c.Close()
		}
	}()
	packets, err := net.ListenPacket("udp4", address+":8080")
	w.must(err)
	w.t.Cleanup(func() { packets.Close() })
	go func() {
		buffer := make([]byte, 100)
		for {
			_, from, err := packets.ReadFrom(buffer)
			if err != nil {
				return
			}
			w.packets.Add(1)
			host, _, _ := net.SplitHostPort(from.String())
			_, _ = packets.WriteTo([]byte(name+" "+host+"\n"), from)
		}
	}()
}

// call connects from a namespace and returns the backend's answer: its address and the source that it saw.
func (w *world) call(ns netns.NsHandle, network, address string) (backend, source string, err error) {
	w.inside(ns, func() {
		var c net.Conn
		c, err = (&net.Dialer{Timeout: patience}).Dial(network, address)
		if err != nil {
			return
		}
		defer c.Close()
		backend, source, err = ask(c)
	})
	return backend, source, err
}

func ask(c net.Conn) (backend, source string, err error) {
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return "", "", err
	}
	if strings.HasPrefix(c.LocalAddr().Network(), "udp") {
		if _, err := c.Write([]byte("?")); err != nil {
			return "", "", err
		}
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return "", "", err
	}
	backend, source, _ = strings.Cut(strings.TrimSpace(line), " ")
	return backend, source, nil
}

// node is a proxy that runs in the world's node.
type nodeProxy struct {
	w        *world
	services *source[*corev1.Service]
	slices   *source[*discoveryv1.EndpointSlice]
	pods     *source[*corev1.Pod]
	// applied gets a token after each transaction and what follows it.
	applied chan struct{}
	stop    func()
	first   map[string]*discoveryv1.EndpointSlice
}

// start runs a proxy; before is called with it before the first state is complete.
func (w *world) start(before func(*nodeProxy)) *nodeProxy {
	n := &nodeProxy{
		w: w, services: &source[*corev1.Service]{}, slices: &source[*discoveryv1.EndpointSlice]{}, pods: &source[*corev1.Pod]{},
		applied: make(chan struct{}, 100), first: map[string]*discoveryv1.EndpointSlice{},
	}
	p, err := New(Config{
		NodeName: "n1", NodeIPs: []netip.Addr{netip.MustParseAddr(nodeIP)}, Bridge: "pods",
		ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}, ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")},
		NodeLocal: []netip.Addr{netip.MustParseAddr("10.96.0.10")},
		Services:  n.services, EndpointSlices: n.slices, Pods: n.pods,
		Synced: func(context.Context) error { return nil }, Logger: slog.New(slog.NewTextHandler(w.t.Output(), nil)),
	})
	w.must(err)
	p.forget = func(f flowFilter) (uint, error) {
		deleted, err := forgetFlows(f)
		n.applied <- struct{}{}
		return deleted, err
	}
	if before != nil {
		before(n)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.inside(w.node, func() {
			if err := p.Run(ctx); err != nil {
				w.t.Errorf("Run: %v", err)
			}
		})
	}()
	n.stop = func() { cancel(); <-done }
	w.t.Cleanup(n.stop)
	n.wait()
	return n
}

func (n *nodeProxy) wait() {
	n.w.t.Helper()
	select {
	case <-n.applied:
	case <-time.After(patience):
		n.w.t.Fatal("no transaction")
	}
}

// set replaces the endpoints of a Service and waits until the kernel has it.
func (n *nodeProxy) set(svc string, s *discoveryv1.EndpointSlice) {
	n.w.t.Helper()
	n.slices.change(n.first[svc], s)
	n.first[svc] = s
	n.wait()
}

func (w *world) routeTo(h *netlink.Handle, to, gateway string) {
	_, dst, err := net.ParseCIDR(to)
	w.must(err)
	w.must(h.RouteAdd(&netlink.Route{Dst: dst, Gw: net.ParseIP(gateway)}))
}

func newNFT(t testing.TB) knftables.Interface {
	nft, err := knftables.New(knftables.IPv4Family, tableName)
	if err != nil {
		t.Fatal(err)
	}
	return nft
}
