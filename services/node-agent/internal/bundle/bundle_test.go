package bundle

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dhow.dev/services/node-agent/internal/bundle/cgroup"
)

func valid() Config {
	return Config{RuntimeDir: "/opt/runtime", Root: "/var/lib/node", State: "/run/node", CgroupParent: "/dhow/demo/node-1"}
}

func TestNewFillsInDefaults(t *testing.T) {
	r, err := New(valid())
	if err != nil {
		t.Fatal(err)
	}
	if r.Endpoint() != "unix:///run/node/containerd.sock" || r.CNIConfDir() != "/var/lib/node/cni/net.d" || r.CgroupParent() != "/dhow/demo/node-1" {
		t.Errorf("endpoint %s, CNI %s, cgroup %s", r.Endpoint(), r.CNIConfDir(), r.CgroupParent())
	}
	select {
	case <-r.Ready():
		t.Error("ready before Run")
	default:
	}
}

func TestNewRefusesBadConfigurations(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"no root":         {func(c *Config) { c.Root = "" }, "Root is required"},
		"relative state":  {func(c *Config) { c.State = "run/node" }, "State"},
		"root is slash":   {func(c *Config) { c.Root = "/" }, "Root"},
		"dots":            {func(c *Config) { c.Root = "/var/../etc" }, "Root"},
		"nested":          {func(c *Config) { c.State = "/var/lib/node/state" }, "contain each other"},
		"long state":      {func(c *Config) { c.State = "/run/" + strings.Repeat("n", 40) }, "choose a shorter path"},
		"long socket":     {func(c *Config) { c.Socket = "/run/" + strings.Repeat("n", 100) }, "Socket"},
		"cgroup root":     {func(c *Config) { c.CgroupParent = "/" }, "CgroupParent"},
		"cgroup escapes":  {func(c *Config) { c.CgroupParent = "/dhow/../x" }, "CgroupParent"},
		"registry scheme": {func(c *Config) { c.Registries = []Registry{{Host: "http://x"}} }, "Registries[0].Host"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := valid()
			test.change(&cfg)
			if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("got %v, want an error with %q", err, test.want)
			}
		})
	}
}

func TestConfigurationNamesEverythingOfTheNode(t *testing.T) {
	cfg, err := complete(valid())
	if err != nil {
		t.Fatal(err)
	}
	got := renderConfig(cfg, Info{Snapshotter: "native", RestrictedOOM: true, CgroupVersion: cgroup.V1})
	for _, want := range []string{
		"version = 3", `root = "/var/lib/node/containerd"`, `state = "/run/node/containerd"`, `snapshotter = "native"`,
		"restrict_oom_score_adj = true", "SystemdCgroup = false", `sandbox = "dhow.dev/pause:1"`, `socket_dir = "/run/node/s"`,
		`BinaryName = "/opt/runtime/runc"`, `Root = "/run/node/runc"`, `path = "/dhow/demo/node-1/runtime"`, `bin_dirs = ["/opt/runtime"]`,
		// One for images and one for rates: neither asks every shim every few seconds.
		"stats_collect_period = 60\n", "stats_collect_period = '24h'\n", "pause_threshold = 0.001\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("configuration lacks %s:\n%s", want, got)
		}
	}
	if again := renderConfig(cfg, Info{Snapshotter: "overlayfs"}); strings.Contains(again, "restrict_oom_score_adj = true") {
		t.Error("restricted although the capability is there")
	}
}

func TestQuoteEscapes(t *testing.T) {
	if got := quote("a\"b\\c\n"); got != `"a\"b\\c\n"` {
		t.Errorf("got %s", got)
	}
}

