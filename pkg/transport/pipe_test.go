package transport

import (
	"bytes"
	"io"
	"net"
	"sync"
	"testing"

	"dhow.dev/pkg/identity"
	"golang.org/x/net/nettest"
	"pgregory.net/rapid"
)

func TestConnConformance(t *testing.T) {
	nettest.TestConn(t, func() (net.Conn, net.Conn, func(), error) {
		client, server := newMemoryConn("test", identity.Identity{Name: "a"})
		return client, server, func() { client.Close(); server.Close() }, nil
	})
}

// TestFlowKeepsBytes writes and reads pieces of any size through a ring that grows and wraps.
func TestFlowKeepsBytes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := newFlow()
		var expected bytes.Buffer
		next := byte(0)
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			if n := rapid.IntRange(0, 3*pipeInitial).Draw(t, "write"); f.size+n <= pipeLimit {
				piece := make([]byte, n)
				for i := range piece {
					piece[i] = next
					next++
				}
				expected.Write(piece)
				if wrote, err := f.write(piece); err != nil || wrote != n {
					t.Fatalf("write: %d, %v", wrote, err)
				}
			}
			if f.size > 0 {
				got := make([]byte, rapid.IntRange(1, 3*pipeInitial).Draw(t, "read"))
				n, err := f.read(got)
				if err != nil || !bytes.Equal(got[:n], expected.Next(n)) {
					t.Fatalf("read %d bytes that differ: %v", n, err)
				}
			}
		}
	})
}

func TestCloseDrainsThenEOF(t *testing.T) {
	client, server := newMemoryConn("test", identity.Identity{Name: "a"})
	if _, err := client.Write([]byte("last words")); err != nil {
		t.Fatal(err)
	}
	client.Close()
	got, err := io.ReadAll(server)
	if err != nil || string(got) != "last words" {
		t.Fatalf("%q, %v", got, err)
	}
	if _, err := server.Write([]byte("x")); err == nil {
		t.Fatal("wrote to a closed peer")
	}
}

// BenchmarkPipe compares the connection with what gRPC writes through it (32 KiB at a time).
func BenchmarkPipe(b *testing.B) {
	client, server := newMemoryConn("test", identity.Identity{Name: "a"})
	piece := make([]byte, 32<<10)
	b.SetBytes(int64(len(piece)))
	b.ReportAllocs()
	var group sync.WaitGroup
	group.Go(func() { io.Copy(io.Discard, server) })
	for b.Loop() {
		if _, err := client.Write(piece); err != nil {
			b.Fatal(err)
		}
	}
	client.Close()
	group.Wait()
}
