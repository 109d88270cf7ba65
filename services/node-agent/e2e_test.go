//go:build e2e

package nodeagent_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	nodev1 "dhow.dev/gen/go/dhow/node/v1"
	"dhow.dev/pkg/hosts"
	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/image"
	"dhow.dev/pkg/pki"
	"dhow.dev/pkg/transport"
	nodeagent "dhow.dev/services/node-agent"
	"dhow.dev/services/node-agent/internal/apitest"
	"dhow.dev/services/node-agent/internal/cri"
	"dhow.dev/services/node-agent/internal/cri/critest"
	"dhow.dev/services/node-agent/internal/podtest"
)

// limit bounds every wait; nothing is asserted about speed.
const limit = 3 * time.Minute

const busybox = "dhow.test/busybox:1"

// cluster is an API server in this process and one node: a host on a private bridge with the real agent and its runtime.
type cluster struct {
	t      testing.TB
	api    *apitest.Server
	host   hosts.Host
	config nodeagent.Config
	state  string
	// authority and address are the API server's.
	authority *pki.Authority
	address   string
	start     func() (stop func(syscall.Signal))
	// arguments are given to the agent beside the usual ones.
	arguments []string
}

func newCluster(t testing.TB) *cluster {
	t.Helper()
	api := apitest.New()
	c := newHost(t, func(ctx context.Context, listener net.Listener, pair *pki.KeyPair) error {
		server := transport.NewServer(transport.ServerConfig{Credentials: transport.TLSServer(pair), Logger: slog.New(slog.DiscardHandler), Lifetime: ctx, Options: api.Options()})
		api.Register(server)
		return transport.Serve(ctx, server, listener)
	})
	c.api = api
	return c
}

// newHost makes the node's host, and an API server that serve runs on the bridge.
func newHost(t testing.TB, serve func(context.Context, net.Listener, *pki.KeyPair) error) *cluster {
	t.Helper()
	runtimeDir := os.Getenv("DHOW_RUNTIME_DIR")
	if runtimeDir == "" {
		var err error
		if runtimeDir, err = filepath.Abs("../../bin/runtime"); err != nil {
			t.Fatal(err)
		}
		t.Setenv("DHOW_RUNTIME_DIR", runtimeDir)
	}
	if errs := nodeagent.Preflight(runtimeDir); len(errs) > 0 {
		t.Fatal(errors.Join(errs...))
	}
	subnet, err := hosts.FreeSubnet(netip.MustParsePrefix("198.19.0.0/16"), 28)
	if err != nil {
		t.Fatal(err)
	}
	network, err := hosts.New(hosts.Config{Name: fmt.Sprintf("na%d", os.Getpid()), Subnet: subnet})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := network.Down(); err != nil {
			t.Error(err)
		}
	})
	if err := network.Up(); err != nil {
		t.Fatal(err)
	}
	address, err := network.Address(1)
	if err != nil {
		t.Fatal(err)
	}
	// Pods are not evicted because the disk of the machine that tests run on is nearly full.
	c := &cluster{t: t, state: fmt.Sprintf("/run/dhow-test/na%d", os.Getpid()), arguments: []string{"--eviction-hard=memory.available<100Mi"}}
	if c.host, err = network.Add("n1", address); err != nil {
		t.Fatal(err)
	}

	// The API server.
	dir := t.TempDir()
	authority, err := pki.LoadOrCreate(filepath.Join(dir, "ca"))
	if err != nil {
		t.Fatal(err)
	}
	pair, err := authority.Ensure(pki.FilesIn(dir, "apiserver"), pki.Request{Identity: identity.Identity{Name: "system:dhow:apiserver"}, DNSNames: []string{"apiserver.dhow"}, Server: true})
	if err != nil {
		t.Fatal(err)
	}
	files := pki.FilesIn(dir, "node")
	if _, err := authority.Ensure(files, pki.Request{Identity: identity.Node("n1"), Client: true}); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", netip.AddrPortFrom(network.Gateway(), 0).String())
	if err != nil {
		t.Fatal(err)
	}
	c.authority, c.address = authority, listener.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- serve(ctx, listener, pair) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})

	// The agent's program and an image.
	program := filepath.Join(dir, "dhow-node-agent")
	if out, err := exec.Command("go", "build", "-o", program, "./cmd/dhow-node-agent").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	found, err := image.FindBusybox()
	if err != nil {
		t.Fatal(err)
	}
	img, err := image.Build(image.Spec{Busybox: found, Cmd: []string{"sh"}})
	if err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(dir, "busybox.tar")
	if err := image.WriteArchive(archive, busybox, img); err != nil {
		t.Fatal(err)
	}
	c.config = nodeagent.Config{NodeName: "n1", DataDir: filepath.Join(dir, "node"), Runtime: &nodeagent.Runtime{
		Dir: runtimeDir, State: c.state, CgroupParent: fmt.Sprintf("/dhow-test/na%d", os.Getpid()), Archives: []string{archive}}}
	c.start = func() func(syscall.Signal) {
		command := c.host.Command(context.Background(), program, append(c.arguments, "--node-name=n1", "--address="+address.String(), "--data-dir="+c.config.DataDir,
			"--apiserver="+listener.Addr().String(), "--tls-cacert="+files.Authority, "--tls-cert="+files.Certificate, "--tls-key="+files.Key,
			"--runtime-dir="+runtimeDir, "--runtime-state="+c.state, "--cgroup-root="+c.config.Runtime.CgroupParent, "--image-archive="+archive, "--log-level=debug")...)
		output, err := os.OpenFile(filepath.Join(dir, "agent.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		command.Stdout, command.Stderr = output, output
		if err := command.Start(); err != nil {
			t.Fatal(err)
		}
		return func(signal syscall.Signal) {
			if err := command.Process.Signal(signal); err != nil {
				t.Error(err)
			}
			_ = command.Wait() // its exit code is the signal's
			_ = output.Close()
		}
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		if err := nodeagent.Stop(ctx, c.config, true); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			if log, err := os.ReadFile(filepath.Join(dir, "agent.log")); err == nil {
				t.Logf("the agent's log ends with\n%s", log[max(0, len(log)-12000):])
			}
		}
		_ = os.Remove(filepath.Dir(c.state)) // when no other test is left
	})
	return c
}

