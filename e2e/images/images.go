// Package images builds the images of the examples and tests from this repository, and serves them where a cluster's nodes find them.
package images

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"

	"dhow.dev/pkg/image"
)

// Name is the name under which the nodes of `dhow up` know a registry on the bridge's port Port.
const (
	Name = "registry.dhow:5000"
	Port = "5000"
)

// Registry holds the built images: `tools:v1`, a shell with busybox's programs, and `guestbook:v1` and `guestbook:v2`, two builds of the example.
type Registry struct {
	registry *image.Registry
}

// Build builds the images. Repository is this repository's folder; dir keeps what is built.
func Build(ctx context.Context, repository, dir string) (*Registry, error) {
	registry, err := image.NewRegistry(image.RegistryConfig{Dir: filepath.Join(dir, "registry")})
	if err != nil {
		return nil, err
	}
	busybox, err := image.FindBusybox()
	if err != nil {
		return nil, err
	}
	specs := map[string]image.Spec{"tools:v1": {Entrypoint: []string{"/bin/sh"}}}
	for _, version := range []string{"v1", "v2"} {
		binary := filepath.Join(dir, "guestbook-"+version)
		if binary, err = filepath.Abs(binary); err != nil {
			return nil, err
		}
		build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w -X main.version="+version, "-o", binary, "./guestbook/app")
		build.Dir = filepath.Join(repository, "examples")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("build guestbook %s: %w: %s", version, err, out)
		}
		specs["guestbook:"+version] = image.Spec{Files: []image.File{{Path: "/guestbook", Source: binary}}, Entrypoint: []string{"/guestbook"}}
	}
	for name, spec := range specs {
		spec.Busybox = busybox
		img, err := image.Build(spec)
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", name, err)
		}
		if err := registry.Add(ctx, name, img); err != nil {
			return nil, fmt.Errorf("image %s: %w", name, err)
		}
	}
	return &Registry{registry}, nil
}

// Start serves the images on a host's registry port until stop is called.
func (r *Registry) Start(host string) (stop func() error, err error) {
	listener, err := net.Listen("tcp", net.JoinHostPort(host, Port))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- r.registry.Serve(ctx, listener) }()
	return func() error { cancel(); return <-served }, nil
}
