//go:build e2e

package nodeagent_test

import (
	"context"
	"errors"
	"io"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	nodev1 "dhow.dev/gen/go/dhow/node/v1"
)

const shell = `
metadata: {name: shell}
spec:
  terminationGracePeriodSeconds: 0
  serviceAccountName: robot
  volumes: [{name: token, projected: {sources: [{serviceAccountToken: {path: token, audience: vault, expirationSeconds: 7200}}]}}]
  containers:
  - {name: tty, image: "dhow.test/busybox:1", command: [sh], stdin: true, tty: true}
  - name: web
    image: dhow.test/busybox:1
    command: [sh, -c, "mkdir /www; echo served > /www/index.html; (while true; do :; done) & exec httpd -f -p 8080 -h /www"]
    volumeMounts: [{name: token, mountPath: /token}]
    resources: {requests: {cpu: 10m, memory: 16Mi}, limits: {cpu: 50m, memory: 32Mi}}
`

// talk opens a tunnel, sends, and reads until enough has been heard or the tunnel ends.
func (c *cluster) talk(request *nodev1.OpenTunnel, send []*nodev1.TunnelResponse, enough func(heard string) bool) (heard string, err error) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	err = c.api.Open(ctx, "n1", request, func(s nodev1.Sessions_TunnelServer) error {
		for _, r := range send {
			if err := s.Send(r); err != nil {
				return err
			}
		}
		for !enough(heard) {
			m, err := s.Recv()
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
			if f := m.GetFailure(); f != nil {
				return errors.New(f.GetMessage())
			}
			heard += string(m.GetExec().GetStdout()) + string(m.GetExec().GetStderr()) + string(m.GetPortForward().GetData())
		}
		return nil
	})
	return heard, err
}

func never(string) bool { return false }

func stdin(text string) *nodev1.TunnelResponse {
	return nodev1.TunnelResponse_builder{Exec: corev1.PodExecRequest_builder{Stdin: []byte(text)}.Build()}.Build()
}

func resize(width, height uint32) *nodev1.TunnelResponse {
	size := corev1.PodExecRequest_Resize_builder{Width: width, Height: height}.Build()
	return nodev1.TunnelResponse_builder{Exec: corev1.PodExecRequest_builder{Resize: size}.Build()}.Build()
}