func (c *cluster) await(what string, f func() bool) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	if err := c.api.Await(ctx, f); err != nil {
		for _, p := range apitest.List[*corev1.Pod](c.api) {
			c.t.Logf("%s: %v", p.GetMetadata().GetName(), p.GetStatus())
		}
		for _, e := range apitest.List[*corev1.Event](c.api) {
			c.t.Logf("event %s %s: %s", e.GetInvolvedObject().GetName(), e.GetReason(), e.GetMessage())
		}
		c.t.Fatalf("%s: %v", what, err)
	}
}

// run puts a pod on the node.
func (c *cluster) run(text string) *corev1.Pod {
	p := podtest.Pod(c.t, text)
	p.GetMetadata().SetUid("uid-of-" + p.GetMetadata().GetName())
	p.GetSpec().SetNodeName("n1")
	return c.api.Put(p).(*corev1.Pod)
}

func (c *cluster) pod(name string) *corev1.Pod {
	p, _ := apitest.Get[*corev1.Pod](c.api, "default", name)
	return p
}

func ready(p *corev1.Pod) bool {
	return slices.ContainsFunc(p.GetStatus().GetConditions(), func(c *corev1.PodCondition) bool { return c.GetType() == "Ready" && c.GetStatus() == "True" })
}

func (c *cluster) awaitNode() {
	c.await("the node is ready", func() bool {
		n, ok := apitest.Get[*corev1.Node](c.api, "", "n1")
		return ok && slices.ContainsFunc(n.GetStatus().GetConditions(), func(c *corev1.NodeCondition) bool { return c.GetType() == "Ready" && c.GetStatus() == "True" })
	})
}

// log reads a log through the session.
func (c *cluster) log(request *corev1.PodLogRequest) string {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	var text bytes.Buffer
	err := c.api.Open(ctx, "n1", nodev1.OpenTunnel_builder{Log: request}.Build(), func(s nodev1.Sessions_TunnelServer) error {
		for {
			m, err := s.Recv()
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
			if f := m.GetFailure(); f != nil {
				return errors.New(f.GetMessage())
			}
			text.Write(m.GetLog().GetData())
		}
	})
	if err != nil {
		c.t.Fatalf("log: %v", err)
	}
	return text.String()
}

// event says whether users were told something of a pod.
func (c *cluster) event(pod, reason, text string) bool {
	return slices.ContainsFunc(apitest.List[*corev1.Event](c.api), func(e *corev1.Event) bool {
		return e.GetInvolvedObject().GetName() == pod && e.GetReason() == reason && strings.Contains(e.GetMessage(), text)
	})
}

