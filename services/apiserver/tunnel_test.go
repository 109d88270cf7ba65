package apiserver_test

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	metricsv1 "dhow.dev/gen/go/dhow/metrics/v1beta1"
	nodev1 "dhow.dev/gen/go/dhow/node/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/identity"
)

// answering answers each piece of input with itself, in capitals, until that ends. Port 81 refuses.
func answering(_ context.Context, open *nodev1.OpenTunnel, stream grpc.BidiStreamingClient[nodev1.TunnelRequest, nodev1.TunnelResponse]) {
	send := func(text string) {
		m := &nodev1.TunnelRequest{}
		if open.HasAttach() {
			m.SetExec(corev1.PodExecResponse_builder{Stdout: []byte(strings.ToUpper(text))}.Build())
		} else {
			m.SetPortForward(corev1.PodPortForwardResponse_builder{Data: []byte(strings.ToUpper(text))}.Build())
		}
		_ = stream.Send(m)
	}
	if open.GetPortForward().GetPort() == 81 {
		_ = stream.Send(nodev1.TunnelRequest_builder{Failure: nodev1.Failure_builder{Code: int32(codes.Unavailable), Message: "connection refused"}.Build()}.Build())
		return
	}
	if open.HasPortForward() {
		send("") // connected
	}
	for {
		input, err := stream.Recv()
		if err != nil || input.GetExec().GetCloseStdin() || input.GetPortForward().GetClose() {
			return
		}
		send(string(input.GetExec().GetStdin()) + string(input.GetPortForward().GetData()))
	}
}

func TestAttachAndPortsGoThroughTheSession(t *testing.T) {
	c := newCluster(t)
	c.serve("apiserver-2", nil)
	c.attach("apiserver", "n1", answering)
	c.bound("p", "n1")
	for _, server := range []string{"apiserver", "apiserver-2"} {
		pods := corev1.NewPodsClient(c.dial(server, identity.Identity{Name: identity.Admin, Groups: []string{identity.Masters}}))
		t.Run(server+" attach", func(t *testing.T) {
			stream, err := pods.Attach(within(t))
			if err != nil {
				t.Fatal(err)
			}
			start := corev1.PodAttachRequest_Start_builder{Namespace: "default", Name: "p", Stdin: true, Stdout: true}.Build()
			if err := errors.Join(stream.Send(corev1.PodAttachRequest_builder{Start: start}.Build()), stream.Send(corev1.PodAttachRequest_builder{Stdin: []byte("hello")}.Build())); err != nil {
				t.Fatal(err)
			}
			if out, err := stream.Recv(); err != nil || string(out.GetStdout()) != "HELLO" {
				t.Fatalf("%v %v", out, err)
			}
			if err := stream.Send(corev1.PodAttachRequest_builder{CloseStdin: proto.Bool(true)}.Build()); err != nil {
				t.Fatal(err)
			}
			if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
				t.Errorf("%v", err)
			}
		})
		t.Run(server+" ports", func(t *testing.T) {
			connect := func(port int32) grpc.BidiStreamingClient[corev1.PodPortForwardRequest, corev1.PodPortForwardResponse] {
				stream, err := pods.PortForward(within(t))
				if err != nil {
					t.Fatal(err)
				}
				start := corev1.PodPortForwardRequest_Start_builder{Namespace: "default", Name: "p", Port: port}.Build()
				if err := stream.Send(corev1.PodPortForwardRequest_builder{Start: start}.Build()); err != nil {
					t.Fatal(err)
				}
				return stream
			}
			stream := connect(80)
			if first, err := stream.Recv(); err != nil || len(first.GetData()) != 0 {
				t.Fatalf("%v %v", first, err)
			}
			text := strings.Repeat("a lot of text ", 10000)
			go func() {
				_ = stream.Send(corev1.PodPortForwardRequest_builder{Data: []byte(text)}.Build())
				_ = stream.Send(corev1.PodPortForwardRequest_builder{Close: proto.Bool(true)}.Build())
			}()
			var heard strings.Builder
			for {
				piece, err := stream.Recv()
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				heard.Write(piece.GetData())
			}
			if heard.String() != strings.ToUpper(text) {
				t.Errorf("%d bytes of %d came back", heard.Len(), len(text))
			}
			if _, err := connect(81).Recv(); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "connection refused") {
				t.Errorf("%v", err)
			}
			if _, err := connect(0).Recv(); status.Code(err) != codes.InvalidArgument {
				t.Errorf("%v", err)
			}
		})
	}
}

