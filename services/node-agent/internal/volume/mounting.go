package volume

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/services/node-agent/internal/env"
)

// Volumes that the agent mounts by itself with the machine's programs (NFS shares, iSCSI and Fibre Channel disks, local block devices, what FlexVolume drivers
// have) go one way: a device is attached and staged once for all pods of the node, and published to each pod. What differs is in a backend each.

const (
	// mountRecords below a pod's folder has a file for each such volume of the pod.
	mountRecords = "volume-records"
	// pluginMounts below the agent's folder is where volumes are staged; Kubernetes' place.
	pluginMounts = "plugins/kubernetes.io"
	// mountOptionsAnnotation is the older way to say what mountOptions of a PersistentVolume says, and goes before it.
	mountOptionsAnnotation = "volume.beta.kubernetes.io/mount-options"
)

// Kinds of such volumes, as they are called in paths.
const (
	kindLocal = "local-volume"
	kindNFS   = "nfs"
	kindISCSI = "iscsi"
	kindFC    = "fc"
	kindFlex  = "flexvolume"
)

// backend is one kind of such volumes. Whatever it does may have been done already, wholly or in part, by an agent that was killed.
type backend interface {
	// attach makes the volume's device appear on the node and returns it; empty: it has none.
	attach(ctx context.Context, v *mounting) (device string, err error)
	// stage mounts the attached device at the record's Staging.
	stage(ctx context.Context, v *mounting) error
	// publish makes the volume appear at the record's Target for the pod.
	publish(ctx context.Context, v *mounting) error
	// The rest undoes these, knowing nothing but the record.
	unpublish(ctx context.Context, r *mountRecord) error
	unstage(ctx context.Context, r *mountRecord) error
	detach(ctx context.Context, r *mountRecord) error
}

func (m *Manager) backend(kind string) (backend, error) {
	switch kind {
	case kindLocal:
		return localDevices{disks{m}}, nil
	case kindNFS:
		return shares{m}, nil
	case kindISCSI:
		return iscsiDisks{disks{m}}, nil
	case kindFC:
		return fibreChannelDisks{disks{m}}, nil
	case kindFlex:
		return flexVolumes{disks{m}}, nil
	}
	return nil, fmt.Errorf("volumes of kind %q are not known to this agent", kind)
}

// mountRecord is what the disk remembers of such a volume of a pod. It is written before anything is done, and removed after all is undone. It has no secrets.
type mountRecord struct {
	Kind string `json:"kind"`
	// Name is the PersistentVolume's, or the volume's in the pod.
	Name string `json:"name"`
	// ID tells volumes that are attached apart on the node; empty: this one is the pod's alone.
	ID string `json:"id,omitempty"`
	// Target is where the pod has it; empty: where it is staged. Staging is where the node has it mounted; empty: nowhere.
	Target  string `json:"target,omitempty"`
	Staging string `json:"staging,omitempty"`
	Device  string `json:"device,omitempty"`
	Block   bool   `json:"block,omitempty"`
	// Attached is the volume's name in the Node's status, which has to say that it is attached; empty: it has not.
	Attached string `json:"attached,omitempty"`
	// Context is the SELinux context that it is mounted with.
	Context string `json:"seLinuxMountContext,omitempty"`
	// Boot is the machine's run in which it was done, as far as it was; Done says that it was to the end.
	Boot string `json:"boot"`
	Done bool   `json:"done,omitempty"`

	ISCSI *iscsiTarget `json:"iscsi,omitempty"`
	FC    *fcTarget    `json:"fc,omitempty"`
	Flex  *flexRecord  `json:"flex,omitempty"`
	// Grown is the size that the volume was last made, in bytes, when its file system had yet to follow.
	Grown int64 `json:"grown,omitempty"`

	dir string // of records
	uid string // of the pod
}

func (r *mountRecord) file() string { return filepath.Join(r.dir, r.Kind+"~"+r.Name+".json") }

func (r *mountRecord) save() error {
	if err := os.MkdirAll(r.dir, 0o750); err != nil {
		return err
	}
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if err := os.WriteFile(r.file()+".new", text, 0o600); err != nil {
		return err
	}
	return os.Rename(r.file()+".new", r.file())
}

// mounting is all that making such a volume available to a pod depends on.
type mounting struct {
	pod     *corev1.Pod
	sources Sources
	record  *mountRecord
	// pv is nil for a volume in a pod's own spec.
	pv *corev1.PersistentVolume
	// share is what is mounted where there is no device.
	share string
	// options are those of the PersistentVolume.
	options  []string
	fsType   string
	readOnly bool
	// group says that the pod's fsGroup gets the volume.
	group bool
	// secret is what the backend's programs are to know of the Secret that secretRef names, which has to be of secretType if that says one.
	secret     map[string]string
	secretRef  *corev1.SecretReference
	secretType string
	flex       *flexRequest
}

