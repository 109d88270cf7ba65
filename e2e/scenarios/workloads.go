package scenarios

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"dhow.dev/e2e/cluster"
	"dhow.dev/e2e/evidence"
)

const webManifest = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: NAMESPACE}
spec:
  replicas: 3
  strategy: {rollingUpdate: {maxSurge: 1, maxUnavailable: 0}}
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 2
      containers:
      - name: web
        image: registry.dhow:5000/tools:v1
        args: ["-c", "trap 'exit 0' TERM; while :; do sleep 1 & wait $!; done"]
        env: [{name: VERSION, value: "VERSION_VALUE"}]
`

func web(namespace, version string) string {
	return strings.NewReplacer("NAMESPACE", namespace, "VERSION_VALUE", version).Replace(webManifest)
}

// versions counts the running containers by the VERSION in their environment, asked of the runtime.
func versions(ctx context.Context, c *cluster.Any, namespace string) (map[string]int, error) {
	found, err := c.Containers(ctx, namespace)
	if err != nil {
		return nil, err
	}
	counts := map[string]int{}
	for _, f := range found {
		out, err := f.Exec(ctx, execTimeout, "sh", "-c", "echo $VERSION")
		if err != nil {
			return nil, err
		}
		counts[strings.TrimSpace(out)]++
	}
	return counts, nil
}

func onlyVersion(t *testing.T, c *cluster.Any, namespace, version string, count int) {
	t.Helper()
	cluster.Eventually(t, func(ctx context.Context) error {
		got, err := versions(ctx, c, namespace)
		if err == nil && (len(got) != 1 || got[version] != count) {
			err = fmt.Errorf("running versions %v, want %d of %s", got, count, version)
		}
		return err
	})
}

// rollouts: update, scale, a stuck update that is undone, history.
func rollouts(t *testing.T, c *cluster.Any) {
	ns := c.Namespace(t, "rollouts")
	c.Apply(t, web(ns, "one"))
	c.Dhow(t, "rollout", "status", "deploy/web", "-n", ns, "--timeout=2m")
	onlyVersion(t, c, ns, "one", 3)
	c.Apply(t, web(ns, "two"))
	c.Dhow(t, "rollout", "status", "deploy/web", "-n", ns, "--timeout=2m")
	onlyVersion(t, c, ns, "two", 3)
	c.Dhow(t, "rollout", "undo", "deploy/web", "-n", ns)
	c.Dhow(t, "rollout", "status", "deploy/web", "-n", ns, "--timeout=2m")
	onlyVersion(t, c, ns, "one", 3)
	c.Dhow(t, "scale", "deploy/web", "-n", ns, "--replicas=5")
	c.Dhow(t, "rollout", "status", "deploy/web", "-n", ns, "--timeout=2m")
	onlyVersion(t, c, ns, "one", 5)
	c.Dhow(t, "scale", "deploy/web", "-n", ns, "--replicas=0")
	cluster.Eventually(t, func(ctx context.Context) error {
		if found, err := c.Containers(ctx, ns); err != nil || len(found) > 0 {
			return fmt.Errorf("%d containers run, want none: %v", len(found), err)
		}
		return nil
	})
	if got := c.Dhow(t, "get", "deploy/web", "-n", ns); !strings.Contains(got, "0/0") {
		t.Errorf("scaled to nothing: %s", got)
	}
}

// healing: a killed process is restarted, a deleted pod replaced.
func healing(t *testing.T, c *cluster.Any) {
	ns := c.Namespace(t, "healing")
	c.Apply(t, web(ns, "one"))
	c.Dhow(t, "rollout", "status", "deploy/web", "-n", ns, "--timeout=2m")
	found, err := c.Containers(t.Context(), ns)
	if err != nil {
		t.Fatal(err)
	}
	victim := found[0]
	if err := victim.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	cluster.Eventually(t, func(ctx context.Context) error {
		now, err := running(ctx, c, ns, victim.Pod, "web")
		if err == nil && now.Attempt != victim.Attempt+1 {
			err = fmt.Errorf("attempt %d", now.Attempt)
		}
		return err
	})
	c.Dhow(t, "delete", "pod", found[1].Pod, "-n", ns)
	onlyVersion(t, c, ns, "one", 3)
}

// deletion: a namespace takes everything with it; owners take what they own, unless it is orphaned.
func deletion(t *testing.T, c *cluster.Any) {
	ns := "deletion"
	c.Apply(t, "apiVersion: v1\nkind: Namespace\nmetadata: {name: deletion}\n")
	c.Apply(t, web(ns, "one"))
	c.Dhow(t, "rollout", "status", "deploy/web", "-n", ns, "--timeout=2m")
	c.Dhow(t, "delete", "deploy/web", "-n", ns, "--cascade=orphan")
	onlyVersion(t, c, ns, "one", 3)
	if got := c.Dhow(t, "get", "replicasets", "-n", ns, "-o", "name"); strings.Count(got, "replicaset.apps/web-") != 1 {
		t.Errorf("the orphaned replica set: %q", got)
	}
	c.Apply(t, web(ns, "one"))
	c.Dhow(t, "rollout", "status", "deploy/web", "-n", ns, "--timeout=2m")
	if got := c.Dhow(t, "get", "replicasets", "-n", ns, "-o", "name"); strings.Count(got, "replicaset.apps/web-") != 1 {
		t.Errorf("the replica set was not adopted: %q", got)
	}
	c.Dhow(t, "delete", "namespace", ns, "--timeout=2m")
	if found, err := c.Containers(t.Context(), ns); err != nil || len(found) > 0 {
		t.Errorf("after the namespace's deletion %v run, %v", found, err)
	}
	if _, problems, err := c.Try("", "get", "namespace", ns); err == nil || !strings.Contains(problems, "NotFound") {
		t.Errorf("the namespace is still there: %v %s", err, problems)
	}
}

// why: a pending pod's reasons and the change that lets it run, made and seen to work.
func why(t *testing.T, c *cluster.Any) {
	ns := c.Namespace(t, "why")
	pod := func(cpu string) string {
		return `
