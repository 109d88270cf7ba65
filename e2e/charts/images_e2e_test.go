//go:build e2e

package charts

import (
	"context"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"dhow.dev/e2e/cluster"
	"dhow.dev/e2e/images"
	"dhow.dev/pkg/image"
)

// tag is that of the images that are pushed here.
const tag = "e2e"

// serveImages makes the images of the programs in bin/ by their Dockerfiles, as `make images` does, and serves them where nodes find registry.dhow:5000, with tools:v1, a
// shell.
func serveImages(t *testing.T, c *cluster.Cluster) {
	t.Helper()
	registry, err := image.NewRegistry(image.RegistryConfig{Dir: filepath.Join(t.TempDir(), "registry"), AllowPush: true})
	if err != nil {
		t.Fatal(err)
	}
	busybox, err := image.FindBusybox()
	if err != nil {
		t.Fatal(err)
	}
	tools, err := image.Build(image.Spec{Busybox: busybox, Cmd: []string{"sh"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := registry.Add(t.Context(), "tools:v1", tools); err != nil {
		t.Fatal(err)
	}
	address := net.JoinHostPort(c.Gateway, images.Port)
	listener, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- registry.Serve(ctx, listener) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})

	root, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	dist := t.TempDir()
	programs := filepath.Join(dist, "linux_"+runtime.GOARCH)
	for _, program := range []string{"dhow", "dhow-kubectl", "dhow-store", "dhow-apiserver", "dhow-scheduler", "dhow-controller-manager", "dhow-node-agent"} {
		copyProgram(t, filepath.Join(root, "bin", program), filepath.Join(programs, "bin", program))
	}
	run(t, exec.CommandContext(t.Context(), filepath.Join(root, "tools", "image-runtime.sh"), runtime.GOARCH, programs))
	push := exec.CommandContext(t.Context(), "go", "run", "./cmd/dhow-images", "-dockerfiles", "images", "-dist", dist, "-platforms", "linux/"+runtime.GOARCH,
		"-version", tag, "-revision", "0000000", "-created", "2026-01-01T00:00:00Z", "-push", address+"/dhow", "-plain-http")
	push.Dir = filepath.Join(root, "deploy")
	push.Env = append(os.Environ(), "GOWORK=off")
	run(t, push)
}

func copyProgram(t *testing.T, from, to string) {
	t.Helper()
	source, err := os.Open(from)
	if err != nil {
		t.Fatalf("%v: `make build` makes it", err)
	}
	defer source.Close()
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		t.Fatal(err)
	}
	target, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(target, source); err != nil {
		t.Fatal(err)
	}
	if err := target.Close(); err != nil {
		t.Fatal(err)
	}
}
