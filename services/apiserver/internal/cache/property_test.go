package cache_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	storev1 "dhow.dev/gen/go/dhow/store/v1"
	"dhow.dev/services/apiserver/internal/cache"
)

// model is what the store should hold, commit by commit.
type model struct {
	revisions []int64
	states    []map[string]pod
}

func (m *model) last() map[string]pod { return m.states[len(m.states)-1] }

// at returns the state of a revision.
func (m *model) at(revision int64) map[string]pod {
	i := len(m.revisions) - 1
	for i > 0 && m.revisions[i] > revision {
		i--
	}
	return m.states[i]
}

// choice is a selection, as the cache and as the model understand it.
type choice struct {
	namespace, labels, fields string
	matches                   func(pod) bool
}

var choices = []choice{
	{"", "", "", func(pod) bool { return true }},
	{"a", "", "", func(p pod) bool { return p.namespace == "a" }},
	{"", "app=x", "", func(p pod) bool { return p.app == "x" }},
	{"", "", "spec.nodeName=n1", func(p pod) bool { return p.node == "n1" }},
	{"", "", "spec.nodeName!=n1", func(p pod) bool { return p.node != "n1" }},
	{"a-b", "app!=x", "spec.nodeName=n2", func(p pod) bool { return p.namespace == "a-b" && p.app != "x" && p.node == "n2" }},
	{"a", "", "metadata.name=p1", func(p pod) bool { return p.namespace == "a" && p.name == "p1" }},
}

func drawPod(t *rapid.T) pod {
	return pod{
		namespace: rapid.SampledFrom([]string{"a", "a-b", "b"}).Draw(t, "namespace"), name: fmt.Sprintf("p%d", rapid.IntRange(0, 4).Draw(t, "name")),
		uid: rapid.SampledFrom([]string{"u1", "u2"}).Draw(t, "uid"), node: rapid.SampledFrom([]string{"", "n1", "n2"}).Draw(t, "node"),
		app: rapid.SampledFrom([]string{"x", "y"}).Draw(t, "app"),
	}
}

// mutate commits a random change of up to four pods and follows it in the model.
func (m *model) mutate(t *rapid.T, s storev1.StoreClient) {
	next := maps.Clone(m.last())
	var puts, deletes []*storev1.Operation
	touched := map[string]bool{}
	for range rapid.IntRange(1, 4).Draw(t, "operations") {
		p := drawPod(t)
		key := string(p.key())
		if touched[key] {
			continue
		}
		touched[key] = true
		if _, exists := next[key]; exists && rapid.Bool().Draw(t, "delete") {
			delete(next, key)
			deletes = append(deletes, remove(p))
		} else {
			next[key] = p
			puts = append(puts, put(t, p))
		}
	}
	m.revisions = append(m.revisions, commit(t, s, append(puts, deletes...)...))
	m.states = append(m.states, next)
}

func selected(state map[string]pod, c choice) map[string]pod {
	out := map[string]pod{}
	for k, p := range state {
		if c.matches(p) {
			out[k] = p
		}
	}
	return out
}

// decoded is a pod as a client got it.
func decoded(t tester, encoded []byte) (pod, int64) {
	t.Helper()
	o := &corev1.Pod{}
	if err := proto.Unmarshal(encoded, o); err != nil {
		t.Fatal(err)
	}
	var revision int64
	if _, err := fmt.Sscan(o.GetMetadata().GetResourceVersion(), &revision); err != nil {
		t.Fatalf("resource version %q: %v", o.GetMetadata().GetResourceVersion(), err)
	}
	m := o.GetMetadata()
	return pod{m.GetNamespace(), m.GetName(), m.GetUid(), o.GetSpec().GetNodeName(), m.GetLabels()["app"]}, revision
}

// TestListsAreTheModel: a consistent list is the newest state; its pages, however late they are asked for, are of one revision.
func TestListsAreTheModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := newStore(t)
		m := &model{revisions: []int64{0}, states: []map[string]pod{{}}}
		// The other API server, which pages may be asked of that the first one began.
		caches := []*cache.Cache{newCache(t, cache.Config{Store: s}), newCache(t, cache.Config{Store: s})}
		type open struct {
			choice   choice
			revision int64
			token    string
			seen     map[string]pod
		}
		var lists []open
		for range rapid.IntRange(1, 25).Draw(t, "steps") {
			if rapid.IntRange(0, 2).Draw(t, "what") == 0 || len(m.revisions) == 1 {
				m.mutate(t, s)
				continue
			}
			c := rapid.SampledFrom(caches).Draw(t, "cache")
			i := len(lists)
			if i > 0 && rapid.Bool().Draw(t, "continue") {
				i = rapid.IntRange(0, i-1).Draw(t, "list")
			} else {
				lists = append(lists, open{choice: rapid.SampledFrom(choices).Draw(t, "choice"), seen: map[string]pod{}})
			}
			l := &lists[i]
			if l.revision != 0 && l.token == "" {
				continue
			}
			page, err := c.List(within(t), selectPods(t, l.choice.namespace, l.choice.labels, l.choice.fields), cache.ListOptions{
				Limit: rapid.Int64Range(0, 3).Draw(t, "limit"), Continue: l.token,
			})
			if err != nil {
				t.Fatal(err)
			}
			if l.revision == 0 {
				l.revision = page.Revision
				if page.Revision < m.revisions[len(m.revisions)-1] {
					t.Fatalf("a consistent list is of revision %d, the newest is %d", page.Revision, m.revisions[len(m.revisions)-1])
				}
			} else if page.Revision != l.revision {
				t.Fatalf("a page of revision %d follows one of %d", page.Revision, l.revision)
			}
			l.token = page.Continue
			if !slices.IsSortedFunc(page.Entries, func(a, b *cache.Entry) int { return strings.Compare(a.Key, b.Key) }) {
				t.Fatal("a page is not in order")
			}
			for _, e := range page.Entries {
				p, revision := decoded(t, e.Encoded())
				if revision != e.Revision {
					t.Fatalf("%s: resource version %d, want %d", e.Key, revision, e.Revision)
				}
				if _, twice := l.seen[e.Key]; twice {
					t.Fatalf("%s is on two pages", e.Key)
				}
				l.seen[e.Key] = p
			}
			if want := selected(m.at(l.revision), l.choice); l.token == "" && !maps.Equal(l.seen, want) {
				t.Fatalf("list %+v at %d:\n got %v\nwant %v", l.choice, l.revision, l.seen, want)
			}
		}
	})
}

