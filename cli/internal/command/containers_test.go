package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
)

// podsOfWeb makes the deployment web and two of its pods; only the second one is ready.
func (c *cluster) podsOfWeb() {
	c.t.Helper()
	c.applied(deployment)
	for _, name := range []string{"web-a", "web-b"} {
		c.applied("apiVersion: v1\nkind: Pod\nmetadata:\n  name: " + name + "\n  labels: {app: web}\nspec:\n  nodeName: n1\n  initContainers:\n  - {name: setup, image: a}\n  containers:\n  - {name: web, image: a}\n  - {name: side, image: a}\n")
	}
	c.podStatus("web-b", `{"phase":"Running","conditions":[{"type":"Ready","status":"True"}]}`)
}

func TestLogs(t *testing.T) {
	c := newCluster(t)
	asked := make(chan *corev1.PodLogRequest, 100)
	c.withContainers(&fakeContainers{log: func(q *corev1.PodLogRequest, s grpc.ServerStreamingServer[corev1.PodLogResponse]) error {
		asked <- q
		for _, piece := range []string{"one\ntw", "o\n"} {
			if err := s.Send(corev1.PodLogResponse_builder{Data: []byte(piece)}.Build()); err != nil {
				return err
			}
		}
		if q.GetFollow() {
			<-s.Context().Done()
		}
		return nil
	}})
	c.podsOfWeb()
	for command, want := range map[string]*corev1.PodLogRequest{
		"logs web-a":                  corev1.PodLogRequest_builder{Name: "web-a", Container: "web"}.Build(),
		"logs pod/web-a side":         corev1.PodLogRequest_builder{Name: "web-a", Container: "side"}.Build(),
		"logs web-a -c setup":         corev1.PodLogRequest_builder{Name: "web-a", Container: "setup"}.Build(),
		"logs deploy/web -p --tail=5": corev1.PodLogRequest_builder{Name: "web-b", Container: "web", Previous: true, TailLines: proto.Int64(5)}.Build(),
		"logs web-a --since=90s":      corev1.PodLogRequest_builder{Name: "web-a", Container: "web", SinceSeconds: proto.Int64(90)}.Build(),
		"logs web-a --timestamps":     corev1.PodLogRequest_builder{Name: "web-a", Container: "web", Timestamps: true}.Build(),
		"logs web-a --limit-bytes=3":  corev1.PodLogRequest_builder{Name: "web-a", Container: "web", LimitBytes: proto.Int64(3)}.Build(),
	} {
		want.SetNamespace("default")
		equal(t, c.ok(strings.Fields(command)...), "one\ntwo\n")
		if got := <-asked; !proto.Equal(got, want) {
			t.Errorf("dhow %s asked for %v, not %v", command, got, want)
		}
	}
	if r := c.dhow("logs", "deploy/web"); r.err != "Found 2 pods, using pod/web-b\nDefaulted container \"web\" out of: web, side, setup (init)\n" {
		t.Errorf("%+v", r)
	}
	r := c.start(nil, "logs", "-f", "web-a", "-c", "web")
	r.out.await(t, "two\n")
	r.cancel()
	if got := r.end(); got.code != exitInterrupted || got.err != "" {
		t.Errorf("%+v", got)
	}
	c.fails([]string{"logs"}, "name one pod, or what has pods: dhow logs POD")
	c.fails([]string{"logs", "nosuch"}, `Error from server (NotFound): pods "nosuch" not found`)
	c.fails([]string{"logs", "pot/web"}, `the server doesn't have a resource type "pot"`)
	c.fails([]string{"logs", "cm/settings"}, "configmap/settings: cannot tell its pods: name a pod, deployment, statefulset, daemonset or replicaset")
	c.fails([]string{"logs", "web-a", "-c", "nosuch"}, "error: container nosuch is not valid for pod web-a: use one of web, side, setup")
	c.fails([]string{"logs", "web-a", "web", "-c", "web"}, `the container is given twice: as "web" and with -c`)
	c.fails([]string{"logs", "web-a", "--tail=-2"}, "--tail=-2: give a number of lines, or -1 for all")
	c.fails([]string{"logs", "web-a", "--since=-1s"}, "--since=-1s: give a duration above 0")
	c.fails([]string{"logs", "web-a", "--since=1"}, `invalid argument "1" for "--since"`)
	c.applied(strings.NewReplacer("name: web", "name: empty", "app: web", "app: empty").Replace(deployment))
	c.fails([]string{"logs", "deploy/empty"}, "error: deployment.apps/empty has no pods")
}

