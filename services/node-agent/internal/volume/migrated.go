package volume

import (
	"context"
	"errors"
	"strings"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/pkg/csimigration"
)

// migratedInline makes a volume of a pod's own spec available whose plugin Kubernetes had built in, through the CSI driver that serves it now. It is attached,
// staged and published like a PersistentVolume, though it has no claim.
func (m *Manager) migratedInline(ctx context.Context, pod *corev1.Pod, v *corev1.Volume, s Sources) (string, error) {
	if m.persistent == nil {
		return "", errors.New("CSI volumes are not supported by this node")
	}
	pv, err := csimigration.Inline(v, pod.GetMetadata().GetNamespace())
	if err != nil {
		return "", err
	}
	if err := checkMode(pod, v.GetName(), false); err != nil {
		return "", err
	}
	return m.csiPersistent(ctx, pod, v, nil, pv, false, s)
}

// escaped is a volume's name as the name of a folder: those of volumes that were translated may have slashes.
func escaped(name string) string { return strings.ReplaceAll(name, "/", "~") }
