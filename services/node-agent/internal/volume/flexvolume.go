package volume

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
)

// FlexVolume drivers are programs below a folder, VENDOR~DRIVER/DRIVER, that are called with a command and arguments and answer in JSON. The protocol is
// that of Kubernetes' community page flexvolume.md.

// FlexVolumeDir is where Kubernetes' installers put such drivers.
const FlexVolumeDir = "/usr/libexec/kubernetes/kubelet-plugins/volume/exec/"

// driverWithin is how long a driver may take for a command; Kubernetes' time for waitforattach, whose other commands may take for ever.
const driverWithin = 10 * time.Minute

// What drivers find in the options that they get, beside those of the volume.
const (
	flexFSType  = "kubernetes.io/fsType"
	flexAccess  = "kubernetes.io/readwrite"
	flexName    = "kubernetes.io/pvOrVolumeName"
	flexSecret  = "kubernetes.io/secret/"
	flexGroup   = "kubernetes.io/mounterArgs.FsGroup"
	flexPod     = "kubernetes.io/pod.name"
	flexPodNS   = "kubernetes.io/pod.namespace"
	flexPodUID  = "kubernetes.io/pod.uid"
	flexAccount = "kubernetes.io/serviceAccount.name"
)

// statusNotSupported is the protocol's word for a command that a driver does not have.
const statusNotSupported = "Not supported"

var errNotSupported = errors.New("the driver does not support it")

// flexDriver is an installed driver, as it was when it was first called.
type flexDriver struct {
	name, program string
	within        time.Duration
	capabilities  flexCapabilities
	// written tells the program from another one that replaces it.
	written time.Time

	mu sync.Mutex
	// lacks are the commands that it has said it does not support; it is not asked again.
	lacks map[string]bool
}

// flexCapabilities are what a driver says of itself in its answer to init. One that says nothing has them all but metrics.
type flexCapabilities struct {
	Attach          bool `json:"attach"`
	SELinuxRelabel  bool `json:"selinuxRelabel"`
	SupportsMetrics bool `json:"supportsMetrics"`
	FSGroup         bool `json:"fsGroup"`
	// RequiresFSResize says that the file system on a volume that was made larger has to be made larger on the node.
	RequiresFSResize bool `json:"requiresFSResize"`
}

// flexAnswer is a driver's answer to a command.
type flexAnswer struct {
	Status       string           `json:"status"`
	Message      string           `json:"message"`
	Device       string           `json:"device"`
	Capabilities flexCapabilities `json:"capabilities"`
}

// flexRecord is what is remembered of such a volume.
type flexRecord struct {
	Driver string `json:"driver"`
}

// flexRequest is what a driver is told.
type flexRequest struct {
	driver  *flexDriver
	options map[string]string
}

type flexVolumes struct{ disks }

func (m *Manager) flexVolume(ctx context.Context, d *described, source *corev1.FlexPersistentVolumeSource) (*mounting, error) {
	driver, err := m.flexDriver(ctx, source.GetDriver())
	if err != nil {
		return nil, err
	}
	staging := ""
	if driver.capabilities.Attach {
		staging = driver.place(d.name)
	}
	v := m.mounting(d, kindFlex, staging)
	r := v.record
	r.Flex, r.Target = &flexRecord{Driver: driver.name}, filepath.Join(m.PodDir(r.uid), "volumes", strings.ReplaceAll(driver.name, "/", "~"), d.name)
	v.fsType, v.readOnly, v.group = source.GetFsType(), v.readOnly || source.GetReadOnly(), driver.capabilities.FSGroup
	access := "rw"
	if v.readOnly {
		access = "ro"
	}
	v.flex = &flexRequest{driver: driver, options: map[string]string{flexFSType: v.fsType, flexAccess: access, flexName: d.name}}
	maps.Copy(v.flex.options, source.GetOptions())
	v.options = nil // such volumes have none
	v.secretRef, v.secretType = source.GetSecretRef(), driver.name
	return v, nil
}

// flexDriver returns an installed driver. One that was replaced is asked again what it can do.
func (m *Manager) flexDriver(ctx context.Context, name string) (*flexDriver, error) {
	folder := strings.ReplaceAll(name, "/", "~")
	base := folder[strings.LastIndex(folder, "~")+1:]
	if !filepath.IsLocal(folder) || !filepath.IsLocal(base) || base == "." {
		return nil, fmt.Errorf("flexVolume driver %q: this is no name of a driver", name)
	}
	program := filepath.Join(m.config.FlexVolumeDir, folder, base)
	info, err := os.Stat(program)
	if err != nil {
		return nil, fmt.Errorf("flexVolume driver %q is not installed on this node: %w", name, err)
	}
	defer m.lock("flexvolume driver " + name)()
	m.mu.Lock()
	known := m.flexDrivers[name]
	m.mu.Unlock()
	if known != nil && known.written.Equal(info.ModTime()) {
		return known, nil
	}
	driver := &flexDriver{name: name, program: program, within: m.driverWithin, written: info.ModTime(), lacks: map[string]bool{}}
	answer, err := driver.call(ctx, "init")
	if err != nil {
		return nil, fmt.Errorf("flexVolume driver %q: init: %w", name, err)
	}
	driver.capabilities = answer.Capabilities
	m.mu.Lock()
	m.flexDrivers[name] = driver
	m.mu.Unlock()
	return driver, nil
}

// place is where a volume is staged, below the folder of the kind.
func (d *flexDriver) place(volume string) string { return filepath.Join(d.name, "mounts", volume) }

