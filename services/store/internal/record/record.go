// Package record is how the store writes its data down: the revisions of its API and the header in front of every value.
//
// A commit at the engine's revision R gives its i-th key the revision R×1024+i, i ≤ 1022, and itself R×1024+1023. Puts carry their
// index in the header. Deletes leave no value, so their indexes follow from the commit alone: they come after the highest put, in the
// order of the commit's events. Whoever sees all events of a commit computes the same numbers.
package record

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"

	"dhow.dev/services/store/internal/engine"
)

const (
	// Slots is the number of indexes in a commit.
	Slots = 1023
	// scale is the number of API revisions to one of the engine's; the last of them is the commit's own.
	scale = Slots + 1
)

// Revision is the API revision of the key with this index. Only the end of a lease with more than 1023 keys deletes more keys than
// there are indexes; the last ones share the last index.
func Revision(r engine.Revision, index int) int64 {
	return int64(r)*scale + int64(min(index, Slots-1))
}

// Whole is the API revision of a commit, of a list, of progress.
func Whole(r engine.Revision) int64 { return int64(r)*scale + Slots }

// Split returns the engine's revision and the index; for a commit's own revision the index is Slots.
func Split(revision int64) (engine.Revision, int) {
	return engine.Revision(revision / scale), int(revision % scale)
}

// The header: magic, format, index (2 bytes, big endian), flags, then the parts that the flags name.
const (
	magic  = 0xd7
	format = 1

	indexAt = 2
	flagsAt = 4
	fixed   = 5

	flagKey   = 1 << 0 // encryption key id, 4 bytes, big endian
	flagTrace = 1 << 1 // trace id (16), parent id (8), trace flags (1)

	traceSize = 16 + 8 + 1
)

// ErrFormat: the value was not written by this version of the store.
var ErrFormat = errors.New("the stored value has no header that this version knows")

// Trace is the binary form of a W3C traceparent of version 00. The zero value stands for none.
type Trace [traceSize]byte

// ParseTrace reads a traceparent; empty gives the zero Trace.
func ParseTrace(traceparent string) (Trace, error) {
	var t Trace
	if traceparent == "" {
		return t, nil
	}
	if len(traceparent) != 55 || traceparent[:3] != "00-" || traceparent[35] != '-' || traceparent[52] != '-' {
		return t, fmt.Errorf("traceparent %q: want 00-<32 hex digits>-<16 hex digits>-<2 hex digits>", traceparent)
	}
	for _, part := range []struct {
		to   []byte
		from string
	}{{t[:16], traceparent[3:35]}, {t[16:24], traceparent[36:52]}, {t[24:], traceparent[53:]}} {
		if _, err := hex.Decode(part.to, []byte(part.from)); err != nil {
			return Trace{}, fmt.Errorf("traceparent %q: %w", traceparent, err)
		}
	}
	return t, nil
}

// String returns the traceparent, or empty.
func (t Trace) String() string {
	if t == (Trace{}) {
		return ""
	}
	b := make([]byte, 55)
	copy(b, "00-")
	hex.Encode(b[3:], t[:16])
	b[35] = '-'
	hex.Encode(b[36:], t[16:24])
	b[52] = '-'
	hex.Encode(b[53:], t[24:])
	return string(b)
}

// Header is what the store keeps beside a value.
type Header struct {
	Index int
	// KeyID is the id of the key that the value is encrypted with, or 0.
	KeyID uint32
	Trace Trace
}

// Encode returns the header followed by the value.
func Encode(h Header, value []byte) []byte {
	size := fixed
	var flags byte
	if h.KeyID != 0 {
		flags |= flagKey
		size += 4
	}
	if h.Trace != (Trace{}) {
		flags |= flagTrace
		size += traceSize
	}
	b := make([]byte, fixed, size+len(value))
	b[0], b[1], b[flagsAt] = magic, format, flags
	if flags&flagKey != 0 {
		b = binary.BigEndian.AppendUint32(b, h.KeyID)
	}
	if flags&flagTrace != 0 {
		b = append(b, h.Trace[:]...)
	}
	b = append(b, value...)
	SetIndex(b, h.Index)
	return b
}

