package session

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	kcorev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	kmetav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	nodev1 "dhow.dev/gen/go/dhow/node/v1"
	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/resource"
	"dhow.dev/pkg/telemetry"
	"dhow.dev/pkg/telemetry/logkey"
	"dhow.dev/services/apiserver/internal/cache"
)

// attached is one session.
type attached struct {
	node  string
	epoch int64
	// greeted says that the answer to the hello is sent: nothing may be asked of the agent before. The manager's mu guards it.
	greeted bool
	// heard is when the agent last said anything, in nanoseconds.
	heard atomic.Int64
	// usage is what the node uses, as its agent last said; nil before. It must not be changed.
	usage atomic.Pointer[nodev1.NodeUsage]

	sending sync.Mutex // one Send at a time
	stream  grpc.BidiStreamingServer[nodev1.AttachRequest, nodev1.AttachResponse]

	// over is closed when the session ends; reason says why and is written before.
	over   chan struct{}
	once   sync.Once
	reason error

	// news holds the newest status that is not written yet.
	news chan kcorev1.NodeStatus
}

func (s *attached) end(reason error) {
	s.once.Do(func() {
		s.reason = reason
		close(s.over)
	})
}

func (s *attached) send(response *nodev1.AttachResponse) error {
	s.sending.Lock()
	defer s.sending.Unlock()
	return s.stream.Send(response)
}

// offer makes a status the one that is written next.
func (s *attached) offer(status kcorev1.NodeStatus) {
	for {
		select {
		case s.news <- status:
			return
		default:
		}
		select {
		case <-s.news:
		default:
		}
	}
}

// Attach implements dhow.node.v1.Sessions.
func (m *Manager) Attach(stream grpc.BidiStreamingServer[nodev1.AttachRequest, nodev1.AttachResponse]) error {
	ctx := stream.Context()
	if err := m.ready(ctx); err != nil {
		return errNotStarted
	}
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	if !first.HasHello() {
		return apierrors.NewBadRequest("the first message must be hello")
	}
	hello, err := m.hello(ctx, first.GetHello())
	if err != nil {
		return err
	}
	s := &attached{node: hello.Name, stream: stream, over: make(chan struct{}), news: make(chan kcorev1.NodeStatus, 1)}
	s.heard.Store(time.Now().UnixNano())
	answer, err := m.begin(ctx, s, hello)
	if err != nil {
		return err
	}
	m.attachedNow.Add(ctx, 1)
	defer m.attachedNow.Add(context.WithoutCancel(ctx), -1)
	defer m.leave(s)
	if err := s.send(answer); err != nil {
		return err
	}
	m.mu.Lock()
	s.greeted = true
	m.tell()
	m.mu.Unlock()
	logger := m.config.Logger
	logger.InfoContext(ctx, "node attached", logkey.Node(s.node), logkey.Session(first.GetHello().GetInstance()))
	writing, stop := context.WithCancel(ctx)
	var writer sync.WaitGroup
	writer.Go(func() { m.writeStatus(writing, s) })
	defer writer.Wait()
	defer stop()
	go m.hear(s)

	silence := time.NewTimer(m.config.Grace)
	defer silence.Stop()
	for {
		select {
		case <-s.over:
			logger.InfoContext(ctx, "session ended", logkey.Node(s.node), logkey.Err(s.reason))
			return s.reason
		case <-ctx.Done():
			return ctx.Err()
		case <-silence.C:
			if left := m.config.Grace - time.Since(time.Unix(0, s.heard.Load())); left > 0 {
				silence.Reset(left)
				continue
			}
			return status.Errorf(codes.DeadlineExceeded, "no heartbeat for %s", m.config.Grace)
		}
	}
}

// hello checks who says what and returns the node as a struct.
func (m *Manager) hello(ctx context.Context, hello *nodev1.Hello) (*kcorev1.Node, error) {
	caller, _ := identity.FromContext(ctx)
	name, _ := caller.NodeName()
	if said := hello.GetNode().GetMetadata().GetName(); said != name {
		return nil, apierrors.NewForbidden(nodes.GroupResource(), said, fmt.Errorf("user %q can only attach node %q", caller.Name, name))
	}
	data, err := proto.Marshal(hello.GetNode())
	if err != nil {
		return nil, apierrors.NewBadRequest("hello.node: " + err.Error())
	}
	node, err := m.config.Codec.DecodeProto(nodes, data)
	if err != nil {
		return nil, err
	}
	return node.(*kcorev1.Node), nil
}

