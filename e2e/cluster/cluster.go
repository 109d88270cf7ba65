// Package cluster starts clusters for end-to-end tests: the real programs, real containers in real network namespaces, in the ways that Dhow runs.
package cluster

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"dhow.dev/e2e/evidence"
	"dhow.dev/e2e/images"
	"dhow.dev/pkg/pki"
)

// Deadline bounds the wait for anything that a test waits for. It is not an expectation: machines that run tests are slow and shared.
const Deadline = 2 * time.Minute

// Options say how a cluster runs.
type Options struct {
	Nodes int
	// Separate runs the five services as five processes, two API servers among them.
	Separate bool
	// Hosts, when it is not 0, is on how many hosts of their own these processes run.
	Hosts int
	// Arguments are added to `dhow up`.
	Arguments []string
}

// Cluster is a running cluster of this machine, with its processes. It is taken down, and what it leaves is a failure, when the test ends.
type Cluster struct {
	Any
	// ID is in the name of all that it has on this machine; Gateway is this machine as its nodes see it, on the bridge that has Subnet.
	ID, Subnet, Gateway string
	// Hosts are those of the control plane, when it has its own.
	Hosts   []evidence.Node
	DataDir string

	t       *testing.T
	machine evidence.Machine
	listen  string
	// kubernetes is where the Kubernetes API answers on this machine.
	kubernetes string
	options    Options

	mu       sync.Mutex
	up       *exec.Cmd
	out      *output
	machines []bool // by number: whether it is there
}

// Start starts a cluster and waits until its nodes are ready.
func Start(t *testing.T, options Options) *Cluster {
	t.Helper()
	// Not t.TempDir: sockets and cgroups need short names, and a failed test's data is worth reading.
	dir, err := os.MkdirTemp("", "dhow-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	c := &Cluster{t: t, DataDir: filepath.Join(dir, "data"), options: options}
	c.Any = Any{
		dhow: program(t, "dhow"), config: filepath.Join(c.DataDir, "client.yaml"), kubeconfig: filepath.Join(c.DataDir, "kubeconfig"), PodNetwork: podNetwork,
	}
	c.listen, c.kubernetes = FreePorts(t)
	t.Cleanup(func() {
		c.down()
		if t.Failed() {
			t.Logf("the cluster said:\n%s", c.Log())
		}
		os.RemoveAll(dir)
	})
	c.Up()
	machine, err := evidence.Read(c.DataDir)
	if err != nil {
		t.Fatal(err)
	}
	c.machine = machine
	c.Nodes, c.Hosts, c.ID, c.Subnet, c.Gateway = machine.Nodes, machine.Hosts, machine.ID, machine.Subnet, machine.Gateway
	files := pki.FilesIn(filepath.Join(c.DataDir, "pki"), "admin")
	c.administrator = Administrator{Authority: files.Authority, Certificate: files.Certificate, Key: files.Key}
	c.address = c.listen
	if len(c.Hosts) > 0 {
		c.address = c.onPort(c.Hosts[0].Address)
	}
	return c
}

// podNetwork is the range of pods' addresses of `dhow up`.
var podNetwork = netip.MustParsePrefix("10.244.0.0/16")

// FreePorts finds a loopback port that has the ports after it free too, as services in processes of their own need them, and returns its address and the one for the
// Kubernetes API.
func FreePorts(t *testing.T) (listen, kubernetes string) {
	t.Helper()
	// The gRPC API's and the five after it, then two for the Kubernetes API of two API servers.
	const first, needed = 6, 8
next:
	for range 100 {
		found, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		found.Close()
		port := found.Addr().(*net.TCPAddr).Port
		for i := range needed {
			l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port+i))
			if err != nil {
				continue next
			}
			l.Close()
		}
		return fmt.Sprintf("127.0.0.1:%d", port), fmt.Sprintf("127.0.0.1:%d", port+first)
	}
	t.Fatal("no free ports on 127.0.0.1")
	return "", ""
}

// onPort is the API's port at another address than that of the first run.
func (c *Cluster) onPort(address string) string {
	_, port, err := net.SplitHostPort(c.listen)
	if err != nil {
		c.t.Fatal(err)
	}
	return net.JoinHostPort(address, port)
}

// Inside is where nodes and pods find the API.
func (c *Cluster) Inside() string {
	if len(c.Hosts) > 0 {
		return c.address
	}
	return c.onPort(c.Gateway)
}

