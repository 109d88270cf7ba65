package cluster

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"dhow.dev/e2e/evidence"
)

// Any is a cluster as who uses it sees it, whatever it runs on: command lines, and evidence of what its nodes run. Cluster adds what needs the cluster's own processes on this
// machine.
type Any struct {
	// Nodes are the nodes, and evidence of what they run.
	Nodes evidence.Nodes
	// PodNetwork is the range of pods' addresses.
	PodNetwork netip.Prefix

	// dhow is the program; config and kubeconfig are the administrator's configurations for it and for kubectl.
	dhow, config, kubeconfig string
	// address is where the gRPC API answers this machine.
	address       string
	administrator Administrator
}

// Administrator is who may do everything, by files.
type Administrator struct{ Authority, Certificate, Key string }

// Address is where the API answers this machine.
func (a *Any) Address() string { return a.address }

// Kubeconfig is the file with the administrator's configuration for kubectl and the like.
func (a *Any) Kubeconfig() string { return a.kubeconfig }

// Administrator has the files with which a program of one's own calls the API.
func (a *Any) Administrator() Administrator { return a.administrator }

// Containers lists the running containers of a namespace on all nodes but those that are excluded, asked of the nodes' runtimes.
func (a *Any) Containers(ctx context.Context, namespace string, excluded ...string) ([]evidence.Container, error) {
	return a.Nodes.Containers(ctx, namespace, excluded...)
}

// Command prepares a dhow command line against the cluster.
func (a *Any) Command(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, a.dhow, append([]string{"--config", a.config}, args...)...)
}

// Try runs a dhow command line and returns what it printed and its error.
func (a *Any) Try(stdin string, args ...string) (stdout, stderr string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), Deadline)
	defer cancel()
	cmd := a.Command(ctx, args...)
	var out, problems bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &problems
	err = cmd.Run()
	return out.String(), problems.String(), err
}

// Dhow runs a dhow command line that must succeed and returns what it printed.
func (a *Any) Dhow(t *testing.T, args ...string) string {
	t.Helper()
	out, problems, err := a.Try("", args...)
	if err != nil {
		t.Fatalf("dhow %s: %v: %s%s", strings.Join(args, " "), err, out, problems)
	}
	return out
}

// Apply applies a manifest.
func (a *Any) Apply(t *testing.T, manifest string) {
	t.Helper()
	if out, problems, err := a.Try(manifest, "apply", "-f", "-"); err != nil {
		t.Fatalf("apply: %v: %s%s\n%s", err, out, problems, manifest)
	}
}

// Namespace makes a namespace for a test and deletes it at its end.
func (a *Any) Namespace(t *testing.T, name string) string {
	t.Helper()
	a.Apply(t, "apiVersion: v1\nkind: Namespace\nmetadata: {name: "+name+"}\n")
	t.Cleanup(func() {
		if t.Failed() {
			pods, _, _ := a.Try("", "describe", "pods", "-n", name)
			t.Logf("pods of %s:\n%s", name, pods)
		}
		if out, problems, err := a.Try("", "delete", "namespace", name, "--timeout", Deadline.String()); err != nil {
			t.Errorf("delete namespace %s: %v: %s%s", name, err, out, problems)
		}
	})
	return name
}

// Known waits until the cluster has a node.
func (a *Any) Known(t *testing.T, node string) {
	t.Helper()
	Eventually(t, func(context.Context) error {
		_, problems, err := a.Try("", "get", "node", node)
		if err != nil {
			return fmt.Errorf("node %s: %w: %s", node, err, problems)
		}
		return nil
	})
}

// program is a program that `make build` or `make helm` makes.
func program(t *testing.T, name string) string {
	t.Helper()
	file, err := filepath.Abs(filepath.Join("..", "..", "bin", name))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := exec.LookPath(file); err != nil {
		t.Fatalf("%v: `make build helm` makes it", err)
	}
	return file
}
