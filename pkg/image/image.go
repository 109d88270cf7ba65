// Package image makes OCI images out of local files, without a container runtime and without a base image from elsewhere,
// writes them as archives or to registries, and serves them from a small registry of its own (Registry).
//
// Images are reproducible: the same Spec over the same files gives the same digest, because every time stamp and owner is fixed.
package image

import (
	"archive/tar"
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// File is one entry of an image's file system. Exactly one of Source, Content, Link and Dir says what it is.
type File struct {
	// Path is the absolute path inside the image.
	Path string
	// Source is a regular file on this machine.
	Source string
	// Content is the file's content itself; an empty, non-nil slice makes an empty file.
	Content []byte
	// Link makes a symbolic link with this target.
	Link string
	// Dir makes an empty directory.
	Dir bool
	// Mode holds permission bits, with os.ModeSticky and the like. Zero means: that of Source, 0755 for a directory, 0644 otherwise.
	Mode fs.FileMode
	// UID and GID own the entry.
	UID, GID int
}

// Spec describes an image. The zero Spec is an empty image for this machine's architecture.
type Spec struct {
	// Busybox, when set, is a static busybox on this machine: it becomes the bottom layer, with a link for every applet, /tmp,
	// /root and the user database, so that the image has a shell and can be looked into.
	Busybox string
	Files   []File

	Entrypoint   []string
	Cmd          []string
	Env          []string // KEY=value
	WorkingDir   string
	User         string
	Labels       map[string]string
	ExposedPorts []string // "8080/tcp"
	StopSignal   string
	// Architecture is a GOARCH value; empty means this machine's.
	Architecture string
	// Created is shown as the image's age. Zero: not known.
	Created time.Time
}

// Build makes the image. Files that have to run in it without a C library (Busybox, and the entry point when it is one of Files) must be
// static: a dynamic one is refused here, because its only symptom at run time is "no such file or directory".
func Build(spec Spec) (v1.Image, error) {
	var layers []v1.Layer
	if spec.Busybox != "" {
		files, err := busyboxFiles(spec.Busybox)
		if err != nil {
			return nil, err
		}
		layer, err := buildLayer(files)
		if err != nil {
			return nil, fmt.Errorf("busybox layer: %w", err)
		}
		layers = append(layers, layer)
	}
	if len(spec.Files) > 0 {
		for _, f := range spec.Files {
			if f.Source != "" && len(spec.Entrypoint) > 0 && path.Clean(f.Path) == path.Clean(spec.Entrypoint[0]) {
				if err := checkStatic(f.Source); err != nil {
					return nil, fmt.Errorf("entry point %s: %w", f.Path, err)
				}
			}
		}
		layer, err := buildLayer(spec.Files)
		if err != nil {
			return nil, err
		}
		layers = append(layers, layer)
	}

	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err := mutate.AppendLayers(img, layers...)
	if err != nil {
		return nil, fmt.Errorf("assemble layers: %w", err)
	}
	file, err := img.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("image configuration: %w", err)
	}
	file = file.DeepCopy()
	file.OS = "linux"
	file.Architecture = spec.Architecture
	if file.Architecture == "" {
		file.Architecture = runtime.GOARCH
	}
	file.Created = v1.Time{Time: spec.Created}
	file.Config = v1.Config{
		Entrypoint: spec.Entrypoint,
		Cmd:        spec.Cmd,
		Env:        withPath(spec.Env),
		WorkingDir: spec.WorkingDir,
		User:       spec.User,
		Labels:     spec.Labels,
		StopSignal: spec.StopSignal,
	}
	if len(spec.ExposedPorts) > 0 {
		file.Config.ExposedPorts = make(map[string]struct{}, len(spec.ExposedPorts))
		for _, port := range spec.ExposedPorts {
			file.Config.ExposedPorts[port] = struct{}{}
		}
	}
	img, err = mutate.ConfigFile(img, file)
	if err != nil {
		return nil, fmt.Errorf("image configuration: %w", err)
	}
	return img, nil
}

// WriteArchive writes the image as a tar archive under the given tag, in the format that `docker load` and `ctr images import` read.
// The file appears whole or not at all.
func WriteArchive(file, tag string, img v1.Image) error {
	ref, err := name.NewTag(tag, name.StrictValidation)
	if err != nil {
		return fmt.Errorf("image tag %q: %w", tag, err)
	}
	tmp, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+".*")
	if err != nil {
		return fmt.Errorf("write image archive: %w", err)
	}
	defer os.Remove(tmp.Name()) // fails after the rename, as it should
	if err := errors.Join(tarball.Write(ref, img, tmp), tmp.Chmod(0o644), tmp.Sync(), tmp.Close()); err != nil {
		return fmt.Errorf("write image archive %s: %w", file, err)
	}
	return os.Rename(tmp.Name(), file)
}

// PushOptions says how to reach a registry.
type PushOptions struct {
	// PlainHTTP is for registries without TLS, on addresses that are private to this machine.
	PlainHTTP bool
}

// Push uploads the image to the registry that the reference names ("10.0.0.1:5000/web:v1"). Blobs that are there already are not sent again.
func Push(ctx context.Context, reference string, img v1.Image, opts PushOptions) error {
	ref, err := opts.reference(reference)
	if err != nil {
		return err
	}
	if err := remote.Write(ref, img, remote.WithContext(ctx)); err != nil {
		return fmt.Errorf("push %s: %w", reference, err)
	}
	return nil
}