// call asks a driver to do something. What it does not support is errNotSupported.
func (d *flexDriver) call(ctx context.Context, command string, arguments ...string) (*flexAnswer, error) {
	d.mu.Lock()
	lacks := d.lacks[command]
	d.mu.Unlock()
	if lacks {
		return nil, errNotSupported
	}
	ctx, cancel := context.WithTimeout(ctx, d.within)
	defer cancel()
	process := exec.CommandContext(ctx, d.program, append([]string{command}, arguments...)...)
	// What a script has started is to end with it.
	process.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	process.Cancel = func() error { return syscall.Kill(-process.Process.Pid, syscall.SIGKILL) }
	process.WaitDelay = patience
	out, failed := process.CombinedOutput()
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("%s: no answer of %s: %w", command, d.program, err)
	}
	answer := &flexAnswer{Capabilities: flexCapabilities{Attach: true, SELinuxRelabel: true, FSGroup: true, RequiresFSResize: true}}
	if err := json.Unmarshal(out, answer); err != nil {
		return nil, errors.Join(failed, fmt.Errorf("%s: %s answered %q, which is not what drivers answer: %w", command, d.program, bytes.TrimSpace(out), err))
	}
	switch answer.Status {
	case "Success":
		if failed != nil {
			return nil, fmt.Errorf("%s: %s says that it succeeded, but ended with an error: %w", command, d.program, failed)
		}
		return answer, nil
	case statusNotSupported:
		d.mu.Lock()
		d.lacks[command] = true
		d.mu.Unlock()
		return nil, errNotSupported
	}
	return nil, fmt.Errorf("%s command failed, status: %s, reason: %s", command, answer.Status, answer.Message)
}

// of returns the options in JSON, with more.
func (q *flexRequest) of(more map[string]string) (string, error) {
	all := maps.Clone(more)
	if all == nil {
		all = map[string]string{}
	}
	maps.Copy(all, q.options)
	text, err := json.Marshal(all)
	return string(text), err
}

// measures says whether the agent may measure a volume: not what a FlexVolume driver has that does not want it.
func (m *Manager) measures(ctx context.Context, source *corev1.PersistentVolumeSource) bool {
	if !source.HasFlexVolume() {
		return true
	}
	driver, err := m.flexDriver(ctx, source.GetFlexVolume().GetDriver())
	return err == nil && driver.capabilities.SupportsMetrics
}

// attach has the driver attach the volume to this node. The agent does it by itself: a control plane rarely has the drivers of nodes.
func (f flexVolumes) attach(ctx context.Context, v *mounting) (string, error) {
	options, err := v.flex.of(nil)
	if err != nil {
		return "", err
	}
	device := ""
	answer, err := v.flex.driver.call(ctx, "attach", options, f.m.config.NodeName)
	switch {
	case err == nil:
		device = answer.Device
	case !errors.Is(err, errNotSupported):
		return "", err
	}
	answer, err = v.flex.driver.call(ctx, "waitforattach", device, options)
	switch {
	case err == nil:
		device = answer.Device
	case !errors.Is(err, errNotSupported):
		return "", err
	}
	return device, nil
}

func (f flexVolumes) stage(ctx context.Context, v *mounting) error {
	options, err := v.flex.of(nil)
	if err != nil {
		return err
	}
	_, err = v.flex.driver.call(ctx, "mountdevice", v.record.Staging, v.record.Device, options)
	if !errors.Is(err, errNotSupported) {
		return err
	}
	if v.record.Device == "" {
		return nil
	}
	return f.disks.stage(ctx, v)
}

func (f flexVolumes) publish(ctx context.Context, v *mounting) error {
	md := v.pod.GetMetadata()
	more := map[string]string{
		flexPod: md.GetName(), flexPodNS: md.GetNamespace(), flexPodUID: md.GetUid(), flexAccount: v.pod.GetSpec().GetServiceAccountName(),
	}
	for key, value := range v.secret {
		more[flexSecret+key] = base64.StdEncoding.EncodeToString([]byte(value))
	}
	if gid := fsGroup(v.pod); gid >= 0 {
		more[flexGroup] = fmt.Sprint(gid)
	}
	options, err := v.flex.of(more)
	if err != nil {
		return err
	}
	_, err = v.flex.driver.call(ctx, "mount", v.record.Target, options)
	if !errors.Is(err, errNotSupported) {
		return err
	}
	if v.record.Staging == "" {
		return fmt.Errorf("flexVolume driver %q supports neither mount nor attach", v.flex.driver.name)
	}
	return bind(ctx, v.record.Staging, v.record.Target, v.readOnly)
}

// undo asks the driver of a record to undo something that was done at a path, and does without it what it does not support.
func (f flexVolumes) undo(ctx context.Context, r *mountRecord, command, path string) error {
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	driver, err := f.m.flexDriver(ctx, r.Flex.Driver)
	if err != nil {
		return err
	}
	if _, err := driver.call(ctx, command, path); err != nil && !errors.Is(err, errNotSupported) {
		return err
	}
	return leave(path)
}

func (f flexVolumes) unpublish(ctx context.Context, r *mountRecord) error {
	return f.undo(ctx, r, "unmount", r.Target)
}

func (f flexVolumes) unstage(ctx context.Context, r *mountRecord) error {
	if is, err := isMountPoint(r.Staging); err != nil || !is {
		return errors.Join(err, leave(r.Staging))
	}
	return f.undo(ctx, r, "unmountdevice", r.Staging)
}

func (f flexVolumes) detach(ctx context.Context, r *mountRecord) error {
	driver, err := f.m.flexDriver(ctx, r.Flex.Driver)
	if err != nil {
		return err
	}
	if _, err := driver.call(ctx, "detach", r.Name, f.m.config.NodeName); err != nil && !errors.Is(err, errNotSupported) {
		return err
	}
	return nil
}
