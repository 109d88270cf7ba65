package committer

import (
	"context"
	"fmt"

	"go.opentelemetry.io/otel/trace"

	"dhow.dev/services/store/internal/engine"
	"dhow.dev/services/store/internal/record"
)

// overhead bounds what the encoding of a condition or an operation adds to its key and value.
const overhead = 64

// member is a commit on its way through the queue.
type member struct {
	conditions []Condition
	member     engine.Member
	span       trace.SpanContext
	leased     bool
	puts       int // number of puts; the other writes are deletes
	size       int // bound on the encoded bytes
	first      int // index of the first put

	done     chan struct{}
	response Response
	err      error
}

// prepare checks a request and encodes its values, in the caller's goroutine.
func (c *Committer) prepare(ctx context.Context, request Request) (*member, error) {
	if len(request.Conditions) == 0 && len(request.Operations) == 0 {
		return nil, fmt.Errorf("%w: it has neither conditions nor operations", ErrInvalid)
	}
	if n := max(len(request.Conditions), len(request.Operations)); n > MaxOperations || n > c.limits.Operations {
		return nil, fmt.Errorf("%w: %d operations or conditions, at most %d (an external etcd allows more with --max-txn-ops)",
			engine.ErrTooLarge, n, min(MaxOperations, c.limits.Operations))
	}
	m := &member{conditions: request.Conditions, span: trace.SpanContextFromContext(ctx), done: make(chan struct{})}
	m.member.Conditions = make([]engine.Condition, len(request.Conditions))
	for i, condition := range request.Conditions {
		if !record.Public(condition.Key) {
			return nil, fmt.Errorf("%w: conditions[%d].key: %q does not begin with a slash", ErrInvalid, i, condition.Key)
		}
		if condition.Revision < Exists {
			return nil, fmt.Errorf("%w: conditions[%d].revision: %d is negative; -1 means that the key exists", ErrInvalid, i, condition.Revision)
		}
		m.member.Conditions[i] = engine.Condition{Key: condition.Key, Revision: engineCondition(condition.Revision)}
		m.size += 2*len(condition.Key) + 2*overhead // compared, and read when it does not hold
	}
	m.member.Writes = make([]engine.Write, len(request.Operations))
	content := 0
	written := make(map[string]struct{}, len(request.Operations))
	for i, o := range request.Operations {
		if !record.Public(o.Key) {
			return nil, fmt.Errorf("%w: operations[%d].key: %q does not begin with a slash", ErrInvalid, i, o.Key)
		}
		if _, twice := written[string(o.Key)]; twice {
			return nil, fmt.Errorf("%w: operations[%d].key: %q is written twice", ErrInvalid, i, o.Key)
		}
		written[string(o.Key)] = struct{}{}
		w := engine.Write{Key: o.Key, Delete: o.Delete}
		if o.Delete {
			if o.Lease != 0 || o.KeyID != 0 {
				return nil, fmt.Errorf("%w: operations[%d]: a delete has no lease and no encryption key", ErrInvalid, i)
			}
		} else {
			w.Lease = o.Lease
			w.Value = record.Encode(record.Header{KeyID: o.KeyID, Trace: request.Trace}, o.Value)
			m.puts++
			m.leased = m.leased || o.Lease != 0
		}
		m.member.Writes[i] = w
		content += len(o.Key) + len(o.Value)
		m.size += len(o.Key) + len(w.Value) + overhead
	}
	if content > MaxBytes || m.size > c.limits.Bytes {
		return nil, fmt.Errorf("%w: %d bytes of keys and values, at most %d", engine.ErrTooLarge, content, min(MaxBytes, c.limits.Bytes))
	}
	return m, nil
}

// engineCondition drops the index: a revision of the engine writes a key at most once. A commit's own revision is no key's.
func engineCondition(revision int64) engine.Revision {
	if revision == Exists {
		return engine.Present
	}
	if revision == 0 {
		return engine.Absent
	}
	r, index := record.Split(revision)
	if index == record.Slots || r == 0 {
		return engine.Never
	}
	return r
}

// place gives the puts their indexes from slot on and returns the next free one.
func (m *member) place(slot int) int {
	m.first = slot
	for _, w := range m.member.Writes {
		if !w.Delete {
			record.SetIndex(w.Value, slot)
			slot++
		}
	}
	return slot
}

// conflict makes the error of a member whose conditions did not hold.
func (m *member) conflict(current []engine.Item, at engine.Revision) error {
	entries := make(map[string]record.Entry, len(current))
	for _, item := range current {
		entry, err := record.EntryOf(item)
		if err != nil {
			return err
		}
		entries[string(item.Key)] = entry
	}
	conflict := &ConflictError{Revision: record.Whole(at)}
	for _, condition := range m.conditions {
		entry, ok := entries[string(condition.Key)]
		if !ok {
			continue // named already
		}
		holds := entry.Revision == condition.Revision
		if condition.Revision == Exists {
			holds = entry.Revision != 0
		}
		if !holds {
			conflict.Entries = append(conflict.Entries, entry)
			delete(entries, string(condition.Key))
		}
	}
	if len(conflict.Entries) == 0 {
		return fmt.Errorf("%w: it said that conditions do not hold that do", engine.ErrUncertain)
	}
	return conflict
}

func (m *member) finish(response Response, err error) {
	m.response, m.err = response, err
	close(m.done)
}

// batch collects members that go together.
type batch struct {
	limit      int // the engine's, of operations
	members    []*member
	operations int
	size       int
	closed     bool
	keys       map[string]use
}

// use is what a batch does with a key.
type use uint8

const (
	compared use = iota + 1
	written
)

// admits says whether a member may join. The first may always.
func (b *batch) admits(m *member) bool {
	if len(b.members) == 0 {
		return true
	}
	if b.closed || m.leased || len(b.members) == maxMembers || b.size+m.size > batchBytes ||
		b.operations+len(m.member.Writes) > record.Slots || !b.nests(m) {
		return false
	}
	for _, w := range m.member.Writes {
		if b.keys[string(w.Key)] != 0 {
			return false
		}
	}
	for _, condition := range m.member.Conditions {
		if b.keys[string(condition.Key)] == written {
			return false
		}
	}
	return true
}

// nests says whether a member leaves enough of the engine's limit to the batch around it: etcd takes the number of members off the
// limit of each.
func (b *batch) nests(m *member) bool {
	members := min(maxMembers, b.limit/2)
	return len(b.members) < members && max(len(m.member.Conditions), len(m.member.Writes)) <= b.limit-members
}

func (b *batch) add(m *member) {
	b.members = append(b.members, m)
	b.operations += len(m.member.Writes)
	b.size += m.size
	// Not worth the bookkeeping when no other can join.
	if b.closed = m.leased || !b.nests(m) && len(b.members) == 1; b.closed {
		return
	}
	if b.keys == nil {
		b.keys = make(map[string]use)
	}
	for _, condition := range m.member.Conditions {
		if b.keys[string(condition.Key)] == 0 {
			b.keys[string(condition.Key)] = compared
		}
	}
	for _, w := range m.member.Writes {
		b.keys[string(w.Key)] = written
	}
}
