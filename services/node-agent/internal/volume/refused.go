package volume

import (
	"errors"
	"fmt"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
)

// errGitRepo is what Kubernetes' nodes say since v1.33; in v1.36 the gate cannot be opened any more.
var errGitRepo = errors.New("git-repo volume plugin has been disabled, as in Kubernetes v1.36; clone in an init container into an emptyDir")

// unmatched is a volume of a kind whose plugin Kubernetes has removed. Its pod waits, and says so, as on Kubernetes' nodes.
type unmatched struct {
	// spec is the name of the PersistentVolume, or of the volume in the pod.
	spec string
}

func (u unmatched) Error() string {
	return fmt.Sprintf("failed to get Plugin from volumeSpec for volume %q err=no volume plugin matched", u.spec)
}

// setupError is what a pod's event says of a volume that could not be set up, in Kubernetes' words.
func setupError(v *corev1.Volume, err error) error {
	if u, ok := errors.AsType[unmatched](err); ok {
		return fmt.Errorf("Unable to attach or mount volumes: unmounted volumes=[%s], unattached volumes=[], failed to process volumes=[%s]: %w", v.GetName(), v.GetName(), u) //nolint:staticcheck // Kubernetes' words
	}
	return fmt.Errorf("MountVolume.SetUp failed for volume %q : %w", v.GetName(), err) //nolint:staticcheck // Kubernetes' words
}

// isRemoved says whether Kubernetes has removed the plugin of a pod's volume.
func isRemoved(s *corev1.VolumeSource) bool {
	return s.HasGlusterfs() || s.HasRbd() || s.HasCephfs() || s.HasFlocker() || s.HasQuobyte() || s.HasPhotonPersistentDisk() || s.HasScaleIo() || s.HasStorageos()
}

// isRemovedPersistent says it of a PersistentVolume.
func isRemovedPersistent(s *corev1.PersistentVolumeSource) bool {
	return s.HasGlusterfs() || s.HasRbd() || s.HasCephfs() || s.HasFlocker() || s.HasQuobyte() || s.HasPhotonPersistentDisk() || s.HasScaleIo() || s.HasStorageos()
}
