//go:build e2e

package nodeagent_test

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/services/node-agent/internal/apitest"
	"dhow.dev/services/node-agent/internal/shutdown/logindtest"
)

// TestAMachineThatShutsDown has logind announce a shutdown: it waits while pods end in order, what comes then is refused, and everybody is told.
func TestAMachineThatShutsDown(t *testing.T) {
	daemon := logindtest.Start(t, time.Hour)
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", daemon.Address)
	c := newCluster(t)
	c.arguments = append(c.arguments, "--shutdown-grace-period=50m", "--shutdown-grace-period-critical-pods=20m")
	dir := t.TempDir()
	stop := c.start()
	defer func() { stop(syscall.SIGTERM) }()
	c.awaitNode()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	if err := daemon.Await(ctx, 1); err != nil {
		t.Fatal(err)
	}
	// Each writes its name when it is asked to end; the ordinary one takes its time, which the critical one has to wait for.
	run := func(name, spec, end string) {
		c.run(`{metadata: {name: ` + name + `}, spec: {` + spec + `terminationGracePeriodSeconds: 600, volumes: [{name: log, hostPath: {path: ` + dir + `}}], containers: [{name: c, image: "dhow.test/busybox:1",
		  volumeMounts: [{name: log, mountPath: /log}], command: [sh, -c, "trap '` + end + `; echo ` + name + ` >> /log/ends; exit 0' TERM; touch /up; while true; do usleep 20000; done"], readinessProbe: {exec: {command: [test, -e, /up]}, periodSeconds: 1}}]}}`)
	}
	run("critical", "priority: 2000000000, ", "true")
	run("ordinary", "", "while test ! -e /log/go; do usleep 20000; done")
	c.await("both are ready", func() bool { return ready(c.pod("critical")) && ready(c.pod("ordinary")) })
	if err := daemon.Shutdown(true); err != nil {
		t.Fatal(err)
	}
	c.await("the node says why it is not ready", func() bool {
		n, _ := apitest.Get[*corev1.Node](c.api, "", "n1")
		return slices.ContainsFunc(n.GetStatus().GetConditions(), func(c *corev1.NodeCondition) bool {
			return c.GetType() == "Ready" && c.GetStatus() == "False" && c.GetMessage() == "node is shutting down"
		}) && c.event("n1", "NodeShutdown", "Shutdown manager detected shutdown event")
	})
	c.run(`{metadata: {name: late}, spec: {containers: [{name: c, image: "dhow.test/busybox:1", command: [sleep, "1000000"]}]}}`)
	failed := func(name, reason, message string) {
		t.Helper()
		c.await(name+" failed", func() bool {
			s := c.pod(name).GetStatus()
			return s.GetPhase() == "Failed" && s.GetReason() == reason && s.GetMessage() == message
		})
	}
	failed("late", "NodeShutdown", "Pod was rejected: Pod was rejected as the node is shutting down.")
	if s := c.pod("critical").GetStatus(); s.GetPhase() != "Running" || daemon.Held() != 1 {
		t.Errorf("while the ordinary pod has not ended the critical one is %s, and %d inhibitors are held", s.GetPhase(), daemon.Held())
	}
	if err := os.WriteFile(filepath.Join(dir, "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	const why = "Pod was terminated in response to imminent node shutdown."
	failed("ordinary", "Terminated", why)
	failed("critical", "Terminated", why)
	for _, name := range []string{"ordinary", "critical"} {
		if !slices.ContainsFunc(c.pod(name).GetStatus().GetConditions(), func(c *corev1.PodCondition) bool {
			return c.GetType() == "DisruptionTarget" && c.GetStatus() == "True" && c.GetReason() == "TerminationByKubelet" && c.GetMessage() == why
		}) {
			t.Errorf("%s: %v", name, c.pod(name).GetStatus().GetConditions())
		}
	}
	if err := daemon.Await(ctx, 0); err != nil {
		t.Errorf("the machine may not shut down: %v", err)
	}
	if text, err := os.ReadFile(filepath.Join(dir, "ends")); err != nil || strings.Join(strings.Fields(string(text)), " ") != "ordinary critical" {
		t.Errorf("they ended in this order: %q, %v", text, err)
	}
	// It was called off: the node takes pods again, and the next shutdown waits.
	if err := daemon.Shutdown(false); err != nil {
		t.Fatal(err)
	}
	c.awaitNode()
	if err := daemon.Await(ctx, 1); err != nil {
		t.Error(err)
	}
	c.run(`{metadata: {name: after}, spec: {terminationGracePeriodSeconds: 0, containers: [{name: c, image: "dhow.test/busybox:1", command: [sleep, "1000000"]}]}}`)
	c.await("after is ready", func() bool { return ready(c.pod("after")) })
	for _, p := range apitest.List[*corev1.Pod](c.api) {
		c.api.DeletePod("default", p.GetMetadata().GetName(), 0)
	}
	c.await("all pods are gone", func() bool { return len(apitest.List[*corev1.Pod](c.api)) == 0 })
}
