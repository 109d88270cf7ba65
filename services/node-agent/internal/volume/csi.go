package volume

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	storagev1 "dhow.dev/gen/go/dhow/storage/v1"
	"dhow.dev/services/node-agent/internal/csi"
	"dhow.dev/services/node-agent/internal/env"
)

// request is all that publishing a CSI volume to a pod depends on.
type request struct {
	pod     *corev1.Pod
	sources Sources
	driver  *csi.Driver
	info    *storagev1.CSIDriver // nil: the cluster knows nothing special of the driver
	record  *record

	// Of the volume.
	attributes     map[string]string
	publishContext map[string]string
	capability     *csispec.VolumeCapability
	fsType         string
	readOnly       bool
	writeOnce      bool
	stageSecret    *corev1.SecretReference
	publishSecret  *corev1.SecretReference
	expandSecret   *corev1.SecretReference
	claim          *corev1.PersistentVolumeClaim
	pv             *corev1.PersistentVolume
}

// driverInfo returns what the cluster knows of a driver; nil when it knows nothing.
func (m *Manager) driverInfo(ctx context.Context, name string) (*storagev1.CSIDriver, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	info, err := m.drivers.Get(ctx, "", name)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	return info, err
}

// csiPersistent makes a PersistentVolume available that a CSI driver has. Claim is nil for one that stands for a volume of the pod's own spec (migratedInline).
func (m *Manager) csiPersistent(ctx context.Context, pod *corev1.Pod, v *corev1.Volume, claim *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume, readOnly bool, s Sources) (string, error) {
	source, uid, name := pv.GetSpec().GetPersistentVolumeSource().GetCsi(), pod.GetMetadata().GetUid(), pv.GetMetadata().GetName()
	info, err := m.driverInfo(ctx, source.GetDriver())
	if err != nil {
		return "", err
	}
	r := &request{
		pod: pod, sources: s, info: info, claim: claim, pv: pv, attributes: source.GetVolumeAttributes(), fsType: source.GetFsType(), readOnly: readOnly || source.GetReadOnly(),
		stageSecret: source.GetNodeStageSecretRef(), publishSecret: source.GetNodePublishSecretRef(), expandSecret: source.GetNodeExpandSecretRef(),
		record: &record{SpecName: name, Driver: source.GetDriver(), Handle: source.GetVolumeHandle(), uid: uid, Block: pv.GetSpec().GetVolumeMode() == "Block",
			Attached: info == nil || !info.GetSpec().HasAttachRequired() || info.GetSpec().GetAttachRequired(), Republished: info.GetSpec().GetRequiresRepublish()},
	}
	if claim != nil {
		r.record.Claim = claim.GetMetadata().GetNamespace() + "/" + claim.GetMetadata().GetName()
	}
	if r.driver, err = m.config.Driver(source.GetDriver()); err != nil {
		return "", err
	}
	mode := ""
	if modes := pv.GetSpec().GetAccessModes(); len(modes) > 0 {
		mode = modes[0]
	}
	r.writeOnce = mode == "ReadWriteOnce" || mode == "ReadWriteOncePod"
	r.capability = &csispec.VolumeCapability{AccessMode: &csispec.VolumeCapability_AccessMode{Mode: accessMode(mode, r.driver)}}
	if r.record.Block {
		r.record.dir = filepath.Join(m.PodDir(uid), csiDevices, name)
		r.record.Target = filepath.Join(m.config.KubeletDir, "plugins/kubernetes.io/csi/volumeDevices/publish", name, uid)
		r.capability.AccessType = &csispec.VolumeCapability_Block{Block: &csispec.VolumeCapability_BlockVolume{}}
	} else {
		r.record.dir = filepath.Join(m.PodDir(uid), csiVolumes, escaped(name))
		r.record.Target = m.kubelet(filepath.Join(r.record.dir, "mount"))
		mount := &csispec.VolumeCapability_MountVolume{FsType: source.GetFsType(), MountFlags: pv.GetSpec().GetMountOptions()}
		if gid := fsGroup(pod); gid >= 0 && r.driver.SetsGroup() {
			mount.VolumeMountGroup = fmt.Sprint(gid)
		}
		if info.GetSpec().GetSeLinuxMount() {
			if r.record.Context, err = m.mountContext(pod, v.GetName(), pv); err != nil {
				return "", err
			}
			mount.MountFlags = withContext(mount.MountFlags, r.record.Context)
		}
		r.capability.AccessType = &csispec.VolumeCapability_Mount{Mount: mount}
	}
	if r.driver.Stages() {
		hash := fmt.Sprintf("%x", sha256.Sum256([]byte(source.GetVolumeHandle())))
		r.record.Staging = filepath.Join(m.config.KubeletDir, "plugins/kubernetes.io/csi", source.GetDriver(), hash, "globalmount")
		if r.record.Block {
			r.record.Staging = filepath.Join(m.config.KubeletDir, "plugins/kubernetes.io/csi/volumeDevices/staging", name)
		}
	}
	if r.record.Attached {
		if r.publishContext, err = m.attachment(ctx, r); err != nil {
			return "", err
		}
	}
	path, err := m.publish(ctx, r)
	if err != nil {
		return "", err
	}
	m.setReadOnly(uid, v.GetName(), r.readOnly)
	if err := m.relabelByMount(r, v.GetName(), path); err != nil {
		return "", err
	}
	if claim != nil {
		m.measure(uid, v.GetName(), measurable{namespace: claim.GetMetadata().GetNamespace(), claim: claim.GetMetadata().GetName(), path: path, block: r.record.Block, csi: r.record})
	}
	return path, nil
}

