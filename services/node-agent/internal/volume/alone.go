package volume

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
)

// heldAlone below a pod's folder has a mark for each volume that the pod has for itself, by name.
const heldAlone = "volumes-alone"

// errInUse is Kubernetes' text.
var errInUse = errors.New("volume uses the ReadWriteOncePod access mode and is already in use by another pod")

// alone lets one pod of the node at a time have a volume whose one access mode is ReadWriteOncePod. The scheduler sees to that before; this is for pods that name their node. The mark goes when
// nothing of the pod is mounted any more, and stays on the disk until then: an agent that starts finds it.
func (m *Manager) alone(uid string, pv *corev1.PersistentVolume) error {
	if !slices.Equal(pv.GetSpec().GetAccessModes(), []string{oncePod}) {
		return nil
	}
	name := pv.GetMetadata().GetName()
	defer m.lock(heldAlone + "/" + name)()
	uids, err := m.Pods()
	if err != nil {
		return err
	}
	for _, other := range uids {
		if other == uid {
			continue
		}
		switch _, err := os.Stat(filepath.Join(m.PodDir(other), heldAlone, name)); {
		case err == nil:
			return errInUse
		case !errors.Is(err, fs.ErrNotExist):
			return err
		}
	}
	return os.MkdirAll(filepath.Join(m.PodDir(uid), heldAlone, name), 0o750)
}
