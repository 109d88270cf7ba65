package registry

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"pgregory.net/rapid"

	storev1 "dhow.dev/gen/go/dhow/store/v1"
	"dhow.dev/services/apiserver/internal/allocator"
	"dhow.dev/services/apiserver/internal/patch"
	"dhow.dev/services/apiserver/internal/registry/fakestore"
)

// network is what the allocators of a test share out. Each registry has its own allocators, as each API server does.
type network struct {
	services, pods string
	bits           int
	first, last    uint16
}

var wide = network{services: "10.96.0.0/24", pods: "10.244.0.0/16", bits: 24, first: 30000, last: 30099}

func (n network) allocators(t *testing.T, store *fakestore.Store) (map[schema.GroupResource]allocator.Allocator, *allocator.Services, *allocator.Nodes) {
	t.Helper()
	services, err := allocator.NewServices(allocator.ServicesConfig{Store: store, Range: netip.MustParsePrefix(n.services), FirstNodePort: n.first, LastNodePort: n.last})
	if err != nil {
		t.Fatal(err)
	}
	nodes, err := allocator.NewNodes(allocator.NodesConfig{Store: store, Pods: netip.MustParsePrefix(n.pods), NodeBits: n.bits})
	if err != nil {
		t.Fatal(err)
	}
	return map[schema.GroupResource]allocator.Allocator{{Resource: "services"}: services, {Resource: "nodes"}: nodes}, services, nodes
}

func (n network) cluster(t *testing.T, store *fakestore.Store) *cluster {
	t.Helper()
	allocators, _, _ := n.allocators(t, store)
	return clusterOn(t, store, allocators)
}

func service(name, spec string) string {
	return fmt.Sprintf(`{metadata: {name: %s}, spec: {ports: [{name: http, port: 80, protocol: TCP}]%s}}`, name, spec)
}

func (k *cluster) service(name string) *corev1.Service {
	return k.stored("svc", name).(*corev1.Service)
}

func TestClusterIPs(t *testing.T) {
	k := wide.cluster(t, fakestore.New())
	o, _ := k.create("svc", service("auto", ""))
	auto := o.(*corev1.Service)
	address, err := netip.ParseAddr(auto.Spec.ClusterIP)
	if err != nil || !netip.MustParsePrefix(wide.services).Contains(address) || !slices.Equal(auto.Spec.ClusterIPs, []string{auto.Spec.ClusterIP}) {
		t.Errorf("allocated %q, %q", auto.Spec.ClusterIP, auto.Spec.ClusterIPs)
	}
	if low := netip.MustParseAddr("10.96.0.16"); address.Less(low) {
		t.Errorf("%s is in the part that is kept for people", address)
	}
	if len(auto.Spec.IPFamilies) != 1 || auto.Spec.IPFamilies[0] != corev1.IPv4Protocol || *auto.Spec.IPFamilyPolicy != corev1.IPFamilyPolicySingleStack {
		t.Errorf("families %v %v", auto.Spec.IPFamilies, auto.Spec.IPFamilyPolicy)
	}
	k.create("svc", service("dns", `, clusterIP: 10.96.0.10`))
	if got := k.store.Keys("/claims/clusterips/"); len(got) != 2 {
		t.Errorf("claims %q", got)
	}
	for name, c := range map[string]struct{ spec, contains string }{
		"taken":       {`, clusterIP: 10.96.0.10`, `Service "new" is invalid: spec.clusterIPs: Invalid value: ["10.96.0.10"]: failed to allocate IP 10.96.0.10: provided IP is already allocated`},
		"outside":     {`, clusterIP: 10.97.0.1`, `failed to allocate IP 10.97.0.1: the provided IP (10.97.0.1) is not in the valid range. The range of valid IPs is 10.96.0.0/24`},
		"network":     {`, clusterIP: 10.96.0.0`, `is not in the valid range`},
		"broadcast":   {`, clusterIP: 10.96.0.255`, `is not in the valid range`},
		"no dual":     {`, ipFamilyPolicy: RequireDualStack`, `spec.ipFamilyPolicy: Invalid value: "RequireDualStack": this cluster is not configured for dual-stack services`},
		"no IPv6":     {`, ipFamilies: [IPv6]`, `spec.ipFamilies[0]: Invalid value: "IPv6": not configured on this cluster`},
		"in dry runs": {`, clusterIP: 10.96.0.10`, `provided IP is already allocated`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := k.Create(t.Context(), res("svc"), in(service("new", c.spec)), WriteOptions{DryRun: name == "in dry runs"})
			fails(t, err, apierrors.IsInvalid, c.contains)
		})
	}
	o, _ = k.create("svc", service("headless", `, clusterIP: None`))
	if s := o.(*corev1.Service); s.Spec.ClusterIP != "None" || !slices.Equal(s.Spec.ClusterIPs, []string{"None"}) {
		t.Errorf("headless: %q", s.Spec.ClusterIPs)
	}
	k.create("svc", `{metadata: {name: away}, spec: {type: ExternalName, externalName: example.com}}`)
	if got := k.store.Keys("/claims/clusterips/"); len(got) != 2 {
		t.Errorf("claims %q", got)
	}
	k.delete("svc", "dns", DeleteOptions{})
	k.create("svc", service("dns2", `, clusterIP: 10.96.0.10`))
}

