package pod

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/services/node-agent/internal/cri"
	"dhow.dev/services/node-agent/internal/env"
)

// volumeOf returns a pod's volume, or nil.
func volumeOf(p *corev1.Pod, name string) *corev1.Volume {
	for _, v := range p.GetSpec().GetVolumes() {
		if v.GetName() == name {
			return v
		}
	}
	return nil
}

// images returns the images that are mounted into a container, by volume, pulled like any other.
func (w *worker) images(ctx context.Context, p *corev1.Pod, spec *corev1.Container, sandbox *runtimev1.PodSandboxConfig) (map[string]string, error) {
	var found map[string]string
	for _, m := range spec.GetVolumeMounts() {
		source := volumeOf(p, m.GetName()).GetVolumeSource().GetImage()
		if source == nil || found[m.GetName()] != "" {
			continue
		}
		if source.GetReference() == "" {
			return nil, configError(fmt.Errorf("volume %q names no image", m.GetName()))
		}
		img, err := w.pull(ctx, p, spec.GetName(), source.GetReference(), source.GetPullPolicy(), sandbox)
		if err != nil {
			return nil, err
		}
		if found == nil {
			found = map[string]string{}
		}
		found[m.GetName()] = img.ID
	}
	return found, nil
}

// asksForRecursion says whether a container wants read-only mounts that are so all the way down.
func asksForRecursion(spec *corev1.Container) bool {
	return slices.ContainsFunc(spec.GetVolumeMounts(), func(m *corev1.VolumeMount) bool {
		return m.GetRecursiveReadOnly() == "Enabled" || m.GetRecursiveReadOnly() == "IfPossible"
	})
}

// mountsRecursively says whether the runtime can mount read-only all the way down for a pod.
func (c *Config) mountsRecursively(ctx context.Context, p *corev1.Pod) (bool, error) {
	handler := ""
	if class := p.GetSpec().GetRuntimeClassName(); class != "" && c.Handlers != nil {
		handler, _ = c.Handlers(class)
	}
	status, err := c.Runtime.Status(ctx)
	if err != nil {
		return false, err
	}
	i := slices.IndexFunc(status.Handlers, func(h cri.Handler) bool { return h.Name == handler })
	return i >= 0 && status.Handlers[i].RecursiveReadOnlyMounts, nil
}

// setReadOnly makes a mount read-only as the container and the pod's claim ask for it. One that is already stays so.
func setReadOnly(mount *runtimev1.Mount, m *corev1.VolumeMount, p *corev1.Pod, recursion bool) error {
	mount.Readonly = mount.Readonly || m.GetReadOnly() || volumeOf(p, m.GetName()).GetVolumeSource().GetPersistentVolumeClaim().GetReadOnly()
	switch m.GetRecursiveReadOnly() {
	case "Enabled":
		if !recursion {
			return fmt.Errorf("failed to resolve recursive read-only mode: volumeMount %q requested recursive read-only mode, but it is not supported by the runtime", m.GetName())
		}
		mount.RecursiveReadOnly = true
	case "IfPossible":
		mount.RecursiveReadOnly = recursion && mount.Readonly
	}
	return nil
}

// devices are the block volumes of a container.
func devices(r run) ([]*runtimev1.Device, error) {
	var all []*runtimev1.Device
	for i, d := range r.container.GetVolumeDevices() {
		path, ok := r.volumes[d.GetName()]
		if !ok {
			return nil, fmt.Errorf("volumeDevices[%d]: the pod has no volume %q", i, d.GetName())
		}
		source := volumeOf(r.pod, d.GetName()).GetVolumeSource()
		if !source.HasPersistentVolumeClaim() && !source.HasEphemeral() {
			return nil, errors.New("volumeDevices: only volumes of claims can be block devices")
		}
		permissions := "mrw"
		if source.GetPersistentVolumeClaim().GetReadOnly() {
			permissions = "r"
		}
		all = append(all, &runtimev1.Device{ContainerPath: d.GetDevicePath(), HostPath: path, Permissions: permissions})
	}
	return all, nil
}

// subPath returns the part of a volume that a mount is of, with the container's variables in it. A variable that is not there is an error: what was meant
// would be another path.
func subPath(m *corev1.VolumeMount, variables []env.Variable) (string, error) {
	expression := m.GetSubPathExpr()
	if expression == "" {
		return m.GetSubPath(), nil
	}
	for _, name := range references(expression) {
		if !slices.ContainsFunc(variables, func(v env.Variable) bool { return v.Name == name }) {
			return "", fmt.Errorf("failed to expand subPath for volumeMount %q: missing value for %q", m.GetName(), name)
		}
	}
	return env.ExpandAll([]string{expression}, variables)[0], nil
}

// references returns the names in $(NAME) of an expression; $$ is a dollar.
func references(expression string) []string {
	var names []string
	for rest := strings.ReplaceAll(expression, "$$", ""); ; {
		_, after, ok := strings.Cut(rest, "$(")
		if !ok {
			return names
		}
		name, after, ok := strings.Cut(after, ")")
		if !ok {
			return names
		}
		names, rest = append(names, name), after
	}
}