// exec runs a command through the session.
func (c *cluster) exec(pod, input string, command ...string) (stdout, stderr string, code int32) {
	c.t.Helper()
	return c.execIn(pod, "", input, command...)
}

// execIn is exec in a container.
func (c *cluster) execIn(pod, container, input string, command ...string) (stdout, stderr string, code int32) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	var out, errs bytes.Buffer
	code = -1
	start := corev1.PodExecRequest_Start_builder{Namespace: "default", Name: pod, Container: container, Command: command, Stdin: input != "", Stdout: true, Stderr: true}.Build()
	err := c.api.Open(ctx, "n1", nodev1.OpenTunnel_builder{Exec: start}.Build(), func(s nodev1.Sessions_TunnelServer) error {
		if input != "" {
			for _, r := range []*corev1.PodExecRequest{corev1.PodExecRequest_builder{Stdin: []byte(input)}.Build(), corev1.PodExecRequest_builder{CloseStdin: proto.Bool(true)}.Build()} {
				if err := s.Send(nodev1.TunnelResponse_builder{Exec: r}.Build()); err != nil {
					return err
				}
			}
		}
		for {
			m, err := s.Recv()
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
			if f := m.GetFailure(); f != nil {
				return errors.New(f.GetMessage())
			}
			out.Write(m.GetExec().GetStdout())
			errs.Write(m.GetExec().GetStderr())
			if m.GetExec().HasExitCode() {
				code = m.GetExec().GetExitCode()
			}
		}
	})
	if err != nil {
		c.t.Fatalf("exec: %v", err)
	}
	return out.String(), errs.String(), code
}

const web = `
metadata: {name: web, labels: {app: web}}
spec:
  terminationGracePeriodSeconds: 5
  volumes:
  - {name: shared, emptyDir: {}}
  - {name: fast, emptyDir: {medium: Memory, sizeLimit: 1Mi}}
  - {name: config, configMap: {name: config}}
  - {name: keys, secret: {secretName: keys, defaultMode: 0400}}
  - {name: self, downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}}
  initContainers:
  - {name: init, image: "dhow.test/busybox:1", command: [sh, -c, "echo prepared > /shared/index.html"], volumeMounts: [{name: shared, mountPath: /shared}]}
  containers:
  - name: main
    image: dhow.test/busybox:1
    command: [sh, -c, "echo hello $(GREETING); trap 'exit 0' TERM; httpd -f -p 8080 -h /shared & wait"]
    env:
    - {name: GREETING, valueFrom: {configMapKeyRef: {name: config, key: greeting}}}
    - {name: TOKEN, valueFrom: {secretKeyRef: {name: keys, key: token}}}
    - {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    ports: [{name: http, containerPort: 8080}]
    resources: {requests: {cpu: 50m, memory: 16Mi}, limits: {memory: 64Mi}}
    readinessProbe: {httpGet: {path: /index.html, port: http}, periodSeconds: 1}
    livenessProbe: {exec: {command: ["true"]}, periodSeconds: 5}
    lifecycle: {postStart: {exec: {command: [sh, -c, "echo post > /shared/post"]}}}
    volumeMounts:
    - {name: shared, mountPath: /shared}
    - {name: fast, mountPath: /fast}
    - {name: config, mountPath: /config}
    - {name: config, mountPath: /one, subPath: greeting}
    - {name: keys, mountPath: /keys, readOnly: true}
    - {name: self, mountPath: /self}
`