// TestWatchesAreTheModel: what a watch tells, applied to where it began, is the model at each revision that it claims, commit by commit.
func TestWatchesAreTheModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := newStore(t)
		m := &model{revisions: []int64{0}, states: []map[string]pod{{}}}
		c := newCache(t, cache.Config{Store: s})
		for range rapid.IntRange(1, 6).Draw(t, "before") {
			m.mutate(t, s)
		}
		ctx := within(t)
		type client struct {
			choices  []choice
			watcher  *cache.Watcher
			state    []map[string]pod
			revision int64
			conflate bool
			synced   bool
		}
		var clients []*client
		connect := func() {
			k := &client{conflate: rapid.Bool().Draw(t, "conflate")}
			var selections []cache.Watched
			for i := range rapid.IntRange(1, 3).Draw(t, "selections") {
				choice := rapid.SampledFrom(choices).Draw(t, "choice")
				k.choices = append(k.choices, choice)
				k.state = append(k.state, map[string]pod{})
				selections = append(selections, cache.Watched{Selection: selectPods(t, choice.namespace, choice.labels, choice.fields), ID: uint32(i)})
			}
			options := cache.WatchOptions{Conflate: k.conflate}
			if rapid.Bool().Draw(t, "resume") {
				after := rapid.SampledFrom(m.revisions[1:]).Draw(t, "after")
				// The log begins where the cache began.
				if after >= m.revisions[1] {
					options.After, k.revision, k.synced = &after, after, true
					for i, choice := range k.choices {
						k.state[i] = selected(m.at(after), choice)
					}
				}
			}
			var err error
			if k.watcher, err = c.Watch(ctx, selections, options); err != nil {
				t.Fatal(err)
			}
			clients = append(clients, k)
		}
		read := func(k *client) {
			batch, err := k.watcher.Next(ctx)
			if err != nil {
				t.Fatal(err)
			}
			var response metav1.WatchResponse
			frame := batch.Frame()
			if err := proto.Unmarshal(frame.Bytes(), &response); err != nil {
				t.Fatal(err)
			}
			frame.Free()
			if len(response.GetChanges()) != len(batch.Changes) || response.GetMark() != batch.Mark || response.GetPartial() != batch.Partial || response.GetRevision() != batch.Revision {
				t.Fatalf("the frame differs from the batch: %v", &response)
			}
			previous := int64(0)
			for _, change := range response.GetChanges() {
				p, revision := decoded(t, change.GetObject())
				if revision != change.GetRevision() {
					t.Fatalf("resource version %d, change %d", revision, change.GetRevision())
				}
				if k.synced && revision < previous {
					t.Fatalf("revision %d after %d", revision, previous)
				}
				previous = revision
				state, key := k.state[change.GetSelection()], string(p.key())
				old, had := state[key]
				switch change.GetType() {
				case metav1.EventType_EVENT_TYPE_ADDED:
					if had {
						t.Fatalf("ADDED %s, which is there", key)
					}
					state[key] = p
				case metav1.EventType_EVENT_TYPE_MODIFIED:
					if !had {
						t.Fatalf("MODIFIED %s, which is not there", key)
					}
					state[key] = p
				case metav1.EventType_EVENT_TYPE_DELETED:
					if !had || old != p && !k.conflate {
						t.Fatalf("DELETED %s with %v, its last state is %v", key, p, old)
					}
					delete(state, key)
				default:
					t.Fatalf("type %v", change.GetType())
				}
			}
			k.synced = k.synced || batch.Mark == metav1.WatchMark_WATCH_MARK_SYNCED
			if batch.Partial || !k.synced {
				return
			}
			if batch.Revision <= k.revision {
				t.Fatalf("revision %d after %d", batch.Revision, k.revision)
			}
			k.revision = batch.Revision
			for i, choice := range k.choices {
				if want := selected(m.at(k.revision), choice); !maps.Equal(k.state[i], want) {
					t.Fatalf("watch of %+v at %d:\n got %v\nwant %v", choice, k.revision, k.state[i], want)
				}
			}
		}
		// pending says whether a client has something to read for sure.
		pending := func(k *client) bool {
			if !k.synced {
				return true
			}
			for i, choice := range k.choices {
				if !maps.Equal(k.state[i], selected(m.last(), choice)) {
					return true
				}
			}
			return false
		}
		for range rapid.IntRange(3, 25).Draw(t, "steps") {
			switch rapid.IntRange(0, 3).Draw(t, "what") {
			case 0:
				connect()
			case 1:
				m.mutate(t, s)
			default:
				if len(clients) > 0 {
					if k := rapid.SampledFrom(clients).Draw(t, "client"); pending(k) {
						read(k)
					}
				}
			}
		}
		for _, k := range clients {
			for pending(k) {
				read(k)
			}
			k.watcher.Close()
		}
	})
}
