package volume

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
)

// On a node with SELinux the runtime gives the files of a pod's volumes the pod's label, one by one. A volume that only one pod may use is mounted with the label
// instead, which takes no time. What is on by default is as in Kubernetes v1.36: SELinuxMountReadWriteOncePod and SELinuxChangePolicy are, SELinuxMount, which
// would do so for volumes of several pods, is not.

const (
	oncePod         = "ReadWriteOncePod"
	changeRecursive = "Recursive"
)

// SELinux says whether the node has it.
func (m *Manager) SELinux() bool {
	if m.persistent == nil {
		return false
	}
	_, err := os.Stat(m.sys("fs/selinux/enforce"))
	return err == nil
}

// Relabels says whether the runtime is to label the files of a volume of a pod, by its name in the pod.
func (m *Manager) Relabels(uid, volume string) bool {
	if !m.SELinux() {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.relabels[uid][volume]
}

func (m *Manager) setRelabel(uid, volume string, relabel bool) {
	if m.persistent == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.relabels[uid] == nil {
		m.relabels[uid] = map[string]bool{}
	}
	m.relabels[uid][volume] = relabel
}

// mountContext returns the SELinux context that a volume of a pod is to be mounted with, which the caller knows to be of a kind that can; empty: none.
func (m *Manager) mountContext(pod *corev1.Pod, volume string, pv *corev1.PersistentVolume) (string, error) {
	modes := pv.GetSpec().GetAccessModes()
	if len(modes) != 1 || modes[0] != oncePod || !m.SELinux() {
		return "", nil
	}
	var labels []string
	for _, options := range seLinuxOptions(pod, volume) {
		label, err := m.fileLabel(options)
		if err != nil {
			return "", fmt.Errorf("failed to construct SELinux label from context %v: %w", options, err)
		}
		if label == "" {
			return "", nil
		}
		labels = append(labels, label)
	}
	switch labels = joined(labels); {
	case len(labels) > 1:
		return "", fmt.Errorf("multiple SELinux labels found: %s", strings.Join(labels, ","))
	case len(labels) == 0 || pod.GetSpec().GetSecurityContext().GetSeLinuxChangePolicy() == changeRecursive:
		return "", nil
	}
	return labels[0], nil
}

// seLinuxOptions returns those of the containers that mount a volume.
func seLinuxOptions(pod *corev1.Pod, volume string) []*corev1.SELinuxOptions {
	var all []*corev1.SELinuxOptions
	add := func(context *corev1.SecurityContext, mounts []*corev1.VolumeMount) {
		options := pod.GetSpec().GetSecurityContext().GetSeLinuxOptions()
		if context.HasSeLinuxOptions() {
			options = context.GetSeLinuxOptions()
		}
		if options != nil && slices.ContainsFunc(mounts, func(m *corev1.VolumeMount) bool { return m.GetName() == volume }) {
			all = append(all, options)
		}
	}
	for _, c := range slices.Concat(pod.GetSpec().GetInitContainers(), pod.GetSpec().GetContainers()) {
		add(c.GetSecurityContext(), c.GetVolumeMounts())
	}
	for _, c := range pod.GetSpec().GetEphemeralContainers() {
		add(c.GetEphemeralContainerCommon().GetSecurityContext(), c.GetEphemeralContainerCommon().GetVolumeMounts())
	}
	return all
}

// fileLabel returns the label of files that processes of a label may use. Who names no level gets one of the runtime's choice, which nobody knows yet: empty.
func (m *Manager) fileLabel(options *corev1.SELinuxOptions) (string, error) {
	if options.GetLevel() == "" {
		return "", nil
	}
	label, err := m.containerFile()
	if err != nil {
		return "", err
	}
	parts := strings.SplitN(label, ":", 4)
	if len(parts) < 3 {
		return "", fmt.Errorf("the label of containers' files, %q, is none", label)
	}
	if options.GetUser() != "" {
		parts[0] = options.GetUser()
	}
	return strings.Join(append(parts[:3:3], options.GetLevel()), ":"), nil
}

// containerFile reads the label of containers' files out of the machine's policy, as runtimes do.
func (m *Manager) containerFile() (string, error) {
	const whenUnsaid = "system_u:object_r:container_file_t:s0"
	config, err := settings(filepath.Join(m.config.Machine.Etc, "selinux/config"))
	if err != nil {
		return "", err
	}
	policy := config["SELINUXTYPE"]
	if policy == "" {
		return whenUnsaid, nil
	}
	contexts, err := settings(filepath.Join(m.config.Machine.Etc, "selinux", policy, "contexts/lxc_contexts"))
	if label := contexts["file"]; label != "" || err != nil {
		return label, err
	}
	return whenUnsaid, nil
}

// settings reads a file of NAME = VALUE; one that is not there says nothing.
func settings(file string) (map[string]string, error) {
	text, err := os.ReadFile(file)
	if err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	all := map[string]string{}
	for line := range strings.Lines(string(text)) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && !strings.HasPrefix(key, "#") {
			all[strings.TrimSpace(key)] = strings.Trim(strings.TrimSpace(value), `"`)
		}
	}
	return all, nil
}

// errOtherContext is why a pod waits for a volume that another one has with another label.
var errOtherContext = errors.New("waiting for unmount of the volume, because it is already mounted to a different pod with a different SELinux label")

// sameContext says whether a volume can be mounted with a context: no other pod has it mounted with another one.
func (m *Manager) sameContext(r *mountRecord) error {
	if r.ID == "" || r.Block || !m.SELinux() {
		return nil
	}
	others, err := m.otherMounts(r)
	if err != nil {
		return err
	}
	for _, o := range others {
		if o.ID == r.ID && o.Context != r.Context {
			return conflict(r.Name, o.Context, r.Context)
		}
	}
	return nil
}

// sameDriverContext is sameContext for the volume of a CSI driver.
func (m *Manager) sameDriverContext(r *record) error {
	if r.Block || !m.SELinux() {
		return nil
	}
	all, err := m.allRecords()
	if err != nil {
		return err
	}
	for _, o := range all {
		if o.id() == r.id() && o.dir != r.dir && o.Context != r.Context {
			return conflict(r.SpecName, o.Context, r.Context)
		}
	}
	return nil
}

func conflict(volume, has, wants string) error {
	return fmt.Errorf("conflicting SELinux labels of volume %s: %q and %q: %w", volume, has, wants, errOtherContext)
}

// withContext adds a context, if there is one, to mount options: quoted, for it may have commas.
func withContext(options []string, context string) []string {
	if context == "" {
		return options
	}
	return append(slices.Clone(options), fmt.Sprintf("context=%q", context))
}

// relabelByMount notes whether the runtime is to label the files of a CSI driver's volume: where the file system has labels and is not mounted with one.
func (m *Manager) relabelByMount(r *request, volume, path string) error {
	if r.record.Block || !m.SELinux() {
		return nil
	}
	labels, err := labelled(path)
	if err != nil {
		return err
	}
	m.setRelabel(r.record.uid, volume, labels && !r.readOnly && r.record.Context == "")
	return nil
}
