package nodeagent_test

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	nodev1 "dhow.dev/gen/go/dhow/node/v1"
	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/transport"
	"dhow.dev/services/node-agent/internal/apitest"
	"dhow.dev/services/node-agent/internal/env"
	"dhow.dev/services/node-agent/internal/event"
	"dhow.dev/services/node-agent/internal/podtest"
	"dhow.dev/services/node-agent/internal/reference"
	"dhow.dev/services/node-agent/internal/report"
	"dhow.dev/services/node-agent/internal/session"
)

// serve returns an API server in memory and a node's connection to it.
func serve(t *testing.T) (*apitest.Server, grpc.ClientConnInterface) {
	t.Helper()
	api, memory := apitest.New(), transport.NewMemory()
	ctx, cancel := context.WithCancel(context.Background())
	server := transport.NewServer(transport.ServerConfig{Credentials: memory.ServerCredentials(), Lifetime: ctx, Options: api.Options()})
	api.Register(server)
	served := make(chan error, 1)
	go func() { served <- transport.Serve(ctx, server, memory.Listen("apiserver")) }()
	conn, err := memory.Dial("apiserver", identity.Node("n1"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return api, conn
}

// run runs something until the test ends.
func run(t *testing.T, f func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func await(t *testing.T, api *apitest.Server, what string, f func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := api.Await(ctx, f); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

func phase(p string) *corev1.PodStatus {
	return corev1.PodStatus_builder{Phase: proto.String(p)}.Build()
}

func TestNewestStatusThenDeletion(t *testing.T) {
	api, conn := serve(t)
	p := api.Put(podtest.Pod(t, `{metadata: {name: p}}`)).(*corev1.Pod)
	namesake := proto.CloneOf(p)
	namesake.GetMetadata().SetUid("another")
	r := report.New(conn, slog.New(slog.DiscardHandler))
	// Before anything runs, many statuses are one write.
	for _, s := range []string{"Pending", "Pending", "Running"} {
		r.Publish(t.Context(), p, phase(s))
	}
	r.Finish(t.Context(), namesake, phase("Failed"))
	run(t, r.Run)
	phaseNow := func() string {
		now, _ := apitest.Get[*corev1.Pod](api, "default", "p")
		return now.GetStatus().GetPhase()
	}
	await(t, api, "running", func() bool { return phaseNow() == "Running" })
	r.Publish(t.Context(), p, phase("Pending"))
	r.Finish(t.Context(), p, phase("Succeeded"))
	await(t, api, "deleted", func() bool { return len(apitest.List[*corev1.Pod](api)) == 0 })
}

func TestReferencesFollowTheirObjects(t *testing.T) {
	api, conn := serve(t)
	p := podtest.Pod(t, `{metadata: {name: p}, spec: {containers: [{name: c, envFrom: [{configMapRef: {name: config}}, {secretRef: {name: keys}}]}]}}`)
	changed := make(chan []string, 10)
	c := reference.New(conn, slog.New(slog.DiscardHandler), func(uids []string) { changed <- uids })
	run(t, c.Run)
	c.Hold(p)
	if _, err := c.ConfigMap(t.Context(), "default", "config"); !errors.Is(err, env.ErrMissing) {
		t.Fatalf("before it exists: %v", err)
	}
	put := func(v string) {
		api.Put(corev1.ConfigMap_builder{Metadata: metav1.ObjectMeta_builder{Namespace: proto.String("default"), Name: proto.String("config")}.Build(), Data: map[string]string{"k": v}}.Build())
		if uids := <-changed; len(uids) != 1 || uids[0] != "uid-of-pod" {
			t.Fatalf("told %v", uids)
		}
		o, err := c.ConfigMap(t.Context(), "default", "config")
		if err != nil || o.GetData()["k"] != v {
			t.Fatalf("%v, %v", o, err)
		}
	}
	put("1")
	put("2")
	c.Release("uid-of-pod")
	if _, err := c.ConfigMap(t.Context(), "default", "config"); err == nil || errors.Is(err, env.ErrMissing) {
		t.Errorf("after its release: %v", err)
	}
}

func TestRepeatedEventsAreCounted(t *testing.T) {
	api, conn := serve(t)
	r := event.New(conn, "n1", slog.New(slog.DiscardHandler))
	p := podtest.Pod(t, `{metadata: {name: p}, spec: {containers: [{name: c}]}}`)
	run(t, r.Run)
	await(t, api, "one event", func() bool {
		if len(apitest.List[*corev1.Event](api)) == 0 {
			r.Event(p, "c", true, "BackOff", "again")
		}
		return len(apitest.List[*corev1.Event](api)) == 1
	})
	r.Event(p, "c", true, "BackOff", "again")
	await(t, api, "its count grows", func() bool {
		list := apitest.List[*corev1.Event](api)
		return len(list) == 1 && list[0].GetCount() > 1 && list[0].GetInvolvedObject().GetFieldPath() == "spec.containers{c}"
	})
}

func TestEventsAreWrittenTogether(t *testing.T) {
	api, conn := serve(t)
	r := event.New(conn, "n1", slog.New(slog.DiscardHandler))
	p := podtest.Pod(t, `{metadata: {name: p}, spec: {containers: [{name: c}]}}`)
	// They wait until there is somebody to write them.
	for _, reason := range []string{"Pulled", "Created", "Started"} {
		r.Event(p, "c", false, reason, "told")
	}
	run(t, r.Run)
	await(t, api, "all of them", func() bool { return len(apitest.List[*corev1.Event](api)) == 3 })
}

func TestSessionRegistersAndTunnels(t *testing.T) {
	api, conn := serve(t)
	node := corev1.Node_builder{Metadata: metav1.ObjectMeta_builder{Name: proto.String("n1")}.Build(), Spec: &corev1.NodeSpec{}, Status: &corev1.NodeStatus{}}.Build()
	s := session.New(session.Config{
		Conn: conn, Instance: "i", Node: func() *corev1.Node { return node }, Attached: func(*corev1.Node) {}, Logger: slog.New(slog.DiscardHandler),
		Serve: func(_ context.Context, request *nodev1.OpenTunnel, tunnel *session.Tunnel) error {
			if request.GetLog().GetName() == "absent" {
				return errors.New("no such pod")
			}
			// Echo what comes, in more than one message.
			for {
				r, err := tunnel.Receive()
				if err != nil || r.HasCloseStdin() {
					return tunnel.Exit(7)
				}
				if _, err := tunnel.Stdout().Write(r.GetStdin()); err != nil {
					return err
				}
			}
		},
	})
	run(t, s.Run)
	await(t, api, "registered", func() bool {
		n, ok := apitest.Get[*corev1.Node](api, "", "n1")
		return ok && n.GetSpec().GetPodCidr() == "10.244.1.0/24"
	})
	<-s.FirstAttached()
	s.SetStatus(corev1.NodeStatus_builder{Phase: proto.String("seen")}.Build())
	await(t, api, "status", func() bool {
		n, _ := apitest.Get[*corev1.Node](api, "", "n1")
		return n.GetStatus().GetPhase() == "seen"
	})
	input := make([]byte, 200<<10)
	got, code := 0, int32(-1)
	err := api.Open(t.Context(), "n1", nodev1.OpenTunnel_builder{Exec: &corev1.PodExecRequest_Start{}}.Build(), func(stream nodev1.Sessions_TunnelServer) error {
		if err := stream.Send(nodev1.TunnelResponse_builder{Exec: corev1.PodExecRequest_builder{Stdin: input}.Build()}.Build()); err != nil {
			return err
		}
		if err := stream.Send(nodev1.TunnelResponse_builder{Exec: corev1.PodExecRequest_builder{CloseStdin: proto.Bool(true)}.Build()}.Build()); err != nil {
			return err
		}
		for code < 0 {
			m, err := stream.Recv()
			if err != nil {
				return err
			}
			got += len(m.GetExec().GetStdout())
			if m.GetExec().HasExitCode() {
				code = m.GetExec().GetExitCode()
			}
		}
		return nil
	})
	if err != nil || got != len(input) || code != 7 {
		t.Errorf("%d bytes, code %d, %v", got, code, err)
	}
	var failure *nodev1.Failure
	err = api.Open(t.Context(), "n1", nodev1.OpenTunnel_builder{Log: corev1.PodLogRequest_builder{Name: "absent"}.Build()}.Build(), func(stream nodev1.Sessions_TunnelServer) error {
		m, err := stream.Recv()
		failure = m.GetFailure()
		return err
	})
	if err != nil || failure.GetMessage() != "no such pod" {
		t.Errorf("failure %v, %v", failure, err)
	}
}
