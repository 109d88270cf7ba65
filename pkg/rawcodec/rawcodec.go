// Package rawcodec is a gRPC codec that lets encoded messages travel as they are.
//
// The API server keeps objects encoded and answers reads by splicing stored bytes; decoding them only to encode them again would
// cost most of its CPU. A handler that sends a Frame hands gRPC its buffers without a copy; one that receives into a *Frame gets
// the bytes of the message undecoded. Every other message goes through protobuf as with gRPC's own codec, and on the wire nothing
// differs: the codec's name is "proto" too, so any gRPC client in any language is served.
package rawcodec

import (
	"fmt"
	"slices"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
)

// Name is the content subtype, that of gRPC's own protobuf codec.
const Name = "proto"

// Frame is one encoded message, the concatenation of its buffers.
//
// Sending: the codec takes a reference of its own on each buffer and gRPC frees it when written, so the sender keeps its
// references and one Frame may be sent on any number of streams at once; gRPC only reads the buffers. Nothing may change the bytes
// while anyone sends them. Frames over plain byte slices (New) are garbage collected and need no Free.
//
// Receiving: the Frame owns one reference on each buffer and the receiver calls Free when done, else the pooled memory is only
// lost to the garbage collector. Buffers are views into network reads: copy what is to be kept for long (Clone).
type Frame mem.BufferSlice

// New returns a Frame of the parts, which are not copied and must not change from here on.
func New(parts ...[]byte) Frame {
	frame := make(Frame, 0, len(parts))
	for _, part := range parts {
		if len(part) > 0 {
			frame = append(frame, mem.SliceBuffer(part))
		}
	}
	return frame
}

// Len returns the number of bytes.
func (f Frame) Len() int { return mem.BufferSlice(f).Len() }

// Ref adds a reference to each buffer.
func (f Frame) Ref() { mem.BufferSlice(f).Ref() }

// Free drops a reference to each buffer; the Frame must not be used afterwards.
func (f Frame) Free() { mem.BufferSlice(f).Free() }

// Clone returns the bytes in memory of their own.
func (f Frame) Clone() []byte { return mem.BufferSlice(f).Materialize() }

// Bytes returns the bytes in one piece, without a copy when there is one buffer. They are valid until Free and must not be changed.
func (f Frame) Bytes() []byte {
	if len(f) == 1 {
		return f[0].ReadOnlyData()
	}
	return f.Clone()
}

// Codec implements encoding.CodecV2. It has no state.
type Codec struct{}

var _ encoding.CodecV2 = Codec{}

// Name implements encoding.CodecV2.
func (Codec) Name() string { return Name }

// Marshal implements encoding.CodecV2 for Frame, *Frame and proto.Message.
func (Codec) Marshal(v any) (mem.BufferSlice, error) {
	switch message := v.(type) {
	case *Frame:
		message.Ref()
		return mem.BufferSlice(*message), nil
	case Frame:
		message.Ref()
		return mem.BufferSlice(message), nil
	case proto.Message:
		return marshal(message)
	default:
		return nil, fmt.Errorf("message is %T, want a protobuf message or a rawcodec.Frame", v)
	}
}

// Unmarshal implements encoding.CodecV2 for *Frame and proto.Message. A *Frame's former content is overwritten, not freed.
func (Codec) Unmarshal(data mem.BufferSlice, v any) error {
	switch message := v.(type) {
	case *Frame:
		// gRPC frees its own references when this returns, and the slice stays gRPC's.
		data.Ref()
		*message = Frame(slices.Clone(data))
		return nil
	case proto.Message:
		buffer := data.MaterializeToBuffer(mem.DefaultBufferPool())
		defer buffer.Free()
		// The buffer goes back to the pool, so the message must not point into it; proto.Unmarshal copies, lazy fields included.
		return proto.Unmarshal(buffer.ReadOnlyData(), message)
	default:
		return fmt.Errorf("message is %T, want a protobuf message or a *rawcodec.Frame", v)
	}
}

// marshal encodes into pooled memory; small messages are not worth the pool's bookkeeping, the threshold is gRPC's.
func marshal(message proto.Message) (mem.BufferSlice, error) {
	size := proto.Size(message)
	// The size was just computed and nobody may change a message while it is sent: the cached sizes hold.
	options := proto.MarshalOptions{UseCachedSize: true}
	if mem.IsBelowBufferPoolingThreshold(size) {
		data, err := options.MarshalAppend(make([]byte, 0, size), message)
		if err != nil {
			return nil, err
		}
		return mem.BufferSlice{mem.SliceBuffer(data)}, nil
	}
	pool := mem.DefaultBufferPool()
	buffer := pool.Get(size)
	data, err := options.MarshalAppend((*buffer)[:0], message)
	if err != nil {
		pool.Put(buffer)
		return nil, err
	}
	*buffer = data
	return mem.BufferSlice{mem.NewBuffer(buffer, pool)}, nil
}
