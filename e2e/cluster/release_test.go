package cluster

import (
	"bufio"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"k8s.io/apimachinery/pkg/runtime/serializer/json"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes/scheme"
)

// TestManifests: what is applied to the outer cluster is Kubernetes' own, without a word that it does not know.
func TestManifests(t *testing.T) {
	decoder := json.NewSerializerWithOptions(json.DefaultMetaFactory, scheme.Scheme, scheme.Scheme, json.SerializerOptions{Yaml: true, Strict: true})
	filled := strings.NewReplacer("IMAGE", "dhow.dev/e2e-images:e2e", "PORT", "31500", "DATA", "/var/lib/data", "STATE", "/run/state", "SELECTOR", "null")
	objects := 0
	for _, manifest := range []string{imagesManifest, observersManifest} {
		reader := utilyaml.NewYAMLReader(bufio.NewReader(strings.NewReader(strings.TrimSpace(filled.Replace(manifest)))))
		for {
			document, err := reader.Read()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			objects++
			if _, _, err := decoder.Decode(document, nil, nil); err != nil {
				t.Errorf("%v:\n%s", err, document)
			}
		}
	}
	if objects != 3 {
		t.Errorf("%d objects", objects)
	}
}

// TestRuntimeElsewhere: calls reach a socket over the standard streams of what kubectl runs, again when that has ended, and its end is told with the reason.
func TestRuntimeElsewhere(t *testing.T) {
	dir := t.TempDir()
	socket := filepath.Join(dir, "s")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	healthpb.RegisterHealthServer(server, health.NewServer())
	go server.Serve(listener)
	t.Cleanup(server.Stop)

	// A kubectl that runs the program in the pod here.
	carrier := filepath.Join(dir, "carrier")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", carrier, "dhow.dev/e2e/images/carrier").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	kubectl := filepath.Join(dir, "kubectl")
	script := "#!/bin/sh\necho $$ >>" + dir + "/pids\nfor word; do case $word in pod-gone) echo 'pods \"pod-gone\" not found' >&2; exit 1;; esac; done\nexec " + carrier + " dial " + socket + "\n"
	if err := os.WriteFile(kubectl, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	r := &Release{dir: dir, kubectlProgram: kubectl}
	o := &observer{release: r, pod: "pod", socket: socket}
	t.Cleanup(o.close)
	for range 2 {
		conn, err := o.Runtime()
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			answer, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{})
			if err != nil || answer.GetStatus() != healthpb.HealthCheckResponse_SERVING {
				t.Errorf("%v, %v", answer, err)
			}
		}
		o.close()
	}
	pids, err := os.ReadFile(filepath.Join(dir, "pids"))
	if err != nil || strings.Count(string(pids), "\n") != 2 {
		t.Errorf("kubectl was run as %q, %v: once for each connection", pids, err)
	}

	gone := &observer{release: r, pod: "pod-gone", socket: socket}
	t.Cleanup(gone.close)
	conn, err := gone.Runtime()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{}); err == nil || !strings.Contains(err.Error(), "pod-gone") {
		t.Errorf("a pod that is gone: %v", err)
	}
}