// accessMode converts Kubernetes' mode to the driver's.
func accessMode(mode string, d *csi.Driver) csispec.VolumeCapability_AccessMode_Mode {
	switch mode {
	case "ReadOnlyMany":
		return csispec.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY
	case "ReadWriteMany":
		return csispec.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER
	case "ReadWriteOncePod":
		if d.SingleWriter() {
			return csispec.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER
		}
	case "ReadWriteOnce":
		if d.SingleWriter() {
			return csispec.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER
		}
	}
	return csispec.VolumeCapability_AccessMode_SINGLE_NODE_WRITER
}

// attachment says that the node is about to use a volume, waits until it is attached and returns what the attacher said of it.
func (m *Manager) attachment(ctx context.Context, r *request) (map[string]string, error) {
	id := r.record.id()
	if err := m.use(id, r.record.uid); err != nil {
		return nil, err
	}
	if err := m.awaitAttached(ctx, id); err != nil {
		return nil, err
	}
	ask, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	name := fmt.Sprintf("csi-%x", sha256.Sum256([]byte(r.record.Handle+r.record.Driver+m.config.NodeName)))
	a, err := m.attachments.Get(ask, "", name)
	if err != nil {
		return nil, fmt.Errorf("volume attachment %s: %w", name, err)
	}
	if !a.GetStatus().GetAttached() {
		return nil, fmt.Errorf("volume attachment %s says that the volume is not attached", name)
	}
	return a.GetStatus().GetAttachmentMetadata(), nil
}

