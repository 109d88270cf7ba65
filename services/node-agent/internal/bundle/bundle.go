// Package bundle runs the container runtime that comes with Dhow: one containerd for one node, under the node's own root and state
// folders, in the node's network namespace, with its processes and containers below the node's own cgroup.
//
// containerd is a process of its own session. It and the containers outlive the node agent, however that ends; the next agent finds
// containerd again and goes on supervising it. Only Stop ends it.
package bundle

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"dhow.dev/services/node-agent/internal/bundle/cgroup"
)

const (
	// maxSocketDir is containerd's limit for the folder of its shims' sockets, whose names fill up what sockaddr_un has.
	maxSocketDir = 42
	// maxSocket is sun_path less its terminator, less ".ttrpc", which containerd appends.
	maxSocket = 107 - len(".ttrpc")

	defaultSandboxImage = "dhow.dev/pause:1"
	defaultMaxLog       = 16 << 20
)

// Registry says how to reach a registry that has no TLS.
type Registry struct {
	// Host is the registry's part of image names: "10.88.0.1:5000" or "registry.example".
	Host string
	// Endpoint is where it is; empty means "http://" and Host.
	Endpoint string
}

// Config describes a node's runtime. Two runtimes on one machine must differ in Root, State and CgroupParent.
type Config struct {
	// RuntimeDir holds the bundle that tools/setup.sh builds; FindRuntimeDir finds it.
	RuntimeDir string
	// Root keeps images, containers' file systems, configuration and logs. It survives a reboot.
	Root string
	// State keeps sockets, mounts and namespaces. It belongs on a tmpfs, and may have at most 40 characters.
	State string
	// Socket is containerd's and CRI's; empty means State/containerd.sock.
	Socket string
	// NetNS is the network namespace's file to run in; empty means that of this process.
	NetNS string
	// CNIConfDir holds the node's network configuration; empty means Root/cni/net.d. It may be filled later: containerd watches it.
	CNIConfDir string
	// CNIBinDirs holds CNI plugins; empty means RuntimeDir.
	CNIBinDirs []string
	// CgroupParent is the node's own cgroup, such as "/dhow/demo/node-1". The runtime lives in its child "runtime". Pods have to be
	// given parents below it, or Stop cannot find what is left of them.
	CgroupParent string
	Registries   []Registry
	// SandboxImage holds pods' namespaces; empty means the bundle's own, which needs no registry.
	SandboxImage string
	// Archives are image archives to import beside the bundle's pause.tar, once each.
	Archives []string
	// MaxLog bounds containerd's log file in bytes, with one older file of that size beside it; 0 means 16 MiB.
	MaxLog int64
	Logger *slog.Logger
}

// Info says what the machine offers and what was made of it, for the node's status.
type Info struct {
	ContainerdVersion string
	CgroupVersion     cgroup.Version
	// Snapshotter is "overlayfs", or "native" where the file system below Root cannot carry an overlay.
	Snapshotter string
	// RestrictedOOM is set where CAP_SYS_RESOURCE is missing: containers then cannot be made less likely to be killed than this process.
	RestrictedOOM bool
}

// Runtime is a node's runtime.
type Runtime struct {
	cfg     Config
	cgroups *cgroup.Hierarchies
	ready   chan struct{}

	mu   sync.Mutex
	info Info
	last error // why it is not ready yet
}

var cgroupPath = regexp.MustCompile(`^(/[A-Za-z0-9_.:-]+)+$`)

// New checks the configuration. It starts nothing and writes nothing.
func New(cfg Config) (*Runtime, error) {
	cfg, err := complete(cfg)
	if err != nil {
		return nil, err
	}
	cgroups, err := cgroup.Open()
	if err != nil {
		return nil, err
	}
	return &Runtime{cfg: cfg, cgroups: cgroups, ready: make(chan struct{}), last: errors.New("not started")}, nil
}

