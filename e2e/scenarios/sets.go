package scenarios

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"dhow.dev/e2e/cluster"
	"dhow.dev/e2e/evidence"
)

// A member of the set is ready when it has found itself in DNS, which has to know it before it is ready.
const setsManifest = `
apiVersion: v1
kind: Service
metadata: {name: peers, namespace: sets}
spec:
  clusterIP: None
  publishNotReadyAddresses: true
  selector: {network: peers}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db, namespace: sets}
spec:
  replicas: 3
  serviceName: peers
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db, network: peers}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: main
        image: registry.dhow:5000/tools:v1
        args: ["-c", "until fetch -resolve $(hostname).peers; do sleep 0.1; done; touch /tmp/found; trap 'exit 0' TERM; while :; do sleep 1 & wait $!; done"]
        env: [{name: VERSION, value: "VERSION_VALUE"}]
        readinessProbe: {exec: {command: [test, -f, /tmp/found]}, periodSeconds: 1}
---
apiVersion: v1
kind: Pod
metadata: {name: named, namespace: sets, labels: {network: peers}}
spec:
  hostname: alpha
  subdomain: peers
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: registry.dhow:5000/tools:v1
    args: ["-c", "trap 'exit 0' TERM; while :; do sleep 1 & wait $!; done"]
    env: [{name: VERSION, value: none}]
`

const daemonManifest = `
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: agent, namespace: daemons}
spec:
  updateStrategy: {rollingUpdate: {maxUnavailable: 0, maxSurge: 1}}
  selector: {matchLabels: {app: agent}}
  template:
    metadata: {labels: {app: agent}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: main
        image: registry.dhow:5000/tools:v1
        args: ["-c", "trap 'exit 0' TERM; while :; do sleep 1 & wait $!; done"]
        env: [{name: VERSION, value: "VERSION_VALUE"}]
`

// sets: members with names of their own in DNS, made and replaced one by one in order; a daemon on every node, replaced node by node.
func sets(t *testing.T, c *cluster.Any) {
	ns := c.Namespace(t, "sets")
	manifest := func(version string) string { return strings.ReplaceAll(setsManifest, "VERSION_VALUE", version) }
	c.Apply(t, manifest("one"))
	c.Dhow(t, "rollout", "status", "sts/db", "-n", ns, "--timeout=2m")
	c.Dhow(t, "wait", "--for=condition=Ready", "pod/named", "-n", ns, "--timeout=2m")
	started := members(t, c)
	if !(started["db-0"].Before(started["db-1"]) && started["db-1"].Before(started["db-2"])) {
		t.Errorf("made out of order: %v", started)
	}
	resolves(t, c, map[string]string{"db-0": "db-0", "db-1": "db-1", "db-2": "db-2", "alpha": "named"})

	c.Apply(t, manifest("two"))
	c.Dhow(t, "rollout", "status", "sts/db", "-n", ns, "--timeout=2m")
	again := members(t, c)
	if !(again["db-2"].Before(again["db-1"]) && again["db-1"].Before(again["db-0"]) && again["db-2"].After(started["db-2"])) {
		t.Errorf("replaced out of order: %v, before %v", again, started)
	}
	resolves(t, c, map[string]string{"db-0": "db-0", "db-2": "db-2"})
	c.Dhow(t, "scale", "sts/db", "-n", ns, "--replicas=1")
	cluster.Eventually(t, func(ctx context.Context) error {
		found, err := versions(ctx, c, ns)
		if err == nil && (found["two"] != 1 || found["one"] != 0) {
			err = fmt.Errorf("versions %v, want one member of the second", found)
		}
		return err
	})
}

// daemons: one on every node, replaced node by node and back.
func daemons(t *testing.T, c *cluster.Any) {
	ns := c.Namespace(t, "daemons")
	manifest := func(version string) string { return strings.ReplaceAll(daemonManifest, "VERSION_VALUE", version) }
	roll := func(version string) {
		t.Helper()
		c.Dhow(t, "rollout", "status", "ds/agent", "-n", ns, "--timeout=2m")
		onlyVersion(t, c, ns, version, len(c.Nodes))
		found, err := c.Containers(t.Context(), ns)
		if err != nil {
			t.Fatal(err)
		}
		nodes := map[string]bool{}
		for _, f := range found {
			nodes[f.Node.Name] = true
		}
		if len(nodes) != len(c.Nodes) {
			t.Errorf("on nodes %v", nodes)
		}
	}
	c.Apply(t, manifest("one"))
	roll("one")
	c.Apply(t, manifest("two"))
	roll("two")
	c.Dhow(t, "rollout", "undo", "ds/agent", "-n", ns)
	roll("one")
}

// members returns when the containers of the set's members were made. Each waits for the one before, which needs longer than the clocks of machines are apart.
func members(t *testing.T, c *cluster.Any) map[string]time.Time {
	t.Helper()
	made := map[string]time.Time{}
	for name, container := range inSets(t, c) {
		made[name] = container.Created
	}
	return made
}

func inSets(t *testing.T, c *cluster.Any) map[string]evidence.Container {
	t.Helper()
	found, err := c.Containers(t.Context(), "sets")
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]evidence.Container{}
	for _, f := range found {
		all[f.Pod] = f
	}
	return all
}

// resolves checks that every container of the namespace finds pods by their host names in the domain of the Service, and that the pods know those names.
func resolves(t *testing.T, c *cluster.Any, hosts map[string]string) {
	t.Helper()
	all := inSets(t, c)
	for host, pod := range hosts {
		var object struct {
			Status struct {
				PodIP string `json:"podIP"`
			} `json:"status"`
		}
		if err := json.Unmarshal([]byte(c.Dhow(t, "get", "pod", pod, "-n", "sets", "-o", "json")), &object); err != nil {
			t.Fatal(err)
		}
		for from, container := range all {
			for _, name := range []string{host + ".peers", host + ".peers.sets.svc.cluster.local"} {
				// Another node's DNS may hear of a change a moment later.
				cluster.Eventually(t, func(ctx context.Context) error {
					out, err := container.Exec(ctx, execTimeout, "fetch", "-resolve", name)
					if err == nil && strings.TrimSpace(out) != object.Status.PodIP {
						err = fmt.Errorf("%s is %q for %s, want %s", name, out, from, object.Status.PodIP)
					}
					return err
				})
			}
		}
		for _, args := range [][]string{{"hostname", host}, {"hostname -f", host + ".peers.sets.svc.cluster.local"}} {
			if out, err := all[pod].Exec(t.Context(), execTimeout, "sh", "-c", args[0]); err != nil || strings.TrimSpace(out) != args[1] {
				t.Errorf("%s in %s: %q, %v", args[0], pod, out, err)
			}
		}
	}
}