func TestServiceUpdates(t *testing.T) {
	k := wide.cluster(t, fakestore.New())
	k.create("svc", service("a", `, type: NodePort`))
	first := k.service("a")
	port := first.Spec.Ports[0].NodePort
	if port < 30000 || port > 30099 {
		t.Fatalf("node port %d", port)
	}
	// A client that sends its own manifest again keeps what it was given.
	k.update("svc", service("a", `, type: NodePort, selector: {app: a}`), WriteOptions{})
	second := k.service("a")
	if second.Spec.ClusterIP != first.Spec.ClusterIP || second.Spec.Ports[0].NodePort != port {
		t.Errorf("after an update: %q %d", second.Spec.ClusterIP, second.Spec.Ports[0].NodePort)
	}
	k.patch("svc", "a", `spec: {type: ClusterIP}`, patch.Merge)
	if s := k.service("a"); s.Spec.Ports[0].NodePort != 0 || s.Spec.ClusterIP != first.Spec.ClusterIP || len(k.store.Keys("/claims/nodeports/")) != 0 {
		t.Errorf("to ClusterIP: %+v", s.Spec)
	}
	k.patch("svc", "a", `spec: {type: ExternalName, externalName: example.com}`, patch.Merge)
	if s := k.service("a"); s.Spec.ClusterIP != "" || len(k.store.Keys("/claims/")) != 1 { // the namespace's
		t.Errorf("to ExternalName: %+v, %q", s.Spec, k.store.Keys("/claims/"))
	}
	k.patch("svc", "a", `spec: {type: LoadBalancer, externalName: null, externalTrafficPolicy: Local}`, patch.Merge)
	if s := k.service("a"); s.Spec.ClusterIP == "" || s.Spec.Ports[0].NodePort == 0 || s.Spec.HealthCheckNodePort == 0 {
		t.Errorf("to LoadBalancer: %+v", s.Spec)
	}
	k.delete("svc", "a", DeleteOptions{})
	if got := k.store.Keys("/claims/"); len(got) != 1 {
		t.Errorf("left: %q", got)
	}
}

func TestNodePorts(t *testing.T) {
	k := wide.cluster(t, fakestore.New())
	o, _ := k.create("svc", `{metadata: {name: dns}, spec: {type: NodePort, ports: [{name: u, port: 53, protocol: UDP, nodePort: 30053}, {name: t, port: 53, protocol: TCP}]}}`)
	if s := o.(*corev1.Service); s.Spec.Ports[1].NodePort != 30053 {
		t.Errorf("the same port with both protocols got %d", s.Spec.Ports[1].NodePort)
	}
	for contains, ports := range map[string]string{
		"spec.ports[0].nodePort: Invalid value: 30053: provided port is already allocated":                                            `{port: 80, nodePort: 30053}`,
		"spec.ports[1].nodePort: Invalid value: 80: provided port is not in the valid range. The range of valid ports is 30000-30099": `{name: a, port: 80}, {name: b, port: 81, nodePort: 80}`,
	} {
		_, err := k.Create(t.Context(), res("svc"), in(`{metadata: {name: x}, spec: {type: NodePort, ports: [`+ports+`]}}`), WriteOptions{})
		fails(t, err, apierrors.IsInvalid, contains)
	}
	if got := k.store.Keys("/claims/nodeports/"); !slices.Equal(got, []string{"/claims/nodeports/30053"}) {
		t.Errorf("claims %q", got)
	}
}

