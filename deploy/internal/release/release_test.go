package release

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	cdx "github.com/CycloneDX/cyclonedx-go"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"dhow.dev/pkg/image"
)

// static builds testdata/program without a C library, once for all tests.
func static(t *testing.T) string {
	t.Helper()
	file := filepath.Join(os.TempDir(), "dhow-images-test-"+strconv.Itoa(os.Getpid()))
	building.Do(func() {
		build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", file, "./testdata/program")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if output, err := build.CombinedOutput(); err != nil {
			t.Fatalf("go build: %v: %s", err, output)
		}
	})
	return file
}

var building sync.Once

func TestMain(m *testing.M) {
	code := m.Run()
	os.Remove(filepath.Join(os.TempDir(), "dhow-images-test-"+strconv.Itoa(os.Getpid())))
	os.Exit(code)
}

// world is a dist folder in which every program is a small real one: images are made by the repository's own Dockerfiles.
func world(t *testing.T, platforms ...string) Config {
	t.Helper()
	program, err := os.ReadFile(static(t))
	if err != nil {
		t.Fatal(err)
	}
	config := Config{
		Dockerfiles: "../../images", Dist: t.TempDir(), Platforms: platforms,
		Version: "v1.2.3+dirty", Revision: "0123abcd", Created: "2026-01-02T03:04:05Z",
	}
	put := func(file string, content []byte) {
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, content, 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	for _, platform := range platforms {
		dist := filepath.Join(config.Dist, strings.ReplaceAll(platform, "/", "_"))
		for _, c := range contents {
			for _, p := range c.programs {
				put(filepath.Join(dist, p), program)
			}
		}
		put(filepath.Join(dist, "host/usr/sbin/nft"), []byte("nft"))
	}
	return config
}

// files are what is in an image: the headers of its flattened layers, by path.
func files(t *testing.T, img v1.Image) map[string]*tar.Header {
	t.Helper()
	r := mutate.Extract(img)
	defer r.Close()
	all := map[string]*tar.Header{}
	for reader := tar.NewReader(r); ; {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all["/"+strings.Trim(strings.TrimPrefix(header.Name, "./"), "/")] = header
	}
}

func config(t *testing.T, img v1.Image) *v1.ConfigFile {
	t.Helper()
	file, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	return file
}

func made(t *testing.T, c Config) []Image {
	t.Helper()
	images, err := Make(c)
	if err != nil {
		t.Fatal(err)
	}
	return images
}

func TestEveryImageSaysWhatItIsAndHasNoShell(t *testing.T) {
	for _, img := range made(t, world(t, "linux/amd64")) {
		file, in := config(t, img.Platforms[0]), files(t, img.Platforms[0])
		program := file.Config.Entrypoint[0]
		if header := in[program]; header == nil || header.Mode&0o111 == 0 {
			t.Errorf("%s: the entry point %s is not an executable in it", img.Name, program)
		}
		for key, want := range map[string]string{"title": filepath.Base(program), "version": "v1.2.3+dirty", "revision": "0123abcd", "created": "2026-01-02T03:04:05Z", "licenses": "Apache-2.0"} {
			if got := file.Config.Labels["org.opencontainers.image."+key]; got != want {
				t.Errorf("%s: label %s is %q, want %q", img.Name, key, got, want)
			}
		}
		if root := file.Config.User == ""; root != (img.Name == "node-agent") {
			t.Errorf("%s: runs as %q; the node agent alone needs root", img.Name, file.Config.User)
		}
		for path := range in {
			switch filepath.Base(path) {
			case "sh", "bash", "busybox", "apt", "dpkg":
				t.Errorf("%s: has %s", img.Name, path)
			}
		}
		for _, path := range []string{"/etc/ssl/certs/ca-certificates.crt", "/usr/share/doc/dhow/sbom.cdx.json"} {
			if in[path] == nil || in[path].Size == 0 {
				t.Errorf("%s: %s is missing", img.Name, path)
			}
		}
		if img.Tag != "v1.2.3_dirty" {
			t.Errorf("%s: tag %q: a tag has no plus sign", img.Name, img.Tag)
		}
	}
}

func TestTheStoreOwnsItsData(t *testing.T) {
	for _, img := range made(t, world(t, "linux/amd64")) {
		if img.Name != "store" {
			continue
		}
		data := files(t, img.Platforms[0])["/var/lib/dhow"]
		if data == nil || data.Typeflag != tar.TypeDir || data.Uid != 65532 || data.Gid != 65532 {
			t.Errorf("/var/lib/dhow: %+v", data)
		}
	}
}

func TestSameProgramsSameDigest(t *testing.T) {
	digests := func() map[string]v1.Hash {
		all := map[string]v1.Hash{}
		for _, img := range made(t, world(t, "linux/amd64")) {
			digest, err := img.Platforms[0].Digest()
			if err != nil {
				t.Fatal(err)
			}
			all[img.Name] = digest
		}
		return all
	}
	first, second := digests(), digests()
	for name, digest := range first {
		if second[name] != digest {
			t.Errorf("%s: %s, and made again %s", name, digest, second[name])
		}
	}
}

func TestTheListOfPartsNamesModules(t *testing.T) {
	c := world(t, "linux/amd64")
	made(t, c)
	data, err := os.ReadFile(filepath.Join(c.Dist, "linux_amd64/sbom/store.cdx.json"))
	if err != nil {
		t.Fatal(err)
	}
	var doc cdx.BOM
	if err := json.Unmarshal(data, &doc); err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, component := range *doc.Components {
		if component.Version == "" || !strings.HasPrefix(component.PackageURL, "pkg:golang/") {
			t.Errorf("component %+v", component)
		}
		if names[component.Name] {
			t.Errorf("%s: twice", component.Name)
		}
		names[component.Name] = true
	}
	// The program that stands for the store's links these.
	for _, want := range []string{"stdlib", "github.com/google/go-containerregistry"} {
		if !names[want] {
			t.Errorf("%s is not named in %v", want, names)
		}
	}
	for name := range names {
		if strings.HasPrefix(name, "dhow.dev/") {
			t.Errorf("%s is the image's own", name)
		}
	}
}

func TestWhoPullsGetsTheImageOfItsPlatform(t *testing.T) {
	c := world(t, "linux/amd64", "linux/arm64")
	c.PlainHTTP = true
	registry, err := image.NewRegistry(image.RegistryConfig{Dir: t.TempDir(), AllowPush: true})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(registry)
	defer server.Close()
	host := strings.TrimPrefix(server.URL, "http://")
	for _, img := range made(t, c) {
		if err := img.Push(context.Background(), host+"/dhow", c); err != nil {
			t.Fatal(err)
		}
		ref, err := name.ParseReference(host+"/dhow/"+img.Name+":v1.2.3_dirty", name.Insecure)
		if err != nil {
			t.Fatal(err)
		}
		for _, architecture := range []string{"amd64", "arm64"} {
			pulled, err := remote.Image(ref, remote.WithPlatform(v1.Platform{OS: "linux", Architecture: architecture}))
			if err != nil {
				t.Fatalf("%s for %s: %v", ref, architecture, err)
			}
			if got := config(t, pulled).Architecture; got != architecture {
				t.Errorf("%s for %s is of %s", ref, architecture, got)
			}
		}
	}
}

func TestBadConfigurationsAreNamed(t *testing.T) {
	for want, change := range map[string]func(*Config){
		"created: parsing time":                         func(c *Config) { c.Created = "yesterday" },
		`platform "windows/amd64": expected linux/ARCH`: func(c *Config) { c.Platforms = []string{"windows/amd64"} },
		"platform linux/riscv64: ":                      func(c *Config) { c.Platforms = []string{"linux/riscv64"} },
		"dhow-apiserver: what it is made of is not in it": func(c *Config) {
			if err := os.WriteFile(filepath.Join(c.Dist, "linux_amd64/bin/dhow-apiserver"), []byte("#!/bin/sh\n"), 0o755); err != nil {
				t.Fatal(err)
			}
		},
	} {
		c := world(t, "linux/amd64")
		change(&c)
		if _, err := Make(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want one that says %q", err, want)
		}
	}
}