// described is a volume as its spec describes it, be it in a pod or in a PersistentVolume.
type described struct {
	pod     *corev1.Pod
	sources Sources
	name    string
	// pv is nil for a volume in a pod's own spec.
	pv *corev1.PersistentVolume
	// readOnly is what the pod's use of the claim says.
	readOnly bool
	// volume is its name in the pod.
	volume string
}

func (d *described) block() bool { return d.pv.GetSpec().GetVolumeMode() == "Block" }

// mountOptions are those that a PersistentVolume names.
func (d *described) mountOptions() []string {
	if text, ok := d.pv.GetMetadata().GetAnnotations()[mountOptionsAnnotation]; ok {
		return strings.Split(text, ",")
	}
	return d.pv.GetSpec().GetMountOptions()
}

// mounting begins a mounting. Staging is relative to the folder of the kind; empty for what is published without being staged.
func (m *Manager) mounting(d *described, kind, staging string) *mounting {
	uid := d.pod.GetMetadata().GetUid()
	r := &mountRecord{Kind: kind, Name: d.name, Block: d.block(), dir: filepath.Join(m.PodDir(uid), mountRecords), uid: uid}
	if staging != "" {
		r.ID = kind + "/" + staging
		if !r.Block {
			r.Staging = filepath.Join(m.config.DataDir, pluginMounts, kind, staging)
		}
	}
	if !r.Block {
		r.Target = filepath.Join(m.PodDir(uid), "volumes", "kubernetes.io~"+kind, d.name)
	}
	return &mounting{pod: d.pod, sources: d.sources, record: r, pv: d.pv, options: d.mountOptions(), readOnly: d.readOnly}
}

// mountByKind makes a volume available that the agent mounts by itself; false: the source is of another kind.
func (m *Manager) mountByKind(ctx context.Context, d *described, source *corev1.PersistentVolumeSource) (path string, is bool, err error) {
	var v *mounting
	relabel := false
	switch {
	case source.HasNfs():
		v, err = m.nfs(d, source.GetNfs())
	case source.HasIscsi():
		v = m.iscsi(d, source.GetIscsi())
	case source.HasFc():
		v, err = m.fibreChannel(d, source.GetFc())
	case source.HasFlexVolume():
		if v, err = m.flexVolume(ctx, d, source.GetFlexVolume()); err == nil {
			relabel = v.flex.driver.capabilities.SELinuxRelabel
		}
	default:
		return "", false, nil
	}
	if err != nil {
		return "", true, err
	}
	if v.record.Block && v.record.Kind != kindISCSI && v.record.Kind != kindFC {
		return "", true, fmt.Errorf("volume %s has volumeMode Block, which volumes of kind %s cannot have", d.name, v.record.Kind)
	}
	if v.record.Kind == kindISCSI || v.record.Kind == kindFC {
		if v.record.Context, err = m.mountContext(d.pod, d.volume, d.pv); err != nil {
			return "", true, err
		}
		relabel = v.record.Context == ""
		v.record.Attached = attachedName(source)
	}
	if path, err = m.mountVolume(ctx, v); err != nil {
		return "", true, err
	}
	m.setRelabel(v.record.uid, d.volume, relabel && !v.readOnly)
	m.setReadOnly(v.record.uid, d.volume, v.readOnly)
	return path, true, nil
}

