package etcd_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"dhow.dev/services/store/internal/engine"
	"dhow.dev/services/store/internal/etcd"
	"dhow.dev/services/store/internal/etcdprocess"
	"dhow.dev/services/store/internal/memory"
)

// sentinels are the errors that both engines must agree on.
var sentinels = []error{
	engine.ErrCompacted, engine.ErrFuture, engine.ErrLeaseNotFound, engine.ErrNoSpace, engine.ErrTooLarge, engine.ErrRejected,
	engine.ErrUnavailable, engine.ErrUncertain,
}

func sentinel(err error) error {
	for _, s := range sentinels {
		if errors.Is(err, s) {
			return s
		}
	}
	return err
}

// pair is one operation on both engines.
type pair struct {
	memory, etcd engine.Engine
	// leases are made on both; their ids differ, so what is compared are their positions. The id 0 stands for none.
	leases [][2]int64
	// newest and compacted are the revisions of both.
	newest, compacted engine.Revision
}

// agree runs something on both and compares what it says and how it failed.
func (p *pair) agree(t *rapid.T, what string, run func(side int, e engine.Engine) (string, error)) (failed error) {
	a, errA := run(0, p.memory)
	b, errB := run(1, p.etcd)
	if sentinel(errA) != sentinel(errB) {
		t.Fatalf("%s: memory %v, etcd %v", what, errA, errB)
	}
	if errA == nil && a != b {
		t.Fatalf("%s:\nmemory %s\netcd   %s", what, a, b)
	}
	return errA
}

func (p *pair) lease(side int, i int) int64 {
	if i < 0 {
		return 0
	}
	return p.leases[i][side]
}

func (p *pair) describe(side int, items ...engine.Item) string {
	text := ""
	for _, item := range items {
		lease := slices.IndexFunc(p.leases, func(ids [2]int64) bool { return ids[side] == item.Lease })
		text += fmt.Sprintf("%q=%q@%d lease %d; ", item.Key, item.Value, item.Revision, lease)
	}
	return text
}

// write and member are drawn once and made for each side.
type write struct {
	key, value string
	delete     bool
	lease      int
}

type member struct {
	conditions []engine.Condition
	writes     []write
}

func keyName(i int) string { return fmt.Sprintf("/lockstep/%02d", i) }

const keys = 12

// drawMembers makes a transaction without conflicts: each member has keys of its own to write, and compares those or what nobody writes.
func (p *pair) drawMembers(t *rapid.T) []member {
	order := rapid.Permutation(slices.Collect(func(yield func(int) bool) {
		for i := range keys {
			if !yield(i) {
				return
			}
		}
	})).Draw(t, "keys")
	members := make([]member, rapid.IntRange(1, 4).Draw(t, "members"))
	shared, order := order[:3], order[3:]
	for i := range members {
		own := order[i*2 : i*2+2]
		m := &members[i]
		for range rapid.IntRange(0, 3).Draw(t, "conditions") {
			key := rapid.SampledFrom(append(slices.Clone(own), shared...)).Draw(t, "condition")
			m.conditions = append(m.conditions, engine.Condition{Key: []byte(keyName(key)), Revision: p.drawCondition(t, key)})
		}
		for _, key := range own[:rapid.IntRange(0, 2).Draw(t, "writes")] {
			w := write{key: keyName(key), delete: rapid.Bool().Draw(t, "delete"), lease: -1}
			if !w.delete {
				w.value = rapid.StringN(0, 20, -1).Draw(t, "value")
				if len(p.leases) > 0 && rapid.IntRange(0, 3).Draw(t, "leased") == 0 {
					w.lease = rapid.IntRange(0, len(p.leases)-1).Draw(t, "lease")
				}
			}
			m.writes = append(m.writes, w)
		}
		if len(m.conditions) == 0 && len(m.writes) == 0 {
			m.writes = []write{{key: keyName(own[0]), value: "x", lease: -1}}
		}
	}
	return members
}

