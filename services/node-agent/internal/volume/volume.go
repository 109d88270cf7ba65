// Package volume makes the volumes of pods: emptyDir, hostPath, configMap, secret, downwardAPI and projected by itself, and those of claims, which are folders of
// the node (local, hostPath) or what a CSI driver publishes.
//
// A pod's volumes live in DIR/<uid>/volumes/<kind>/<name>. Volumes made from objects are updated in place, atomically, while the pod runs; those
// with secret content are kept in memory (tmpfs) and never reach the disk.
package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/api/resource"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/pkg/csimigration"
	"dhow.dev/services/node-agent/internal/downward"
)

// Sources is where contents come from. ConfigMap and Secret return an object of the pod's namespace, or env.ErrMissing.
type Sources struct {
	Facts     downward.Facts
	ConfigMap func(name string) (*corev1.ConfigMap, error)
	Secret    func(name string) (*corev1.Secret, error)
	// Token returns a token of the pod's service account for an audience; empty: the API server.
	Token func(audience string, seconds int64) (string, error)
	// Trust returns the certificates that a volume asks for, in PEM.
	Trust func(*corev1.ClusterTrustBundleProjection) ([]byte, error)
	// Event tells the user what happens to a volume. Nil: nobody is told.
	Event func(warning bool, reason, message string)
}

func (s Sources) event(warning bool, reason, message string) {
	if s.Event != nil {
		s.Event(warning, reason, message)
	}
}

// Manager makes and removes volumes below one folder.
type Manager struct {
	dir string
	// persistent is nil in a manager that knows neither claims nor drivers.
	*persistent
}

// New returns a manager whose pods' folders are in dir, and that knows neither claims nor drivers.
func New(dir string) *Manager { return &Manager{dir: dir} }

// PodDir is the folder of everything that the node keeps for a pod.
func (m *Manager) PodDir(uid string) string { return filepath.Join(m.dir, uid) }

func (m *Manager) volumeDir(uid, kind, name string) string {
	return filepath.Join(m.PodDir(uid), "volumes", kind, name)
}

// Folders of the kinds.
const (
	kindEmptyDir  = "empty-dir"
	kindConfigMap = "config-map"
	kindSecret    = "secret"
	kindDownward  = "downward-api"
	kindProjected = "projected"
	subPaths      = "volume-subpaths"
)

// Setup makes all volumes of a pod, or brings those made from objects up to date, and returns where each is on the host by name. The error is
// that of the first volume that failed, and names it.
//
// An image volume is not here: the runtime mounts it.
func (m *Manager) Setup(ctx context.Context, pod *corev1.Pod, s Sources) (map[string]string, error) {
	paths := map[string]string{}
	for _, v := range pod.GetSpec().GetVolumes() {
		if v.GetVolumeSource().HasImage() {
			continue
		}
		path, err := m.setup(ctx, pod, v, s)
		if err != nil {
			return nil, setupError(v, err)
		}
		paths[v.GetName()] = path
	}
	return paths, nil
}

// Update brings the volumes made from objects up to date, and those of CSI drivers that grow or want to be published again. It says whether
// contents changed that the agent writes.
func (m *Manager) Update(ctx context.Context, pod *corev1.Pod, s Sources) (bool, error) {
	changed := false
	var failed error
	for _, v := range pod.GetSpec().GetVolumes() {
		source := v.GetVolumeSource()
		if m.persistent != nil && (source.HasPersistentVolumeClaim() || source.HasEphemeral() || source.HasCsi() || csimigration.IsInline(source)) {
			if _, err := m.setup(ctx, pod, v, s); err != nil {
				failed = errors.Join(failed, fmt.Errorf("MountVolume.SetUp failed for volume %q : %w", v.GetName(), err))
			}
			continue
		}
		if !source.HasConfigMap() && !source.HasSecret() && !source.HasDownwardApi() && !source.HasProjected() {
			continue
		}
		wrote, err := m.objects(pod, v, s)
		changed = changed || wrote
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("MountVolume.SetUp failed for volume %q : %w", v.GetName(), err))
		}
	}
	return changed, failed
}

func (m *Manager) setup(ctx context.Context, pod *corev1.Pod, v *corev1.Volume, s Sources) (string, error) {
	uid, source := pod.GetMetadata().GetUid(), v.GetVolumeSource()
	switch {
	case source.HasEmptyDir():
		dir := m.volumeDir(uid, kindEmptyDir, v.GetName())
		m.setRelabel(uid, v.GetName(), true)
		return dir, m.emptyDir(pod, v.GetName(), source.GetEmptyDir(), dir, s)
	case source.HasHostPath():
		return m.hostPath(source.GetHostPath())
	case source.HasPersistentVolumeClaim(), source.HasEphemeral():
		return m.claimed(ctx, pod, v, s)
	case source.HasCsi():
		return m.csiInline(ctx, pod, v, s)
	case csimigration.IsInline(source):
		return m.migratedInline(ctx, pod, v, s)
	case source.HasConfigMap(), source.HasSecret(), source.HasDownwardApi(), source.HasProjected():
		m.setRelabel(uid, v.GetName(), true)
		_, err := m.objects(pod, v, s)
		return m.objectsDir(uid, v), err
	}
	if path, is, err := m.mountInline(ctx, pod, v, s); is {
		return path, err
	}
	if source.HasGitRepo() {
		return "", errGitRepo
	}
	if isRemoved(source) {
		return "", unmatched{spec: v.GetName()}
	}
	return "", errors.New("this kind of volume is not supported by the node; use a claim, csi, emptyDir, hostPath, configMap, secret, downwardAPI, projected, image, nfs, iscsi, fc or flexVolume")
}

