package session

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	nodev1 "dhow.dev/gen/go/dhow/node/v1"
	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/telemetry"
)

// dialTimeout bounds how long an agent may take to dial a tunnel that it was asked for.
const dialTimeout = 10 * time.Second

var errTunnelOver = status.Error(codes.NotFound, "nobody waits for this tunnel any more")

// tunnel is one log, exec, attach or connection on its way back from a node. The call that asked for it uses it; the stream's handler only waits for its end.
type tunnel struct {
	node   string
	dialed chan struct{}
	// incoming are the agent's messages, one at a time: not taking them holds the agent up. Closed at the stream's end, with failure set if it broke.
	incoming chan *nodev1.TunnelRequest
	failure  error
	// done ends the stream.
	done chan struct{}
	once sync.Once

	// mu keeps sends off a stream whose handler has returned.
	mu     sync.Mutex
	stream grpc.BidiStreamingServer[nodev1.TunnelRequest, nodev1.TunnelResponse]
}

func (t *tunnel) close() { t.once.Do(func() { close(t.done) }) }

func (t *tunnel) send(response *nodev1.TunnelResponse) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	select {
	case <-t.done:
		return io.EOF
	default:
		return t.stream.Send(response)
	}
}

// Tunnel implements dhow.node.v1.Sessions.
func (m *Manager) Tunnel(stream grpc.BidiStreamingServer[nodev1.TunnelRequest, nodev1.TunnelResponse]) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	caller, _ := identity.FromContext(stream.Context())
	node, _ := caller.NodeName()
	m.mu.Lock()
	t := m.tunnels[first.GetId()]
	if t != nil && t.node == node {
		delete(m.tunnels, first.GetId())
	} else {
		t = nil
	}
	m.mu.Unlock()
	if t == nil {
		return errTunnelOver
	}
	t.stream = stream
	close(t.dialed)
	go t.receive(first)
	select {
	case <-t.done:
	case <-stream.Context().Done():
		t.close()
		return stream.Context().Err()
	}
	return nil
}

// receive hands the agent's messages to the call. It ends with the stream, which ends at the latest when the handler returns.
func (t *tunnel) receive(next *nodev1.TunnelRequest) {
	defer close(t.incoming)
	for {
		if next.HasMessage() {
			select {
			case t.incoming <- next:
			case <-t.done:
				t.failure = errTunnelOver
				return
			}
		}
		var err error
		if next, err = t.stream.Recv(); err != nil {
			if !errors.Is(err, io.EOF) {
				t.failure = err
			}
			return
		}
	}
}

// next returns the agent's next message, io.EOF at the end. A failure that the agent reports is the error.
func (t *tunnel) next(ctx context.Context) (*nodev1.TunnelRequest, error) {
	select {
	case message, ok := <-t.incoming:
		switch {
		case !ok && t.failure != nil:
			return nil, apierrors.NewServiceUnavailable(fmt.Sprintf("the connection to node %s broke: %v", t.node, t.failure))
		case !ok:
			return nil, io.EOF
		case message.HasFailure():
			return nil, status.Error(codes.Code(message.GetFailure().GetCode()), message.GetFailure().GetMessage())
		}
		return message, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// open asks a node for a tunnel and waits until its agent has dialed it.
func (m *Manager) open(ctx context.Context, s *attached, request *nodev1.OpenTunnel) (*tunnel, error) {
	ctx, span := telemetry.Tracer(scope).Start(ctx, "session.open-tunnel")
	defer span.End()
	t := &tunnel{node: s.node, dialed: make(chan struct{}), incoming: make(chan *nodev1.TunnelRequest), done: make(chan struct{})}
	id := uuid.NewString()
	request.SetId(id)
	request.SetTraceparent(telemetry.Traceparent(ctx))
	m.mu.Lock()
	m.tunnels[id] = t
	m.mu.Unlock()
	giveUp := func(err error) (*tunnel, error) {
		m.mu.Lock()
		delete(m.tunnels, id)
		m.mu.Unlock()
		t.close()
		return nil, err
	}
	if err := s.send(nodev1.AttachResponse_builder{OpenTunnel: request}.Build()); err != nil {
		return giveUp(noSession(s.node))
	}
	timeout := time.NewTimer(dialTimeout)
	defer timeout.Stop()
	select {
	case <-t.dialed:
		return t, nil
	case <-s.over:
		return giveUp(noSession(s.node))
	case <-timeout.C:
		return giveUp(apierrors.NewServiceUnavailable(fmt.Sprintf("node %s did not answer within %s", s.node, dialTimeout)))
	case <-ctx.Done():
		return giveUp(ctx.Err())
	}
}