func TestRegistriesAreReplaced(t *testing.T) {
	cfg := valid()
	cfg.Root = t.TempDir()
	cfg.Registries = []Registry{{Host: "10.0.0.1:5000"}, {Host: "registry.example", Endpoint: "http://10.0.0.1:5000"}}
	if err := writeRegistries(cfg); err != nil {
		t.Fatal(err)
	}
	for host, want := range map[string]string{"10.0.0.1:5000": `[host."http://10.0.0.1:5000"]`, "registry.example": `server = "http://10.0.0.1:5000"`} {
		data, err := os.ReadFile(filepath.Join(certsDir(cfg), host, "hosts.toml"))
		if err != nil || !strings.Contains(string(data), want) {
			t.Errorf("%s: got %s, %v; want %s", host, data, err, want)
		}
	}
	cfg.Registries = nil
	if err := writeRegistries(cfg); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(certsDir(cfg)); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestBridgeNetwork(t *testing.T) {
	dir := t.TempDir()
	network := BridgeNetwork{Name: "dhow-demo-node-1", Bridge: "cni0", PodCIDR: netip.MustParsePrefix("10.244.1.0/24"), MTU: 1450, DataDir: "/data"}
	if err := network.Write(dir); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(dir, "10-dhow.conflist"))
	if err != nil {
		t.Fatal(err)
	}
	var parsed struct {
		Plugins []struct {
			Type string `json:"type"`
			MTU  int    `json:"mtu"`
			IPAM struct {
				Ranges [][]struct{ Subnet string } `json:"ranges"`
			} `json:"ipam"`
		} `json:"plugins"`
	}
	if err := json.Unmarshal(data, &parsed); err != nil {
		t.Fatal(err)
	}
	if p := parsed.Plugins[0]; p.Type != "bridge" || p.MTU != 1450 || p.IPAM.Ranges[0][0].Subnet != "10.244.1.0/24" {
		t.Errorf("bridge: %+v", p)
	}
	if names, err := networkNames(dir); err != nil || len(names) != 1 || names[0] != network.Name {
		t.Errorf("names: %v, %v", names, err)
	}
	network.PodCIDR = netip.MustParsePrefix("10.244.1.7/24")
	if err := network.Write(dir); err == nil {
		t.Error("an address was accepted as a network")
	}
}

func TestRotateLogKeepsTheNewestPart(t *testing.T) {
	file := filepath.Join(t.TempDir(), "log")
	writer, err := os.OpenFile(file, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer writer.Close()
	content := bytes.Repeat([]byte("0123456789\n"), 100)
	if _, err := writer.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := rotateLog(file, int64(len(content))); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(file + ".1"); !os.IsNotExist(err) {
		t.Fatalf("rotated at its limit: %v", err)
	}
	if err := rotateLog(file, 110); err != nil {
		t.Fatal(err)
	}
	if old, err := os.ReadFile(file + ".1"); err != nil || !bytes.Equal(old, content[:110]) {
		t.Errorf("older part: %q, %v", old, err)
	}
	if _, err := writer.Write([]byte("after\nlast\n")); err != nil {
		t.Fatal(err)
	}
	if now, err := os.ReadFile(file); err != nil || string(now) != "after\nlast\n" {
		t.Errorf("after rotation: %q, %v", now, err)
	}
	if got := logTail(file); got != "last" {
		t.Errorf("tail: %q", got)
	}
	if err := rotateLog(file+"-missing", 1); err != nil {
		t.Errorf("missing log: %v", err)
	}
}

func TestOneSupervisorAtATime(t *testing.T) {
	cfg := valid()
	cfg.Root = t.TempDir()
	first, err := lock(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lock(cfg); err == nil || !strings.Contains(err.Error(), "supervised by another process") {
		t.Fatalf("second lock: %v", err)
	}
	first.Close()
	second, err := lock(cfg)
	if err != nil {
		t.Fatal(err)
	}
	second.Close()
}

func TestStopWithoutARuntime(t *testing.T) {
	cfg := valid()
	cfg.Root, cfg.State = filepath.Join(t.TempDir(), "root"), "/run/dhow-none"
	if err := Stop(t.Context(), cfg, StopOptions{Data: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(cfg.Root); !os.IsNotExist(err) {
		t.Errorf("root was made: %v", err)
	}
}

func TestFindRuntimeDirExplainsWhatToDo(t *testing.T) {
	t.Setenv("DHOW_RUNTIME_DIR", t.TempDir())
	if _, err := FindRuntimeDir(); err == nil || !strings.Contains(err.Error(), "not complete") {
		t.Errorf("got %v", err)
	}
	t.Setenv("DHOW_RUNTIME_DIR", "")
	if _, err := FindRuntimeDir(); err == nil || !strings.Contains(err.Error(), "make setup") {
		t.Errorf("got %v", err)
	}
}
