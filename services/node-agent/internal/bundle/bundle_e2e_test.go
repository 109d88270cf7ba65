//go:build e2e

package bundle

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"dhow.dev/pkg/hosts"
	"dhow.dev/pkg/image"
	"dhow.dev/pkg/process"
)

// limit bounds every wait of these tests; nothing here takes more than seconds on an idle machine.
const limit = 3 * time.Minute

// node is one host with its runtime, as the node agent would set it up.
type node struct {
	host    hosts.Host
	cfg     Config
	runtime *Runtime
	stop    func() // ends the supervisor, not containerd
	cri     runtimeapi.RuntimeServiceClient
	images  runtimeapi.ImageServiceClient
	// sharePIDs makes pods share one process namespace.
	sharePIDs bool
}

func (n *node) namespaces() *runtimeapi.NamespaceOption {
	mode := runtimeapi.NamespaceMode_CONTAINER
	if n.sharePIDs {
		mode = runtimeapi.NamespaceMode_POD
	}
	return &runtimeapi.NamespaceOption{Pid: mode}
}

func bundleDir(t testing.TB) string {
	t.Helper()
	if os.Getenv("DHOW_RUNTIME_DIR") == "" {
		dir, err := filepath.Abs("../../../../bin/runtime")
		if err != nil {
			t.Fatal(err)
		}
		t.Setenv("DHOW_RUNTIME_DIR", dir)
	}
	dir, err := FindRuntimeDir()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func newNetwork(t testing.TB) *hosts.Network {
	t.Helper()
	// RFC 2544's benchmarking networks: routed by no machine.
	subnet, err := hosts.FreeSubnet(netip.MustParsePrefix("198.19.0.0/16"), 28)
	if err != nil {
		t.Fatal(err)
	}
	network, err := hosts.New(hosts.Config{Name: fmt.Sprintf("rt%d", os.Getpid()), Subnet: subnet})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		left, err := network.Hosts()
		if err != nil {
			t.Error(err)
		}
		for _, host := range left {
			pids, err := host.Processes()
			if err != nil {
				t.Error(err)
			}
			for _, pid := range pids {
				t.Errorf("host %s still has process %d: %q", host.Name, pid, process.CommandLine(pid))
			}
		}
		if err := network.Down(); err != nil {
			t.Error(err)
		}
	})
	if err := network.Up(); err != nil {
		t.Fatal(err)
	}
	return network
}

func listenOn(t *testing.T, address netip.Addr) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", netip.AddrPortFrom(address, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func busyboxImage(t testing.TB) string {
	t.Helper()
	busybox, err := image.FindBusybox()
	if err != nil {
		t.Fatal(err)
	}
	img, err := image.Build(image.Spec{Busybox: busybox, Cmd: []string{"sh"}})
	if err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(t.TempDir(), "busybox.tar")
	if err := image.WriteArchive(archive, busyboxName, img); err != nil {
		t.Fatal(err)
	}
	return archive
}

const busyboxName = "dhow.test/busybox:1"