// csiInline makes a volume available that only the pod's spec describes.
func (m *Manager) csiInline(ctx context.Context, pod *corev1.Pod, v *corev1.Volume, s Sources) (string, error) {
	if m.persistent == nil {
		return "", errors.New("CSI volumes are not supported by this node")
	}
	source, uid := v.GetVolumeSource().GetCsi(), pod.GetMetadata().GetUid()
	info, err := m.driverInfo(ctx, source.GetDriver())
	if err != nil {
		return "", err
	}
	modes := info.GetSpec().GetVolumeLifecycleModes()
	if len(modes) == 0 {
		modes = []string{"Persistent"}
	}
	if !slices.Contains(modes, "Ephemeral") {
		return "", fmt.Errorf("volume mode \"Ephemeral\" not supported by driver %s (only supports %q)", source.GetDriver(), modes)
	}
	dir := filepath.Join(m.PodDir(uid), csiVolumes, v.GetName())
	r := &request{
		pod: pod, sources: s, info: info, attributes: source.GetVolumeAttributes(), fsType: source.GetFsType(), readOnly: source.GetReadOnly(), writeOnce: true,
		capability: &csispec.VolumeCapability{
			AccessMode: &csispec.VolumeCapability_AccessMode{Mode: csispec.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
			AccessType: &csispec.VolumeCapability_Mount{Mount: &csispec.VolumeCapability_MountVolume{FsType: source.GetFsType()}},
		},
		record: &record{
			SpecName: v.GetName(), Driver: source.GetDriver(), Handle: fmt.Sprintf("csi-%x", sha256.Sum256([]byte(uid+v.GetName()))), Republished: info.GetSpec().GetRequiresRepublish(),
			Target: m.kubelet(filepath.Join(dir, "mount")), dir: dir, uid: uid,
		},
	}
	if ref := source.GetNodePublishSecretRef(); ref != nil {
		r.publishSecret = &corev1.SecretReference{}
		r.publishSecret.SetName(ref.GetName())
		r.publishSecret.SetNamespace(pod.GetMetadata().GetNamespace())
	}
	if r.driver, err = m.config.Driver(source.GetDriver()); err != nil {
		return "", err
	}
	path, err := m.publish(ctx, r)
	if err != nil {
		return "", err
	}
	m.setReadOnly(uid, v.GetName(), r.readOnly)
	return path, m.relabelByMount(r, v.GetName(), path)
}

// publish stages a volume, unless it is, and publishes it to the pod. It returns where the agent finds it.
func (m *Manager) publish(ctx context.Context, r *request) (string, error) {
	defer m.lock(r.record.id())()
	target := m.Host(r.record.Target)
	there, err := isMountPoint(target)
	if err != nil {
		return "", err
	}
	if err := m.sameDriverContext(r.record); err != nil {
		return "", err
	}
	if err := m.alone(r.record.uid, r.pv); err != nil {
		return "", err
	}
	if err := r.record.save(); err != nil {
		return "", err
	}
	m.forgetUse(r.record.id(), r.record.uid)
	if there && !r.record.Republished {
		m.watchClaim(r.record.uid, r.claim)
		return target, m.expand(ctx, r, target)
	}
	if r.record.Staging != "" {
		if err := m.stage(ctx, r); err != nil {
			return "", err
		}
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o750); err != nil {
		return "", err
	}
	volumeContext, secrets, err := m.contextOf(ctx, r)
	if err != nil {
		return "", err
	}
	if err := r.driver.Publish(ctx, &csispec.NodePublishVolumeRequest{
		VolumeId: r.record.Handle, PublishContext: r.publishContext, StagingTargetPath: r.record.Staging, TargetPath: r.record.Target,
		VolumeCapability: r.capability, Readonly: r.readOnly, Secrets: secrets, VolumeContext: volumeContext,
	}); err != nil {
		return "", err
	}
	if _, err := os.Stat(target); err != nil {
		return "", fmt.Errorf("driver %s published the volume, but it is not there: does its pod mount %s/pods with mountPropagation Bidirectional? %w", r.record.Driver, m.config.KubeletDir, err)
	}
	if !there && m.givesGroup(r) {
		if err := setGroup(r.pod, target, r.readOnly); err != nil {
			return "", fmt.Errorf("fsGroup: %w", err)
		}
	}
	m.watchClaim(r.record.uid, r.claim)
	return target, m.expand(ctx, r, target)
}

// givesGroup says whether the agent changes the owner of a volume's files for the pod's fsGroup.
func (m *Manager) givesGroup(r *request) bool {
	if r.record.Block || r.driver.SetsGroup() {
		return false
	}
	switch r.info.GetSpec().GetFsGroupPolicy() {
	case "File":
		return true
	case "None":
		return false
	}
	return r.fsType != "" && r.writeOnce
}

func (m *Manager) stage(ctx context.Context, r *request) error {
	staging := m.Host(r.record.Staging)
	if err := os.MkdirAll(staging, 0o750); err != nil {
		return err
	}
	secrets, err := m.secret(ctx, r.stageSecret)
	if err != nil {
		return err
	}
	return r.driver.Stage(ctx, &csispec.NodeStageVolumeRequest{
		VolumeId: r.record.Handle, PublishContext: r.publishContext, StagingTargetPath: r.record.Staging, VolumeCapability: r.capability,
		Secrets: secrets, VolumeContext: r.attributes,
	})
}

// contextOf returns what a driver is told of a volume and the pod that it is for, and its secrets.
func (m *Manager) contextOf(ctx context.Context, r *request) (volumeContext, secrets map[string]string, err error) {
	volumeContext = map[string]string{}
	maps.Copy(volumeContext, r.attributes)
	spec, md := r.info.GetSpec(), r.pod.GetMetadata()
	if spec.GetPodInfoOnMount() {
		volumeContext["csi.storage.k8s.io/pod.name"] = md.GetName()
		volumeContext["csi.storage.k8s.io/pod.namespace"] = md.GetNamespace()
		volumeContext["csi.storage.k8s.io/pod.uid"] = md.GetUid()
		volumeContext["csi.storage.k8s.io/serviceAccount.name"] = r.pod.GetSpec().GetServiceAccountName()
		volumeContext["csi.storage.k8s.io/ephemeral"] = fmt.Sprint(r.pv == nil)
	}
	if secrets, err = m.secret(ctx, r.publishSecret); err != nil {
		return nil, nil, err
	}
	requests := spec.GetTokenRequests()
	if len(requests) == 0 {
		return volumeContext, secrets, nil
	}
	type token struct {
		Token   string `json:"token"`
		Expires string `json:"expirationTimestamp"`
	}
	tokens := map[string]token{}
	for _, q := range requests {
		seconds := int64(defaultTokenSeconds)
		if q.HasExpirationSeconds() {
			seconds = q.GetExpirationSeconds()
		}
		text, err := r.sources.Token(q.GetAudience(), seconds)
		if err != nil {
			return nil, nil, err
		}
		tokens[q.GetAudience()] = token{Token: text, Expires: expiry(text)}
	}
	text, err := json.Marshal(tokens)
	if err != nil {
		return nil, nil, err
	}
	const key = "csi.storage.k8s.io/serviceAccount.tokens"
	if spec.GetServiceAccountTokenInSecrets() {
		secrets = maps.Clone(secrets)
		if secrets == nil {
			secrets = map[string]string{}
		}
		secrets[key] = string(text)
	} else {
		volumeContext[key] = string(text)
	}
	return volumeContext, secrets, nil
}

// expiry reads when a token ends out of it; empty when it does not say.
func expiry(token string) string {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return ""
	}
	text, err := base64.RawURLEncoding.DecodeString(parts[1])
	var claims struct {
		Expires int64 `json:"exp"`
	}
	if err != nil || json.Unmarshal(text, &claims) != nil || claims.Expires == 0 {
		return ""
	}
	return time.Unix(claims.Expires, 0).UTC().Format(time.RFC3339)
}

