//go:build e2e

package proxy

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netns"
	"google.golang.org/protobuf/proto"
	"sigs.k8s.io/knftables"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	discoveryv1 "dhow.dev/gen/go/dhow/discovery/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/object"
)

var both = []*discoveryv1.EndpointPort{endpointPort("http", "TCP", 8080), endpointPort("dns", "UDP", 8080)}

const (
	pod1, pod2, pod3 = "10.244.1.2", "10.244.1.3", "10.244.1.4"
	serviceIP        = "10.96.0.50"
)

func web(edit func(*corev1.ServiceSpec)) *corev1.Service {
	return service("web", serviceIP, func(s *corev1.ServiceSpec) {
		s.SetType("NodePort")
		if edit != nil {
			edit(s)
		}
	}, port("http", "TCP", 80, 30080), port("dns", "UDP", 53, 30053))
}

func webSlice(ips ...string) *discoveryv1.EndpointSlice {
	var backends []backend
	for _, ip := range ips {
		backends = append(backends, backend{ip: ip, node: "n1"})
	}
	return slice("web", "web-1", both, backends...)
}

func TestForwarding(t *testing.T) {
	w := newWorld(t)
	w.serve(pod2)
	w.serve(pod3)
	n := w.start(nil)
	n.services.change(nil, web(nil))
	n.wait()

	refused := func(t *testing.T, from string, network, address string) {
		t.Helper()
		ns := w.outside
		if from != "" {
			ns = w.pods[from]
		}
		if _, _, err := w.call(ns, network, address); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s %s: %v, want connection refused", network, address, err)
		}
	}
	t.Run("without endpoints connections are refused", func(t *testing.T) {
		refused(t, pod1, "tcp", serviceIP+":80")
		refused(t, pod1, "udp", serviceIP+":53")
		refused(t, "", "tcp", nodeIP+":30080")
	})
	t.Run("ports and addresses of no Service are refused", func(t *testing.T) {
		refused(t, pod1, "tcp", serviceIP+":81")
		refused(t, pod1, "tcp", "10.96.3.3:80")
	})

	t.Run("an address that the node serves itself", func(t *testing.T) {
		w.address(w.handle(w.node), "lo", "10.96.0.10/32")
		w.inside(w.node, func() { w.listen("10.96.0.10", nodeIP) })
		n.services.change(nil, service("kube-dns", "10.96.0.10", nil, port("dns", "UDP", 8080, 0), port("dns-tcp", "TCP", 8080, 0)))
		n.wait()
		for _, network := range []string{"tcp", "udp"} {
			for from, ns := range map[string]netns.NsHandle{"a pod": w.pods[pod1], "the node": w.node} {
				if who, _, err := w.call(ns, network, "10.96.0.10:8080"); err != nil || who != nodeIP {
					t.Errorf("%s from %s: reached %q, %v", network, from, who, err)
				}
			}
		}
	})

	n.set("web", webSlice(pod2, pod3))
	t.Run("pods reach all endpoints and keep their address", func(t *testing.T) {
		for network, p := range map[string]string{"tcp": "80", "udp": "53"} {
			seen := map[string]bool{}
			// 64 fair draws miss one of two endpoints once in 2^63 runs.
			for range 64 {
				backend, source, err := w.call(w.pods[pod1], network, net.JoinHostPort(serviceIP, p))
				if err != nil {
					t.Fatal(err)
				}
				if source != pod1 {
					t.Fatalf("%s: backend saw %s, want the client %s", network, source, pod1)
				}
				seen[backend] = true
			}
			if !seen[pod2] || !seen[pod3] || len(seen) != 2 {
				t.Errorf("%s: reached %v", network, seen)
			}
		}
	})
	t.Run("the node itself reaches the cluster IP", func(t *testing.T) {
		if _, _, err := w.call(w.node, "tcp", serviceIP+":80"); err != nil {
			t.Error(err)
		}
	})
	t.Run("node port from outside, from the node, from a pod", func(t *testing.T) {
		for network, p := range map[string]string{"tcp": "30080", "udp": "30053"} {
			_, source, err := w.call(w.outside, network, net.JoinHostPort(nodeIP, p))
			if err != nil || source != gatewayIP {
				t.Errorf("%s from outside: source %s (want masqueraded %s), %v", network, source, gatewayIP, err)
			}
		}
		if _, _, err := w.call(w.node, "tcp", nodeIP+":30080"); err != nil {
			t.Errorf("from the node: %v", err)
		}
		if _, _, err := w.call(w.pods[pod1], "tcp", nodeIP+":30080"); err != nil {
			t.Errorf("from a pod: %v", err)
		}
	})

	n.set("web", webSlice(pod2))
	t.Run("a removed endpoint gets no connection", func(t *testing.T) {
		for range 32 {
			if backend, _, err := w.call(w.pods[pod1], "tcp", serviceIP+":80"); err != nil || backend != pod2 {
				t.Fatalf("reached %q, %v", backend, err)
			}
		}
	})
	t.Run("a pod reaches itself through its Service", func(t *testing.T) {
		backend, source, err := w.call(w.pods[pod2], "tcp", serviceIP+":80")
		if err != nil || backend != pod2 || source != gatewayIP {
			t.Errorf("reached %q from %q, %v", backend, source, err)
		}
	})
	t.Run("a UDP flow moves when its endpoint goes", func(t *testing.T) {
		w.inside(w.pods[pod1], func() {
			// One socket: the same source port, so connection tracking takes all its packets for one flow.
			c, err := net.Dial("udp", serviceIP+":53")
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			for _, ip := range []string{pod2, pod3, pod2} {
				n.set("web", webSlice(ip))
				if backend, _, err := ask(c); err != nil || backend != ip {
					t.Errorf("answer from %q, %v; want %s", backend, err, ip)
				}
			}
		})
	})
	t.Run("a UDP flow that began without endpoints finds one", func(t *testing.T) {
		w.inside(w.outside, func() {
			c, err := net.Dial("udp", nodeIP+":30053")
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			n.set("web", webSlice())
			if _, _, err := ask(c); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("without endpoints: %v, want connection refused", err)
			}
			n.set("web", webSlice(pod3))
			if backend, _, err := ask(c); err != nil || backend != pod3 {
				t.Errorf("answer from %q, %v", backend, err)
			}
		})
	})
	t.Run("policy Local keeps the source of outside clients", func(t *testing.T) {
		n.services.change(web(nil), web(func(s *corev1.ServiceSpec) { s.SetExternalTrafficPolicy("Local") }))
		n.wait()
		if backend, source, err := w.call(w.outside, "tcp", nodeIP+":30080"); err != nil || source != outsideIP {
			t.Errorf("reached %q from %q, %v", backend, source, err)
		}
	})
	t.Run("an external address", func(t *testing.T) {
		// The outside world routes it to the node.
		h := w.handle(w.outside)
		w.routeTo(h, "198.51.100.7/32", nodeIP)
		n.services.change(web(nil), web(func(s *corev1.ServiceSpec) { s.SetExternalIps([]string{"198.51.100.7"}) }))
		n.wait()
		if backend, _, err := w.call(w.outside, "tcp", "198.51.100.7:80"); err != nil || backend != pod3 {
			t.Errorf("reached %q, %v", backend, err)
		}
	})
	t.Run("a load balancer's source ranges", func(t *testing.T) {
		const address = "198.51.100.8"
		w.routeTo(w.handle(w.outside), address+"/32", nodeIP)
		balanced := func(ranges string) *corev1.Service {
			s := web(func(s *corev1.ServiceSpec) {
				s.SetType("LoadBalancer")
				s.SetLoadBalancerSourceRanges([]string{ranges})
				s.SetPorts(append(s.GetPorts(), port("sctp", "SCTP", 80, 30081)))
			})
			s.SetStatus(corev1.ServiceStatus_builder{LoadBalancer: corev1.LoadBalancerStatus_builder{
				Ingress: []*corev1.LoadBalancerIngress{corev1.LoadBalancerIngress_builder{Ip: proto.String(address)}.Build()},
			}.Build()}.Build())
			return s
		}
		n.services.change(web(nil), balanced("203.0.113.0/24"))
		n.wait()
		w.inside(w.outside, func() {
			c, err := net.Dial("udp", address+":53")
			w.must(err)
			defer c.Close()
			_, err = c.Write([]byte("dropped"))
			w.must(err)
			before := w.packets.Load()
			n.services.change(balanced("203.0.113.0/24"), balanced("192.168.77.0/24"))
			n.wait()
			if _, _, err := ask(c); err != nil {
				t.Errorf("from a permitted source: %v", err)
			}
			// Packets of one flow keep their order: the first would have been counted before the answer to the second.
			if got := w.packets.Load() - before; got != 1 {
				t.Errorf("backends got %d packets, want the permitted one", got)
			}
		})
	})
	t.Run("a deleted Service leaves nothing", func(t *testing.T) {
		n.services.change(web(nil), nil)
		n.wait()
		refused(t, pod1, "tcp", serviceIP+":80")
		w.inside(w.node, func() {
			out, err := exec.Command("nft", "list", "table", "ip", tableName).CombinedOutput()
			if err != nil || strings.Contains(string(out), "default/web") {
				t.Errorf("table (%v):\n%s", err, out)
			}
		})
	})
}

