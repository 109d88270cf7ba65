package informer

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"

	clusterv1 "dhow.dev/gen/go/dhow/cluster/v1"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
)

// script is an API server that plays, for each watch, the next session of a script and then holds or ends the stream.
type script struct {
	clusterv1.UnimplementedObjectsServer
	mu       sync.Mutex
	sessions []session
	requests []*clusterv1.ObjectsWatchRequest
}

type session struct {
	responses []*metav1.WatchResponse
	// end ends the stream; nil holds it.
	end error
}

func (s *script) Watch(request *clusterv1.ObjectsWatchRequest, stream grpc.ServerStreamingServer[metav1.WatchResponse]) error {
	s.mu.Lock()
	s.requests = append(s.requests, request)
	var play session
	if len(s.sessions) > 0 {
		play, s.sessions = s.sessions[0], s.sessions[1:]
	}
	s.mu.Unlock()
	for _, r := range play.responses {
		if err := stream.Send(r); err != nil {
			return err
		}
	}
	if play.end != nil {
		return play.end
	}
	<-stream.Context().Done()
	return nil
}

func serve(t *testing.T, s *script) grpc.ClientConnInterface {
	t.Helper()
	listener := bufconn.Listen(1 << 16)
	server := grpc.NewServer()
	clusterv1.RegisterObjectsServer(server, s)
	go server.Serve(listener)
	t.Cleanup(server.Stop)
	conn, err := grpc.NewClient("passthrough:///script", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func pod(name, uid, node string, revision int64) *corev1.Pod {
	return corev1.Pod_builder{
		Metadata: metav1.ObjectMeta_builder{Namespace: proto.String("a"), Name: proto.String(name), Uid: proto.String(uid), ResourceVersion: proto.String(fmt.Sprint(revision))}.Build(),
		Spec:     corev1.PodSpec_builder{NodeName: proto.String(node)}.Build(),
	}.Build()
}

func change(t *testing.T, event metav1.EventType, p *corev1.Pod, revision int64) *metav1.ObjectChange {
	t.Helper()
	encoded, err := proto.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	return metav1.ObjectChange_builder{Type: event, Object: encoded, Revision: revision}.Build()
}

func response(mark metav1.WatchMark, revision int64, changes ...*metav1.ObjectChange) *metav1.WatchResponse {
	return metav1.WatchResponse_builder{Changes: changes, Mark: mark, Revision: revision}.Build()
}

const (
	added    = metav1.EventType_EVENT_TYPE_ADDED
	modified = metav1.EventType_EVENT_TYPE_MODIFIED
	deleted  = metav1.EventType_EVENT_TYPE_DELETED
	none     = metav1.WatchMark_WATCH_MARK_UNSPECIFIED
	synced   = metav1.WatchMark_WATCH_MARK_SYNCED
)

func TestResumesExpiresAndReportsWhatVanished(t *testing.T) {
	s := &script{sessions: []session{
		// A snapshot that breaks off before it is complete is begun anew.
		{responses: []*metav1.WatchResponse{response(none, 0, change(t, added, pod("p", "1", "n1", 5), 5))}, end: status.Error(codes.Unavailable, "stopping")},
		{responses: []*metav1.WatchResponse{
			response(none, 0, change(t, added, pod("p", "1", "n1", 5), 5), change(t, added, pod("q", "2", "n1", 6), 6)),
			response(synced, 10),
			response(none, 11, change(t, modified, pod("p", "1", "n2", 11), 11)),
		}, end: status.Error(codes.Unavailable, "stopping")},
		// Resumed after 11.
		{responses: []*metav1.WatchResponse{response(none, 12, change(t, deleted, pod("q", "2", "n1", 12), 12))}, end: status.Error(codes.OutOfRange, "too old")},
		// Started over: p was replaced by another p, r is new.
		{responses: []*metav1.WatchResponse{
			response(none, 0, change(t, added, pod("p", "3", "n3", 20), 20), change(t, added, pod("r", "4", "n3", 21), 21)),
			response(synced, 30),
			response(none, 31, change(t, deleted, pod("r", "4", "n3", 31), 31)),
		}},
	}}
	conn := serve(t, s)
	inf := New(conn, slog.New(slog.DiscardHandler))
	pods := Add(inf, Options[*corev1.Pod]{FieldSelector: "status.phase!=Failed", Indexes: map[string]func(*corev1.Pod) []string{
		"node": func(p *corev1.Pod) []string { return []string{p.GetSpec().GetNodeName()} },
	}})
	var seen []string
	name := func(p *corev1.Pod) string {
		if p == nil {
			return "-"
		}
		return p.GetMetadata().GetName() + p.GetMetadata().GetUid() + "@" + p.GetSpec().GetNodeName()
	}
	pods.OnChange(func(old, new *corev1.Pod) { seen = append(seen, name(old)+">"+name(new)) })
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- inf.Run(ctx) }()
	if err := inf.WaitForRevision(ctx, 31); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	want := []string{"->p1@n1", "->q2@n1", "p1@n1>p1@n2", "q2@n1>-", "p1@n2>-", "->p3@n3", "->r4@n3", "r4@n3>-"}
	if !slices.Equal(seen, want) {
		t.Errorf("changes\n %v, want\n %v", seen, want)
	}
	if got := pods.ByIndex("node", "n3"); len(got) != 1 || name(got[0]) != "p3@n3" {
		t.Errorf("index n3: %v", got)
	}
	if got := pods.ByIndex("node", "n1"); len(got) != 0 {
		t.Errorf("index n1: %v", got)
	}
	if _, ok := pods.Get("a", "p"); !ok || pods.Len() != 1 || len(pods.List()) != 1 {
		t.Errorf("store: %v", pods.List())
	}
	var after []int64
	for _, r := range s.requests {
		after = append(after, r.GetAfterRevision())
		if got := r.GetSelections()[0]; got.GetResource() != "pods" || got.GetFieldSelector() != "status.phase!=Failed" {
			t.Errorf("selection %v", got)
		}
	}
	if !slices.Equal(after, []int64{0, 0, 11, 0}) || s.requests[0].HasAfterRevision() {
		t.Errorf("resumed after %v", after)
	}
}

func TestRunEndsWhenRefused(t *testing.T) {
	s := &script{sessions: []session{{end: status.Error(codes.PermissionDenied, "no")}}}
	inf := New(serve(t, s), slog.New(slog.DiscardHandler))
	Add(inf, Options[*corev1.Pod]{})
	if err := inf.Run(t.Context()); err == nil {
		t.Error("no error")
	}
}

// What handlers read must not make what is kept larger: they read every object that changes, and keep none.
func TestWhatIsKeptIsNotWhatHandlersRead(t *testing.T) {
	s := &script{sessions: []session{{responses: []*metav1.WatchResponse{
		response(none, 0, change(t, added, pod("p", "1", "n1", 5), 5)),
		response(synced, 10),
		response(none, 11, change(t, modified, pod("p", "1", "n2", 11), 11)),
	}}}}
	inf := New(serve(t, s), slog.New(slog.DiscardHandler))
	pods := Add(inf, Options[*corev1.Pod]{Indexes: map[string]func(*corev1.Pod) []string{
		"node": func(p *corev1.Pod) []string { return []string{p.GetSpec().GetNodeName()} },
	}})
	var kept, read []*corev1.Pod
	pods.OnChange(func(_, new *corev1.Pod) {
		p, ok := pods.Get("a", "p")
		if !ok || !proto.Equal(p, new) {
			t.Errorf("kept %v, want %v", p, new)
		}
		kept, read = append(kept, p), append(read, new)
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- inf.Run(ctx) }()
	if err := inf.WaitForRevision(ctx, 11); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if len(kept) != 2 || kept[0] == read[0] || kept[1] == read[1] {
		t.Errorf("kept %p, read %p", kept, read)
	}
}
