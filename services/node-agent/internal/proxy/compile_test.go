package proxy

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	discoveryv1 "dhow.dev/gen/go/dhow/discovery/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
)

var http8080 = []*discoveryv1.EndpointPort{endpointPort("http", "TCP", 8080)}

func nodePortWith(external, internal string) func(*corev1.ServiceSpec) {
	return func(s *corev1.ServiceSpec) {
		s.SetType("NodePort")
		s.SetExternalTrafficPolicy(external)
		s.SetInternalTrafficPolicy(internal)
	}
}

func TestServicePlan(t *testing.T) {
	web := port("http", "TCP", 80, 30080)
	two := []backend{{ip: "10.244.1.2", node: "n1"}, {ip: "10.244.2.2", node: "n2"}}
	const both = "meta l4proto tcp dnat ip addr . port to numgen random mod 2 map { 0 : 10.244.1.2 . 8080 , 1 : 10.244.2.2 . 8080 }"
	const cluster, node = "10.96.0.5 . tcp . 80", "tcp . 30080"
	type elements = map[slot]string
	for name, test := range map[string]struct {
		svc      *corev1.Service
		backends []backend
		chains   map[string][]string
		elements elements
	}{
		"cluster IP and node port": {
			svc: service("web", "10.96.0.5", nodePortWith("Cluster", "Cluster"), web), backends: two,
			chains: map[string][]string{
				"svc-default/web/tcp/http": {both},
				"ext-default/web/tcp/http": {"jump mark-for-masquerade", "goto svc-default/web/tcp/http"},
			},
			elements: elements{
				{mapServices, cluster}: "goto svc-default/web/tcp/http", {mapNodePorts, node}: "goto ext-default/web/tcp/http",
				{setHairpin, "10.244.1.2 . 10.244.1.2"}: "", {setClusterIPs, "10.96.0.5"}: "",
			},
		},
		"no endpoints are refused": {
			svc: service("web", "10.96.0.5", nodePortWith("Cluster", "Cluster"), web),
			elements: elements{
				{mapNoEndpoints, cluster}: "goto reject-service", {mapNoEndpointNodePorts, node}: "goto reject-service", {setClusterIPs, "10.96.0.5"}: "",
			},
		},
		"local policies with endpoints elsewhere drop": {
			svc: service("web", "10.96.0.5", nodePortWith("Local", "Local"), web), backends: two[1:],
			elements: elements{{mapNoEndpoints, cluster}: "drop", {mapNoEndpointNodePorts, node}: "drop", {setClusterIPs, "10.96.0.5"}: ""},
		},
		"external policy Local keeps the source": {
			svc: service("web", "10.96.0.5", nodePortWith("Local", "Cluster"), web), backends: two,
			chains: map[string][]string{
				"svc-default/web/tcp/http": {both},
				"loc-default/web/tcp/http": {"meta l4proto tcp dnat to 10.244.1.2:8080"},
				"ext-default/web/tcp/http": {
					"ip saddr { 10.244.0.0/16 } goto svc-default/web/tcp/http", "fib saddr type local jump mark-for-masquerade",
					"fib saddr type local goto svc-default/web/tcp/http", "goto loc-default/web/tcp/http",
				},
			},
			elements: elements{
				{mapServices, cluster}: "goto svc-default/web/tcp/http", {mapNodePorts, node}: "goto ext-default/web/tcp/http",
				{setHairpin, "10.244.1.2 . 10.244.1.2"}: "", {setClusterIPs, "10.96.0.5"}: "",
			},
		},
		"load balancer with source ranges, hostname mode and IPv6 left out": {
			svc: func() *corev1.Service {
				s := service("web", "10.96.0.5", func(s *corev1.ServiceSpec) {
					s.SetType("LoadBalancer")
					s.SetLoadBalancerSourceRanges([]string{"203.0.113.0/24"})
				}, port("http", "TCP", 80, 0))
				s.SetStatus(corev1.ServiceStatus_builder{LoadBalancer: corev1.LoadBalancerStatus_builder{Ingress: []*corev1.LoadBalancerIngress{
					corev1.LoadBalancerIngress_builder{Ip: proto.String("198.51.100.1")}.Build(),
					corev1.LoadBalancerIngress_builder{Ip: proto.String("198.51.100.2"), IpMode: proto.String("Proxy")}.Build(),
					corev1.LoadBalancerIngress_builder{Ip: proto.String("2001:db8::1")}.Build(),
				}}.Build()}.Build())
				return s
			}(), backends: two[1:],
			chains: map[string][]string{
				"svc-default/web/tcp/http": {"meta l4proto tcp dnat to 10.244.2.2:8080"},
				"ext-default/web/tcp/http": {"jump mark-for-masquerade", "goto svc-default/web/tcp/http"},
				"fw-default/web/tcp/http":  {"ip saddr != { 203.0.113.0/24 } drop", "goto ext-default/web/tcp/http"},
			},
			elements: elements{
				{mapServices, cluster}: "goto svc-default/web/tcp/http", {mapServices, "198.51.100.1 . tcp . 80"}: "goto fw-default/web/tcp/http",
				{setClusterIPs, "10.96.0.5"}: "",
			},
		},
		"session affinity": {
			svc: service("web", "10.96.0.5", func(s *corev1.ServiceSpec) { s.SetSessionAffinity("ClientIP") }, web), backends: two[1:],
			chains: map[string][]string{
				"svc-default/web/tcp/http": {
					"ip saddr @aff-10800/default/web/tcp/http/10.244.2.2/8080 goto ep-default/web/tcp/http/10.244.2.2/8080",
					"numgen random mod 1 vmap { 0 : goto ep-default/web/tcp/http/10.244.2.2/8080 }",
				},
				"ep-default/web/tcp/http/10.244.2.2/8080": {
					"update @aff-10800/default/web/tcp/http/10.244.2.2/8080 { ip saddr }", "meta l4proto tcp dnat to 10.244.2.2:8080",
				},
				"ext-default/web/tcp/http": {"jump mark-for-masquerade", "goto svc-default/web/tcp/http"},
			},
			elements: elements{
				{mapServices, cluster}: "goto svc-default/web/tcp/http", {mapNodePorts, node}: "goto ext-default/web/tcp/http", {setClusterIPs, "10.96.0.5"}: "",
			},
		},
		"an address that the node serves itself": {svc: service("web", "10.96.0.10", nil, port("http", "TCP", 80, 0)), backends: two},
		"headless":                               {svc: service("web", "None", nil, web), backends: two},
		"another proxy's": {svc: func() *corev1.Service {
			s := service("web", "10.96.0.5", nil, web)
			s.GetMetadata().SetLabels(map[string]string{labelProxyName: "other"})
			return s
		}(), backends: two},
		"deleted": {backends: two},
	} {
		t.Run(name, func(t *testing.T) {
			c := testCompiler()
			p := c.service(webKey, test.svc, []*discoveryv1.EndpointSlice{slice("web", "web-1", http8080, test.backends...)})
			if test.chains == nil {
				test.chains = map[string][]string{}
			}
			if test.elements == nil {
				test.elements = elements{}
			}
			if diff := cmp.Diff(test.chains, p.chains); diff != "" {
				t.Errorf("chains (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(test.elements, p.elements, cmp.AllowUnexported(slot{})); diff != "" {
				t.Errorf("elements (-want +got):\n%s", diff)
			}
		})
	}
}

func TestEndpointChoice(t *testing.T) {
	ready := func(ip string) backend { return backend{ip: ip, node: "n2"} }
	terminating := func(ip string, serving bool) backend {
		return backend{ip: ip, node: "n2", notReady: true, serving: serving, terminated: true}
	}
	zoned := func(ip, zone string) backend { return backend{ip: ip, node: "n2", zone: zone} }
	for name, test := range map[string]struct {
		slices [][]backend
		want   []string
	}{
		"ready ones only":                          {[][]backend{{ready("10.0.0.1"), {ip: "10.0.0.2", notReady: true}, terminating("10.0.0.3", true)}}, []string{"10.0.0.1"}},
		"serving while terminating when none is":   {[][]backend{{{ip: "10.0.0.2", notReady: true}, terminating("10.0.0.3", true), terminating("10.0.0.4", false)}}, []string{"10.0.0.3"}},
		"in two slices, ready in one":              {[][]backend{{ready("10.0.0.1")}, {{ip: "10.0.0.1", notReady: true}}}, []string{"10.0.0.1"}},
		"unsafe addresses":                         {[][]backend{{ready("127.0.0.1"), ready("169.254.169.254"), ready("224.0.0.1"), ready("0.0.0.0"), ready("::1"), ready("x")}}, nil},
		"hints for this zone":                      {[][]backend{{zoned("10.0.0.1", "z1"), zoned("10.0.0.2", "z2")}}, []string{"10.0.0.1"}},
		"hints on some only do not count":          {[][]backend{{zoned("10.0.0.1", "z1"), ready("10.0.0.2")}}, []string{"10.0.0.1", "10.0.0.2"}},
		"hints for other zones only do not count":  {[][]backend{{zoned("10.0.0.1", "z3"), zoned("10.0.0.2", "z2")}}, []string{"10.0.0.1", "10.0.0.2"}},
		"hints do not count for terminating ones":  {[][]backend{{{ip: "10.0.0.3", zone: "z2", notReady: true, serving: true, terminated: true}}}, []string{"10.0.0.3"}},
		"in the order of addresses, not of slices": {[][]backend{{ready("10.0.0.9")}, {ready("10.0.0.10"), ready("10.0.0.2")}}, []string{"10.0.0.2", "10.0.0.9", "10.0.0.10"}},
	} {
		t.Run(name, func(t *testing.T) {
			var all []*discoveryv1.EndpointSlice
			for _, backends := range test.slices {
				all = append(all, slice("web", "s", http8080, backends...))
			}
			var got []string
			for _, e := range near(usable(endpointsOf(port("http", "TCP", 80, 0), all, locality{node: "n1", zone: "z1"}))) {
				got = append(got, e.addr.Addr().String())
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
}

func TestAbsentConditionsMeanReady(t *testing.T) {
	s := slice("web", "s", http8080, backend{ip: "10.0.0.1"})
	s.GetEndpoints()[0].ClearConditions()
	e := endpointsOf(port("http", "TCP", 80, 0), []*discoveryv1.EndpointSlice{s}, locality{})
	if len(e) != 1 || !e[0].ready || !e[0].serving || e[0].terminating {
		t.Errorf("got %+v, want one ready endpoint", e)
	}
}

func TestPortsMatchByNameAndProtocol(t *testing.T) {
	s := slice("web", "s", []*discoveryv1.EndpointPort{endpointPort("dns", "UDP", 53), endpointPort("dns-tcp", "TCP", 5353)}, backend{ip: "10.0.0.1"})
	for _, test := range []struct {
		port *corev1.ServicePort
		want string
	}{
		{port("dns", "UDP", 1, 0), "10.0.0.1:53"}, {port("dns-tcp", "TCP", 1, 0), "10.0.0.1:5353"}, {port("dns", "TCP", 1, 0), ""},
	} {
		got := ""
		for _, e := range endpointsOf(test.port, []*discoveryv1.EndpointSlice{s}, locality{}) {
			got += e.addr.String()
		}
		if got != test.want {
			t.Errorf("port %s/%s: got %q, want %q", test.port.GetName(), test.port.GetProtocol(), got, test.want)
		}
	}
}

func TestHostPorts(t *testing.T) {
	pod := corev1.Pod_builder{
		Metadata: metav1.ObjectMeta_builder{Namespace: proto.String("default"), Name: proto.String("p")}.Build(),
		Spec: corev1.PodSpec_builder{Containers: []*corev1.Container{corev1.Container_builder{Ports: []*corev1.ContainerPort{
			corev1.ContainerPort_builder{HostPort: proto.Int32(8080), ContainerPort: proto.Int32(80)}.Build(),
			corev1.ContainerPort_builder{HostPort: proto.Int32(53), ContainerPort: proto.Int32(5353), Protocol: proto.String("UDP"), HostIp: proto.String("192.168.0.9")}.Build(),
			corev1.ContainerPort_builder{ContainerPort: proto.Int32(81)}.Build(),
		}}.Build()}}.Build(),
		Status: corev1.PodStatus_builder{PodIp: proto.String("10.244.1.9"), Phase: proto.String("Running")}.Build(),
	}.Build()
	c := testCompiler()
	got := c.pod(pod)
	want := map[slot]string{
		{mapHostPorts, "tcp . 8080"}:               "10.244.1.9 . 80",
		{mapHostIPPorts, "192.168.0.9 . udp . 53"}: "10.244.1.9 . 5353",
		{setHairpin, "10.244.1.9 . 10.244.1.9"}:    "",
	}
	if diff := cmp.Diff(want, got.elements, cmp.AllowUnexported(slot{})); diff != "" {
		t.Errorf("elements (-want +got):\n%s", diff)
	}
	if fronts := slices.Collect(maps.Keys(got.udp)); len(fronts) != 1 || fronts[0] != netip.MustParseAddrPort("192.168.0.9:53") {
		t.Errorf("tracked UDP addresses: %v", fronts)
	}
	pod.GetStatus().SetPhase("Succeeded")
	if got := c.pod(pod); len(got.elements) != 0 {
		t.Errorf("a finished pod keeps its host ports: %v", got.elements)
	}
}

func TestNamesFit(t *testing.T) {
	long := strings.Repeat("a", 63)
	key := webKey
	key.Namespace, key.Name = long, long
	c := testCompiler()
	p := c.service(key, service(long, "10.96.0.5", func(s *corev1.ServiceSpec) { s.SetSessionAffinity("ClientIP") }, port(long, "SCTP", 80, 0)),
		[]*discoveryv1.EndpointSlice{slice(long, "s", []*discoveryv1.EndpointPort{endpointPort(long, "SCTP", 65535)}, backend{ip: "100.100.100.100", node: "n1"})})
	for name := range p.chains {
		if len(name) > 255 {
			t.Errorf("chain name of %d bytes", len(name))
		}
	}
	if len(p.sets) != 1 {
		t.Errorf("sets: %v", p.sets)
	}
}