func TestAffinitySurvivesOtherEndpointsAndRestart(t *testing.T) {
	w := newWorld(t)
	for _, ip := range []string{pod1, pod2, pod3} {
		w.serve(ip)
	}
	sticky := web(func(s *corev1.ServiceSpec) { s.SetSessionAffinity("ClientIP") })
	setUp := func(ips ...string) func(*nodeProxy) {
		return func(n *nodeProxy) {
			n.services.change(nil, sticky)
			n.first["web"] = webSlice(ips...)
			n.slices.change(nil, n.first["web"])
		}
	}
	n := w.start(setUp(pod1, pod2, pod3))
	stays := func(want string, calls int) string {
		t.Helper()
		for range calls {
			got, _, err := w.call(w.outside, "tcp", nodeIP+":30080")
			if err != nil {
				t.Fatal(err)
			}
			if want == "" {
				want = got
			}
			if got != want {
				t.Fatalf("reached %s, want %s", got, want)
			}
		}
		return want
	}
	first := stays("", 16)
	var others []string
	for _, ip := range []string{pod1, pod2, pod3} {
		if ip != first {
			others = append(others, ip)
		}
	}
	n.set("web", webSlice(first, others[0]))
	stays(first, 8)
	n.stop()
	n = w.start(setUp(first, others[0]))
	stays(first, 16)
	n.set("web", webSlice(others[0]))
	stays(others[0], 8)
}

