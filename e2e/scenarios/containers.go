package scenarios

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"dhow.dev/e2e/cluster"
	"dhow.dev/e2e/evidence"
)

// running returns the one running container of a pod, by the runtime, or an error that says what runs.
func running(ctx context.Context, c *cluster.Any, namespace, pod, container string) (evidence.Container, error) {
	found, err := c.Containers(ctx, namespace)
	if err != nil {
		return evidence.Container{}, err
	}
	for _, f := range found {
		if f.Pod == pod && f.Name == container {
			return f, nil
		}
	}
	return evidence.Container{}, fmt.Errorf("no runtime runs %s/%s/%s; they run %v", namespace, pod, container, found)
}

// containers: a pod's life; logs, exec with its exit code, restarts with back-off, graceful end.
func containers(t *testing.T, c *cluster.Any) {
	ns := c.Namespace(t, "containers")
	c.Apply(t, `
apiVersion: v1
kind: Pod
metadata: {name: talker, namespace: containers}
spec:
  terminationGracePeriodSeconds: 20
  initContainers:
  - name: first
    image: registry.dhow:5000/tools:v1
    args: ["-c", "echo from init > /shared/word"]
    volumeMounts: [{name: shared, mountPath: /shared}]
  containers:
  - name: main
    image: registry.dhow:5000/tools:v1
    args: ["-c", "trap 'echo bye > /shared/end; exit 0' TERM; cat /shared/word; echo second line; while :; do sleep 1 & wait $!; done"]
    volumeMounts: [{name: shared, mountPath: /shared}]
  volumes:
  - name: shared
    emptyDir: {}
---
apiVersion: v1
kind: Pod
metadata: {name: crasher, namespace: containers}
spec:
  containers:
  - name: main
    image: registry.dhow:5000/tools:v1
    args: ["-c", "echo attempt; exit 3"]
---
apiVersion: v1
kind: Pod
metadata: {name: once, namespace: containers}
spec:
  restartPolicy: Never
  containers:
  - name: main
    image: registry.dhow:5000/tools:v1
    args: ["-c", "echo done > /dev/termination-log"]
---
apiVersion: v1
kind: Pod
metadata: {name: no-image, namespace: containers}
spec:
  containers:
  - {name: main, image: "registry.dhow:5000/absent:v1"}
`)
	c.Dhow(t, "wait", "--for=condition=Ready", "pod/talker", "-n", ns, "--timeout=2m")
	if _, err := running(t.Context(), c, ns, "talker", "main"); err != nil {
		t.Error(err)
	}
	if got := c.Dhow(t, "logs", "talker", "-n", ns); got != "from init\nsecond line\n" {
		t.Errorf("logs: %q", got)
	}
	if got := c.Dhow(t, "logs", "talker", "-n", ns, "--tail=1"); got != "second line\n" {
		t.Errorf("logs --tail=1: %q", got)
	}
	if got := c.Dhow(t, "exec", "talker", "-n", ns, "--", "sh", "-c", "cat /shared/word; hostname"); got != "from init\ntalker\n" {
		t.Errorf("exec: %q", got)
	}
	if out, _, err := c.Try("typed in", "exec", "-i", "talker", "-n", ns, "--", "cat"); err != nil || out != "typed in" {
		t.Errorf("exec -i: %q, %v", out, err)
	}
	_, _, err := c.Try("", "exec", "talker", "-n", ns, "--", "sh", "-c", "exit 7")
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 7 {
		t.Errorf("exec's exit code: %v, want 7", err)
	}

	c.Dhow(t, "wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/once", "-n", ns, "--timeout=2m")
	if got := c.Dhow(t, "get", "pod/once", "-n", ns, "-o", "json"); !strings.Contains(got, `"message": "done\n"`) || !strings.Contains(got, `"reason": "Completed"`) {
		t.Errorf("once: %s", got)
	}
	cluster.Eventually(t, func(context.Context) error {
		if got := c.Dhow(t, "get", "pods", "-n", ns); !strings.Contains(got, "CrashLoopBackOff") || !strings.Contains(got, "ImagePullBackOff") {
			return fmt.Errorf("no back-off shown: %s", got)
		}
		return nil
	})
	if got := c.Dhow(t, "logs", "crasher", "-n", ns, "--previous"); got != "attempt\n" {
		t.Errorf("logs --previous: %q", got)
	}
	if got := c.Dhow(t, "describe", "pod", "no-image", "-n", ns); !strings.Contains(got, "Failed to pull image") {
		t.Errorf("describe does not say that the image failed: %s", got)
	}

	talker, err := running(t.Context(), c, ns, "talker", "main")
	if err != nil {
		t.Fatal(err)
	}
	c.Dhow(t, "delete", "pod", "talker", "-n", ns)
	if left, err := talker.Node.Containers(t.Context(), ns); err != nil || len(left) > 0 && left[0].Pod == "talker" {
		t.Errorf("after the deletion the runtime runs %v, %v", left, err)
	}
}

