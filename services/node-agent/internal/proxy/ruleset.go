package proxy

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"sigs.k8s.io/knftables"
)

// Names in the table.
const (
	tableName = "dhow-proxy"

	mapServices            = "service-ips"
	mapNodePorts           = "service-nodeports"
	mapNoEndpoints         = "no-endpoint-services"
	mapNoEndpointNodePorts = "no-endpoint-nodeports"
	mapHostPorts           = "host-ports"
	mapHostIPPorts         = "host-ip-ports"
	setClusterIPs          = "cluster-ips"
	setNodePortIPs         = "nodeport-ips"
	setHairpin             = "hairpin"

	chainServices    = "services"
	chainMark        = "mark-for-masquerade"
	chainReject      = "reject-service"
	chainUnserved    = "unserved-services"
	chainPrerouting  = "nat-prerouting"
	chainOutput      = "nat-output"
	chainPostrouting = "nat-postrouting"
)

// masqueradeMark is the packet mark bit that says "hide the source"; the same bit as kube-proxy's default, which must not run beside.
const masqueradeMark = "0x4000"

// owner is who wants a plan: "svc/namespace/name" or "pod/namespace/name".
type owner string

// ruleset knows what the kernel holds and writes the transactions that bring it to the wanted plans. Only Run's goroutine uses it.
type ruleset struct {
	compiler
	serviceCIDRs []netip.Prefix
	// bridge is the pods' bridge when its bridged packets do not pass netfilter, else empty.
	unfilteredBridge string

	plans map[owner]plan
	// claims are the values that owners want in a slot: all agree as a rule; when two Services share an external address and port, the
	// lexically first owner has it until it lets go.
	claims map[slot]map[owner]string

	// What the kernel holds; valid only while known.
	known    bool
	chains   map[string]string
	sets     map[string]int
	elements map[slot]string
}

func newRuleset(c compiler) *ruleset {
	return &ruleset{compiler: c, plans: map[owner]plan{}, claims: map[slot]map[owner]string{}}
}

// set replaces an owner's plan and returns the old one. The slots that may look different now are added to touched.
func (r *ruleset) set(o owner, next plan, touched map[slot]bool) plan {
	old := r.plans[o]
	for s := range old.elements {
		if _, stays := next.elements[s]; !stays {
			delete(r.claims[s], o)
			if len(r.claims[s]) == 0 {
				delete(r.claims, s)
			}
			touched[s] = true
		}
	}
	for s, value := range next.elements {
		if before, had := old.elements[s]; had && before == value {
			continue
		}
		if r.claims[s] == nil {
			r.claims[s] = map[owner]string{}
		}
		r.claims[s][o] = value
		touched[s] = true
	}
	if len(next.chains)+len(next.elements) == 0 {
		delete(r.plans, o)
	} else {
		r.plans[o] = next
	}
	return old
}

// wanted returns the value that a slot should have.
func (r *ruleset) wanted(s slot) (string, bool) {
	claims := r.claims[s]
	if len(claims) == 0 {
		return "", false
	}
	first := slices.Min(slices.Collect(maps.Keys(claims)))
	return claims[first], true
}

// change writes the difference between old and new plans of some owners. The order matters inside one nft transaction: what is referred to comes before what
// refers to it, an element leaves its slot before another takes it, and chains go when nothing leads to them.
func (r *ruleset) change(tx *knftables.Transaction, old map[owner]plan, touched map[slot]bool) {
	var goneChains, goneSets []string
	for _, o := range slices.Sorted(maps.Keys(old)) {
		next := r.plans[o]
		for _, name := range slices.Sorted(maps.Keys(next.sets)) {
			if _, ok := r.sets[name]; !ok {
				addAffinitySet(tx, name, next.sets[name])
				r.sets[name] = next.sets[name]
			}
		}
		// All chains first: rules of one may go to another.
		var rewrite []string
		for _, name := range slices.Sorted(maps.Keys(next.chains)) {
			text := strings.Join(next.chains[name], "\n")
			known, exists := r.chains[name]
			switch {
			case !exists:
				tx.Add(&knftables.Chain{Name: name})
			case known == text:
				continue
			default:
				tx.Flush(&knftables.Chain{Name: name})
			}
			r.chains[name] = text
			rewrite = append(rewrite, name)
		}
		for _, name := range rewrite {
			addRules(tx, name, next.chains[name]...)
		}
		for name := range old[o].chains {
			if _, stays := next.chains[name]; !stays {
				goneChains = append(goneChains, name)
			}
		}
		for name := range old[o].sets {
			if _, stays := next.sets[name]; !stays {
				goneSets = append(goneSets, name)
			}
		}
	}
	var added []slot
	for _, s := range sortedSlots(touched) {
		value, want := r.wanted(s)
		have, has := r.elements[s]
		if want == has && value == have {
			continue
		}
		if has {
			tx.Delete(element(s, have))
			delete(r.elements, s)
		}
		if want {
			r.elements[s] = value
			added = append(added, s)
		}
	}
	for _, s := range added {
		tx.Add(element(s, r.elements[s]))
	}
	r.remove(tx, goneChains, goneSets)
}

