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

// Registry holds the built images: `tools:v1`, a shell, and `guestbook:v1` and `guestbook:v2`, two builds of the example. Each has /bin/fetch (package fetch) and busybox.
type Registry struct {
	registry *image.Registry
	dir      string
}

// Build builds the images. Repository is this repository's folder; dir keeps what is built.
func Build(ctx context.Context, repository, dir string) (*Registry, error) {
	folder := filepath.Join(dir, "registry")
	registry, err := image.NewRegistry(image.RegistryConfig{Dir: folder})
	if err != nil {
		return nil, err
	}
	busybox, err := image.FindBusybox()
	if err != nil {
		return nil, err
	}
	fetch := image.File{Path: "/bin/fetch"}
	if fetch.Source, err = build(ctx, filepath.Join(repository, "e2e"), "./images/fetch", filepath.Join(dir, "fetch")); err != nil {
		return nil, err
	}
	specs := map[string]image.Spec{"tools:v1": {Files: []image.File{fetch}, Entrypoint: []string{"/bin/sh"}}}
	for _, version := range []string{"v1", "v2"} {
		binary, err := build(ctx, filepath.Join(repository, "examples"), "./guestbook/app", filepath.Join(dir, "guestbook-"+version), "-ldflags", "-s -w -X main.version="+version)
		if err != nil {
			return nil, err
		}
		specs["guestbook:"+version] = image.Spec{Files: []image.File{fetch, {Path: "/guestbook", Source: binary}}, Entrypoint: []string{"/guestbook"}}
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
	return &Registry{registry: registry, dir: folder}, nil
}

// build builds a static program of a module's folder and returns its path.
func build(ctx context.Context, module, pkg, binary string, flags ...string) (string, error) {
	binary, err := filepath.Abs(binary)
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, "go", append(append([]string{"build", "-trimpath"}, flags...), "-o", binary, pkg)...)
	cmd.Dir = module
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w: %s", pkg, err, out)
	}
	return binary, nil
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
