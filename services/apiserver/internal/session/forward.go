package session

import (
	"context"
	"errors"
	"fmt"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
)

// forwardedKey is the header of a call that another API server passed on: it is not passed on again.
const forwardedKey = "dhow-forwarded"

// peer returns a client of the API server that owns the node's session, and the context to call it with.
func (m *Manager) peer(ctx context.Context, node string) (corev1.PodsClient, context.Context, error) {
	if incoming, ok := metadata.FromIncomingContext(ctx); ok && len(incoming.Get(forwardedKey)) > 0 {
		return nil, nil, noSession(node)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	o, known := m.owners[node]
	address, alive := m.servers[o.Server]
	if !known || !alive || o.Lost || o.Server == m.id || m.config.PeerDial == nil {
		return nil, nil, noSession(node)
	}
	conn, err := m.connect(address)
	if err != nil {
		return nil, nil, apierrors.NewServiceUnavailable(fmt.Sprintf("node %s is served by another API server, which cannot be reached: %v", node, err))
	}
	return corev1.NewPodsClient(conn), metadata.AppendToOutgoingContext(ctx, forwardedKey, m.id), nil
}

// connect returns the connection to another API server. The caller holds mu.
func (m *Manager) connect(address string) (*grpc.ClientConn, error) {
	if conn := m.peers[address]; conn != nil {
		return conn, nil
	}
	if m.config.PeerDial == nil {
		return nil, errors.New("this API server knows no others")
	}
	conn, err := m.config.PeerDial(address)
	if err != nil {
		return nil, err
	}
	m.peers[address] = conn
	return conn, nil
}

func (m *Manager) closePeers() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for address, conn := range m.peers {
		conn.Close()
		delete(m.peers, address)
	}
}

func forwardLog(ctx context.Context, peer corev1.PodsClient, request *corev1.PodLogRequest, send func(*corev1.PodLogResponse) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := peer.Log(ctx, request)
	if err != nil {
		return err
	}
	return relay(stream.Recv, send)
}

func forwardExec(ctx context.Context, peer corev1.PodsClient, start *corev1.PodExecRequest_Start, receive func() (*corev1.PodExecRequest, error), send func(*corev1.PodExecResponse) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := peer.Exec(ctx)
	if err != nil {
		return err
	}
	return passOn(stream, corev1.PodExecRequest_builder{Start: start}.Build(), receive, send)
}

func forwardAttach(ctx context.Context, peer corev1.PodsClient, start *corev1.PodAttachRequest_Start, receive func() (*corev1.PodAttachRequest, error), send func(*corev1.PodAttachResponse) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := peer.Attach(ctx)
	if err != nil {
		return err
	}
	return passOn(stream, corev1.PodAttachRequest_builder{Start: start}.Build(), receive, send)
}

// passOn passes a call with input on, until either stream ends.
func passOn[In, Out any](stream grpc.BidiStreamingClient[In, Out], first *In, receive func() (*In, error), send func(*Out) error) error {
	if err := stream.Send(first); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	go func() {
		for {
			input, err := receive()
			if err != nil {
				// The end of the caller's input, or of the caller; in the second case the call's context ends as well.
				_ = stream.CloseSend()
				return
			}
			if stream.Send(input) != nil {
				return
			}
		}
	}()
	return relay(stream.Recv, send)
}

// relay passes messages on until the stream ends.
func relay[M any](receive func() (*M, error), send func(*M) error) error {
	for {
		message, err := receive()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := send(message); err != nil {
			return err
		}
	}
}