// newNode adds the i-th host and runs a runtime in it.
func newNode(t testing.TB, network *hosts.Network, i int, change func(*Config)) *node {
	t.Helper()
	address, err := network.Address(i)
	if err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("n%d", i)
	host, err := network.Add(name, address)
	if err != nil {
		t.Fatal(err)
	}
	id := fmt.Sprintf("%d-%s", os.Getpid(), name)
	cfg := Config{
		RuntimeDir: bundleDir(t), Root: filepath.Join(t.TempDir(), "root"), State: "/run/dhow-test/" + id,
		NetNS: host.NetNS, CgroupParent: "/dhow-test/" + id,
		Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
	if change != nil {
		change(&cfg)
	}
	n := &node{host: host, cfg: cfg}
	t.Cleanup(func() {
		n.stop()
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		if err := Stop(ctx, cfg, StopOptions{Data: true}); err != nil {
			t.Errorf("stop %s: %v", name, err)
		}
		assertNothingLeft(t, cfg)
		_ = os.Remove(filepath.Dir(cfg.State)) // when the last node is gone
	})
	n.supervise(t)
	podCIDR := netip.MustParsePrefix(fmt.Sprintf("10.244.%d.0/24", i))
	pods := BridgeNetwork{Name: "dhow-test-" + id, Bridge: "cni0", PodCIDR: podCIDR, DataDir: n.runtime.CNIDataDir()}
	if err := pods.Write(n.runtime.CNIConfDir()); err != nil {
		t.Fatal(err)
	}
	conn, err := dial(n.runtime.cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	n.cri, n.images = runtimeapi.NewRuntimeServiceClient(conn), runtimeapi.NewImageServiceClient(conn)
	eventually(t, "the network is ready", func() error {
		answer, err := n.cri.Status(t.Context(), &runtimeapi.StatusRequest{})
		if err != nil {
			return err
		}
		for _, c := range answer.GetStatus().GetConditions() {
			if c.GetType() == runtimeapi.NetworkReady && !c.GetStatus() {
				return fmt.Errorf("%s: %s", c.GetType(), c.GetMessage())
			}
		}
		return nil
	})
	return n
}

// supervise starts a supervisor, as a node agent does when it starts.
func (n *node) supervise(t testing.TB) {
	t.Helper()
	runtime, err := New(n.cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- runtime.Run(ctx) }()
	n.runtime = runtime
	stopped := false
	n.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("supervisor: %v", err)
		}
	}
	wait, cancelWait := context.WithTimeout(t.Context(), limit)
	defer cancelWait()
	if err := runtime.WaitReady(wait); err != nil {
		t.Fatal(err)
	}
}

func assertNothingLeft(t testing.TB, cfg Config) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	cgroups, err := filepath.Glob("/sys/fs/cgroup/*" + cfg.CgroupParent)
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range append(cgroups, cfg.Root, cfg.State) {
		if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left (%v)", dir, err)
		}
		if strings.Contains(string(mounts), dir) {
			t.Errorf("mounts are left below %s", dir)
		}
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		if pid, err := strconv.Atoi(entry.Name()); err == nil && pid != os.Getpid() {
			if args := strings.Join(process.CommandLine(pid), " "); strings.Contains(args, cfg.Root) || strings.Contains(args, cfg.State) {
				t.Errorf("process %d is left: %s", pid, args)
			}
		}
	}
	cached, err := filepath.Glob(filepath.Join(cniCacheDir, "dhow-test-"+filepath.Base(cfg.State)+"-*"))
	if err != nil || len(cached) > 0 {
		t.Errorf("CNI results left: %v (%v)", cached, err)
	}
}

// eventually tries until it works. The pause between tries is no claim about speed: only the limit ends the test.
func eventually(t testing.TB, what string, try func() error) {
	t.Helper()
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	deadline := time.After(limit)
	for {
		err := try()
		if err == nil {
			return
		}
		select {
		case <-ticker.C:
		case <-deadline:
			t.Fatalf("waited for: %s: %v", what, err)
		}
	}
}

func (n *node) sandboxConfig(name string) *runtimeapi.PodSandboxConfig {
	uid := "uid-" + name
	var ports []*runtimeapi.PortMapping
	if name == "web" {
		ports = append(ports, &runtimeapi.PortMapping{ContainerPort: 8080, HostPort: 18080})
	}
	return &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: name, Uid: uid, Namespace: "default"},
		Hostname:     name,
		PortMappings: ports,
		LogDirectory: filepath.Join(n.cfg.Root, "pod-logs", name),
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent: n.runtime.CgroupParent() + "/pods/" + uid,
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
				NamespaceOptions: n.namespaces(),
				Seccomp:          &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault},
			},
		},
	}
}

// runPod runs one container in a sandbox and returns both ids.
func (n *node) runPod(ctx context.Context, name, imageName string, command ...string) (sandbox, container string, err error) {
	config := n.sandboxConfig(name)
	run, err := n.cri.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config})
	if err != nil {
		return "", "", fmt.Errorf("run sandbox: %w", err)
	}
	created, err := n.cri.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{
		PodSandboxId: run.GetPodSandboxId(), SandboxConfig: config,
		Config: &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: "main"},
			Image:    &runtimeapi.ImageSpec{Image: imageName},
			Command:  command,
			LogPath:  "main.log",
			Linux: &runtimeapi.LinuxContainerConfig{
				Resources: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, CpuShares: 128},
				SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
					NamespaceOptions: n.namespaces(),
					Seccomp:          &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault},
				},
			},
		},
	})
	if err != nil {
		return "", "", fmt.Errorf("create container: %w", err)
	}
	_, err = n.cri.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: created.GetContainerId()})
	return run.GetPodSandboxId(), created.GetContainerId(), err
}

