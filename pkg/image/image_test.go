package image

import (
	"archive/tar"
	"bytes"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

func entries(t *testing.T, spec Spec) map[string]*tar.Header {
	t.Helper()
	img, err := Build(spec)
	if err != nil {
		t.Fatal(err)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]*tar.Header{}
	for _, layer := range layers {
		content, err := layer.Uncompressed()
		if err != nil {
			t.Fatal(err)
		}
		for r := tar.NewReader(content); ; {
			h, err := r.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			found[h.Name] = h
		}
	}
	return found
}

func TestBuildLaysOutFiles(t *testing.T) {
	source := filepath.Join(t.TempDir(), "tool")
	if err := os.WriteFile(source, []byte("#!/bin/sh\n"), 0o750); err != nil {
		t.Fatal(err)
	}
	got := entries(t, Spec{Files: []File{
		{Path: "/opt/app/tool", Source: source, UID: 7},
		{Path: "/etc/motd", Content: []byte{}},
		{Path: "/run", Link: "/var/run"},
		{Path: "/tmp", Dir: true, Mode: 0o777 | fs.ModeSticky},
	}})
	for name, want := range map[string]struct {
		kind byte
		mode int64
	}{
		"opt/": {tar.TypeDir, 0o755}, "opt/app/": {tar.TypeDir, 0o755}, "opt/app/tool": {tar.TypeReg, 0o750},
		"etc/motd": {tar.TypeReg, 0o644}, "run": {tar.TypeSymlink, 0o777}, "tmp/": {tar.TypeDir, 0o1777},
	} {
		h := got[name]
		if h == nil || h.Typeflag != want.kind || h.Mode != want.mode {
			t.Errorf("%s: got %+v, want type %c mode %o", name, h, want.kind, want.mode)
		}
	}
	if got["opt/app/tool"].Uid != 7 {
		t.Errorf("owner of tool: got %d, want 7", got["opt/app/tool"].Uid)
	}
}

func TestBuildIsReproducible(t *testing.T) {
	spec := Spec{
		Files:      []File{{Path: "/b", Content: []byte("b")}, {Path: "/a/c", Content: []byte("c")}},
		Entrypoint: []string{"/b"}, Env: []string{"A=1"}, Labels: map[string]string{"x": "1", "y": "2"},
	}
	first, err := Build(spec)
	if err != nil {
		t.Fatal(err)
	}
	spec.Files[0], spec.Files[1] = spec.Files[1], spec.Files[0]
	second, err := Build(spec)
	if err != nil {
		t.Fatal(err)
	}
	a, errA := first.Digest()
	b, errB := second.Digest()
	if errA != nil || errB != nil || a != b {
		t.Fatalf("digests differ: %v (%v), %v (%v)", a, errA, b, errB)
	}
	config, err := first.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if config.OS != "linux" || config.Config.Env[1] != "A=1" || !strings.HasPrefix(config.Config.Env[0], "PATH=") {
		t.Errorf("configuration: %+v", config)
	}
}

func TestBuildRefusesBadFiles(t *testing.T) {
	for name, test := range map[string]struct {
		files []File
		want  string
	}{
		"relative":       {[]File{{Path: "a", Content: []byte("x")}}, "must be absolute"},
		"nothing":        {[]File{{Path: "/a"}}, "exactly one"},
		"two kinds":      {[]File{{Path: "/a", Dir: true, Link: "/b"}}, "exactly one"},
		"twice":          {[]File{{Path: "/a", Dir: true}, {Path: "/a/", Dir: true}}, "given twice"},
		"parent is file": {[]File{{Path: "/a", Content: []byte("x")}, {Path: "/a/b", Dir: true}}, "not a directory"},
		"missing source": {[]File{{Path: "/a", Source: "/nonexistent/file"}}, "no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := Build(Spec{Files: test.files}); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("got %v, want an error with %q", err, test.want)
			}
		})
	}
}

func TestDynamicEntryPointIsRefused(t *testing.T) {
	// Any Debian machine has a dynamically linked shell.
	spec := Spec{Files: []File{{Path: "/sh", Source: "/bin/sh"}}, Entrypoint: []string{"/sh"}}
	if _, err := Build(spec); err == nil || !strings.Contains(err.Error(), "dynamically linked") {
		t.Fatalf("got %v, want a refusal of the dynamic binary", err)
	}
}

func TestBusyboxImage(t *testing.T) {
	busybox, err := FindBusybox()
	if err != nil {
		t.Fatal(err)
	}
	got := entries(t, Spec{Busybox: busybox})
	if h := got["bin/sh"]; h == nil || h.Linkname != "/bin/busybox" {
		t.Errorf("bin/sh: got %+v, want a link to busybox", h)
	}
	if h := got["bin/busybox"]; h == nil || h.Typeflag != tar.TypeReg || h.Mode != 0o755 {
		t.Errorf("bin/busybox: got %+v", h)
	}
}

func TestWriteArchive(t *testing.T) {
	img, err := Build(Spec{Files: []File{{Path: "/hello", Content: []byte("hi")}}})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "image.tar")
	if err := WriteArchive(file, "dhow.test/hello:1", img); err != nil {
		t.Fatal(err)
	}
	tag, err := name.NewTag("dhow.test/hello:1")
	if err != nil {
		t.Fatal(err)
	}
	back, err := tarball.ImageFromPath(file, &tag)
	if err != nil {
		t.Fatal(err)
	}
	want, err := img.RawConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := back.RawConfigFile(); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("configuration read back: %s, %v; want %s", got, err, want)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 {
		t.Fatalf("folder holds %v (%v), want the archive only", left, err)
	}
	if err := WriteArchive(file, "no spaces allowed:1", img); err == nil {
		t.Fatal("a bad tag was accepted")
	}
}
