// Package release makes the images of one version of Dhow: it adds to the programs what an image needs beside them (root certificates, a list of
// what each program is made of), and builds each image by its Dockerfile.
package release

import (
	"bytes"
	"context"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/crypto/x509roots/fallback/bundle"

	"dhow.dev/deploy/internal/dockerfile"
	"dhow.dev/deploy/internal/sbom"
	"dhow.dev/pkg/image"
)

// contents are the images, and the Go programs in each, as paths below dist/OS_ARCH.
var contents = []struct {
	name     string
	programs []string
}{
	{"store", []string{"bin/dhow-store"}},
	{"apiserver", []string{"bin/dhow-apiserver"}},
	{"scheduler", []string{"bin/dhow-scheduler"}},
	{"controller-manager", []string{"bin/dhow-controller-manager"}},
	{"node-agent", []string{
		"bin/dhow-node-agent", "runtime/containerd", "runtime/containerd-shim-runc-v2", "runtime/ctr", "runtime/runc",
		"runtime/bridge", "runtime/host-local", "runtime/loopback", "runtime/portmap",
	}},
	{"dhow", []string{"bin/dhow", "bin/dhow-kubectl"}},
}

// Config says what to make and where. Dockerfiles has a folder for each image; Dist has the programs and gets the archives.
type Config struct {
	Dockerfiles, Dist          string
	Platforms                  []string // OS/ARCH
	Version, Revision, Created string   // Created is RFC 3339
	PlainHTTP                  bool
}

// Image is one image for every platform.
type Image struct {
	Name, Tag string
	Platforms []v1.Image
}

// Make builds every image. Equal programs, Dockerfiles and configurations give equal digests.
func Make(config Config) ([]Image, error) {
	created, err := time.Parse(time.RFC3339, config.Created)
	if err != nil {
		return nil, fmt.Errorf("created: %w", err)
	}
	images := make([]Image, len(contents))
	for i, c := range contents {
		images[i] = Image{Name: c.name, Tag: tag(config.Version)}
	}
	for _, platform := range config.Platforms {
		system, architecture, ok := strings.Cut(platform, "/")
		if !ok || system != "linux" {
			return nil, fmt.Errorf("platform %q: expected linux/ARCH", platform)
		}
		context := filepath.Join(config.Dist, system+"_"+architecture)
		if err := stage(context, config.Version); err != nil {
			return nil, fmt.Errorf("platform %s: %w", platform, err)
		}
		for i, c := range contents {
			spec, err := dockerfile.Read(filepath.Join(config.Dockerfiles, c.name, "Dockerfile"), dockerfile.Build{Context: context, Args: map[string]string{
				"VERSION": config.Version, "REVISION": config.Revision, "CREATED": config.Created,
			}})
			if err != nil {
				return nil, err
			}
			spec.Architecture, spec.Created = architecture, created
			img, err := image.Build(spec)
			if err != nil {
				return nil, fmt.Errorf("image %s for %s: %w", c.name, platform, err)
			}
			images[i].Platforms = append(images[i].Platforms, img)
		}
	}
	return images, nil
}

// tag makes a version a tag, which may not have every letter that a version may.
func tag(version string) string { return strings.ReplaceAll(version, "+", "_") }

// stage puts beside the programs what the images hold besides them.
func stage(context, version string) error {
	if err := os.MkdirAll(filepath.Join(context, "sbom"), 0o755); err != nil {
		return err
	}
	// For the folders that an image has and nothing is in.
	if err := os.MkdirAll(filepath.Join(context, "empty"), 0o755); err != nil {
		return err
	}
	var roots bytes.Buffer
	for root := range bundle.Roots() {
		// Constrained roots cannot be told in PEM: without their constraint they would be trusted for more than they are.
		if root.Constraint != nil {
			continue
		}
		if err := pem.Encode(&roots, &pem.Block{Type: "CERTIFICATE", Bytes: root.Certificate}); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(context, "ca-certificates.crt"), roots.Bytes(), 0o644); err != nil {
		return err
	}
	for _, c := range contents {
		var programs []string
		for _, program := range c.programs {
			programs = append(programs, filepath.Join(context, program))
		}
		document, err := sbom.Of(c.name, version, programs...)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(context, "sbom", c.name+".cdx.json"), document, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// Push uploads the image to PREFIX/name:tag.
func (i Image) Push(ctx context.Context, prefix string, config Config) error {
	reference := strings.TrimSuffix(prefix, "/") + "/" + i.Name + ":" + i.Tag
	return image.PushIndex(ctx, reference, i.Platforms, image.PushOptions{PlainHTTP: config.PlainHTTP})
}

// Write makes an archive of each platform: DIST/images/NAME_OS_ARCH.tar, which `docker load`, `ctr images import` and `kind load image-archive` read.
func (i Image) Write(config Config) error {
	folder := filepath.Join(config.Dist, "images")
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	for n, img := range i.Platforms {
		file := strings.ReplaceAll(i.Name+"_"+config.Platforms[n], "/", "_") + ".tar"
		if err := image.WriteArchive(filepath.Join(folder, file), i.reference(), img); err != nil {
			return err
		}
	}
	return nil
}

// reference is the image's name where no registry is named.
func (i Image) reference() string { return "dhow.dev/" + i.Name + ":" + i.Tag }

// String tells the image's name and digests.
func (i Image) String() string {
	parts := []string{i.reference()}
	for _, img := range i.Platforms {
		file, err := img.ConfigFile()
		if err != nil {
			return err.Error()
		}
		digest, err := img.Digest()
		if err != nil {
			return err.Error()
		}
		size, err := size(img)
		if err != nil {
			return err.Error()
		}
		parts = append(parts, fmt.Sprintf("%s/%s %s %.1f MB", file.OS, file.Architecture, digest, float64(size)/1e6))
	}
	return strings.Join(parts, "  ")
}

// size is what is sent when the image is pulled.
func size(img v1.Image) (int64, error) {
	layers, err := img.Layers()
	if err != nil {
		return 0, err
	}
	var total int64
	for _, layer := range layers {
		n, err := layer.Size()
		if err != nil {
			return 0, err
		}
		total += n
	}
	return total, nil
}
