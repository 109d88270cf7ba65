package scenarios

import (
	"fmt"
	"testing"
	"time"

	"dhow.dev/e2e/cluster"
)

// Each pod checks its own index and host name; index 1 fails, twice, since it may be tried again once.
const jobManifest = `
apiVersion: batch/v1
kind: Job
metadata: {name: work, namespace: jobs}
spec:
  completionMode: Indexed
  completions: 3
  parallelism: 3
  backoffLimitPerIndex: 1
  template:
    spec:
      restartPolicy: Never
      containers:
      - name: main
        image: registry.dhow:5000/tools:v1
        args: ["-c", "test $(hostname) = work-$JOB_COMPLETION_INDEX || exit 9; test $JOB_COMPLETION_INDEX != 1"]
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: tick, namespace: jobs}
spec:
  schedule: "0 0 1 1 *"
  timeZone: UTC
  jobTemplate:
    spec:
      template:
        spec:
          restartPolicy: Never
          containers:
          - name: main
            image: registry.dhow:5000/tools:v1
            args: ["-c", "true"]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: burn, namespace: jobs}
spec:
  selector: {matchLabels: {app: burn}}
  template:
    metadata: {labels: {app: burn}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: main
        image: registry.dhow:5000/tools:v1
        args: ["-c", "while :; do :; done"]
        resources: {requests: {cpu: 20m}, limits: {cpu: 100m}}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: burn, namespace: jobs}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: burn}
  maxReplicas: 2
  metrics:
  - type: Resource
    resource: {name: cpu, target: {type: Utilization, averageUtilization: 50}}
`

// jobs: an indexed job of which one index fails for good, a job that a cron job starts, a deployment that grows with the CPU that it uses.
func jobs(t *testing.T, c *cluster.Any) {
	ns := c.Namespace(t, "jobs")
	c.Apply(t, jobManifest)
	// The cron job's last time was years ago.
	k := newKubectl(t, c, ns)
	k.does(t, "patch", "cj/tick", "--subresource=status", "--type=merge", "-p", fmt.Sprintf(`{"status":{"lastScheduleTime":"%d-01-01T00:00:00Z"}}`, time.Now().UTC().Year()-2))
	k.soon(t, "cj/tick", "{.status.active}{.status.lastScheduleTime}", fmt.Sprintf("%d-01-01T00:00:00Z", time.Now().UTC().Year()))
	k.soon(t, "job/work", `{.status.conditions[?(@.type=="Failed")].reason}`, "FailedIndexes")
	k.soon(t, "job/work", "{.status.completedIndexes} {.status.failedIndexes} {.status.succeeded} {.status.failed} {.status.uncountedTerminatedPods}", "0,2 1 2 2 {}")
	k.soon(t, "deploy/burn", "{.spec.replicas} {.status.readyReplicas}", "2 2")
	k.soon(t, "hpa/burn", `{.status.conditions[?(@.type=="ScalingActive")].status} {.status.desiredReplicas}`, "True 2")
}
