//go:build e2e

package schema

import (
	"context"
	"net"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/pki"
	"dhow.dev/pkg/transport"
)

// TestPythonClient runs the example client, generated from proto/ by another implementation of protobuf and gRPC, against a server that keeps
// pods in memory: it must pass there, and notice each thing that such a server can get wrong.
func TestPythonClient(t *testing.T) {
	for _, tc := range []struct {
		name   string
		server *podServer
		fails  string
	}{
		{name: "correct", server: &podServer{}},
		{name: "zero lost", server: &podServer{loseZero: true}, fails: "FAILED create: the zero grace period was lost"},
		{name: "create not stored", server: &podServer{forget: true}, fails: "FAILED list: "},
		{name: "no deletion event", server: &podServer{muteDelete: true}, fails: "FAILED watch: the stream ended early"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			address := tc.server.start(t, dir, "apiserver.dhow")
			output, err := runPython(t, dir, address)
			if tc.fails == "" && (err != nil || !strings.Contains(output, "done: ")) {
				t.Fatalf("%v\n%s", err, output)
			}
			if tc.fails != "" && (err == nil || !strings.Contains(output, tc.fails)) {
				t.Fatalf("want failure %q, got %v\n%s", tc.fails, err, output)
			}
		})
	}
	t.Run("server of another name", func(t *testing.T) {
		dir := t.TempDir()
		address := (&podServer{}).start(t, dir, "someone.else")
		if output, err := runPython(t, dir, address); err == nil || !strings.Contains(output, "FAILED UNAVAILABLE") {
			t.Fatalf("the client trusts a server of another name: %v\n%s", err, output)
		}
	})
}

func runPython(t *testing.T, dir, address string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	script, err := filepath.Abs("../../../../examples/clients/python/run.sh")
	if err != nil {
		t.Fatal(err)
	}
	file := func(name string) string { return filepath.Join(dir, name) }
	cmd := exec.CommandContext(ctx, script, "--address", address, "--ca", file("ca.crt"), "--cert", file("client.crt"), "--key", file("client.key"))
	output, err := cmd.CombinedOutput()
	return string(output), err
}

// podServer is the least that the client needs, with faults to choose from.
type podServer struct {
	corev1.UnimplementedPodsServer

	loseZero, forget, muteDelete bool

	mu       sync.Mutex
	pods     map[string]*corev1.Pod
	revision int64
	watchers []chan *corev1.PodWatchResponse
}

// start serves with the transport and certificates of the real services on a free port, and writes the files that the client needs to dir.
func (s *podServer) start(t *testing.T, dir, name string) string {
	t.Helper()
	s.pods, s.revision = map[string]*corev1.Pod{}, 41*1024
	authority, err := pki.LoadOrCreate(dir)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := authority.Ensure(pki.FilesIn(dir, "server"), pki.Request{
		Identity: identity.Identity{Name: "system:dhow:apiserver"}, DNSNames: []string{name}, Server: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	admin := pki.Request{Identity: identity.Identity{Name: identity.Admin, Groups: []string{"system:masters"}}, Client: true}
	if _, err := authority.Ensure(pki.FilesIn(dir, "client"), admin); err != nil {
		t.Fatal(err)
	}
	server := transport.NewServer(transport.ServerConfig{Credentials: transport.TLSServer(pair)})
	corev1.RegisterPodsServer(server, s)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go server.Serve(listener)
	t.Cleanup(server.Stop)
	return listener.Addr().String()
}

func (s *podServer) List(_ *metav1.ListRequest, stream grpc.ServerStreamingServer[corev1.PodList]) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	version := strconv.FormatInt(s.revision|1023, 10)
	// Two pieces, as a long list has.
	if err := stream.Send(corev1.PodList_builder{Metadata: metav1.ListMeta_builder{ResourceVersion: &version}.Build()}.Build()); err != nil {
		return err
	}
	list := corev1.PodList_builder{Metadata: metav1.ListMeta_builder{ResourceVersion: &version}.Build()}.Build()
	for _, pod := range s.pods {
		list.SetItems(append(list.GetItems(), pod))
	}
	return stream.Send(list)
}

func (s *podServer) Watch(_ *metav1.WatchRequest, stream grpc.ServerStreamingServer[corev1.PodWatchResponse]) error {
	s.mu.Lock()
	changes := make(chan *corev1.PodWatchResponse, 16)
	s.watchers = append(s.watchers, changes)
	synced := corev1.PodWatchResponse_builder{Revision: s.revision | 1023, Mark: metav1.WatchMark_WATCH_MARK_SYNCED}.Build()
	s.mu.Unlock()
	if err := stream.Send(synced); err != nil {
		return err
	}
	for {
		select {
		case <-stream.Context().Done():
			return nil
		case response, ok := <-changes:
			if !ok {
				return nil
			}
			if err := stream.Send(response); err != nil {
				return err
			}
		}
	}
}

func (s *podServer) Create(_ context.Context, request *corev1.PodWriteRequest) (*corev1.Pod, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	pod := proto.CloneOf(request.GetObject())
	name := pod.GetMetadata().GetName()
	if s.pods[name] != nil {
		return nil, status.Errorf(codes.AlreadyExists, "pods %q already exists", name)
	}
	pod.GetMetadata().SetUid("uid-of-" + name)
	if s.loseZero {
		pod.GetSpec().ClearTerminationGracePeriodSeconds()
	}
	s.commit(metav1.EventType_EVENT_TYPE_ADDED, pod)
	if !s.forget {
		s.pods[name] = pod
	}
	return pod, nil
}

func (s *podServer) Delete(_ context.Context, request *metav1.DeleteRequest) (*corev1.Pod, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	pod := proto.CloneOf(s.pods[request.GetName()])
	if pod == nil {
		return nil, status.Errorf(codes.NotFound, "pods %q not found", request.GetName())
	}
	delete(s.pods, request.GetName())
	if s.muteDelete {
		for _, w := range s.watchers {
			close(w)
		}
		return pod, nil
	}
	s.commit(metav1.EventType_EVENT_TYPE_DELETED, pod)
	return pod, nil
}

// commit gives the pod the next revision and tells the watchers.
func (s *podServer) commit(event metav1.EventType, pod *corev1.Pod) {
	s.revision += 1024
	pod.GetMetadata().SetResourceVersion(strconv.FormatInt(s.revision, 10))
	change := corev1.PodWatchResponse_Change_builder{Type: event, Object: proto.CloneOf(pod), Revision: s.revision}.Build()
	for _, w := range s.watchers {
		w <- corev1.PodWatchResponse_builder{Changes: []*corev1.PodWatchResponse_Change{change}, Revision: s.revision | 1023}.Build()
	}
}
