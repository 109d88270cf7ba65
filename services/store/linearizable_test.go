package store_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"google.golang.org/protobuf/proto"

	storev1 "dhow.dev/gen/go/dhow/store/v1"
	"dhow.dev/services/store"
	"dhow.dev/services/store/internal/storetest"
)

// shared are the keys that all clients fight for.
const shared = 4

func sharedKey(i int) []byte { return fmt.Appendf(nil, "/linear/%d", i) }

// call is what a client asked and answer what it was told.
type call struct {
	// commit, or a read of all keys.
	commit bool
	// conditions, per key; unconditional: none.
	conditions [shared]int64
	// actions, per key: 0 nothing, 1 put, 2 delete.
	actions [shared]int
}

const unconditional = -7

type answer struct {
	conflict bool
	// revisions of the operations, or of the keys that were read; of a conflict, of the keys named, 0 being absent and unnamed -1.
	revisions [shared]int64
}

// model is the store as one state machine: the revisions of the keys. Revisions are unique, so they say which write is read.
var model = porcupine.Model{
	Init: func() any { return [shared]int64{} },
	Step: func(state, input, output any) (bool, any) {
		s, in, out := state.([shared]int64), input.(call), output.(answer)
		if !in.commit {
			return s == out.revisions, s
		}
		if out.conflict {
			// Exactly the named keys are not as the conditions want them, and are as told.
			named := false
			for i := range shared {
				failed := in.conditions[i] != unconditional && in.conditions[i] != s[i]
				if failed != (out.revisions[i] != -1) || failed && out.revisions[i] != s[i] {
					return false, s
				}
				named = named || failed
			}
			return named, s
		}
		next := s
		for i := range shared {
			if in.conditions[i] != unconditional && in.conditions[i] != s[i] {
				return false, s
			}
			switch in.actions[i] {
			case 1:
				// A later commit has a later revision.
				if out.revisions[i] <= s[i] {
					return false, s
				}
				next[i] = out.revisions[i]
			case 2:
				if (out.revisions[i] == 0) != (s[i] == 0) {
					return false, s
				}
				next[i] = 0
			}
		}
		return true, next
	},
	DescribeOperation: func(input, output any) string { return fmt.Sprintf("%+v → %+v", input, output) },
}

// TestLinearizable: clients read, compare, write and delete several keys at once, while others commit beside them so that batches
// form. The history of what they were told must fit one order of all calls.
func TestLinearizable(t *testing.T) {
	for name, start := range map[string]func(t *testing.T) []storev1.StoreClient{
		"memory": func(t *testing.T) []storev1.StoreClient {
			return []storev1.StoreClient{storetest.Start(t, store.Config{Memory: true})}
		},
		"embedded": func(t *testing.T) []storev1.StoreClient {
			return []storev1.StoreClient{storetest.Start(t, store.Config{DataDir: t.TempDir()})}
		},
		// Each client has a store of its own, the leader or a follower.
		"members": func(t *testing.T) (clients []storev1.StoreClient) {
			m := newMembers(t)
			for _, name := range m.names {
				m.start(name)
			}
			for _, name := range m.names {
				clients = append(clients, m.client(name))
			}
			return clients
		},
	} {
		t.Run(name, func(t *testing.T) {
			stores := start(t)
			const clients, calls = 8, 60
			background, stop := context.WithCancel(t.Context())
			var beside sync.WaitGroup
			for i := range 8 {
				beside.Go(func() {
					for n := 0; background.Err() == nil; n++ {
						stores[i%len(stores)].Commit(background, storev1.CommitRequest_builder{Operations: []*storev1.Operation{
							storev1.Operation_builder{Key: fmt.Appendf(nil, "/beside/%d", i), Put: fmt.Append(nil, n)}.Build(),
						}}.Build())
					}
				})
			}
			histories := make([][]porcupine.Operation, clients)
			start := time.Now()
			var all sync.WaitGroup
			for i := range clients {
				all.Go(func() {
					random := rand.New(rand.NewPCG(uint64(i), 7))
					var seen [shared]int64
					for range calls {
						in := drawCall(random, seen)
						began := time.Since(start)
						out, err := run(t.Context(), stores[i%len(stores)], in)
						if err != nil {
							t.Errorf("client %d: %v", i, err)
							return
						}
						histories[i] = append(histories[i], porcupine.Operation{
							ClientId: i, Input: in, Call: int64(began), Output: out, Return: int64(time.Since(start)),
						})
						for k, revision := range out.revisions {
							switch {
							case in.commit && !out.conflict && in.actions[k] == 2:
								seen[k] = 0
							case !in.commit, out.conflict && revision >= 0, !out.conflict && in.actions[k] == 1:
								seen[k] = revision
							}
						}
					}
				})
			}
			all.Wait()
			stop()
			beside.Wait()
			var history []porcupine.Operation
			conflicts := 0
			for _, h := range histories {
				for _, o := range h {
					if o.Output.(answer).conflict {
						conflicts++
					}
				}
				history = append(history, h...)
			}
			if conflicts == 0 || conflicts == len(history) {
				t.Errorf("%d conflicts in %d calls: the clients do not fight", conflicts, len(history))
			}
			if result, _ := porcupine.CheckOperationsVerbose(model, history, 2*time.Minute); result != porcupine.Ok {
				var text strings.Builder
				for _, o := range history {
					fmt.Fprintf(&text, "%d [%d, %d] %s\n", o.ClientId, o.Call, o.Return, model.DescribeOperation(o.Input, o.Output))
				}
				t.Errorf("the history is not linearizable (%s):\n%s", result, text.String())
			}
		})
	}
}

