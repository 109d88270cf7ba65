//go:build e2e

package kubectl

import "testing"

const setManifests = `
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db, annotations: {kubernetes.io/change-cause: the first}}
spec:
  replicas: 2
  serviceName: peers
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: main, image: "registry.dhow:5000/tools:v1", args: ["-c", "while :; do sleep 1; done"]}]
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: agent}
spec:
  selector: {matchLabels: {app: agent}}
  template:
    metadata: {labels: {app: agent}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: main, image: "registry.dhow:5000/tools:v1", args: ["-c", "while :; do sleep 1; done"]}]
`

// sets: rollouts of stateful and daemon sets, which kubectl reads from their revisions and puts back with them.
func sets(_ *testing.T, k kubectl) {
	k.given(setManifests, "apply", "-f", "-")
	// A set has a partition, 0 where none is given, and kubectl says so.
	k.says(`partitioned roll out complete: 2 new pods have been updated\.\.\.$`, "rollout", "status", "sts/db", "--timeout=2m")
	k.says(`daemon set "agent" successfully rolled out$`, "rollout", "status", "ds/agent", "--timeout=2m")
	k.says(`^NAME +READY +AGE\ndb +2/2 +`, "get", "sts", "db")
	k.says(`^NAME +DESIRED +CURRENT +READY +UP-TO-DATE +AVAILABLE +NODE SELECTOR +AGE\nagent +2 +2 +2 +2 +2 +<none> +`, "get", "ds", "agent")
	for of, ready := range map[string]string{"sts/db": `partitioned roll out complete: 2 new pods`, "ds/agent": `successfully rolled out$`} {
		k.does("set", "env", of, "MODE=second")
		k.says(ready, "rollout", "status", of, "--timeout=2m")
		k.says(`REVISION +CHANGE-CAUSE\n1 +.*\n2 +`, "rollout", "history", of)
		k.says(`MODE:\s+second`, "rollout", "history", of, "--revision=2")
		k.says(`rolled back$`, "rollout", "undo", of)
		k.says(ready, "rollout", "status", of, "--timeout=2m")
		k.says(`^$`, "get", of, "-o", "jsonpath={.spec.template.spec.containers[0].env}")
		k.says(`REVISION +CHANGE-CAUSE\n2 +.*\n3 +`, "rollout", "history", of)
		k.says(`rolled back$`, "rollout", "undo", of, "--to-revision=2")
		k.says(ready, "rollout", "status", of, "--timeout=2m")
		k.says(`skipped rollback \(current template already matches revision 4\)`, "rollout", "undo", of, "--to-revision=4")
		k.says(`restarted$`, "rollout", "restart", of)
		k.says(ready, "rollout", "status", of, "--timeout=2m")
	}
	k.says(`5 +the first`, "rollout", "history", "sts/db")
	k.says(`^statefulset.apps/db scaled$`, "scale", "sts", "db", "--replicas=3", "--current-replicas=2")
	k.says(`partitioned roll out complete: 3 new pods`, "rollout", "status", "sts/db", "--timeout=2m")
	k.says(`^3$`, "get", "sts", "db", "--subresource=scale", "-o", "jsonpath={.status.replicas}")
	k.says(`^Name: +db\n.*^Replicas: +3 desired \| 3 total$.*^Pods Status: +3 Running / 0 Waiting / 0 Succeeded / 0 Failed$.*SuccessfulCreate`, "describe", "sts", "db")
	k.says(`^Name: +agent\n.*^Desired Number of Nodes Scheduled: 2$.*SuccessfulCreate`, "describe", "ds", "agent")
	k.says(`db-\w+ +statefulset.apps/db +\d`, "get", "controllerrevisions")
	k.says(`deleted`, "delete", "sts/db", "ds/agent", "--timeout=2m")
	k.soon(`^$`, "get", "controllerrevisions", "-o", "name")
}
