//go:build e2e

package kubectl

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// discovery: what the server has, and what its fields mean.
func discovery(_ *testing.T, k kubectl) {
	k.says(`^pods +po +v1 +true +Pod$`, "api-resources")
	k.says(`^deployments +deploy +apps/v1 +true +Deployment$`, "api-resources")
	k.says(`^deployments.apps$`, "api-resources", "-o", "name", "--namespaced=true", "--verbs=list,patch")
	k.says(`^apps/v1$.*^v1$`, "api-versions")
	k.says(`Kubernetes control plane.* is running at.*https://`, "cluster-info")
	k.says(`Server Version: v1\.36\.`, "version")
	k.says(`KIND: +Pod\nVERSION: +v1\n\nFIELD: containers <\[\]Container>.*^  image\t<string>\n.*^  name\t<string> -required-`, "explain", "pod.spec.containers")
	k.says(`^ +replicas\s+<integer>`, "explain", "deployment.spec")
	k.says(`GROUP: +apps\nKIND: +Deployment`, "explain", "deployments.apps")
	k.says(`  podIP\t<string>`, "explain", "pod", "--recursive")
	k.fails(`field "nothing" does not exist`, "explain", "pod.spec.nothing")
	k.fails(`the server doesn't have a resource type "unicorns"`, "get", "unicorns")
	k.says(`"gitVersion"`, "get", "--raw", "/version")
	k.says(`^ok$`, "get", "--raw", "/readyz")
	k.says(`\[\+\]ping ok`, "get", "--raw", "/livez?verbose")
}

// create: every generator of `kubectl create`, and what is wrong is said before anything is written.
func create(_ *testing.T, k kubectl) {
	k.says(`^configmap/colors created$`, "create", "configmap", "colors", "--from-literal=grass=green", "--from-file=sky="+k.file("sky", "blue"))
	k.says(`^green blue$`, "get", "configmap", "colors", "-o", "jsonpath={.data.grass} {.data.sky}")
	k.fails(`configmaps "colors" already exists`, "create", "configmap", "colors")
	k.says(`^secret/login created$`, "create", "secret", "generic", "login", "--from-literal=password=rosebud")
	k.says(`^cm9zZWJ1ZA==$`, "get", "secret", "login", "-o", "jsonpath={.data.password}")
	k.says(`^secret/pull created$`, "create", "secret", "docker-registry", "pull", "--docker-server=registry.example", "--docker-username=ann", "--docker-password=x")
	k.says(`^serviceaccount/robot created$`, "create", "serviceaccount", "robot")
	k.says(`^role.rbac.authorization.k8s.io/reader created$`, "create", "role", "reader", "--verb=get,list", "--resource=pods,configmaps")
	k.says(`^rolebinding.rbac.authorization.k8s.io/robot-reads created$`, "create", "rolebinding", "robot-reads", "--role=reader", "--serviceaccount="+k.namespace+":robot")
	k.soon(`^quota +pods: 0/3`, "get", "quota", k.made("quota", "quota", "--hard=pods=3"))
	k.says(`^poddisruptionbudget.policy/careful created$`, "create", "poddisruptionbudget", "careful", "--selector=app=web", "--min-available=1")
	k.says(`^job.batch/once created$`, "create", "job", "once", "--image=registry.dhow:5000/tools:v1", "--", "true")
	k.says(`^cronjob.batch/often created$`, "create", "cronjob", "often", "--image=registry.dhow:5000/tools:v1", "--schedule=0 0 1 1 *", "--", "true")
	k.says(`^ingress.networking.k8s.io/door created$`, "create", "ingress", "door", "--rule=example.com/*=web:80")
	k.says(`^service/inner created$`, "create", "service", "clusterip", "inner", "--tcp=80:8080")
	k.says(`^ +type: ClusterIP$`, "create", "service", "clusterip", "never", "--tcp=80", "--dry-run=client", "-o", "yaml")
	k.says(`server dry run`, "create", "configmap", "dry", "--from-literal=a=b", "--dry-run=server")
	k.fails(`configmaps "dry" not found`, "get", "configmap", "dry")
	k.fails(`strict decoding error: unknown field "spec.replica"`, "create", "-f", k.file("typo.yaml", `
apiVersion: apps/v1
kind: Deployment
metadata: {name: typo}
spec: {replica: 1, selector: {matchLabels: {app: x}}, template: {metadata: {labels: {app: x}}, spec: {containers: [{name: c, image: i}]}}}
`))
	k.fails(`The Pod "bad" is invalid: spec.containers\[0\].image: Required value`, "create", "-f", k.file("bad.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: bad}\nspec: {containers: [{name: c}]}\n"))
	k.fails(`namespaces "nowhere" not found`, "create", "configmap", "x", "-n", "nowhere")
}

