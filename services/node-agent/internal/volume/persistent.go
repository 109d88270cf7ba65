package volume

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	storagev1 "dhow.dev/gen/go/dhow/storage/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/csimigration"
	"dhow.dev/pkg/object"
	"dhow.dev/pkg/telemetry/logkey"
	"dhow.dev/services/node-agent/internal/csi"
)

// KubeletDir is the folder that Kubernetes' manifests and drivers name for what the node's agent keeps.
const KubeletDir = "/var/lib/kubelet"

// What the built-in provisioner and this package agree on (services/controller-manager/internal/localpath).
const (
	localPathProvisioner = "dhow.dev/local-path"
	localPathFolder      = "local-path"
	removalPrefix        = "local-path.dhow.dev/"
	provisionedBy        = "pv.kubernetes.io/provisioned-by"
)

const (
	// askTimeout bounds a question to the API server.
	askTimeout = 10 * time.Second
	// attachTimeout is how long a volume's attachment is waited for before it is said that it is not there; Kubernetes' time.
	attachTimeout = 2*time.Minute + 3*time.Second
)

// Config is what volumes need that are not made from a pod's own spec. The pods' folders are DataDir/pods.
type Config struct {
	NodeName string
	// DataDir is the agent's folder, which KubeletDir stands for; empty: the constant KubeletDir.
	DataDir, KubeletDir string
	Conn                grpc.ClientConnInterface
	// Driver returns a registered CSI driver.
	Driver func(name string) (*csi.Driver, error)
	// Changed is told the pods whose volumes have to be looked at again. It must not block.
	Changed func(uids []string)
	// InUse is called when another set of attached volumes is in use than before. It must not block.
	InUse func()
	// Evict ends a pod that stores more than it may. It must not block.
	Evict func(uid, message string)
	// FlexVolumeDir has the FlexVolume drivers; empty: the constant FlexVolumeDir.
	FlexVolumeDir string
	// Machine is where the machine says what it has; empty folders are the usual ones.
	Machine Machine
	Logger  *slog.Logger
}

// Machine is the folders /dev, /sys and /etc of a machine.
type Machine struct{ Dev, Sys, Etc string }

// persistent is the part of a Manager that knows claims and drivers.
type persistent struct {
	config      Config
	claims      *client.Client[*corev1.PersistentVolumeClaim]
	volumes     *client.Client[*corev1.PersistentVolume]
	drivers     *client.Client[*storagev1.CSIDriver]
	attachments *client.Client[*storagev1.VolumeAttachment]
	nodes       *client.Client[*corev1.Node]
	secrets     *client.Client[*corev1.Secret]

	// tellMu lets one caller of tellUse look at a time, so that an older look does not go after a newer one. It is taken before mu.
	tellMu sync.Mutex

	mu sync.Mutex
	// attached are the volumes that the Node says are attached, reported those that it says are in use; changed is closed and replaced when that changes.
	attached, reported map[string]bool
	changed            chan struct{}
	// using are volumes that are about to be used, by name and pod, before the disk knows of them; told is what InUse answers.
	using map[string]map[string]bool
	told  []string
	// removals are folders that the controller wants deleted; removing wakes who does it.
	removals map[string]bool
	removing chan struct{}
	// busy are the locks of volumes that something is done with.
	busy map[string]*sync.Mutex
	// watched are the claims of pods that may grow, by pod.
	watched map[string]map[string]context.CancelFunc
	// again are the pods with volumes that could not be made larger and will be looked at again after expandAgain.
	again       map[string]bool
	expandAgain time.Duration
	// limits are the emptyDir volumes with a bound, by pod.
	limits map[string][]limited
	// measured are the volumes of claims that pods use, by pod and name.
	measured map[string]map[string]measurable
	// relabels says which volumes the runtime is to label for SELinux, by pod and name.
	relabels map[string]map[string]bool
	// readOnly says which volumes their specs let pods only read, by pod and name.
	readOnly map[string]map[string]bool
	// flexDrivers are the FlexVolume drivers that were called.
	flexDrivers map[string]*flexDriver
	// silent are the file systems whose space was asked for and that have not answered yet.
	silent map[string]bool
	// helperDirs are where mount(8) has its helpers. unmountWithin and driverWithin are patience with servers and FlexVolume drivers.
	helperDirs                  []string
	unmountWithin, driverWithin time.Duration
	// unmeasured says that there is one among them that was not there when they were measured.
	unmeasured bool
	ctx        context.Context
	group      sync.WaitGroup

	// statsMu lets one caller measure at a time; stats is what was last measured, and when.
	statsMu sync.Mutex
	stats   []Stat
	statsAt time.Time
}

