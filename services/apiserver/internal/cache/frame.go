package cache

import (
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/rawcodec"
)

// Field numbers of dhow.meta.v1 WatchResponse and ObjectChange, and of ListMeta.
const (
	responseChanges  = 1
	responseRevision = 2
	responseMark     = 3
	responsePartial  = 4

	changeType        = 1
	changeRevision    = 3
	changeTraceparent = 4
	changeSelection   = 5

	listVersion   = 2
	listContinue  = 3
	listRemaining = 4
)

// frame is one encoded form of an event: a whole WatchResponse with this one change, up to and with the commit's revision. Responses with several changes
// are concatenations: the changes add up and the last revision counts.
type frame struct {
	kind      metav1.EventType
	selection uint32
	data      rawcodec.Frame
	next      *frame
}

// frame returns the event's encoding, made by the first who asks and shared by all streams: there are as many as (type, selection id) pairs in use.
func (e *event) frame(kind metav1.EventType, selection uint32) rawcodec.Frame {
	first := e.frames.Load()
	for {
		for f := first; f != nil; f = f.next {
			if f.kind == kind && f.selection == selection {
				return f.data
			}
		}
		made := &frame{kind: kind, selection: selection, data: e.encode(kind, selection), next: first}
		if e.frames.CompareAndSwap(first, made) {
			e.keep(made.data.Len() - shared(kind, e) + frameOverhead)
			return made.data
		}
		first = e.frames.Load()
	}
}

// frameOverhead is about what a frame takes beside its own bytes.
const frameOverhead = 200

// shared is how much of a frame is the entry's own buffer.
func shared(kind metav1.EventType, e *event) int {
	if kind == metav1.EventType_EVENT_TYPE_DELETED {
		return len(e.old.Object)
	}
	return e.new.item.Len()
}

func (e *event) encode(kind metav1.EventType, selection uint32) rawcodec.Frame {
	tail := appendChangeTail(nil, kind, e.revision, e.traceparent, selection)
	inner := len(tail)
	closing := appendVarintField(tail, responseRevision, uint64(e.commit()))
	if kind != metav1.EventType_EVENT_TYPE_DELETED {
		head := protowire.AppendTag(nil, responseChanges, protowire.BytesType)
		head = protowire.AppendVarint(head, uint64(e.new.item.Len()+inner))
		return rawcodec.Frame{mem.SliceBuffer(head), e.new.item, mem.SliceBuffer(closing)}
	}
	// The last state, with the deletion's revision instead of its own.
	suffix := appendSuffix(nil, e.revision)
	object := len(e.old.Object) + len(suffix)
	head := protowire.AppendTag(nil, responseChanges, protowire.BytesType)
	head = protowire.AppendVarint(head, uint64(1+protowire.SizeVarint(uint64(object))+object+inner))
	head = protowire.AppendTag(head, itemField, protowire.BytesType)
	head = protowire.AppendVarint(head, uint64(object))
	return rawcodec.Frame{mem.SliceBuffer(head), mem.SliceBuffer(e.old.Object), mem.SliceBuffer(append(suffix, closing...))}
}

func appendChangeTail(b []byte, kind metav1.EventType, revision int64, traceparent string, selection uint32) []byte {
	b = appendVarintField(b, changeType, uint64(kind))
	b = appendVarintField(b, changeRevision, uint64(revision))
	if traceparent != "" {
		b = protowire.AppendTag(b, changeTraceparent, protowire.BytesType)
		b = protowire.AppendString(b, traceparent)
	}
	if selection != 0 {
		b = appendVarintField(b, changeSelection, uint64(selection))
	}
	return b
}

func appendVarintField(b []byte, number protowire.Number, value uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, number, protowire.VarintType), value)
}

