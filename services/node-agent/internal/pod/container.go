package pod

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/services/node-agent/internal/cri"
	"dhow.dev/services/node-agent/internal/downward"
	"dhow.dev/services/node-agent/internal/env"
	"dhow.dev/services/node-agent/internal/status"
)

// defaultMessagePath is where a container may leave its last words.
const defaultMessagePath = "/dev/termination-log"

// Paths that Kubernetes hides from containers or makes read-only for them, unless they are privileged or ask for an unmasked /proc.
func maskedPaths() []string {
	return []string{"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
		"/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap"}
}

func readonlyPaths() []string {
	return []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
}

// failure is an error with the reason that the container's state shows.
type failure struct {
	reason string
	err    error
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// configError is what Kubernetes calls an error in what a container is made from.
func configError(err error) error {
	return &failure{reason: status.ReasonCreateContainerConfigError, err: err}
}

// run is everything that goes into one run of a container.
type run struct {
	pod       *corev1.Pod
	container *corev1.Container
	attempt   uint32
	image     cri.Image
	sources   env.Sources
	// volumes maps volume names to host paths.
	volumes map[string]string
	ips     []string
	// users is the first ID on the machine of the pod's users, 0 for the machine's own.
	users uint32
	// images maps the names of image volumes to images; recursion says whether the runtime can mount read-only all the way down.
	images    map[string]string
	recursion bool
	// target is the ID of the container whose processes this one sees; empty: as the pod says.
	target string
}

// containerConfig returns what a container is created with. Its errors are config errors.
func (c *Config) containerConfig(r run) (*runtimev1.ContainerConfig, error) {
	name := r.container.GetName()
	variables, err := env.Of(r.container, r.sources)
	if err != nil {
		return nil, configError(err)
	}
	mounts, err := c.mounts(r, variables)
	if err != nil {
		return nil, configError(err)
	}
	blocks, err := devices(r)
	if err != nil {
		return nil, configError(err)
	}
	messageFile, messageMount, err := c.messageFile(r)
	if err != nil {
		return nil, configError(err)
	}
	mounts = append(mounts, messageMount)
	security, err := c.security(r)
	if err != nil {
		return nil, configError(err)
	}
	config := &runtimev1.ContainerConfig{
		Metadata: &runtimev1.ContainerMetadata{Name: name, Attempt: r.attempt},
		Image:    &runtimev1.ImageSpec{Image: r.image.ID, UserSpecifiedImage: r.container.GetImage()},
		Command:  env.ExpandAll(r.container.GetCommand(), variables), Args: env.ExpandAll(r.container.GetArgs(), variables),
		WorkingDir: r.container.GetWorkingDir(), Mounts: mounts, Devices: blocks, Labels: containerLabels(r.pod, name),
		Annotations: map[string]string{cri.AnnotationImage: r.container.GetImage(), cri.AnnotationResources: limits(r.pod, r.container), cri.AnnotationMessageFile: messageFile,
			cri.AnnotationMessagePolicy: r.container.GetTerminationMessagePolicy()},
		LogPath: filepath.Join(name, strconv.Itoa(int(r.attempt))+".log"),
		Stdin:   r.container.GetStdin(), StdinOnce: r.container.GetStdinOnce(), Tty: r.container.GetTty(),
		Linux: &runtimev1.LinuxContainerConfig{SecurityContext: security, Resources: c.resources(r.pod, r.container)},
	}
	if s := r.container.GetLifecycle().GetStopSignal(); s != "" {
		config.StopSignal = runtimev1.Signal(runtimev1.Signal_value[s])
	}
	for _, v := range variables {
		config.Envs = append(config.Envs, &runtimev1.KeyValue{Key: v.Name, Value: []byte(v.Value)})
	}
	// The runtime makes the file, not its folder.
	if err := os.MkdirAll(filepath.Join(LogDirectory(c.LogDir, r.pod), name), 0o755); err != nil {
		return nil, configError(err)
	}
	return config, nil
}

// messageFile makes the file behind terminationMessagePath, new for each run, writable for whoever the container runs as.
func (c *Config) messageFile(r run) (string, *runtimev1.Mount, error) {
	dir := filepath.Join(c.Volumes.PodDir(r.pod.GetMetadata().GetUid()), "containers", r.container.GetName())
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return "", nil, err
	}
	name := filepath.Join(dir, strconv.Itoa(int(r.attempt)))
	if err := os.WriteFile(name, nil, 0o666); err != nil {
		return "", nil, err
	}
	if err := os.Chmod(name, 0o666); err != nil {
		return "", nil, err
	}
	return name, &runtimev1.Mount{ContainerPath: cmp.Or(r.container.GetTerminationMessagePath(), defaultMessagePath), HostPath: name, SelinuxRelabel: c.Volumes.SELinux()}, nil
}