func (n *node) exec(t *testing.T, container string, command ...string) string {
	t.Helper()
	answer, err := n.cri.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: container, Cmd: command, Timeout: 60})
	if err != nil || answer.GetExitCode() != 0 {
		t.Fatalf("exec %v: %v, code %d: %s%s", command, err, answer.GetExitCode(), answer.GetStdout(), answer.GetStderr())
	}
	return strings.TrimSpace(string(answer.GetStdout()))
}

func (n *node) address(t *testing.T, sandbox string) string {
	t.Helper()
	answer, err := n.cri.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: sandbox})
	if err != nil {
		t.Fatal(err)
	}
	return answer.GetStatus().GetNetwork().GetIp()
}

func TestPreflightPassesHere(t *testing.T) {
	for _, problem := range Preflight(bundleDir(t)) {
		t.Error(problem)
	}
}

func TestTwoNodesRunPods(t *testing.T) {
	network, archive := newNetwork(t), busyboxImage(t)
	for i := 1; i <= 2; i++ {
		n := newNode(t, network, i, func(c *Config) { c.Archives = []string{archive} })
		info := n.runtime.Info()
		if info.ContainerdVersion == "" || info.Snapshotter == "" || info.CgroupVersion == 0 {
			t.Errorf("info is incomplete: %+v", info)
		}
		sandbox, container, err := n.runPod(t.Context(), "web", busyboxName, "sh", "-c", "echo started; exec httpd -f -p 8080 -h /etc")
		if err != nil {
			t.Fatal(err)
		}
		if got := n.exec(t, container, "hostname"); got != "web" {
			t.Errorf("hostname: %q", got)
		}
		// Mode 2 is a filter: the default profile really is in force.
		if got := n.exec(t, container, "grep", "Seccomp:", "/proc/self/status"); !strings.HasSuffix(got, "2") {
			t.Errorf("seccomp: %q", got)
		}
		ip := n.address(t, sandbox)
		if !strings.HasPrefix(ip, fmt.Sprintf("10.244.%d.", i)) {
			t.Errorf("pod address: %q", ip)
		}
		eventually(t, "the pod answers on its address from its node", func() error {
			busybox, err := image.FindBusybox()
			if err != nil {
				return err
			}
			out, err := n.host.Command(t.Context(), busybox, "wget", "-q", "-O", "-", "http://"+ip+":8080/passwd").CombinedOutput()
			if err != nil || !strings.Contains(string(out), "root:") {
				return fmt.Errorf("%w: %s", err, out)
			}
			return nil
		})
		eventually(t, "the pod answers on its host port from the machine", func() error {
			answer, err := http.Get(fmt.Sprintf("http://%s:18080/passwd", n.host.Address))
			if err != nil {
				return err
			}
			defer answer.Body.Close()
			if answer.StatusCode != http.StatusOK {
				return errors.New(answer.Status)
			}
			return nil
		})
		log := filepath.Join(n.cfg.Root, "pod-logs", "web", "main.log")
		eventually(t, "the container's log", func() error {
			data, err := os.ReadFile(log)
			if err == nil && !strings.Contains(string(data), "stdout F started") {
				err = fmt.Errorf("log holds %q", data)
			}
			return err
		})
		pids, err := n.runtime.cgroups.Processes(n.cfg.CgroupParent + "/pods")
		if err != nil || len(pids) == 0 {
			t.Errorf("no processes in the pods' cgroup: %v, %v", pids, err)
		}
	}
}

