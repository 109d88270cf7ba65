package cri

import (
	"context"
	"net"
	"slices"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// runtime answers for two containers of one pod and notes whose states are asked for.
type runtime struct {
	runtimev1.UnimplementedRuntimeServiceServer
	mu     sync.Mutex
	states map[string]runtimev1.ContainerState
	asked  []string
}

var labelsOfPod = map[string]string{LabelPodUID: "u", LabelPodName: "web", LabelPodNamespace: "shop", LabelContainerName: "c"}

func (r *runtime) ListContainers(context.Context, *runtimev1.ListContainersRequest) (*runtimev1.ListContainersResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := &runtimev1.ListContainersResponse{}
	for id, state := range r.states {
		list.Containers = append(list.Containers, &runtimev1.Container{Id: id, PodSandboxId: "s", State: state, Labels: labelsOfPod})
	}
	return list, nil
}

func (r *runtime) ListPodSandbox(context.Context, *runtimev1.ListPodSandboxRequest) (*runtimev1.ListPodSandboxResponse, error) {
	return &runtimev1.ListPodSandboxResponse{Items: []*runtimev1.PodSandbox{{Id: "s", Labels: labelsOfPod, State: runtimev1.PodSandboxState_SANDBOX_READY, CreatedAt: 5}}}, nil
}

func (r *runtime) PodSandboxStatus(_ context.Context, request *runtimev1.PodSandboxStatusRequest) (*runtimev1.PodSandboxStatusResponse, error) {
	r.ask(request.GetPodSandboxId())
	return &runtimev1.PodSandboxStatusResponse{Status: &runtimev1.PodSandboxStatus{State: runtimev1.PodSandboxState_SANDBOX_READY, CreatedAt: 5, Network: &runtimev1.PodSandboxNetworkStatus{Ip: "10.0.0.1"}}}, nil
}

func (r *runtime) ContainerStatus(_ context.Context, request *runtimev1.ContainerStatusRequest) (*runtimev1.ContainerStatusResponse, error) {
	r.ask(request.GetContainerId())
	r.mu.Lock()
	defer r.mu.Unlock()
	return &runtimev1.ContainerStatusResponse{Status: &runtimev1.ContainerStatus{Labels: labelsOfPod, State: r.states[request.GetContainerId()]}}, nil
}

func (r *runtime) ask(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked = append(r.asked, id)
}

func TestListsAskOnlyForWhatHasChanged(t *testing.T) {
	r := &runtime{states: map[string]runtimev1.ContainerState{"a": runtimev1.ContainerState_CONTAINER_RUNNING, "b": runtimev1.ContainerState_CONTAINER_CREATED}}
	listener, server := bufconn.Listen(1<<16), grpc.NewServer()
	runtimev1.RegisterRuntimeServiceServer(server, r)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	conn, err := grpc.NewClient("passthrough:///runtime", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	c := NewClient(conn)
	t.Cleanup(func() { _ = c.Close() })
	list := func(what string, asked ...string) PodState {
		t.Helper()
		pods, err := c.Pods(t.Context())
		if err != nil || len(pods) != 1 || len(pods[0].Sandboxes) != 1 || !slices.Equal(pods[0].Sandboxes[0].IPs, []string{"10.0.0.1"}) {
			t.Fatalf("%s: %+v, %v", what, pods, err)
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		if slices.Sort(r.asked); !slices.Equal(r.asked, asked) {
			t.Errorf("%s: asked for %v, want %v", what, r.asked, asked)
		}
		r.asked = nil
		return pods[0]
	}
	change := func(id string, to runtimev1.ContainerState) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.states[id] = to
	}
	list("first", "a", "b", "s")
	list("again")
	change("b", runtimev1.ContainerState_CONTAINER_RUNNING)
	if p := list("one has started", "b"); p.ByID("a").State != StateRunning || p.ByID("b").State != StateRunning {
		t.Errorf("%+v", p)
	}
	change("a", runtimev1.ContainerState_CONTAINER_EXITED)
	if p := list("one has ended", "a"); p.ByID("a").State != StateExited {
		t.Errorf("%+v", p)
	}
	list("again")
	change("b", runtimev1.ContainerState_CONTAINER_UNKNOWN)
	list("the runtime has lost one", "b")
	list("it still has", "b")
}
