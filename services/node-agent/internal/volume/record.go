package volume

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Folders below a pod's own in which Kubernetes' tools look for the volumes of CSI drivers.
const (
	csiVolumes = "volumes/kubernetes.io~csi"
	csiDevices = "volumeDevices/kubernetes.io~csi"
	recordFile = "vol_data.json"
)

// record is what the disk remembers of a CSI volume of a pod, so that an agent that knows nothing can take it down. It is written before the driver is asked
// for anything. Paths are as drivers know them.
type record struct {
	SpecName string `json:"specVolID"`
	Driver   string `json:"driverName"`
	Handle   string `json:"volumeHandle"`
	Block    bool   `json:"block,omitempty"`
	// Target is where the volume is published, Staging where it is staged for all pods of the node; empty: it is not.
	Target  string `json:"target"`
	Staging string `json:"staging,omitempty"`
	// Attached says that it had to be attached to the node.
	Attached bool `json:"attached,omitempty"`
	// Republished says that the driver wants to be asked again and again.
	Republished bool `json:"republished,omitempty"`
	// Context is the SELinux context that it is mounted with.
	Context string `json:"seLinuxMountContext,omitempty"`
	// Claim is namespace/name of the claim, empty for a volume that the pod's own spec describes.
	Claim string `json:"claim,omitempty"`

	dir string // of the record
	uid string // of the pod
}

// id tells volumes apart on the node.
func (r *record) id() string { return "kubernetes.io/csi/" + r.Driver + "^" + r.Handle }

// save writes the record so that a crash leaves the whole of it or none.
func (r *record) save() error {
	if err := os.MkdirAll(r.dir, 0o750); err != nil {
		return err
	}
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	name := filepath.Join(r.dir, recordFile)
	if have, err := os.ReadFile(name); err == nil && string(have) == string(text) {
		return nil
	}
	if err := os.WriteFile(name+".new", text, 0o600); err != nil {
		return err
	}
	return os.Rename(name+".new", name)
}

// records returns the CSI volumes of a pod that the disk knows of.
func (m *Manager) records(uid string) ([]*record, error) {
	var all []*record
	for _, kind := range []string{csiVolumes, csiDevices} {
		dir := filepath.Join(m.PodDir(uid), kind)
		entries, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			r := &record{dir: filepath.Join(dir, e.Name()), uid: uid}
			text, err := os.ReadFile(filepath.Join(r.dir, recordFile))
			if errors.Is(err, fs.ErrNotExist) {
				continue // nothing was asked of the driver yet
			}
			if err != nil {
				return nil, err
			}
			if err := json.Unmarshal(text, r); err != nil {
				return nil, fmt.Errorf("%s: %w", filepath.Join(r.dir, recordFile), err)
			}
			all = append(all, r)
		}
	}
	return all, nil
}

// ofAllPods collects what the disk has of each pod.
func ofAllPods[R any](m *Manager, of func(uid string) ([]R, error)) ([]R, error) {
	uids, err := m.Pods()
	if err != nil {
		return nil, err
	}
	var all []R
	for _, uid := range uids {
		some, err := of(uid)
		if err != nil {
			return nil, err
		}
		all = append(all, some...)
	}
	return all, nil
}

// allRecords returns the CSI volumes of all pods.
func (m *Manager) allRecords() ([]*record, error) { return ofAllPods(m, m.records) }

// Host returns where the agent finds a path below the folder that drivers and users know as the kubelet's: in its own data folder, so that several
// nodes may share a machine. Other paths are the machine's.
func (m *Manager) Host(path string) string {
	if m.config.DataDir == "" {
		return path
	}
	if clean := filepath.Clean(path); clean == m.config.KubeletDir || strings.HasPrefix(clean, m.config.KubeletDir+"/") {
		return filepath.Join(m.config.DataDir, strings.TrimPrefix(clean, m.config.KubeletDir))
	}
	return path
}

// kubelet is the reverse of Host for a path below the data folder.
func (m *Manager) kubelet(path string) string {
	if rest, ok := strings.CutPrefix(path, m.config.DataDir+"/"); ok {
		return filepath.Join(m.config.KubeletDir, rest)
	}
	return path
}