func (p *pair) drawCondition(t *rapid.T, key int) engine.Revision {
	switch rapid.IntRange(0, 6).Draw(t, "kind") {
	case 0:
		return engine.Absent
	case 1:
		return engine.Present
	case 2:
		return engine.Never
	case 3:
		return p.newest - engine.Revision(rapid.IntRange(0, 5).Draw(t, "ago"))
	default: // what holds, mostly
		items, _, err := p.memory.Get(context.Background(), [][]byte{[]byte(keyName(key))}, 0)
		if err != nil {
			t.Fatal(err)
		}
		return items[0].Revision
	}
}

func (p *pair) commit(t *rapid.T) {
	members := p.drawMembers(t)
	p.agree(t, "commit", func(side int, e engine.Engine) (string, error) {
		transaction := make([]engine.Member, len(members))
		for i, m := range members {
			transaction[i].Conditions = m.conditions
			for _, w := range m.writes {
				transaction[i].Writes = append(transaction[i].Writes, engine.Write{
					Key: []byte(w.key), Value: []byte(w.value), Delete: w.delete, Lease: p.lease(side, w.lease),
				})
			}
		}
		result, err := e.Commit(context.Background(), transaction)
		text := fmt.Sprintf("at %d: ", result.Revision)
		for _, out := range result.Outcomes {
			text += fmt.Sprintf("held %t changed %v current %s| ", out.Held, out.Changed, p.describe(side, out.Current...))
		}
		if err == nil {
			p.newest = result.Revision
		}
		return text, err
	})
}

func (p *pair) drawRevision(t *rapid.T) engine.Revision {
	return engine.Revision(rapid.Int64Range(int64(max(p.compacted-2, 1)), int64(p.newest+2)).Draw(t, "revision"))
}

func (p *pair) get(t *rapid.T) {
	var wanted [][]byte
	for _, key := range rapid.SliceOfN(rapid.IntRange(0, keys), 1, 5).Draw(t, "keys") {
		wanted = append(wanted, []byte(keyName(key)))
	}
	at := engine.Revision(0)
	if rapid.Bool().Draw(t, "past") {
		at = p.drawRevision(t)
	}
	p.agree(t, fmt.Sprintf("get at %d", at), func(side int, e engine.Engine) (string, error) {
		items, at, err := e.Get(context.Background(), wanted, at)
		return fmt.Sprintf("at %d: %s", at, p.describe(side, items...)), err
	})
}

func (p *pair) list(t *rapid.T) {
	from := rapid.IntRange(0, keys).Draw(t, "from")
	r := engine.Range{
		Start: []byte(keyName(from)), End: []byte(keyName(rapid.IntRange(from+1, keys+1).Draw(t, "to"))),
		Revision: p.drawRevision(t), Limit: rapid.Int64Range(0, 6).Draw(t, "limit"),
	}
	p.agree(t, fmt.Sprintf("list %+v", r), func(side int, e engine.Engine) (string, error) {
		text := ""
		more, err := e.List(context.Background(), r, func(items []engine.Item) error {
			text += p.describe(side, items...)
			return nil
		})
		return fmt.Sprintf("%s more %t", text, more), err
	})
}

func (p *pair) grant(t *rapid.T) {
	var ids [2]int64
	p.agree(t, "grant", func(side int, e engine.Engine) (string, error) {
		id, ttl, err := e.Grant(context.Background(), 3600)
		ids[side] = id
		return fmt.Sprint(ttl), err
	})
	p.leases = append(p.leases, ids)
}

func (p *pair) revoke(t *rapid.T) {
	if len(p.leases) == 0 {
		return
	}
	i := rapid.IntRange(0, len(p.leases)-1).Draw(t, "lease")
	p.agree(t, "revoke", func(side int, e engine.Engine) (string, error) {
		return "", e.Revoke(context.Background(), p.lease(side, i))
	})
	p.agree(t, "keep alive after revoke", func(side int, e engine.Engine) (string, error) {
		_, err := e.KeepAlive(context.Background(), p.lease(side, i))
		return "", err
	})
	p.status(t)
}