func TestRangesFill(t *testing.T) {
	small := network{services: "10.96.0.0/29", pods: "10.244.0.0/22", bits: 24, first: 30000, last: 30001}
	store := fakestore.New()
	k, other := small.cluster(t, store), small.cluster(t, store)
	for i := range 6 {
		k.create("svc", service(fmt.Sprintf("s%d", i), ""))
	}
	_, err := k.Create(t.Context(), res("svc"), in(service("s6", "")), WriteOptions{})
	fails(t, err, apierrors.IsInvalid, "failed to allocate a serviceIP: range is full")
	// The other API server frees one; this one's memory is corrected.
	other.delete("svc", "s3", DeleteOptions{})
	k.create("svc", service("s6", ""))
	for i := range 4 {
		o, _ := k.create("node", fmt.Sprintf(`metadata: {name: n%d}`, i))
		if want := fmt.Sprintf("10.244.%d.0/24", i); o.(*corev1.Node).Spec.PodCIDR != want {
			t.Errorf("pod range %s, want %s", o.(*corev1.Node).Spec.PodCIDR, want)
		}
	}
	_, err = k.Create(t.Context(), res("node"), text(`metadata: {name: n4}`), WriteOptions{})
	fails(t, err, apierrors.IsInvalid, "all 4 ranges of /24 in 10.244.0.0/22 are taken")
	other.delete("node", "n1", DeleteOptions{})
	_, err = k.Create(t.Context(), res("node"), text(`{metadata: {name: n4}, spec: {podCIDR: 10.244.2.0/24}}`), WriteOptions{})
	fails(t, err, apierrors.IsInvalid, "provided range is already allocated")
	_, err = k.Create(t.Context(), res("node"), text(`{metadata: {name: n4}, spec: {podCIDR: 10.244.1.0/25}}`), WriteOptions{})
	fails(t, err, apierrors.IsInvalid, "must be a /24 of 10.244.0.0/22, or outside of it")
	k.create("node", `metadata: {name: n4}`)
	_, err = k.Update(t.Context(), res("node"), text(`{metadata: {name: n4}, spec: {podCIDR: 10.244.2.0/24}}`), WriteOptions{})
	fails(t, err, apierrors.IsInvalid, `node updates may not change podCIDR except from "" to valid`)
	o, _ := k.update("node", `{metadata: {name: n4, labels: {a: b}}}`, WriteOptions{})
	if o.(*corev1.Node).Spec.PodCIDR != "10.244.1.0/24" {
		t.Error("a node lost its range")
	}
}

// held checks that no two services hold the same address or port, and that claims are exactly what is held.
func (k *cluster) held(fatalf func(string, ...any)) {
	claims := map[string]string{}
	claim := func(key, name string) {
		if other, ok := claims[key]; ok && other != name {
			fatalf("%s is held by %s and %s", key, other, name)
		}
		claims[key] = name
	}
	for _, key := range k.store.Keys("/registry/core/services/") {
		svc := &corev1.Service{}
		if err := svc.Unmarshal(k.store.Entry(key).GetValue()); err != nil {
			fatalf("%v", err)
		}
		for _, ip := range svc.Spec.ClusterIPs {
			if ip != "None" {
				claim("/claims/clusterips/"+ip, svc.Name)
			}
		}
		for _, p := range svc.Spec.Ports {
			if p.NodePort != 0 {
				claim(fmt.Sprintf("/claims/nodeports/%d", p.NodePort), svc.Name)
			}
		}
	}
	got := append(k.store.Keys("/claims/clusterips/"), k.store.Keys("/claims/nodeports/")...)
	if want := slices.Sorted(maps.Keys(claims)); !slices.Equal(got, want) {
		fatalf("claims %q\nheld   %q", got, want)
	}
}

