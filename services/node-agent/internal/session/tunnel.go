package session

import (
	"context"
	"io"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	nodev1 "dhow.dev/gen/go/dhow/node/v1"
	"dhow.dev/pkg/telemetry"
	"dhow.dev/pkg/telemetry/logkey"
)

// maxPiece bounds one message of output.
const maxPiece = 64 << 10

// Tunnel carries one log, exec, attach or connection to a port. Its writers are safe for concurrent use; back-pressure is the stream's.
type Tunnel struct {
	stream nodev1.Sessions_TunnelClient
	// received is fed by the one goroutine that reads the stream, and closed at its end.
	received chan *nodev1.TunnelResponse
	mu       sync.Mutex
	id       string
}

// pump reads the stream to its end. Nothing is read ahead of who takes it: that holds the caller back.
func (t *Tunnel) pump() {
	defer close(t.received)
	for {
		r, err := t.stream.Recv()
		if err != nil {
			return
		}
		select {
		case t.received <- r:
		case <-t.stream.Context().Done():
			return
		}
	}
}

func (t *Tunnel) send(r *nodev1.TunnelRequest) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	// The first message says whose tunnel it is.
	if t.id != "" {
		r.SetId(t.id)
		t.id = ""
	}
	return t.stream.Send(r)
}

// pieces writes data in messages that build makes.
type pieces struct {
	tunnel *Tunnel
	build  func([]byte) *nodev1.TunnelRequest
}

func (p pieces) Write(data []byte) (int, error) {
	written := 0
	for len(data) > 0 {
		n := min(len(data), maxPiece)
		if err := p.tunnel.send(p.build(data[:n:n])); err != nil {
			return written, err
		}
		data, written = data[n:], written+n
	}
	return written, nil
}

// Log returns the writer of a log's text.
func (t *Tunnel) Log() io.Writer {
	return pieces{t, func(b []byte) *nodev1.TunnelRequest {
		return nodev1.TunnelRequest_builder{Log: corev1.PodLogResponse_builder{Data: b}.Build()}.Build()
	}}
}

// Stdout returns the writer of a command's output.
func (t *Tunnel) Stdout() io.Writer {
	return pieces{t, func(b []byte) *nodev1.TunnelRequest {
		return nodev1.TunnelRequest_builder{Exec: corev1.PodExecResponse_builder{Stdout: b}.Build()}.Build()
	}}
}

// Stderr returns the writer of a command's errors.
func (t *Tunnel) Stderr() io.Writer {
	return pieces{t, func(b []byte) *nodev1.TunnelRequest {
		return nodev1.TunnelRequest_builder{Exec: corev1.PodExecResponse_builder{Stderr: b}.Build()}.Build()
	}}
}

// Exit says how a command ended.
func (t *Tunnel) Exit(code int32) error {
	return t.send(nodev1.TunnelRequest_builder{Exec: corev1.PodExecResponse_builder{ExitCode: &code}.Build()}.Build())
}

// Receive returns the next of what the caller sends: input, its end, terminal sizes. io.EOF when there is no more.
func (t *Tunnel) Receive() (*corev1.PodExecRequest, error) {
	r, ok := <-t.received
	if !ok {
		return nil, io.EOF
	}
	return r.GetExec(), nil
}

// Data returns the writer of what a port says. An empty write tells that the connection was made.
func (t *Tunnel) Data() io.Writer { return data{t} }

type data struct{ tunnel *Tunnel }

// Write implements io.Writer.
func (d data) Write(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, d.tunnel.send(nodev1.TunnelRequest_builder{PortForward: &corev1.PodPortForwardResponse{}}.Build())
	}
	return pieces{d.tunnel, func(b []byte) *nodev1.TunnelRequest {
		return nodev1.TunnelRequest_builder{PortForward: corev1.PodPortForwardResponse_builder{Data: b}.Build()}.Build()
	}}.Write(p)
}

// ReceiveData returns the next of what the caller sends to a port. io.EOF when there is no more.
func (t *Tunnel) ReceiveData() ([]byte, error) {
	r, ok := <-t.received
	if !ok || r.GetPortForward().GetClose() {
		return nil, io.EOF
	}
	return r.GetPortForward().GetData(), nil
}

// tunnel dials a tunnel and serves the request on it.
func (s *Session) tunnel(ctx context.Context, request *nodev1.OpenTunnel) {
	ctx, cancel := context.WithCancel(telemetry.WithTraceparent(ctx, request.GetTraceparent()))
	defer cancel()
	stream, err := s.client.Tunnel(ctx)
	if err != nil {
		s.config.Logger.WarnContext(ctx, "tunnel not opened", logkey.Session(request.GetId()), logkey.Err(err))
		return
	}
	t := &Tunnel{stream: stream, received: make(chan *nodev1.TunnelResponse), id: request.GetId()}
	go t.pump()
	// The id travels at once, so that the server knows whose the stream is before there is anything to say.
	if err := t.send(&nodev1.TunnelRequest{}); err != nil {
		return // the caller has gone
	}
	// The stream's context ends with the caller: what is served stops then.
	if err := s.config.Serve(stream.Context(), request, t); err != nil && stream.Context().Err() == nil {
		failure := nodev1.Failure_builder{Code: int32(codes.Internal), Message: err.Error()}.Build()
		if st, ok := status.FromError(err); ok {
			failure.SetCode(int32(st.Code()))
			failure.SetMessage(st.Message())
		}
		if err := t.send(nodev1.TunnelRequest_builder{Failure: failure}.Build()); err != nil {
			return
		}
	}
	if err := stream.CloseSend(); err != nil {
		return
	}
	// Everything was sent; the server ends the stream when it has passed it on. Leaving earlier would cut that off.
	for range t.received {
	}
}