// remove deletes chains and sets. All chains are emptied first because they may lead to each other.
func (r *ruleset) remove(tx *knftables.Transaction, chains, sets []string) {
	slices.Sort(chains)
	slices.Sort(sets)
	for _, name := range chains {
		tx.Flush(&knftables.Chain{Name: name})
	}
	for _, name := range chains {
		tx.Delete(&knftables.Chain{Name: name})
		delete(r.chains, name)
	}
	for _, name := range sets {
		tx.Delete(&knftables.Set{Name: name})
		delete(r.sets, name)
	}
}

// rebuild writes the whole table. What an earlier run left (existing lists its chains and sets) is emptied and removed in the same transaction, so packets
// meet either the old rules or the new ones. Affinity sets that are still wanted keep their clients.
func (r *ruleset) rebuild(tx *knftables.Transaction, existing map[string][]string) {
	r.known = false
	r.chains, r.sets, r.elements = map[string]string{}, map[string]int{}, map[slot]string{}
	tx.Add(&knftables.Table{Comment: knftables.PtrTo("services of the cluster, kept by the Dhow node agent")})
	static := r.base(tx)

	var goneChains, goneSets []string
	for _, o := range slices.Sorted(maps.Keys(r.plans)) {
		p := r.plans[o]
		for _, name := range slices.Sorted(maps.Keys(p.sets)) {
			addAffinitySet(tx, name, p.sets[name])
			r.sets[name] = p.sets[name]
		}
		for _, name := range slices.Sorted(maps.Keys(p.chains)) {
			tx.Add(&knftables.Chain{Name: name})
			tx.Flush(&knftables.Chain{Name: name})
			r.chains[name] = strings.Join(p.chains[name], "\n")
		}
	}
	for _, o := range slices.Sorted(maps.Keys(r.plans)) {
		for _, name := range slices.Sorted(maps.Keys(r.plans[o].chains)) {
			addRules(tx, name, r.plans[o].chains[name]...)
		}
	}
	all := map[slot]bool{}
	for s := range r.claims {
		all[s] = true
	}
	for _, s := range sortedSlots(all) {
		value, _ := r.wanted(s)
		r.elements[s] = value
		tx.Add(element(s, value))
	}
	for _, name := range existing["chain"] {
		if _, ok := r.chains[name]; !ok && !static[name] {
			goneChains = append(goneChains, name)
		}
	}
	for _, name := range existing["set"] {
		if _, ok := r.sets[name]; !ok && !static[name] {
			goneSets = append(goneSets, name)
		}
	}
	r.remove(tx, goneChains, goneSets)
}

// base writes what does not depend on Services: hooks, shared maps and sets, emptied. It returns the names of all that.
func (r *ruleset) base(tx *knftables.Transaction) map[string]bool {
	static := map[string]bool{}
	const front, port = "ipv4_addr . inet_proto . inet_service", "inet_proto . inet_service"
	for _, m := range []struct{ name, typ string }{
		{mapServices, front + " : verdict"}, {mapNoEndpoints, front + " : verdict"},
		{mapNodePorts, port + " : verdict"}, {mapNoEndpointNodePorts, port + " : verdict"},
		{mapHostPorts, port + " : ipv4_addr . inet_service"}, {mapHostIPPorts, front + " : ipv4_addr . inet_service"},
	} {
		tx.Add(&knftables.Map{Name: m.name, Type: m.typ})
		tx.Flush(&knftables.Map{Name: m.name})
		static[m.name] = true
	}
	for _, s := range []struct{ name, typ string }{
		{setClusterIPs, "ipv4_addr"}, {setNodePortIPs, "ipv4_addr"}, {setHairpin, "ipv4_addr . ipv4_addr"},
	} {
		tx.Add(&knftables.Set{Name: s.name, Type: s.typ})
		tx.Flush(&knftables.Set{Name: s.name})
		static[s.name] = true
	}
	for _, ip := range r.nodeIPs {
		tx.Add(element(slot{setNodePortIPs, ip.String()}, ""))
	}

	chain := func(c *knftables.Chain, rules ...string) {
		tx.Add(c)
		tx.Flush(&knftables.Chain{Name: c.Name})
		static[c.Name] = true
		addRules(tx, c.Name, rules...)
	}
	hook := func(name string, typ knftables.BaseChainType, hook knftables.BaseChainHook, priority knftables.BaseChainPriority, rules ...string) {
		chain(&knftables.Chain{Name: name, Type: &typ, Hook: &hook, Priority: &priority}, rules...)
	}
	chain(&knftables.Chain{Name: chainMark}, "mark set mark or "+masqueradeMark)
	chain(&knftables.Chain{Name: chainReject}, "reject")
	chain(&knftables.Chain{Name: chainServices}, r.serviceRules()...)
	chain(&knftables.Chain{Name: chainUnserved}, r.unservedRules()...)
	hook(chainPrerouting, knftables.NATType, knftables.PreroutingHook, knftables.DNATPriority, "jump "+chainServices)
	hook(chainOutput, knftables.NATType, knftables.OutputHook, "-100", "jump "+chainServices)
	hook(chainPostrouting, knftables.NATType, knftables.PostroutingHook, knftables.SNATPriority, r.masqueradeRules()...)
	// A packet that connection tracking cannot place, forwarded unchanged, would show a client an address that it never spoke to, and its answer
	// would reset a healthy connection.
	hook("filter-forward", knftables.FilterType, knftables.ForwardHook, knftables.FilterPriority, "ct state invalid drop", "ct state new jump "+chainUnserved)
	hook("filter-input", knftables.FilterType, knftables.InputHook, knftables.FilterPriority, "ct state new jump "+chainUnserved)
	hook("filter-output", knftables.FilterType, knftables.OutputHook, knftables.FilterPriority, "ct state new jump "+chainUnserved)
	return static
}

