package scenarios

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"dhow.dev/e2e/cluster"
	"dhow.dev/e2e/evidence"
)

// execTimeout bounds one command in a container.
const execTimeout = 10 * time.Second

// services: names and addresses reach ready pods on every node, TCP and UDP, and only those.
func services(t *testing.T, c *cluster.Any) {
	ns := c.Namespace(t, "services")
	c.Apply(t, `
apiVersion: apps/v1
kind: Deployment
metadata: {name: echo, namespace: services}
spec:
  replicas: 3
  selector: {matchLabels: {app: echo}}
  template:
    metadata: {labels: {app: echo}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: echo
        image: registry.dhow:5000/tools:v1
        args: ["-c", "mkdir -p /tmp/www; hostname > /tmp/www/name; nc -u -l -p 9090 -e sh -c 'read x; hostname' & exec httpd -f -p 8080 -h /tmp/www"]
        ports: [{name: http, containerPort: 8080}]
        readinessProbe: {exec: {command: [sh, -c, "! test -e /tmp/unready"]}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: echo, namespace: services}
spec:
  type: NodePort
  selector: {app: echo}
  ports: [{name: http, port: 80, targetPort: http, nodePort: 30181}]
---
apiVersion: v1
kind: Service
metadata: {name: headless, namespace: services}
spec:
  clusterIP: None
  selector: {app: echo}
  ports: [{name: http, port: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: nobody, namespace: services}
spec:
  selector: {app: nobody}
  ports: [{port: 80}]
`)
	c.Dhow(t, "rollout", "status", "deploy/echo", "-n", ns, "--timeout=2m")
	pods, err := c.Containers(t.Context(), ns)
	if err != nil || len(pods) != 3 {
		t.Fatalf("containers: %v, %v", pods, err)
	}
	answers := func(t *testing.T, from evidence.Container, url string) string {
		t.Helper()
		out, err := from.Exec(t.Context(), execTimeout, "fetch", url)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(out)
	}
	names := map[string]bool{}
	for _, p := range pods {
		names[p.Pod] = true
	}
	seen := map[string]bool{}
	for range 40 {
		seen[answers(t, pods[0], "http://echo/name")] = true
	}
	for name := range names {
		if !seen[name] {
			t.Errorf("40 calls of the Service reached %v, not %s", seen, name)
		}
	}
	for _, p := range pods {
		answers(t, p, "http://echo.services.svc.cluster.local/name")
		addresses, err := p.Exec(t.Context(), execTimeout, "fetch", "-resolve", "headless.services.svc.cluster.local")
		of := map[netip.Addr]bool{}
		for word := range strings.FieldsSeq(addresses) {
			if address, err := netip.ParseAddr(word); err == nil && c.PodNetwork.Contains(address) {
				of[address] = true
			}
		}
		if err != nil || len(of) != 3 {
			t.Errorf("headless on %s: %v %s", p.Node.Name, err, addresses)
		}
		if out, err := p.Exec(t.Context(), execTimeout, "fetch", "http://nobody"); err == nil || !strings.Contains(err.Error(), "refused") {
			t.Errorf("a Service without endpoints on %s: %q, %v; want refused", p.Node.Name, out, err)
		}
	}
	for _, n := range c.Nodes {
		if _, err := evidence.HTTP(t.Context(), "GET", "http://"+net.JoinHostPort(n.Address, "30181")+"/name", ""); err != nil {
			t.Error(err)
		}
	}
	// A pod that is no longer ready gets no calls.
	out := pods[1]
	if _, err := out.Exec(t.Context(), execTimeout, "touch", "/tmp/unready"); err != nil {
		t.Fatal(err)
	}
	c.Dhow(t, "wait", "--for=condition=Ready=false", "pod/"+out.Pod, "-n", ns, "--timeout=1m")
	cluster.Eventually(t, func(context.Context) error {
		for range 30 {
			if got := answers(t, pods[0], "http://echo/name"); got == out.Pod {
				return fmt.Errorf("%s is not ready and still answers", got)
			}
		}
		return nil
	})
}