// ReadOnly says whether a volume of a pod, by its name in the pod, may only be read, whatever its containers ask for. A runtime would make a mount that is
// read-only writable again for a container that does not say so.
func (m *Manager) ReadOnly(uid, volume string) bool {
	if m.persistent == nil {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.readOnly[uid][volume]
}

func (m *Manager) setReadOnly(uid, volume string, readOnly bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.readOnly[uid] == nil {
		m.readOnly[uid] = map[string]bool{}
	}
	m.readOnly[uid][volume] = readOnly
}

// mountInline makes a volume available that only the pod's spec describes; false: it is of another kind.
func (m *Manager) mountInline(ctx context.Context, pod *corev1.Pod, v *corev1.Volume, s Sources) (path string, is bool, err error) {
	source := persistentSource(v.GetVolumeSource())
	if source == nil {
		return "", false, nil
	}
	if m.persistent == nil {
		return "", true, errors.New("volumes that have to be mounted are not supported by this node")
	}
	return m.mountByKind(ctx, &described{pod: pod, sources: s, name: v.GetName(), volume: v.GetName()}, source)
}

// persistentSource is what a PersistentVolume would say of a pod's own volume; nil: it is of a kind that is not mounted here.
func persistentSource(s *corev1.VolumeSource) *corev1.PersistentVolumeSource {
	switch {
	case s.HasNfs():
		return corev1.PersistentVolumeSource_builder{Nfs: s.GetNfs()}.Build()
	case s.HasFc():
		return corev1.PersistentVolumeSource_builder{Fc: s.GetFc()}.Build()
	case s.HasIscsi():
		i := s.GetIscsi()
		return corev1.PersistentVolumeSource_builder{Iscsi: corev1.ISCSIPersistentVolumeSource_builder{
			TargetPortal: proto.String(i.GetTargetPortal()), Iqn: proto.String(i.GetIqn()), Lun: proto.Int32(i.GetLun()), IscsiInterface: proto.String(i.GetIscsiInterface()),
			FsType: proto.String(i.GetFsType()), ReadOnly: proto.Bool(i.GetReadOnly()), Portals: i.GetPortals(), ChapAuthDiscovery: proto.Bool(i.GetChapAuthDiscovery()),
			ChapAuthSession: proto.Bool(i.GetChapAuthSession()), SecretRef: secretInPod(i.GetSecretRef()), InitiatorName: proto.String(i.GetInitiatorName()),
		}.Build()}.Build()
	case s.HasFlexVolume():
		f := s.GetFlexVolume()
		return corev1.PersistentVolumeSource_builder{FlexVolume: corev1.FlexPersistentVolumeSource_builder{
			Driver: proto.String(f.GetDriver()), FsType: proto.String(f.GetFsType()), SecretRef: secretInPod(f.GetSecretRef()), ReadOnly: proto.Bool(f.GetReadOnly()), Options: f.GetOptions(),
		}.Build()}.Build()
	}
	return nil
}

// mountVolume attaches, stages and publishes a volume, as far as that is not done, and returns where the pod has it.
func (m *Manager) mountVolume(ctx context.Context, v *mounting) (string, error) {
	r := v.record
	b, err := m.backend(r.Kind)
	if err != nil {
		return "", err
	}
	// What a spec says must not lead out of the folder of its kind.
	if place := strings.TrimPrefix(r.ID, r.Kind+"/"); r.ID != "" && (!filepath.IsLocal(place) || filepath.Clean(place) != place) {
		return "", fmt.Errorf("%s volume %s: %q cannot be a path", r.Kind, r.Name, place)
	}
	// Not while the volume is locked: a pod that ends may have to let go of it first.
	if err := m.leaveToMount(ctx, r); err != nil {
		return "", err
	}
	defer m.lock(r.lock())()
	if stands, err := r.stands(); err != nil || stands {
		return r.path(), err
	}
	if r.Boot, err = boot(); err != nil {
		return "", err
	}
	if err := m.sameContext(r); err != nil {
		return "", err
	}
	if err := m.alone(r.uid, v.pv); err != nil {
		return "", err
	}
	if v.secret, err = m.secretOf(ctx, v); err != nil {
		return "", err
	}
	if err := r.save(); err != nil {
		return "", err
	}
	m.forgetUse(r.Attached, r.uid)
	if r.ID != "" {
		if r.Device, err = b.attach(ctx, v); err != nil {
			return "", err
		}
		if err := r.save(); err != nil {
			return "", err
		}
		if r.Staging != "" {
			if is, err := isMountPoint(r.Staging); err != nil {
				return "", err
			} else if !is {
				if err := os.MkdirAll(r.Staging, 0o750); err != nil {
					return "", err
				}
				if err := b.stage(ctx, v); err != nil {
					return "", err
				}
			}
		}
	}
	if r.Target != "" {
		if is, err := isMountPoint(r.Target); err != nil {
			return "", err
		} else if !is {
			if err := os.MkdirAll(r.Target, 0o750); err != nil {
				return "", err
			}
			if err := b.publish(ctx, v); err != nil {
				_ = os.Remove(r.Target) // stays when the failure left a mount
				return "", err
			}
		}
		if v.group && !v.readOnly {
			if err := setGroup(v.pod, r.Target, false); err != nil {
				return "", fmt.Errorf("fsGroup: %w", err)
			}
		}
	}
	r.Done = true
	return r.path(), r.save()
}

// lock names what one thing at a time is done with.
func (r *mountRecord) lock() string {
	if r.ID != "" {
		return r.ID
	}
	return r.uid + "/" + r.Kind + "/" + r.Name
}

// path is where the agent finds the volume.
func (r *mountRecord) path() string {
	switch {
	case r.Block:
		return r.Device
	case r.Target != "":
		return r.Target
	}
	return r.Staging
}

// there says whether a volume that was made available still is.
func (r *mountRecord) there() (bool, error) {
	if r.Block {
		return isDevice(r.Device), nil
	}
	// A FlexVolume driver need not mount anything; that it was asked has to do.
	if r.Kind == kindFlex {
		_, err := os.Lstat(r.Target)
		return err == nil, nil
	}
	return isMountPoint(r.path())
}

// unmountAll undoes all that was done for the volumes of a pod, as the disk knows them.
func (m *Manager) unmountAll(ctx context.Context, uid string) error {
	if m.persistent == nil {
		return nil
	}
	all, err := m.mountRecords(uid)
	if err != nil {
		return err
	}
	var failed error
	for _, r := range all {
		if err := m.unmountVolume(ctx, r); err != nil {
			failed = errors.Join(failed, fmt.Errorf("UnmountVolume.TearDown failed for volume %q : %w", r.Name, err))
		}
	}
	return errors.Join(failed, m.tellUse())
}

func (m *Manager) unmountVolume(ctx context.Context, r *mountRecord) error {
	b, err := m.backend(r.Kind)
	if err != nil {
		return err
	}
	defer m.lock(r.lock())()
	if r.Target != "" {
		if err := b.unpublish(ctx, r); err != nil {
			return err
		}
	}
	if r.ID != "" {
		others, err := m.otherMounts(r)
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(others, func(o *mountRecord) bool { return o.ID == r.ID }) {
			if r.Staging != "" {
				if err := b.unstage(ctx, r); err != nil {
					return err
				}
			}
			if err := b.detach(ctx, r); err != nil {
				return err
			}
		}
	}
	if err := os.Remove(r.file()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func readMountRecord(file string) (*mountRecord, error) {
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	r := &mountRecord{}
	if err := json.Unmarshal(text, r); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return r, nil
}

// mountRecords returns the volumes of a pod that the disk knows of.
func (m *Manager) mountRecords(uid string) ([]*mountRecord, error) {
	dir := filepath.Join(m.PodDir(uid), mountRecords)
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var all []*mountRecord
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".json") {
			continue // was not written whole
		}
		r, err := readMountRecord(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}
		if r != nil {
			r.dir, r.uid = dir, uid
			all = append(all, r)
		}
	}
	return all, nil
}

// otherMounts returns the volumes of the node beside one.
func (m *Manager) otherMounts(than *mountRecord) ([]*mountRecord, error) {
	all, err := ofAllPods(m, m.mountRecords)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(o *mountRecord) bool { return o.file() == than.file() }), nil
}

