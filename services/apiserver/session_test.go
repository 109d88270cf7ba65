package apiserver_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	coordinationv1 "dhow.dev/gen/go/dhow/coordination/v1"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	nodev1 "dhow.dev/gen/go/dhow/node/v1"
	storev1 "dhow.dev/gen/go/dhow/store/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/identity"
	"dhow.dev/services/apiserver"
)

// shortGrace is how long nodes may be silent in tests that lose them.
const shortGrace = 300 * time.Millisecond

func lossy(c *apiserver.Config) { c.SessionGrace = shortGrace }

// agent is a node agent's end of a session.
type agent struct {
	t      testing.TB
	name   string
	conn   *grpc.ClientConn
	stream grpc.BidiStreamingClient[nodev1.AttachRequest, nodev1.AttachResponse]
	cancel context.CancelFunc
	node   *nodev1.Attached
	ended  chan error
}

func ready(status string) *corev1.NodeStatus {
	return corev1.NodeStatus_builder{Conditions: []*corev1.NodeCondition{
		corev1.NodeCondition_builder{Type: proto.String("Ready"), Status: proto.String(status), Reason: proto.String("AgentReady"), Message: proto.String("all is well")}.Build(),
	}}.Build()
}

// attach attaches a node and answers the tunnels that it is asked for with serve.
func (c *cluster) attach(server, name string, serve func(context.Context, *nodev1.OpenTunnel, grpc.BidiStreamingClient[nodev1.TunnelRequest, nodev1.TunnelResponse])) *agent {
	c.t.Helper()
	a := &agent{t: c.t, name: name, conn: c.dial(server, identity.Node(name)), ended: make(chan error, 1)}
	ctx, cancel := context.WithCancel(context.Background())
	a.cancel = cancel
	c.t.Cleanup(cancel)
	var err error
	if a.stream, err = nodev1.NewSessionsClient(a.conn).Attach(ctx); err != nil {
		c.t.Fatal(err)
	}
	node := corev1.Node_builder{
		Metadata: metav1.ObjectMeta_builder{Name: &name, Labels: map[string]string{"kubernetes.io/hostname": name}}.Build(),
		Status:   ready("True"),
	}.Build()
	a.send(nodev1.AttachRequest_builder{Hello: nodev1.Hello_builder{Node: node, Instance: "test"}.Build()}.Build())
	first, err := a.stream.Recv()
	if err != nil {
		c.t.Fatalf("attach %s: %v", name, err)
	}
	a.node = first.GetAttached()
	go func() {
		for {
			response, err := a.stream.Recv()
			if err != nil {
				a.ended <- err
				return
			}
			if open := response.GetOpenTunnel(); open != nil {
				go a.tunnel(ctx, open, serve)
			}
		}
	}()
	return a
}

func (a *agent) send(request *nodev1.AttachRequest) {
	a.t.Helper()
	if err := a.stream.Send(request); err != nil {
		a.t.Fatal(err)
	}
}

func (a *agent) tunnel(ctx context.Context, open *nodev1.OpenTunnel, serve func(context.Context, *nodev1.OpenTunnel, grpc.BidiStreamingClient[nodev1.TunnelRequest, nodev1.TunnelResponse])) {
	stream, err := nodev1.NewSessionsClient(a.conn).Tunnel(ctx)
	if err != nil {
		a.t.Error(err)
		return
	}
	if err := stream.Send(nodev1.TunnelRequest_builder{Id: open.GetId()}.Build()); err != nil {
		a.t.Error(err)
		return
	}
	serve(stream.Context(), open, stream)
	_ = stream.CloseSend()
}

// end waits for the session's end, from the server's side.
func (a *agent) end() error {
	a.t.Helper()
	select {
	case err := <-a.ended:
		return err
	case <-time.After(patience):
		a.t.Fatal("the session has not ended")
		return nil
	}
}

// waitNode waits until a node's Ready condition has a status, and returns the node.
func waitNode(t *testing.T, conn grpc.ClientConnInterface, name, want string) *corev1.Node {
	t.Helper()
	watch, err := client.For[*corev1.Node](conn).Watch(within(t), metav1.WatchRequest_builder{FieldSelector: "metadata.name=" + name}.Build())
	if err != nil {
		t.Fatal(err)
	}
	for {
		batch, err := watch.Next()
		if err != nil {
			t.Fatalf("node %s does not become Ready=%s: %v", name, want, err)
		}
		for _, change := range batch.Changes {
			if readyOf(change.Object).GetStatus() == want {
				return change.Object
			}
		}
	}
}

