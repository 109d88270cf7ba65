//go:build e2e

// Package kubectl drives the real kubectl through its commands on a running cluster with real containers. What it must print is what it prints on Kubernetes.
package kubectl

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"dhow.dev/e2e/cluster"
)

// kubectl runs the program against a cluster, in a namespace of its own.
type kubectl struct {
	t       *testing.T
	program string
	config  string
	// home is a folder for what kubectl keeps.
	home string
	// context is one of config's; empty: the current one.
	context   string
	namespace string
}

// command is a group of kubectl's commands.
type command struct {
	name string
	run  func(*testing.T, kubectl)
}

// ordinary are the commands that any Kubernetes with the nodes n1 and n2 answers alike (TestKubernetes).
var ordinary = []command{
	{"discovery", discovery},
	{"create", create},
	{"apply", apply},
	{"change", change},
	{"look", look},
	{"workloads", workloads},
	{"sets", sets},
	{"containers", containers},
	{"network", network},
	{"nodes", nodes},
	{"access", access},
}

func TestKubectl(t *testing.T) {
	onDhow(t, cluster.Options{Nodes: 2}, "", append(slices.Clip(ordinary), command{"metrics", metrics}))
}

// TestKubectlSeparate runs what goes other ways when there are two API servers, against the one that the controllers do not use: its cache is told of what they write,
// and containers are reached through the one that has their node's session.
func TestKubectlSeparate(t *testing.T) {
	onDhow(t, cluster.Options{Nodes: 2, Separate: true}, "dhow-2", []command{{"discovery", discovery}, {"change", change}, {"containers", containers}, {"network", network}})
}

func onDhow(t *testing.T, options cluster.Options, context string, commands []command) {
	c := cluster.Start(t, options)
	c.Images(t)
	run(t, filepath.Join(c.DataDir, "kubeconfig"), context, commands)
}

func run(t *testing.T, config, context string, commands []command) {
	program, err := filepath.Abs("../../bin/dhow-kubectl")
	if err != nil {
		t.Fatal(err)
	}
	home := t.TempDir()
	for _, s := range commands {
		t.Run(s.name, func(t *testing.T) {
			k := kubectl{t: t, program: program, config: config, home: home, context: context, namespace: "kubectl-" + s.name}
			k.says(`^namespace/`+k.namespace+` created$`, "create", "namespace", k.namespace)
			t.Cleanup(func() {
				if t.Failed() {
					out, problems, err := k.try("", "get", "pods", "-o", "wide")
					t.Logf("%s%s%v", out, problems, err)
				}
				k.says(`deleted`, "delete", "namespace", k.namespace, "--timeout", cluster.Deadline.String())
			})
			s.run(t, k)
		})
	}
}

// command prepares a command line. Its namespace is the test's unless the arguments say otherwise.
func (k kubectl) command(ctx context.Context, args ...string) *exec.Cmd {
	where := []string{"--namespace", k.namespace}
	if k.context != "" {
		where = append(where, "--context", k.context)
	}
	cmd := exec.CommandContext(ctx, k.program, append(where, args...)...)
	// A home of its own: kubectl keeps what it has discovered there.
	cmd.Env = append(os.Environ(), "KUBECONFIG="+k.config, "HOME="+k.home, "KUBE_EDITOR=sed -i s/green/blue/")
	return cmd
}

func (k kubectl) try(stdin string, args ...string) (stdout, stderr string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), cluster.Deadline)
	defer cancel()
	cmd := k.command(ctx, args...)
	var out, problems bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &problems
	err = cmd.Run()
	return out.String(), problems.String(), err
}

// does runs a command line that must succeed and returns what it printed.
func (k kubectl) does(args ...string) string {
	k.t.Helper()
	return k.given("", args...)
}

// given is does with standard input.
func (k kubectl) given(stdin string, args ...string) string {
	k.t.Helper()
	out, problems, err := k.try(stdin, args...)
	if err != nil {
		k.t.Fatalf("kubectl %s: %v\n%s%s", strings.Join(args, " "), err, out, problems)
	}
	return out
}

// says runs a command line that must succeed and whose output must match a pattern; (?s) and (?m) are set.
func (k kubectl) says(pattern string, args ...string) string {
	k.t.Helper()
	return k.match(pattern, k.does(args...), args)
}

// fails runs a command line that must fail and whose error must match a pattern.
func (k kubectl) fails(pattern string, args ...string) {
	k.t.Helper()
	out, problems, err := k.try("", args...)
	if err == nil {
		k.t.Fatalf("kubectl %s succeeded\n%s%s", strings.Join(args, " "), out, problems)
	}
	k.match(pattern, problems, args)
}

func (k kubectl) match(pattern, text string, args []string) string {
	k.t.Helper()
	if !regexp.MustCompile("(?sm)" + pattern).MatchString(text) {
		k.t.Errorf("kubectl %s does not say %s:\n%s", strings.Join(args, " "), pattern, text)
	}
	return text
}

// soon runs a command line until its output matches.
func (k kubectl) soon(pattern string, args ...string) {
	k.t.Helper()
	compiled := regexp.MustCompile("(?sm)" + pattern)
	cluster.Eventually(k.t, func(context.Context) error {
		out, problems, err := k.try("", args...)
		if err != nil || !compiled.MatchString(out) {
			return fmt.Errorf("kubectl %s: %v, not %s:\n%s%s", strings.Join(args, " "), err, pattern, out, problems)
		}
		return nil
	})
}

// file writes a file for a command line to read, and returns its path.
func (k kubectl) file(name, content string) string {
	k.t.Helper()
	path := filepath.Join(k.t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		k.t.Fatal(err)
	}
	return path
}

// background runs a command line until the test ends, and returns what it prints as it comes.
func (k kubectl) background(args ...string) *lines {
	k.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cmd := k.command(ctx, args...)
	out := newLines()
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	if err := cmd.Start(); err != nil {
		k.t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // it ends by the test's interrupt
		close(ended)
	}()
	k.t.Cleanup(func() {
		cancel()
		<-ended
	})
	return out
}
