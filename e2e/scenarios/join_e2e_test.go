//go:build e2e

package scenarios

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"dhow.dev/e2e/cluster"
	"dhow.dev/pkg/hosts"
)

// said is what a process has written so far.
type said struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (s *said) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(b)
}

func (s *said) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// joining: a machine that knows nothing of the cluster becomes a node with the command that `dhow token create` prints, runs pods, keeps them while its agent is away,
// and leaves without a trace.
func joining(t *testing.T, c *cluster.Cluster) {
	subnet, err := netip.ParsePrefix(c.Subnet)
	if err != nil {
		t.Fatal(err)
	}
	network, err := hosts.New(hosts.Config{Name: c.ID, Subnet: subnet})
	if err != nil {
		t.Fatal(err)
	}
	address, err := network.Address(len(c.Nodes) + 1)
	if err != nil {
		t.Fatal(err)
	}
	machine, err := network.Add(c.ID+"-outside", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := network.Remove(machine.Name); err != nil {
			t.Error(err)
		}
	})
	server := c.Inside()
	printed := strings.Fields(c.Dhow(t, "token", "create", "--ttl", "10m", "--server", server))
	if len(printed) != 7 || printed[0] != "dhow" || printed[2] != server {
		t.Fatalf("dhow token create: %q", printed)
	}
	dir := filepath.Join(t.TempDir(), "node")
	settings := []string{
		"--data-dir", dir, "--node-name", "outside", "--", "--address", address.String(), "--fraction", "0.25",
		"--runtime-state", "/run/dhow/" + c.ID + "/outside", "--cgroup-root", "/dhow/" + c.ID + "/outside", "--plain-registry", "registry.dhow:5000=http://" + c.Gateway + ":5000",
		// As nodes of dhow up: the disk of a machine that runs tests may be fuller than a server's.
		"--eviction-hard", "memory.available<100Mi,nodefs.available<5%,nodefs.inodesFree<5%,imagefs.available<5%,imagefs.inodesFree<5%",
	}
	dhow := c.Command(t.Context()).Path
	var log said
	join := func(arguments ...string) (stop func()) {
		command := machine.Command(t.Context(), dhow, arguments...)
		command.Stdout, command.Stderr = &log, &log
		if err := command.Start(); err != nil {
			t.Fatal(err)
		}
		return func() {
			if err := command.Process.Signal(syscall.SIGINT); err != nil {
				t.Error(err)
			}
			if err := command.Wait(); err != nil {
				t.Errorf("dhow join ended with %v:\n%s", err, log.String())
			}
		}
	}
	leave := sync.OnceFunc(func() {
		if out, err := machine.Command(context.Background(), dhow, "leave", "--purge", "--data-dir", dir).CombinedOutput(); err != nil {
			t.Errorf("dhow leave: %v: %s", err, out)
		}
	})

	// A wrong token is refused before anything is made.
	wrong := append([]string{"join", server, "--token", "aaaaaa.bbbbbbbbbbbbbbbb", "--ca-cert-hash", printed[6]}, settings...)
	if out, err := machine.Command(t.Context(), dhow, wrong...).CombinedOutput(); err == nil || !strings.Contains(string(out), "Unauthorized") {
		t.Errorf("join with a wrong token: %v: %s", err, out)
	}

	stop := join(append(printed[1:], settings...)...)
	t.Cleanup(leave)
	cluster.Eventually(t, func(context.Context) error {
		if _, problems, err := c.Try("", "get", "node", "outside"); err != nil {
			return fmt.Errorf("%s; dhow join says:\n%s", problems, log.String())
		}
		return nil
	})
	c.Dhow(t, "wait", "--for=condition=Ready", "node/outside", "--timeout=2m")
	ns := c.Namespace(t, "joining")
	// Told from all other processes of the machine by what it does.
	sleep := fmt.Sprintf("sleep %d", 1_000_000+os.Getpid())
	c.Apply(t, fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {name: guest, namespace: %s}
spec:
  nodeName: outside
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: registry.dhow:5000/tools:v1
    command: [sh, -c, "echo here; exec %s"]
`, ns, sleep))
	c.Dhow(t, "wait", "--for=condition=Ready", "pod/guest", "-n", ns, "--timeout=2m")
	cluster.Eventually(t, func(context.Context) error {
		if out := c.Dhow(t, "logs", "guest", "-n", ns); strings.TrimSpace(out) != "here" {
			return fmt.Errorf("log %q", out)
		}
		return nil
	})
	running := func() string {
		out, err := exec.Command("pgrep", "-f", "^"+sleep+"$").Output()
		if err != nil {
			t.Fatalf("the pod's process: %v", err)
		}
		return string(out)
	}
	before := running()
	stop()
	if during := running(); during != before {
		t.Errorf("while the agent is away %s runs, before %s", during, before)
	}
	// The token is spent for this test: the machine has its certificate.
	c.Dhow(t, "token", "delete", strings.Split(printed[4], ".")[0])
	stop = join(append([]string{"join", server}, settings...)...)
	c.Dhow(t, "wait", "--for=condition=Ready", "node/outside", "--timeout=2m")
	cluster.Eventually(t, func(context.Context) error {
		if out, problems, err := c.Try("", "exec", "guest", "-n", ns, "--", "hostname"); err != nil || strings.TrimSpace(out) != "guest" {
			return fmt.Errorf("exec: %q %s %w", out, problems, err)
		}
		return nil
	})
	if after := running(); after != before {
		t.Errorf("after the agent came back %s runs, before %s", after, before)
	}
	c.Dhow(t, "delete", "pod", "guest", "-n", ns, "--wait")
	stop()
	leave()
	c.Dhow(t, "delete", "node", "outside")
	if _, err := os.Stat(filepath.Join(dir, "pki")); !os.IsNotExist(err) {
		t.Errorf("the certificate after dhow leave: %v", err)
	}
}
