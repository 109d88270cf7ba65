// Package machine says what the node's machine is and how it is: capacity, system information, conditions.
package machine

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"k8s.io/apimachinery/pkg/api/resource"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/version"
	"dhow.dev/services/node-agent/internal/cri"
)

// defaultPods is Kubernetes' default.
const defaultPods = 110

// Labels and annotations that the node gives itself.
const (
	LabelCgroupVersion = "dhow.dev/cgroup-version"
	labelHostname      = "kubernetes.io/hostname"
	labelOS            = "kubernetes.io/os"
	labelArch          = "kubernetes.io/arch"
)

// Config is what a Machine needs.
type Config struct {
	NodeName  string
	Addresses []string
	Labels    map[string]string
	Taints    []*corev1.Taint
	// Capacity replaces what the machine has, by resource name; Reserved is kept from pods.
	Capacity, Reserved map[string]string
	// Fraction of the machine's CPU and memory that the node may use, for several nodes on one machine; 0 is all.
	Fraction float64
	// Dir is on the file system whose space counts.
	Dir           string
	CgroupVersion string
	// Pressures says of what the node has too little; nil: of nothing.
	Pressures func() Pressures
	// ShuttingDown says whether the machine is shutting down; nil: it is not.
	ShuttingDown func() bool
}

// Pressures say of what a node has too little.
type Pressures struct{ Memory, Disk, PIDs bool }

// Machine is the node's machine.
type Machine struct {
	config   Config
	capacity map[string]*metav1.Quantity
	info     *corev1.NodeSystemInfo
	memory   int64
	// huge is how much of the memory is set aside as huge pages.
	huge int64
}

// New looks at the machine.
func New(config Config) (*Machine, error) {
	m := &Machine{config: config, capacity: map[string]*metav1.Quantity{}}
	info, err := memoryInfo()
	if err != nil {
		return nil, err
	}
	m.memory = info["MemTotal"]
	cpus := int64(runtime.NumCPU()) * 1000
	memory := m.memory
	if f := config.Fraction; f > 0 && f < 1 {
		cpus, memory = int64(float64(cpus)*f), int64(float64(memory)*f)
	}
	var disk unix.Statfs_t
	if err := unix.Statfs(config.Dir, &disk); err != nil {
		return nil, fmt.Errorf("disk space of %s: %w", config.Dir, err)
	}
	set := func(name string, q *resource.Quantity) { m.capacity[name] = quantity(q) }
	set("cpu", resource.NewMilliQuantity(cpus, resource.DecimalSI))
	set("memory", resource.NewQuantity(memory>>10<<10, resource.BinarySI))
	set("ephemeral-storage", resource.NewQuantity(int64(disk.Blocks)*disk.Bsize>>10<<10, resource.BinarySI))
	set("pods", resource.NewQuantity(defaultPods, resource.DecimalSI))
	if err := m.hugePages(hugePagesDir, set); err != nil {
		return nil, err
	}
	for name, text := range config.Capacity {
		q, err := resource.ParseQuantity(text)
		if err != nil {
			return nil, fmt.Errorf("capacity of %s is %q: %w", name, text, err)
		}
		set(name, &q)
	}
	for name, text := range config.Reserved {
		if _, err := resource.ParseQuantity(text); err != nil {
			return nil, fmt.Errorf("reserved %s is %q: %w", name, text, err)
		}
	}
	m.info = systemInfo()
	return m, nil
}

// hugePagesDir is where Linux says what huge pages there are.
const hugePagesDir = "/sys/kernel/mm/hugepages"

// hugePages counts the huge pages of each size as a resource.
func (m *Machine) hugePages(dir string, set func(string, *resource.Quantity)) error {
	sizes, err := filepath.Glob(filepath.Join(dir, "hugepages-*kB"))
	if err != nil {
		return err
	}
	for _, size := range sizes {
		kilobytes, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimPrefix(filepath.Base(size), "hugepages-"), "kB"), 10, 64)
		if err != nil {
			return fmt.Errorf("huge pages: %w", err)
		}
		n, err := number(filepath.Join(size, "nr_hugepages"))
		if err != nil {
			return fmt.Errorf("huge pages: %w", err)
		}
		if f := m.config.Fraction; f > 0 && f < 1 {
			n = int64(float64(n) * f)
		}
		m.huge += n * kilobytes << 10
		set("hugepages-"+resource.NewQuantity(kilobytes<<10, resource.BinarySI).String(), resource.NewQuantity(n*kilobytes<<10, resource.BinarySI))
	}
	return nil
}

// HugePages says whether the machine has huge pages.
func (m *Machine) HugePages() bool { return m.huge > 0 }

func quantity(q *resource.Quantity) *metav1.Quantity {
	return metav1.Quantity_builder{String: proto.String(q.String())}.Build()
}

// Capacity returns what the node has of a resource.
func (m *Machine) Capacity(name string) int64 {
	q, err := resource.ParseQuantity(m.capacity[name].GetString())
	if err != nil {
		return 0
	}
	return q.Value()
}

// Memory returns the machine's memory in bytes.
func (m *Machine) Memory() int64 { return m.memory }