// PushIndex uploads images of one program for several platforms under one reference: who pulls it gets the one of its own.
func PushIndex(ctx context.Context, reference string, images []v1.Image, opts PushOptions) error {
	ref, err := opts.reference(reference)
	if err != nil {
		return err
	}
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, img := range images {
		file, err := img.ConfigFile()
		if err != nil {
			return fmt.Errorf("push %s: image configuration: %w", reference, err)
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{
			Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: file.OS, Architecture: file.Architecture}},
		})
	}
	if err := remote.WriteIndex(ref, index, remote.WithContext(ctx)); err != nil {
		return fmt.Errorf("push %s: %w", reference, err)
	}
	return nil
}

func (o PushOptions) reference(reference string) (name.Reference, error) {
	parse := []name.Option{name.StrictValidation}
	if o.PlainHTTP {
		parse = append(parse, name.Insecure)
	}
	ref, err := name.ParseReference(reference, parse...)
	if err != nil {
		return nil, fmt.Errorf("image reference %q: %w", reference, err)
	}
	return ref, nil
}

// withPath adds the search path that every runtime expects to find in an image.
func withPath(env []string) []string {
	if slices.ContainsFunc(env, func(e string) bool { return strings.HasPrefix(e, "PATH=") }) {
		return env
	}
	return append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, env...)
}

// checkStatic refuses executables that need a dynamic loader. Files in other formats (scripts) pass.
func checkStatic(file string) error {
	f, err := elf.Open(file)
	var format *elf.FormatError
	if errors.As(err, &format) || errors.Is(err, io.EOF) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return fmt.Errorf("%s is dynamically linked and cannot start in an image without a C library: build it statically (for Go: CGO_ENABLED=0)", file)
		}
	}
	return nil
}

// buildLayer writes the files, sorted, with every missing parent directory, as one gzipped layer.
func buildLayer(files []File) (v1.Layer, error) {
	entries := make(map[string]File, len(files))
	for _, f := range files {
		if !path.IsAbs(f.Path) || path.Clean(f.Path) == "/" {
			return nil, fmt.Errorf("file %q: path inside the image must be absolute", f.Path)
		}
		kinds := 0
		for _, set := range []bool{f.Source != "", f.Content != nil, f.Link != "", f.Dir} {
			if set {
				kinds++
			}
		}
		if kinds != 1 {
			return nil, fmt.Errorf("file %q: give exactly one of Source, Content, Link and Dir", f.Path)
		}
		f.Path = path.Clean(f.Path)
		if _, twice := entries[f.Path]; twice {
			return nil, fmt.Errorf("file %q: given twice", f.Path)
		}
		entries[f.Path] = f
	}
	for _, f := range files {
		for dir := path.Dir(path.Clean(f.Path)); dir != "/"; dir = path.Dir(dir) {
			if have, ok := entries[dir]; !ok {
				entries[dir] = File{Path: dir, Dir: true}
			} else if !have.Dir {
				return nil, fmt.Errorf("file %q: its parent %q is not a directory", f.Path, dir)
			}
		}
	}
	paths := make([]string, 0, len(entries))
	for p := range entries {
		paths = append(paths, p)
	}
	sort.Strings(paths)

	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, p := range paths {
		if err := writeEntry(w, entries[p]); err != nil {
			return nil, fmt.Errorf("file %q: %w", p, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(buf.Bytes())), nil
	}, tarball.WithMediaType(types.OCILayer))
}

func writeEntry(w *tar.Writer, f File) error {
	header := &tar.Header{Name: strings.TrimPrefix(f.Path, "/"), Uid: f.UID, Gid: f.GID, Format: tar.FormatPAX}
	mode := f.Mode
	var content io.Reader
	switch {
	case f.Dir:
		header.Typeflag, header.Name = tar.TypeDir, header.Name+"/"
		if mode == 0 {
			mode = 0o755
		}
	case f.Link != "":
		header.Typeflag, header.Linkname = tar.TypeSymlink, f.Link
		mode = 0o777
	case f.Source != "":
		src, err := os.Open(f.Source)
		if err != nil {
			return err
		}
		defer src.Close()
		info, err := src.Stat()
		if err != nil {
			return err
		}
		if !info.Mode().IsRegular() {
			return fmt.Errorf("source %s is not a regular file", f.Source)
		}
		if mode == 0 {
			mode = info.Mode().Perm()
		}
		header.Typeflag, header.Size, content = tar.TypeReg, info.Size(), src
	default:
		if mode == 0 {
			mode = 0o644
		}
		header.Typeflag, header.Size, content = tar.TypeReg, int64(len(f.Content)), bytes.NewReader(f.Content)
	}
	header.Mode = tarMode(mode)
	if err := w.WriteHeader(header); err != nil {
		return err
	}
	if content == nil {
		return nil
	}
	_, err := io.Copy(w, content)
	return err
}

// tarMode translates Go's mode bits, which keep set-id and sticky elsewhere than Unix does.
func tarMode(mode fs.FileMode) int64 {
	bits := int64(mode.Perm())
	if mode&fs.ModeSetuid != 0 {
		bits |= 0o4000
	}
	if mode&fs.ModeSetgid != 0 {
		bits |= 0o2000
	}
	if mode&fs.ModeSticky != 0 {
		bits |= 0o1000
	}
	return bits
}
