// Package session holds the node's session with an API server: it registers the node, says that it is alive and how it is, and serves logs and
// exec over streams that the agent dials, so that a node needs no open port.
package session

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	nodev1 "dhow.dev/gen/go/dhow/node/v1"
	"dhow.dev/pkg/telemetry/logkey"
)

// Reconnecting waits between these, doubling, with jitter.
const (
	minBackoff = 50 * time.Millisecond
	maxBackoff = 2 * time.Second
	// defaultHeartbeat is for a server that names no interval.
	defaultHeartbeat = 5 * time.Second
)

// Config is what a Session needs.
type Config struct {
	Conn grpc.ClientConnInterface
	// Instance is random per process.
	Instance string
	// Node returns the Node to register, with its newest status.
	Node func() *corev1.Node
	// Attached is told of each attachment, with the Node as the API server has it. It must not block.
	Attached func(*corev1.Node)
	// Serve answers a request for what a tunnel carries.
	Serve  func(ctx context.Context, request *nodev1.OpenTunnel, tunnel *Tunnel) error
	Logger *slog.Logger
}

// Session is the node's.
type Session struct {
	config Config
	client nodev1.SessionsClient

	mu     sync.Mutex
	status *corev1.NodeStatus
	usage  *nodev1.NodeUsage
	// changed is signalled when status is to be sent, used when usage is.
	changed, used chan struct{}
	// attached is closed at the first attachment.
	attached     chan struct{}
	attachedOnce sync.Once
}

// New returns a session that does nothing until Run.
func New(config Config) *Session {
	return &Session{config: config, client: nodev1.NewSessionsClient(config.Conn), changed: make(chan struct{}, 1), used: make(chan struct{}, 1), attached: make(chan struct{})}
}

// SetStatus sends a changed status on the session; only the newest counts.
func (s *Session) SetStatus(status *corev1.NodeStatus) {
	s.mu.Lock()
	s.status = status
	s.mu.Unlock()
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// SetUsage sends what the node uses on the session; only the newest counts.
func (s *Session) SetUsage(usage *nodev1.NodeUsage) {
	s.mu.Lock()
	s.usage = usage
	s.mu.Unlock()
	s.signalUsage()
}

func (s *Session) signalUsage() {
	select {
	case s.used <- struct{}{}:
	default:
	}
}

// FirstAttached is closed once the node was attached for the first time.
func (s *Session) FirstAttached() <-chan struct{} { return s.attached }

// Run keeps the session until ctx ends.
func (s *Session) Run(ctx context.Context) error {
	backoff := minBackoff
	for ctx.Err() == nil {
		was, err := s.attach(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if was {
			backoff = minBackoff
		}
		wait := backoff/2 + rand.N(backoff/2)
		if status.Code(err) == codes.PermissionDenied || status.Code(err) == codes.Unauthenticated {
			s.config.Logger.WarnContext(ctx, "the API server refuses this node's session", logkey.Err(err), logkey.Delay(wait))
		} else {
			s.config.Logger.InfoContext(ctx, "session ended, attaching again", logkey.Err(err), logkey.Delay(wait))
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
		backoff = min(2*backoff, maxBackoff)
	}
	return nil
}

// attach runs one session to its end and says whether it was ever attached.
func (s *Session) attach(ctx context.Context) (was bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	var group sync.WaitGroup
	defer group.Wait()
	defer cancel()
	stream, err := s.client.Attach(ctx)
	if err != nil {
		return false, err
	}
	select { // the hello carries the newest status
	case <-s.changed:
	default:
	}
	hello := nodev1.Hello_builder{Node: s.config.Node(), Instance: s.config.Instance}.Build()
	if err := stream.Send(nodev1.AttachRequest_builder{Hello: hello}.Build()); err != nil {
		return false, ended(stream, err)
	}
	first, err := stream.Recv()
	if err != nil {
		return false, err
	}
	attached := first.GetAttached()
	if attached == nil {
		return false, fmt.Errorf("session: the API server answered the hello with %s", first.WhichMessage())
	}
	s.config.Logger.InfoContext(ctx, "attached to an API server", logkey.Revision(attached.GetEpoch()))
	s.config.Attached(attached.GetNode())
	s.attachedOnce.Do(func() { close(s.attached) })
	s.signalUsage() // a new session knows nothing of it
	interval := time.Duration(attached.GetHeartbeatIntervalSeconds()) * time.Second
	if interval <= 0 {
		interval = defaultHeartbeat
	}
	group.Go(func() {
		// A stream that cannot be written to any more ends for its reader too.
		if err := s.beat(ctx, stream, interval); err != nil {
			cancel()
		}
	})
	for {
		response, err := stream.Recv()
		if err != nil {
			return true, err
		}
		if request := response.GetOpenTunnel(); request != nil {
			group.Go(func() { s.tunnel(ctx, request) })
		}
	}
}

// ended returns why a stream ended; sending only says that it did.
func ended(stream nodev1.Sessions_AttachClient, err error) error {
	if err != io.EOF {
		return err
	}
	_, err = stream.Recv()
	return err
}

// beat sends heartbeats and statuses.
func (s *Session) beat(ctx context.Context, stream nodev1.Sessions_AttachClient, interval time.Duration) error {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		var message *nodev1.AttachRequest
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			message = nodev1.AttachRequest_builder{Heartbeat: &nodev1.Heartbeat{}}.Build()
		case <-s.changed:
			s.mu.Lock()
			message = nodev1.AttachRequest_builder{Status: s.status}.Build()
			s.mu.Unlock()
		case <-s.used:
			s.mu.Lock()
			usage := s.usage
			s.mu.Unlock()
			if usage == nil {
				continue
			}
			message = nodev1.AttachRequest_builder{Usage: usage}.Build()
		}
		if err := stream.Send(message); err != nil {
			return err
		}
	}
}
