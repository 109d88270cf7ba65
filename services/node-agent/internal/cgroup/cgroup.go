package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
)

// Version is the cgroup version of a machine.
type Version int

// Versions.
const (
	V1 Version = 1
	V2 Version = 2
)

// String returns v1 or v2.
func (v Version) String() string { return "v" + strconv.Itoa(int(v)) }

// Detect says which version is mounted at a folder, usually /sys/fs/cgroup. A hybrid machine counts as v1: its controllers are there.
func Detect(mount string) (Version, error) {
	if _, err := os.Stat(filepath.Join(mount, "cgroup.controllers")); err == nil {
		return V2, nil
	}
	for _, controller := range []string{"cpu", "memory"} {
		if _, err := os.Stat(filepath.Join(mount, controller)); err != nil {
			return 0, fmt.Errorf("cgroups at %s: neither version 2 nor the version 1 controller %s is mounted: %w", mount, controller, err)
		}
	}
	return V1, nil
}

// Manager keeps the cgroups of a node's pods under one root:
//
//	ROOT/kubepods/pod<UID>               guaranteed
//	ROOT/kubepods/burstable/pod<UID>
//	ROOT/kubepods/besteffort/pod<UID>
type Manager struct {
	mount, root string
	version     Version
	// controllers are the folders of version 1, with "" for version 2.
	controllers []string
	// hybrid says that a hierarchy of version 2 is mounted beside those of version 1. Runtimes put containers into it too, and it has the controllers that version 1 has not mounted.
	hybrid bool

	mu sync.Mutex
	// burstable holds the CPU requests of burstable pods, whose sum is the class' weight against guaranteed pods.
	burstable map[string]int64
}

// New returns the manager of the cgroups below root, for example /dhow/test/node-1, in what is mounted at mount. It makes the folders of the classes.
func New(mount, root string) (*Manager, error) {
	version, err := Detect(mount)
	if err != nil {
		return nil, err
	}
	m := &Manager{mount: mount, root: path.Clean("/" + root), version: version, controllers: []string{""}, burstable: map[string]int64{}}
	if version == V1 {
		if m.controllers, err = controllers(mount); err != nil {
			return nil, err
		}
		_, err := os.Stat(filepath.Join(mount, unified, "cgroup.controllers"))
		m.hybrid = err == nil
	}
	for _, class := range []QoS{Guaranteed, Burstable, BestEffort} {
		if err := m.make(m.classPath(class)); err != nil {
			return nil, err
		}
	}
	if err := m.setShares(m.classPath(BestEffort), minShares); err != nil {
		return nil, err
	}
	return m, nil
}

// unified is where version 2 is mounted beside version 1, as systemd has it.
const unified = "unified"

// trees are the folders of all hierarchies that have pods.
func (m *Manager) trees() []string {
	if m.hybrid {
		return append(slices.Clone(m.controllers), unified)
	}
	return m.controllers
}

// controllers lists the mounted hierarchies of version 1, without links such as cpu → cpu,cpuacct.
func controllers(mount string) ([]string, error) {
	entries, err := os.ReadDir(mount)
	if err != nil {
		return nil, fmt.Errorf("cgroups: %w", err)
	}
	var list []string
	for _, e := range entries {
		if !e.IsDir() || e.Name() == unified {
			continue
		}
		if _, err := os.Stat(filepath.Join(mount, e.Name(), "cgroup.procs")); err == nil {
			list = append(list, e.Name())
		}
	}
	return list, nil
}

// Version returns the machine's cgroup version.
func (m *Manager) Version() Version { return m.version }

func (m *Manager) classPath(class QoS) string {
	base := path.Join(m.root, "kubepods")
	if class == Guaranteed {
		return base
	}
	return path.Join(base, strings.ToLower(string(class)))
}

// Path returns a pod's cgroup, as CRI's cgroup_parent wants it.
func (m *Manager) Path(uid string, class QoS) string {
	return path.Join(m.classPath(class), "pod"+uid)
}