// Labels returns the node's labels.
func (m *Machine) Labels() map[string]string {
	labels := map[string]string{labelHostname: m.config.NodeName, labelOS: runtime.GOOS, labelArch: runtime.GOARCH, LabelCgroupVersion: m.config.CgroupVersion}
	maps.Copy(labels, m.config.Labels)
	return labels
}

// Allocatable returns what pods may use.
func (m *Machine) Allocatable() map[string]*metav1.Quantity {
	allocatable := maps.Clone(m.capacity)
	for name, text := range m.config.Reserved {
		have := m.capacity[name]
		if have == nil {
			continue
		}
		left, kept := resource.MustParse(have.GetString()), resource.MustParse(text) // both were checked by New
		left.Sub(kept)
		if left.Sign() < 0 {
			left = resource.MustParse("0")
		}
		allocatable[name] = quantity(&left)
	}
	if m.huge > 0 {
		// Huge pages are memory that nobody else can have.
		left := resource.MustParse(allocatable["memory"].GetString())
		left.Sub(*resource.NewQuantity(m.huge, resource.BinarySI))
		if left.Sign() < 0 {
			left = resource.MustParse("0")
		}
		allocatable["memory"] = quantity(&left)
	}
	return allocatable
}

// Node returns the Node that the agent registers.
func (m *Machine) Node(status *corev1.NodeStatus) *corev1.Node {
	return corev1.Node_builder{
		Metadata: metav1.ObjectMeta_builder{Name: proto.String(m.config.NodeName), Labels: m.Labels()}.Build(),
		Spec:     corev1.NodeSpec_builder{Taints: m.config.Taints}.Build(),
		Status:   status,
	}.Build()
}

// Status returns the node's status now. Times of conditions are carried over from before while a condition stays.
func (m *Machine) Status(before *corev1.NodeStatus, rt cri.Status, runtimeErr error, now time.Time) *corev1.NodeStatus {
	s := corev1.NodeStatus_builder{Capacity: m.capacity, Allocatable: m.Allocatable()}.Build()
	var addresses []*corev1.NodeAddress
	for _, a := range m.config.Addresses {
		addresses = append(addresses, corev1.NodeAddress_builder{Type: proto.String("InternalIP"), Address: proto.String(a)}.Build())
	}
	s.SetAddresses(append(addresses, corev1.NodeAddress_builder{Type: proto.String("Hostname"), Address: proto.String(m.config.NodeName)}.Build()))
	info := proto.CloneOf(m.info)
	if rt.Name != "" {
		info.SetContainerRuntimeVersion(rt.Name + "://" + rt.Version)
	}
	s.SetNodeInfo(info)
	old := map[string]*corev1.NodeCondition{}
	for _, c := range before.GetConditions() {
		old[c.GetType()] = c
	}
	if runtimeErr == nil && rt.Name != "" {
		s.SetFeatures(corev1.NodeFeatures_builder{SupplementalGroupsPolicy: proto.Bool(rt.SupplementalGroupsPolicy)}.Build())
		var handlers []*corev1.NodeRuntimeHandler
		for _, h := range rt.Handlers {
			handlers = append(handlers, corev1.NodeRuntimeHandler_builder{Name: proto.String(h.Name), Features: corev1.NodeRuntimeHandlerFeatures_builder{
				RecursiveReadOnlyMounts: proto.Bool(h.RecursiveReadOnlyMounts), UserNamespaces: proto.Bool(h.UserNamespaces)}.Build()}.Build())
		}
		s.SetRuntimeHandlers(handlers)
	} else {
		s.SetFeatures(before.GetFeatures())
		s.SetRuntimeHandlers(before.GetRuntimeHandlers())
	}
	var conditions []*corev1.NodeCondition
	for _, v := range append(m.pressures(), m.ready(rt, runtimeErr)) {
		at := metav1.Time_builder{Seconds: proto.Int64(now.Unix()), Nanos: proto.Int32(0)}.Build()
		since, beat := at, at
		if o := old[v.kind]; o.GetStatus() == v.status && o.HasLastTransitionTime() {
			since = o.GetLastTransitionTime()
			if o.GetReason() == v.reason && o.GetMessage() == v.message {
				// Heartbeats travel on the session; this time moves with the condition only, or every look would be a change.
				beat = o.GetLastHeartbeatTime()
			}
		}
		conditions = append(conditions, corev1.NodeCondition_builder{Type: proto.String(v.kind), Status: proto.String(v.status), Reason: proto.String(v.reason),
			Message: proto.String(v.message), LastTransitionTime: since, LastHeartbeatTime: beat}.Build())
	}
	s.SetConditions(conditions)
	return s
}

type verdict struct {
	kind, status, reason, message string
}

func pressure(kind string, is bool, yes, no, yesText, noText string) verdict {
	if is {
		return verdict{kind, "True", yes, yesText}
	}
	return verdict{kind, "False", no, noText}
}