// NewNode returns a manager that also knows claims and CSI drivers. Run does what is not part of a pod's way.
func NewNode(config Config) (*Manager, error) {
	if config.KubeletDir == "" {
		config.KubeletDir = KubeletDir
	}
	if config.FlexVolumeDir == "" {
		config.FlexVolumeDir = FlexVolumeDir
	}
	config.Machine = Machine{Dev: cmp.Or(config.Machine.Dev, "/dev"), Sys: cmp.Or(config.Machine.Sys, "/sys"), Etc: cmp.Or(config.Machine.Etc, "/etc")}
	tell := config.InUse
	config.InUse = nil // not before there is an agent to tell
	m := New(filepath.Join(config.DataDir, "pods"))
	m.persistent = &persistent{
		config: config, claims: client.For[*corev1.PersistentVolumeClaim](config.Conn), volumes: client.For[*corev1.PersistentVolume](config.Conn),
		drivers: client.For[*storagev1.CSIDriver](config.Conn), attachments: client.For[*storagev1.VolumeAttachment](config.Conn), nodes: client.For[*corev1.Node](config.Conn),
		secrets: client.For[*corev1.Secret](config.Conn),
		changed: make(chan struct{}), using: map[string]map[string]bool{}, removals: map[string]bool{}, removing: make(chan struct{}, 1),
		busy: map[string]*sync.Mutex{}, watched: map[string]map[string]context.CancelFunc{}, again: map[string]bool{}, expandAgain: expandAgain, limits: map[string][]limited{}, measured: map[string]map[string]measurable{},
		relabels: map[string]map[string]bool{}, readOnly: map[string]map[string]bool{}, flexDrivers: map[string]*flexDriver{}, silent: map[string]bool{},
		helperDirs: []string{"/sbin", "/usr/sbin"}, unmountWithin: unmountShareWithin, driverWithin: driverWithin,
	}
	for _, dir := range []string{"pods", "plugins", "plugins_registry"} {
		if err := os.MkdirAll(filepath.Join(config.DataDir, dir), 0o750); err != nil {
			return nil, err
		}
	}
	if err := m.tellUse(); err != nil {
		return nil, err
	}
	m.config.InUse = tell
	return m, nil
}

// Run removes what is to be removed, watches sizes and claims, and asks drivers again that want it, until ctx ends.
func (m *Manager) Run(ctx context.Context) error {
	m.mu.Lock()
	m.ctx = ctx
	m.mu.Unlock()
	var group sync.WaitGroup
	group.Go(func() { m.removeFolders(ctx) })
	group.Go(func() { m.watchLimits(ctx) })
	group.Go(func() { m.republish(ctx) })
	<-ctx.Done()
	group.Wait()
	m.group.Wait()
	return nil
}

// Node takes what the API server has of this node: which volumes are attached, and which folders are to be deleted.
func (m *Manager) Node(node *corev1.Node) {
	if node == nil {
		return
	}
	m.mu.Lock()
	m.attached = map[string]bool{}
	for _, v := range node.GetStatus().GetVolumesAttached() {
		m.attached[v.GetName()] = true
	}
	m.reported = map[string]bool{}
	for _, name := range node.GetStatus().GetVolumesInUse() {
		m.reported[name] = true
	}
	close(m.changed)
	m.changed = make(chan struct{})
	for key := range node.GetMetadata().GetAnnotations() {
		if name, ok := strings.CutPrefix(key, removalPrefix); ok {
			m.removals[name] = true
		}
	}
	m.mu.Unlock()
	select {
	case m.removing <- struct{}{}:
	default:
	}
}

