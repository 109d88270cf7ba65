package images

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"

	"dhow.dev/pkg/image"
)

// CSI is the image of the CSI driver for tests, with Kubernetes' own sidecars beside it.
const CSI = "csi:v1"

// AddCSI adds the image CSI: the driver is built from this repository, the sidecars from their modules by tools/csi-sidecars.sh, once.
func (r *Registry) AddCSI(ctx context.Context, repository, dir string) error {
	script, err := filepath.Abs(filepath.Join(repository, "tools", "csi-sidecars.sh"))
	if err != nil {
		return err
	}
	if out, err := exec.CommandContext(ctx, script).CombinedOutput(); err != nil {
		return fmt.Errorf("CSI sidecars: %w: %s", err, out)
	}
	driver, err := build(ctx, filepath.Join(repository, "services"), "./node-agent/internal/csi/foldersdriver", filepath.Join(dir, "foldersdriver"))
	if err != nil {
		return err
	}
	busybox, err := image.FindBusybox()
	if err != nil {
		return err
	}
	spec := image.Spec{Busybox: busybox, Files: []image.File{{Path: "/foldersdriver", Source: driver}}}
	for _, name := range []string{"csi-provisioner", "csi-attacher"} {
		source, err := filepath.Abs(filepath.Join(repository, "bin", "csi", name))
		if err != nil {
			return err
		}
		spec.Files = append(spec.Files, image.File{Path: "/" + name, Source: source})
	}
	img, err := image.Build(spec)
	if err != nil {
		return fmt.Errorf("image %s: %w", CSI, err)
	}
	if err := r.registry.Add(ctx, CSI, img); err != nil {
		return fmt.Errorf("image %s: %w", CSI, err)
	}
	return nil
}