// boot tells this run of the machine from others.
func boot() (string, error) {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(text)), err
}

// secretOf reads the Secret that a volume's spec names; without a namespace it is the pod's.
func (m *Manager) secretOf(ctx context.Context, v *mounting) (map[string]string, error) {
	ref, kind := v.secretRef, v.secretType
	if ref.GetName() == "" {
		return nil, nil
	}
	ref = proto.Clone(ref).(*corev1.SecretReference)
	if ref.GetNamespace() == "" {
		ref.SetNamespace(v.pod.GetMetadata().GetNamespace())
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	s, err := m.secrets.Get(ctx, ref.GetNamespace(), ref.GetName())
	if apierrors.IsNotFound(err) {
		err = env.ErrMissing
	}
	if err != nil {
		return nil, fmt.Errorf("couldn't get secret %s/%s: %w", ref.GetNamespace(), ref.GetName(), err)
	}
	if kind != "" && s.GetType() != kind {
		return nil, fmt.Errorf("couldn't get secret %s/%s: it is of type %q, and has to be of type %q", ref.GetNamespace(), ref.GetName(), s.GetType(), kind)
	}
	data := map[string]string{}
	for k, v := range s.GetData() {
		data[k] = string(v)
	}
	return data, nil
}

// secretInPod is a reference to a Secret of the pod's namespace.
func secretInPod(ref *corev1.LocalObjectReference) *corev1.SecretReference {
	if ref == nil {
		return nil
	}
	return corev1.SecretReference_builder{Name: proto.String(ref.GetName())}.Build()
}

// joined puts options of mount(8) together as Kubernetes does: each once, in order of the alphabet.
func joined(options ...[]string) []string {
	all := slices.Concat(options...)
	slices.Sort(all)
	return slices.Compact(all)
}