// begin registers the node, takes it over in a new epoch, writes its status and lease, and lets the session count.
func (m *Manager) begin(ctx context.Context, s *attached, hello *kcorev1.Node) (*nodev1.AttachResponse, error) {
	ctx, span := telemetry.Tracer(scope).Start(ctx, "session.attach")
	defer span.End()
	// The node's own identity may not do what registering needs.
	ctx = identity.NewContext(ctx, identity.Identity{Name: identity.APIServer, Groups: []string{identity.Masters}})
	if err := m.register(ctx, s.node, hello); err != nil {
		return nil, fmt.Errorf("register node %s: %w", s.node, err)
	}
	epoch, err := m.claim(ctx, s.node)
	if err != nil {
		return nil, fmt.Errorf("attach node %s: %w", s.node, err)
	}
	s.epoch = epoch
	m.mu.Lock()
	before := m.sessions[s.node]
	if before != nil && before.epoch > epoch {
		m.mu.Unlock()
		return nil, errTakenOver
	}
	m.sessions[s.node] = s
	m.endGrace(s.node)
	m.mu.Unlock()
	if before != nil {
		before.end(errTakenOver)
	}
	fail := func(err error) (*nodev1.AttachResponse, error) {
		m.leave(s)
		return nil, fmt.Errorf("attach node %s: %w", s.node, err)
	}
	if err := m.report(ctx, s, hello.Status); err != nil {
		return fail(err)
	}
	if err := m.writeLease(ctx, s.node, time.Now()); err != nil {
		// The Lease only tells others; the session does not rest on it.
		m.config.Logger.WarnContext(ctx, "node lease not written", logkey.Node(s.node), logkey.Err(err))
	}
	e, err := m.config.Cache.Get(ctx, nodes, "", s.node, nil)
	if err != nil {
		return fail(err)
	}
	node := &corev1.Node{}
	if err := proto.Unmarshal(e.Encoded(), node); err != nil {
		return fail(err)
	}
	return nodev1.AttachResponse_builder{Attached: nodev1.Attached_builder{
		Epoch: epoch, HeartbeatIntervalSeconds: max(1, int64(m.config.HeartbeatInterval/time.Second)), Node: node,
	}.Build()}.Build(), nil
}

// leave ends a session's part in the manager. The node's grace counts from when it was last heard.
func (m *Manager) leave(s *attached) {
	s.end(io.EOF)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.sessions[s.node] != s {
		return // taken over
	}
	delete(m.sessions, s.node)
	if o := m.owners[s.node]; o.Epoch > s.epoch {
		return // taken over elsewhere
	}
	m.beginGrace(s.node, s.epoch, max(0, m.config.Grace-time.Since(time.Unix(0, s.heard.Load()))))
}

// hear receives until the stream ends.
func (m *Manager) hear(s *attached) {
	for {
		request, err := s.stream.Recv()
		if err != nil {
			if !errors.Is(err, io.EOF) {
				err = fmt.Errorf("the agent is gone: %w", err)
			} else {
				err = nil
			}
			s.end(err)
			return
		}
		s.heard.Store(time.Now().UnixNano())
		if request.HasUsage() {
			s.usage.Store(request.GetUsage())
		}
		if !request.HasStatus() {
			continue
		}
		status, err := m.statusOf(request.GetStatus())
		if err != nil {
			s.end(err)
			return
		}
		s.offer(status)
	}
}

func (m *Manager) statusOf(message *corev1.NodeStatus) (kcorev1.NodeStatus, error) {
	var out kcorev1.NodeStatus
	data, err := proto.Marshal(message)
	if err == nil {
		err = out.Unmarshal(data)
	}
	if err != nil {
		return out, apierrors.NewBadRequest("status: " + err.Error())
	}
	return out, nil
}

// writeStatus writes what the agent reports, newest first; what could not be written is tried again until something newer comes.
func (m *Manager) writeStatus(ctx context.Context, s *attached) {
	var failed *kcorev1.NodeStatus
	backoff := minBackoff
	for {
		var retry <-chan time.Time
		if failed != nil {
			retry = time.After(backoff/2 + rand.N(backoff/2))
			backoff = min(2*backoff, maxBackoff)
		}
		var next kcorev1.NodeStatus
		select {
		case <-ctx.Done():
			return
		case next = <-s.news:
			backoff = minBackoff
		case <-retry:
			next = *failed
		}
		failed = nil
		err := m.report(ctx, s, next)
		switch {
		case err == nil || ctx.Err() != nil:
		case errors.Is(err, errTakenOver) || apierrors.IsNotFound(err):
			// A Node that was deleted comes back when its agent attaches again.
			s.end(err)
			return
		default:
			m.config.Logger.WarnContext(ctx, "node status not written, trying again", logkey.Node(s.node), logkey.Err(err))
			failed = &next
		}
	}
}

// report writes a status in the session's epoch.
func (m *Manager) report(ctx context.Context, s *attached, reported kcorev1.NodeStatus) error {
	now := time.Now()
	return m.change(ctx, s.node, s.epoch, false, func(n *kcorev1.Node) { merge(&n.Status, reported, now) })
}

// Extras append to an object what only this API server knows: when it last heard of the node of a Lease.
func (m *Manager) Extras() map[*resource.Resource]func(*cache.Entry) []byte {
	return map[*resource.Resource]func(*cache.Entry) []byte{leases: m.renewTime}
}

// Field numbers of coordination.v1: Lease.spec and LeaseSpec.renewTime.
const (
	leaseSpec = 2
	renewTime = 4
)

// renewTime is a second spec with just the renewTime, which decoders merge into the first.
func (m *Manager) renewTime(e *cache.Entry) []byte {
	if e.Namespace != kcorev1.NamespaceNodeLease {
		return nil
	}
	s := m.session(e.Name)
	if s == nil {
		return nil
	}
	at := kmetav1.NewMicroTime(time.Unix(0, s.heard.Load()))
	data, err := at.Marshal()
	if err != nil {
		return nil // the stored time stands
	}
	spec := protowire.AppendBytes(protowire.AppendTag(nil, renewTime, protowire.BytesType), data)
	return protowire.AppendBytes(protowire.AppendTag(nil, leaseSpec, protowire.BytesType), spec)
}
