package cni

import (
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/informer"
)

var _ Source = (*informer.Store[*corev1.Node])(nil)

type source struct {
	handler func(old, new *corev1.Node, trace *informer.Trace)
}

func (s *source) OnChangeTraced(f func(old, new *corev1.Node, trace *informer.Trace)) { s.handler = f }

func node(name string, cidrs ...string) *corev1.Node {
	return corev1.Node_builder{
		Metadata: metav1.ObjectMeta_builder{Name: proto.String(name)}.Build(),
		Spec:     corev1.NodeSpec_builder{PodCidrs: cidrs}.Build(),
	}.Build()
}

func start(t *testing.T, config Config) (*Network, *source) {
	t.Helper()
	nodes := &source{}
	config.NodeName, config.Nodes, config.Logger = "n1", nodes, slog.New(slog.DiscardHandler)
	n, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return n, nodes
}

func TestReadyWithPodNetwork(t *testing.T) {
	config := Config{ConfDir: filepath.Join(t.TempDir(), "net.d"), DataDir: "/data", MTU: 1450}
	config.DataDir = t.TempDir()
	n, nodes := start(t, config)
	nodes.handler(nil, node("n2", "10.244.9.0/24"), nil)
	nodes.handler(nil, node("n1"), nil)
	nodes.handler(node("n1"), node("n1", "fd00::/64", "10.244.1.0/24"), nil)
	<-n.Ready()
	content, err := os.ReadFile(filepath.Join(config.ConfDir, FileName))
	if err != nil {
		t.Fatal(err)
	}
	var got any
	if err := json.Unmarshal(content, &got); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"cniVersion": "1.0.0", "name": "dhow",
		"plugins": []any{map[string]any{
			"type": "bridge", "bridge": BridgeName("n1"), "isGateway": true, "isDefaultGateway": true, "forceAddress": true, "ipMasq": false, "hairpinMode": true, "mtu": 1450.0,
			"ipam": map[string]any{"type": "host-local", "dataDir": config.DataDir, "ranges": []any{[]any{map[string]any{"subnet": "10.244.1.0/24"}}}},
		}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("configuration (-want +got):\n%s", diff)
	}
	entries, _ := os.ReadDir(config.ConfDir)
	if len(entries) != 1 {
		t.Errorf("files: %v", entries)
	}
}

func TestRestartWhileCutOff(t *testing.T) {
	config := Config{ConfDir: t.TempDir(), DataDir: t.TempDir()}
	n, nodes := start(t, config)
	nodes.handler(nil, node("n1", "10.244.1.0/24"), nil)
	<-n.Ready()
	again, _ := start(t, config)
	<-again.Ready()
}

func TestForeignFileIsNotReady(t *testing.T) {
	config := Config{ConfDir: t.TempDir(), DataDir: t.TempDir()}
	for _, content := range []string{"{", `{"plugins":[{"type":"bridge","ipam":{"ranges":[[{"subnet":"10.0.0.0/24"}]]}}]}`} {
		path := filepath.Join(config.ConfDir, FileName)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		n := &Network{config: config, ready: make(chan struct{})}
		if err := n.adopt(); err != nil {
			t.Fatal(err)
		}
		select {
		case <-n.Ready():
			t.Errorf("took %q for its own", content)
		default:
		}
	}
}

func TestReclaim(t *testing.T) {
	config := Config{NodeName: "n1", ConfDir: t.TempDir(), DataDir: t.TempDir(), Nodes: &source{}}
	n, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	if freed, err := n.Reclaim(nil); err != nil || freed != 0 {
		t.Errorf("without a folder: %d, %v", freed, err)
	}
	dir := filepath.Join(config.DataDir, NetworkName)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{"10.244.1.2": "live\r\neth0", "10.244.1.3": "gone\neth0", "last_reserved_ip.0": "10.244.1.3", "lock": ""} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	freed, err := n.Reclaim(map[string]bool{"live": true})
	if err != nil || freed != 1 {
		t.Errorf("freed %d, %v", freed, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "10.244.1.2")); err != nil {
		t.Errorf("a living sandbox lost its address: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "10.244.1.3")); err == nil {
		t.Error("a dead sandbox keeps its address")
	}
}

func TestBridgeName(t *testing.T) {
	if a, b := BridgeName("n1"), BridgeName("n2"); a == b || len(a) > maxBridge {
		t.Errorf("names %q and %q", a, b)
	}
}
