package scenarios

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"dhow.dev/e2e/cluster"
)

// apartManifest is more pods than nodes, which must be apart.
const apartManifest = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: apart, namespace: NAMESPACE}
spec:
  replicas: REPLICAS
  selector: {matchLabels: {app: apart}}
  template:
    metadata: {labels: {app: apart}}
    spec:
      terminationGracePeriodSeconds: 2
      affinity:
        podAntiAffinity:
          requiredDuringSchedulingIgnoredDuringExecution:
          - {topologyKey: kubernetes.io/hostname, labelSelector: {matchLabels: {app: apart}}}
      containers:
      - {name: main, image: "registry.dhow:5000/tools:v1", args: ["-c", "trap 'exit 0' TERM; while :; do sleep 1 & wait $!; done"]}
`

const priorityManifest = `
apiVersion: scheduling.k8s.io/v1
kind: PriorityClass
metadata: {name: placement-important}
value: 1000
`

// importantManifest is a pod that must be apart from those, on one node.
const importantManifest = `
apiVersion: v1
kind: Pod
metadata: {name: important, namespace: NAMESPACE, labels: {app: important}}
spec:
  priorityClassName: placement-important
  terminationGracePeriodSeconds: 1
  nodeSelector: {kubernetes.io/hostname: NODE}
  affinity:
    podAntiAffinity:
      requiredDuringSchedulingIgnoredDuringExecution:
      - {topologyKey: kubernetes.io/hostname, labelSelector: {matchLabels: {app: apart}}}
  containers:
  - {name: main, image: "registry.dhow:5000/tools:v1", args: ["-c", "trap 'exit 0' TERM; while :; do sleep 1 & wait $!; done"]}
`

// apartNodes are the nodes on which the runtime runs a pod of the deployment, by node.
func apartNodes(ctx context.Context, c *cluster.Any, namespace string) (map[string]int, error) {
	found, err := c.Containers(ctx, namespace)
	nodes := map[string]int{}
	for _, f := range found {
		if strings.HasPrefix(f.Pod, "apart-") {
			nodes[f.Node.Name]++
		}
	}
	return nodes, err
}

// placement: pods that must be apart are, one more than there are nodes waits, and an important pod makes its way.
func placement(t *testing.T, c *cluster.Any) {
	ns := c.Namespace(t, "placement")
	fill := func(manifest string) string {
		return strings.NewReplacer("NAMESPACE", ns, "REPLICAS", fmt.Sprint(len(c.Nodes)+1), "NODE", c.Nodes[0].Name).Replace(manifest)
	}
	c.Apply(t, fill(apartManifest))
	cluster.Eventually(t, func(ctx context.Context) error {
		nodes, err := apartNodes(ctx, c, ns)
		if err == nil && len(nodes) != len(c.Nodes) {
			err = fmt.Errorf("pods run on %v", nodes)
		}
		return err
	})
	waits := fmt.Sprintf("0/%d nodes are available: %d node(s) didn't match pod anti-affinity rules", len(c.Nodes), len(c.Nodes))
	cluster.Eventually(t, func(context.Context) error {
		if out := c.Dhow(t, "describe", "pods", "-n", ns); !strings.Contains(out, waits) {
			return fmt.Errorf("no pod waits: %s", out)
		}
		return nil
	})
	if nodes, err := apartNodes(t.Context(), c, ns); err != nil || len(nodes) != len(c.Nodes) {
		t.Errorf("pods run on %v, %v", nodes, err)
	}

	c.Apply(t, priorityManifest)
	t.Cleanup(func() { c.Dhow(t, "delete", "priorityclass", "placement-important") })
	c.Apply(t, fill(importantManifest))
	c.Dhow(t, "wait", "--for=condition=Ready", "pod/important", "-n", ns, "--timeout=2m")
	nodes, err := apartNodes(t.Context(), c, ns)
	if err != nil || nodes[c.Nodes[0].Name] != 0 || len(nodes) != len(c.Nodes)-1 {
		t.Errorf("beside the important pod on %s run %v, %v", c.Nodes[0].Name, nodes, err)
	}
	cluster.Eventually(t, func(context.Context) error {
		if out := c.Dhow(t, "get", "events", "-n", ns); !strings.Contains(out, "Preempted by pod") {
			return fmt.Errorf("nobody was told of the preemption: %s", out)
		}
		return nil
	})
}