// lock holds a volume for one thing at a time.
func (m *Manager) lock(id string) (unlock func()) {
	m.mu.Lock()
	l := m.busy[id]
	if l == nil {
		l = &sync.Mutex{}
		m.busy[id] = l
	}
	m.mu.Unlock()
	l.Lock()
	return l.Unlock
}

// use says that a pod is about to use an attached volume.
func (m *Manager) use(id, uid string) error {
	m.mu.Lock()
	if m.using[id] == nil {
		m.using[id] = map[string]bool{}
	}
	m.using[id][uid] = true
	m.mu.Unlock()
	return m.tellUse()
}

// tellUse tells which attached volumes the node uses: what the disk knows, and what is about to be.
func (m *Manager) tellUse() error {
	m.tellMu.Lock()
	defer m.tellMu.Unlock()
	list, err := m.namesInUse()
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if slices.Equal(list, m.told) {
		return nil
	}
	m.told = list
	// What is used no more and then again is not reported by what the Node said before.
	maps.DeleteFunc(m.reported, func(name string, _ bool) bool { return !slices.Contains(list, name) })
	if m.config.InUse != nil {
		m.config.InUse()
	}
	return nil
}

// InUse returns the names of the attached volumes that the node uses, which must not be detached.
func (m *Manager) InUse() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.told
}

// awaitAttached waits until the Node says that a volume is attached.
func (m *Manager) awaitAttached(ctx context.Context, id string) error {
	return m.awaitNode(ctx, func() bool { return m.attached[id] })
}

// awaitNode waits until the Node says what makes a volume attached, but not for ever: the user is to hear of it. The condition is asked under m.mu.
func (m *Manager) awaitNode(ctx context.Context, ok func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, attachTimeout)
	defer cancel()
	for {
		m.mu.Lock()
		is, changed := ok(), m.changed
		m.mu.Unlock()
		if is {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("volume is not attached to the node yet: %w", ctx.Err())
		}
	}
}