// made creates an object of a kind and returns its name.
func (k kubectl) made(kind, name string, args ...string) string {
	k.t.Helper()
	k.says(`/`+name+` created$`, append([]string{"create", kind, name}, args...)...)
	return name
}

const paint = `
apiVersion: v1
kind: ConfigMap
metadata:
  name: paint
  labels: {room: kitchen}
data:
  walls: green
  ceiling: white
`

// apply: client-side, server-side, their conflicts, diff, pruned fields, kustomize.
func apply(t *testing.T, k kubectl) {
	file := k.file("paint.yaml", paint)
	k.says(`^configmap/paint created$`, "apply", "-f", file)
	k.says(`^configmap/paint unchanged$`, "apply", "-f", file)
	changed := k.file("changed.yaml", strings.Replace(strings.Replace(paint, "white", "grey", 1), "  walls: green\n", "", 1))
	out, _, err := k.try("", "diff", "-f", changed)
	if err == nil || !strings.Contains(out, "-  ceiling: white") || !strings.Contains(out, "+  ceiling: grey") || !strings.Contains(out, "-  walls: green") {
		t.Errorf("diff: %v\n%s", err, out)
	}
	k.says(`^configmap/paint configured$`, "apply", "-f", changed)
	k.says(`^{"ceiling":"grey"}$`, "get", "configmap", "paint", "-o", "jsonpath={.data}")
	k.says(`^data:\n  ceiling: grey\n`, "apply", "view-last-applied", "configmap/paint")

	server := k.file("server.yaml", strings.Replace(paint, "name: paint", "name: varnish", 1))
	k.says(`^configmap/varnish serverside-applied$`, "apply", "--server-side", "-f", server)
	k.says(`manager: kubectl\n +operation: Apply`, "get", "configmap", "varnish", "-o", "yaml", "--show-managed-fields")
	theirs := k.file("theirs.yaml", strings.Replace(strings.Replace(paint, "name: paint", "name: varnish", 1), "green", "red", 1))
	k.fails(`Apply failed with 1 conflict: conflict with "kubectl": .data.walls`, "apply", "--server-side", "--field-manager=other", "-f", theirs)
	k.says(`serverside-applied`, "apply", "--server-side", "--field-manager=other", "--force-conflicts", "-f", theirs)
	k.says(`^red$`, "get", "configmap", "varnish", "-o", "jsonpath={.data.walls}")

	dir := t.TempDir()
	write(t, dir, "kustomization.yaml", "namePrefix: the-\nresources: [paint.yaml]\nconfigMapGenerator:\n- name: made\n  literals: [a=b]\n")
	write(t, dir, "paint.yaml", paint)
	k.says(`name: the-paint`, "kustomize", dir)
	k.says(`^configmap/the-made-\w+ created\nconfigmap/the-paint created$`, "apply", "-k", dir)
	k.says(`^configmap "the-paint" deleted`, "delete", "-k", dir)

	k.says(`^configmap/paint replaced$`, "replace", "-f", file)
	k.says(`^green$`, "get", "configmap", "paint", "-o", "jsonpath={.data.walls}")
	k.says(`deleted.*configmap/paint replaced$`, "replace", "--force", "-f", file)
	k.says(`^configmap "paint" deleted`, "delete", "-f", file)
	k.fails(`configmaps "paint" not found`, "delete", "-f", file)
	k.does("delete", "-f", file, "--ignore-not-found")
}

