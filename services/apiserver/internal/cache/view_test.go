package cache_test

import (
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	eventsv1 "dhow.dev/gen/go/dhow/events/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	storev1 "dhow.dev/gen/go/dhow/store/v1"
	"dhow.dev/pkg/resource"
	"dhow.dev/services/apiserver/internal/cache"
)

var (
	coreEvents  = resource.For[*corev1.Event]()
	groupEvents = resource.For[*eventsv1.Event]()
)

// happened is an event about a pod as it is stored.
func happened(t tester, name, message string) *storev1.Operation {
	t.Helper()
	data, err := proto.Marshal(corev1.Event_builder{
		Metadata:       metav1.ObjectMeta_builder{Namespace: proto.String("shop"), Name: &name, Uid: proto.String("u-" + name)}.Build(),
		InvolvedObject: corev1.ObjectReference_builder{Name: proto.String("pod-" + name)}.Build(), Message: &message,
	}.Build())
	if err != nil {
		t.Fatal(err)
	}
	return storev1.Operation_builder{Key: []byte(cache.Key(coreEvents, "shop", name)), Put: data}.Build()
}

// TestViewsAreMadeOnce: many readers and watchers of the version that is not stored share one conversion, and its buffers, per object version.
func TestViewsAreMadeOnce(t *testing.T) {
	s := newStore(t)
	c := newCache(t, cache.Config{Store: s})
	selected := func(fields string) cache.Selection {
		selection, err := cache.Select(groupEvents, "shop", "", fields)
		if err != nil {
			t.Fatal(err)
		}
		return selection
	}
	watchers := make([]*cache.Watcher, 8)
	for i := range watchers {
		watchers[i] = watchPods(t, c, cache.WatchOptions{}, selected(""))
		next(t, watchers[i])
	}
	narrow := watchPods(t, c, cache.WatchOptions{}, selected("regarding.name=pod-b"))
	next(t, narrow)

	revision := commit(t, s, happened(t, "a", "first"), happened(t, "b", "second"))
	if err := c.WaitFor(within(t), revision); err != nil {
		t.Fatal(err)
	}
	frames := make([][]byte, len(watchers))
	var reading sync.WaitGroup
	for i, w := range watchers {
		reading.Go(func() {
			b, err := w.Next(within(t))
			if err != nil {
				t.Error(err)
				return
			}
			if len(b.Changes) != 2 || b.Changes[0].Object.Resource != groupEvents {
				t.Errorf("%d changes of %v", len(b.Changes), b.Changes[0].Object.Resource)
				return
			}
			frames[i] = b.Frame().Bytes()
		})
	}
	reading.Wait()
	var response eventsv1.EventWatchResponse
	if err := proto.Unmarshal(frames[0], &response); err != nil {
		t.Fatal(err)
	}
	if changes := response.GetChanges(); len(changes) != 2 || changes[1].GetObject().GetNote() != "second" || changes[1].GetObject().GetMetadata().GetResourceVersion() == "" {
		t.Errorf("%v", changes)
	}
	for _, f := range frames {
		if string(f) != string(frames[0]) {
			t.Error("watchers got different bytes")
		}
	}
	if b := next(t, narrow); len(b.Changes) != 1 || b.Changes[0].Object.Name != "b" {
		t.Errorf("by what it regards: %v", b.Changes)
	}

	list, err := c.List(within(t), selected(""), cache.ListOptions{})
	if err != nil || len(list.Entries) != 2 {
		t.Fatalf("%v, %v", list, err)
	}
	one, err := c.Get(within(t), groupEvents, "shop", "a", nil)
	if err != nil || one != list.Entries[0] || c.Peek(groupEvents, "shop", "a") != one {
		t.Errorf("get %p, list %p: not the same conversion", one, list.Entries[0])
	}
	if name, ok := one.Field("regarding.name"); !ok || name != "pod-a" {
		t.Errorf("its own field label: %q, %v", name, ok)
	}
	stored, err := c.Get(within(t), coreEvents, "shop", "a", nil)
	if err != nil || stored.Resource != coreEvents || stored.Revision != one.Revision {
		t.Errorf("as stored: %v, %v", stored, err)
	}

	// A deletion shows the last state in the watcher's version.
	commit(t, s, storev1.Operation_builder{Key: []byte(cache.Key(coreEvents, "shop", "a")), Delete: proto.Bool(true)}.Build())
	response.Reset()
	if err := proto.Unmarshal(next(t, watchers[0]).Frame().Bytes(), &response); err != nil {
		t.Fatal(err)
	}
	if gone := response.GetChanges(); len(gone) != 1 || gone[0].GetType() != metav1.EventType_EVENT_TYPE_DELETED || gone[0].GetObject().GetNote() != "first" {
		t.Errorf("%v", gone)
	}
	if c.Peek(groupEvents, "shop", "a") != nil {
		t.Error("a view of what is gone")
	}

	// What is stored as another version has no keys of its own.
	if _, _, _, ok := cache.ParseKey("/registry/events.k8s.io/events/shop/a"); ok {
		t.Error("a key of events.k8s.io")
	}
}

// TestViewsOfTheUnreadable: what cannot be converted is left out, and the rest goes on.
func TestViewsOfTheUnreadable(t *testing.T) {
	s := newStore(t)
	c := newCache(t, cache.Config{Store: s})
	// Valid to a scanner that looks at metadata only, but no event: field 2 is a message.
	broken := storev1.Operation_builder{Key: []byte(cache.Key(coreEvents, "shop", "x")), Put: []byte{0x10, 0x05}}.Build()
	if err := c.WaitFor(within(t), commit(t, s, broken, happened(t, "a", "fine"))); err != nil {
		t.Fatal(err)
	}
	selection, err := cache.Select(groupEvents, "", "", "")
	if err != nil {
		t.Fatal(err)
	}
	list, err := c.List(within(t), selection, cache.ListOptions{})
	if err != nil || len(list.Entries) != 1 || list.Entries[0].Name != "a" {
		t.Errorf("%v, %v", list, err)
	}
	w := watchPods(t, c, cache.WatchOptions{}, selection)
	if b := next(t, w); len(b.Changes) != 1 || b.Mark != metav1.WatchMark_WATCH_MARK_SYNCED {
		t.Errorf("%d changes, mark %v", len(b.Changes), b.Mark)
	}
}
