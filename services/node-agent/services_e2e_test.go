//go:build e2e

package nodeagent_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/pki"
	"dhow.dev/pkg/transport"
	"dhow.dev/services/apiserver"
	"dhow.dev/services/node-agent/internal/podtest"
	"dhow.dev/services/store"
)

// TestWithTheRealServices runs a pod by hand: store and API server in this process, the agent in its own, a pod that names its node.
func TestWithTheRealServices(t *testing.T) {
	memory := transport.NewMemory()
	dir := t.TempDir()
	c := newHost(t, func(ctx context.Context, listener net.Listener, pair *pki.KeyPair) error {
		stored := make(chan error, 1)
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		go func() {
			stored <- store.Run(ctx, store.Config{Listener: memory.Listen("store"), Credentials: memory.ServerCredentials(), Memory: true})
		}()
		conn, err := memory.Dial("store", identity.Identity{Name: identity.APIServer})
		if err != nil {
			return err
		}
		err = apiserver.Run(ctx, apiserver.Config{Listener: listener, Credentials: transport.TLSServer(pair), Store: conn,
			KeyFile: filepath.Join(dir, "keys"), Logger: slog.New(slog.DiscardHandler)})
		cancel()
		return errors.Join(err, conn.Close(), <-stored)
	})
	pair, err := c.authority.Ensure(pki.FilesIn(dir, "admin"), pki.Request{Identity: identity.Identity{Name: identity.Admin, Groups: []string{identity.Masters}}, Client: true})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := transport.Dial(c.address, transport.TLSClient(pair, "apiserver.dhow"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	stop := c.start()
	defer func() { stop(syscall.SIGTERM) }()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()

	nodes, pods := client.For[*corev1.Node](conn), client.For[*corev1.Pod](conn)
	watchUntil(ctx, t, nodes, "", "n1", func(n *corev1.Node) bool {
		for _, condition := range n.GetStatus().GetConditions() {
			if condition.GetType() == "Ready" && condition.GetStatus() == "True" {
				return n.GetSpec().GetPodCidr() != ""
			}
		}
		return false
	})
	secrets := client.For[*corev1.Secret](conn)
	if _, err := secrets.Create(ctx, corev1.Secret_builder{Metadata: metav1.ObjectMeta_builder{Namespace: proto.String("default"), Name: proto.String("keys")}.Build(),
		Data: map[string][]byte{"token": []byte("s3cret")}}.Build(), nil); err != nil {
		t.Fatal(err)
	}
	wanted := podtest.Pod(t, `
metadata: {name: web}
spec:
  nodeName: n1
  automountServiceAccountToken: false # no controllers run here to make the account
  containers:
  - name: main
    image: dhow.test/busybox:1
    command: [sh, -c, "echo token $TOKEN; trap 'exit 0' TERM; httpd -f -p 8080 -h /etc & wait"]
    env: [{name: TOKEN, valueFrom: {secretKeyRef: {name: keys, key: token}}}]
    readinessProbe: {httpGet: {path: /hosts, port: 8080}, periodSeconds: 1}
`)
	wanted.GetMetadata().ClearUid()
	if _, err := pods.Create(ctx, wanted, nil, grpc.WaitForReady(true)); err != nil {
		t.Fatal(err)
	}
	running := watchUntil(ctx, t, pods, "default", "web", ready)
	if running.GetStatus().GetPodIp() == "" || running.GetStatus().GetPhase() != "Running" {
		t.Errorf("status %v", running.GetStatus())
	}

	access := corev1.NewPodsClient(conn)
	logs, err := access.Log(ctx, corev1.PodLogRequest_builder{Namespace: "default", Name: "web"}.Build())
	if err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	for {
		piece, err := logs.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		text.Write(piece.GetData())
	}
	if text.String() != "token s3cret\n" {
		t.Errorf("log %q", text.String())
	}
	exec, err := access.Exec(ctx)
	if err != nil {
		t.Fatal(err)
	}
	start := corev1.PodExecRequest_Start_builder{Namespace: "default", Name: "web", Command: []string{"sh", "-c", "hostname; exit 5"}, Stdout: true, Stderr: true}.Build()
	if err := exec.Send(corev1.PodExecRequest_builder{Start: start}.Build()); err != nil {
		t.Fatal(err)
	}
	text.Reset()
	code := int32(-1)
	for {
		m, err := exec.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		text.Write(m.GetStdout())
		if m.HasExitCode() {
			code = m.GetExitCode()
		}
	}
	if text.String() != "web\n" || code != 5 {
		t.Errorf("exec: %q, code %d", text.String(), code)
	}

	if _, err := pods.Delete(ctx, "default", "web", metav1.DeletionOptions_builder{GracePeriodSeconds: proto.Int64(5)}.Build()); err != nil {
		t.Fatal(err)
	}
	watchUntil(ctx, t, pods, "default", "web", func(p *corev1.Pod) bool { return p == nil })
	if _, err := pods.Get(ctx, "default", "web"); !apierrors.IsNotFound(err) {
		t.Errorf("after its deletion: %v", err)
	}
	// Events are written a moment later, some of them together.
	events, err := client.For[*corev1.Event](conn).Watch(ctx, metav1.WatchRequest_builder{Namespace: "default"}.Build())
	if err != nil {
		t.Fatal(err)
	}
	for missing := []string{"Pulled", "Created", "Started", "Killing"}; len(missing) > 0; {
		batch, err := events.Next()
		if err != nil {
			t.Fatalf("no event %q: %v", missing, err)
		}
		for _, change := range batch.Changes {
			missing = slices.DeleteFunc(missing, func(reason string) bool { return change.Object.GetReason() == reason })
		}
	}
}

// watchUntil watches one object until f likes it; f is asked with nil when it is deleted.
func watchUntil[T interface {
	comparable
	proto.Message
	GetMetadata() *metav1.ObjectMeta
	SetMetadata(*metav1.ObjectMeta)
	HasMetadata() bool
}](ctx context.Context, t *testing.T, from *client.Client[T], namespace, name string, f func(T) bool) T {
	t.Helper()
	var last T
	w, err := from.Watch(ctx, metav1.WatchRequest_builder{Namespace: namespace, FieldSelector: "metadata.name=" + name}.Build(), grpc.WaitForReady(true))
	if err != nil {
		t.Fatal(err)
	}
	for {
		batch, err := w.Next()
		if err != nil {
			t.Fatalf("watch %s: %v; last seen %v", name, err, last)
		}
		for _, change := range batch.Changes {
			last = change.Object
			if change.Type == metav1.EventType_EVENT_TYPE_DELETED {
				var none T
				last = none
			}
			if f(last) {
				return last
			}
		}
		if batch.Synced && len(batch.Changes) == 0 {
			var none T
			if f(none) {
				return none
			}
		}
	}
}