func TestHostPort(t *testing.T) {
	w := newWorld(t)
	w.serve(pod2)
	n := w.start(nil)
	pod := corev1.Pod_builder{
		Metadata: metav1.ObjectMeta_builder{Namespace: proto.String("default"), Name: proto.String("p")}.Build(),
		Spec: corev1.PodSpec_builder{Containers: []*corev1.Container{corev1.Container_builder{Ports: []*corev1.ContainerPort{
			corev1.ContainerPort_builder{HostPort: proto.Int32(8888), ContainerPort: proto.Int32(8080)}.Build(),
		}}.Build()}}.Build(),
		Status: corev1.PodStatus_builder{PodIp: proto.String(pod2)}.Build(),
	}.Build()
	n.pods.change(nil, pod)
	n.wait()
	if backend, source, err := w.call(w.outside, "tcp", nodeIP+":8888"); err != nil || backend != pod2 || source != outsideIP {
		t.Errorf("from outside: reached %q from %q, %v", backend, source, err)
	}
	if backend, _, err := w.call(w.pods[pod2], "tcp", nodeIP+":8888"); err != nil || backend != pod2 {
		t.Errorf("from itself: reached %q, %v", backend, err)
	}
	n.pods.change(pod, nil)
	n.wait()
	if _, _, err := w.call(w.outside, "tcp", nodeIP+":8888"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("after deletion: %v, want connection refused", err)
	}
}

// TestWithoutBridgeFilter shows that Services work between pods of one bridge when bridged packets do not pass netfilter.
func TestWithoutBridgeFilter(t *testing.T) {
	w := newWorld(t)
	w.serve(pod2)
	n := w.start(func(n *nodeProxy) {
		n.services.change(nil, web(nil))
		n.slices.change(nil, webSlice(pod2))
	})
	n.stop()
	w.inside(w.node, func() {
		w.must(os.WriteFile(bridgeFilter, []byte("0"), 0))
		r := newRuleset(compiler{locality: locality{node: "n1"}, nodeIPs: []netip.Addr{netip.MustParseAddr(nodeIP)}, clusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}})
		r.unfilteredBridge = "pods"
		r.set("svc/default/web", r.service(webKey, web(nil), []*discoveryv1.EndpointSlice{webSlice(pod2)}), map[slot]bool{})
		nft := newNFT(t)
		tx := nft.NewTransaction()
		r.rebuild(tx, nil)
		w.must(nft.Run(t.Context(), tx))
	})
	if backend, source, err := w.call(w.pods[pod1], "tcp", serviceIP+":80"); err != nil || backend != pod2 || source != gatewayIP {
		t.Errorf("reached %q from %q, %v", backend, source, err)
	}
}

