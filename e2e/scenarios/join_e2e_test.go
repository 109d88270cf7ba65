//go:build e2e

package scenarios

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"dhow.dev/e2e/cluster"
)

// joining: a machine that knows nothing of the cluster becomes a node with the command that `dhow token create` prints, runs pods, keeps them while its agent is away,
// and leaves without a trace.
func joining(t *testing.T, c *cluster.Cluster) {
	machine := c.Machine(t, "outside")
	server := c.Inside()
	token := c.Token(t, server)
	settings := machine.Settings(c.Registry())

	// A wrong token is refused before anything is made.
	wrong := append([]string{"join", server, "--token", "aaaaaa.bbbbbbbbbbbbbbbb", "--ca-cert-hash", token.Hash}, settings...)
	if out, err := machine.Command(t.Context(), wrong...).CombinedOutput(); err == nil || !strings.Contains(string(out), "Unauthorized") {
		t.Errorf("join with a wrong token: %v: %s", err, out)
	}

	t.Cleanup(machine.Leave)
	stop := machine.Run(t, append([]string{server, "--token", token.Token, "--ca-cert-hash", token.Hash}, settings...)...)
	c.Known(t, "outside")
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
	c.Dhow(t, "token", "delete", token.ID())
	stop = machine.Run(t, append([]string{server}, settings...)...)
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
	machine.Leave()
	c.Dhow(t, "delete", "node", "outside")
	if _, err := os.Stat(filepath.Join(machine.Dir, "pki")); !os.IsNotExist(err) {
		t.Errorf("the certificate after dhow leave: %v", err)
	}
}