// drawCall makes a call whose conditions are often what the client has seen last.
func drawCall(random *rand.Rand, seen [shared]int64) call {
	in := call{commit: random.IntN(4) > 0}
	for i := range shared {
		in.conditions[i] = unconditional
		if !in.commit {
			continue
		}
		if random.IntN(3) == 0 {
			in.conditions[i] = seen[i]
		}
		if random.IntN(2) == 0 {
			in.actions[i] = 1 + random.IntN(5)/4
		}
	}
	return in
}

func run(ctx context.Context, client storev1.StoreClient, in call) (answer, error) {
	var out answer
	if !in.commit {
		var get storev1.GetRequest_builder
		for i := range shared {
			get.Keys = append(get.Keys, sharedKey(i))
		}
		response, err := client.Get(ctx, get.Build())
		for i, e := range response.GetEntries() {
			out.revisions[i] = e.GetRevision()
		}
		return out, err
	}
	var commit storev1.CommitRequest_builder
	var written []int
	for i := range shared {
		if in.conditions[i] != unconditional {
			commit.Conditions = append(commit.Conditions, storev1.Condition_builder{Key: sharedKey(i), Revision: in.conditions[i]}.Build())
		}
		switch in.actions[i] {
		case 1:
			commit.Operations = append(commit.Operations, storev1.Operation_builder{Key: sharedKey(i), Put: []byte("v")}.Build())
			written = append(written, i)
		case 2:
			commit.Operations = append(commit.Operations, storev1.Operation_builder{Key: sharedKey(i), Delete: proto.Bool(true)}.Build())
			written = append(written, i)
		}
	}
	if len(commit.Conditions)+len(commit.Operations) == 0 {
		// Not a commit; what is not asked is told by nobody.
		return out, nil
	}
	response, err := client.Commit(ctx, commit.Build())
	if err == nil {
		for n, i := range written {
			out.revisions[i] = response.GetRevisions()[n]
		}
		return out, nil
	}
	conflict := storetest.ConflictOf(err)
	if conflict == nil {
		return out, err
	}
	out.conflict = true
	for i := range shared {
		out.revisions[i] = -1
		for _, e := range conflict.GetEntries() {
			if string(e.GetKey()) == string(sharedKey(i)) {
				out.revisions[i] = e.GetRevision()
			}
		}
	}
	return out, nil
}