// output keeps what a program says and lets one wait for it.
type output struct {
	mu      sync.Mutex
	text    bytes.Buffer
	changed chan struct{}
	ended   error
	end     chan struct{}
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	close(o.changed)
	o.changed = make(chan struct{})
	return o.text.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// waitFor waits until the output contains a text, or the program has ended.
func (o *output) waitFor(text string, deadline time.Duration) error {
	timeout := time.After(deadline)
	for {
		o.mu.Lock()
		changed, found := o.changed, strings.Contains(o.text.String(), text)
		o.mu.Unlock()
		if found {
			return nil
		}
		select {
		case <-changed:
		case <-o.end:
			return fmt.Errorf("it ended (%v) before it said %q", o.ended, text)
		case <-timeout:
			return fmt.Errorf("it did not say %q within %s", text, deadline)
		}
	}
}

// Up runs `dhow up` and waits until it is ready.
func (c *Cluster) Up() {
	c.t.Helper()
	args := []string{"up", "--data-dir", c.DataDir, "--listen", c.listen, "--kubernetes-listen", c.kubernetes, "--nodes", fmt.Sprint(c.options.Nodes)}
	if c.options.Separate {
		args = append(args, "--separate")
	}
	if c.options.Hosts > 0 {
		args = append(args, "--hosts", fmt.Sprint(c.options.Hosts))
	}
	out := &output{changed: make(chan struct{}), end: make(chan struct{})}
	cmd := exec.Command(c.dhow, append(args, c.options.Arguments...)...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	go func() {
		out.ended = cmd.Wait()
		close(out.end)
	}()
	c.mu.Lock()
	c.up, c.out = cmd, out
	c.mu.Unlock()
	if err := out.waitFor("Dhow is ready", Deadline); err != nil {
		c.t.Fatalf("dhow up: %v:\n%s", err, c.Log())
	}
}

// Log is what the cluster's programs have said.
func (c *Cluster) Log() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all strings.Builder
	if c.out != nil {
		all.WriteString(c.out.String())
	}
	for _, pattern := range []string{"nodes/*/agent.log", "services/*.log"} {
		files, _ := filepath.Glob(filepath.Join(c.DataDir, pattern))
		for _, file := range files {
			content, _ := os.ReadFile(file)
			if len(content) > 16<<10 {
				content = content[len(content)-16<<10:]
			}
			fmt.Fprintf(&all, "--- %s\n%s\n", file, content)
		}
	}
	return all.String()
}

// Kill ends `dhow up` by a signal and waits until it has ended.
func (c *Cluster) Kill(signal syscall.Signal) {
	c.t.Helper()
	if err := c.up.Process.Signal(signal); err != nil {
		c.t.Fatal(err)
	}
	select {
	case <-c.out.end:
	case <-time.After(Deadline):
		c.t.Fatalf("dhow up does not end by %s:\n%s", signal, c.Log())
	}
}

// Again ends `dhow up` as Ctrl-C does and runs it with more arguments, for those that need to know what the first run has chosen, as the bridge's address.
func (c *Cluster) Again(arguments ...string) {
	c.t.Helper()
	c.Kill(syscall.SIGINT)
	c.options.Arguments = append(c.options.Arguments, arguments...)
	c.Up()
}

func (c *Cluster) down() {
	ctx, cancel := context.WithTimeout(context.Background(), Deadline)
	defer cancel()
	log := c.Log()
	if out, err := exec.CommandContext(ctx, c.dhow, "down", "--purge", "--data-dir", c.DataDir).CombinedOutput(); err != nil {
		c.t.Errorf("dhow down: %v: %s", err, out)
	}
	if c.t.Failed() {
		c.t.Logf("before it was taken down, the cluster said:\n%s", log)
	}
	left, err := c.machine.Leftovers(c.DataDir)
	if err != nil || len(left) > 0 {
		c.t.Errorf("dhow down left behind: %v %v", left, err)
	}
}

// Eventually asks until the answer is nil; after the deadline the last answer fails the test.
func Eventually(t *testing.T, ask func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), Deadline)
	defer cancel()
	if err := eventually(ctx, ask); err != nil {
		t.Fatalf("after %s: %v", Deadline, err)
	}
}

// eventually returns the last answer that was given in time: one that ctx has cut short says nothing about what was waited for, unless there is no other.
func eventually(ctx context.Context, ask func(context.Context) error) (last error) {
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for {
		err := ask(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() == nil || last == nil {
			last = err
		}
		if ctx.Err() != nil { // select would choose by chance when a tick is due as well
			return last
		}
		select {
		case <-ctx.Done():
			return last
		case <-ticker.C:
		}
	}
}

// Images serves the images of package images to the cluster's nodes until the test ends.
func (c *Cluster) Images(t *testing.T) {
	t.Helper()
	registry, err := images.Build(t.Context(), filepath.Join("..", ".."), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	stop, err := registry.Start(c.Gateway)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}