// claimed makes the volume of a claim available and returns where it is: a folder, a file, or a device.
func (m *Manager) claimed(ctx context.Context, pod *corev1.Pod, v *corev1.Volume, s Sources) (string, error) {
	if m.persistent == nil {
		return "", errors.New("volume claims are not supported by this node")
	}
	name, readOnly := claimOf(pod, v), v.GetVolumeSource().GetPersistentVolumeClaim().GetReadOnly()
	namespace := pod.GetMetadata().GetNamespace()
	claim, pv, err := m.resolve(ctx, namespace, name)
	if err != nil {
		return "", fmt.Errorf("error processing PVC %s/%s: %w", namespace, name, err)
	}
	if v.GetVolumeSource().HasEphemeral() && object.ControllerOf(claim).GetUid() != pod.GetMetadata().GetUid() {
		return "", fmt.Errorf("PVC \"%s/%s\" was not created for pod \"%s/%s\" (pod is not owner)", namespace, name, namespace, pod.GetMetadata().GetName())
	}
	block := pv.GetSpec().GetVolumeMode() == "Block"
	if err := checkMode(pod, v.GetName(), block); err != nil {
		return "", err
	}
	if pv, err = csimigration.Persistent(pv); err != nil {
		return "", err
	}
	source := pv.GetSpec().GetPersistentVolumeSource()
	d := &described{pod: pod, sources: s, name: pv.GetMetadata().GetName(), pv: pv, readOnly: readOnly, volume: v.GetName()}
	if source.HasLocal() || source.HasHostPath() { // the others look when they know that no SELinux label is in the way
		if err := m.alone(pod.GetMetadata().GetUid(), pv); err != nil {
			return "", err
		}
	}
	switch {
	case source.HasLocal():
		path := m.Host(source.GetLocal().GetPath())
		if pv.GetMetadata().GetAnnotations()[provisionedBy] == localPathProvisioner {
			if err := m.makeFolder(path); err != nil {
				return "", err
			}
		}
		if !block && isDevice(path) {
			if path, err = m.mountDevice(ctx, d, path); err != nil {
				return "", err
			}
		}
		m.setRelabel(pod.GetMetadata().GetUid(), v.GetName(), !readOnly)
		m.measure(pod.GetMetadata().GetUid(), v.GetName(), measurable{namespace: namespace, claim: name, path: path, block: block})
		return path, m.local(pod, pv.GetMetadata().GetName(), path, block, readOnly)
	case source.HasHostPath():
		path, err := m.hostPath(source.GetHostPath())
		m.measure(pod.GetMetadata().GetUid(), v.GetName(), measurable{namespace: namespace, claim: name, path: path, block: block})
		return path, err
	case source.HasCsi():
		return m.csiPersistent(ctx, pod, v, claim, pv, readOnly, s)
	}
	if path, is, err := m.mountByKind(ctx, d, source); is {
		if err == nil && m.measures(ctx, source) {
			m.measure(pod.GetMetadata().GetUid(), v.GetName(), measurable{namespace: namespace, claim: name, path: path, block: block})
		}
		if err == nil && source.HasFlexVolume() {
			err = m.expandFlex(ctx, d, claim, source.GetFlexVolume())
		}
		return path, err
	}
	if isRemovedPersistent(source) {
		return "", unmatched{spec: pv.GetMetadata().GetName()}
	}
	return "", fmt.Errorf("volume %s: this kind of volume is not supported by the node; use csi, local, hostPath, nfs, iscsi, fc or flexVolume", pv.GetMetadata().GetName())
}

// resolve returns a claim and the volume that it is bound to.
func (m *Manager) resolve(ctx context.Context, namespace, name string) (*corev1.PersistentVolumeClaim, *corev1.PersistentVolume, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	claim, err := m.claims.Get(ctx, namespace, name)
	if err != nil {
		return nil, nil, fmt.Errorf("failed to fetch PVC from API server: %w", err)
	}
	if claim.GetStatus().GetPhase() != "Bound" || claim.GetSpec().GetVolumeName() == "" {
		return nil, nil, errors.New("PVC is not bound")
	}
	pv, err := m.volumes.Get(ctx, "", claim.GetSpec().GetVolumeName())
	if err != nil {
		return nil, nil, fmt.Errorf("failed to fetch PV %s from API server: %w", claim.GetSpec().GetVolumeName(), err)
	}
	if ref := pv.GetSpec().GetClaimRef(); ref.GetUid() != claim.GetMetadata().GetUid() {
		return nil, nil, fmt.Errorf("PV %s is bound to another claim (%s/%s)", pv.GetMetadata().GetName(), ref.GetNamespace(), ref.GetName())
	}
	return claim, pv, nil
}

// checkMode says when a pod's containers use a volume as what it is not.
func checkMode(pod *corev1.Pod, volume string, block bool) error {
	for _, c := range slices.Concat(pod.GetSpec().GetInitContainers(), pod.GetSpec().GetContainers()) {
		mounts := slices.ContainsFunc(c.GetVolumeMounts(), func(m *corev1.VolumeMount) bool { return m.GetName() == volume })
		devices := slices.ContainsFunc(c.GetVolumeDevices(), func(d *corev1.VolumeDevice) bool { return d.GetName() == volume })
		switch {
		case block && mounts:
			return fmt.Errorf("volume %s has volumeMode Block, but is specified in volumeMounts", volume)
		case !block && devices:
			return fmt.Errorf("volume %s has volumeMode Filesystem, but is specified in volumeDevices", volume)
		}
	}
	return nil
}