// TestFlushedRulesComeBack has another program remove all rules of the node.
func TestFlushedRulesComeBack(t *testing.T) {
	w := newWorld(t)
	w.serve(pod2)
	n := w.start(func(n *nodeProxy) {
		n.services.change(nil, web(nil))
		n.slices.change(nil, webSlice(pod2))
	})
	w.inside(w.node, func() { w.must(exec.Command("nft", "flush", "ruleset").Run()) })
	// A token may also be of a look at the table that found it complete.
	for {
		n.wait()
		if _, _, err := w.call(w.pods[pod1], "tcp", serviceIP+":80"); err == nil {
			break
		}
	}
}

// TestForeignTableIsReplaced starts on a table of the same name whose contents do not fit.
func TestForeignTableIsReplaced(t *testing.T) {
	w := newWorld(t)
	w.serve(pod2)
	w.inside(w.node, func() {
		out, err := exec.Command("nft", fmt.Sprintf("table ip %s { map %s { type ipv4_addr : verdict; }; }", tableName, mapServices)).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	})
	w.start(func(n *nodeProxy) {
		n.services.change(nil, web(nil))
		n.slices.change(nil, webSlice(pod2))
	})
	if _, _, err := w.call(w.pods[pod1], "tcp", serviceIP+":80"); err != nil {
		t.Error(err)
	}
}

// BenchmarkEndpointChange measures one transaction for one changed endpoint among 1,000 Services of 10 endpoints.
func BenchmarkEndpointChange(b *testing.B) {
	w := newWorld(b)
	c := compiler{locality: locality{node: "n1"}}
	plans := func(i, endpoints int) plan {
		var backends []backend
		for e := range endpoints {
			backends = append(backends, backend{ip: fmt.Sprintf("10.%d.%d.%d", e+1, i/250, i%250+1), node: "n2"})
		}
		name := fmt.Sprintf("s%d", i)
		return c.service(object.Key{Namespace: "default", Name: name}, service(name, fmt.Sprintf("10.96.%d.%d", i/250, i%250+20), nil, port("http", "TCP", 80, int32(30000+i))),
			[]*discoveryv1.EndpointSlice{slice(name, "s", both, backends...)})
	}
	w.inside(w.node, func() {
		r, nft := newRuleset(c), newNFT(b)
		for i := range 1000 {
			r.set(owner(fmt.Sprintf("svc/default/s%d", i)), plans(i, 10), map[slot]bool{})
		}
		tx := nft.NewTransaction()
		r.rebuild(tx, nil)
		w.must(nft.Run(b.Context(), tx))
		i := 0
		for b.Loop() {
			i++
			touched := map[slot]bool{}
			o := owner(fmt.Sprintf("svc/default/s%d", i%1000))
			old := map[owner]plan{o: r.set(o, plans(i%1000, 9+(i/1000)%2), touched)}
			tx := nft.NewTransaction()
			r.change(tx, old, touched)
			w.must(nft.Run(b.Context(), tx))
		}
	})
}

// BenchmarkRebuild measures the whole table of the same size, as at the start of an agent.
func BenchmarkRebuild(b *testing.B) {
	w := newWorld(b)
	w.inside(w.node, func() {
		c := compiler{locality: locality{node: "n1"}}
		r, nft := newRuleset(c), newNFT(b)
		for i := range 1000 {
			var backends []backend
			for e := range 10 {
				backends = append(backends, backend{ip: fmt.Sprintf("10.%d.%d.%d", e+1, i/250, i%250+1), node: "n2"})
			}
			name := fmt.Sprintf("s%d", i)
			svc := service(name, fmt.Sprintf("10.96.%d.%d", i/250, i%250+20), nil, port("http", "TCP", 80, 0))
			r.set(owner("svc/default/"+name), c.service(object.Key{Namespace: "default", Name: name}, svc, []*discoveryv1.EndpointSlice{slice(name, "s", both, backends...)}), map[slot]bool{})
		}
		for b.Loop() {
			existing, err := nft.ListAll(b.Context())
			if err != nil && !knftables.IsNotFound(err) {
				b.Fatal(err)
			}
			tx := nft.NewTransaction()
			r.rebuild(tx, existing)
			w.must(nft.Run(b.Context(), tx))
		}
	})
}