// pressures are the conditions that the evictor decides.
func (m *Machine) pressures() []verdict {
	var is Pressures
	if m.config.Pressures != nil {
		is = m.config.Pressures()
	}
	return []verdict{
		pressure("MemoryPressure", is.Memory, "KubeletHasInsufficientMemory", "KubeletHasSufficientMemory", "kubelet has insufficient memory available", "kubelet has sufficient memory available"),
		pressure("DiskPressure", is.Disk, "KubeletHasDiskPressure", "KubeletHasNoDiskPressure", "kubelet has disk pressure", "kubelet has no disk pressure"),
		pressure("PIDPressure", is.PIDs, "KubeletHasInsufficientPID", "KubeletHasSufficientPID", "kubelet has insufficient PID available", "kubelet has sufficient PID available"),
	}
}

// Processes returns how many processes and threads the machine has, and may have.
func Processes() (used, limit int64, err error) {
	if limit, err = number("/proc/sys/kernel/pid_max"); err != nil {
		return 0, 0, fmt.Errorf("process IDs: %w", err)
	}
	if threads, err := number("/proc/sys/kernel/threads-max"); err == nil {
		limit = min(limit, threads)
	}
	load, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return 0, 0, fmt.Errorf("process IDs: %w", err)
	}
	// The fourth field is runnable/existing.
	if fields := strings.Fields(string(load)); len(fields) > 3 {
		_, total, _ := strings.Cut(fields[3], "/")
		used, err = strconv.ParseInt(total, 10, 64)
	}
	return used, limit, err
}

func (m *Machine) ready(rt cri.Status, err error) verdict {
	switch {
	case m.config.ShuttingDown != nil && m.config.ShuttingDown():
		return verdict{"Ready", "False", "KubeletNotReady", "node is shutting down"}
	case err != nil:
		return verdict{"Ready", "False", "KubeletNotReady", "container runtime is down: " + err.Error()}
	case !rt.RuntimeReady:
		return verdict{"Ready", "False", "KubeletNotReady", "container runtime not ready: " + rt.Message}
	case !rt.NetworkReady:
		return verdict{"Ready", "False", "KubeletNotReady", "container runtime network not ready: " + rt.Message}
	}
	return verdict{"Ready", "True", "KubeletReady", "kubelet is posting ready status"}
}

func number(path string) (int64, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(string(bytes.TrimSpace(data)), 10, 64)
}

// memoryInfo reads /proc/meminfo, in bytes.
func memoryInfo() (map[string]int64, error) {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return nil, fmt.Errorf("memory of the machine: %w", err)
	}
	defer func() { _ = f.Close() }()
	info := map[string]int64{}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		name, rest, _ := strings.Cut(lines.Text(), ":")
		if fields := strings.Fields(rest); len(fields) > 0 {
			if n, err := strconv.ParseInt(fields[0], 10, 64); err == nil {
				info[name] = n << 10
			}
		}
	}
	return info, lines.Err()
}

func systemInfo() *corev1.NodeSystemInfo {
	text := func(path string) string {
		data, err := os.ReadFile(path)
		if err != nil {
			return "" // not every machine has each of these
		}
		return strings.TrimSpace(string(data))
	}
	image := runtime.GOOS
	for line := range strings.Lines(text("/etc/os-release")) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), "PRETTY_NAME="); ok {
			image = strings.Trim(v, `"`)
		}
	}
	id := text("/etc/machine-id")
	system := text("/sys/class/dmi/id/product_uuid")
	if system == "" {
		system = id
	}
	kubelet := version.Kubernetes + "+dhow"
	return corev1.NodeSystemInfo_builder{
		MachineId: proto.String(id), SystemUuid: proto.String(system), BootId: proto.String(text("/proc/sys/kernel/random/boot_id")),
		KernelVersion: proto.String(text("/proc/sys/kernel/osrelease")), OsImage: proto.String(image), ContainerRuntimeVersion: proto.String(""),
		KubeletVersion: proto.String(kubelet), KubeProxyVersion: proto.String(""), OperatingSystem: proto.String(runtime.GOOS), Architecture: proto.String(runtime.GOARCH),
	}.Build()
}

// AppArmor says whether the kernel enforces AppArmor profiles.
func AppArmor() bool {
	enabled, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	return err == nil && len(enabled) > 0 && enabled[0] == 'Y'
}

// Addresses returns the machine's own address: the first IPv4 one of an interface that is up and neither loopback nor a bridge of containers.
func Addresses() ([]netip.Addr, error) {
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("addresses of the machine: %w", err)
	}
	var found []netip.Addr
	for _, i := range interfaces {
		if i.Flags&net.FlagUp == 0 || i.Flags&net.FlagLoopback != 0 || strings.HasPrefix(i.Name, "dhow-") || strings.HasPrefix(i.Name, "cni") || strings.HasPrefix(i.Name, "docker") {
			continue
		}
		addresses, err := i.Addrs()
		if err != nil {
			return nil, fmt.Errorf("addresses of interface %s: %w", i.Name, err)
		}
		for _, a := range addresses {
			if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().IsGlobalUnicast() && p.Addr().Is4() {
				found = append(found, p.Addr())
			}
		}
	}
	if len(found) == 0 {
		return nil, errors.New("the machine has no IPv4 address besides loopback: give the node's address")
	}
	return found[:1], nil
}
