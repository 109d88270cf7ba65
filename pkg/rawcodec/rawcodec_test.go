package rawcodec

import (
	"bytes"
	"context"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	grpcproto "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"
)

// countingPool counts what is out, to see that references are dropped exactly once.
type countingPool struct {
	out  atomic.Int64
	puts atomic.Int64
}

func (p *countingPool) Get(n int) *[]byte {
	p.out.Add(1)
	b := make([]byte, n)
	return &b
}

func (p *countingPool) Put(b *[]byte) {
	p.out.Add(-1)
	p.puts.Add(1)
	clear(*b) // a reader that kept a view sees zeros
}

func pod(name string, padding int) *corev1.Pod {
	return corev1.Pod_builder{
		Metadata: metav1.ObjectMeta_builder{Name: proto.String(name), Annotations: map[string]string{"pad": strings.Repeat("x", padding)}}.Build(),
		Spec:     corev1.PodSpec_builder{NodeName: proto.String("node-of-" + name)}.Build(),
	}.Build()
}

func TestProtoMessagesAsGRPCsOwnCodec(t *testing.T) {
	theirs := encoding.GetCodecV2(grpcproto.Name)
	for _, size := range []int{0, 10, 1 << 10, 1 << 20} {
		message := pod("a", size)
		ours, err := Codec{}.Marshal(message)
		if err != nil {
			t.Fatal(err)
		}
		want, err := proto.Marshal(message)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(ours.Materialize(), want) {
			t.Fatalf("size %d: encoding differs from protobuf's", size)
		}
		back := &corev1.Pod{}
		if err := theirs.Unmarshal(ours, back); err != nil || !proto.Equal(back, message) {
			t.Fatalf("size %d: gRPC's codec reads something else: %v", size, err)
		}
		ours.Free()

		data, err := theirs.Marshal(message)
		if err != nil {
			t.Fatal(err)
		}
		back = &corev1.Pod{}
		if err := (Codec{}).Unmarshal(data, back); err != nil || !proto.Equal(back, message) {
			t.Fatalf("size %d: gRPC's encoding reads as something else: %v", size, err)
		}
		data.Free()
	}
}

func TestDecodedMessageDoesNotAliasPooledMemory(t *testing.T) {
	want := pod("a", 8<<10)
	encoded, err := proto.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	pool := &countingPool{}
	buffer := pool.Get(len(encoded))
	copy(*buffer, encoded)
	data := mem.BufferSlice{mem.NewBuffer(buffer, pool)}
	got := &corev1.Pod{}
	if err := (Codec{}).Unmarshal(data, got); err != nil {
		t.Fatal(err)
	}
	data.Free() // scribbles over the buffer; the spec is decoded only now
	if pool.puts.Load() != 1 || !proto.Equal(got, want) {
		t.Fatalf("after the buffer was reused (puts %d): %v", pool.puts.Load(), got)
	}
}

func TestFrameReferences(t *testing.T) {
	pool := &countingPool{}
	content := bytes.Repeat([]byte("0123456789abcdef"), 1024)
	buffer := pool.Get(len(content))
	copy(*buffer, content)
	frame := Frame{mem.NewBuffer(buffer, pool)}

	first, err := Codec{}.Marshal(frame)
	if err != nil {
		t.Fatal(err)
	}
	second, err := Codec{}.Marshal(&frame)
	if err != nil {
		t.Fatal(err)
	}
	first.Free()
	frame.Free()
	if !bytes.Equal(second.Materialize(), content) {
		t.Fatal("bytes changed while a reference was held")
	}
	var received Frame
	if err := (Codec{}).Unmarshal(second, &received); err != nil {
		t.Fatal(err)
	}
	second.Free()
	if !bytes.Equal(received.Bytes(), content) || received.Len() != len(content) {
		t.Fatal("received bytes differ")
	}
	if pool.puts.Load() != 0 {
		t.Fatal("freed while a reference was held")
	}
	received.Free()
	if pool.puts.Load() != 1 || pool.out.Load() != 0 {
		t.Fatalf("puts %d, out %d, want 1 and 0", pool.puts.Load(), pool.out.Load())
	}
}

func TestFrameOfParts(t *testing.T) {
	frame := New([]byte("ab"), nil, []byte("c"))
	if got := string(frame.Bytes()); got != "abc" || frame.Len() != 3 || len(frame) != 2 {
		t.Fatalf("frame = %q, %d bytes in %d buffers", got, frame.Len(), len(frame))
	}
	if got := New().Bytes(); len(got) != 0 {
		t.Fatalf("empty frame = %q", got)
	}
	clone := frame.Clone()
	clone[0] = 'X'
	if string(frame.Clone()) != "abc" {
		t.Fatal("Clone shares memory")
	}
}