// TestACallWaitsForTheSessionOfAReadyNode is what a user sees who asks for logs right after the control plane was started again.
func TestACallWaitsForTheSessionOfAReadyNode(t *testing.T) {
	c := newCluster(t)
	a := c.attach("apiserver", "n1", answering)
	c.bound("p", "n1")
	a.cancel()
	if err := a.end(); err == nil {
		t.Fatal("the session goes on")
	}
	stream, err := corev1.NewPodsClient(c.admin()).PortForward(within(t))
	if err != nil {
		t.Fatal(err)
	}
	start := corev1.PodPortForwardRequest_Start_builder{Namespace: "default", Name: "p", Port: 80}.Build()
	if err := stream.Send(corev1.PodPortForwardRequest_builder{Start: start}.Build()); err != nil {
		t.Fatal(err)
	}
	c.attach("apiserver", "n1", answering)
	if _, err := stream.Recv(); err != nil {
		t.Error(err)
	}
}

func TestUsageOfAllNodes(t *testing.T) {
	c := newCluster(t)
	c.serve("apiserver-2", nil)
	usage := func(name string, cpu uint64) *nodev1.AttachRequest {
		pod := nodev1.PodUsage_builder{Namespace: "default", Name: name, Containers: []*nodev1.PodUsage_Container{
			nodev1.PodUsage_Container_builder{Name: "c", Usage: nodev1.Usage_builder{CpuNanocores: cpu, MemoryBytes: 1 << 20}.Build()}.Build(),
		}}.Build()
		return nodev1.AttachRequest_builder{Usage: nodev1.NodeUsage_builder{
			Node: nodev1.Usage_builder{CpuNanocores: cpu, MemoryBytes: 1 << 30}.Build(), Pods: []*nodev1.PodUsage{pod},
			Timestamp: metav1.Time_builder{Seconds: proto.Int64(1)}.Build(), WindowMilliseconds: 15000,
		}.Build()}.Build()
	}
	// Each node tells the API server that has its session.
	c.attach("apiserver", "n1", answering).send(usage("p", 5))
	c.attach("apiserver-2", "n2", answering).send(usage("q", 7))
	peer := identity.Identity{Name: identity.APIServer}
	for server, node := range map[string]string{"apiserver": "n1", "apiserver-2": "n2"} {
		sessions := nodev1.NewSessionsClient(c.dial(server, peer))
		for {
			answer, err := sessions.Usage(within(t), &nodev1.UsageRequest{})
			if err != nil {
				t.Fatal(err)
			}
			if len(answer.GetNodes()) == 1 && answer.GetNodes()[0].GetName() == node {
				break // what was sent has arrived
			}
		}
	}
	// Clients learn it from either.
	for _, server := range []string{"apiserver", "apiserver-2"} {
		admin := c.dial(server, identity.Identity{Name: identity.Admin, Groups: []string{identity.Masters}})
		for _, node := range []string{"n1", "n2"} {
			if _, err := client.For[*metricsv1.NodeMetrics](admin).Get(within(t), "", node); err != nil {
				t.Errorf("metrics of %s by %s: %v", node, server, err)
			}
		}
	}
	if _, err := nodev1.NewSessionsClient(c.dial("apiserver", identity.Node("n1"))).Usage(within(t), &nodev1.UsageRequest{}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a node learns what others use: %v", err)
	}
	if _, err := client.For[*corev1.Node](c.admin()).Get(within(t), "", "n2"); err != nil {
		t.Error(err)
	}
}