// change: patches of all kinds, edit, label, annotate, set.
func change(_ *testing.T, k kubectl) {
	k.given(paint, "apply", "-f", "-")
	k.says(`^configmap/paint patched$`, "patch", "configmap", "paint", "-p", `{"data":{"floor":"wood"}}`)
	k.says(`^configmap/paint patched$`, "patch", "configmap", "paint", "--type=merge", "-p", `{"data":{"floor":null}}`)
	k.says(`^configmap/paint patched$`, "patch", "configmap", "paint", "--type=json", "-p", `[{"op":"test","path":"/data/walls","value":"green"},{"op":"add","path":"/data/door","value":"brown"}]`)
	k.says(`patched \(no change\)$`, "patch", "configmap", "paint", "--type=merge", "-p", `{"data":{"door":"brown"}}`)
	k.fails(`the server rejected our request|testing value`, "patch", "configmap", "paint", "--type=json", "-p", `[{"op":"test","path":"/data/walls","value":"pink"}]`)
	k.says(`^configmap/paint edited$`, "edit", "configmap", "paint")
	k.says(`^blue brown$`, "get", "configmap", "paint", "-o", "jsonpath={.data.walls} {.data.door}")
	k.says(`^configmap/paint labeled$`, "label", "configmap", "paint", "floor=2")
	k.fails(`'floor' already has a value \(2\), and --overwrite is false`, "label", "configmap", "paint", "floor=3")
	k.says(`^configmap/paint labeled$`, "label", "configmap", "paint", "floor=3", "--overwrite")
	k.says(`^configmap/paint unlabeled$`, "label", "configmap", "paint", "floor-")
	k.says(`^configmap/paint annotated$`, "annotate", "configmap", "paint", "by=ann")
	k.says(`^configmap/paint$`, "get", "configmap", "-l", "room=kitchen", "-o", "name")
	k.says(`^configmap/paint$`, "get", "configmap", "--field-selector=metadata.name=paint", "-o", "name")
	k.says(`^configmap "paint" deleted`, "delete", "configmap", "-l", "room in (kitchen, bath)")
}

// look: lists, columns, formats, watches, descriptions.
func look(t *testing.T, k kubectl) {
	k.does("run", "sleeper", "--image=registry.dhow:5000/tools:v1", "--labels=app=sleeper", "--command", "--", "sh", "-c", "while :; do sleep 1; done")
	k.says(`condition met$`, "wait", "--for=condition=Ready", "pod/sleeper", "--timeout=2m")
	k.says(`^NAME +READY +STATUS +RESTARTS +AGE\nsleeper +1/1 +Running +0 +\d+s$`, "get", "pods")
	k.says(`^NAME +READY +STATUS +RESTARTS +AGE +IP +NODE +NOMINATED NODE +READINESS GATES\nsleeper.* 10\.244\.\d+\.\d+ +n[12] +<none> +<none>$`, "get", "pods", "-o", "wide")
	k.says(`^NAMESPACE +NAME`, "get", "pods", "-A")
	k.says(`LABELS\nsleeper .* app=sleeper$`, "get", "pods", "--show-labels")
	k.says(`^sleeper +registry.dhow:5000/tools:v1$`, "get", "pods", "-o", "custom-columns=N:.metadata.name,I:.spec.containers[0].image", "--no-headers")
	k.says(`^sleeper$`, "get", "pods", "-o", "go-template={{range .items}}{{.metadata.name}}{{end}}")
	k.says(`"kind": "List"`, "get", "pods", "-o", "json")
	k.says(`^NAME +STATUS +AGE\n`, "get", "namespaces")
	k.says(`^NAME +STATUS +ROLES +AGE +VERSION\nn1 +Ready +<none> +\S+ +v`, "get", "nodes")
	k.says(`^NAME +TYPE +CLUSTER-IP +EXTERNAL-IP +PORT\(S\) +AGE\nkubernetes +ClusterIP +10\.96\.0\.1 +<none> +443/TCP`, "get", "services", "-n", "default")
	k.says(`^Name: +sleeper\nNamespace: +`+k.namespace+`.*^Status: +Running$.*^Containers:\n  sleeper:.*^Conditions:.*Ready +True.*^Events:.*Started`, "describe", "pod", "sleeper")
	k.says(`^Name: +n1\n.*^Capacity:.*^Non-terminated Pods:`, "describe", "node", "n1")
	k.says(`Started`, "events", "--for", "pod/sleeper")
	k.says(`pod/sleeper`, "get", "all")
	k.says(`pod/sleeper`, "get", "events", "--field-selector=involvedObject.name=sleeper")

	watched := k.background("get", "configmaps", "--watch", "--output-watch-events", "-l", "seen=yes")
	k.given("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: seen, labels: {seen: 'yes'}}\n", "create", "-f", "-")
	watched.waitFor(t, `^ADDED +seen`)
	k.does("label", "configmap", "seen", "more=1")
	watched.waitFor(t, `^MODIFIED +seen`)
	k.does("label", "configmap", "seen", "seen-")
	watched.waitFor(t, `^DELETED +seen`)
}

func write(t *testing.T, dir, name, content string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}