// SetIndex changes the index in an encoded value: it is known only when the commit finds its place in a batch.
func SetIndex(stored []byte, index int) {
	binary.BigEndian.PutUint16(stored[indexAt:], uint16(index))
}

// Decode returns the header and the value, which shares the memory of stored.
func Decode(stored []byte) (Header, []byte, error) {
	if len(stored) < fixed || stored[0] != magic {
		return Header{}, nil, fmt.Errorf("%w: it is not Dhow's", ErrFormat)
	}
	if stored[1] != format {
		return Header{}, nil, fmt.Errorf("%w: format %d, known is %d", ErrFormat, stored[1], format)
	}
	h := Header{Index: int(binary.BigEndian.Uint16(stored[indexAt:]))}
	flags, rest := stored[flagsAt], stored[fixed:]
	if flags&^(flagKey|flagTrace) != 0 || h.Index >= Slots {
		return Header{}, nil, fmt.Errorf("%w: flags %#x, index %d", ErrFormat, flags, h.Index)
	}
	if flags&flagKey != 0 {
		if len(rest) < 4 {
			return Header{}, nil, fmt.Errorf("%w: it is cut off", ErrFormat)
		}
		h.KeyID, rest = binary.BigEndian.Uint32(rest), rest[4:]
	}
	if flags&flagTrace != 0 {
		if len(rest) < traceSize {
			return Header{}, nil, fmt.Errorf("%w: it is cut off", ErrFormat)
		}
		copy(h.Trace[:], rest)
		rest = rest[traceSize:]
	}
	return h, rest, nil
}

// Entry is a key as the store's API shows it.
type Entry struct {
	Key []byte
	// Value is nil when the key does not exist.
	Value    []byte
	Revision int64
	KeyID    uint32
	Trace    Trace
	Lease    int64
}

// EntryOf decodes an item.
func EntryOf(item engine.Item) (Entry, error) {
	if item.Revision == 0 {
		return Entry{Key: item.Key}, nil
	}
	h, value, err := Decode(item.Value)
	if err != nil {
		return Entry{}, fmt.Errorf("key %q at revision %d: %w", item.Key, Whole(item.Revision), err)
	}
	return Entry{
		Key: item.Key, Value: value, Revision: Revision(item.Revision, h.Index), KeyID: h.KeyID, Trace: h.Trace, Lease: item.Lease,
	}, nil
}

// Change is a written or deleted key as the store's API shows it.
type Change struct {
	Entry
	// Previous is the revision of the key's value before, or 0.
	Previous int64
}

// Changes decodes the events of a commit that concern keys that keep accepts. All events must be given, for the indexes of deletes.
// Keys that do not start with a slash belong to the store itself, or to another user of the database, and are left out.
func Changes(commit engine.Commit, keep func(key []byte) bool) ([]Change, error) {
	var changes []Change
	deletes := 0 // the index of the next delete
	for _, e := range commit.Events {
		if e.Delete || !Public(e.Key) {
			continue
		}
		h, value, err := Decode(e.Value)
		if err != nil {
			return nil, fmt.Errorf("key %q at revision %d: %w", e.Key, Whole(commit.Revision), err)
		}
		deletes = max(deletes, h.Index+1)
		if !keep(e.Key) {
			continue
		}
		previous, err := EntryOf(e.Previous)
		if err != nil {
			return nil, err
		}
		changes = append(changes, Change{Previous: previous.Revision, Entry: Entry{
			Key: e.Key, Value: value, Revision: Revision(commit.Revision, h.Index), KeyID: h.KeyID, Trace: h.Trace,
		}})
	}
	for _, e := range commit.Events {
		if !e.Delete || !Public(e.Key) {
			continue
		}
		index := deletes
		deletes++
		if !keep(e.Key) {
			continue
		}
		previous, err := EntryOf(e.Previous)
		if err != nil {
			return nil, err
		}
		// The header went with the value: a deletion has no trace of its own.
		changes = append(changes, Change{Previous: previous.Revision, Entry: Entry{Key: e.Key, Revision: Revision(commit.Revision, index)}})
	}
	return changes, nil
}

// Public says whether the key belongs to the store's callers.
func Public(key []byte) bool { return len(key) > 0 && key[0] == '/' }
