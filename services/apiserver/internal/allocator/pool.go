package allocator

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"

	storev1 "dhow.dev/gen/go/dhow/store/v1"
)

// pool is numbered things, each with a claim key. What it remembers of the claims is a hint.
type pool struct {
	store  storev1.StoreClient
	prefix string
	size   int
	// name and parse turn a number into the last part of its claim key, and back.
	name  func(int) string
	parse func(string) (int, bool)

	mu   sync.Mutex
	used bitmap
	// misses counts the numbers that the hint had as free and others had claimed, since it was loaded.
	misses int
}

// maxMisses is how many of them one by one are cheaper than reading all claims.
const maxMisses = 4

type bitmap []uint64

func newBitmap(size int) bitmap { return make(bitmap, (size+63)/64) }

func (b bitmap) has(i int) bool { return b[i/64]&(1<<(i%64)) != 0 }
func (b bitmap) set(i int)      { b[i/64] |= 1 << (i % 64) }
func (b bitmap) clear(i int)    { b[i/64] &^= 1 << (i % 64) }

func newPool(store storev1.StoreClient, prefix string, size int, name func(int) string, parse func(string) (int, bool)) *pool {
	return &pool{store: store, prefix: prefix, size: size, name: name, parse: parse, used: newBitmap(size)}
}

func (p *pool) key(i int) string { return p.prefix + p.name(i) }

// claim claims a number that the object asks for, and returns false when it is known to be taken.
func (p *pool) claim(claims Claims, i int, holder []byte) bool {
	if claimed, _ := claims.Known(p.key(i)); claimed {
		p.note(i, true)
		return false
	}
	p.take(claims, i, holder)
	return true
}

// pick claims a free number out of [from, to), the first one at or after start, going round. It returns false when all are taken.
func (p *pool) pick(ctx context.Context, claims Claims, from, to, start int, holder []byte) (int, bool, error) {
	for loaded := range 2 {
		if i, ok := p.candidate(claims, from, to, start); ok && (loaded == 1 || !p.stale()) {
			p.take(claims, i, holder)
			return i, true, nil
		}
		// The hint may remember what others have released meanwhile.
		if err := p.load(ctx); err != nil {
			return 0, false, err
		}
	}
	return 0, false, nil
}

func (p *pool) candidate(claims Claims, from, to, start int) (int, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for n := range to - from {
		i := from + (start-from+n)%(to-from)
		if p.used.has(i) {
			continue
		}
		if claimed, _ := claims.Known(p.key(i)); claimed {
			p.used.set(i)
			p.misses++
			continue
		}
		return i, true
	}
	return 0, false
}

// stale says whether the hint is so far behind what other servers have claimed that learning it number by number would take too many attempts.
func (p *pool) stale() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.misses >= maxMisses
}

func (p *pool) take(claims Claims, i int, holder []byte) {
	claims.Claim(p.key(i), holder)
	claims.OnCommit(func() { p.note(i, true) })
}

func (p *pool) release(claims Claims, i int) {
	claims.Release(p.key(i))
	claims.OnCommit(func() { p.note(i, false) })
}

func (p *pool) note(i int, used bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if used {
		p.used.set(i)
	} else {
		p.used.clear(i)
	}
}

// load reads all claims anew.
func (p *pool) load(ctx context.Context) error {
	used := newBitmap(p.size)
	err := list(ctx, p.store, p.prefix, func(e *storev1.Entry) error {
		if i, ok := p.parse(string(e.GetKey())[len(p.prefix):]); ok {
			used.set(i)
		}
		return nil
	})
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.used, p.misses = used, 0
	return nil
}

// random returns a number of [from, to).
func random(from, to int) int { return from + rand.IntN(to-from) }

// list visits all keys with a prefix.
func list(ctx context.Context, store storev1.StoreClient, prefix string, visit func(*storev1.Entry) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the stream on every way out
	request := &storev1.ListRequest{}
	request.SetPrefix([]byte(prefix))
	stream, err := store.List(ctx, request)
	if err != nil {
		return fmt.Errorf("list %s: %w", prefix, err)
	}
	for {
		chunk, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("list %s: %w", prefix, err)
		}
		for _, e := range chunk.GetEntries() {
			if err := visit(e); err != nil {
				return err
			}
		}
	}
}