// local checks what is at the path of a local volume, and gives it to the pod's fsGroup, once for the pod: what the pod makes of it since is the pod's.
func (m *Manager) local(pod *corev1.Pod, name, path string, block, readOnly bool) error {
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("path %q does not exist on the node: %w", path, err)
	}
	switch {
	case block && !blockDevice(info):
		return fmt.Errorf("path %q is not a block device", path)
	case block:
		return nil
	}
	done := filepath.Join(m.PodDir(pod.GetMetadata().GetUid()), localVolumes, name)
	if _, err := os.Stat(done); err == nil {
		return nil
	}
	if err := setGroup(pod, path, readOnly); err != nil {
		return err
	}
	return os.MkdirAll(done, 0o750)
}

func blockDevice(info fs.FileInfo) bool {
	return info.Mode()&fs.ModeDevice != 0 && info.Mode()&fs.ModeCharDevice == 0
}

func isDevice(path string) bool {
	info, err := os.Stat(path)
	return err == nil && blockDevice(info)
}

// makeFolder makes the folder of a volume of the built-in provisioner. Everybody may write to it, as to an emptyDir.
func (m *Manager) makeFolder(path string) error {
	if filepath.Dir(path) != filepath.Join(m.config.DataDir, localPathFolder) {
		return fmt.Errorf("path %q is not below %s/%s", path, m.config.KubeletDir, localPathFolder)
	}
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	unfinished := path + ".new"
	if err := os.MkdirAll(unfinished, 0o777); err != nil {
		return err
	}
	if err := os.Chmod(unfinished, 0o777); err != nil {
		return err
	}
	return os.Rename(unfinished, path)
}

// removeFolders deletes folders of the built-in provisioner that the controller wants deleted, and says so by taking the annotation away.
func (m *Manager) removeFolders(ctx context.Context) {
	wait := time.Second
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.removing:
		}
		for {
			err := m.removeOnce(ctx)
			if err == nil || ctx.Err() != nil {
				wait = time.Second
				break
			}
			m.config.Logger.WarnContext(ctx, "data of a released volume not deleted, trying again", logkey.Err(err), logkey.Delay(wait))
			select {
			case <-ctx.Done():
				return
			case <-time.After(wait):
			}
			wait = min(2*wait, 30*time.Second)
		}
	}
}

func (m *Manager) removeOnce(ctx context.Context) error {
	m.mu.Lock()
	names := make([]string, 0, len(m.removals))
	for name := range m.removals {
		names = append(names, name)
	}
	m.mu.Unlock()
	if len(names) == 0 {
		return nil
	}
	for _, name := range names {
		// A name is one element of a path: anything else would be somebody's attempt at another folder.
		if name != filepath.Base(name) || !filepath.IsLocal(name) || name == "." {
			m.config.Logger.WarnContext(ctx, "a volume's name is no folder's, its data is not deleted", "volume", name)
			continue
		}
		dir := filepath.Join(m.config.DataDir, localPathFolder, name)
		if err := errors.Join(os.RemoveAll(dir), os.RemoveAll(dir+".new")); err != nil {
			return err
		}
	}
	if err := m.editNode(ctx, func(annotations map[string]string) {
		for _, name := range names {
			delete(annotations, removalPrefix+name)
		}
	}); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, name := range names {
		delete(m.removals, name)
	}
	return nil
}

// editNode changes the annotations of the agent's Node.
func (m *Manager) editNode(ctx context.Context, change func(map[string]string)) error {
	for {
		ask, cancel := context.WithTimeout(ctx, askTimeout)
		node, err := m.nodes.Get(ask, "", m.config.NodeName)
		if err == nil {
			annotations := map[string]string{}
			for k, v := range node.GetMetadata().GetAnnotations() {
				annotations[k] = v
			}
			change(annotations)
			if len(annotations) == len(node.GetMetadata().GetAnnotations()) {
				cancel()
				return nil
			}
			node.GetMetadata().SetAnnotations(annotations)
			_, err = m.nodes.Update(ask, node, nil)
		}
		cancel()
		if !apierrors.IsConflict(err) {
			return err
		}
	}
}
