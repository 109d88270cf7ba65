package registry

import (
	"context"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"

	"dhow.dev/pkg/resource"
	"dhow.dev/services/apiserver/internal/allocator"
	"dhow.dev/services/apiserver/internal/codec"
	"dhow.dev/services/apiserver/internal/encryption"
	"dhow.dev/services/apiserver/internal/patch"
	"dhow.dev/services/apiserver/internal/registry/fakestore"
	"dhow.dev/services/apiserver/internal/strategy"
)

// fakeCache shows the store as it was when it last caught up. A cache that follows catches up before every read.
type fakeCache struct {
	store   *fakestore.Store
	ring    *encryption.Ring
	follows bool
	mu      sync.Mutex
	entries map[string]Entry
}

func (c *fakeCache) catchUp() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.entries = map[string]Entry{}
	for _, key := range c.store.Keys("/registry/") {
		e := c.store.Entry(key)
		if e == nil {
			continue
		}
		plain, err := c.ring.Open(key, e.GetEncryptionKeyId(), e.GetValue())
		if err != nil {
			panic(err)
		}
		c.entries[key] = Entry{Object: plain, Revision: e.GetRevision()}
	}
}

func (c *fakeCache) Current(res *resource.Resource, namespace, name string) (Entry, bool) {
	if c.follows {
		c.catchUp()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.entries[Key(res, namespace, name)]
	return e, ok
}

func (c *fakeCache) Select(_ context.Context, res *resource.Resource, namespace, _, _ string) ([]Name, error) {
	c.catchUp()
	c.mu.Lock()
	defer c.mu.Unlock()
	var names []Name
	for key := range maps.Keys(c.entries) {
		rest, ok := strings.CutPrefix(key, Prefix(res))
		if !ok {
			continue
		}
		ns, name, _ := strings.Cut(rest, "/")
		if namespace == "" || ns == namespace {
			names = append(names, Name{Namespace: ns, Name: name})
		}
	}
	return names, nil
}

func (c *fakeCache) WaitFor(context.Context, int64) error { return nil }

func (c *fakeCache) Each(res *resource.Resource, namespace string, visit func(Name, Entry) bool) error {
	names, err := c.Select(context.Background(), res, namespace, "", "")
	if err != nil {
		return err
	}
	for _, n := range names {
		if n.Namespace == "-" {
			n.Namespace = ""
		}
		if e, ok := c.Current(res, n.Namespace, n.Name); ok && !visit(n, e) {
			break
		}
	}
	return nil
}

// cluster is a registry on a store in memory, with a namespace `shop`.
type cluster struct {
	*Registry
	t     *testing.T
	store *fakestore.Store
	cache *fakeCache
	codec *codec.Codec
	clock time.Time
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	return clusterOn(t, fakestore.New(), nil)
}

func clusterOn(t *testing.T, store *fakestore.Store, allocators map[schema.GroupResource]allocator.Allocator) *cluster {
	t.Helper()
	ring, err := encryption.NewRing([]encryption.Key{{ID: 1}})
	if err != nil {
		t.Fatal(err)
	}
	c, err := codec.New()
	if err != nil {
		t.Fatal(err)
	}
	k := &cluster{t: t, store: store, codec: c, clock: time.Date(2026, 1, 2, 3, 4, 5, 600, time.UTC)}
	k.cache = &fakeCache{store: store, ring: ring, follows: true}
	k.Registry, err = New(Config{
		Store: store, Cache: k.cache, Codec: c, Strategies: strategy.New(strategy.Config{TolerationSeconds: 300}), Encryption: ring, Allocators: allocators,
		Now: func() time.Time { return k.clock },
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(store.Keys("/registry/core/namespaces/-/shop")) == 0 {
		k.create("namespaces", `metadata: {name: shop}`)
	}
	return k
}

func res(word string) *resource.Resource {
	r, err := resource.Find(word)
	if err != nil {
		panic(err)
	}
	return r
}

func text(document string) Input { return Input{Data: []byte(document), Text: true} }

func in(name string) Input { return Input{Namespace: "shop", Data: []byte(name), Text: true} }

// create creates an object of YAML without kind, in the namespace shop if the kind has any.
func (k *cluster) create(word, document string) (codec.Object, Result) {
	k.t.Helper()
	return k.must(word)(k.Create(k.t.Context(), res(word), place(word, document), WriteOptions{}))
}

func (k *cluster) update(word, document string, options WriteOptions) (codec.Object, Result) {
	k.t.Helper()
	return k.must(word)(k.Update(k.t.Context(), res(word), place(word, document), options))
}

func (k *cluster) apply(word, document, manager string) (codec.Object, Result) {
	k.t.Helper()
	return k.must(word)(k.Apply(k.t.Context(), res(word), place(word, document), WriteOptions{FieldManager: manager}))
}

func (k *cluster) patch(word, name, document string, t patch.Type) (codec.Object, Result) {
	k.t.Helper()
	return k.must(word)(k.Patch(k.t.Context(), res(word), k.patchOf(word, name, document, t), WriteOptions{}))
}

func (k *cluster) patchOf(word, name, document string, t patch.Type) PatchInput {
	k.t.Helper()
	raw, err := yaml.YAMLToJSON([]byte(document))
	if err != nil {
		k.t.Fatal(err)
	}
	p := PatchInput{Name: name, Type: t, Data: raw}
	if res(word).Namespaced {
		p.Namespace = "shop"
	}
	return p
}

func place(word, document string) Input {
	input := text(document)
	if res(word).Namespaced {
		input.Namespace = "shop"
	}
	return input
}

func (k *cluster) delete(word, name string, options DeleteOptions) (codec.Object, Result) {
	k.t.Helper()
	return k.must(word)(k.Delete(k.t.Context(), res(word), namespaceOf(word), name, options))
}

func namespaceOf(word string) string {
	if res(word).Namespaced {
		return "shop"
	}
	return ""
}

// must decodes a result.
func (k *cluster) must(word string) func(Result, error) (codec.Object, Result) {
	return func(r Result, err error) (codec.Object, Result) {
		k.t.Helper()
		if err != nil {
			k.t.Fatal(err)
		}
		o, err := k.codec.DecodeProto(res(word), r.Object)
		if err != nil {
			k.t.Fatal(err)
		}
		return o, r
	}
}

// stored returns an object as the store has it, nil for none.
func (k *cluster) stored(word, name string) codec.Object {
	k.t.Helper()
	key := Key(res(word), namespaceOf(word), name)
	e := k.store.Entry(key)
	if e == nil {
		return nil
	}
	plain, err := k.cache.ring.Open(key, e.GetEncryptionKeyId(), e.GetValue())
	if err != nil {
		k.t.Fatal(err)
	}
	o, err := k.codec.DecodeProto(res(word), plain)
	if err != nil {
		k.t.Fatal(err)
	}
	return o
}

// fails checks an error's reason (by its predicate) and words.
func fails(t *testing.T, err error, is func(error) bool, words string) {
	t.Helper()
	if err == nil || !is(err) || !strings.Contains(err.Error(), words) {
		t.Errorf("got  %v\nwant %s", err, words)
	}
}
