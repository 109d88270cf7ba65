package session

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	nodev1 "dhow.dev/gen/go/dhow/node/v1"
	"dhow.dev/services/apiserver/internal/grpcapi"
)

// maxPiece bounds one message of a connection.
const maxPiece = 32 << 10

// Dial implements grpcapi.Tunnels: it connects to a port of a pod, through the node's agent.
func (m *Manager) Dial(ctx context.Context, pod grpcapi.Pod, start *corev1.PodPortForwardRequest_Start) (net.Conn, error) {
	to, out, err := m.reach(ctx, pod.Node)
	if err != nil {
		return nil, err
	}
	c := &conn{remote: address(pod.Namespace + "/" + pod.Name)}
	if to.session == nil {
		if err := c.overPeer(out, to.peer, start); err != nil {
			return nil, err
		}
	} else if err := c.overTunnel(ctx, m, to.session, pod, start); err != nil {
		return nil, err
	}
	// The first answer is empty and says that the connection was made.
	if c.rest, err = c.receive(); err != nil {
		_ = c.Close()
		if errors.Is(err, io.EOF) {
			err = noSession(pod.Node)
		}
		return nil, err
	}
	return c, nil
}

// conn is a connection to a port of a pod. One goroutine may read and one may write at a time.
type conn struct {
	receive func() ([]byte, error)
	send    func(*corev1.PodPortForwardRequest) error
	end     func()
	remote  address

	rest []byte
	once sync.Once
}

func (c *conn) overTunnel(ctx context.Context, m *Manager, s *attached, pod grpcapi.Pod, start *corev1.PodPortForwardRequest_Start) error {
	t, err := m.open(ctx, s, nodev1.OpenTunnel_builder{PortForward: start, PodUid: pod.UID}.Build())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	// The stream ends with ctx even if nobody closes or reads the connection any more.
	stop := context.AfterFunc(ctx, t.close)
	c.receive = func() ([]byte, error) {
		message, err := t.next(ctx)
		return message.GetPortForward().GetData(), err
	}
	c.send = func(request *corev1.PodPortForwardRequest) error {
		return t.send(nodev1.TunnelResponse_builder{PortForward: request}.Build())
	}
	c.end = func() {
		stop()
		cancel()
		t.close()
	}
	return nil
}

func (c *conn) overPeer(ctx context.Context, peer corev1.PodsClient, start *corev1.PodPortForwardRequest_Start) error {
	ctx, cancel := context.WithCancel(ctx)
	stream, err := peer.PortForward(ctx)
	if err == nil {
		err = stream.Send(corev1.PodPortForwardRequest_builder{Start: start}.Build())
		if errors.Is(err, io.EOF) {
			err = nil // receiving says why
		}
	}
	if err != nil {
		cancel()
		return err
	}
	c.receive = func() ([]byte, error) {
		message, err := stream.Recv()
		return message.GetData(), err
	}
	c.send, c.end = stream.Send, cancel
	return nil
}

// Read implements net.Conn.
func (c *conn) Read(into []byte) (int, error) {
	for len(c.rest) == 0 {
		var err error
		if c.rest, err = c.receive(); err != nil {
			return 0, err
		}
	}
	n := copy(into, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

// Write implements net.Conn.
func (c *conn) Write(data []byte) (int, error) {
	written := 0
	for piece := range slices.Chunk(data, maxPiece) {
		if err := c.send(corev1.PodPortForwardRequest_builder{Data: piece}.Build()); err != nil {
			return written, net.ErrClosed
		}
		written += len(piece)
	}
	return written, nil
}

// CloseWrite says that nothing more will be written.
func (c *conn) CloseWrite() error {
	end := true
	return c.send(corev1.PodPortForwardRequest_builder{Close: &end}.Build())
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.once.Do(c.end)
	return nil
}

// LocalAddr implements net.Conn.
func (c *conn) LocalAddr() net.Addr { return address("apiserver") }

// RemoteAddr implements net.Conn.
func (c *conn) RemoteAddr() net.Addr { return c.remote }

// SetDeadline implements net.Conn: there are none.
func (c *conn) SetDeadline(time.Time) error { return os.ErrNoDeadline }

// SetReadDeadline implements net.Conn: there are none.
func (c *conn) SetReadDeadline(time.Time) error { return os.ErrNoDeadline }

// SetWriteDeadline implements net.Conn: there are none.
func (c *conn) SetWriteDeadline(time.Time) error { return os.ErrNoDeadline }

// address names an end of a connection.
type address string

// Network implements net.Addr.
func (address) Network() string { return "tunnel" }

// String implements net.Addr.
func (a address) String() string { return string(a) }
