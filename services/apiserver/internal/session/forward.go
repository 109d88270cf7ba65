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
	"dhow.dev/services/apiserver/internal/grpcapi"
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
	conn := m.peers[address]
	if conn == nil {
		var err error
		if conn, err = m.config.PeerDial(address); err != nil {
			return nil, nil, apierrors.NewServiceUnavailable(fmt.Sprintf("node %s is served by another API server, which cannot be reached: %v", node, err))
		}
		m.peers[address] = conn
	}
	return corev1.NewPodsClient(conn), metadata.AppendToOutgoingContext(ctx, forwardedKey, m.id), nil
}

func (m *Manager) closePeers() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for address, conn := range m.peers {
		conn.Close()
		delete(m.peers, address)
	}
}

func (m *Manager) forwardLog(ctx context.Context, pod grpcapi.Pod, request *corev1.PodLogRequest, send func(*corev1.PodLogResponse) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	client, ctx, err := m.peer(ctx, pod.Node)
	if err != nil {
		return err
	}
	stream, err := client.Log(ctx, request)
	if err != nil {
		return err
	}
	return relay(stream.Recv, send)
}

func (m *Manager) forwardExec(ctx context.Context, pod grpcapi.Pod, start *corev1.PodExecRequest_Start, receive func() (*corev1.PodExecRequest, error), send func(*corev1.PodExecResponse) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	client, ctx, err := m.peer(ctx, pod.Node)
	if err != nil {
		return err
	}
	stream, err := client.Exec(ctx)
	if err != nil {
		return err
	}
	if err := stream.Send(corev1.PodExecRequest_builder{Start: start}.Build()); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	go passInput(stream, receive)
	return relay(stream.Recv, send)
}

// passInput passes the caller's input on until either stream ends.
func passInput(stream grpc.BidiStreamingClient[corev1.PodExecRequest, corev1.PodExecResponse], receive func() (*corev1.PodExecRequest, error)) {
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
