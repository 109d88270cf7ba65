package cache

import (
	"bytes"
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/resource"
)

// textEntries makes entries that count their texts in one place.
func textEntries(t *testing.T, all *texts, n int) []*Entry {
	t.Helper()
	data := podBytes(t, samplePod())
	pods := newTable(resource.For[*corev1.Pod](), all)
	entries := make([]*Entry, n)
	for i := range entries {
		var err error
		if entries[i], err = newEntry(pods, Key(pods.resource, "shop", fmt.Sprint("web-", i)), data, int64(i+1)<<indexBits, ""); err != nil {
			t.Fatal(err)
		}
	}
	return entries
}

func TestTextsAreKeptWithinTheBound(t *testing.T) {
	const size, limit = 1000, 40 * 1000
	all := &texts{limit: limit}
	entries := textEntries(t, all, 100)
	made := 0
	encode := func(*resource.Resource, []byte) ([]byte, error) {
		made++
		return bytes.Repeat([]byte{'x'}, size), nil
	}
	for range 2 {
		for i, e := range entries {
			if got, err := e.Text(encode); err != nil || len(got) != size {
				t.Fatalf("%d bytes, %v", len(got), err)
			}
			kept := 0
			for _, e := range entries[:i+1] {
				if e.text.Load() != nil {
					kept += size
				}
			}
			if all.size() > limit || kept > limit {
				t.Fatalf("after %d: %d bytes counted, %d kept of at most %d", i, all.size(), kept, limit)
			}
		}
	}
	if made <= len(entries) || made == 2*len(entries) {
		t.Errorf("made %d times for 200 questions: a list that is too large must find a part of itself", made)
	}
	if _, err := entries[0].Text(encode); err != nil {
		t.Fatal(err)
	}
	before := made
	if _, err := entries[0].Text(encode); err != nil || made != before {
		t.Errorf("made again, %v", err)
	}
}

func TestTextsOfEntriesThatAreGoneMakeRoom(t *testing.T) {
	all := &texts{limit: 10 * 1000}
	encode := func(*resource.Resource, []byte) ([]byte, error) { return make([]byte, 1000), nil }
	gone := textEntries(t, all, 8)
	var collected atomic.Int64
	for _, e := range gone {
		if _, err := e.Text(encode); err != nil {
			t.Fatal(err)
		}
		runtime.AddCleanup(e, func(int) { collected.Add(1) }, 0)
	}
	n := int64(len(gone))
	gone = nil
	for collected.Load() < n {
		runtime.GC()
		runtime.Gosched()
	}
	live := textEntries(t, all, 8)
	for _, e := range live {
		if _, err := e.Text(encode); err != nil {
			t.Fatal(err)
		}
	}
	for i, e := range live {
		if e.text.Load() == nil {
			t.Errorf("text %d had to go for texts of entries that are gone", i)
		}
	}
}

func TestTextErrorsAreNotKept(t *testing.T) {
	all := &texts{limit: 1000}
	e := textEntries(t, all, 1)[0]
	failure := errors.New("no")
	if _, err := e.Text(func(*resource.Resource, []byte) ([]byte, error) { return nil, failure }); !errors.Is(err, failure) {
		t.Error(err)
	}
	if all.size() != 0 {
		t.Errorf("%d bytes counted", all.size())
	}
}

// What an event was encoded to counts for the log's bound, once, and no longer when the event is gone.
func TestTheLogCountsWhatItsEventsWereEncodedTo(t *testing.T) {
	c, err := New(Config{LogBytes: 10 << 10})
	if err != nil {
		t.Fatal(err)
	}
	pods := c.tables[resource.For[*corev1.Pod]()]
	entries := textEntries(t, nil, 2)
	deleted := &event{table: pods, revision: 3 << indexBits, old: entries[0], at: time.Now()}
	changed := &event{table: pods, revision: 4 << indexBits, old: entries[0], new: entries[1], at: time.Now()}
	c.append(deleted)
	c.append(changed)
	before := c.log.size()
	for range 3 {
		changed.frame(metav1.EventType_EVENT_TYPE_MODIFIED, 1)
	}
	one := c.log.size()
	if one <= before {
		t.Errorf("%d bytes before a frame, %d after", before, one)
	}
	changed.frame(metav1.EventType_EVENT_TYPE_MODIFIED, 2)
	if two := c.log.size(); two-one != one-before {
		t.Errorf("a frame counts %d, another %d", one-before, two-one)
	}
	change := Change{Type: metav1.EventType_EVENT_TYPE_DELETED, Object: entries[0], Revision: deleted.revision, event: deleted}
	encoded := len(change.Encoded())
	with := c.log.size()
	text, err := change.Text(func(*resource.Resource, []byte) ([]byte, error) { return make([]byte, 20<<10), nil })
	if err != nil || len(text) != 20<<10 || c.log.size()-with != 20<<10 || encoded == 0 {
		t.Errorf("%d bytes of text count %d, %v", len(text), c.log.size()-with, err)
	}
	c.trim(time.Now())
	if len(c.log.events) != 1 || c.log.events[0] != changed {
		t.Fatalf("%d events are left: the bound is of all that the log keeps", len(c.log.events))
	}
	// A watch that still has the dropped event encodes it for itself.
	deleted.frame(metav1.EventType_EVENT_TYPE_DELETED, 7)
	c.log.clear(5 << indexBits)
	if c.log.size() != 0 {
		t.Errorf("an empty log keeps %d bytes", c.log.size())
	}
}
