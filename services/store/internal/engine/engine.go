// Package engine defines what the store needs of a database: a multi-version key-value space whose every change is one atomic,
// numbered transaction. There are two: etcd (package etcd, embedded or external) and one in memory (package memory) for tests.
//
// The interface is deliberately below the store's API. Headers, indexes, group commit, prefixes and progress live above it, once, so
// that the two engines differ in nothing but how they keep versions.
package engine

import (
	"context"
	"errors"
)

// Revision counts the transactions that changed something. It starts at 1, the empty database. It is not the revision of the store's
// API, which also holds a key's index in its commit (package record).
type Revision int64

// Revisions with a meaning of their own in a Condition.
const (
	// Absent holds when the key does not exist.
	Absent Revision = 0
	// Present holds when the key exists, whatever its revision.
	Present Revision = -1
	// Never does not hold.
	Never Revision = -2
)

// Errors of engines. All of them are wrapped with what was asked.
var (
	// ErrCompacted: the revision is older than the history kept.
	ErrCompacted = errors.New("the revision is compacted")
	// ErrFuture: the revision has not happened.
	ErrFuture = errors.New("the revision is newer than the store's")
	// ErrLeaseNotFound: the lease has ended or never was.
	ErrLeaseNotFound = errors.New("no such lease")
	// ErrNoSpace: the database has reached its quota; only deletions and compaction help.
	ErrNoSpace = errors.New("the store's space is used up")
	// ErrTooLarge: the transaction has more bytes or operations than the engine takes.
	ErrTooLarge = errors.New("the commit is too large")
	// ErrRejected: the engine refused the request as it is; nothing happened.
	ErrRejected = errors.New("the store's database rejected the request")
	// ErrUnavailable: the engine cannot serve now; nothing happened.
	ErrUnavailable = errors.New("the store's database is not available")
	// ErrUnsupported: this kind of database cannot do it.
	ErrUnsupported = errors.New("the store's database cannot do this")
	// ErrUncertain: the engine did not answer; the transaction may have happened.
	ErrUncertain = errors.New("the store's database did not answer; the commit may have happened")
)

// Item is a version of a key. Revision 0 says that the key does not exist. Slices are shared and must not be changed.
type Item struct {
	Key, Value []byte
	Revision   Revision
	Lease      int64
}

// Condition must hold in the state before the whole transaction.
type Condition struct {
	Key      []byte
	Revision Revision
}

// Write puts or deletes one key.
type Write struct {
	Key, Value []byte
	Delete     bool
	Lease      int64
}

// Member is a conditional part of a transaction: its writes happen when its conditions hold, independently of the other members.
type Member struct {
	Conditions []Condition
	Writes     []Write
}

// Outcome is what became of a member.
type Outcome struct {
	// Held says that all conditions held and the writes happened.
	Held bool
	// Changed says of each write whether it changed something: deleting a key that does not exist does not. Set when Held.
	Changed []bool
	// Current holds the keys of the conditions, each once, as they are. Set when not Held.
	Current []Item
}

// Result is the outcome of a transaction.
type Result struct {
	// Revision is the transaction's, or the newest one when it changed nothing.
	Revision Revision
	Outcomes []Outcome
}

// Event is one changed key.
type Event struct {
	Key, Value []byte
	Delete     bool
	// Previous is the version before; its Revision is 0 when there was none.
	Previous Item
}

// Commit is all that one transaction changed, in the order of its writes.
type Commit struct {
	Revision Revision
	Events   []Event
}

// Watcher hands out commits. It is used by one goroutine.
type Watcher interface {
	// Next waits for commits and returns at least one, whole and in order.
	Next(context.Context) ([]Commit, error)
	// Close releases what the watcher holds.
	Close()
}

// Range selects keys in [Start, End) at a revision, which must be given.
type Range struct {
	Start, End []byte
	Revision   Revision
	// Limit bounds the number of items; 0: all.
	Limit int64
}

// Status describes the database.
type Status struct {
	// Revision is the newest, read linearizably.
	Revision Revision
	// Compacted is the oldest revision that can be read.
	Compacted Revision
	// ClusterID differs between any two databases, a restored one and its origin among them.
	ClusterID uint64
}

// Size is how much space the database uses.
type Size struct {
	// Total is the file's size, InUse the part of it that holds data, Quota where writes stop.
	Total, InUse, Quota int64
	// Full says that the quota was reached and puts are refused, until compaction wins back space.
	Full bool
}

// Limits are the largest transaction that an engine takes.
type Limits struct {
	// Operations bounds conditions and writes of a member, and per transaction members plus the largest member.
	Operations int
	// Bytes bounds the encoded transaction.
	Bytes int
}

// Engine is a database. All methods may be called concurrently.
type Engine interface {
	// Limits are fixed for the engine's life.
	Limits() Limits
	// Commit runs one transaction. No key may be written twice, and none written by one member and in a condition of another.
	Commit(context.Context, []Member) (Result, error)
	// Get returns the keys at one revision, 0 being the newest (linearizable), and that revision.
	Get(ctx context.Context, keys [][]byte, at Revision) ([]Item, Revision, error)
	// List calls page with the selected items, in key order, and returns whether the limit cut them.
	List(ctx context.Context, r Range, page func([]Item) error) (more bool, err error)
	// Watch returns all commits from the revision on, which must be newer than the compacted one: what a change replaced is known only
	// as long as the revision before it can be read. A compacted revision is reported here or by the first Next.
	Watch(ctx context.Context, from Revision) (Watcher, error)
	// Status reads the newest revision linearizably.
	Status(context.Context) (Status, error)
	// Compact forgets what was before the revision. Compacting again is no error; in a full database it tries again to win back space.
	Compact(context.Context, Revision) error
	// Grant makes a lease and returns it with its time to live in seconds, which may be longer than asked.
	Grant(ctx context.Context, ttl int64) (lease, granted int64, err error)
	// KeepAlive renews a lease and returns its time to live in seconds.
	KeepAlive(ctx context.Context, lease int64) (ttl int64, err error)
	// Revoke ends a lease and deletes its keys. Revoking again is no error.
	Revoke(ctx context.Context, lease int64) error
	// Size returns how much space is used.
	Size(context.Context) (Size, error)
	// Snapshot hands out the whole database as a file's parts, in order. It has everything that was acknowledged before the call. The parts may be kept.
	Snapshot(ctx context.Context, page func([]byte) error) error
	// Close ends the engine. Calls in progress end with ErrUncertain or ErrUnavailable.
	Close() error
}
