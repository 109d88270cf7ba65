//go:build e2e

package kubectl

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"context"

	"dhow.dev/e2e/cluster"
)

// workloads: a Deployment from its first pod to its last: scale, rollouts with history, undo and pause, set, autoscale.
func workloads(_ *testing.T, k kubectl) {
	k.says(`^deployment.apps/web created$`, "create", "deployment", "web", "--image=registry.dhow:5000/guestbook:v1", "--replicas=2")
	k.does("set", "env", "deployment/web", "MODE=stub")
	k.says(`^deployment.apps/web scaled$`, "scale", "deployment", "web", "--replicas=3", "--current-replicas=2")
	k.fails(`(?i)expected replicas to be 9, was 3`, "scale", "deployment", "web", "--replicas=1", "--current-replicas=9")
	k.says(`^3$`, "get", "deployment", "web", "--subresource=scale", "-o", "jsonpath={.spec.replicas}")
	k.says(`^deployment.apps/web image updated$`, "set", "image", "deployment/web", "guestbook=registry.dhow:5000/tools:v1")
	k.says(`(?i)^deployment.apps/web patched$`, "patch", "deployment", "web", "-p",
		`{"spec":{"template":{"spec":{"terminationGracePeriodSeconds":0,"containers":[{"name":"guestbook","command":["sh","-c","while :; do sleep 1; done"]}]}}}}`)
	k.says(`deployment "web" successfully rolled out$`, "rollout", "status", "deployment/web", "--timeout=2m")
	k.says(`^NAME +READY +UP-TO-DATE +AVAILABLE +AGE\nweb +3/3 +3 +3 `, "get", "deployment", "web")
	k.says(`REVISION +CHANGE-CAUSE\n1 +<none>`, "rollout", "history", "deployment/web")
	k.says(`^deployment.apps/web paused$`, "rollout", "pause", "deployment/web")
	k.says(`^deployment.apps/web resource requirements updated$`, "set", "resources", "deployment/web", "--requests=cpu=10m,memory=8Mi")
	k.says(`^deployment.apps/web resumed$`, "rollout", "resume", "deployment/web")
	k.says(`^deployment.apps/web restarted$`, "rollout", "restart", "deployment/web")
	k.says(`successfully rolled out$`, "rollout", "status", "deployment/web", "--timeout=2m")
	k.says(`^deployment.apps/web rolled back$`, "rollout", "undo", "deployment/web")
	k.says(`successfully rolled out$`, "rollout", "status", "deployment/web", "--timeout=2m")
	k.says(`^Name: +web\n.*^Replicas: +3 desired \| 3 updated \| 3 total \| 3 available \| 0 unavailable$.*^Events:.*ScalingReplicaSet`, "describe", "deployment", "web")
	k.says(`serviceaccount updated$`, "set", "serviceaccount", "deployment/web", "default")
	k.does("create", "service", "clusterip", "chosen", "--tcp=80")
	k.says(`selector updated$`, "set", "selector", "service", "chosen", "app=web")
	k.says(`^horizontalpodautoscaler.autoscaling/web autoscaled$`, "autoscale", "deployment", "web", "--min=1", "--max=4", "--cpu=80%")
	k.says(`^NAME +REFERENCE +TARGETS +MINPODS +MAXPODS +REPLICAS +AGE\nweb +Deployment/web +\S+ `, "get", "hpa", "web")
	k.says(`^1 4 80$`, "get", "horizontalpodautoscalers.v1.autoscaling", "web", "-o", "jsonpath={.spec.minReplicas} {.spec.maxReplicas} {.spec.targetCPUUtilizationPercentage}")
	k.says(`deployment.apps "web" deleted`, "delete", "deployment", "web", "--cascade=foreground", "--timeout=2m")
	k.soon(`^$`, "get", "replicasets", "-o", "name")
}

const worker = `
apiVersion: v1
kind: Pod
metadata: {name: worker, labels: {app: worker}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: registry.dhow:5000/tools:v1
    args: ["-c", "echo begin; while read line; do echo \"heard $line\"; done; while :; do sleep 1; done"]
    stdin: true
  - name: side
    image: registry.dhow:5000/tools:v1
    args: ["-c", "echo beside; while :; do sleep 1; done"]
`