// serviceRules look a new connection up: a handful of rules, whatever the number of Services.
func (r *ruleset) serviceRules() []string {
	rules := r.skipNodeLocal()
	if len(r.clusterCIDRs) > 0 {
		// Only pods know the way back to an answering pod; everyone else that sends to a cluster IP is hidden.
		rules = append(rules, fmt.Sprintf("ip saddr != { %s } ip daddr @%s jump %s", join(r.clusterCIDRs), setClusterIPs, chainMark))
	}
	const dnatTo = "meta l4proto { tcp, udp, sctp } dnat ip addr . port to "
	return append(rules,
		"ip daddr . meta l4proto . th dport vmap @"+mapServices,
		fmt.Sprintf("ip daddr @%s meta l4proto . th dport vmap @%s", setNodePortIPs, mapNodePorts),
		dnatTo+"ip daddr . meta l4proto . th dport map @"+mapHostIPPorts,
		"fib daddr type local ip daddr != 127.0.0.0/8 "+dnatTo+"meta l4proto . th dport map @"+mapHostPorts)
}

// unservedRules refuse what no endpoint serves. They see packets after translation, so what still carries a service address found no endpoint.
func (r *ruleset) unservedRules() []string {
	rules := append(r.skipNodeLocal(),
		"ip daddr . meta l4proto . th dport vmap @"+mapNoEndpoints,
		fmt.Sprintf("ip daddr @%s meta l4proto . th dport vmap @%s", setNodePortIPs, mapNoEndpointNodePorts),
		fmt.Sprintf("ip daddr @%s reject", setClusterIPs))
	if len(r.serviceCIDRs) > 0 {
		rules = append(rules, fmt.Sprintf("ip daddr { %s } reject", join(r.serviceCIDRs)))
	}
	return rules
}

func (r *ruleset) skipNodeLocal() []string {
	if len(r.nodeLocal) == 0 {
		return nil
	}
	return []string{fmt.Sprintf("ip daddr { %s } return", join(r.nodeLocal))}
}

func (r *ruleset) masqueradeRules() []string {
	// A pod that reaches itself through a Service would see its own address as the source and drop the packet.
	rules := []string{"ct status dnat ip saddr . ip daddr @" + setHairpin + " masquerade fully-random"}
	if r.unfilteredBridge != "" && len(r.clusterCIDRs) > 0 {
		rules = append(rules, fmt.Sprintf("ct status dnat oifname %q ip saddr { %s } masquerade fully-random", r.unfilteredBridge, join(r.clusterCIDRs)))
	}
	return append(rules,
		fmt.Sprintf("mark and %s == 0 return", masqueradeMark),
		// Cleared, so that a packet that is encapsulated later is not masqueraded twice.
		"mark set mark xor "+masqueradeMark,
		"masquerade fully-random")
}

func addRules(tx *knftables.Transaction, chain string, rules ...string) {
	for _, rule := range rules {
		tx.Add(&knftables.Rule{Chain: chain, Rule: rule})
	}
}

func addAffinitySet(tx *knftables.Transaction, name string, seconds int) {
	tx.Add(&knftables.Set{
		Name: name, Type: "ipv4_addr", Flags: []knftables.SetFlag{knftables.DynamicFlag, knftables.TimeoutFlag},
		Timeout: knftables.PtrTo(time.Duration(seconds) * time.Second),
	})
}

func element(s slot, value string) *knftables.Element {
	key := strings.Split(s.key, " . ")
	switch s.container {
	case setClusterIPs, setNodePortIPs, setHairpin:
		return &knftables.Element{Set: s.container, Key: key}
	}
	return &knftables.Element{Map: s.container, Key: key, Value: strings.Split(value, " . ")}
}

func sortedSlots(all map[slot]bool) []slot {
	return slices.SortedFunc(maps.Keys(all), func(a, b slot) int {
		if c := strings.Compare(a.container, b.container); c != 0 {
			return c
		}
		return strings.Compare(a.key, b.key)
	})
}