// Frame encodes the batch as a WatchResponse. The caller sends it and then frees it.
func (b *Batch) Frame() rawcodec.Frame {
	if len(b.Changes) > 0 && b.Changes[0].event == nil {
		return b.stateFrame()
	}
	if len(b.Changes) == 1 && b.Mark == 0 && !b.Partial && b.Changes[0].event.commit() == b.Revision {
		return b.Changes[0].event.frame(b.Changes[0].Type, b.Changes[0].Selection)
	}
	response := make(rawcodec.Frame, 0, 3*len(b.Changes)+1)
	for i := range b.Changes {
		response = append(response, b.Changes[i].event.frame(b.Changes[i].Type, b.Changes[i].Selection)...)
	}
	return append(response, mem.SliceBuffer(b.appendTail(nil)))
}

// appendTail appends everything but the changes.
func (b *Batch) appendTail(out []byte) []byte {
	if b.Revision != 0 || len(b.Changes) > 0 {
		out = appendVarintField(out, responseRevision, uint64(b.Revision))
	}
	if b.Mark != 0 {
		out = appendVarintField(out, responseMark, uint64(b.Mark))
	}
	if b.Partial {
		out = appendVarintField(out, responsePartial, 1)
	}
	return out
}

// stateFrame copies a piece of the state into one pooled buffer: many small buffers would cost more than the copy.
func (b *Batch) stateFrame() rawcodec.Frame {
	const tailBytes = 64
	size := tailBytes
	for i := range b.Changes {
		size += b.Changes[i].Object.item.Len() + len(b.Changes[i].Traceparent) + tailBytes
	}
	pool := mem.DefaultBufferPool()
	buffer := pool.Get(size)
	out := (*buffer)[:0]
	var tail []byte
	for i := range b.Changes {
		change := &b.Changes[i]
		tail = appendChangeTail(tail[:0], change.Type, change.Revision, change.Traceparent, change.Selection)
		out = protowire.AppendTag(out, responseChanges, protowire.BytesType)
		out = protowire.AppendVarint(out, uint64(change.Object.item.Len()+len(tail)))
		out = append(out, change.Object.item.ReadOnlyData()...)
		out = append(out, tail...)
	}
	out = b.appendTail(out)
	*buffer = out
	return rawcodec.Frame{mem.NewBuffer(buffer, pool)}
}

// Frames calls send with the list in pieces, each a list message. The last one carries the continue token. Extra, which may be nil, returns encoded fields
// to append to an object.
func (l *List) Frames(extra func(*Entry) []byte, send func(rawcodec.Frame) error) error {
	rest := l.Entries
	for {
		frame, bytes, n := rawcodec.Frame{}, 0, 0
		for n < len(rest) && n < softChanges && bytes < softBytes {
			bytes += rest[n].item.Len()
			n++
		}
		frame = make(rawcodec.Frame, 0, n+1)
		frame = append(frame, mem.SliceBuffer(l.meta(n == len(rest))))
		for _, e := range rest[:n] {
			frame = appendItem(frame, e, extra)
		}
		if err := send(frame); err != nil {
			return err
		}
		if rest = rest[n:]; len(rest) == 0 {
			return nil
		}
	}
}

func appendItem(frame rawcodec.Frame, e *Entry, extra func(*Entry) []byte) rawcodec.Frame {
	if extra != nil {
		if more := extra(e); more != nil {
			head := protowire.AppendTag(nil, itemField, protowire.BytesType)
			head = protowire.AppendVarint(head, uint64(e.body.Len()+len(more)))
			return append(append(append(frame, mem.SliceBuffer(head)), e.body...), mem.SliceBuffer(more))
		}
	}
	return append(frame, e.item)
}

// meta encodes the list's metadata field.
func (l *List) meta(last bool) []byte {
	var meta []byte
	meta = protowire.AppendTag(meta, listVersion, protowire.BytesType)
	meta = protowire.AppendString(meta, formatRevision(l.Revision))
	if last && l.Continue != "" {
		meta = protowire.AppendTag(meta, listContinue, protowire.BytesType)
		meta = protowire.AppendString(meta, l.Continue)
		if l.Remaining > 0 {
			meta = appendVarintField(meta, listRemaining, uint64(l.Remaining))
		}
	}
	return protowire.AppendBytes(protowire.AppendTag(nil, metadataField, protowire.BytesType), meta)
}
