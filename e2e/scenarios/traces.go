package scenarios

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"dhow.dev/e2e/cluster"
)

const webService = `---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: %s}
spec: {selector: {app: web}, ports: [{port: 80}]}
`

// traces: what follows from an apply can be followed from the command to the first endpoint that can be reached, through every service and onto the node.
func traces(t *testing.T, c *cluster.Any) {
	ns := c.Namespace(t, "traces")
	c.Apply(t, web(ns, "one")+fmt.Sprintf(webService, ns))
	c.Dhow(t, "rollout", "status", "deployment/web", "-n", ns, "--timeout=2m")
	var names []string
	for _, n := range c.Nodes {
		names = append(names, regexp.QuoteMeta(n.Name))
	}
	node := "(" + strings.Join(names, "|") + ")"
	// Services report a moment after they have done something.
	cluster.Eventually(t, func(context.Context) error {
		got, stderr, err := c.Try("", "trace", "deployment/web", "-n", ns)
		if err != nil {
			return fmt.Errorf("%w: %s", err, stderr)
		}
		// A process is named where there are several of its service.
		const does = `( \S+)? +`
		for _, step := range []string{
			`^deployment.apps/web: dhow apply `, `dhow` + does + `dhow apply`, `apiserver` + does + `registry\.`, `store` + does + `store\.commit`,
			`controller-manager` + does + `reconcile deployment  ` + ns + `/web`, `controller-manager` + does + `reconcile replicaset`, `scheduler` + does + `scheduler\.bind`,
			`node-agent ` + node + ` +pod container start`, `node-agent ` + node + ` +pod ready`,
			`controller-manager` + does + `reconcile endpointslice`, `node-agent ` + node + ` +proxy\.program`, `First pod ready after .*, reachable through its Service after `,
		} {
			if !regexp.MustCompile(step).MatchString(got) {
				return fmt.Errorf("%s is not in\n%s", step, got)
			}
		}
		return nil
	})
}