// configuration: environment and files from config maps and secrets, resources as cgroup limits.
func configuration(t *testing.T, c *cluster.Any) {
	ns := c.Namespace(t, "configuration")
	c.Apply(t, `
apiVersion: v1
kind: ConfigMap
metadata: {name: settings, namespace: configuration}
data: {color: blue, file: "first\n"}
---
apiVersion: v1
kind: Secret
metadata: {name: keys, namespace: configuration}
stringData: {password: hidden}
---
apiVersion: v1
kind: Pod
metadata: {name: reader, namespace: configuration, labels: {tier: test}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: registry.dhow:5000/tools:v1
    args: ["-c", "env | sort; cat /etc/settings/file; cat /etc/keys/password; stat -c %a /etc/keys/password; exec sleep 3600"]
    env:
    - {name: COLOR, valueFrom: {configMapKeyRef: {name: settings, key: color}}}
    - {name: PASSWORD, valueFrom: {secretKeyRef: {name: keys, key: password}}}
    - {name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: LIMIT, valueFrom: {resourceFieldRef: {resource: limits.memory, divisor: 1Mi}}}
    - {name: BOTH, value: "$(COLOR)-$(POD)"}
    envFrom:
    - {prefix: ALL_, configMapRef: {name: settings}}
    resources:
      requests: {cpu: 50m, memory: 16Mi}
      limits: {memory: 32Mi}
    volumeMounts:
    - {name: settings, mountPath: /etc/settings}
    - {name: keys, mountPath: /etc/keys, readOnly: true}
  volumes:
  - {name: settings, configMap: {name: settings}}
  - {name: keys, secret: {secretName: keys, defaultMode: 0400}}
`)
	c.Dhow(t, "wait", "--for=condition=Ready", "pod/reader", "-n", ns, "--timeout=2m")
	log := c.Dhow(t, "logs", "reader", "-n", ns)
	for _, want := range []string{"COLOR=blue\n", "PASSWORD=hidden\n", "POD=reader\n", "LIMIT=32\n", "BOTH=blue-reader\n", "ALL_color=blue\n", "first\n", "hidden"} {
		if !strings.Contains(log, want) {
			t.Errorf("log lacks %q:\n%s", want, log)
		}
	}
	if got := c.Dhow(t, "get", "pod/reader", "-n", ns, "-o", "yaml"); !strings.Contains(got, "qosClass: Burstable") {
		t.Errorf("QoS class: %s", got)
	}
	// A changed config map reaches the mounted file of a running pod.
	c.Apply(t, "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: settings, namespace: configuration}\ndata: {color: blue, file: \"second\\n\"}\n")
	cluster.Eventually(t, func(context.Context) error {
		if got, _, err := c.Try("", "exec", "reader", "-n", ns, "--", "cat", "/etc/settings/file"); err != nil || got != "second\n" {
			return fmt.Errorf("the mounted file says %q, %v", got, err)
		}
		return nil
	})
	_, problems, err := c.Try(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"bad","namespace":"configuration"},"spec":{"containers":[{"name":"x"}]}}`, "apply", "-f", "-")
	if err == nil || !strings.Contains(problems, "spec.containers[0].image") || !strings.Contains(problems, "Required value") {
		t.Errorf("a pod without image: %v %s", err, problems)
	}
}

// probes: readiness keeps a pod out, liveness restarts it, startup holds both back.
func probes(t *testing.T, c *cluster.Any) {
	ns := c.Namespace(t, "probes")
	c.Apply(t, `
apiVersion: v1
kind: Pod
metadata: {name: gate, namespace: probes}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: registry.dhow:5000/tools:v1
    args: ["-c", "exec sleep 3600"]
    readinessProbe: {exec: {command: [test, -e, /tmp/ready]}, periodSeconds: 1}
---
apiVersion: v1
kind: Pod
metadata: {name: patient, namespace: probes}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: registry.dhow:5000/tools:v1
    args: ["-c", "mkdir -p /tmp/www; touch /tmp/www/index.html; exec httpd -f -p 8080 -h /tmp/www"]
    startupProbe: {tcpSocket: {port: 8080}, periodSeconds: 1, failureThreshold: 30}
    livenessProbe: {httpGet: {path: /index.html, port: 8080}, periodSeconds: 1, failureThreshold: 2}
`)
	cluster.Eventually(t, func(ctx context.Context) error {
		_, err := running(ctx, c, ns, "gate", "main")
		return err
	})
	if got := c.Dhow(t, "get", "pod/gate", "-n", ns); !strings.Contains(got, "0/1") {
		t.Errorf("ready before its probe passed: %s", got)
	}
	c.Dhow(t, "exec", "gate", "-n", ns, "--", "touch", "/tmp/ready")
	c.Dhow(t, "wait", "--for=condition=Ready", "pod/gate", "-n", ns, "--timeout=1m")
	c.Dhow(t, "exec", "gate", "-n", ns, "--", "rm", "/tmp/ready")
	c.Dhow(t, "wait", "--for=condition=Ready=false", "pod/gate", "-n", ns, "--timeout=1m")

	c.Dhow(t, "wait", "--for=condition=Ready", "pod/patient", "-n", ns, "--timeout=1m")
	before, err := running(t.Context(), c, ns, "patient", "main")
	if err != nil {
		t.Fatal(err)
	}
	c.Dhow(t, "exec", "patient", "-n", ns, "--", "rm", "/tmp/www/index.html")
	cluster.Eventually(t, func(ctx context.Context) error {
		now, err := running(ctx, c, ns, "patient", "main")
		if err == nil && now.Attempt == before.Attempt {
			err = fmt.Errorf("still attempt %d", now.Attempt)
		}
		return err
	})
	if got := c.Dhow(t, "describe", "pod", "patient", "-n", ns); !strings.Contains(got, "Liveness probe failed") {
		t.Errorf("describe does not tell of the failed probe: %s", got)
	}
}