// TestStreamsOnTheRealRuntime reaches into a running pod in all the ways there are.
func TestStreamsOnTheRealRuntime(t *testing.T) {
	c := newCluster(t)
	c.api.ShortTokens(15 * time.Second)
	stop := c.start()
	defer func() { stop(syscall.SIGTERM) }()
	c.awaitNode()
	c.run(shell)
	c.await("shell is ready", func() bool { return ready(c.pod("shell")) })

	t.Run("attach with a terminal that changes its size", func(t *testing.T) {
		start := corev1.PodAttachRequest_Start_builder{Namespace: "default", Name: "shell", Container: "tty", Stdin: true, Stdout: true, Tty: true}.Build()
		// The shell asks for its size until it is the one that was sent.
		ask := "until stty size 2>/dev/null | grep -q '43 132'; do usleep 10000; done; echo si''ze $(stty size)\n"
		heard, err := c.talk(nodev1.OpenTunnel_builder{Attach: start}.Build(), []*nodev1.TunnelResponse{resize(132, 43), stdin(ask)},
			func(heard string) bool { return strings.Contains(heard, "size 43 132") })
		if err != nil || !strings.Contains(heard, "size 43 132") {
			t.Errorf("%q %v", heard, err)
		}
	})
	t.Run("exec with a terminal", func(t *testing.T) {
		start := corev1.PodExecRequest_Start_builder{Namespace: "default", Name: "shell", Container: "web", Stdin: true, Stdout: true, Tty: true,
			Command: []string{"sh", "-c", "until stty size 2>/dev/null | grep -q '12 34'; do usleep 10000; done; echo done"}}.Build()
		heard, err := c.talk(nodev1.OpenTunnel_builder{Exec: start}.Build(), []*nodev1.TunnelResponse{resize(34, 12)}, never)
		if err != nil || heard != "done\r\n" {
			t.Errorf("%q %v", heard, err)
		}
	})
	t.Run("attach to a container without a terminal", func(t *testing.T) {
		start := corev1.PodAttachRequest_Start_builder{Namespace: "default", Name: "shell", Container: "web", Stdout: true, Tty: true}.Build()
		if _, err := c.talk(nodev1.OpenTunnel_builder{Attach: start}.Build(), nil, never); err == nil || !strings.Contains(err.Error(), "has no terminal") {
			t.Errorf("%v", err)
		}
	})
	t.Run("ports", func(t *testing.T) {
		for _, byAddress := range []bool{false, true} {
			get := nodev1.TunnelResponse_builder{PortForward: corev1.PodPortForwardRequest_builder{Data: []byte("GET /index.html HTTP/1.0\r\n\r\n")}.Build()}.Build()
			start := corev1.PodPortForwardRequest_Start_builder{Namespace: "default", Name: "shell", Port: 8080, ByAddress: byAddress}.Build()
			heard, err := c.talk(nodev1.OpenTunnel_builder{PortForward: start}.Build(), []*nodev1.TunnelResponse{get}, never)
			if err != nil || !strings.HasSuffix(heard, "served\n") {
				t.Errorf("by address %t: %q %v", byAddress, heard, err)
			}
			start.SetPort(81)
			if _, err := c.talk(nodev1.OpenTunnel_builder{PortForward: start}.Build(), nil, never); err == nil || !strings.Contains(err.Error(), "refused") {
				t.Errorf("by address %t: %v", byAddress, err)
			}
		}
	})
	t.Run("the token of the service account", func(t *testing.T) {
		exec := corev1.PodExecRequest_Start_builder{Namespace: "default", Name: "shell", Container: "web", Stdout: true, Command: []string{"cat", "/token/token"}}.Build()
		heard, err := c.talk(nodev1.OpenTunnel_builder{Exec: exec}.Build(), nil, never)
		if err != nil || !strings.HasSuffix(heard, "default/robot for [vault] bound to Pod shell uid-of-shell") {
			t.Errorf("%q %v", heard, err)
		}
	})
	t.Run("a token is replaced before it ends", func(t *testing.T) {
		command := []string{"sh", "-c", `before=$(cat /token/token); while test "$(cat /token/token)" = "$before"; do usleep 50000; done; cat /token/token`}
		exec := corev1.PodExecRequest_Start_builder{Namespace: "default", Name: "shell", Container: "web", Stdout: true, Command: command}.Build()
		heard, err := c.talk(nodev1.OpenTunnel_builder{Exec: exec}.Build(), nil, never)
		if err != nil || !strings.HasSuffix(heard, "default/robot for [vault] bound to Pod shell uid-of-shell") {
			t.Errorf("%q %v", heard, err)
		}
	})
	t.Run("an ephemeral container sees the processes of its target", func(t *testing.T) {
		p := proto.CloneOf(c.pod("shell"))
		p.GetSpec().SetEphemeralContainers([]*corev1.EphemeralContainer{corev1.EphemeralContainer_builder{
			TargetContainerName: proto.String("web"),
			EphemeralContainerCommon: corev1.EphemeralContainerCommon_builder{Name: proto.String("debugger"), Image: proto.String(busybox),
				Command: []string{"sh", "-c", "ps; sleep 1000000"}}.Build(),
		}.Build()})
		c.api.Put(p)
		c.await("the debugger runs", func() bool {
			s := c.pod("shell").GetStatus().GetEphemeralContainerStatuses()
			return len(s) == 1 && s[0].GetState().HasRunning()
		})
		var log string
		for !strings.Contains(log, "httpd -f -p 8080") { // ps may not have written yet; following ends with the first piece that has it
			heard, err := c.talk(nodev1.OpenTunnel_builder{Log: corev1.PodLogRequest_builder{Namespace: "default", Name: "shell", Container: "debugger", Follow: true}.Build()}.Build(), nil,
				func(string) bool { return true })
			if err != nil {
				t.Fatal(heard, err)
			}
			log = c.log(corev1.PodLogRequest_builder{Namespace: "default", Name: "shell", Container: "debugger"}.Build())
		}
		if !ready(c.pod("shell")) {
			t.Error("the pod is not ready any more")
		}
	})
	t.Run("other resources for a running container", func(t *testing.T) {
		before := c.pod("shell")
		p := proto.CloneOf(before)
		limit := "200m"
		p.GetSpec().GetContainers()[1].GetResources().GetLimits()["cpu"] = metav1.Quantity_builder{String: &limit}.Build()
		c.api.Put(p)
		c.await("the status tells the new limit", func() bool {
			s := c.pod("shell").GetStatus().GetContainerStatuses()[1]
			return s.GetResources().GetLimits()["cpu"].GetString() == limit
		})
		if a, b := before.GetStatus().GetContainerStatuses()[1], c.pod("shell").GetStatus().GetContainerStatuses()[1]; a.GetContainerId() != b.GetContainerId() {
			t.Errorf("before %v, after %v", a, b)
		}
		exec := corev1.PodExecRequest_Start_builder{Namespace: "default", Name: "shell", Container: "web", Stdout: true,
			Command: []string{"sh", "-c", "cat /sys/fs/cgroup/cpu.max /sys/fs/cgroup/cpu/cpu.cfs_quota_us 2>/dev/null"}}.Build()
		if heard, err := c.talk(nodev1.OpenTunnel_builder{Exec: exec}.Build(), nil, never); err != nil || !strings.HasPrefix(heard, "20000") {
			t.Errorf("%q %v", heard, err)
		}
	})
	t.Run("usage", func(t *testing.T) {
		c.await("the busy container is seen", func() bool {
			for _, p := range c.api.Used("n1").GetPods() {
				for _, one := range p.GetContainers() {
					if p.GetName() == "shell" && one.GetName() == "web" && one.GetUsage().GetCpuNanocores() > 1_000_000 && one.GetUsage().GetMemoryBytes() > 0 {
						return c.api.Used("n1").GetNode().GetCpuNanocores() > 0 && c.api.Used("n1").GetNode().GetMemoryBytes() > 0
					}
				}
			}
			return false
		})
	})
	c.api.DeletePod("default", "shell", 0)
	c.await("the pod is gone", func() bool { return c.pod("shell") == nil })
}