func (c *Config) mounts(r run, variables []env.Variable) ([]*runtimev1.Mount, error) {
	uid := r.pod.GetMetadata().GetUid()
	var mounts []*runtimev1.Mount
	hosts := true
	for i, m := range r.container.GetVolumeMounts() {
		path, ok := r.volumes[m.GetName()]
		image := r.images[m.GetName()]
		if !ok && image == "" {
			return nil, fmt.Errorf("volumeMounts[%d]: the pod has no volume %q", i, m.GetName())
		}
		sub, err := subPath(m, variables)
		if err != nil {
			return nil, err
		}
		if sub != "" && image == "" {
			if path, err = c.Volumes.SubPath(uid, path, m.GetName(), r.container.GetName(), i, sub); err != nil {
				return nil, fmt.Errorf("failed to prepare subPath for volumeMount %q of container %q: %w", m.GetName(), r.container.GetName(), err)
			}
		}
		target := m.GetMountPath()
		if !filepath.IsAbs(target) {
			target = filepath.Join("/", target)
		}
		mount := &runtimev1.Mount{ContainerPath: target, HostPath: path, UidMappings: mapping(r.users), GidMappings: mapping(r.users), SelinuxRelabel: c.Volumes.Relabels(uid, m.GetName()),
			Readonly: c.Volumes.ReadOnly(uid, m.GetName())}
		if err := setReadOnly(mount, m, r.pod, r.recursion); err != nil {
			return nil, err
		}
		if image != "" {
			mount.Image, mount.ImageSubPath, mount.Readonly = &runtimev1.ImageSpec{Image: image}, sub, true
		}
		switch m.GetMountPropagation() {
		case "HostToContainer":
			mount.Propagation = runtimev1.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
		case "Bidirectional":
			mount.Propagation = runtimev1.MountPropagation_PROPAGATION_BIDIRECTIONAL
		}
		hosts = hosts && target != "/etc/hosts"
		mounts = append(mounts, mount)
	}
	if !hosts {
		return mounts, nil // the pod brings its own
	}
	text, err := c.DNS.hostsFile(r.pod, r.ips)
	if err != nil {
		return nil, err
	}
	file := filepath.Join(c.Volumes.PodDir(uid), "etc-hosts")
	if have, err := os.ReadFile(file); err != nil || string(have) != text {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			return nil, err
		}
	}
	return append(mounts, &runtimev1.Mount{ContainerPath: "/etc/hosts", HostPath: file, SelinuxRelabel: c.Volumes.SELinux()}), nil
}

