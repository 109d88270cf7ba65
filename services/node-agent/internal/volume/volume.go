// Package volume makes the volumes of pods: emptyDir, hostPath, configMap, secret, downwardAPI and projected.
//
// A pod's volumes live in DIR/<uid>/volumes/<kind>/<name>. Volumes made from objects are updated in place, atomically, while the pod runs; those
// with secret content are kept in memory (tmpfs) and never reach the disk.
package volume

import (
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
	"dhow.dev/services/node-agent/internal/downward"
)

// Sources is where contents come from. ConfigMap and Secret return an object of the pod's namespace, or env.ErrMissing.
type Sources struct {
	Facts     downward.Facts
	ConfigMap func(name string) (*corev1.ConfigMap, error)
	Secret    func(name string) (*corev1.Secret, error)
	// Token returns a token of the pod's service account for an audience; empty: the API server.
	Token func(audience string, seconds int64) (string, error)
}

// Manager makes and removes volumes below one folder.
type Manager struct {
	dir string
}

// New returns a manager whose pods' folders are in dir.
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
func (m *Manager) Setup(pod *corev1.Pod, s Sources) (map[string]string, error) {
	paths := map[string]string{}
	for _, v := range pod.GetSpec().GetVolumes() {
		path, err := m.setup(pod, v, s)
		if err != nil {
			return nil, fmt.Errorf("MountVolume.SetUp failed for volume %q : %w", v.GetName(), err)
		}
		paths[v.GetName()] = path
	}
	return paths, nil
}

// Update brings the volumes made from objects up to date. It says whether anything changed.
func (m *Manager) Update(pod *corev1.Pod, s Sources) (bool, error) {
	changed := false
	var failed error
	for _, v := range pod.GetSpec().GetVolumes() {
		source := v.GetVolumeSource()
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

func (m *Manager) setup(pod *corev1.Pod, v *corev1.Volume, s Sources) (string, error) {
	uid, source := pod.GetMetadata().GetUid(), v.GetVolumeSource()
	switch {
	case source.HasEmptyDir():
		dir := m.volumeDir(uid, kindEmptyDir, v.GetName())
		return dir, m.emptyDir(pod, source.GetEmptyDir(), dir)
	case source.HasHostPath():
		return source.GetHostPath().GetPath(), hostPath(source.GetHostPath())
	case source.HasConfigMap(), source.HasSecret(), source.HasDownwardApi(), source.HasProjected():
		_, err := m.objects(pod, v, s)
		return m.objectsDir(uid, v), err
	}
	return "", errors.New("this kind of volume is not supported by the node; use emptyDir, hostPath, configMap, secret, downwardAPI or projected")
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

func (m *Manager) emptyDir(pod *corev1.Pod, e *corev1.EmptyDirVolumeSource, dir string) error {
	switch e.GetMedium() {
	case "":
		// What the pod has made of it since is the pod's: a restarted agent must not set modes again.
		if _, err := os.Stat(dir); err == nil {
			return nil
		}
	case "Memory":
		if is, err := mounted(dir); err != nil || is {
			return err
		}
		size := int64(0)
		if e.HasSizeLimit() {
			q, err := resource.ParseQuantity(e.GetSizeLimit().GetString())
			if err != nil {
				return fmt.Errorf("sizeLimit %q: %w", e.GetSizeLimit().GetString(), err)
			}
			size = q.Value()
		}
		if err := mountMemory(dir, size, 0o777); err != nil {
			return err
		}
	default:
		return fmt.Errorf("emptyDir.medium %q is not supported by the node; use \"\" or Memory", e.GetMedium())
	}
	if e.GetMedium() == "Memory" {
		return open(pod, dir)
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

// hostPath checks or makes what the type says. An empty type checks nothing.
func hostPath(h *corev1.HostPathVolumeSource) error {
	path := h.GetPath()
	if !filepath.IsAbs(path) || slices.Contains(strings.Split(path, "/"), "..") {
		return fmt.Errorf("hostPath.path %q must be absolute and without ..", path)
	}
	info, err := os.Stat(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	there := err == nil
	switch h.GetType() {
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
	switch h.GetType() {
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
	return fmt.Errorf("hostPath.type %q is not known", h.GetType())
}

func expect(path, what string, is bool) error {
	if is {
		return nil
	}
	return fmt.Errorf("hostPath type check failed: %s is not a %s", path, what)
}

// Teardown unmounts and removes everything of a pod's volumes; hostPath volumes are the user's and stay.
func (m *Manager) Teardown(uid string) error {
	if err := m.Unmount(uid); err != nil {
		return err
	}
	for _, part := range []string{"volumes", subPaths} {
		if err := os.RemoveAll(filepath.Join(m.PodDir(uid), part)); err != nil {
			return err
		}
	}
	return nil
}

// Unmount unmounts everything below a pod's folder.
func (m *Manager) Unmount(uid string) error {
	var mounts []string
	// Mounts below the pod's folder are found in the table, not guessed: a restarted agent knows nothing of them. Deepest last in the table.
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	prefix := m.PodDir(uid) + "/"
	for line := range strings.Lines(string(table)) {
		fields := strings.Fields(line)
		if len(fields) > 4 {
			if path := unescape(fields[4]); strings.HasPrefix(path, prefix) {
				mounts = append(mounts, path)
			}
		}
	}
	for _, path := range slices.Backward(mounts) {
		if err := unmount(path); err != nil {
			return err
		}
	}
	return nil
}

// Remove tears a pod's volumes down and removes its folder.
func (m *Manager) Remove(uid string) error {
	if err := m.Teardown(uid); err != nil {
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
		if err := root.MkdirAll(sub, 0o750); err != nil {
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
