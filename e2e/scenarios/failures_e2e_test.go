//go:build e2e

package scenarios

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"dhow.dev/e2e/cluster"
	"dhow.dev/pkg/process"
)

// ids lists the running containers of a namespace by id, which a restart changes.
func ids(ctx context.Context, c *cluster.Cluster, namespace string) ([]string, error) {
	found, err := c.Containers(ctx, namespace)
	var list []string
	for _, f := range found {
		list = append(list, f.ID)
	}
	slices.Sort(list)
	return list, err
}

// agents: an agent that is killed comes back and picks its running containers up.
func agents(t *testing.T, c *cluster.Cluster) {
	ns := c.Namespace(t, "agents")
	c.Apply(t, web(ns, "one"))
	c.Dhow(t, "rollout", "status", "deploy/web", "-n", ns, "--timeout=2m")
	before, err := ids(t.Context(), c, ns)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range c.Nodes {
		file := filepath.Join(c.DataDir, "nodes", n.Name, "agent.json")
		agent, err := process.Find(file)
		if err != nil || agent == nil {
			t.Fatalf("agent of %s: %v, %v", n.Name, agent, err)
		}
		if err := agent.Signal(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		cluster.Eventually(t, func(context.Context) error {
			now, err := process.Find(file)
			if err == nil && (now == nil || now.PID() == agent.PID()) {
				err = fmt.Errorf("the agent of %s has not been started again", n.Name)
			}
			return err
		})
	}
	// The next thing that only agents can do shows that they work.
	c.Dhow(t, "scale", "deploy/web", "-n", ns, "--replicas=6")
	c.Dhow(t, "rollout", "status", "deploy/web", "-n", ns, "--timeout=2m")
	after, err := ids(t.Context(), c, ns)
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range before {
		if !slices.Contains(after, id) {
			t.Errorf("container %s did not survive its agent; before %v, after %v", id, before, after)
		}
	}
	if got := c.Dhow(t, "get", "pods", "-n", ns); strings.Contains(got, "ago)") {
		t.Errorf("restarts after the agents came back: %s", got)
	}
}

// lostNode: a node that cannot be reached is not ready, its pods run elsewhere; when it returns, it ends what was replaced.
func lostNode(t *testing.T, c *cluster.Cluster) {
	ns := c.Namespace(t, "lost")
	c.Apply(t, web(ns, "one"))
	c.Dhow(t, "rollout", "status", "deploy/web", "-n", ns, "--timeout=2m")
	found, err := c.Containers(t.Context(), ns)
	if err != nil || len(found) == 0 {
		t.Fatal(found, err)
	}
	lost := found[0].Node
	if _, err := lost.Command(t.Context(), "ip", "link", "set", "eth0", "down"); err != nil {
		t.Fatal(err)
	}
	repaired := false
	repair := func() {
		if repaired {
			return
		}
		repaired = true
		for _, command := range [][]string{{"link", "set", "eth0", "up"}, {"route", "replace", "default", "via", c.Gateway}} {
			if _, err := lost.Command(context.Background(), "ip", command...); err != nil {
				t.Error(err)
			}
		}
	}
	defer repair()
	c.Dhow(t, "wait", "--for=condition=Ready=unknown", "node/"+lost.Name, "--timeout=2m")
	cluster.Eventually(t, func(ctx context.Context) error {
		elsewhere, err := c.Containers(ctx, ns, lost.Name)
		if err == nil && len(elsewhere) < 3 {
			err = fmt.Errorf("%d of 3 run on the other nodes", len(elsewhere))
		}
		return err
	})
	repair()
	c.Dhow(t, "wait", "--for=condition=Ready", "node/"+lost.Name, "--timeout=2m")
	onlyVersion(t, &c.Any, ns, "one", 3)
}

// restarts: the control plane ends by kill -9 and by Ctrl-C; data and pods stay.
func restarts(t *testing.T, c *cluster.Cluster) {
	ns := c.Namespace(t, "restarts")
	c.Apply(t, web(ns, "one"))
	c.Dhow(t, "rollout", "status", "deploy/web", "-n", ns, "--timeout=2m")
	before, err := ids(t.Context(), c, ns)
	if err != nil {
		t.Fatal(err)
	}
	for _, signal := range []syscall.Signal{syscall.SIGKILL, syscall.SIGINT} {
		c.Kill(signal)
		while, err := ids(t.Context(), c, ns)
		if err != nil || !slices.Equal(before, while) {
			t.Errorf("while the control plane is down after %s, %v run, %v; want %v", signal, while, err, before)
		}
		c.Up()
		c.Dhow(t, "rollout", "status", "deploy/web", "-n", ns, "--timeout=2m")
		after, err := ids(t.Context(), c, ns)
		if err != nil || !slices.Equal(before, after) {
			t.Errorf("after %s and a restart %v run, %v; want %v", signal, after, err, before)
		}
	}
	c.Dhow(t, "status")
	c.Dhow(t, "scale", "deploy/web", "-n", ns, "--replicas=4")
	onlyVersion(t, &c.Any, ns, "one", 4)
}

// backups: a backup brings back what was deleted and changed since, and what runs follows it. Secrets are readable, and refused is what would lose data.
func backups(t *testing.T, c *cluster.Cluster) {
	ns := c.Namespace(t, "backups")
	c.Apply(t, web(ns, "one"))
	c.Apply(t, fmt.Sprintf("apiVersion: v1\nkind: Secret\nmetadata: {name: key, namespace: %s}\nstringData: {key: before}\n", ns))
	c.Dhow(t, "rollout", "status", "deploy/web", "-n", ns, "--timeout=2m")
	file := filepath.Join(t.TempDir(), "backup")
	c.Dhow(t, "backup", file)

	c.Dhow(t, "delete", "secret", "key", "-n", ns)
	c.Dhow(t, "delete", "deploy", "web", "-n", ns, "--wait")
	c.Apply(t, strings.ReplaceAll(web(ns, "later"), "name: web", "name: later"))
	c.Dhow(t, "rollout", "status", "deploy/later", "-n", ns, "--timeout=2m")

	restore := []string{"restore", file, "--data-dir", c.DataDir}
	if _, problems, err := c.Try("", restore...); err == nil || !strings.Contains(problems, "a cluster runs in") {
		t.Errorf("restore below a running cluster: %v %s", err, problems)
	}
	c.Kill(syscall.SIGINT)
	if _, problems, err := c.Try("", restore...); err == nil || !strings.Contains(problems, "holds a database") {
		t.Errorf("restore over data: %v %s", err, problems)
	}
	if err := os.RemoveAll(filepath.Join(c.DataDir, "store")); err != nil {
		t.Fatal(err)
	}
	c.Dhow(t, restore...)
	c.Up()

	onlyVersion(t, &c.Any, ns, "one", 3)
	c.Dhow(t, "rollout", "status", "deploy/web", "-n", ns, "--timeout=2m")
	if got := c.Dhow(t, "get", "secret", "key", "-n", ns, "-o", "yaml"); !strings.Contains(got, "YmVmb3Jl") {
		t.Errorf("the secret after the restore: %s", got)
	}
	if got := c.Dhow(t, "get", "deploy", "-n", ns); strings.Contains(got, "later") {
		t.Errorf("what was made after the backup is there: %s", got)
	}
}
