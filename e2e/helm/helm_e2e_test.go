//go:build e2e

// Package helm drives the Helm command lines, version 4 and version 3, through a release's life on a running cluster with real containers.
package helm

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"dhow.dev/e2e/cluster"
)

const chart = "../../examples/charts/greeter"

// Each version of Helm meets one of the ways in which Dhow runs: which is which does not matter, and both with both would take twice the time.
func TestHelm4(t *testing.T) { run(t, "helm4", cluster.Options{Nodes: 2}) }

func TestHelm3Separate(t *testing.T) { run(t, "helm3", cluster.Options{Nodes: 2, Separate: true}) }

func run(t *testing.T, version string, options cluster.Options) {
	program, err := filepath.Abs(filepath.Join("..", "..", "bin", version))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(program); err != nil {
		t.Fatalf("%v: tools/helm.sh makes it", err)
	}
	c := cluster.Start(t, options)
	c.Images(t)
	release(t, helm{cluster: c, program: program, namespace: c.Namespace(t, version)})
}

// release: install with hooks and --wait, upgrade, a failed upgrade that is rolled back, rollback, test, uninstall.
func release(t *testing.T, h helm) {
	h.says(t, `(?m)^STATUS: deployed$`, "install", "hi", chart, "--wait", "--timeout=2m")
	h.ready(t, "2")
	h.logs(t, "prepared revision 1\n")
	h.says(t, `(?m)^hi\s+`+h.namespace+`\s+1\s.*deployed\s+greeter-0.1.0`, "list")
	h.says(t, `kind: Deployment`, "get", "manifest", "hi")
	h.says(t, `Phase: +Succeeded`, "test", "hi", "--timeout=2m")

	h.says(t, `(?m)^REVISION: 2$`, "upgrade", "hi", chart, "--set=greeting=good day,replicas=3", "--wait", "--timeout=2m")
	h.ready(t, "3")
	h.logs(t, "prepared revision 2\n")
	h.says(t, `(?m)^greeting: good day$`, "get", "values", "hi")
	h.says(t, `Phase: +Succeeded`, "test", "hi", "--timeout=2m")

	if out, err := h.try("upgrade", "hi", chart, "--set=image=registry.dhow:5000/absent:v1,replicas=0", "--wait", "--timeout=5s"); err == nil {
		t.Errorf("an upgrade to an image that does not exist succeeded: %s", out)
	}
	h.says(t, `(?m)^3\s.*failed\s`, "history", "hi")
	h.says(t, `Rollback was a success`, "rollback", "hi", "1", "--wait", "--timeout=2m")
	h.ready(t, "2")
	h.says(t, `Phase: +Succeeded`, "test", "hi", "--timeout=2m")
	h.says(t, `release "hi" uninstalled`, "uninstall", "hi", "--wait", "--timeout=2m")
	if left := h.cluster.Dhow(t, "get", "deployments,services,configmaps", "-n", h.namespace, "-l", "app.kubernetes.io/instance=hi", "-o", "name"); left != "" {
		t.Errorf("uninstall left %s", left)
	}
}

type helm struct {
	cluster            *cluster.Cluster
	program, namespace string
}

func (h helm) try(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*cluster.Deadline)
	defer cancel()
	home := filepath.Join(h.cluster.DataDir, filepath.Base(h.program))
	cmd := exec.CommandContext(ctx, h.program, append(args, "--namespace", h.namespace)...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+filepath.Join(h.cluster.DataDir, "kubeconfig"), "HOME="+home)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.String(), err
}

// says runs a command line that must succeed and whose output must match.
func (h helm) says(t *testing.T, pattern string, args ...string) {
	t.Helper()
	out, err := h.try(args...)
	if err != nil {
		t.Fatalf("helm %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	if !regexp.MustCompile(pattern).MatchString(out) {
		t.Errorf("helm %s does not say %s:\n%s", strings.Join(args, " "), pattern, out)
	}
}

// ready checks, as soon as helm has said that it waited, that so many servers are.
func (h helm) ready(t *testing.T, want string) {
	t.Helper()
	out := h.cluster.Dhow(t, "get", "deployment", "hi", "-n", h.namespace)
	if !strings.Contains(out, want+"/"+want) {
		t.Errorf("helm did not wait:\n%s", out)
	}
}

// logs checks what the hook has said.
func (h helm) logs(t *testing.T, want string) {
	t.Helper()
	if out := h.cluster.Dhow(t, "logs", "hi-prepare", "-n", h.namespace); out != want {
		t.Errorf("the hook said %q, want %q", out, want)
	}
}