// containers: into them and out of them.
func containers(t *testing.T, k kubectl) {
	k.given(worker, "apply", "-f", "-")
	k.says(`condition met`, "wait", "--for=condition=Ready", "pod/worker", "--timeout=2m")
	k.says(`^begin\n`, "logs", "worker", "-c", "main")
	k.says(`^\[pod/worker/main\] begin$`, "logs", "worker", "--all-containers", "--prefix")
	k.says(`^\d{4}-\d\d-\d\dT\S+Z begin$`, "logs", "worker", "-c", "main", "--timestamps", "--tail=1")
	k.says(`^beside\n`, "logs", "-l", "app=worker", "-c", "side")
	k.fails(`container nobody is not valid for pod worker`, "logs", "worker", "-c", "nobody")
	k.says(`^hello$`, "exec", "worker", "-c", "main", "--", "echo", "hello")
	if _, problems, err := k.try("", "exec", "worker", "-c", "side", "--", "sh", "-c", "exit 7"); err == nil || !isExit(err, 7) {
		t.Errorf("exec: %v: %s", err, problems)
	}
	if out := k.given("some words", "exec", "-i", "worker", "-c", "side", "--", "cat"); out != "some words" {
		t.Errorf("exec -i cat: %q", out)
	}
	k.fails(`(?i)no such file|executable file not found|not found`, "exec", "worker", "-c", "side", "--", "/nothing")

	// attach: what is typed is heard; the log has it too.
	if _, problems, err := k.try("knock\n", "attach", "-i", "worker", "-c", "main"); err != nil {
		t.Errorf("attach: %v: %s", err, problems)
	}
	k.soon(`^heard knock$`, "logs", "worker", "-c", "main")

	// cp, both ways, needs tar in the container.
	k.does("cp", k.file("there.txt", "over there"), k.namespace+"/worker:/tmp/there.txt", "-c", "side")
	k.says(`^over there$`, "exec", "worker", "-c", "side", "--", "cat", "/tmp/there.txt")
	back := filepath.Join(t.TempDir(), "back.txt")
	k.does("cp", k.namespace+"/worker:/tmp/there.txt", back, "-c", "side")
	if content, err := os.ReadFile(back); err != nil || string(content) != "over there" {
		t.Errorf("cp back: %v %q", err, content)
	}

	// run: one-shot pods, their output and exit code.
	// It waits for its input: one that has ended before kubectl attaches is asked for its log, and may be heard twice.
	out, problems, err := k.try("from a pod\n", "run", "once", "--image=registry.dhow:5000/tools:v1", "--restart=Never", "-i", "--rm", "--quiet", "--command", "--",
		"sh", "-c", "read line; echo $line")
	if err != nil || out != "from a pod\n" {
		t.Errorf("run --rm: %v: %q %s", err, out, problems)
	}
	// debug: an ephemeral container beside the others, and a copy of the pod.
	k.does("debug", "worker", "--image=registry.dhow:5000/tools:v1", "--container=doctor", "--profile=general", "--", "sh", "-c", "echo examined; while :; do sleep 1; done")
	k.soon(`^examined$`, "logs", "worker", "-c", "doctor")
	k.does("debug", "worker", "--image=registry.dhow:5000/tools:v1", "--copy-to=worker-copy", "--profile=general", "--", "sh", "-c", "echo copied")
	k.soon(`worker-copy`, "get", "pod", "worker-copy")
	k.says(`^pod "worker" (force )?deleted`, "delete", "pod", "worker", "--now")
}

// metrics: top says what containers and nodes use, after the first measurements have come.
func metrics(t *testing.T, k kubectl) {
	k.does("run", "measured", "--image=registry.dhow:5000/tools:v1", "--", "-c", "trap 'exit 0' TERM; while :; do sleep 1; done")
	k.soon(`^NAME +CPU\(cores\) +MEMORY\(bytes\)\s*\nmeasured +\d+m +\d+Mi`, "top", "pods")
	k.soon(`^n1 +\d+m +\d+%`, "top", "nodes")
}

func isExit(err error, code int) bool {
	exit, ok := err.(interface{ ExitCode() int })
	return ok && exit.ExitCode() == code
}

const site = `
apiVersion: v1
kind: Pod
metadata: {name: site, labels: {app: site}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: registry.dhow:5000/tools:v1
    args: ["-c", "mkdir -p /tmp/w && echo welcome > /tmp/w/index.html && exec busybox httpd -f -p 8080 -h /tmp/w"]
    ports: [{containerPort: 8080}]
    readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
`

// network: expose, port-forward, and the proxy with its paths to pods and services.
func network(t *testing.T, k kubectl) {
	k.given(site, "apply", "-f", "-")
	k.says(`condition met`, "wait", "--for=condition=Ready", "pod/site", "--timeout=2m")
	k.says(`^service/site exposed$`, "expose", "pod", "site", "--port=80", "--target-port=8080")
	k.soon(`^\S+:8080$`, "get", "endpointslices", "-l", "kubernetes.io/service-name=site", "-o", "jsonpath={.items[0].endpoints[0].addresses[0]}:{.items[0].ports[0].port}")

	for _, to := range []string{"pod/site", "service/site"} {
		port := "8080"
		if to == "service/site" {
			port = "80"
		}
		forward := k.background("port-forward", to, ":"+port)
		found := forward.waitFor(t, `^Forwarding from 127.0.0.1:(\d+) -> 8080$`)
		for range 3 {
			fetch(t, "http://127.0.0.1:"+found[1]+"/", "welcome\n")
		}
	}
	proxy := k.background("proxy", "--port=0")
	address := proxy.waitFor(t, `^Starting to serve on (\S+:\d+)$`)[1]
	base := "http://" + address + "/api/v1/namespaces/" + k.namespace
	fetch(t, base+"/pods/site:8080/proxy/", "welcome\n")
	fetch(t, base+"/services/site:80/proxy/index.html", "welcome\n")
	k.says(`^welcome$`, "get", "--raw", "/api/v1/namespaces/"+k.namespace+"/services/http:site:80/proxy/")
}

