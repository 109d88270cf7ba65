// Package kind makes Kubernetes clusters whose nodes are Docker's containers, by the command line kind (https://kind.sigs.k8s.io), for end-to-end tests.
//
// The files version and node-image say which kind, and which Kubernetes. usage is what that kind says of itself.
package kind

import (
	"context"
	"embed"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

//go:embed cluster.yaml
var configuration []byte

//go:embed node-image
var nodeImage string

//go:embed usage
var usage embed.FS

// Commands are those that this package uses.
var Commands = []string{"create cluster", "load image-archive", "delete cluster"}

// Usage is what kind says to --help of one of Commands; empty for others.
func Usage(command string) string {
	text, err := usage.ReadFile("usage/" + strings.ReplaceAll(command, " ", "-") + ".txt")
	if err != nil {
		return ""
	}
	return string(text)
}

// deadline bounds each command: a node image may have to be pulled, and every image goes into every node.
const deadline = 10 * time.Minute

// Cluster is a cluster of kind's.
type Cluster struct {
	Name string
	// Kubeconfig is the file of its administrator's configuration.
	Kubeconfig string
}

// Create makes a cluster with three workers. It is deleted when the test ends.
func Create(t *testing.T, name string) *Cluster {
	t.Helper()
	dir := t.TempDir()
	c := &Cluster{Name: name, Kubeconfig: filepath.Join(dir, "kubeconfig")}
	t.Cleanup(func() {
		run(t, "", "delete", "cluster", "--name", c.Name, "--kubeconfig", c.Kubeconfig)
	})
	run(t, string(configuration), "create", "cluster", "--name", c.Name, "--image", strings.TrimSpace(nodeImage), "--config", "-", "--kubeconfig", c.Kubeconfig, "--wait", "5m")
	return c
}

// Load puts images into the container runtimes of all nodes.
func (c *Cluster) Load(t *testing.T, archives ...string) {
	t.Helper()
	run(t, "", append([]string{"load", "image-archive", "--name", c.Name}, archives...)...)
}

// Documented checks that the installed kind takes what the recorded one takes.
func Documented(t *testing.T) {
	t.Helper()
	for _, command := range Commands {
		if got, want := run(t, "", append(strings.Fields(command), "--help")...), Usage(command); got != want {
			t.Errorf("kind %s --help is not what e2e/kind/usage has:\n%s\n%s", command, got, want)
		}
	}
}

func run(t *testing.T, stdin string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	cmd := exec.CommandContext(ctx, "kind", args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("kind %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}
