package compactor

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"dhow.dev/services/store/internal/engine"
	"dhow.dev/services/store/internal/memory"
)

func put(t *testing.T, e engine.Engine, n int) engine.Revision {
	t.Helper()
	result, err := e.Commit(t.Context(), []engine.Member{{Writes: []engine.Write{{Key: []byte("/k"), Value: fmt.Append(nil, n)}}}})
	if err != nil {
		t.Fatal(err)
	}
	return result.Revision
}

func compacted(t *testing.T, e engine.Engine) (compacted, newest engine.Revision) {
	t.Helper()
	status, err := e.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return status.Compacted, status.Revision
}

// TestKeepsHistory: three instances on one database; what is younger than the history stays readable, what is older by a round goes.
func TestKeepsHistory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := memory.New(memory.Config{})
		const history = 10 * time.Minute
		for range 3 {
			c := New(Config{Engine: e, History: history, Logger: slog.New(slog.DiscardHandler)})
			go c.Run(t.Context())
		}
		var written []mark // by minute
		for minute := range 60 {
			written = append(written, mark{Time: time.Now(), Revision: put(t, e, minute)})
			time.Sleep(time.Minute)
			synctest.Wait()
			oldest, _ := compacted(t, e)
			for _, w := range written {
				age := time.Since(w.Time)
				if age <= history && w.Revision < oldest {
					t.Fatalf("minute %d: revision %d is %s old and compacted (to %d)", minute, w.Revision, age, oldest)
				}
				if age > history+3*time.Minute && w.Revision >= oldest {
					t.Fatalf("minute %d: revision %d is %s old and still there (compacted to %d)", minute, w.Revision, age, oldest)
				}
			}
		}
		// One owner a round: no more than a mark a minute was written beside the puts.
		if _, newest := compacted(t, e); newest > 1+2*60+2 {
			t.Fatalf("%d revisions for 60 puts: several instances made marks in one round", newest)
		}
	})
}

// TestIdle: a database in which nothing changes is compacted to its newest state and then left alone.
func TestIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := memory.New(memory.Config{})
		last := put(t, e, 1)
		go New(Config{Engine: e, Logger: slog.New(slog.DiscardHandler)}).Run(t.Context())
		time.Sleep(30 * time.Minute)
		synctest.Wait()
		oldest, before := compacted(t, e)
		if oldest < last {
			t.Fatalf("compacted to %d, want %d", oldest, last)
		}
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		if _, after := compacted(t, e); after != before {
			t.Fatalf("an idle database went from revision %d to %d", before, after)
		}
	})
}

// TestSurvivesRestart: marks are in the database, so a store that restarts more often than the history is long compacts all the same.
func TestSurvivesRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := memory.New(memory.Config{})
		first := put(t, e, 0)
		for i := range 30 {
			c := New(Config{Engine: e, Logger: slog.New(slog.DiscardHandler)})
			if err := c.round(t.Context(), time.Now()); err != nil {
				t.Fatal(err)
			}
			put(t, e, i)
			time.Sleep(time.Minute)
		}
		if oldest, _ := compacted(t, e); oldest <= first {
			t.Fatalf("after 30 minutes and as many restarts nothing is compacted")
		}
	})
}

// full is a database that refuses puts until it was compacted past a revision.
type full struct {
	*memory.Engine
	until atomic.Int64
	at    atomic.Int64
}

func (f *full) Commit(ctx context.Context, members []engine.Member) (engine.Result, error) {
	for _, m := range members {
		for _, w := range m.Writes {
			if f.full() && !w.Delete {
				return engine.Result{}, engine.ErrNoSpace
			}
		}
	}
	return f.Engine.Commit(ctx, members)
}

func (f *full) Compact(ctx context.Context, to engine.Revision) error {
	f.at.Store(max(f.at.Load(), int64(to)))
	return f.Engine.Compact(ctx, to)
}

func (f *full) full() bool { return f.at.Load() < f.until.Load() }

func (f *full) Size(context.Context) (engine.Size, error) {
	return engine.Size{Full: f.full()}, nil
}

// TestFull: what is deleted in a full database is compacted, though marks cannot be written there.
func TestFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &full{Engine: memory.New(memory.Config{})}
		put(t, f, 1)
		go New(Config{Engine: f, Logger: slog.New(slog.DiscardHandler)}).Run(t.Context())
		time.Sleep(30 * time.Minute)
		_, newest := compacted(t, f)
		f.until.Store(int64(newest) + 1) // full: only the delete's revision sets it free
		result, err := f.Commit(t.Context(), []engine.Member{{Writes: []engine.Write{{Key: []byte("/k"), Delete: true}}}})
		if err != nil || int64(result.Revision) != f.until.Load() {
			t.Fatalf("delete: %v %v", result, err)
		}
		time.Sleep(15 * time.Minute)
		synctest.Wait()
		put(t, f, 2)
	})
}