// TestLogsThroughTheAPIServer asks a real API server for the log of a pod that no node has taken.
func TestLogsThroughTheAPIServer(t *testing.T) {
	c := newCluster(t)
	c.twoPods()
	c.fails([]string{"logs", "web-0"}, "Error from server (BadRequest): pod web-0 does not have a host assigned")
	c.fails([]string{"exec", "web-0", "--", "true"}, "Error from server (BadRequest): pod web-0 does not have a host assigned")
}

// echo answers an exec: it writes the command to standard error and standard input to standard output, and ends with the code in the command's last word.
func echo(s grpc.BidiStreamingServer[corev1.PodExecRequest, corev1.PodExecResponse]) error {
	first, err := s.Recv()
	if err != nil {
		return err
	}
	start := first.GetStart()
	said := fmt.Sprintf("%s/%s %v stdin=%t tty=%t stderr=%t\n", start.GetName(), start.GetContainer(), start.GetCommand(), start.GetStdin(), start.GetTty(), start.GetStderr())
	if err := s.Send(corev1.PodExecResponse_builder{Stderr: []byte(said)}.Build()); err != nil {
		return err
	}
	for start.GetStdin() {
		request, err := s.Recv()
		if err != nil {
			return err
		}
		if request.GetCloseStdin() {
			break
		}
		if err := s.Send(corev1.PodExecResponse_builder{Stdout: request.GetStdin()}.Build()); err != nil {
			return err
		}
	}
	var code int32
	if command := start.GetCommand(); command[0] == "exit" {
		fmt.Sscan(command[1], &code)
	} else if command[0] == "vanish" {
		return nil
	}
	return s.Send(corev1.PodExecResponse_builder{ExitCode: proto.Int32(code)}.Build())
}

func TestExec(t *testing.T) {
	c := newCluster(t)
	c.withContainers(&fakeContainers{exec: echo})
	c.podsOfWeb()
	r := c.dhow("exec", "web-a", "-c", "side", "--", "ls", "-l", "/")
	if r.code != 0 || r.out != "" || r.err != "web-a/side [ls -l /] stdin=false tty=false stderr=true\n" {
		t.Errorf("%+v", r)
	}
	r = c.start(strings.NewReader(strings.Repeat("to and fro ", 10_000)), "exec", "-i", "deploy/web", "--", "cat").end()
	if r.code != 0 || r.out != strings.Repeat("to and fro ", 10_000) || !strings.Contains(r.err, "web-b/web [cat] stdin=true") {
		t.Errorf("exit code %d, %d bytes, %s", r.code, len(r.out), r.err)
	}
	for _, code := range []int{1, 42, 137} {
		r = c.dhow("exec", "web-a", "--", "exit", fmt.Sprint(code))
		if r.code != code || !strings.HasSuffix(r.err, fmt.Sprintf("\ncommand terminated with exit code %d\n", code)) {
			t.Errorf("%+v", r)
		}
	}
	// There is no terminal here.
	r = c.dhow("exec", "-it", "web-a", "--", "sh")
	if r.code != 0 || !strings.Contains(r.err, "Unable to use a TTY - input is not a terminal") || !strings.Contains(r.err, "tty=false stderr=true") {
		t.Errorf("%+v", r)
	}
	c.fails([]string{"exec", "web-a", "--", "vanish"}, "error: the command's exit code is not known: its stream ended early")
	c.fails([]string{"exec", "web-a"}, "you must specify one pod and, behind --, at least one command: dhow exec POD -- COMMAND")
	c.fails([]string{"exec", "web-a", "ls"}, "behind --")
	c.fails([]string{"exec", "--", "ls"}, "behind --")
	c.fails([]string{"exec", "nosuch", "--", "ls"}, `Error from server (NotFound): pods "nosuch" not found`)
	c.fails([]string{"exec", "web-a", "-c", "nosuch", "--", "ls"}, "container nosuch is not valid for pod web-a")
}