// security merges the pod's and the container's security contexts; the container's fields win.
func (c *Config) security(r run) (*runtimev1.LinuxContainerSecurityContext, error) {
	sc, psc := r.container.GetSecurityContext(), r.pod.GetSpec().GetSecurityContext()
	s := &runtimev1.LinuxContainerSecurityContext{
		NamespaceOptions: namespaces(r.pod, r.users), Privileged: sc.GetPrivileged(), ReadonlyRootfs: sc.GetReadOnlyRootFilesystem(), SupplementalGroups: groups(r.pod),
	}
	if r.target != "" {
		s.NamespaceOptions.Pid, s.NamespaceOptions.TargetId = runtimev1.NamespaceMode_TARGET, r.target
	}
	if psc.GetSupplementalGroupsPolicy() == "Strict" {
		s.SupplementalGroupsPolicy = runtimev1.SupplementalGroupsPolicy_Strict
	}
	switch {
	case sc.HasRunAsUser():
		s.RunAsUser = &runtimev1.Int64Value{Value: sc.GetRunAsUser()}
	case psc.HasRunAsUser():
		s.RunAsUser = &runtimev1.Int64Value{Value: psc.GetRunAsUser()}
	case r.image.HasUID:
		s.RunAsUser = &runtimev1.Int64Value{Value: r.image.UID}
	default:
		s.RunAsUsername = r.image.Username
	}
	switch {
	case sc.HasRunAsGroup():
		s.RunAsGroup = &runtimev1.Int64Value{Value: sc.GetRunAsGroup()}
	case psc.HasRunAsGroup():
		s.RunAsGroup = &runtimev1.Int64Value{Value: psc.GetRunAsGroup()}
	}
	if s.RunAsGroup != nil && s.RunAsUser == nil && s.RunAsUsername == "" {
		s.RunAsUser = &runtimev1.Int64Value{} // CRI takes a group only beside a user; an image that names none runs as root
	}
	nonRoot := psc.GetRunAsNonRoot()
	if sc.HasRunAsNonRoot() {
		nonRoot = sc.GetRunAsNonRoot()
	}
	if nonRoot {
		if err := checkNonRoot(s, r.image); err != nil {
			return nil, fmt.Errorf("%w (pod: %q, container: %s)", err, r.pod.GetMetadata().GetName()+"_"+r.pod.GetMetadata().GetNamespace()+"("+r.pod.GetMetadata().GetUid()+")", r.container.GetName())
		}
	}
	if sc.HasAllowPrivilegeEscalation() {
		s.NoNewPrivs = !sc.GetAllowPrivilegeEscalation()
	}
	if caps := sc.GetCapabilities(); caps != nil {
		s.Capabilities = &runtimev1.Capability{AddCapabilities: caps.GetAdd(), DropCapabilities: caps.GetDrop()}
	}
	if !sc.GetPrivileged() && sc.GetProcMount() != "Unmasked" {
		s.MaskedPaths, s.ReadonlyPaths = maskedPaths(), readonlyPaths()
	}
	profile := psc.GetSeccompProfile()
	if sc.HasSeccompProfile() {
		profile = sc.GetSeccompProfile()
	}
	s.Seccomp = c.seccomp(profile)
	armor := psc.GetAppArmorProfile()
	if sc.HasAppArmorProfile() {
		armor = sc.GetAppArmorProfile()
	}
	switch armor.GetType() {
	case "Unconfined":
		s.Apparmor = &runtimev1.SecurityProfile{ProfileType: runtimev1.SecurityProfile_Unconfined}
	case "Localhost":
		s.Apparmor = &runtimev1.SecurityProfile{ProfileType: runtimev1.SecurityProfile_Localhost, LocalhostRef: armor.GetLocalhostProfile()}
	}
	se := psc.GetSeLinuxOptions()
	if sc.HasSeLinuxOptions() {
		se = sc.GetSeLinuxOptions()
	}
	if se != nil {
		s.SelinuxOptions = &runtimev1.SELinuxOption{User: se.GetUser(), Role: se.GetRole(), Type: se.GetType(), Level: se.GetLevel()}
	}
	return s, nil
}

// seccomp converts a profile. Without one, Kubernetes' default counts: unconfined, unless the node is told otherwise.
func (c *Config) seccomp(profile *corev1.SeccompProfile) *runtimev1.SecurityProfile {
	switch profile.GetType() {
	case "RuntimeDefault":
		return &runtimev1.SecurityProfile{ProfileType: runtimev1.SecurityProfile_RuntimeDefault}
	case "Localhost":
		return &runtimev1.SecurityProfile{ProfileType: runtimev1.SecurityProfile_Localhost, LocalhostRef: filepath.Join(c.SeccompDir, profile.GetLocalhostProfile())}
	case "Unconfined":
		return &runtimev1.SecurityProfile{ProfileType: runtimev1.SecurityProfile_Unconfined}
	}
	if c.SeccompDefault {
		return &runtimev1.SecurityProfile{ProfileType: runtimev1.SecurityProfile_RuntimeDefault}
	}
	return &runtimev1.SecurityProfile{ProfileType: runtimev1.SecurityProfile_Unconfined}
}

func checkNonRoot(s *runtimev1.LinuxContainerSecurityContext, image cri.Image) error {
	switch {
	case s.RunAsUser != nil && s.RunAsUser.GetValue() == 0:
		return errors.New("container's runAsUser breaks non-root policy: set securityContext.runAsUser to another user than 0")
	case s.RunAsUser != nil:
		return nil
	case image.Username != "":
		return fmt.Errorf("container has runAsNonRoot and image has non-numeric user (%s), cannot verify user is non-root: set securityContext.runAsUser", image.Username)
	}
	return errors.New("container has runAsNonRoot and image will run as root: set securityContext.runAsUser")
}

// facts are the downward API's.
func (c *Config) facts(pod *corev1.Pod, ips []string) downward.Facts {
	if pod.GetSpec().GetHostNetwork() {
		ips = c.HostIPs
	}
	return downward.Facts{NodeName: c.NodeName, HostIPs: c.HostIPs, PodIPs: ips, Allocatable: c.Allocatable}
}