func readyOf(n *corev1.Node) *corev1.NodeCondition {
	for _, c := range n.GetStatus().GetConditions() {
		if c.GetType() == "Ready" {
			return c
		}
	}
	return nil
}

func TestANodeAttachesAndIsLost(t *testing.T) {
	c := newClusterWith(t, lossy)
	conn := c.admin()
	a := c.attach("apiserver", "n1", nil)
	if a.node.GetEpoch() != 1 || a.node.GetNode().GetSpec().GetPodCidr() == "" || readyOf(a.node.GetNode()).GetStatus() != "True" {
		t.Errorf("attached: %v, want epoch 1, a pod range and Ready", a.node)
	}
	lease := client.For[*coordinationv1.Lease](conn)
	if l, err := lease.Get(within(t), "kube-node-lease", "n1"); err != nil || l.GetSpec().GetHolderIdentity() != "n1" || !l.GetSpec().HasRenewTime() {
		t.Errorf("lease: %v, %v", l, err)
	}
	a.cancel()
	lost := waitNode(t, conn, "n1", "Unknown")
	if r := readyOf(lost); r.GetReason() != "NodeStatusUnknown" || r.GetMessage() != "Kubelet stopped posting node status." {
		t.Errorf("lost: %v", r)
	}
	again := c.attach("apiserver", "n1", nil)
	if again.node.GetEpoch() != 2 || again.node.GetNode().GetSpec().GetPodCidr() != a.node.GetNode().GetSpec().GetPodCidr() {
		t.Errorf("attached again: epoch %d, pod range %s, want 2 and %s", again.node.GetEpoch(), again.node.GetNode().GetSpec().GetPodCidr(), a.node.GetNode().GetSpec().GetPodCidr())
	}
	if readyOf(again.node.GetNode()).GetStatus() != "True" {
		t.Errorf("attached again: %v", readyOf(again.node.GetNode()))
	}
}

func TestHeartbeatsKeepANodeAndWriteNothing(t *testing.T) {
	const grace = 2 * time.Second
	c := newClusterWith(t, func(c *apiserver.Config) { c.SessionGrace = grace })
	conn := c.admin()
	a := c.attach("apiserver", "n1", nil)
	before := a.node.GetNode().GetMetadata().GetResourceVersion()
	nodes := client.For[*corev1.Node](conn)
	tick := time.NewTicker(grace / 20)
	defer tick.Stop()
	for range 25 { // more than the grace
		<-tick.C
		a.send(nodev1.AttachRequest_builder{Heartbeat: &nodev1.Heartbeat{}}.Build())
		a.send(nodev1.AttachRequest_builder{Status: ready("True")}.Build())
	}
	n, err := nodes.Get(within(t), "", "n1")
	if err != nil || n.GetMetadata().GetResourceVersion() != before {
		t.Errorf("after heartbeats: version %s, %v, want %s still", n.GetMetadata().GetResourceVersion(), err, before)
	}
	a.send(nodev1.AttachRequest_builder{Status: ready("False")}.Build())
	waitNode(t, conn, "n1", "False")
	// Silence on an open stream is loss as well.
	waitNode(t, conn, "n1", "Unknown")
	if code := status.Code(a.end()); code != codes.DeadlineExceeded {
		t.Errorf("the silent session ended with %v", code)
	}
}

func TestTheNewerSessionWins(t *testing.T) {
	c := newCluster(t)
	c.serve("apiserver-2", nil)
	first := c.attach("apiserver", "n1", nil)
	second := c.attach("apiserver", "n1", nil)
	if code := status.Code(first.end()); code != codes.Aborted {
		t.Errorf("the older session ended with %v, want Aborted", code)
	}
	third := c.attach("apiserver-2", "n1", nil)
	if code := status.Code(second.end()); code != codes.Aborted {
		t.Errorf("the session at the other API server ended with %v, want Aborted", code)
	}
	if third.node.GetEpoch() != 3 {
		t.Errorf("epoch %d, want 3", third.node.GetEpoch())
	}
}