// TestExecIsInterrupted ends a command whose input and output stay open.
func TestExecIsInterrupted(t *testing.T) {
	c := newCluster(t)
	ended := make(chan error, 1)
	c.withContainers(&fakeContainers{exec: func(s grpc.BidiStreamingServer[corev1.PodExecRequest, corev1.PodExecResponse]) error {
		if err := s.Send(corev1.PodExecResponse_builder{Stdout: []byte("begun\n")}.Build()); err != nil {
			return err
		}
		<-s.Context().Done()
		ended <- s.Context().Err()
		return s.Context().Err()
	}})
	c.podsOfWeb()
	in, typed := io.Pipe()
	defer typed.Close()
	r := c.start(in, "exec", "-i", "web-a", "--", "sleep")
	r.out.await(t, "begun\n")
	r.cancel()
	if got := r.end(); got.code != exitInterrupted {
		t.Errorf("%+v", got)
	}
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the container's side ended with %v", err)
	}
}

func TestWait(t *testing.T) {
	c := newCluster(t)
	c.twoPods()
	r := c.start(nil, "wait", "--for=condition=Ready", "pod/web-0", "pod/db-0", "--timeout=50s")
	phase := c.start(nil, "wait", "--for=jsonpath={.status.phase}=Running", "pods", "--all", "--timeout=50s")
	created := c.start(nil, "wait", "--for=create", "configmap/settings")
	ready := `{"phase":"Running","conditions":[{"type":"Ready","status":"True"}]}`
	c.podStatus("web-0", ready)
	r.out.await(t, "pod/web-0 condition met\n")
	c.podStatus("db-0", ready)
	if got := r.end(); got.code != 0 || got.out != "pod/web-0 condition met\npod/db-0 condition met\n" {
		t.Errorf("%+v", got)
	}
	if got := phase.end(); got.code != 0 || got.out != "pod/db-0 condition met\npod/web-0 condition met\n" {
		t.Errorf("%+v", got)
	}
	c.applied(settings)
	if got := created.end(); got.code != 0 || got.out != "configmap/settings condition met\n" {
		t.Errorf("%+v", got)
	}
	equal(t, c.ok("wait", "--for=condition=ready=TRUE", "pods", "-l", "app=web", "--timeout=0"), "pod/web-0 condition met\n")
	equal(t, c.ok("wait", "--for=jsonpath='{.data.color}'", "cm/settings"), "configmap/settings condition met\n")
	equal(t, c.ok("wait", "--for=jsonpath='{.data.color}'=blue", "cm/settings"), "configmap/settings condition met\n")
	deleted := c.start(nil, "wait", "--for=delete", "cm/settings")
	c.ok("delete", "cm/settings")
	if got := deleted.end(); got.code != 0 {
		t.Errorf("%+v", got)
	}
	equal(t, c.ok("wait", "--for=delete", "cm/settings"), "configmap/settings condition met\n")

	c.fails([]string{"wait", "--for=condition=Ready=False", "pod/web-0", "--timeout=1ms"}, "error: timed out waiting for the condition on pods/web-0")
	c.fails([]string{"wait", "--for=condition=Ready=False", "pod/web-0", "--timeout=0"}, "error: condition not met for pod/web-0")
	c.fails([]string{"wait", "--for=condition=Ready", "pod/nosuch"}, `Error from server (NotFound): pods "nosuch" not found`)
	c.fails([]string{"wait", "--for=condition=Ready", "pods"}, "name objects, or use -l or --all")
	c.fails([]string{"wait", "--for=condition=Ready", "pods", "-l", "app=none"}, "no matching resources found")
	c.fails([]string{"wait", "--for=ready", "pod/web-0"}, `unrecognized condition: "ready": use condition=TYPE`)
	c.fails([]string{"wait", "--for=condition=", "pod/web-0"}, `unrecognized condition: "condition="`)
	c.fails([]string{"wait", "--for=jsonpath={.a[}", "pod/web-0"}, "--for=jsonpath={.a[}: ")
	c.fails([]string{"wait", "pod/web-0"}, `required flag(s) "for" not set`)
	gone := c.start(nil, "wait", "--for=condition=Ready=False", "pod/web-0")
	gone.cancel()
	gone.end()
}
