package bundle

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// unneeded are containerd's plugins that a node has no use for. It is not for memory, which is the same with all of them (45 MB resident
// when idle): NRI, the verifier and opt use paths that all nodes of a machine would share, the restart monitor would compete with the
// agent, and the storage drivers fail loudly at every start.
var unneeded = []string{
	"io.containerd.image-verifier.v1.bindir",
	"io.containerd.internal.v1.opt",
	"io.containerd.internal.v1.tracing",
	"io.containerd.tracing.processor.v1.otlp",
	"io.containerd.monitor.container.v1.restart",
	"io.containerd.nri.v1.nri",
	"io.containerd.snapshotter.v1.blockfile",
	"io.containerd.snapshotter.v1.btrfs",
	"io.containerd.snapshotter.v1.devmapper",
	"io.containerd.snapshotter.v1.erofs",
	"io.containerd.snapshotter.v1.zfs",
	"io.containerd.differ.v1.erofs",
	"io.containerd.mount-handler.v1.erofs",
}

// renderConfig writes containerd's configuration, format version 3, which containerd 2.0 and later read.
func renderConfig(cfg Config, info Info) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }

	line("version = 3")
	line("root = %s", quote(filepath.Join(cfg.Root, "containerd")))
	line("state = %s", quote(filepath.Join(cfg.State, "containerd")))
	line("disabled_plugins = %s", quoteAll(unneeded))
	line("\n[grpc]\n  address = %s", quote(cfg.Socket))
	line("\n[ttrpc]\n  address = %s", quote(cfg.Socket+".ttrpc"))
	line("\n[cgroup]\n  path = %s", quote(runtimeCgroup(cfg)))

	line("\n[plugins.'io.containerd.shim.v1.manager']")
	line("  socket_dir = %s", quote(shimSocketDir(cfg)))

	line("\n[plugins.'io.containerd.cri.v1.images']")
	line("  snapshotter = %s", quote(info.Snapshotter))
	// How much space images take is asked for rarely; walking all snapshots every 10 s is the idle cost of the default.
	line("  stats_collect_period = 60")
	line("  [plugins.'io.containerd.cri.v1.images'.pinned_images]")
	line("    sandbox = %s", quote(cfg.SandboxImage))
	line("  [plugins.'io.containerd.cri.v1.images'.registry]")
	line("    config_path = %s", quote(certsDir(cfg)))

	line("\n[plugins.'io.containerd.cri.v1.runtime']")
	line("  restrict_oom_score_adj = %t", info.RestrictedOOM)
	line("  netns_mounts_under_state_dir = true")
	// For rates of CPU use containerd calls into every shim at every period, which is most of what a quiet node with many pods does. Nobody asks for these rates: the agent reads cgroups.
	line("  stats_collect_period = '24h'")
	line("  cdi_spec_dirs = []")
	// Dhow supports cgroup v1 on purpose, and says which version it found; as a failed condition it would only alarm.
	line("  ignore_deprecation_warnings = ['io.containerd.deprecation/cgroup-v1']")
	line("  enable_criu = false")
	line("  [plugins.'io.containerd.cri.v1.runtime'.cni]")
	line("    bin_dirs = %s", quoteAll(cfg.CNIBinDirs))
	line("    conf_dir = %s", quote(cfg.CNIConfDir))
	// One process less to start for each pod than with the loopback plugin.
	line("    use_internal_loopback = true")
	line("  [plugins.'io.containerd.cri.v1.runtime'.containerd]")
	line("    default_runtime_name = 'runc'")
	line("    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]")
	line("      runtime_type = 'io.containerd.runc.v2'")
	line("      runtime_path = %s", quote(filepath.Join(cfg.RuntimeDir, "containerd-shim-runc-v2")))
	line("      [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]")
	line("        BinaryName = %s", quote(filepath.Join(cfg.RuntimeDir, "runc")))
	line("        Root = %s", quote(filepath.Join(cfg.State, "runc")))
	line("        ShimCgroup = %s", quote(runtimeCgroup(cfg)))
	line("        SystemdCgroup = false")

	// containerd looks for something to collect as often as its collections, which stop writers, may take this part of the time: with the default of 0.02 four times a second for ever.
	line("\n[plugins.'io.containerd.gc.v1.scheduler']\n  pause_threshold = 0.001")

	line("\n[plugins.'io.containerd.grpc.v1.cri']")
	line("  disable_tcp_service = true")
	line("  stream_server_address = '127.0.0.1'")
	line("  stream_server_port = '0'")
	return b.String()
}

// quote makes a TOML basic string. JSON's escapes are a subset of TOML's.
func quote(s string) string {
	data, _ := json.Marshal(s) // strings always marshal
	return string(data)
}

func quoteAll(items []string) string {
	quoted := make([]string, len(items))
	for i, item := range items {
		quoted[i] = quote(item)
	}
	return "[" + strings.Join(quoted, ", ") + "]"
}

// writeRegistries tells containerd about registries without TLS. It reads these files at every pull, so a change needs no restart.
func writeRegistries(cfg Config) error {
	// Registries that were removed from the configuration must not stay reachable without TLS.
	if err := os.RemoveAll(certsDir(cfg)); err != nil {
		return err
	}
	if err := os.MkdirAll(certsDir(cfg), 0o755); err != nil {
		return err
	}
	for _, r := range cfg.Registries {
		endpoint := r.Endpoint
		if endpoint == "" {
			endpoint = "http://" + r.Host
		}
		dir := filepath.Join(certsDir(cfg), r.Host)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		content := fmt.Sprintf("server = %s\n\n[host.%s]\n  capabilities = [\"pull\", \"resolve\"]\n", quote(endpoint), quote(endpoint))
		if err := writeFile(filepath.Join(dir, "hosts.toml"), []byte(content)); err != nil {
			return err
		}
	}
	return nil
}

// writeFile replaces the file as a whole.
func writeFile(file string, data []byte) error {
	tmp, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) // fails after the rename, as it should
	_, err = tmp.Write(data)
	if err := errors.Join(err, tmp.Chmod(0o644), tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), file)
}

// fileDigest names a file's content.
func fileDigest(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// chooseSnapshotter tries an overlay below root, because some file systems (another overlay, network ones) cannot carry it.
func chooseSnapshotter(root string) (string, error) {
	dir, err := os.MkdirTemp(root, "overlay-check-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	for _, part := range []string{"lower", "upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(dir, part), 0o700); err != nil {
			return "", err
		}
	}
	merged := filepath.Join(dir, "merged")
	options := fmt.Sprintf("lowerdir=%[1]s/lower,upperdir=%[1]s/upper,workdir=%[1]s/work", dir)
	if err := unix.Mount("overlay", merged, "overlay", 0, options); err != nil {
		return "native", nil
	}
	return "overlayfs", unix.Unmount(merged, unix.MNT_DETACH)
}

// effectiveCapability reports whether this process, and so containerd, has the capability.
func effectiveCapability(number uint) (bool, error) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return false, err
	}
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, "CapEff:"); ok {
			var set uint64
			if _, err := fmt.Sscanf(strings.TrimSpace(value), "%x", &set); err != nil {
				return false, fmt.Errorf("read capabilities: %w", err)
			}
			return set&(1<<number) != 0, nil
		}
	}
	return false, errors.New("read capabilities: /proc/self/status has no CapEff")
}
