package scenarios

import (
	"strings"
	"testing"

	"dhow.dev/e2e/cluster"
)

// resources: somebody writes into a node's status how much it has of a resource that Dhow knows nothing of. The node's agent keeps it, pods get as much of it and no more, and without it
// they find no place.
func resources(t *testing.T, c *cluster.Any) {
	ns := c.Namespace(t, "resources")
	k := newKubectl(t, c, ns)
	node := "node/" + c.Nodes[0].Name
	have := func(quantity string) {
		t.Helper()
		k.does(t, "patch", node, "--subresource=status", "--type=merge", "-p", `{"status":{"capacity":{"example.com/thing":`+quantity+`}}}`)
		k.soon(t, node, `{.status.capacity.example\.com/thing} {.status.allocatable.example\.com/thing}`, strings.TrimSpace(strings.ReplaceAll(quantity+" "+quantity, "null", "")))
	}
	t.Cleanup(func() {
		if _, err := k.try("patch", node, "--subresource=status", "--type=merge", "-p", `{"status":{"capacity":{"example.com/thing":null}}}`); err != nil {
			t.Error(err)
		}
	})
	pod := func(name, quantity string) string {
		return `
apiVersion: v1
kind: Pod
metadata: {name: ` + name + `, namespace: resources}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: registry.dhow:5000/tools:v1
    args: ["-c", "exec sleep 3600"]
    resources: {limits: {example.com/thing: ` + quantity + `}}
`
	}
	have("3")
	c.Apply(t, pod("first", "2")+"---"+pod("second", "2"))
	k.soon(t, "pods", `{range .items[?(@.status.phase=="Running")]}{.spec.nodeName} {end}`, c.Nodes[0].Name)
	k.soon(t, "pods", `{range .items[?(@.status.phase=="Pending")]}{.status.conditions[?(@.type=="PodScheduled")].reason}{end}`, "Unschedulable")
	have("4")
	k.soon(t, "pods", `{range .items[?(@.status.phase=="Running")]}{.spec.nodeName} {end}`, c.Nodes[0].Name+" "+c.Nodes[0].Name)
	have("null")
}
