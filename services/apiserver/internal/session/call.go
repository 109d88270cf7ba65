package session

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/protobuf/proto"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	nodev1 "dhow.dev/gen/go/dhow/node/v1"
	"dhow.dev/services/apiserver/internal/grpcapi"
)

// maxWait bounds how long a call waits for the session of a node that is ready: after a restart of the API server its agent is on its way back.
const maxWait = 10 * time.Second

func noSession(node string) error {
	return apierrors.NewServiceUnavailable(fmt.Sprintf("node %s has no session: its agent is not connected", node))
}

// way is how a call reaches a node: by the session here, or by the API server that has it.
type way struct {
	session *attached
	peer    corev1.PodsClient
}

// reach finds the way to a node. A node that is ready and has no session is about to get one: the call waits for it, even if the node's grace ends meanwhile.
// The returned context is the one to call the peer with.
func (m *Manager) reach(ctx context.Context, node string) (way, context.Context, error) {
	timeout := time.NewTimer(maxWait)
	defer timeout.Stop()
	ready := m.isReady(node)
	for {
		m.mu.Lock()
		s, news := m.sessions[node], m.news
		usable := s != nil && s.greeted
		m.mu.Unlock()
		if usable {
			return way{session: s}, ctx, nil
		}
		peer, out, err := m.peer(ctx, node)
		if err == nil {
			return way{peer: peer}, out, nil
		}
		if !ready {
			return way{}, nil, err
		}
		select {
		case <-news:
		case <-timeout.C:
			return way{}, nil, err
		case <-ctx.Done():
			return way{}, nil, ctx.Err()
		}
	}
}

// isReady says whether the Node, as it is stored, is ready.
func (m *Manager) isReady(name string) bool {
	e := m.config.Cache.Peek(nodes, "", name)
	if e == nil {
		return false
	}
	node := &corev1.Node{}
	if proto.Unmarshal(e.Object, node) != nil {
		return false
	}
	for _, c := range node.GetStatus().GetConditions() {
		if c.GetType() == "Ready" {
			return c.GetStatus() == "True"
		}
	}
	return false
}

// tell wakes the calls that wait for a session. The caller holds mu.
func (m *Manager) tell() {
	close(m.news)
	m.news = make(chan struct{})
}

// Log implements grpcapi.Tunnels.
func (m *Manager) Log(ctx context.Context, pod grpcapi.Pod, request *corev1.PodLogRequest, send func(*corev1.PodLogResponse) error) error {
	to, out, err := m.reach(ctx, pod.Node)
	if err != nil {
		return err
	}
	if to.session == nil {
		return forwardLog(out, to.peer, request, send)
	}
	t, err := m.open(ctx, to.session, nodev1.OpenTunnel_builder{Log: request, PodUid: pod.UID}.Build())
	if err != nil {
		return err
	}
	defer t.close()
	for {
		message, err := t.next(ctx)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := send(message.GetLog()); err != nil {
			return err
		}
	}
}

// Exec implements grpcapi.Tunnels.
func (m *Manager) Exec(ctx context.Context, pod grpcapi.Pod, start *corev1.PodExecRequest_Start, receive func() (*corev1.PodExecRequest, error), send func(*corev1.PodExecResponse) error) error {
	to, out, err := m.reach(ctx, pod.Node)
	if err != nil {
		return err
	}
	if to.session == nil {
		return forwardExec(out, to.peer, start, receive, send)
	}
	t, err := m.open(ctx, to.session, nodev1.OpenTunnel_builder{Exec: start, PodUid: pod.UID}.Build())
	if err != nil {
		return err
	}
	defer t.close()
	go t.pass(receive)
	for {
		message, err := t.next(ctx)
		if errors.Is(err, io.EOF) {
			return apierrors.NewServiceUnavailable(fmt.Sprintf("node %s ended the call without an exit code", pod.Node))
		}
		if err != nil {
			return err
		}
		output := message.GetExec()
		if err := send(output); err != nil {
			return err
		}
		if output.HasExitCode() {
			return nil
		}
	}
}

// pass passes the caller's input on. It ends when the caller's stream ends, which it does when the call is over.
func (t *tunnel) pass(receive func() (*corev1.PodExecRequest, error)) {
	for {
		input, err := receive()
		if err != nil {
			return
		}
		if t.send(nodev1.TunnelResponse_builder{Exec: input}.Build()) != nil {
			return
		}
	}
}

// AttachTo implements grpcapi.Tunnels. To the agent its streams are those of an exec.
func (m *Manager) AttachTo(ctx context.Context, pod grpcapi.Pod, start *corev1.PodAttachRequest_Start, receive func() (*corev1.PodAttachRequest, error), send func(*corev1.PodAttachResponse) error) error {
	to, out, err := m.reach(ctx, pod.Node)
	if err != nil {
		return err
	}
	if to.session == nil {
		return forwardAttach(out, to.peer, start, receive, send)
	}
	t, err := m.open(ctx, to.session, nodev1.OpenTunnel_builder{Attach: start, PodUid: pod.UID}.Build())
	if err != nil {
		return err
	}
	defer t.close()
	go t.pass(func() (*corev1.PodExecRequest, error) {
		input, err := receive()
		if err != nil {
			return nil, err
		}
		return execInput(input), nil
	})
	for {
		message, err := t.next(ctx)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		output := &corev1.PodAttachResponse{}
		switch from := message.GetExec(); {
		case from.HasStdout():
			output.SetStdout(from.GetStdout())
		case from.HasStderr():
			output.SetStderr(from.GetStderr())
		default:
			continue
		}
		if err := send(output); err != nil {
			return err
		}
	}
}

func execInput(input *corev1.PodAttachRequest) *corev1.PodExecRequest {
	out := &corev1.PodExecRequest{}
	switch {
	case input.HasStdin():
		out.SetStdin(input.GetStdin())
	case input.HasCloseStdin():
		out.SetCloseStdin(input.GetCloseStdin())
	case input.HasResize():
		out.SetResize(input.GetResize())
	}
	return out
}
