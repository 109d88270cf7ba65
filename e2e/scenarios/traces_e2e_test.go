//go:build e2e

package scenarios

import (
	"context"
	"fmt"
	"regexp"
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
func traces(t *testing.T, c *cluster.Cluster) {
	ns := c.Namespace(t, "traces")
	c.Apply(t, web(ns, "one")+fmt.Sprintf(webService, ns))
	c.Dhow(t, "rollout", "status", "deployment/web", "-n", ns, "--timeout=2m")
	// Services report a moment after they have done something.
	cluster.Eventually(t, func(context.Context) error {
		got, stderr, err := c.Try("", "trace", "deployment/web", "-n", ns)
		if err != nil {
			return fmt.Errorf("%w: %s", err, stderr)
		}
		for _, step := range []string{
			`^deployment.apps/web: dhow apply `, `dhow +dhow apply`, `apiserver +registry\.`, `store +store\.commit`, `controller-manager +reconcile deployment  ` + ns + `/web`,
			`controller-manager +reconcile replicaset`, `scheduler +scheduler\.bind`, `node-agent n\d +pod container start`, `node-agent n\d +pod ready`,
			`controller-manager +reconcile endpointslice`, `node-agent n\d +proxy\.program`, `First pod ready after .*, reachable through its Service after `,
		} {
			if !regexp.MustCompile(step).MatchString(got) {
				return fmt.Errorf("%s is not in\n%s", step, got)
			}
		}
		return nil
	})
}
