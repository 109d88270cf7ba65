package cache

import (
	"time"

	"github.com/tidwall/btree"

	"dhow.dev/pkg/object"
	"dhow.dev/pkg/resource"
)

type tree = btree.BTreeG[*Entry]

// table holds the objects of one kind. Guarded by Cache.mu.
type table struct {
	resource *resource.Resource
	fields   *fieldSet
	prefix   string
	texts    *texts

	objects map[object.Key]*Entry
	// ordered is by store key; that is also the order of pages that come from the store.
	ordered *tree
	// frozen is a copy of ordered that nothing has been written to since, or nil.
	frozen *tree
	// found holds the objects of each bucket that lists look into: those of indexed fields and owners.
	found map[bucketKey]map[*Entry]struct{}
	pages []page

	// events are all logged events of the kind. buckets are parts of them, for as long as watches read them.
	events  bucket
	buckets map[bucketKey]*bucket
}

// page is a state that a paged list goes on from.
type page struct {
	revision int64
	objects  *tree
	until    time.Time
}

// maxPages bounds the states per kind that are kept for paged lists; more lists at once continue from the store.
const maxPages = 32

func newTable(r *resource.Resource, texts *texts) *table {
	t := &table{resource: r, fields: fieldsOf(r), prefix: prefixOf(r), texts: texts, buckets: map[bucketKey]*bucket{}}
	t.clear()
	return t
}

// clear forgets all objects and events, but not the watchers.
func (t *table) clear() {
	t.objects = map[object.Key]*Entry{}
	t.ordered = btree.NewBTreeGOptions(func(a, b *Entry) bool { return a.Key < b.Key }, btree.Options{NoLocks: true})
	t.frozen, t.pages = nil, nil
	t.found = map[bucketKey]map[*Entry]struct{}{}
	t.events.clear()
	for _, b := range t.buckets {
		b.clear()
	}
}

// set puts, replaces or (new is nil) removes an object and returns what was there.
func (t *table) set(key object.Key, new *Entry) (old *Entry) {
	old = t.objects[key]
	t.frozen = nil
	if new == nil {
		delete(t.objects, key)
		if old != nil {
			t.ordered.Delete(old)
		}
	} else {
		t.objects[key] = new
		t.ordered.Set(new)
	}
	eachBucket(old, t.fields, func(k bucketKey) {
		if listed(k) {
			delete(t.found[k], old)
			if len(t.found[k]) == 0 {
				delete(t.found, k)
			}
		}
	})
	eachBucket(new, t.fields, func(k bucketKey) {
		if listed(k) {
			if t.found[k] == nil {
				t.found[k] = map[*Entry]struct{}{}
			}
			t.found[k][new] = struct{}{}
		}
	})
	return old
}

// listed says whether objects, not just watches, are indexed by a bucket's dimension: names are in the map, namespaces are ranges of the tree.
func listed(k bucketKey) bool { return k.dimension == byField || k.dimension == byOwner }

// freeze returns an immutable copy of the ordered objects. The caller holds mu for writing.
func (t *table) freeze() *tree {
	if t.frozen == nil {
		t.frozen = t.ordered.Copy()
	}
	return t.frozen
}

// keep remembers a state for the next page of a list. The caller holds mu for writing.
func (t *table) keep(revision int64, objects *tree, now time.Time, age time.Duration) {
	t.expire(now)
	for i := range t.pages {
		if t.pages[i].revision == revision {
			t.pages[i].until = now.Add(age)
			return
		}
	}
	if len(t.pages) >= maxPages {
		t.pages = t.pages[1:]
	}
	t.pages = append(t.pages, page{revision: revision, objects: objects, until: now.Add(age)})
}

// expire drops the states that are too old.
func (t *table) expire(now time.Time) {
	kept := t.pages[:0]
	for _, p := range t.pages {
		if now.Before(p.until) {
			kept = append(kept, p)
		}
	}
	clear(t.pages[len(kept):])
	t.pages = kept
}

// at returns the kept state of a revision, or nil.
func (t *table) at(revision int64) *tree {
	for _, p := range t.pages {
		if p.revision == revision {
			return p.objects
		}
	}
	return nil
}
