package volume

import (
	"context"
	"fmt"
	"slices"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
)

// attachedName is what a volume that nodes reach by themselves is called in their statuses, as Kubernetes calls it; empty: it needs no leave to be used. The controller
// that gives the leave has the same names (services/controller-manager/internal/attachdetach/driverless.go).
func attachedName(s *corev1.PersistentVolumeSource) string {
	switch i, f := s.GetIscsi(), s.GetFc(); {
	case s.HasIscsi():
		return fmt.Sprintf("kubernetes.io/iscsi/%s:%s:%d", i.GetTargetPortal(), i.GetIqn(), i.GetLun())
	case len(f.GetTargetWwns()) > 0 && f.HasLun():
		return fmt.Sprintf("kubernetes.io/fc/%v:%d", f.GetTargetWwns(), f.GetLun())
	case len(f.GetWwids()) > 0:
		return fmt.Sprintf("kubernetes.io/fc/%v", f.GetWwids())
	}
	return ""
}

// leaveToMount says that the node is about to use a volume, and waits until one version of the Node says both that and that the volume is attached: nothing
// but the node's own word keeps another from getting the volume, so the word has to be out before the disk is touched.
func (m *Manager) leaveToMount(ctx context.Context, r *mountRecord) error {
	if r.Attached == "" {
		return nil
	}
	if stands, err := r.stands(); err != nil || stands {
		return err
	}
	if err := m.use(r.Attached, r.uid); err != nil {
		return err
	}
	return m.awaitNode(ctx, func() bool { return m.attached[r.Attached] && m.reported[r.Attached] })
}

// stands says whether a volume was made available in this run of the machine, and still is. It takes over the device that it had.
func (r *mountRecord) stands() (bool, error) {
	before, err := readMountRecord(r.file())
	if err != nil || before == nil {
		return false, err
	}
	now, err := boot()
	if err != nil || before.Boot != now {
		return false, err
	}
	if before.Device != "" {
		r.Device = before.Device
	}
	if !before.Done || r.Context != before.Context || r.Attached != before.Attached {
		return false, nil
	}
	return r.there()
}

// namesInUse are the attached volumes that the node uses: what is about to be used, and what the disk knows. In this order, for what is about to be
// used is on the disk before it is forgotten.
func (m *Manager) namesInUse() ([]string, error) {
	m.mu.Lock()
	var names []string
	for id := range m.using {
		names = append(names, id)
	}
	m.mu.Unlock()
	uids, err := m.Pods()
	if err != nil {
		return nil, err
	}
	for _, uid := range uids {
		published, err := m.records(uid)
		if err != nil {
			return nil, err
		}
		for _, r := range published {
			if r.Attached {
				names = append(names, r.id())
			}
		}
		mounted, err := m.mountRecords(uid)
		if err != nil {
			return nil, err
		}
		for _, r := range mounted {
			if r.Attached != "" {
				names = append(names, r.Attached)
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}
