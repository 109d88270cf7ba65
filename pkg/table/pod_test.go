package table_test

import (
	"testing"

	corev1 "k8s.io/api/core/v1"

	"dhow.dev/pkg/table"
)

// TestPodStatus goes through what the columns READY, STATUS and RESTARTS of a pod can say.
func TestPodStatus(t *testing.T) {
	pods := resourceOf("", "Pod")
	for _, test := range []struct{ name, pod, ready, status, restarts string }{
		{"nothing is known", `{}`, "0/0", "Unknown", "0"},
		{"waits for a node", `{spec: {containers: [{name: a}]}, status: {phase: Pending}}`, "0/1", "Pending", "0"},
		{
			"waits at a gate", `{spec: {containers: [{name: a}], schedulingGates: [{name: g}]}, status: {phase: Pending, conditions: [{type: PodScheduled, status: "False", reason: SchedulingGated}]}}`,
			"0/1", "SchedulingGated", "0",
		},
		{"the node says why", `{spec: {containers: [{name: a}]}, status: {phase: Failed, reason: Evicted}}`, "0/1", "Evicted", "0"},
		{
			"its image is being pulled", `{spec: {containers: [{name: a}]}, status: {phase: Pending, containerStatuses: [{name: a, state: {waiting: {reason: ContainerCreating}}}]}}`,
			"0/1", "ContainerCreating", "0",
		},
		{
			"its image cannot be pulled", `{spec: {containers: [{name: a}]}, status: {phase: Pending, containerStatuses: [{name: a, state: {waiting: {reason: ImagePullBackOff}}}]}}`,
			"0/1", "ImagePullBackOff", "0",
		},
		{
			"runs, is not ready", `{spec: {containers: [{name: a}]}, status: {phase: Running, containerStatuses: [{name: a, state: {running: {}}}]}}`,
			"0/1", "Running", "0",
		},
		{
			"one of two is ready", `{spec: {containers: [{name: a}, {name: b}]}, status: {phase: Running, containerStatuses: [{name: a, ready: true, state: {running: {}}}, {name: b, state: {running: {}}}]}}`,
			"1/2", "Running", "0",
		},
		{
			"crashes again and again", `{spec: {containers: [{name: a}]}, status: {phase: Running, containerStatuses: [{name: a, restartCount: 4, state: {waiting: {reason: CrashLoopBackOff}}, lastState: {terminated: {exitCode: 1, finishedAt: "2026-01-02T11:55:00Z"}}}]}}`,
			"0/1", "CrashLoopBackOff", "4 (5m ago)",
		},
		{
			"has ended with an error", `{spec: {containers: [{name: a}]}, status: {phase: Failed, containerStatuses: [{name: a, state: {terminated: {exitCode: 3, reason: Error}}}]}}`,
			"0/1", "Error", "0",
		},
		{
			"has ended without reason", `{spec: {containers: [{name: a}]}, status: {phase: Failed, containerStatuses: [{name: a, state: {terminated: {exitCode: 3}}}]}}`,
			"0/1", "ExitCode:3", "0",
		},
		{
			"was ended by a signal", `{spec: {containers: [{name: a}]}, status: {phase: Failed, containerStatuses: [{name: a, state: {terminated: {signal: 9}}}]}}`,
			"0/1", "Signal:9", "0",
		},
		{
			"has done its work", `{spec: {containers: [{name: a}]}, status: {phase: Succeeded, containerStatuses: [{name: a, state: {terminated: {exitCode: 0, reason: Completed}}}]}}`,
			"0/1", "Completed", "0",
		},
		{
			"one has done its work, one runs",
			`{spec: {containers: [{name: a}, {name: b}]}, status: {phase: Running, conditions: [{type: Ready, status: "True"}], containerStatuses: [{name: a, state: {terminated: {reason: Completed}}}, {name: b, ready: true, state: {running: {}}}]}}`,
			"1/2", "Running", "0",
		},
		{
			"one has done its work, one runs, the pod is not ready",
			`{spec: {containers: [{name: a}, {name: b}]}, status: {phase: Running, conditions: [{type: Ready, status: "False"}], containerStatuses: [{name: a, state: {terminated: {reason: Completed}}}, {name: b, ready: true, state: {running: {}}}]}}`,
			"1/2", "NotReady", "0",
		},
		{
			"the first of two init containers runs", `{spec: {initContainers: [{name: i}, {name: j}], containers: [{name: a}]}, status: {phase: Pending, initContainerStatuses: [{name: i, state: {running: {}}}, {name: j, state: {waiting: {reason: PodInitializing}}}], containerStatuses: [{name: a, restartCount: 7, state: {waiting: {reason: PodInitializing}}}]}}`,
			"0/1", "Init:0/2", "0",
		},
		{
			"the second of two init containers is about to run", `{spec: {initContainers: [{name: i}, {name: j}], containers: [{name: a}]}, status: {phase: Pending, initContainerStatuses: [{name: i, state: {terminated: {exitCode: 0}}}, {name: j, state: {waiting: {reason: PodInitializing}}}]}}`,
			"0/1", "Init:1/2", "0",
		},
		{
			"an init container crashes", `{spec: {initContainers: [{name: i}], containers: [{name: a}]}, status: {phase: Pending, initContainerStatuses: [{name: i, restartCount: 2, state: {waiting: {reason: CrashLoopBackOff}}, lastState: {terminated: {finishedAt: "2026-01-02T11:59:58Z"}}}]}}`,
			"0/1", "Init:CrashLoopBackOff", "2 (2s ago)",
		},
		{
			"an init container has failed", `{spec: {initContainers: [{name: i}], containers: [{name: a}]}, status: {phase: Pending, initContainerStatuses: [{name: i, state: {terminated: {exitCode: 1, reason: Error}}}]}}`,
			"0/1", "Init:Error", "0",
		},
		{
			"an init container has failed without reason", `{spec: {initContainers: [{name: i}], containers: [{name: a}]}, status: {phase: Pending, initContainerStatuses: [{name: i, state: {terminated: {exitCode: 5}}}]}}`,
			"0/1", "Init:ExitCode:5", "0",
		},
		{
			"an init container was ended by a signal", `{spec: {initContainers: [{name: i}], containers: [{name: a}]}, status: {phase: Pending, initContainerStatuses: [{name: i, state: {terminated: {exitCode: 137, signal: 9}}}]}}`,
			"0/1", "Init:Signal:9", "0",
		},
		{
			"init containers are done", `{spec: {initContainers: [{name: i}], containers: [{name: a}]}, status: {phase: Pending, initContainerStatuses: [{name: i, restartCount: 3, state: {terminated: {exitCode: 0}}}], containerStatuses: [{name: a, state: {waiting: {reason: PodInitializing}}}]}}`,
			"0/1", "PodInitializing", "0",
		},
		{
			"a sidecar runs beside", `{spec: {initContainers: [{name: i, restartPolicy: Always}], containers: [{name: a}]}, status: {phase: Running, initContainerStatuses: [{name: i, started: true, ready: true, restartCount: 1, state: {running: {}}}], containerStatuses: [{name: a, ready: true, restartCount: 2, state: {running: {}}}]}}`,
			"2/2", "Running", "3",
		},
		{
			"a sidecar has not started", `{spec: {initContainers: [{name: i, restartPolicy: Always}], containers: [{name: a}]}, status: {phase: Pending, initContainerStatuses: [{name: i, started: false, ready: true, state: {running: {}}}]}}`,
			"0/2", "Init:0/1", "0",
		},
		{
			"is being deleted", `{metadata: {deletionTimestamp: "2026-01-02T12:00:00Z"}, spec: {containers: [{name: a}]}, status: {phase: Running, containerStatuses: [{name: a, ready: true, state: {running: {}}}]}}`,
			"1/1", "Terminating", "0",
		},
		{
			"has ended, is being deleted", `{metadata: {deletionTimestamp: "2026-01-02T12:00:00Z"}, spec: {containers: [{name: a}]}, status: {phase: Succeeded, containerStatuses: [{name: a, state: {terminated: {reason: Completed}}}]}}`,
			"0/1", "Completed", "0",
		},
		{
			"is being deleted on a lost node", `{metadata: {deletionTimestamp: "2026-01-02T12:00:00Z"}, spec: {containers: [{name: a}]}, status: {phase: Running, reason: NodeLost}}`,
			"0/1", "Unknown", "0",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			pod := &corev1.Pod{}
			read(t, test.pod, pod)
			row := rowOf(t, pods, pod)
			if row[1] != test.ready || row[2] != test.status || row[3] != test.restarts {
				t.Errorf("Ready %s Status %s Restarts %s, not %s, %s and %s", row[1], row[2], row[3], test.ready, test.status, test.restarts)
			}
			if got := table.PodStatus(pod); got != test.status {
				t.Errorf("PodStatus is %s", got)
			}
		})
	}
}
