package transport

import (
	"io"
	"net"
	"os"
	"sync"
	"time"

	"dhow.dev/pkg/identity"
)

const (
	// pipeInitial is small because most connections of one process are idle most of the time.
	pipeInitial = 4 << 10
	// pipeLimit bounds what a writer can be ahead of its reader: several HTTP/2 frames, so that both sides seldom wait for each other.
	pipeLimit = 256 << 10
)

// memoryConn is one end of a connection inside the process.
type memoryConn struct {
	in, out *flow
	address memoryAddr
	// caller is who dialed, known on the server's end only.
	caller identity.Identity
}

func newMemoryConn(name string, caller identity.Identity) (client, server *memoryConn) {
	up, down := newFlow(), newFlow()
	return &memoryConn{in: down, out: up, address: memoryAddr(name)},
		&memoryConn{in: up, out: down, address: memoryAddr(name), caller: caller}
}

func (c *memoryConn) Read(b []byte) (int, error)  { return c.in.read(b) }
func (c *memoryConn) Write(b []byte) (int, error) { return c.out.write(b) }

// Close ends both directions. The peer still reads what was written before.
func (c *memoryConn) Close() error {
	c.in.closeReader()
	c.out.closeWriter()
	return nil
}

func (c *memoryConn) LocalAddr() net.Addr  { return c.address }
func (c *memoryConn) RemoteAddr() net.Addr { return c.address }

func (c *memoryConn) SetDeadline(t time.Time) error {
	c.in.setDeadline(&c.in.reading, t)
	c.out.setDeadline(&c.out.writing, t)
	return nil
}

func (c *memoryConn) SetReadDeadline(t time.Time) error {
	c.in.setDeadline(&c.in.reading, t)
	return nil
}

func (c *memoryConn) SetWriteDeadline(t time.Time) error {
	c.out.setDeadline(&c.out.writing, t)
	return nil
}

type memoryAddr string

func (memoryAddr) Network() string  { return "memory" }
func (a memoryAddr) String() string { return string(a) }

// flow is one direction: a ring buffer that grows up to pipeLimit.
type flow struct {
	mu               sync.Mutex
	ring             []byte
	start, size      int
	reading, writing side
}

// side is what one end of a flow waits with. Its fields are guarded by the flow's mu.
type side struct {
	wake       sync.Cond
	closed     bool
	expired    bool
	timer      *time.Timer
	generation int // of the deadline, so that a timer that fired late does not expire its successor
}

func newFlow() *flow {
	f := &flow{}
	f.reading.wake.L, f.writing.wake.L = &f.mu, &f.mu
	return f
}

func (f *flow) read(b []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for {
		switch {
		case f.reading.closed:
			return 0, io.ErrClosedPipe
		case f.reading.expired:
			return 0, os.ErrDeadlineExceeded
		case f.size > 0:
			n := copy(b, f.ring[f.start:min(f.start+f.size, len(f.ring))])
			if n < len(b) && n < f.size {
				n += copy(b[n:], f.ring[:f.size-n])
			}
			f.size -= n
			f.start = (f.start + n) % len(f.ring)
			if f.size == 0 {
				f.start = 0 // the next write is in one piece
			}
			f.writing.wake.Signal()
			return n, nil
		case f.writing.closed:
			return 0, io.EOF
		case len(b) == 0:
			return 0, nil
		}
		f.reading.wake.Wait()
	}
}

func (f *flow) write(b []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	written := 0
	for {
		switch {
		case f.writing.closed, f.reading.closed:
			return written, io.ErrClosedPipe
		case f.writing.expired:
			return written, os.ErrDeadlineExceeded
		case len(b) == 0:
			return written, nil
		}
		f.grow(len(b))
		if free := len(f.ring) - f.size; free > 0 {
			piece := b[:min(free, len(b))]
			end := (f.start + f.size) % len(f.ring)
			n := copy(f.ring[end:], piece)
			copy(f.ring, piece[n:])
			f.size += len(piece)
			written += len(piece)
			b = b[len(piece):]
			f.reading.wake.Signal()
			continue
		}
		f.writing.wake.Wait()
	}
}

// grow makes room for n more bytes, within the limit.
func (f *flow) grow(n int) {
	if len(f.ring)-f.size >= n || len(f.ring) == pipeLimit {
		return
	}
	capacity := max(len(f.ring), pipeInitial)
	for capacity-f.size < n && capacity < pipeLimit {
		capacity *= 2
	}
	if capacity == len(f.ring) {
		return
	}
	ring := make([]byte, capacity)
	head := copy(ring, f.ring[f.start:min(f.start+f.size, len(f.ring))])
	copy(ring[head:], f.ring[:f.size-head])
	f.ring, f.start = ring, 0
}

func (f *flow) closeReader() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reading.closed = true
	f.ring, f.start, f.size = nil, 0, 0
	f.reading.stop()
	f.wakeAll()
}

func (f *flow) closeWriter() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.writing.closed = true
	f.writing.stop()
	f.wakeAll()
}

func (f *flow) wakeAll() {
	f.reading.wake.Broadcast()
	f.writing.wake.Broadcast()
}

func (f *flow) setDeadline(s *side, t time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s.stop()
	s.expired = false
	if t.IsZero() || s.closed {
		return
	}
	wait := time.Until(t)
	if wait <= 0 {
		s.expired = true
		s.wake.Broadcast()
		return
	}
	generation := s.generation
	s.timer = time.AfterFunc(wait, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if s.generation == generation {
			s.expired = true
			s.wake.Broadcast()
		}
	})
}

func (s *side) stop() {
	s.generation++
	if s.timer != nil {
		s.timer.Stop()
		s.timer = nil
	}
}