apiVersion: v1
kind: Pod
metadata: {name: hungry, namespace: why}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: registry.dhow:5000/tools:v1
    args: ["-c", "exec sleep 3600"]
    resources: {requests: {cpu: "` + cpu + `"}}
`
	}
	c.Apply(t, pod("1000"))
	cluster.Eventually(t, func(context.Context) error {
		out := c.Dhow(t, "why", "hungry", "-n", ns)
		if !strings.Contains(out, "Insufficient cpu") || !strings.Contains(out, "lets it run") {
			return fmt.Errorf("why says %s", out)
		}
		return nil
	})
	if got := c.Dhow(t, "describe", "pod", "hungry", "-n", ns); !strings.Contains(got, fmt.Sprintf("0/%[1]d nodes are available: %[1]d Insufficient cpu", len(c.Nodes))) {
		t.Errorf("describe: %s", got)
	}
	c.Dhow(t, "delete", "pod", "hungry", "-n", ns)
	c.Apply(t, pod("10m"))
	c.Dhow(t, "wait", "--for=condition=Ready", "pod/hungry", "-n", ns, "--timeout=2m")
	out := c.Dhow(t, "why", "hungry", "-n", ns)
	if !slices.ContainsFunc(c.Nodes, func(n evidence.Node) bool { return strings.Contains(out, n.Name) }) {
		t.Errorf("why does not name the node: %s", out)
	}
	for _, n := range c.Nodes {
		c.Dhow(t, "cordon", n.Name)
	}
	c.Dhow(t, "delete", "pod", "hungry", "-n", ns)
	c.Apply(t, pod("10m"))
	cluster.Eventually(t, func(context.Context) error {
		if out := c.Dhow(t, "why", "hungry", "-n", ns); !strings.Contains(out, "uncordon") {
			return fmt.Errorf("why says %s", out)
		}
		return nil
	})
	for _, n := range c.Nodes {
		c.Dhow(t, "uncordon", n.Name)
	}
	c.Dhow(t, "wait", "--for=condition=Ready", "pod/hungry", "-n", ns, "--timeout=2m")
}