func TestContainersOutliveContainerdAndItsSupervisor(t *testing.T) {
	archive := busyboxImage(t)
	n := newNode(t, newNetwork(t), 1, func(c *Config) { c.Archives = []string{archive} })
	_, container, err := n.runPod(t.Context(), "steady", busyboxName, "sh", "-c", "date +%s%N >/tmp/started; exec sleep 1000000")
	if err != nil {
		t.Fatal(err)
	}
	started := n.exec(t, container, "cat", "/tmp/started")
	running := func() error {
		answer, err := n.cri.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: container}, grpc.WaitForReady(true))
		if err != nil {
			return err
		}
		if state := answer.GetStatus().GetState(); state != runtimeapi.ContainerState_CONTAINER_RUNNING {
			return fmt.Errorf("container is %s", state)
		}
		return nil
	}
	pid := func() int {
		p, err := findProcess(n.runtime.cfg)
		if err != nil || p == nil {
			return 0
		}
		defer p.Release()
		return p.PID()
	}

	first := pid()
	if err := unix.Kill(first, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "containerd is started again", func() error {
		if now := pid(); now == 0 || now == first {
			return fmt.Errorf("containerd is process %d", now)
		}
		return running()
	})

	second := pid()
	n.stop()
	if got := pid(); got != second {
		t.Fatalf("containerd is process %d after its supervisor ended, was %d", got, second)
	}
	n.supervise(t)
	if got := pid(); got != second {
		t.Fatalf("the next supervisor runs process %d, want the running one, %d", got, second)
	}
	// One adopted and not started by this supervisor is watched just as well.
	if err := unix.Kill(second, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the adopted containerd is started again", func() error {
		if now := pid(); now == 0 || now == second {
			return fmt.Errorf("containerd is process %d", now)
		}
		return running()
	})

	third := pid()
	n.stop()
	n.cfg.CNIBinDirs = []string{n.cfg.RuntimeDir, "/opt/cni/bin"}
	n.supervise(t)
	if got := pid(); got == third {
		t.Error("containerd was not restarted for its new configuration")
	}
	eventually(t, "the container runs under the new configuration", running)
	if got := n.exec(t, container, "cat", "/tmp/started"); got != started {
		t.Errorf("the container was restarted: %q, want %q", got, started)
	}

	n.stop()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	if err := Stop(ctx, n.cfg, StopOptions{}); err != nil {
		t.Fatal(err)
	}
	if got := pid(); got != 0 {
		t.Errorf("containerd is process %d after Stop", got)
	}
	if pids, err := n.runtime.cgroups.Processes(n.cfg.CgroupParent + "/pods"); err != nil || len(pids) == 0 {
		t.Errorf("containers ended with containerd: %v, %v", pids, err)
	}
	// Containers whose containerd is gone are stopped all the same.
	if err := Stop(ctx, n.cfg, StopOptions{Containers: true}); err != nil {
		t.Fatal(err)
	}
	if pids, err := n.runtime.cgroups.Processes(n.cfg.CgroupParent); err != nil || len(pids) != 0 {
		t.Errorf("processes after Stop: %v, %v", pids, err)
	}
	// What is kept is good for another start.
	n.supervise(t)
	if _, _, err := n.runPod(ctx, "again", busyboxName, "sleep", "1000000"); err != nil {
		t.Fatal(err)
	}
}

