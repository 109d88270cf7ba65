package queue

import (
	"slices"
	"testing"
	"time"

	"dhow.dev/pkg/object"
	"dhow.dev/services/scheduler/internal/filter"
)

var start = time.Unix(1000, 0)

func item(name string, priority int32, created int) *Item {
	return &Item{Key: object.Key{Namespace: "default", Name: name}, UID: name, Priority: priority, Created: start.Add(time.Duration(created) * time.Second)}
}

func names(items []*Item) (out []string) {
	for _, i := range items {
		out = append(out, i.Key.Name)
	}
	return out
}

func expect(t *testing.T, what string, got []*Item, want ...string) {
	t.Helper()
	if !slices.Equal(names(got), want) {
		t.Errorf("%s: %q, want %q", what, names(got), want)
	}
}

func TestPriorityThenAge(t *testing.T) {
	q := New()
	for _, i := range []*Item{item("young", 0, 2), item("urgent", 10, 3), item("old", 0, 1), item("low", -1, 0)} {
		q.Add(i, start)
	}
	expect(t, "first two", q.Pop(2, start), "urgent", "old")
	expect(t, "the rest", q.Pop(10, start), "young", "low")
	expect(t, "nothing left", q.Pop(10, start))
}

func TestBackoffDoubles(t *testing.T) {
	q, now := New(), start
	q.Add(item("p", 0, 0), now)
	for _, want := range []time.Duration{100, 200, 400, 800, 1600, 3200, 6400, 10000, 10000} {
		q.Backoff(q.Pop(1, now)[0], now)
		expect(t, "before its time", q.Pop(1, now.Add(want*time.Millisecond-1)))
		if next := q.Next(now); !next.Equal(now.Add(want * time.Millisecond)) {
			t.Fatalf("next at %v, want in %v ms", next.Sub(now), int64(want))
		}
		now = now.Add(want * time.Millisecond)
	}
	expect(t, "in its time", q.Pop(1, now), "p")
}

func TestParkedPodsWaitForWhatHelps(t *testing.T) {
	q, now := New(), start
	q.Add(item("p", 0, 0), now)
	q.Park(q.Pop(1, now)[0], filter.PodGone, now)
	now = now.Add(time.Second)
	q.Help(filter.NodeLabels, now)
	expect(t, "after an event that does not help", q.Pop(1, now))
	q.Help(filter.PodGone|filter.NodeLabels, now)
	expect(t, "after one that does", q.Pop(1, now), "p")
}

func TestParkedPodsAreFlushed(t *testing.T) {
	q := New()
	q.Add(item("p", 0, 0), start)
	q.Park(q.Pop(1, start)[0], filter.PodGone, start)
	expect(t, "before", q.Pop(1, start.Add(5*time.Minute-1)))
	expect(t, "after five minutes", q.Pop(1, start.Add(5*time.Minute)), "p")
}

// What happened while a pod was being decided is not lost: it backs off instead of waiting for the next such event.
func TestEventsDuringADecisionCount(t *testing.T) {
	q := New()
	q.Add(item("p", 0, 0), start)
	p := q.Pop(1, start)[0]
	q.Help(filter.PodGone, start)
	q.Park(p, filter.PodGone, start)
	expect(t, "after the back-off", q.Pop(1, start.Add(minBackoff)), "p")
}

func TestWhatChangedMeanwhileIsNotParked(t *testing.T) {
	q := New()
	q.Add(item("gone", 0, 0), start)
	q.Add(item("changed", 0, 1), start)
	items := q.Pop(2, start)
	q.Remove(items[0].Key)
	q.Add(items[1], start)
	q.Park(items[0], filter.PodGone, start)
	q.Park(items[1], filter.PodGone, start)
	expect(t, "ready", q.Pop(2, start), "changed")
	if _, ok := q.Get(items[0].Key); ok {
		t.Error("a removed pod is known again")
	}
}
