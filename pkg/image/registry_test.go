package image

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

func serve(t *testing.T, cfg RegistryConfig) (*Registry, string) {
	t.Helper()
	r, err := NewRegistry(cfg)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return r, l.Addr().String()
}

func hello(t *testing.T, text string) v1.Image {
	t.Helper()
	img, err := Build(Spec{Files: []File{{Path: "/hello", Content: []byte(text)}}})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func pulled(t *testing.T, reference string) v1.Hash {
	t.Helper()
	ref, err := name.ParseReference(reference, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	img, err := remote.Image(ref, remote.WithContext(t.Context()))
	if err != nil {
		t.Fatalf("pull %s: %v", reference, err)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	for _, layer := range layers {
		content, err := layer.Uncompressed()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, content); err != nil {
			t.Fatalf("read a layer of %s: %v", reference, err)
		}
	}
	digest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return digest
}

func digestOf(t *testing.T, img v1.Image) v1.Hash {
	t.Helper()
	digest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return digest
}

func TestAddedImagesSurviveARestart(t *testing.T) {
	dir := t.TempDir()
	img := hello(t, "one")
	index := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: img})

	first, addr := serve(t, RegistryConfig{Dir: dir})
	if err := first.Add(t.Context(), "demo/web:v1", img); err != nil {
		t.Fatal(err)
	}
	ref, err := name.NewTag("registry.invalid/demo/web:multi", name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.WriteIndex(ref, index, remote.WithTransport(localTransport{first})); err != nil {
		t.Fatal(err)
	}
	if got := pulled(t, addr+"/demo/web:v1"); got != digestOf(t, img) {
		t.Errorf("pulled %s, want %s", got, digestOf(t, img))
	}

	_, addr = serve(t, RegistryConfig{Dir: dir})
	if got := pulled(t, addr+"/demo/web:v1"); got != digestOf(t, img) {
		t.Errorf("after a restart: pulled %s, want %s", got, digestOf(t, img))
	}
	if got := pulled(t, addr+"/demo/web@"+digestOf(t, img).String()); got != digestOf(t, img) {
		t.Errorf("by digest after a restart: pulled %s", got)
	}
}

func TestATagMoves(t *testing.T) {
	r, addr := serve(t, RegistryConfig{Dir: t.TempDir()})
	for _, text := range []string{"one", "two"} {
		img := hello(t, text)
		if err := r.Add(t.Context(), "web:latest", img); err != nil {
			t.Fatal(err)
		}
		if got := pulled(t, addr+"/web:latest"); got != digestOf(t, img) {
			t.Errorf("%s: pulled %s, want %s", text, got, digestOf(t, img))
		}
	}
	if err := r.Add(t.Context(), "Not A Name", hello(t, "x")); err == nil {
		t.Error("a bad name was accepted")
	}
}

func TestPushOverHTTP(t *testing.T) {
	img := hello(t, "pushed")

	_, closed := serve(t, RegistryConfig{Dir: t.TempDir()})
	if err := Push(t.Context(), closed+"/web:v1", img, PushOptions{PlainHTTP: true}); err == nil {
		t.Error("a read-only registry accepted a push")
	}

	_, open := serve(t, RegistryConfig{Dir: t.TempDir(), AllowPush: true})
	if err := Push(t.Context(), open+"/web:v1", img, PushOptions{PlainHTTP: true}); err != nil {
		t.Fatal(err)
	}
	if got := pulled(t, open+"/web:v1"); got != digestOf(t, img) {
		t.Errorf("pulled %s, want %s", got, digestOf(t, img))
	}

	_, small := serve(t, RegistryConfig{Dir: t.TempDir(), AllowPush: true, MaxUpload: 16})
	if err := Push(t.Context(), small+"/web:v1", img, PushOptions{PlainHTTP: true}); err == nil {
		t.Error("an upload over the limit was accepted")
	}
}

func TestDamagedManifestIsNamed(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "manifests", "x.json")
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := NewRegistry(RegistryConfig{Dir: dir}); err == nil {
		t.Fatal("a damaged manifest was accepted")
	}
}

func TestUnknownImageIsNotFound(t *testing.T) {
	_, addr := serve(t, RegistryConfig{Dir: t.TempDir()})
	resp, err := http.Get("http://" + addr + "/v2/none/manifests/v1")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusNotFound {
		t.Fatalf("got %s", resp.Status)
	}
}
