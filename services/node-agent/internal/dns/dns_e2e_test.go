//go:build e2e

package dns

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"dhow.dev/pkg/hosts"
)

const patience = 30 * time.Second

// inside runs f on a thread of a host's network namespace and waits for it.
func inside(host hosts.Host, f func() error) error {
	done := make(chan error, 1)
	go func() {
		// Never unlocked: the thread ends with the goroutine.
		runtime.LockOSThread()
		ns, err := netns.GetFromPath(host.NetNS)
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

// TestOnANode runs the server in a node's network namespace, on its interface and port 53, twice as an agent that restarts, and asks it
// from the node and from a neighbour.
func TestOnANode(t *testing.T) {
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	subnet, err := hosts.FreeSubnet(netip.MustParsePrefix("198.18.0.0/16"), 28)
	must(err)
	network, err := hosts.New(hosts.Config{Name: fmt.Sprintf("dns%d", os.Getpid()), Subnet: subnet})
	must(err)
	t.Cleanup(func() { must(network.Down()) })
	must(network.Up())
	var nodes []hosts.Host
	for i, name := range []string{"n1", "n2"} {
		address, err := network.Address(i + 1)
		must(err)
		host, err := network.Add(name, address)
		must(err)
		nodes = append(nodes, host)
	}
	// The neighbour stands for a pod: something whose packets to the cluster's DNS address come in through an interface.
	must(inside(nodes[1], func() error {
		return netlink.RouteAdd(&netlink.Route{Dst: netlink.NewIPNet([]byte{10, 96, 0, 10}), Gw: nodes[0].Address.AsSlice()})
	}))
	for run := range 2 {
		f := newFixture(t, "10.96.0.10", 0)
		f.populate()
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- inside(nodes[0], func() error { return f.Run(ctx) }) }()
		select {
		case <-f.Ready():
		case err := <-done:
			cancel()
			t.Fatalf("run %d: %v", run, err)
		case <-time.After(patience):
			cancel()
			t.Fatalf("run %d is not ready", run)
		}
		for _, host := range nodes {
			for _, protocol := range []string{"udp", "tcp"} {
				err := inside(host, func() error {
					reply, _, err := (&dns.Client{Net: protocol, Timeout: patience}).Exchange(ask("web.default.svc.cluster.local.", "A"), "10.96.0.10:53")
					if err == nil && len(text(reply.Answer)) != 1 {
						err = fmt.Errorf("answer %v", reply)
					}
					return err
				})
				if err != nil {
					t.Errorf("run %d: %s from %s: %v", run, protocol, host.Name, err)
				}
			}
		}
		cancel()
		must(<-done)
	}
}
