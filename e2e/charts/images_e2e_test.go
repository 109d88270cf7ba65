//go:build e2e

package charts

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"dhow.dev/e2e/images"
	"dhow.dev/pkg/image"
)

// tag is that of the images that are made here.
const tag = "e2e"

// archives makes the images of the programs in bin/ by their Dockerfiles, as `make images` does, and the one that carries those of the scenarios.
func archives(t *testing.T) []string {
	t.Helper()
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
	build := exec.CommandContext(t.Context(), "go", "run", "./cmd/dhow-images", "-dockerfiles", "images", "-dist", dist, "-platforms", "linux/"+runtime.GOARCH,
		"-version", tag, "-revision", "0000000", "-created", "2026-01-01T00:00:00Z")
	build.Dir = filepath.Join(root, "deploy")
	build.Env = append(os.Environ(), "GOWORK=off")
	run(t, build)

	made := t.TempDir()
	registry, err := images.Build(t.Context(), root, made)
	if err != nil {
		t.Fatal(err)
	}
	carrier, err := registry.Image(t.Context(), root, made)
	if err != nil {
		t.Fatal(err)
	}
	if err := image.WriteArchive(filepath.Join(dist, "images", images.Carrier+".tar"), "dhow.dev/"+images.Carrier+":"+tag, carrier); err != nil {
		t.Fatal(err)
	}
	all, err := filepath.Glob(filepath.Join(dist, "images", "*.tar"))
	if err != nil {
		t.Fatal(err)
	}
	return all
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
