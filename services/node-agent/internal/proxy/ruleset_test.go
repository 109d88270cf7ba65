package proxy

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
	"sigs.k8s.io/knftables"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	discoveryv1 "dhow.dev/gen/go/dhow/discovery/v1"
	"dhow.dev/pkg/object"
)

// TestIncrementalEqualsRebuilt drives random Services and endpoints through incremental transactions; after each, the table must be what a
// rebuild from nothing makes of the same state, and a rebuild over the table must leave nothing of what is gone.
func TestIncrementalEqualsRebuilt(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		incremental := newRuleset(testCompiler())
		table := newTable()
		run(t, table, func(tx *knftables.Transaction) { incremental.rebuild(tx, nil) })
		incremental.known = true
		for range rapid.IntRange(1, 6).Draw(t, "transactions") {
			old, touched := map[owner]plan{}, map[slot]bool{}
			for _, i := range rapid.SliceOfNDistinct(rapid.IntRange(0, 4), 1, 3, rapid.ID).Draw(t, "services") {
				o := owner(fmt.Sprintf("svc/default/s%d", i))
				old[o] = incremental.set(o, drawPlan(t, i), touched)
			}
			run(t, table, func(tx *knftables.Transaction) { incremental.change(tx, old, touched) })

			fresh := newRuleset(testCompiler())
			for o, p := range incremental.plans {
				fresh.set(o, p, map[slot]bool{})
			}
			reference := newTable()
			run(t, reference, func(tx *knftables.Transaction) { fresh.rebuild(tx, nil) })
			if diff := cmp.Diff(dump(reference), dump(table)); diff != "" {
				t.Fatalf("incremental table differs from a rebuilt one (-rebuilt +incremental):\n%s", diff)
			}
		}
		// A restarted agent finds the table with leftovers of Services that went meanwhile.
		restarted := newRuleset(testCompiler())
		for o, p := range incremental.plans {
			if rapid.Bool().Draw(t, "stays") {
				restarted.set(o, p, map[slot]bool{})
			}
		}
		existing, err := table.ListAll(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		run(t, table, func(tx *knftables.Transaction) { restarted.rebuild(tx, existing) })
		reference := newTable()
		run(t, reference, func(tx *knftables.Transaction) { restarted.rebuild(tx, nil) })
		if diff := cmp.Diff(dump(reference), dump(table)); diff != "" {
			t.Fatalf("rebuild left something behind (-wanted +got):\n%s", diff)
		}
	})
}

// drawPlan draws a Service that shares addresses, ports and endpoints with others, or none.
func drawPlan(t *rapid.T, i int) plan {
	c := testCompiler()
	key := object.Key{Namespace: "default", Name: fmt.Sprintf("s%d", i)}
	if rapid.IntRange(0, 4).Draw(t, "deleted") == 0 {
		return c.service(key, nil, nil)
	}
	policy := rapid.SampledFrom([]string{"Cluster", "Local"})
	svc := service(key.Name, fmt.Sprintf("10.96.0.%d", 20+i), func(s *corev1.ServiceSpec) {
		nodePortWith(policy.Draw(t, "external"), policy.Draw(t, "internal"))(s)
		if rapid.Bool().Draw(t, "affinity") {
			s.SetSessionAffinity("ClientIP")
		}
		// Several Services may claim one external address.
		s.SetExternalIps(rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"198.51.100.1", "198.51.100.2"}), 0, 2, rapid.ID[string]).Draw(t, "externalIPs"))
	}, port("http", "TCP", 80, rapid.SampledFrom([]int32{0, 30001, 30002}).Draw(t, "nodePort")))
	var backends []backend
	for _, n := range rapid.SliceOfNDistinct(rapid.IntRange(1, 5), 0, 4, rapid.ID[int]).Draw(t, "endpoints") {
		backends = append(backends, backend{
			ip: fmt.Sprintf("10.244.1.%d", n), node: rapid.SampledFrom([]string{"n1", "n2"}).Draw(t, "node"), notReady: rapid.Bool().Draw(t, "notReady"),
		})
	}
	return c.service(key, svc, []*discoveryv1.EndpointSlice{slice(key.Name, "s", http8080, backends...)})
}

// dump lists a table's contents; elements have no order.
func dump(table *knftables.Fake) []string {
	var elements, others []string
	for line := range strings.Lines(table.Dump()) {
		if strings.HasPrefix(line, "add element") {
			elements = append(elements, line)
		} else {
			others = append(others, line)
		}
	}
	slices.Sort(elements)
	return append(others, elements...)
}

func newTable() *knftables.Fake { return knftables.NewFake(knftables.IPv4Family, tableName) }

func run(t rapid.TB, table *knftables.Fake, write func(*knftables.Transaction)) {
	tx := table.NewTransaction()
	write(tx)
	if tx.NumOperations() == 0 {
		return
	}
	if err := table.Run(context.Background(), tx); err != nil {
		t.Fatalf("transaction refused: %v\n%s", err, tx)
	}
}

// TestSharedSlot holds an external address that two Services want: the first has it, and the second when the first lets go.
func TestSharedSlot(t *testing.T) {
	r := newRuleset(testCompiler())
	s := slot{mapServices, "198.51.100.1 . tcp . 80"}
	claim := func(o owner) plan {
		p := newPlan()
		p.elements[s] = "goto " + string(o)
		return p
	}
	for _, step := range []struct {
		owner owner
		plan  plan
		want  string
	}{
		{"svc/b", claim("svc/b"), "goto svc/b"}, {"svc/a", claim("svc/a"), "goto svc/a"}, {"svc/a", newPlan(), "goto svc/b"}, {"svc/b", newPlan(), ""},
	} {
		touched := map[slot]bool{}
		r.set(step.owner, step.plan, touched)
		if got, _ := r.wanted(s); got != step.want || !touched[s] {
			t.Errorf("after %s: %q (touched %v), want %q", step.owner, got, touched[s], step.want)
		}
	}
	if len(r.claims)+len(r.plans) != 0 {
		t.Errorf("left behind: %v %v", r.claims, r.plans)
	}
}

// TestTransactionHoldsOnlyTheChange counts what one endpoint costs among a thousand Services.
func TestTransactionHoldsOnlyTheChange(t *testing.T) {
	r := newRuleset(testCompiler())
	table := newTable()
	c := testCompiler()
	makePlan := func(i, endpoints int) plan {
		var backends []backend
		for e := range endpoints {
			backends = append(backends, backend{ip: fmt.Sprintf("10.%d.%d.%d", e+1, i/250, i%250+1), node: "n2"})
		}
		name := fmt.Sprintf("s%d", i)
		return c.service(object.Key{Namespace: "default", Name: name}, service(name, fmt.Sprintf("10.96.%d.%d", i/250, i%250+20), nil, port("http", "TCP", 80, 0)),
			[]*discoveryv1.EndpointSlice{slice(name, "s", http8080, backends...)})
	}
	for i := range 1000 {
		r.set(owner(fmt.Sprintf("svc/default/s%d", i)), makePlan(i, 10), map[slot]bool{})
	}
	run(t, table, func(tx *knftables.Transaction) { r.rebuild(tx, nil) })
	touched := map[slot]bool{}
	old := map[owner]plan{"svc/default/s7": r.set("svc/default/s7", makePlan(7, 9), touched)}
	tx := table.NewTransaction()
	r.change(tx, old, touched)
	// Empty the chain, write its one rule.
	if n := tx.NumOperations(); n != 2 {
		t.Errorf("%d operations for one endpoint, want 2:\n%s", n, tx)
	}
}
