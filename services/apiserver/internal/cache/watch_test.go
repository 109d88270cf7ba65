package cache_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	storev1 "dhow.dev/gen/go/dhow/store/v1"
	"dhow.dev/services/apiserver/internal/cache"
)

func watchPods(t tester, c *cache.Cache, options cache.WatchOptions, selections ...cache.Selection) *cache.Watcher {
	t.Helper()
	watched := make([]cache.Watched, len(selections))
	for i, s := range selections {
		watched[i] = cache.Watched{Selection: s, ID: uint32(i)}
	}
	w, err := c.Watch(within(t), watched, options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	return w
}

func next(t tester, w *cache.Watcher) *cache.Batch {
	t.Helper()
	b, err := w.Next(within(t))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestFramesAreShared: the streams of one kind send the very same buffers, and the object's bytes are those of the cache.
func TestFramesAreShared(t *testing.T) {
	s := newStore(t)
	c := newCache(t, cache.Config{Store: s})
	a := watchPods(t, c, cache.WatchOptions{}, selectPods(t, "", "", ""))
	b := watchPods(t, c, cache.WatchOptions{}, selectPods(t, "", "", "spec.nodeName=n1"))
	next(t, a)
	next(t, b)
	commit(t, s, put(t, pod{"a", "p", "u", "n1", "x"}))
	fa, fb := next(t, a).Frame(), next(t, b).Frame()
	if len(fa) != len(fb) {
		t.Fatalf("%d and %d buffers", len(fa), len(fb))
	}
	for i := range fa {
		if &fa[i].ReadOnlyData()[0] != &fb[i].ReadOnlyData()[0] {
			t.Errorf("buffer %d is not shared", i)
		}
	}
	var typed corev1.PodWatchResponse
	if err := proto.Unmarshal(fa.Bytes(), &typed); err != nil {
		t.Fatal(err)
	}
	if change := typed.GetChanges()[0]; change.GetObject().GetMetadata().GetName() != "p" || change.GetType() != metav1.EventType_EVENT_TYPE_ADDED {
		t.Errorf("typed response: %v", &typed)
	}
}

func TestObjectsEnterAndLeaveSelections(t *testing.T) {
	s := newStore(t)
	c := newCache(t, cache.Config{Store: s})
	w := watchPods(t, c, cache.WatchOptions{}, selectPods(t, "", "", "spec.nodeName=n1"))
	if b := next(t, w); b.Mark != metav1.WatchMark_WATCH_MARK_SYNCED || len(b.Changes) != 0 {
		t.Fatalf("the state of an empty selection: %+v", b)
	}
	commit(t, s, put(t, pod{"a", "p", "u", "", "x"}))
	commit(t, s, put(t, pod{"a", "p", "u", "n1", "x"}))
	left := commit(t, s, put(t, pod{"a", "p", "u", "n2", "x"}))
	commit(t, s, remove(pod{namespace: "a", name: "p"}))
	var types []metav1.EventType
	for len(types) < 2 {
		for _, change := range next(t, w).Changes {
			types = append(types, change.Type)
			if change.Type == metav1.EventType_EVENT_TYPE_DELETED {
				if node, _ := change.Object.Field("spec.nodeName"); node != "n1" || change.Revision>>10 != left>>10 {
					t.Errorf("DELETED has node %q at %d, want the last state n1 at the revision of leaving, %d", node, change.Revision, left)
				}
			}
		}
	}
	if types[0] != metav1.EventType_EVENT_TYPE_ADDED || types[1] != metav1.EventType_EVENT_TYPE_DELETED {
		t.Errorf("%v, want ADDED and DELETED", types)
	}
}

func TestSlowWatchersExpire(t *testing.T) {
	s := newStore(t)
	c := newCache(t, cache.Config{Store: s, LogBytes: 4 << 10})
	slow := watchPods(t, c, cache.WatchOptions{}, selectPods(t, "", "", ""))
	other := watchPods(t, c, cache.WatchOptions{}, selectPods(t, "b", "", ""))
	next(t, slow)
	next(t, other)
	first := c.Revision()
	var last int64
	for i := range 50 {
		last = commit(t, s, put(t, pod{"a", fmt.Sprintf("p%d", i), "u", "n1", "x"}))
	}
	if err := c.WaitFor(within(t), last); err != nil {
		t.Fatal(err)
	}
	if _, err := slow.Next(within(t)); !apierrors.IsResourceExpired(err) {
		t.Errorf("a watch behind the log: %v, want Expired", err)
	}
	if _, err := c.Watch(within(t), []cache.Watched{{Selection: selectPods(t, "", "", "")}}, cache.WatchOptions{After: &first}); !apierrors.IsResourceExpired(err) {
		t.Errorf("a watch that resumes before the log: %v, want Expired", err)
	}
	// What concerned nobody does not expire those it did not concern.
	revision := commit(t, s, put(t, pod{"b", "p", "u", "n1", "x"}))
	if b := next(t, other); len(b.Changes) != 1 || b.Revision != revision {
		t.Errorf("the watch of another namespace: %+v", b)
	}
}

func TestIdleWatchesLearnTheRevision(t *testing.T) {
	s := newStore(t)
	c := newCache(t, cache.Config{Store: s, ProgressInterval: 10 * time.Millisecond})
	w := watchPods(t, c, cache.WatchOptions{}, selectPods(t, "b", "", ""))
	next(t, w)
	revision := commit(t, s, put(t, pod{"a", "p", "u", "n1", "x"}))
	for {
		b := next(t, w)
		if b.Mark != metav1.WatchMark_WATCH_MARK_PROGRESS || len(b.Changes) != 0 {
			t.Fatalf("%+v, want a progress mark", b)
		}
		if b.Revision >= revision {
			return
		}
	}
}

// broken is a store whose watches can be cut, and whose history can be gone.
type broken struct {
	storev1.StoreClient
	mu      sync.Mutex
	cut     []context.CancelFunc
	failing error
}

func (b *broken) Watch(ctx context.Context, q *storev1.WatchRequest, opts ...grpc.CallOption) (grpc.ServerStreamingClient[storev1.WatchResponse], error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.failing != nil {
		err := b.failing
		b.failing = nil
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	b.cut = append(b.cut, cancel)
	return b.StoreClient.Watch(ctx, q, opts...)
}

func (b *broken) sever(failure error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.failing = failure
	for _, cancel := range b.cut {
		cancel()
	}
	b.cut = nil
}

func TestReconnectingLosesNothing(t *testing.T) {
	s := &broken{StoreClient: newStore(t)}
	c := newCache(t, cache.Config{Store: s})
	w := watchPods(t, c, cache.WatchOptions{}, selectPods(t, "", "", ""))
	next(t, w)
	for i := range 5 {
		s.sever(status.Error(codes.Unavailable, "gone for a moment"))
		commit(t, s, put(t, pod{"a", fmt.Sprintf("p%d", i), "u", "n1", "x"}))
		if b := next(t, w); len(b.Changes) != 1 || b.Changes[0].Object.Name != fmt.Sprintf("p%d", i) {
			t.Fatalf("after cut %d: %+v", i, b)
		}
	}
}

func TestLostHistoryIsReadAnew(t *testing.T) {
	s := &broken{StoreClient: newStore(t)}
	c := newCache(t, cache.Config{Store: s})
	w := watchPods(t, c, cache.WatchOptions{}, selectPods(t, "", "", ""))
	next(t, w)
	s.sever(status.Error(codes.OutOfRange, "compacted"))
	commit(t, s, put(t, pod{"a", "p", "u", "n1", "x"}))
	if _, err := w.Next(within(t)); !apierrors.IsResourceExpired(err) {
		t.Errorf("%v, want Expired", err)
	}
	if _, err := c.Get(within(t), pods, "a", "p", nil); err != nil {
		t.Errorf("the new state: %v", err)
	}
}

// TestCommitsAreNotSplit: all changes of one commit that concern a watch come in one response, across kinds of selections.
func TestCommitsAreNotSplit(t *testing.T) {
	s := newStore(t)
	c := newCache(t, cache.Config{Store: s})
	w := watchPods(t, c, cache.WatchOptions{}, selectPods(t, "a", "", ""), selectPods(t, "", "", "spec.nodeName=n1"))
	next(t, w)
	commit(t, s, put(t, pod{"a", "p1", "u", "n2", "x"}), put(t, pod{"b", "p1", "u", "n1", "x"}), put(t, pod{"a", "p2", "u", "n1", "x"}))
	b := next(t, w)
	if len(b.Changes) != 4 || b.Partial {
		t.Fatalf("%d changes, partial %v, want all 4 at once", len(b.Changes), b.Partial)
	}
}

func TestConflationKeepsTheNewest(t *testing.T) {
	s := newStore(t)
	c := newCache(t, cache.Config{Store: s})
	w := watchPods(t, c, cache.WatchOptions{Conflate: true}, selectPods(t, "", "", ""))
	next(t, w)
	p := pod{"a", "p", "u1", "n1", "x"}
	var last int64
	for _, step := range []struct{ app, uid string }{{"1", "u1"}, {"2", "u1"}, {"3", "u1"}} {
		p.app, p.uid = step.app, step.uid
		commit(t, s, put(t, p))
	}
	commit(t, s, remove(p))
	for _, app := range []string{"4", "5"} {
		p.app, p.uid = app, "u2"
		last = commit(t, s, put(t, p))
	}
	if err := c.WaitFor(within(t), last); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, change := range next(t, w).Changes {
		got = append(got, fmt.Sprint(change.Type, change.Object.Labels.Get("app")))
	}
	want := "[EVENT_TYPE_ADDED3 EVENT_TYPE_DELETED3 EVENT_TYPE_ADDED5]"
	if fmt.Sprint(got) != want {
		t.Errorf("%v, want %s", got, want)
	}
}

func TestTheFutureTimesOut(t *testing.T) {
	s := newStore(t)
	c := newCache(t, cache.Config{Store: s, WaitTimeout: time.Millisecond})
	future := int64(1) << 40
	if _, err := c.Get(within(t), pods, "a", "p", &future); !apierrors.IsTimeout(err) {
		t.Errorf("%v, want Timeout", err)
	}
}

func TestContinueTokens(t *testing.T) {
	s := newStore(t)
	c := newCache(t, cache.Config{Store: s})
	for i := range 3 {
		commit(t, s, put(t, pod{"a", fmt.Sprintf("p%d", i), "u", "n1", "x"}))
	}
	all := selectPods(t, "", "", "")
	page, err := c.List(within(t), all, cache.ListOptions{Limit: 2})
	if err != nil || page.Continue == "" || page.Remaining != 1 {
		t.Fatalf("%+v, %v: want a token and 1 remaining", page, err)
	}
	zero := int64(0)
	for _, bad := range []cache.ListOptions{
		{Continue: "x"}, {Continue: page.Continue + "!"}, {Continue: page.Continue, MinRevision: &zero}, {Limit: -1},
	} {
		if _, err := c.List(within(t), all, bad); !apierrors.IsBadRequest(err) {
			t.Errorf("%+v: %v, want BadRequest", bad, err)
		}
	}
}

// TestFanOutAllocatesTheSameForAll: what a change costs in allocations does not grow with its watchers.
// TestContinueTokensEnd: a token that is too old is refused with one that goes on with the state of now, which tells rightly what remains.
func TestContinueTokensEnd(t *testing.T) {
	s := newStore(t)
	c := newCache(t, cache.Config{Store: s, PageAge: time.Nanosecond})
	for _, name := range []string{"a", "b", "c", "d"} {
		commit(t, s, put(t, pod{"n", name, "u", "n1", "x"}))
	}
	for _, all := range []cache.Selection{selectPods(t, "n", "", ""), selectPods(t, "", "", "")} {
		page, err := c.List(within(t), all, cache.ListOptions{Limit: 1})
		if err != nil || page.Entries[0].Name != "a" {
			t.Fatalf("%+v, %v", page, err)
		}
		commit(t, s, put(t, pod{"n", "aa", "u", "n1", "x"}))
		_, err = c.List(within(t), all, cache.ListOptions{Limit: 1, Continue: page.Continue})
		var expired *apierrors.StatusError
		if !errors.As(err, &expired) || !apierrors.IsResourceExpired(err) || expired.ErrStatus.Continue == "" {
			t.Fatalf("%v, want Expired with a token", err)
		}
		page, err = c.List(within(t), all, cache.ListOptions{Limit: 1, Continue: expired.ErrStatus.Continue})
		if err != nil || len(page.Entries) != 1 || page.Entries[0].Name != "aa" || page.Remaining != 3 {
			t.Errorf("%+v, %v", page, err)
		}
	}
}

func TestFanOutAllocatesTheSameForAll(t *testing.T) {
	const watchers, rounds = 200, 20
	s := newStore(t)
	c := newCache(t, cache.Config{Store: s})
	all := make([]*cache.Watcher, watchers)
	for i := range all {
		all[i] = watchPods(t, c, cache.WatchOptions{}, selectPods(t, "", "", "spec.nodeName=n1"))
		next(t, all[i])
	}
	ctx := within(t)
	var allocated uint64
	for i := range rounds {
		revision := commit(t, s, put(t, pod{"a", "p", "u", "n1", fmt.Sprint(i)}))
		if err := c.WaitFor(ctx, revision); err != nil {
			t.Fatal(err)
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for _, w := range all {
			batch, err := w.Next(ctx)
			if err != nil {
				t.Fatal(err)
			}
			batch.Frame().Free()
		}
		runtime.ReadMemStats(&after)
		if i > 0 { // the first batch makes room for changes
			allocated += after.Mallocs - before.Mallocs
		}
	}
	// The frame is made once, by whoever is first; the store's own goroutines allocate a little meanwhile.
	if per := allocated / (rounds - 1); per > watchers/2 {
		t.Errorf("%d allocations to serve %d watchers: they grow with the watchers", per, watchers)
	}
}

// BenchmarkFanOut commits one change of a pod and lets all watchers of its node take its frame. Allocations are per change: they must not grow with the
// watchers. Bystanders watch other nodes and must cost nothing.
func BenchmarkFanOut(b *testing.B) {
	for _, watchers := range []int{1, 100, 500} {
		b.Run(fmt.Sprintf("watchers=%d", watchers), func(b *testing.B) {
			s := newStore(b)
			c := newCache(b, cache.Config{Store: s})
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			for i := range 200 {
				bystander := watchPods(b, c, cache.WatchOptions{}, selectPods(b, "", "", fmt.Sprintf("spec.nodeName=other%d", i)))
				next(b, bystander)
			}
			var seen sync.WaitGroup
			for range watchers {
				w := watchPods(b, c, cache.WatchOptions{}, selectPods(b, "", "", "spec.nodeName=n1"))
				next(b, w)
				go func() {
					for {
						batch, err := w.Next(ctx)
						if err != nil {
							return
						}
						frame := batch.Frame()
						n := len(batch.Changes)
						frame.Free()
						for range n {
							seen.Done()
						}
					}
				}()
			}
			p := pod{"a", "p", "u", "n1", "x"}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				seen.Add(watchers)
				p.app = fmt.Sprint(i)
				commit(b, s, put(b, p))
				seen.Wait()
			}
		})
	}
}