// Two API servers whose caches never agree write services in any order: what they give out stays apart, and claims stay what services hold.
func TestTwoAPIServersAllocate(t *testing.T) {
	types := []string{"ClusterIP", "NodePort", "LoadBalancer", "ExternalName"}
	rapid.Check(t, func(rt *rapid.T) {
		store := fakestore.New()
		small := network{services: "10.96.0.0/28", pods: "10.244.0.0/16", bits: 24, first: 30000, last: 30007}
		servers := []*cluster{small.cluster(t, store), small.cluster(t, store)}
		for _, k := range servers {
			k.cache.follows = false
		}
		for range rapid.IntRange(1, 25).Draw(rt, "steps") {
			k := servers[rapid.IntRange(0, 1).Draw(rt, "server")]
			name := fmt.Sprintf("s%d", rapid.IntRange(0, 5).Draw(rt, "service"))
			kind := rapid.SampledFrom(types).Draw(rt, "type")
			spec := `, type: ` + kind
			if ip := rapid.IntRange(0, 20).Draw(rt, "ip"); ip < 14 && kind != "ExternalName" && ip > 8 {
				spec += fmt.Sprintf(`, clusterIP: 10.96.0.%d`, ip)
			}
			switch rapid.IntRange(0, 4).Draw(rt, "fault") {
			case 0:
				store.LoseAnswers(1)
			case 1:
				k.cache.catchUp()
			}
			var err error
			switch rapid.IntRange(0, 3).Draw(rt, "operation") {
			case 0, 1:
				_, err = k.Create(t.Context(), res("svc"), in(service(name, spec)), WriteOptions{})
			case 2:
				_, err = k.Update(t.Context(), res("svc"), in(service(name, spec)), WriteOptions{})
			case 3:
				_, err = k.Delete(t.Context(), res("svc"), "shop", name, DeleteOptions{})
			}
			if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsAlreadyExists(err) && !apierrors.IsInvalid(err) {
				rt.Fatalf("%v", err)
			}
			k.held(rt.Fatalf)
		}
	})
}

func TestAllocationsAtOnce(t *testing.T) {
	store := fakestore.New()
	small := network{services: "10.96.0.0/26", pods: "10.244.0.0/16", bits: 24, first: 30000, last: 30039}
	servers := []*cluster{small.cluster(t, store), small.cluster(t, store)}
	var wg sync.WaitGroup
	for worker := range 8 {
		wg.Go(func() {
			k := servers[worker%2]
			for i := range 20 {
				name := fmt.Sprintf("w%d-%d", worker, i%4)
				_, err := k.Create(t.Context(), res("svc"), in(service(name, `, type: NodePort`)), WriteOptions{})
				if err == nil && rand.IntN(2) == 0 {
					_, err = k.Delete(t.Context(), res("svc"), "shop", name, DeleteOptions{})
				}
				if err != nil && !apierrors.IsAlreadyExists(err) && !apierrors.IsInvalid(err) {
					t.Error(err)
				}
				if _, err := k.Create(t.Context(), res("node"), text(`metadata: {generateName: n-}`), WriteOptions{}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	servers[0].held(t.Fatalf)
	ranges := map[string]bool{}
	for _, key := range store.Keys("/registry/core/nodes/") {
		node := &corev1.Node{}
		if err := node.Unmarshal(store.Entry(key).GetValue()); err != nil {
			t.Fatal(err)
		}
		if ranges[node.Spec.PodCIDR] {
			t.Errorf("%s was given out twice", node.Spec.PodCIDR)
		}
		ranges[node.Spec.PodCIDR] = true
	}
	if len(ranges) != 160 {
		t.Errorf("%d ranges", len(ranges))
	}
}

func TestRepair(t *testing.T) {
	store := fakestore.New()
	allocators, services, nodes := wide.allocators(t, store)
	k := clusterOn(t, store, allocators)
	k.create("svc", service("a", `, type: NodePort`))
	k.create("node", `metadata: {name: n1}`)
	svc := k.service("a")
	// Someone lost two claims and left two behind.
	tx := k.begin(map[string]*storev1.Entry{})
	tx.remove("/claims/clusterips/" + svc.Spec.ClusterIP)
	tx.remove("/claims/podcidrs/10.244.0.0-24")
	tx.Claim("/claims/clusterips/10.96.0.7", []byte("services/shop/gone"))
	tx.Claim("/claims/nodeports/30098", []byte("services/shop/gone"))
	if _, _, err := tx.commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	logger := slog.New(slog.DiscardHandler)
	if err := errors.Join(services.Repair(t.Context(), logger), nodes.Repair(t.Context(), logger)); err != nil {
		t.Fatal(err)
	}
	k.held(t.Fatalf)
	if got := strings.Join(store.Keys("/claims/podcidrs/"), " "); got != "/claims/podcidrs/10.244.0.0-24" {
		t.Errorf("pod ranges: %s", got)
	}
}