// Ensure makes a pod's cgroup with the pod's limits and returns its path.
func (m *Manager) Ensure(pod *corev1.Pod) (string, error) {
	class, amount := Class(pod), OfPod(pod)
	uid := pod.GetMetadata().GetUid()
	p := m.Path(uid, class)
	if err := m.make(p); err != nil {
		return "", err
	}
	if err := m.setShares(p, Shares(amount.CPURequest)); err != nil {
		return "", err
	}
	if err := m.setQuota(p, Quota(amount.CPULimit)); err != nil {
		return "", err
	}
	if err := m.setMemory(p, amount.MemoryLimit); err != nil {
		return "", err
	}
	if err := m.setHugePages(pod, p); err != nil {
		return "", err
	}
	if class == Burstable {
		return p, m.account(uid, amount.CPURequest)
	}
	return p, nil
}

// account keeps the burstable class' shares at the sum of its pods' requests.
func (m *Manager) account(uid string, milli int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if milli == 0 {
		delete(m.burstable, uid)
	} else {
		m.burstable[uid] = milli
	}
	var sum int64
	for _, v := range m.burstable {
		sum += v
	}
	return m.setShares(m.classPath(Burstable), Shares(sum))
}

// Remove removes a pod's cgroup in every class, with those below it. Processes in it are an error: the caller stops the pod first, and tries again.
func (m *Manager) Remove(uid string) error {
	var failed error
	for _, class := range []QoS{Guaranteed, Burstable, BestEffort} {
		for _, controller := range m.trees() {
			if err := removeTree(filepath.Join(m.mount, controller, m.Path(uid, class))); err != nil {
				failed = errors.Join(failed, err)
			}
		}
	}
	m.mu.Lock()
	_, known := m.burstable[uid]
	m.mu.Unlock()
	if known {
		failed = errors.Join(failed, m.account(uid, 0))
	}
	return failed
}

// Pods returns the UIDs of all pods that have a cgroup.
func (m *Manager) Pods() ([]string, error) {
	found := map[string]bool{}
	for _, class := range []QoS{Guaranteed, Burstable, BestEffort} {
		for _, controller := range m.trees() {
			entries, err := os.ReadDir(filepath.Join(m.mount, controller, m.classPath(class)))
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, fmt.Errorf("cgroups: %w", err)
			}
			for _, e := range entries {
				if uid, ok := strings.CutPrefix(e.Name(), "pod"); ok && e.IsDir() {
					found[uid] = true
				}
			}
		}
	}
	var uids []string
	for uid := range found {
		uids = append(uids, uid)
	}
	slices.Sort(uids)
	return uids, nil
}

// Destroy removes the whole tree below the root; it must be empty of processes.
func (m *Manager) Destroy() error {
	var failed error
	for _, controller := range m.trees() {
		failed = errors.Join(failed, removeTree(filepath.Join(m.mount, controller, m.root)))
	}
	return failed
}

// removeTree removes a cgroup and those below it, deepest first. Files of a cgroup vanish with their folder.
func removeTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cgroup: %w", err)
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := syscall.Rmdir(dir); err != nil && !errors.Is(err, syscall.ENOENT) {
		return fmt.Errorf("remove cgroup %s: %w", dir, err)
	}
	return nil
}

// make makes a cgroup in all hierarchies.
func (m *Manager) make(p string) error {
	if m.version == V2 {
		return makeV2(m.mount, p)
	}
	for _, controller := range m.controllers {
		if err := m.makeV1(controller, p); err != nil {
			return err
		}
	}
	if m.hybrid {
		return makeV2(filepath.Join(m.mount, unified), p)
	}
	return nil
}