func (m *Manager) objectsDir(uid string, v *corev1.Volume) string {
	source := v.GetVolumeSource()
	kind := kindProjected
	switch {
	case source.HasConfigMap():
		kind = kindConfigMap
	case source.HasSecret():
		kind = kindSecret
	case source.HasDownwardApi():
		kind = kindDownward
	}
	return m.volumeDir(uid, kind, v.GetName())
}

func (m *Manager) emptyDir(pod *corev1.Pod, name string, e *corev1.EmptyDirVolumeSource, dir string, s Sources) error {
	var limit resource.Quantity
	if e.HasSizeLimit() {
		var err error
		if limit, err = resource.ParseQuantity(e.GetSizeLimit().GetString()); err != nil {
			return fmt.Errorf("sizeLimit %q: %w", e.GetSizeLimit().GetString(), err)
		}
	}
	switch medium := e.GetMedium(); {
	case medium == "":
		if m.persistent != nil && limit.Sign() > 0 {
			m.limit(pod.GetMetadata().GetUid(), limited{name: name, dir: dir, limit: limit})
		}
		// What the pod has made of it since is the pod's: a restarted agent must not set modes again.
		if _, err := os.Stat(dir); err == nil {
			return nil
		}
	case medium == "Memory":
		if is, err := mounted(dir); err != nil || is {
			return err
		}
		if err := mountMemory(dir, memorySize(pod, limit.Value(), s.Facts), 0o777); err != nil {
			return err
		}
		return open(pod, dir)
	case medium == "HugePages" || strings.HasPrefix(medium, "HugePages-"):
		if is, err := mounted(dir); err != nil || is {
			return err
		}
		if err := mountHugePages(pod, dir, medium); err != nil {
			return err
		}
		return open(pod, dir)
	default:
		return fmt.Errorf("emptyDir.medium %q is not supported by the node; use \"\", Memory, HugePages or HugePages-SIZE", medium)
	}
	// Complete under another name first, so that a crash in between does not pass for a finished folder.
	unfinished := dir + ".new"
	if err := os.MkdirAll(unfinished, 0o777); err != nil {
		return err
	}
	if err := open(pod, unfinished); err != nil {
		return err
	}
	return os.Rename(unfinished, dir)
}

// open lets everyone in the pod write to a folder.
func open(pod *corev1.Pod, dir string) error {
	mode := os.FileMode(0o777)
	if gid := fsGroup(pod); gid >= 0 {
		if err := os.Chown(dir, -1, int(gid)); err != nil {
			return err
		}
		mode |= os.ModeSetgid
	}
	return os.Chmod(dir, mode) // not subject to the umask
}

func fsGroup(pod *corev1.Pod) int64 {
	if c := pod.GetSpec().GetSecurityContext(); c.HasFsGroup() {
		return c.GetFsGroup()
	}
	return -1
}

// hostPath returns where a path of the host is, after it has checked or made what the type says. An empty type checks nothing.
func (m *Manager) hostPath(h *corev1.HostPathVolumeSource) (string, error) {
	path := h.GetPath()
	if m.persistent != nil {
		path = m.Host(path)
	}
	return path, checkHostPath(path, h.GetType())
}

func checkHostPath(path, kind string) error {
	if !filepath.IsAbs(path) || slices.Contains(strings.Split(path, "/"), "..") {
		return fmt.Errorf("hostPath.path %q must be absolute and without ..", path)
	}
	info, err := os.Stat(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	there := err == nil
	switch kind {
	case "":
		return nil
	case "DirectoryOrCreate":
		if !there {
			return os.MkdirAll(path, 0o755)
		}
		return expect(path, "directory", info.IsDir())
	case "FileOrCreate":
		if !there {
			f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o644)
			if err != nil {
				return err
			}
			return f.Close()
		}
		return expect(path, "file", info.Mode().IsRegular())
	}
	if !there {
		return fmt.Errorf("hostPath type check failed: %s does not exist", path)
	}
	switch kind {
	case "Directory":
		return expect(path, "directory", info.IsDir())
	case "File":
		return expect(path, "file", info.Mode().IsRegular())
	case "Socket":
		return expect(path, "socket file", info.Mode()&os.ModeSocket != 0)
	case "CharDevice":
		return expect(path, "character device", info.Mode()&os.ModeCharDevice != 0)
	case "BlockDevice":
		return expect(path, "block device", info.Mode()&os.ModeDevice != 0 && info.Mode()&os.ModeCharDevice == 0)
	}
	return fmt.Errorf("hostPath.type %q is not known", kind)
}

