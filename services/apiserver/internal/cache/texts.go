package cache

import (
	"math/rand/v2"
	"sync"
	"weak"
)

// texts bounds the JSON that entries keep. JSON is what costs most to make and takes most memory, and nobody knows which of it will be asked for again: when there is too
// much, some of it goes by lot, so that lists larger than the bound still find a part of themselves.
type texts struct {
	limit int

	mu    sync.Mutex
	kept  []keptText
	bytes int
}

// keptText does not keep its entry alive.
type keptText struct {
	entry weak.Pointer[Entry]
	size  int
}

// add counts the text that an entry has got. Others go for it, not itself: it was just asked for.
func (t *texts) add(e *Entry, size int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if size > t.limit {
		e.text.Store(nil)
		return
	}
	if t.bytes+size > t.limit {
		t.makeRoom(size)
	}
	t.kept = append(t.kept, keptText{weak.Make(e), size})
	t.bytes += size
}

// makeRoom forgets texts until there is room for one more of a size. The mutex is held.
func (t *texts) makeRoom(size int) {
	// Entries that are gone have taken theirs with them.
	for i := 0; i < len(t.kept); {
		if t.kept[i].entry.Value() == nil {
			t.remove(i)
		} else {
			i++
		}
	}
	// Below the bound there is room for some time: looking through all of them is rare.
	for least := max(0, t.limit/8*7-size); t.bytes > least && len(t.kept) > 0; {
		i := rand.IntN(len(t.kept))
		if e := t.kept[i].entry.Value(); e != nil {
			e.text.Store(nil)
		}
		t.remove(i)
	}
}

// remove forgets one. The mutex is held.
func (t *texts) remove(i int) {
	last := len(t.kept) - 1
	t.bytes -= t.kept[i].size
	t.kept[i] = t.kept[last]
	t.kept[last] = keptText{}
	t.kept = t.kept[:last]
}

func (t *texts) size() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.bytes
}