// TestMain lets this program stand in for a node agent that can be killed: with a configuration in its environment it only supervises.
func TestMain(m *testing.M) {
	config, ok := os.LookupEnv("DHOW_TEST_SUPERVISE")
	if !ok {
		os.Exit(m.Run())
	}
	var cfg Config
	err := json.Unmarshal([]byte(config), &cfg)
	if err == nil {
		var r *Runtime
		if r, err = New(cfg); err == nil {
			go func() {
				<-r.Ready()
				fmt.Println("ready")
			}()
			err = r.Run(context.Background())
		}
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

func TestContainerdOutlivesAKilledAgent(t *testing.T) {
	n := newNode(t, newNetwork(t), 1, nil)
	n.stop()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	if err := Stop(ctx, n.cfg, StopOptions{}); err != nil {
		t.Fatal(err)
	}
	cfg := n.cfg
	cfg.Logger = nil
	data, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	agent := exec.CommandContext(ctx, program)
	agent.Env = append(os.Environ(), "DHOW_TEST_SUPERVISE="+string(data))
	agent.Stderr = t.Output()
	out, err := agent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := agent.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("agent said %q, %v", line, err)
	}
	if err := Stop(ctx, n.cfg, StopOptions{}); err == nil || !strings.Contains(err.Error(), "supervised by another process") {
		t.Errorf("stop under a living agent: %v", err)
	}
	if err := agent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = agent.Wait()
	proc, err := findProcess(n.runtime.cfg)
	if err != nil || proc == nil {
		t.Fatalf("containerd ended with the agent: %v", err)
	}
	defer proc.Release()
	n.supervise(t)
	again, err := findProcess(n.runtime.cfg)
	if err != nil || again == nil || again.PID() != proc.PID() {
		t.Fatalf("the next agent runs %+v, %v; want process %d", again, err, proc.PID())
	}
	again.Release()
}

func TestPauseReapsOrphans(t *testing.T) {
	archive := busyboxImage(t)
	n := newNode(t, newNetwork(t), 1, func(c *Config) { c.Archives = []string{archive} })
	n.sharePIDs = true
	_, container, err := n.runPod(t.Context(), "shared", busyboxName, "sleep", "1000000")
	if err != nil {
		t.Fatal(err)
	}
	if got := n.exec(t, container, "cat", "/proc/1/comm"); got != "pause" {
		t.Fatalf("process 1 of the pod is %q", got)
	}
	// The inner shell's parent ends first, which leaves it to process 1.
	n.exec(t, container, "sh", "-c", "for i in 1 2 3 4 5; do (sh -c 'exit 0' &); done")
	eventually(t, "no zombies are left", func() error {
		if got := n.exec(t, container, "sh", "-c", "cat /proc/[0-9]*/stat 2>/dev/null | grep ') Z ' || true"); got != "" {
			return errors.New(got)
		}
		return nil
	})
}

func TestNativeSnapshotterWhereOverlaysCannotBe(t *testing.T) {
	dir, archive := t.TempDir(), busyboxImage(t)
	for _, part := range []string{"lower", "upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(dir, part), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// The kernel refuses an overlay's upper folder on another overlay.
	merged := filepath.Join(dir, "merged")
	options := fmt.Sprintf("lowerdir=%[1]s/lower,upperdir=%[1]s/upper,workdir=%[1]s/work", dir)
	if err := unix.Mount("overlay", merged, "overlay", 0, options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(merged, 0); err != nil {
			t.Error(err)
		}
	})
	n := newNode(t, newNetwork(t), 1, func(c *Config) {
		c.Root, c.Archives = filepath.Join(merged, "root"), []string{archive}
	})
	if got := n.runtime.Info().Snapshotter; got != "native" {
		t.Errorf("snapshotter: %q", got)
	}
	_, container, err := n.runPod(t.Context(), "copied", busyboxName, "sleep", "1000000")
	if err != nil {
		t.Fatal(err)
	}
	if got := n.exec(t, container, "echo", "hello"); got != "hello" {
		t.Errorf("exec: %q", got)
	}
}

func TestPullFromPlainHTTPRegistry(t *testing.T) {
	network := newNetwork(t)
	registry, err := image.NewRegistry(image.RegistryConfig{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	listener := listenOn(t, network.Gateway())
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- registry.Serve(ctx, listener) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	busybox, err := image.FindBusybox()
	if err != nil {
		t.Fatal(err)
	}
	img, err := image.Build(image.Spec{Busybox: busybox})
	if err != nil {
		t.Fatal(err)
	}
	if err := registry.Add(t.Context(), "demo/busybox:v1", img); err != nil {
		t.Fatal(err)
	}

	address := listener.Addr().String()
	n := newNode(t, network, 1, func(c *Config) {
		c.Registries = []Registry{{Host: address}, {Host: "registry.dhow.test", Endpoint: "http://" + address}}
	})
	for _, name := range []string{address + "/demo/busybox:v1", "registry.dhow.test/demo/busybox:v1"} {
		if _, err := n.images.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: name}}); err != nil {
			t.Fatalf("pull %s: %v", name, err)
		}
		if _, _, err := n.runPod(t.Context(), strings.NewReplacer(".", "-", ":", "-", "/", "-").Replace(name), name, "sleep", "1000000"); err != nil {
			t.Fatal(err)
		}
	}
	_, err = n.images.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: address + "/demo/none:v1"}})
	if status.Code(err) != codes.NotFound {
		t.Errorf("pull of a missing image: %v", err)
	}
}
