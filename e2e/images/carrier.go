package images

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"dhow.dev/pkg/image"
)

// Carrier is the name of the image that carries the others into a cluster: a pod of it serves them. CarrierProgram is its program (package carrier), beside a shell.
const (
	Carrier        = "e2e-images"
	CarrierProgram = "/carrier"
	carried        = "/registry"
)

// Image makes the image Carrier of what is in the registry.
func (r *Registry) Image(ctx context.Context, repository, dir string) (v1.Image, error) {
	program, err := build(ctx, filepath.Join(repository, "e2e"), "./images/carrier", filepath.Join(dir, "carrier"))
	if err != nil {
		return nil, err
	}
	busybox, err := image.FindBusybox()
	if err != nil {
		return nil, err
	}
	spec := image.Spec{Busybox: busybox, Files: []image.File{{Path: CarrierProgram, Source: program}}, Entrypoint: []string{CarrierProgram}, WorkingDir: carried}
	err = filepath.WalkDir(r.dir, func(file string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		inside, err := filepath.Rel(r.dir, file)
		spec.Files = append(spec.Files, image.File{Path: carried + "/" + filepath.ToSlash(inside), Source: file})
		return err
	})
	if err == nil && len(spec.Files) == 1 {
		err = errors.New("there are no images to carry")
	}
	if err != nil {
		return nil, err
	}
	return image.Build(spec)
}
