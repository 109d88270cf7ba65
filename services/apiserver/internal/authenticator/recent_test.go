package authenticator

import (
	"context"
	"testing"
	"time"

	"pgregory.net/rapid"

	"dhow.dev/pkg/identity"
)

type numbered int

func (numbered) check(context.Context, []string) (identity.Identity, []string, error) {
	return identity.Identity{}, nil, nil
}

func (numbered) stands(*Verifier) bool { return true }

// TestRecent compares what is remembered with a list of all that was put.
func TestRecent(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const ttl = 10
		type put struct {
			number numbered
			at     int
		}
		now, puts := 0, map[string]put{}
		r := newRecent(ttl*time.Second, func() time.Time { return time.Unix(int64(now), 0) })
		names := rapid.SampledFrom([]string{"a", "b", "c"})
		for n := range rapid.IntRange(1, 80).Draw(t, "steps") {
			now += rapid.IntRange(0, 6).Draw(t, "wait")
			name := names.Draw(t, "name")
			if rapid.Bool().Draw(t, "put") {
				r.put(digest(name), numbered(n))
				puts[name] = put{numbered(n), now}
			}
			last, ok := puts[name]
			want := ok && now-last.at < ttl
			if got := r.get(digest(name)); (got != nil) != want || want && got != last.number {
				t.Fatalf("%s: %v, want %v %v", name, got, want, last)
			}
		}
	})
}

func TestRecentIsBounded(t *testing.T) {
	r := newRecent(time.Hour, time.Now)
	key := digest("")
	for n := range 3 * maxRecent {
		key[0], key[1], key[2] = byte(n), byte(n>>8), byte(n>>16)
		r.put(key, numbered(n))
	}
	if size := len(r.young) + len(r.old); size > 2*maxRecent {
		t.Fatalf("%d are remembered", size)
	}
	if r.get(key) == nil {
		t.Fatal("the last one is forgotten")
	}
}

func BenchmarkRemembered(b *testing.B) {
	r := newRecent(time.Hour, time.Now)
	raw := string(make([]byte, 1100))
	r.put(digest(raw), numbered(1))
	b.ReportAllocs()
	for b.Loop() {
		if r.get(digest(raw)) == nil {
			b.Fatal("forgotten")
		}
	}
}