// secret reads what a driver is to know of a Secret; no reference is no secret.
func (m *Manager) secret(ctx context.Context, ref *corev1.SecretReference) (map[string]string, error) {
	if ref == nil {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	s, err := m.secrets.Get(ctx, ref.GetNamespace(), ref.GetName())
	if apierrors.IsNotFound(err) {
		err = env.ErrMissing
	}
	if err != nil {
		return nil, fmt.Errorf("secret \"%s/%s\" %w", ref.GetNamespace(), ref.GetName(), err)
	}
	data := map[string]string{}
	for k, v := range s.GetData() {
		data[k] = string(v)
	}
	return data, nil
}

// forgetUse drops what use has noted: the disk knows it now.
func (m *Manager) forgetUse(id, uid string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.using[id], uid)
	if len(m.using[id]) == 0 {
		delete(m.using, id)
	}
}

// unpublishAll takes a pod's CSI volumes down, as the disk knows them.
func (m *Manager) unpublishAll(ctx context.Context, uid string) error {
	if m.persistent == nil {
		return nil
	}
	m.unwatchClaims(uid)
	all, err := m.records(uid)
	if err != nil {
		return err
	}
	var failed error
	for _, r := range all {
		if err := m.unpublish(ctx, r); err != nil {
			failed = errors.Join(failed, fmt.Errorf("UnmountVolume.TearDown failed for volume %q : %w", r.SpecName, err))
		}
	}
	// Also what the pod waited for and never got.
	m.mu.Lock()
	for id := range m.using {
		delete(m.using[id], uid)
		if len(m.using[id]) == 0 {
			delete(m.using, id)
		}
	}
	m.mu.Unlock()
	return errors.Join(failed, m.tellUse())
}

func (m *Manager) unpublish(ctx context.Context, r *record) error {
	defer m.lock(r.id())()
	driver, err := m.config.Driver(r.Driver)
	if err != nil {
		return err
	}
	if err := driver.Unpublish(ctx, r.Handle, r.Target); err != nil {
		return err
	}
	target := m.Host(r.Target)
	if err := leave(target); err != nil {
		return err
	}
	if r.Block {
		_ = os.Remove(filepath.Dir(target)) // the last pod's
	}
	if r.Staging != "" {
		last, err := m.isLast(r)
		if err != nil {
			return err
		}
		if last {
			if err := driver.Unstage(ctx, r.Handle, r.Staging); err != nil {
				return err
			}
			staging := m.Host(r.Staging)
			if err := leave(staging); err != nil {
				return err
			}
			if !r.Block {
				if err := os.Remove(filepath.Dir(staging)); err != nil && !errors.Is(err, fs.ErrNotExist) {
					return err
				}
			}
		}
	}
	// The record goes last: until then another agent would do all of this again.
	return os.RemoveAll(r.dir)
}

// leave removes what a volume was mounted on. It never reaches into a volume: what is still mounted is unmounted first, and only an empty folder goes.
func leave(path string) error {
	is, err := isMountPoint(path)
	if err != nil {
		return err
	}
	if is {
		if err := unmount(path); err != nil {
			return err
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// isLast says whether no other pod of the node has the volume.
func (m *Manager) isLast(r *record) (bool, error) {
	all, err := m.allRecords()
	if err != nil {
		return false, err
	}
	return !slices.ContainsFunc(all, func(o *record) bool { return o.id() == r.id() && o.dir != r.dir }), nil
}

// republish has the volumes published again, once a minute, whose drivers want that: they bring contents up to date in this way.
func (m *Manager) republish(ctx context.Context) {
	ticker := time.NewTicker(time.Minute)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		all, err := m.allRecords()
		if err != nil {
			continue // the next look tells
		}
		uids := map[string]bool{}
		for _, r := range all {
			if r.Republished {
				uids[r.uid] = true
			}
		}
		if len(uids) > 0 && m.config.Changed != nil {
			m.config.Changed(slices.Sorted(maps.Keys(uids)))
		}
	}
}