func TestWrongTypes(t *testing.T) {
	if _, err := (Codec{}).Marshal("text"); err == nil || !strings.Contains(err.Error(), "string") {
		t.Errorf("Marshal(string): %v", err)
	}
	if err := (Codec{}).Unmarshal(nil, "text"); err == nil {
		t.Error("Unmarshal into a string succeeded")
	}
}

// fanOut is a service whose one method streams count messages, made by next.
type fanOut struct {
	next  func() any
	count int
}

func (f *fanOut) desc() *grpc.ServiceDesc {
	return &grpc.ServiceDesc{
		ServiceName: "test.FanOut", HandlerType: (*any)(nil),
		Streams: []grpc.StreamDesc{{StreamName: "Watch", ServerStreams: true, Handler: func(_ any, stream grpc.ServerStream) error {
			var request Frame
			if err := stream.RecvMsg(&request); err != nil {
				return err
			}
			request.Free()
			for range f.count {
				if err := stream.SendMsg(f.next()); err != nil {
					return err
				}
			}
			return nil
		}}},
	}
}

func (f *fanOut) connect(tb testing.TB) *grpc.ClientConn {
	tb.Helper()
	server := grpc.NewServer(grpc.ForceServerCodecV2(Codec{}))
	server.RegisterService(f.desc(), f)
	listener := bufconn.Listen(256 << 10)
	go server.Serve(listener)
	tb.Cleanup(server.Stop)
	conn, err := grpc.NewClient("passthrough:///fanout",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }),
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.ForceCodecV2(Codec{})))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { conn.Close() })
	return conn
}

func open(tb testing.TB, conn *grpc.ClientConn) grpc.ClientStream {
	tb.Helper()
	stream, err := conn.NewStream(tb.Context(), &grpc.StreamDesc{ServerStreams: true}, "/test.FanOut/Watch")
	if err != nil {
		tb.Fatal(err)
	}
	if err := stream.SendMsg(New()); err != nil {
		tb.Fatal(err)
	}
	if err := stream.CloseSend(); err != nil {
		tb.Fatal(err)
	}
	return stream
}

func TestFrameOverGRPC(t *testing.T) {
	encoded, err := proto.Marshal(pod("a", 100<<10)) // more than one HTTP/2 frame
	if err != nil {
		t.Fatal(err)
	}
	pool := &countingPool{}
	buffer := pool.Get(len(encoded))
	copy(*buffer, encoded)
	// metadata again at the end, as the API server splices resource versions in
	suffix, err := proto.Marshal(corev1.Pod_builder{Metadata: metav1.ObjectMeta_builder{ResourceVersion: proto.String("7")}.Build()}.Build())
	if err != nil {
		t.Fatal(err)
	}
	frame := Frame{mem.NewBuffer(buffer, pool), mem.SliceBuffer(suffix)}
	service := &fanOut{next: func() any { return frame }, count: 3}
	conn := service.connect(t)

	const streams = 8
	var opened []grpc.ClientStream
	for range streams {
		opened = append(opened, open(t, conn))
	}
	for _, stream := range opened {
		for range service.count {
			got := &corev1.Pod{}
			if err := stream.RecvMsg(got); err != nil {
				t.Fatal(err)
			}
			if got.GetMetadata().GetName() != "a" || got.GetMetadata().GetResourceVersion() != "7" || got.GetSpec().GetNodeName() != "node-of-a" {
				t.Fatalf("received %v", got)
			}
		}
		if err := stream.RecvMsg(&corev1.Pod{}); err != io.EOF {
			t.Fatalf("end of stream: %v", err)
		}
	}
	if pool.puts.Load() != 0 {
		t.Fatal("gRPC freed the sender's reference")
	}
	raw := open(t, conn)
	var received Frame
	if err := raw.RecvMsg(&received); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(received.Bytes(), append(bytes.Clone(encoded), suffix...)) {
		t.Fatal("raw bytes differ")
	}
	received.Free()
}

// BenchmarkFanOut sends one pod to 100 streams: "raw" as stored bytes, "encode" through protobuf on each stream.
func BenchmarkFanOut(b *testing.B) {
	message := pod("a", 2<<10)
	encoded, err := proto.Marshal(message)
	if err != nil {
		b.Fatal(err)
	}
	frame := New(encoded)
	for name, value := range map[string]any{"raw": &frame, "encode": message} {
		b.Run(name, func(b *testing.B) {
			const streams = 100
			service := &fanOut{next: func() any { return value }, count: b.N}
			conn := service.connect(b)
			b.ReportAllocs()
			b.ResetTimer()
			done := make(chan error, streams)
			for range streams {
				stream := open(b, conn)
				go func() {
					for {
						var f Frame
						if err := stream.RecvMsg(&f); err != nil {
							done <- err
							return
						}
						f.Free()
					}
				}()
			}
			for range streams {
				if err := <-done; err != io.EOF {
					b.Error(err)
				}
			}
		})
	}
}