func (p *pair) keepAlive(t *rapid.T) {
	if len(p.leases) == 0 {
		return
	}
	i := rapid.IntRange(0, len(p.leases)-1).Draw(t, "lease")
	p.agree(t, "keep alive", func(side int, e engine.Engine) (string, error) {
		ttl, err := e.KeepAlive(context.Background(), p.lease(side, i))
		return fmt.Sprint(ttl), err
	})
}

func (p *pair) compact(t *rapid.T) {
	if rapid.IntRange(0, 3).Draw(t, "really") > 0 {
		return
	}
	to := p.drawRevision(t)
	p.agree(t, fmt.Sprintf("compact to %d", to), func(_ int, e engine.Engine) (string, error) {
		return "", e.Compact(context.Background(), to)
	})
	p.status(t)
}

func (p *pair) status(t *rapid.T) {
	p.agree(t, "status", func(_ int, e engine.Engine) (string, error) {
		status, err := e.Status(context.Background())
		p.newest, p.compacted = status.Revision, status.Compacted
		return fmt.Sprintf("newest %d compacted %d", status.Revision, status.Compacted), err
	})
}

// watch compares all commits from a revision to the newest.
func (p *pair) watch(t *rapid.T, from engine.Revision) {
	p.agree(t, fmt.Sprintf("watch from %d to %d", from, p.newest), func(side int, e engine.Engine) (string, error) {
		w, err := e.Watch(context.Background(), from)
		if err != nil {
			return "", err
		}
		defer w.Close()
		text := ""
		for at := from - 1; at < p.newest; {
			commits, err := w.Next(context.Background())
			if err != nil {
				return "", err
			}
			for _, c := range commits {
				at = c.Revision
				text += fmt.Sprintf("\n%d:", c.Revision)
				for _, event := range c.Events {
					text += fmt.Sprintf(" %q=%q delete %t previous %s", event.Key, event.Value, event.Delete, p.describe(side, event.Previous))
				}
			}
		}
		return text, nil
	})
}

func TestLockstepEmbedded(t *testing.T) {
	db, err := etcd.Embed(t.Context(), etcd.EmbedConfig{Dir: t.TempDir(), Logger: testLogger(t)})
	if err != nil {
		t.Fatal(err)
	}
	lockstep(t, db)
}

func TestLockstepExternal(t *testing.T) {
	db, err := etcd.Connect(t.Context(), etcd.ConnectConfig{Endpoints: []string{etcdprocess.Start(t)}, Logger: testLogger(t)})
	if err != nil {
		t.Fatal(err)
	}
	lockstep(t, db)
}

func testLogger(t *testing.T) *slog.Logger { return slog.New(slog.NewTextHandler(t.Output(), nil)) }

// lockstep runs random histories on etcd and in memory, which must agree in every answer. The engines live through all histories, so
// their revisions agree from the first to the last.
func lockstep(t *testing.T, db engine.Engine) {
	defer db.Close()
	// The shortest lease of etcd does not matter here, its limits do.
	model := memory.New(memory.Config{Operations: db.Limits().Operations, Bytes: db.Limits().Bytes})
	defer model.Close()
	rapid.Check(t, func(t *rapid.T) {
		p := &pair{memory: model, etcd: db}
		p.status(t)
		start := p.newest
		t.Repeat(map[string]func(*rapid.T){
			"commit":       p.commit,
			"commit again": p.commit,
			"commit more":  p.commit,
			"get":          p.get,
			"list":         p.list,
			"grant":        p.grant,
			"revoke":       p.revoke,
			"keep alive":   p.keepAlive,
			"compact":      p.compact,
			"":             func(t *rapid.T) { p.status(t) },
		})
		p.watch(t, max(start, p.compacted)+1)
		p.watch(t, p.compacted) // refused by both
	})
}
