package garbage

import (
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"dhow.dev/pkg/object"
	"dhow.dev/pkg/resource"
	"dhow.dev/services/controller-manager/internal/metadata"
)

func thing(uid string, owners ...string) *metadata.Object {
	o := &metadata.Object{Resource: resource.Lookup("", "configmaps"), UID: uid, Key: object.Key{Namespace: "a", Name: uid}}
	for _, owner := range owners {
		o.Owners = append(o.Owners, metadata.Owner{APIVersion: "v1", Kind: "ConfigMap", Name: owner, UID: owner, Blocks: true})
	}
	return o
}

// TestGraph compares the graph with a plain map after any history, and checks that it forgets what nobody names.
func TestGraph(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g, model := newGraph(), map[string]*metadata.Object{}
		uid := rapid.SampledFrom([]string{"a", "b", "c", "d", "e"})
		for range rapid.IntRange(1, 50).Draw(t, "changes") {
			id := uid.Draw(t, "uid")
			if model[id] != nil && rapid.Bool().Draw(t, "gone") {
				look := g.drop(model[id])
				delete(model, id)
				for other, o := range model {
					if names(o.Owners, id) && !slices.Contains(look, other) {
						t.Fatalf("%s lost its owner %s and is not looked at", other, id)
					}
				}
				continue
			}
			o := thing(id, slices.Compact(slices.Sorted(slices.Values(rapid.SliceOfN(uid, 0, 3).Draw(t, "owners"))))...)
			look := g.put(o)
			model[id] = o
			for _, owner := range o.Owners {
				if model[owner.UID] == nil && !slices.Contains(look, id) {
					t.Fatalf("%s names %s, which does not exist, and is not looked at", id, owner.UID)
				}
			}
		}
		known := map[string]bool{}
		for id, o := range model {
			known[id] = true
			for _, owner := range o.Owners {
				known[owner.UID] = true
			}
			if g.get(id) != o {
				t.Fatalf("%s is not in the graph", id)
			}
		}
		for id := range known {
			var want, got []string
			for other, o := range model {
				if names(o.Owners, id) {
					want = append(want, other)
				}
			}
			for _, d := range g.dependents(id) {
				got = append(got, d.UID)
			}
			slices.Sort(want)
			slices.Sort(got)
			if !slices.Equal(want, got) {
				t.Fatalf("dependents of %s: %v, want %v", id, got, want)
			}
		}
		if nodes := slices.Sorted(maps.Keys(g.nodes)); !slices.Equal(nodes, slices.Sorted(maps.Keys(known))) {
			t.Fatalf("the graph holds %v, want %v", nodes, slices.Sorted(maps.Keys(known)))
		}
	})
}

func TestForegroundOwnersAreLookedAtWhenADependentGoes(t *testing.T) {
	g := newGraph()
	owner := thing("owner")
	owner.Deleted, owner.Finalizers = true, []string{finalizerForeground}
	g.put(thing("dependent", "owner"))
	if look := g.put(owner); !slices.Contains(look, "owner") {
		t.Errorf("looked at %v", look)
	}
	if look := g.put(thing("dependent", "owner")); !slices.Contains(look, "dependent") {
		t.Errorf("looked at %v", look)
	}
	if look := g.drop(thing("dependent", "owner")); !slices.Contains(look, "owner") {
		t.Errorf("looked at %v", look)
	}
}

func TestAnOwnerInAnotherNamespaceIsNone(t *testing.T) {
	dependent := thing("dependent", "owner")
	elsewhere := thing("owner")
	elsewhere.Key.Namespace = "b"
	if matches(dependent.Owners[0], dependent, elsewhere) || !matches(dependent.Owners[0], dependent, thing("owner")) {
		t.Error("namespaces of owners are not compared")
	}
}