func fetch(t *testing.T, url, want string) {
	t.Helper()
	cluster.Eventually(t, func(ctx context.Context) error {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			return err
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		if err != nil || response.StatusCode != http.StatusOK || string(body) != want {
			return fmt.Errorf("GET %s: %s %q, %v", url, response.Status, body, err)
		}
		return nil
	})
}

// nodes: taint, cordon, drain with a budget in its way.
func nodes(_ *testing.T, k kubectl) {
	k.says(`^node/n1 tainted$`, "taint", "nodes", "n1", "room=full:NoSchedule")
	k.says(`^node/n1 untainted$`, "taint", "nodes", "n1", "room:NoSchedule-")
	k.says(`^node/n1 cordoned$`, "cordon", "n1")
	k.says(`^n1 +Ready,SchedulingDisabled`, "get", "nodes")
	k.says(`^node/n1 uncordoned$`, "uncordon", "n1")
	k.given(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: main, image: "registry.dhow:5000/tools:v1", args: ["-c", "while :; do sleep 1; done"]}]
`, "apply", "-f", "-")
	k.says(`successfully rolled out`, "rollout", "status", "deployment/web", "--timeout=2m")
	k.does("create", "poddisruptionbudget", "web", "--selector=app=web", "--min-available=1")
	k.soon(`^1$`, "get", "pdb", "web", "-o", "jsonpath={.status.disruptionsAllowed}")
	k.says(`^node/n2 drained$`, "drain", "n2", "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=2m")
	k.soon(`^n1 n1 $`, "get", "pods", "-l", "app=web", "-o", "jsonpath={range .items[*]}{.spec.nodeName} {end}")
	k.says(`^node/n2 uncordoned$`, "uncordon", "n2")
}

// access: who may do what, certificates, tokens.
func access(t *testing.T, k kubectl) {
	k.says(`^yes$`, "auth", "can-i", "create", "pods")
	k.says(`Username +\S*admin`, "auth", "whoami")
	k.does("create", "serviceaccount", "robot")
	robot := "--as=system:serviceaccount:" + k.namespace + ":robot"
	k.fails(``, "auth", "can-i", "list", "pods", robot)
	k.fails(`pods is forbidden: User "system:serviceaccount:`+k.namespace+`:robot" cannot list resource "pods" in API group "" in the namespace "`+k.namespace+`"`, "get", "pods", robot)
	k.does("create", "rolebinding", "robot-views", "--clusterrole=view", "--serviceaccount="+k.namespace+":robot")
	k.soon(`^yes$`, "auth", "can-i", "list", "pods", robot)
	k.says(`pods +\[\] +\[\] +\[.*get.*list.*watch.*\]`, "auth", "can-i", "--list", robot)
	k.fails(``, "auth", "can-i", "get", "secrets", robot)
	k.says(`reconciled|unchanged`, "auth", "reconcile", "-f", k.file("role.yaml", `
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: more, namespace: `+k.namespace+`}
rules: [{apiGroups: [""], resources: [secrets], verbs: [get]}]
`))
	token := k.says(`^[\w-]+\.[\w-]+\.[\w-]+\s*$`, "create", "token", "robot", "--duration=1h")
	if out, problems, err := k.try("", "auth", "whoami", "--token="+token, "--kubeconfig="+k.tokenConfig()); err != nil || !contains(out, "system:serviceaccount:"+k.namespace+":robot") {
		t.Errorf("whoami by a token: %v\n%s%s", err, out, problems)
	}
	k.given(`
apiVersion: certificates.k8s.io/v1
kind: CertificateSigningRequest
metadata: {name: ann-`+k.namespace+`}
spec:
  signerName: kubernetes.io/kube-apiserver-client
  usages: [client auth]
  request: `+request(t)+`
`, "create", "-f", "-")
	k.says(`Pending`, "get", "csr", "ann-"+k.namespace)
	k.says(`approved$`, "certificate", "approve", "ann-"+k.namespace)
	k.says(`Approved`, "get", "csr", "ann-"+k.namespace)
	k.says(`deleted`, "delete", "csr", "ann-"+k.namespace)
}