// makeV2 makes a cgroup of version 2, where each level must hand its controllers down.
func makeV2(current, p string) error {
	for _, part := range strings.Split(strings.Trim(p, "/"), "/") {
		available, err := os.ReadFile(filepath.Join(current, "cgroup.controllers"))
		if err != nil {
			return fmt.Errorf("cgroup: %w", err)
		}
		for _, c := range bytes.Fields(available) {
			// A controller that cannot be handed down (processes in an inner node, realtime threads) is missing below; writing its limits tells.
			_ = os.WriteFile(filepath.Join(current, "cgroup.subtree_control"), append([]byte("+"), c...), 0o644)
		}
		current = filepath.Join(current, part)
		if err := os.Mkdir(current, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("cgroup: %w", err)
		}
	}
	return nil
}

// makeV1 makes a cgroup in one hierarchy. A new cpuset has no CPUs until it is given its parent's.
func (m *Manager) makeV1(controller, p string) error {
	current := filepath.Join(m.mount, controller)
	for _, part := range strings.Split(strings.Trim(p, "/"), "/") {
		parent := current
		current = filepath.Join(current, part)
		err := os.Mkdir(current, 0o755)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("cgroup: %w", err)
		}
		if controller != "cpuset" {
			continue
		}
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			inherited, err := os.ReadFile(filepath.Join(parent, file))
			if err == nil {
				err = os.WriteFile(filepath.Join(current, file), inherited, 0o644)
			}
			if err != nil {
				return fmt.Errorf("cgroup: %w", err)
			}
		}
	}
	return nil
}

func (m *Manager) write(controller, p, file, text string) error {
	if m.version == V2 {
		controller = ""
	} else if !slices.Contains(m.controllers, controller) {
		return nil
	}
	name := filepath.Join(m.mount, controller, p, file)
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		return fmt.Errorf("cgroup: write %q to %s: %w", text, name, err)
	}
	return nil
}

func (m *Manager) setShares(p string, shares int64) error {
	if m.version == V2 {
		return m.write("cpu", p, "cpu.weight", strconv.FormatInt(Weight(shares), 10))
	}
	return m.write("cpu", p, "cpu.shares", strconv.FormatInt(shares, 10))
}

func (m *Manager) setQuota(p string, quota int64) error {
	switch {
	case quota == 0:
		return nil // a new cgroup has none
	case m.version == V2:
		return m.write("cpu", p, "cpu.max", fmt.Sprintf("%d %d", quota, Period))
	}
	if err := m.write("cpu", p, "cpu.cfs_period_us", strconv.Itoa(Period)); err != nil {
		return err
	}
	return m.write("cpu", p, "cpu.cfs_quota_us", strconv.FormatInt(quota, 10))
}

// setHugePages bounds a pod's huge pages of each size that the kernel counts; without a limit it may have none, as in Kubernetes.
func (m *Manager) setHugePages(pod *corev1.Pod, p string) error {
	folder, suffix := "hugetlb", ".limit_in_bytes"
	switch {
	case m.version == V2:
		folder, suffix = "", ".max"
	case !slices.Contains(m.controllers, folder):
		folder, suffix = unified, ".max"
	}
	files, err := filepath.Glob(filepath.Join(m.mount, folder, p, "hugetlb.*B"+suffix))
	if err != nil || len(files) == 0 {
		return err
	}
	limits := map[string]int64{}
	for name, amount := range Requests(pod) {
		if size, ok := PageSize(name); ok {
			limits[size] = amount
		}
	}
	for _, file := range files {
		size := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(file), "hugetlb."), suffix)
		if err := os.WriteFile(file, []byte(strconv.FormatInt(limits[size], 10)), 0o644); err != nil {
			return fmt.Errorf("cgroup: limit of huge pages of %s: %w", size, err)
		}
	}
	return nil
}

func (m *Manager) setMemory(p string, limit int64) error {
	switch {
	case limit == 0:
		return nil
	case m.version == V2:
		return m.write("memory", p, "memory.max", strconv.FormatInt(limit, 10))
	}
	return m.write("memory", p, "memory.limit_in_bytes", strconv.FormatInt(limit, 10))
}