func TestPodsOnTheRealRuntime(t *testing.T) {
	c := newCluster(t)
	c.api.Put(corev1.ConfigMap_builder{Metadata: metav1.ObjectMeta_builder{Namespace: proto.String("default"), Name: proto.String("config")}.Build(), Data: map[string]string{"greeting": "world"}}.Build())
	c.api.Put(corev1.Secret_builder{Metadata: metav1.ObjectMeta_builder{Namespace: proto.String("default"), Name: proto.String("keys")}.Build(), Data: map[string][]byte{"token": []byte("s3cret")}}.Build())
	stop := c.start()
	running := true
	defer func() {
		if running {
			stop(syscall.SIGTERM)
		}
	}()
	c.awaitNode()
	node, _ := apitest.Get[*corev1.Node](c.api, "", "n1")
	if v := node.GetMetadata().GetLabels()["dhow.dev/cgroup-version"]; v != "v1" && v != "v2" {
		t.Errorf("cgroup version %q", v)
	}

	runtime, err := cri.Dial(filepath.Join(c.state, "containerd.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = runtime.Close() }()

	c.run(web)
	c.await("web is ready", func() bool { return ready(c.pod("web")) })
	first := c.pod("web").GetStatus()
	t.Run("what the container sees", func(t *testing.T) {
		for command, want := range map[string]string{
			"echo $GREETING $TOKEN":                              "world s3cret",
			"test $IP = " + first.GetPodIp():                     "",
			"cat /config/greeting /one":                          "worldworld",
			"cat /keys/token":                                    "s3cret",
			"stat -L -c %a /keys/token":                          "400",
			"cat /self/labels":                                   `app="web"`,
			"cat /shared/index.html":                             "prepared",
			"cat /shared/post":                                   "post",
			"hostname":                                           "web",
			"grep -c web /etc/hosts":                             "1",
			"grep nameserver /etc/resolv.conf":                   "nameserver 10.96.0.10",
			"grep -o default.svc.cluster.local /etc/resolv.conf": "default.svc.cluster.local",
			"grep -o '^tmpfs /fast' /proc/mounts":                "tmpfs /fast",
			"grep -o '^Seccomp:.*' /proc/1/status":               "Seccomp:\t0",
			"cat /proc/1/oom_score_adj > /dev/null":              "",
		} {
			out, errs, code := c.exec("web", "", "sh", "-c", command)
			if code != 0 || strings.TrimSpace(out) != want {
				t.Errorf("%s: %q %q, code %d; want %q", command, out, errs, code, want)
			}
		}
	})
	t.Run("exec keeps streams and exit codes", func(t *testing.T) {
		out, errs, code := c.exec("web", "from outside\n", "sh", "-c", "read line; echo got $line; echo trouble >&2; exit 42")
		if out != "got from outside\n" || errs != "trouble\n" || code != 42 {
			t.Errorf("%q %q %d", out, errs, code)
		}
	})
	t.Run("logs", func(t *testing.T) {
		if got := c.log(corev1.PodLogRequest_builder{Namespace: "default", Name: "web"}.Build()); got != "hello world\n" {
			t.Errorf("log %q", got)
		}
		if got := c.log(corev1.PodLogRequest_builder{Namespace: "default", Name: "web", Container: "init", TailLines: proto.Int64(1)}.Build()); got != "" {
			t.Errorf("init's log %q", got)
		}
	})
	t.Run("a changed ConfigMap reaches the volume", func(t *testing.T) {
		c.api.Put(corev1.ConfigMap_builder{Metadata: metav1.ObjectMeta_builder{Namespace: proto.String("default"), Name: proto.String("config")}.Build(), Data: map[string]string{"greeting": "moon"}}.Build())
		// The container waits for it, so that nobody has to ask again and again.
		_, _, code := c.exec("web", "", "timeout", "60", "sh", "-c", "until grep -q moon /config/greeting; do usleep 10000; done")
		if code != 0 {
			t.Errorf("code %d", code)
		}
	})
	t.Run("a restarted agent touches nothing", func(t *testing.T) {
		stop(syscall.SIGKILL)
		stop = c.start()
		// A new pod proves that the agent is at work again.
		c.run(`{metadata: {name: after}, spec: {terminationGracePeriodSeconds: 0, containers: [{name: c, image: "dhow.test/busybox:1", command: [sleep, "1000000"]}]}}`)
		c.await("the new pod is ready", func() bool { return ready(c.pod("after")) })
		now := c.pod("web").GetStatus()
		if a, b := first.GetContainerStatuses()[0], now.GetContainerStatuses()[0]; a.GetContainerId() != b.GetContainerId() || b.GetRestartCount() != 0 || !ready(c.pod("web")) {
			t.Errorf("before %v, after %v", a, b)
		}
		if first.GetPodIp() != now.GetPodIp() {
			t.Errorf("address %s became %s", first.GetPodIp(), now.GetPodIp())
		}
	})
	t.Run("crash, previous log, termination message", func(t *testing.T) {
		c.run(`{metadata: {name: crash}, spec: {containers: [{name: c, image: "dhow.test/busybox:1", command: [sh, -c, "echo run; echo why > /dev/termination-log; exit 3"]}]}}`)
		c.await("crash backs off", func() bool {
			s := c.pod("crash").GetStatus().GetContainerStatuses()
			return len(s) == 1 && s[0].GetState().GetWaiting().GetReason() == "CrashLoopBackOff"
		})
		s := c.pod("crash").GetStatus().GetContainerStatuses()[0].GetLastState().GetTerminated()
		if s.GetExitCode() != 3 || s.GetMessage() != "why\n" || s.GetReason() != "Error" {
			t.Errorf("last state %v", s)
		}
		if got := c.log(corev1.PodLogRequest_builder{Namespace: "default", Name: "crash", Previous: true}.Build()); got != "run\n" {
			t.Errorf("previous log %q", got)
		}
	})
	t.Run("out of memory is told", func(t *testing.T) {
		c.run(`{metadata: {name: oom}, spec: {restartPolicy: Never, containers: [{name: c, image: "dhow.test/busybox:1", command: [sh, -c, "x=a; while true; do x=$x$x; done"], resources: {limits: {memory: 24Mi}}}]}}`)
		c.await("oom fails", func() bool { return c.pod("oom").GetStatus().GetPhase() == "Failed" })
		if r := c.pod("oom").GetStatus().GetContainerStatuses()[0].GetState().GetTerminated().GetReason(); r != "OOMKilled" {
			t.Errorf("reason %q", r)
		}
	})
	t.Run("a lost sandbox is replaced", func(t *testing.T) {
		state, err := runtime.Pod(t.Context(), "uid-of-after")
		if err != nil {
			t.Fatal(err)
		}
		if err := runtime.StopSandbox(t.Context(), state.Sandboxes[0].ID); err != nil {
			t.Fatal(err)
		}
		c.await("after is ready again", func() bool {
			p := c.pod("after")
			return ready(p) && p.GetStatus().GetContainerStatuses()[0].GetRestartCount() >= 1
		})
	})
	t.Run("deletion leaves nothing", func(t *testing.T) {
		for _, name := range []string{"web", "after", "crash", "oom"} {
			c.api.DeletePod("default", name, 5)
		}
		c.await("all pods are gone", func() bool { return len(apitest.List[*corev1.Pod](c.api)) == 0 })
	})
	// The last traces go after the API server has forgotten the pods; the agent's end waits for nothing, so look until they are gone.
	deadline := time.Now().Add(limit)
	for {
		pods, err := runtime.Pods(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		folders, err := os.ReadDir(filepath.Join(c.config.DataDir, "pods"))
		if err != nil {
			t.Fatal(err)
		}
		if len(pods) == 0 && len(folders) == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("left: %+v, %v", pods, folders)
		}
		<-time.After(50 * time.Millisecond)
	}
	stop(syscall.SIGTERM)
	running = false
	// With no agent that would clean up after it.
	t.Run("conformance", func(t *testing.T) {
		critest.Run(t, critest.Setup{Runtime: runtime, Image: busybox, Forever: []string{"sleep", "1000000"}, LogDirectory: t.TempDir(),
			CgroupParent: c.config.Runtime.CgroupParent + "/conformance", Prefix: "conformance-"})
	})
	if table, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(table), filepath.Join(c.config.DataDir, "pods")) {
		t.Errorf("mounts are left (%v)", err)
	}
}

// BenchmarkPods measures how long so many one-container pods take from their arrival to readiness.
func BenchmarkPods(b *testing.B) {
	c := newCluster(b)
	stop := c.start()
	defer func() { stop(syscall.SIGTERM) }()
	c.awaitNode()
	const pods = 100
	for b.Loop() {
		for i := range pods {
			c.run(fmt.Sprintf(`{metadata: {name: p%d}, spec: {terminationGracePeriodSeconds: 0, containers: [{name: c, image: "dhow.test/busybox:1", command: [sleep, "1000000"]}]}}`, i))
		}
		began := time.Now()
		c.await("all are ready", func() bool {
			n := 0
			for _, p := range apitest.List[*corev1.Pod](c.api) {
				if ready(p) {
					n++
				}
			}
			return n == pods
		})
		b.ReportMetric(time.Since(began).Seconds(), "s/100pods")
		b.StopTimer()
		for _, p := range apitest.List[*corev1.Pod](c.api) {
			c.api.DeletePod("default", p.GetMetadata().GetName(), 0)
		}
		c.await("all are gone", func() bool { return len(apitest.List[*corev1.Pod](c.api)) == 0 })
		b.StartTimer()
	}
}