// complete checks the configuration and fills in what may be left out.
func complete(cfg Config) (Config, error) {
	for _, field := range []struct{ name, path string }{
		{"RuntimeDir", cfg.RuntimeDir}, {"Root", cfg.Root}, {"State", cfg.State},
		{"Socket", cfg.Socket}, {"NetNS", cfg.NetNS}, {"CNIConfDir", cfg.CNIConfDir},
	} {
		required := field.name == "RuntimeDir" || field.name == "Root" || field.name == "State"
		if field.path == "" && required {
			return cfg, fmt.Errorf("container runtime: %s is required", field.name)
		}
		// The folders are deleted by Stop with what is in them, so nothing vague is accepted.
		if field.path != "" && (!filepath.IsAbs(field.path) || filepath.Clean(field.path) != field.path || field.path == "/") {
			return cfg, fmt.Errorf("container runtime: %s %q must be an absolute, clean path", field.name, field.path)
		}
	}
	if within(cfg.Root, cfg.State) || within(cfg.State, cfg.Root) {
		return cfg, fmt.Errorf("container runtime: Root %s and State %s must not contain each other", cfg.Root, cfg.State)
	}
	if !cgroupPath.MatchString(cfg.CgroupParent) || filepath.Clean(cfg.CgroupParent) != cfg.CgroupParent {
		return cfg, fmt.Errorf("container runtime: CgroupParent %q must be an absolute cgroup path such as /dhow/cluster/node", cfg.CgroupParent)
	}
	if cfg.Socket == "" {
		cfg.Socket = filepath.Join(cfg.State, "containerd.sock")
	}
	if len(cfg.Socket) > maxSocket {
		return cfg, fmt.Errorf("container runtime: Socket %s has %d characters, a socket's path may have %d: choose a shorter State", cfg.Socket, len(cfg.Socket), maxSocket)
	}
	if dir := shimSocketDir(cfg); len(dir) > maxSocketDir {
		return cfg, fmt.Errorf("container runtime: State %s has %d characters, may have %d: choose a shorter path, such as /run/dhow/NODE", cfg.State, len(cfg.State), maxSocketDir-2)
	}
	if cfg.CNIConfDir == "" {
		cfg.CNIConfDir = filepath.Join(cfg.Root, "cni", "net.d")
	}
	if len(cfg.CNIBinDirs) == 0 {
		cfg.CNIBinDirs = []string{cfg.RuntimeDir}
	}
	if cfg.SandboxImage == "" {
		cfg.SandboxImage = defaultSandboxImage
	}
	if cfg.MaxLog == 0 {
		cfg.MaxLog = defaultMaxLog
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	for i, r := range cfg.Registries {
		if r.Host == "" || strings.ContainsAny(r.Host, "/ ") {
			return cfg, fmt.Errorf("container runtime: Registries[%d].Host %q must be a host name or address, with its port", i, r.Host)
		}
	}
	return cfg, nil
}

func within(dir, parent string) bool {
	return dir == parent || strings.HasPrefix(dir, parent+"/")
}

// Endpoint is CRI's address as gRPC targets it. containerd listens there from Run on.
func (r *Runtime) Endpoint() string { return "unix://" + r.cfg.Socket }

// CgroupParent is the cgroup that pods' groups have to be made in.
func (r *Runtime) CgroupParent() string { return r.cfg.CgroupParent }

// CNIConfDir is the folder that the node's network configuration belongs in (see BridgeNetwork).
func (r *Runtime) CNIConfDir() string { return r.cfg.CNIConfDir }

// CNIDataDir is the folder for address reservations. Stop clears it with the pods that hold them.
func (r *Runtime) CNIDataDir() string { return cniDataDir(r.cfg) }

// Info is complete once the runtime is ready.
func (r *Runtime) Info() Info {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.info
}

// Ready is closed when the runtime first answered and has its images. It may fail and come back later; CRI clients see that themselves.
func (r *Runtime) Ready() <-chan struct{} { return r.ready }

// WaitReady waits for Ready; when ctx ends before, the error says what the runtime is failing at.
func (r *Runtime) WaitReady(ctx context.Context) error {
	select {
	case <-r.ready:
		return nil
	case <-ctx.Done():
		r.mu.Lock()
		defer r.mu.Unlock()
		return fmt.Errorf("container runtime is not ready: %w (%w)", r.last, ctx.Err())
	}
}

func (r *Runtime) setLast(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last = err
}

// FindRuntimeDir finds the bundle: where DHOW_RUNTIME_DIR says, in "runtime" beside this program, or in /usr/lib/dhow/runtime.
func FindRuntimeDir() (string, error) {
	if dir := os.Getenv("DHOW_RUNTIME_DIR"); dir != "" {
		if err := checkRuntimeDir(dir); err != nil {
			return "", fmt.Errorf("DHOW_RUNTIME_DIR: %w", err)
		}
		return filepath.Abs(dir)
	}
	candidates := []string{"/usr/lib/dhow/runtime"}
	if program, err := os.Executable(); err == nil {
		candidates = append([]string{filepath.Join(filepath.Dir(program), "runtime")}, candidates...)
	}
	var failed []error
	for _, dir := range candidates {
		err := checkRuntimeDir(dir)
		if err == nil {
			return dir, nil
		}
		failed = append(failed, err)
	}
	return "", fmt.Errorf("the container runtime is not installed: run `make setup`, or set DHOW_RUNTIME_DIR: %w", errors.Join(failed...))
}

// bundleFiles are those that a node cannot do without.
var bundleFiles = []string{"containerd", "containerd-shim-runc-v2", "ctr", "runc", "bridge", "host-local", "loopback", "portmap", "pause.tar"}

func checkRuntimeDir(dir string) error {
	for _, file := range bundleFiles {
		if _, err := os.Stat(filepath.Join(dir, file)); err != nil {
			return fmt.Errorf("the bundle in %s is not complete: %w", dir, err)
		}
	}
	return nil
}

// Paths below the two roots.
func shimSocketDir(cfg Config) string { return filepath.Join(cfg.State, "s") }
func configFile(cfg Config) string    { return filepath.Join(cfg.Root, "config.toml") }
func certsDir(cfg Config) string      { return filepath.Join(cfg.Root, "certs.d") }
func cniDataDir(cfg Config) string    { return filepath.Join(cfg.Root, "cni", "data") }
func logFile(cfg Config) string       { return filepath.Join(cfg.Root, "containerd.log") }
func recordFile(cfg Config) string    { return filepath.Join(cfg.Root, "containerd.pid") }
func lockFile(cfg Config) string      { return filepath.Join(cfg.Root, "supervisor.lock") }
func importedFile(cfg Config) string  { return filepath.Join(cfg.Root, "imported.json") }
func runtimeCgroup(cfg Config) string { return cfg.CgroupParent + "/runtime" }

// lock keeps two agents from supervising one runtime. The kernel lets go of it when the holder ends, however it ends.
func lock(cfg Config) (*os.File, error) {
	if err := os.MkdirAll(cfg.Root, 0o711); err != nil {
		return nil, fmt.Errorf("container runtime: %w", err)
	}
	f, err := os.OpenFile(lockFile(cfg), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("container runtime: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("the container runtime in %s is supervised by another process: stop that node agent first (%w)", cfg.Root, err)
	}
	return f, nil
}

// listening tells a dead socket file from a live one.
func listening(ctx context.Context, socket string) bool {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return false
	}
	conn.Close()
	return true
}
