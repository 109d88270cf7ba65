package routes

import (
	"context"
	"log/slog"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"sigs.k8s.io/knftables"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/informer"
)

var _ Source = (*informer.Store[*corev1.Node])(nil)

type source struct {
	handler func(old, new *corev1.Node, trace *informer.Trace)
}

func (s *source) OnChangeTraced(f func(old, new *corev1.Node, trace *informer.Trace)) { s.handler = f }

func node(name, podCIDR string, addresses ...string) *corev1.Node {
	var list []*corev1.NodeAddress
	for _, a := range addresses {
		list = append(list, corev1.NodeAddress_builder{Type: proto.String("InternalIP"), Address: proto.String(a)}.Build())
	}
	list = append(list, corev1.NodeAddress_builder{Type: proto.String("Hostname"), Address: proto.String(name)}.Build())
	n := corev1.Node_builder{
		Metadata: metav1.ObjectMeta_builder{Name: proto.String(name)}.Build(),
		Spec:     corev1.NodeSpec_builder{}.Build(),
		Status:   corev1.NodeStatus_builder{Addresses: list}.Build(),
	}.Build()
	if podCIDR != "" {
		n.GetSpec().SetPodCidrs([]string{podCIDR})
	}
	return n
}

func newRouter(t *testing.T) (*Router, *source) {
	t.Helper()
	nodes := &source{}
	r, err := New(Config{
		NodeName: "n1", ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}, Nodes: nodes,
		Synced: func(context.Context) error { return nil }, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	return r, nodes
}

func TestWantedRoutes(t *testing.T) {
	for name, test := range map[string]struct {
		nodes     []*corev1.Node
		routes    map[string]string
		addresses string
	}{
		"the others' networks through their first address": {
			nodes:     []*corev1.Node{node("n1", "10.244.1.0/24", "192.168.0.1"), node("n2", "10.244.2.0/24", "fd00::2", "192.168.0.2", "192.168.9.2")},
			routes:    map[string]string{"10.244.2.0/24": "192.168.0.2"},
			addresses: "192.168.0.1 192.168.0.2 192.168.9.2",
		},
		"nodes without network or address": {
			nodes:     []*corev1.Node{node("n1", "10.244.1.0/24", "192.168.0.1"), node("n2", "", "192.168.0.2"), node("n3", "10.244.3.0/24")},
			routes:    map[string]string{},
			addresses: "192.168.0.1 192.168.0.2",
		},
		"a network claimed twice": {
			nodes:     []*corev1.Node{node("n1", "10.244.1.0/24", "192.168.0.1"), node("n3", "10.244.2.0/24", "192.168.0.3"), node("n2", "10.244.2.0/24", "192.168.0.2"), node("n4", "10.244.1.0/24", "192.168.0.4")},
			routes:    map[string]string{"10.244.2.0/24": "192.168.0.2"},
			addresses: "192.168.0.1 192.168.0.2 192.168.0.3 192.168.0.4",
		},
	} {
		t.Run(name, func(t *testing.T) {
			r, nodes := newRouter(t)
			for _, n := range test.nodes {
				nodes.handler(nil, n, nil)
			}
			routes, addresses := r.wanted()
			got := map[string]string{}
			for network, via := range routes {
				got[network.String()] = via.String()
			}
			if diff := cmp.Diff(test.routes, got); diff != "" {
				t.Errorf("routes (-want +got):\n%s", diff)
			}
			texts := make([]string, len(addresses))
			for i, a := range addresses {
				texts[i] = a.String()
			}
			if joined := strings.Join(texts, " "); joined != test.addresses {
				t.Errorf("addresses %s, want %s", joined, test.addresses)
			}
		})
	}
}

func TestOnlyRelevantChangesWake(t *testing.T) {
	r, nodes := newRouter(t)
	woke := func() bool {
		select {
		case <-r.notify:
			return true
		default:
			return false
		}
	}
	first := node("n2", "10.244.2.0/24", "192.168.0.2")
	nodes.handler(nil, first, nil)
	if !woke() {
		t.Error("a new node does not wake")
	}
	heartbeat := node("n2", "10.244.2.0/24", "192.168.0.2")
	heartbeat.GetMetadata().SetLabels(map[string]string{"a": "b"})
	nodes.handler(first, heartbeat, nil)
	if woke() {
		t.Error("a change that moves no route wakes")
	}
	nodes.handler(heartbeat, nil, nil)
	if !woke() {
		t.Error("a deleted node does not wake")
	}
	if routes, _ := r.wanted(); len(routes) != 0 {
		t.Errorf("routes of a deleted node: %v", routes)
	}
}

func TestEgressTable(t *testing.T) {
	table := knftables.NewFake(knftables.IPv4Family, egressTable)
	for _, nodes := range [][]netip.Addr{{netip.MustParseAddr("192.168.0.1")}, {netip.MustParseAddr("192.168.0.2")}} {
		tx := table.NewTransaction()
		writeEgress(tx, []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}, nodes)
		if err := table.Run(t.Context(), tx); err != nil {
			t.Fatal(err)
		}
	}
	dump := table.Dump()
	if strings.Count(dump, "masquerade fully-random") != 1 || strings.Contains(dump, "192.168.0.1") || !strings.Contains(dump, "{ 192.168.0.2 }") {
		t.Errorf("table:\n%s", dump)
	}
}

func TestForwardingIsAcceptedOnce(t *testing.T) {
	filter := knftables.NewFake(knftables.IPv4Family, "filter")
	cidrs := []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}
	if err := acceptForwarding(t.Context(), filter, cidrs); err != nil {
		t.Fatalf("without the table: %v", err)
	}
	tx := filter.NewTransaction()
	tx.Add(&knftables.Table{})
	tx.Add(&knftables.Chain{Name: "FORWARD"})
	tx.Add(&knftables.Rule{Chain: "FORWARD", Rule: "drop"})
	if err := filter.Run(t.Context(), tx); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := acceptForwarding(t.Context(), filter, cidrs); err != nil {
			t.Fatal(err)
		}
	}
	rules, err := filter.ListRules(t.Context(), "FORWARD")
	if err != nil || len(rules) != 3 {
		t.Errorf("%d rules, %v, want two and the one that was there:\n%s", len(rules), err, filter.Dump())
	}
}