func expect(path, what string, is bool) error {
	if is {
		return nil
	}
	return fmt.Errorf("hostPath type check failed: %s is not a %s", path, what)
}

// Teardown takes down and removes everything of a pod's volumes. hostPath volumes are the user's and stay, and so does what is in volumes of claims. What is
// mounted is found on the disk and in the table of mounts, not guessed: a restarted agent knows nothing of it.
func (m *Manager) Teardown(ctx context.Context, uid string) error {
	if m.persistent != nil {
		m.mu.Lock()
		delete(m.limits, uid)
		delete(m.measured, uid)
		delete(m.relabels, uid)
		delete(m.readOnly, uid)
		m.mu.Unlock()
	}
	// Parts of volumes are mounts of their own, and would keep a driver from unmounting the whole.
	if err := UnmountBelow(filepath.Join(m.PodDir(uid), subPaths)); err != nil {
		return err
	}
	if err := m.unpublishAll(ctx, uid); err != nil {
		return err
	}
	if err := m.unmountAll(ctx, uid); err != nil {
		return err
	}
	if err := m.Unmount(uid); err != nil {
		return err
	}
	for _, part := range []string{"volumes", "volumeDevices", subPaths, mountRecords, heldAlone} {
		if err := os.RemoveAll(filepath.Join(m.PodDir(uid), part)); err != nil {
			return err
		}
	}
	return nil
}

// Unmount unmounts everything below a pod's folder, without asking drivers.
func (m *Manager) Unmount(uid string) error { return UnmountBelow(m.PodDir(uid)) }

// UnmountBelow unmounts everything below a folder, deepest first.
func UnmountBelow(dir string) error {
	below, err := mountsBelow(dir)
	if err != nil {
		return err
	}
	for _, path := range slices.Backward(below) {
		if err := unmount(path); err != nil {
			return err
		}
	}
	return nil
}

// Remove tears a pod's volumes down and removes its folder.
func (m *Manager) Remove(ctx context.Context, uid string) error {
	if err := m.Teardown(ctx, uid); err != nil {
		return err
	}
	return os.RemoveAll(m.PodDir(uid))
}

// Pods returns the UIDs of pods that have a folder.
func (m *Manager) Pods() ([]string, error) {
	entries, err := os.ReadDir(m.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var uids []string
	for _, e := range entries {
		if e.IsDir() {
			uids = append(uids, e.Name())
		}
	}
	return uids, nil
}

// unescape undoes mountinfo's octal escapes.
func unescape(path string) string {
	if !strings.Contains(path, `\`) {
		return path
	}
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(path)
}

// makeLike makes a folder below a volume, with those above it, that is for whom the volume is.
func makeLike(root *os.Root, sub string) error {
	info, err := root.Stat(".")
	if err != nil {
		return err
	}
	mode := info.Mode() & (fs.ModePerm | fs.ModeSetgid | fs.ModeSticky)
	path := ""
	for part := range strings.SplitSeq(filepath.Clean(sub), "/") {
		path = filepath.Join(path, part)
		err := root.Mkdir(path, 0o750)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err == nil {
			err = root.Chmod(path, mode) // not subject to the umask
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// SubPath returns the host's path for a subPath of a volume. What the path names is opened below the volume without ever leaving it, whatever
// links a container has put there, and bind-mounted to a place of its own, so that it cannot be exchanged afterwards. A missing folder is made.
func (m *Manager) SubPath(uid, volumePath, volumeName, container string, index int, sub string) (string, error) {
	if !filepath.IsLocal(sub) {
		return "", fmt.Errorf("subPath %q must be relative and stay inside the volume", sub)
	}
	root, err := os.OpenRoot(volumePath)
	if err != nil {
		return "", fmt.Errorf("subPath %q: %w", sub, err)
	}
	defer func() { _ = root.Close() }()
	info, err := root.Stat(sub)
	if errors.Is(err, fs.ErrNotExist) {
		if err := makeLike(root, sub); err != nil {
			return "", fmt.Errorf("subPath %q: %w", sub, err)
		}
		info, err = root.Stat(sub)
	}
	if err != nil {
		return "", fmt.Errorf("subPath %q: %w", sub, err)
	}
	dir, err := unix.Open(volumePath, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("subPath %q: %w", sub, err)
	}
	defer func() { _ = unix.Close(dir) }()
	fd, err := unix.Openat2(dir, sub, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS})
	if err != nil {
		return "", fmt.Errorf("subPath %q: %w", sub, err)
	}
	defer func() { _ = unix.Close(fd) }()
	target := filepath.Join(m.PodDir(uid), subPaths, volumeName, container, fmt.Sprint(index))
	if err := unmount(target); err != nil {
		return "", err
	}
	if info.IsDir() {
		err = os.MkdirAll(target, 0o750)
	} else if err = os.MkdirAll(filepath.Dir(target), 0o750); err == nil {
		err = os.WriteFile(target, nil, 0o640)
	}
	if err != nil {
		return "", err
	}
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", fd), target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return "", fmt.Errorf("subPath %q: bind mount: %w", sub, err)
	}
	return target, nil
}