func TestANodeSpeaksForItselfOnly(t *testing.T) {
	c := newCluster(t)
	for _, who := range []identity.Identity{identity.Node("n2"), {Name: "somebody"}} {
		stream, err := nodev1.NewSessionsClient(c.dial("apiserver", who)).Attach(within(t))
		if err != nil {
			t.Fatal(err)
		}
		hello := nodev1.Hello_builder{Node: corev1.Node_builder{Metadata: metav1.ObjectMeta_builder{Name: proto.String("n1")}.Build()}.Build()}.Build()
		if err := stream.Send(nodev1.AttachRequest_builder{Hello: hello}.Build()); err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); status.Code(err) != codes.PermissionDenied {
			t.Errorf("%s attaches n1: %v, want PermissionDenied", who, err)
		}
	}
}

func TestADeadServersNodesAreLost(t *testing.T) {
	c := newClusterWith(t, lossy)
	stop := c.serve("apiserver-2", lossy)
	c.attach("apiserver-2", "n1", nil)
	// Stopping takes back its record at once; a crash is the same once the lease has ended.
	stop()
	waitNode(t, c.admin(), "n1", "Unknown")
}

// TestAServerThatComesBackKeepsItsNodes: a lease that ended and was made anew within the grace loses no node.
func TestAServerThatComesBackKeepsItsNodes(t *testing.T) {
	const grace = 2 * time.Second
	brief := func(c *apiserver.Config) { c.SessionGrace, c.ServerTTL = grace, time.Second }
	c := newClusterWith(t, brief)
	c.serve("apiserver-2", brief)
	a := c.attach("apiserver", "n1", nil)
	records := func() map[string]*storev1.Entry { return c.entries("/sessions/servers/") }
	tick := time.NewTicker(grace / 20)
	defer tick.Stop()
	before := records()
	for ; len(before) != 2; before = records() {
		<-tick.C
	}
	store := storev1.NewStoreClient(c.dial("store", identity.Identity{Name: identity.APIServer}))
	for _, e := range before {
		if _, err := store.RevokeLease(within(t), storev1.RevokeLeaseRequest_builder{Lease: e.GetLease()}.Build()); err != nil {
			t.Fatal(err)
		}
	}
	for range 30 { // a grace and a half
		<-tick.C
		a.send(nodev1.AttachRequest_builder{Heartbeat: &nodev1.Heartbeat{}}.Build())
	}
	for key := range before {
		if records()[key] == nil {
			t.Errorf("%s has not come back", key)
		}
	}
	n, err := client.For[*corev1.Node](c.admin()).Get(within(t), "", "n1")
	if err != nil || readyOf(n).GetStatus() != "True" {
		t.Errorf("the node: %v, %v", readyOf(n), err)
	}
	select {
	case err := <-a.ended:
		t.Errorf("the session ended: %v", err)
	default:
	}
}

// bound makes a pod on a node.
func (c *cluster) bound(name, node string) {
	c.t.Helper()
	pod := corev1.Pod_builder{
		Metadata: metav1.ObjectMeta_builder{Name: &name, Namespace: proto.String("default")}.Build(),
		Spec: corev1.PodSpec_builder{
			NodeName:   &node,
			Containers: []*corev1.Container{corev1.Container_builder{Name: proto.String("c"), Image: proto.String("i")}.Build()},
		}.Build(),
	}.Build()
	if _, err := client.For[*corev1.Pod](c.admin()).Create(within(c.t), pod, nil); err != nil {
		c.t.Fatal(err)
	}
}

// echo serves logs of three pieces and commands that print their input; it counts on its caller to cancel what `follow` leaves open.
func echo(t *testing.T, cancelled *sync.WaitGroup) func(context.Context, *nodev1.OpenTunnel, grpc.BidiStreamingClient[nodev1.TunnelRequest, nodev1.TunnelResponse]) {
	return func(_ context.Context, open *nodev1.OpenTunnel, stream grpc.BidiStreamingClient[nodev1.TunnelRequest, nodev1.TunnelResponse]) {
		if open.HasLog() {
			if open.GetLog().GetContainer() == "none" {
				_ = stream.Send(nodev1.TunnelRequest_builder{Failure: nodev1.Failure_builder{Code: int32(codes.NotFound), Message: "no such container"}.Build()}.Build())
				return
			}
			for i := range 3 {
				_ = stream.Send(nodev1.TunnelRequest_builder{Log: corev1.PodLogResponse_builder{Data: fmt.Appendf(nil, "%s %d\n", open.GetLog().GetName(), i)}.Build()}.Build())
			}
			if open.GetLog().GetFollow() {
				// An agent learns by receiving that the tunnel is over.
				if _, err := stream.Recv(); err == nil {
					t.Error("a log has no input")
				}
				cancelled.Done()
			}
			return
		}
		for {
			input, err := stream.Recv()
			if err != nil {
				return
			}
			if input.GetExec().GetCloseStdin() {
				_ = stream.Send(nodev1.TunnelRequest_builder{Exec: corev1.PodExecResponse_builder{ExitCode: proto.Int32(7)}.Build()}.Build())
				return
			}
			_ = stream.Send(nodev1.TunnelRequest_builder{Exec: corev1.PodExecResponse_builder{Stdout: input.GetExec().GetStdin()}.Build()}.Build())
		}
	}
}

func TestLogsAndCommandsGoThroughTheSession(t *testing.T) {
	c := newCluster(t)
	c.serve("apiserver-2", nil)
	var cancelled sync.WaitGroup
	c.attach("apiserver", "n1", echo(t, &cancelled))
	c.bound("p", "n1")
	// The second server passes the call on to the first, which has the session.
	for _, server := range []string{"apiserver", "apiserver-2"} {
		t.Run(server, func(t *testing.T) {
			pods := corev1.NewPodsClient(c.dial(server, identity.Identity{Name: identity.Admin, Groups: []string{identity.Masters}}))
			stream, err := pods.Log(within(t), corev1.PodLogRequest_builder{Namespace: "default", Name: "p"}.Build())
			if err != nil {
				t.Fatal(err)
			}
			var log strings.Builder
			for {
				piece, err := stream.Recv()
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				log.Write(piece.GetData())
			}
			if want := "p 0\np 1\np 2\n"; log.String() != want {
				t.Errorf("log %q, want %q", log.String(), want)
			}

			refused, err := pods.Log(within(t), corev1.PodLogRequest_builder{Namespace: "default", Name: "p", Container: "none"}.Build())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := refused.Recv(); status.Code(err) != codes.NotFound || !strings.Contains(err.Error(), "no such container") {
				t.Errorf("the agent's failure: %v", err)
			}

			cancelled.Add(1)
			ctx, cancel := context.WithCancel(within(t))
			following, err := pods.Log(ctx, corev1.PodLogRequest_builder{Namespace: "default", Name: "p", Follow: true}.Build())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := following.Recv(); err != nil {
				t.Fatal(err)
			}
			cancel()
			cancelled.Wait() // the agent's end of the tunnel ends with the caller

			exec, err := pods.Exec(within(t))
			if err != nil {
				t.Fatal(err)
			}
			start := corev1.PodExecRequest_Start_builder{Namespace: "default", Name: "p", Command: []string{"cat"}, Stdin: true, Stdout: true}.Build()
			for _, message := range []*corev1.PodExecRequest{
				corev1.PodExecRequest_builder{Start: start}.Build(),
				corev1.PodExecRequest_builder{Stdin: []byte("hello")}.Build(),
				corev1.PodExecRequest_builder{CloseStdin: proto.Bool(true)}.Build(),
			} {
				if err := exec.Send(message); err != nil {
					t.Fatal(err)
				}
			}
			if out, err := exec.Recv(); err != nil || string(out.GetStdout()) != "hello" {
				t.Fatalf("exec: %v, %v", out, err)
			}
			if out, err := exec.Recv(); err != nil || out.GetExitCode() != 7 {
				t.Fatalf("exec: %v, %v, want exit code 7", out, err)
			}
			if _, err := exec.Recv(); !errors.Is(err, io.EOF) {
				t.Errorf("after the exit code: %v", err)
			}
		})
	}
	t.Run("no session", func(t *testing.T) {
		c.bound("q", "n9")
		stream, err := corev1.NewPodsClient(c.admin()).Log(within(t), corev1.PodLogRequest_builder{Namespace: "default", Name: "q"}.Build())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "n9 has no session") {
			t.Errorf("%v, want Unavailable", err)
		}
	})
}
