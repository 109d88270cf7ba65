package command

import (
	"context"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"

	appsv1 "dhow.dev/gen/go/dhow/apps/v1"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/pkg/client"
)

func TestDelete(t *testing.T) {
	c := newCluster(t)
	c.applied(settings)
	equal(t, c.ok("delete", "cm/settings"), "configmap \"settings\" deleted from default namespace\n")
	c.fails([]string{"delete", "cm/settings"}, `Error from server (NotFound): configmaps "settings" not found`)
	equal(t, c.ok("delete", "cm/settings", "--ignore-not-found"), "")
	file := c.file("settings.yaml", settings)
	c.ok("apply", "-f", file)
	equal(t, c.ok("delete", "-f", file), "configmap \"settings\" deleted from default namespace\n")

	c.twoPods()
	equal(t, c.ok("delete", "pods", "-l", "app=web"), "pod \"web-0\" deleted from default namespace\n")
	equal(t, c.ok("get", "pods", "-o", "name"), "pod/db-0\n")
	equal(t, c.ok("delete", "pods", "--all"), "pod \"db-0\" deleted from default namespace\n")
	equal(t, c.ok("delete", "pods", "--all"), "No resources found\n")
	r := c.fails([]string{"delete", "pod/one", "pod/two"})
	equal(t, r.err, "Error from server (NotFound): pods \"one\" not found\nError from server (NotFound): pods \"two\" not found\n")
}

// TestDeleteWaits deletes an object that a finalizer holds, which is gone only when its owner lets it go.
func TestDeleteWaits(t *testing.T) {
	c := newCluster(t)
	c.applied(strings.Replace(settings, "name: settings", "name: settings\n  finalizers: [example.com/held]", 1))
	r := c.start(nil, "delete", "cm/settings")
	r.out.await(t, "configmap \"settings\" deleted from default namespace\n")
	select {
	case code := <-r.code:
		t.Fatalf("delete has not waited: exit code %d", code)
	default:
	}
	c.fails([]string{"delete", "cm/settings", "--timeout", "1ms"}, "error: timed out waiting for the condition on configmaps/settings")
	equal(t, c.ok("delete", "cm/settings", "--wait=false"), "configmap \"settings\" deleted from default namespace\n")
	// Applying it without the finalizer takes it away.
	c.applied(settings)
	if got := r.end(); got.code != 0 || got.err != "" {
		t.Errorf("%+v", got)
	}
	c.fails([]string{"get", "cm/settings"}, "NotFound")
}

// TestDeleteGracePeriod deletes pods that have a node, so that they are kept until the node agent says that they have ended.
func TestDeleteGracePeriod(t *testing.T) {
	c := newCluster(t)
	for _, name := range []string{"own", "given", "zero", "forced"} {
		c.applied("apiVersion: v1\nkind: Pod\nmetadata: {name: " + name + "}\nspec:\n  nodeName: n1\n  terminationGracePeriodSeconds: 40\n  containers:\n  - {name: a, image: a}\n")
	}
	grace := func(name string) int64 {
		pod, err := client.For[*corev1.Pod](c.admin).Get(context.Background(), "default", name)
		if err != nil {
			t.Fatal(err)
		}
		if !pod.GetMetadata().HasDeletionTimestamp() {
			t.Errorf("%s is not being deleted", name)
		}
		return pod.GetMetadata().GetDeletionGracePeriodSeconds()
	}
	c.ok("delete", "pod/own", "--wait=false")
	c.ok("delete", "pod/given", "--wait=false", "--grace-period=7")
	c.ok("delete", "pod/zero", "--wait=false", "--grace-period=0")
	for name, want := range map[string]int64{"own": 40, "given": 7, "zero": 1} {
		if got := grace(name); got != want {
			t.Errorf("%s: grace period %d, not %d", name, got, want)
		}
	}
	r := c.dhow("delete", "pod/forced", "--force")
	if r.code != 0 || r.out != "pod \"forced\" force deleted from default namespace\n" || !strings.HasPrefix(r.err, "Warning: Immediate deletion does not wait for confirmation") {
		t.Errorf("%+v", r)
	}
	c.fails([]string{"get", "pod/forced"}, "NotFound")
}

func TestDeleteErrors(t *testing.T) {
	c := newCluster(t)
	c.fails([]string{"delete"}, "error: you must specify the type of resource")
	c.fails([]string{"delete", "pods"}, "no name was specified: name objects, or use -l or --all")
	c.fails([]string{"delete", "pods", "a", "--all"}, "name cannot be provided when a selector or --all is specified")
	c.fails([]string{"delete", "pods", "a", "--force", "--grace-period=3"}, "--force and --grace-period greater than 0 cannot be specified together")
	c.fails([]string{"delete", "pods", "a", "--grace-period=-3"}, "--grace-period=-3: give seconds")
	c.fails([]string{"delete", "pods", "a", "--cascade=never"}, "--cascade=never: use background, foreground or orphan")
	c.fails([]string{"delete", "pods", "a", "-f", "x.yaml"}, "name objects or manifests, not both")
	if r := c.dhow("delete", "namespace/nosuch", "-n", "default"); !strings.Contains(r.err, "Warning: deleting cluster-scoped resources, not scoped to the provided namespace") {
		t.Errorf("%+v", r)
	}
}

const deployment = `apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
spec:
  replicas: 2
  selector:
    matchLabels: {app: web}
  template:
    metadata:
      labels: {app: web}
    spec:
      containers:
      - {name: web, image: "web:v1"}
`

// deploymentStatus sets the status of the deployment web, as its controller would.
func (c *cluster) deploymentStatus(statusJSON string) *appsv1.Deployment {
	c.t.Helper()
	deployments := client.For[*appsv1.Deployment](c.admin)
	d, err := deployments.Get(context.Background(), "default", "web")
	if err != nil {
		c.t.Fatal(err)
	}
	var status appsv1.DeploymentStatus
	if err := protojson.Unmarshal([]byte(statusJSON), &status); err != nil {
		c.t.Fatal(err)
	}
	status.SetObservedGeneration(d.GetMetadata().GetGeneration())
	d.SetStatus(&status)
	if d, err = deployments.UpdateStatus(context.Background(), d); err != nil {
		c.t.Fatal(err)
	}
	return d
}

func TestScale(t *testing.T) {
	c := newCluster(t)
	c.applied(deployment)
	equal(t, c.ok("scale", "deployment/web", "--replicas=5"), "deployment.apps/web scaled\n")
	equal(t, c.ok("scale", "deploy", "web", "--replicas", "0"), "deployment.apps/web scaled\n")
	if got := c.ok("get", "deploy/web", "-o", "yaml"); !strings.Contains(got, "  replicas: 0\n") {
		t.Errorf("it is not scaled:\n%s", got)
	}
	c.fails([]string{"scale", "deployment/web"}, `required flag(s) "replicas" not set`)
	c.fails([]string{"scale", "deployment/web", "--replicas=-1"}, "--replicas=-1: give the number of replicas, 0 or more")
	c.fails([]string{"scale", "deployment/web", "--replicas=many"}, `invalid argument "many" for "--replicas"`)
	c.fails([]string{"scale", "deployment/nosuch", "--replicas=1"}, `Error from server (NotFound): deployments.apps "nosuch" not found`)
	c.fails([]string{"scale", "configmap/settings", "--replicas=1"}, "configmap/settings cannot be scaled: name something that has replicas")
	c.fails([]string{"scale", "deployment", "--replicas=1"}, "deployment.apps cannot be scaled: name something")
	c.fails([]string{"scale", "--replicas=1"}, "you must specify the type of resource")
}

func TestRolloutStatus(t *testing.T) {
	c := newCluster(t)
	c.applied(deployment)
	r := c.start(nil, "rollout", "status", "deploy/web")
	r.out.await(t, "Waiting for deployment spec update to be observed...\n")
	c.deploymentStatus(`{"replicas":1,"updatedReplicas":1}`)
	r.out.await(t, "Waiting for deployment \"web\" rollout to finish: 1 out of 2 new replicas have been updated...\n")
	c.deploymentStatus(`{"replicas":3,"updatedReplicas":2,"readyReplicas":1,"availableReplicas":1}`)
	r.out.await(t, "Waiting for deployment \"web\" rollout to finish: 1 old replicas are pending termination...\n")
	c.deploymentStatus(`{"replicas":2,"updatedReplicas":2,"readyReplicas":1,"availableReplicas":1}`)
	r.out.await(t, "Waiting for deployment \"web\" rollout to finish: 1 of 2 updated replicas are available...\n")
	c.deploymentStatus(`{"replicas":2,"updatedReplicas":2,"readyReplicas":2,"availableReplicas":2}`)
	if got := r.end(); got.code != 0 || !strings.HasSuffix(got.out, "deployment \"web\" successfully rolled out\n") {
		t.Errorf("%+v", got)
	}
	equal(t, c.ok("rollout", "status", "deploy/web"), "deployment \"web\" successfully rolled out\n")
	c.deploymentStatus(`{"replicas":2,"updatedReplicas":1,"conditions":[{"type":"Progressing","status":"False","reason":"ProgressDeadlineExceeded"}]}`)
	c.fails([]string{"rollout", "status", "deploy/web"}, `error: deployment "web" exceeded its progress deadline`)
	c.deploymentStatus(`{"replicas":2,"updatedReplicas":1}`)
	c.fails([]string{"rollout", "status", "deploy/web", "--timeout=1ms"}, "error: timed out waiting for the condition on deployments.apps/web")
	equal(t, c.ok("rollout", "status", "deploy/web", "--watch=false"), "Waiting for deployment \"web\" rollout to finish: 1 out of 2 new replicas have been updated...\n")
	r = c.start(nil, "rollout", "status", "deploy/web")
	r.out.await(t, "1 out of 2")
	c.ok("delete", "deploy/web")
	if got := r.end(); got.code != 1 || got.err != "error: deployment.apps/web was deleted while it was waited for\n" {
		t.Errorf("%+v", got)
	}
	c.fails([]string{"rollout", "status", "deploy/web"}, `Error from server (NotFound): deployments.apps "web" not found`)
	c.fails([]string{"rollout", "pause", "deploy/web"}, `unknown command "pause" for "dhow rollout": one of status, undo`)
	c.fails([]string{"rollout", "status", "pod/web"}, "pod/web: only deployments, statefulsets and daemonsets have rollouts: use deployment/NAME")
	c.fails([]string{"rollout", "status"}, "you must specify the type of resource")
	c.fails([]string{"rollout", "status", "deploy"}, "name one object, as KIND/NAME")
}

// replicaSet makes the replica set of a revision of the deployment, as its controller would.
func (c *cluster) replicaSet(name, revision, image string) {
	c.t.Helper()
	d, err := client.For[*appsv1.Deployment](c.admin).Get(context.Background(), "default", "web")
	if err != nil {
		c.t.Fatal(err)
	}
	c.applied(`apiVersion: apps/v1
kind: ReplicaSet
metadata:
  name: ` + name + `
  annotations: {deployment.kubernetes.io/revision: "` + revision + `"}
  ownerReferences:
  - {apiVersion: apps/v1, kind: Deployment, name: web, uid: ` + d.GetMetadata().GetUid() + `, controller: true}
spec:
  selector:
    matchLabels: {app: web, pod-template-hash: ` + name + `}
  template:
    metadata:
      labels: {app: web, pod-template-hash: ` + name + `}
    spec:
      containers:
      - {name: web, image: "` + image + `"}
`)
}

func TestRolloutUndo(t *testing.T) {
	c := newCluster(t)
	c.applied(strings.Replace(deployment, "web:v1", "web:v3", 1))
	c.fails([]string{"rollout", "undo", "deploy/web"}, `error: no rollout history found for deployment "web"`)
	c.replicaSet("c", "3", "web:v3")
	c.fails([]string{"rollout", "undo", "deploy/web"}, `error: no rollout history found for deployment "web"`)
	c.replicaSet("a", "1", "web:v1")
	c.replicaSet("b", "2", "web:v2")
	image := func() string {
		_, rest, _ := strings.Cut(c.ok("get", "deploy/web", "-o", "yaml"), "image: ")
		line, _, _ := strings.Cut(rest, "\n")
		return line
	}
	equal(t, c.ok("rollout", "undo", "deploy/web"), "deployment.apps/web rolled back\n")
	equal(t, image(), "web:v2")
	if got := c.ok("get", "deploy/web", "-o", "yaml"); strings.Contains(got, "pod-template-hash") {
		t.Errorf("the replica set's label is in the template:\n%s", got)
	}
	equal(t, c.ok("rollout", "undo", "deploy/web", "--to-revision=1"), "deployment.apps/web rolled back\n")
	equal(t, image(), "web:v1")
	equal(t, c.ok("rollout", "undo", "deploy/web", "--to-revision=1"), "deployment.apps/web skipped rollback (current template already matches revision 1)\n")
	c.fails([]string{"rollout", "undo", "deploy/web", "--to-revision=9"}, "error: unable to find specified revision 9 in history: there are 3, 2, 1")
	c.fails([]string{"rollout", "undo", "deploy/web", "--to-revision=-1"}, "--to-revision=-1: give a revision")
	c.fails([]string{"rollout", "undo", "deploy/nosuch"}, `Error from server (NotFound): deployments.apps "nosuch" not found`)
	c.fails([]string{"rollout", "undo", "service/web"}, "only deployments, statefulsets and daemonsets have rollouts")
	c.applied(strings.Replace(deployment, "  replicas: 2", "  replicas: 2\n  paused: true", 1), "--force-conflicts")
	c.fails([]string{"rollout", "undo", "deploy/web"}, `you cannot roll back the paused deployment "web": set its spec.paused to false`)
}

func TestRun(t *testing.T) {
	c := newCluster(t)
	equal(t, c.ok("run", "once", "--image=tools:v1", "--env", "A=b=c", "--port", "80", "--command", "--", "sh", "-c", "true"), "pod/once created\n")
	pod, err := client.For[*corev1.Pod](c.admin).Get(context.Background(), "default", "once")
	if err != nil {
		t.Fatal(err)
	}
	container := pod.GetSpec().GetContainers()[0]
	if strings.Join(container.GetCommand(), " ") != "sh -c true" || len(container.GetArgs()) != 0 || container.GetEnv()[0].GetName() != "A" || container.GetEnv()[0].GetValue() != "b=c" || container.GetPorts()[0].GetContainerPort() != 80 || pod.GetMetadata().GetLabels()["run"] != "once" {
		t.Errorf("%v", pod)
	}
	equal(t, c.ok("run", "web", "--image=web:v1", "--replicas=3", "--", "serve", "-v"), "deployment.apps/web created\n")
	d, err := client.For[*appsv1.Deployment](c.admin).Get(context.Background(), "default", "web")
	if err != nil {
		t.Fatal(err)
	}
	if args := d.GetSpec().GetTemplate().GetSpec().GetContainers()[0].GetArgs(); d.GetSpec().GetReplicas() != 3 || strings.Join(args, " ") != "serve -v" || d.GetSpec().GetSelector().GetMatchLabels()["run"] != "web" {
		t.Errorf("%v", d)
	}
	equal(t, c.ok("run", "dry", "--image=web:v1", "--dry-run=server"), "pod/dry created (server dry run)\n")
	c.fails([]string{"get", "pod/dry"}, "NotFound")
	c.fails([]string{"run", "once", "--image=web:v1"}, `Error from server (AlreadyExists): pods "once" already exists`)
	c.fails([]string{"run", "Web!", "--image=web:v1"}, `The Pod "Web!" is invalid:`, "metadata.name: Invalid value")
	c.fails([]string{"run", "--image=web:v1"}, "NAME is required: dhow run NAME --image=IMAGE")
	c.fails([]string{"run", "web"}, `required flag(s) "image" not set`)
	c.fails([]string{"run", "web", "sh", "--image=web:v1"}, `unexpected "sh": put the container's arguments behind --`)
	c.fails([]string{"run", "web", "--image=web:v1", "--replicas=-2"}, "--replicas=-2: give the number of replicas, 0 or more")
	c.fails([]string{"run", "web", "--image=web:v1", "--env=A"}, "--env=A: write NAME=VALUE")
	c.fails([]string{"run", "web", "--image=web:v1", "--command"}, "--command needs a command behind --")
	c.fails([]string{"run", "web", "--image=web:v1", "-n", "nowhere"}, `Error from server (NotFound): namespaces "nowhere" not found`)
}

func TestCordon(t *testing.T) {
	c := newCluster(t)
	c.applied("apiVersion: v1\nkind: Node\nmetadata: {name: n1}\n")
	equal(t, c.ok("cordon", "n1"), "node/n1 cordoned\n")
	equal(t, c.ok("cordon", "node/n1"), "node/n1 already cordoned\n")
	if got := c.ok("get", "nodes"); !strings.Contains(got, "Unknown,SchedulingDisabled") {
		t.Errorf("the node is not cordoned:\n%s", got)
	}
	equal(t, c.ok("uncordon", "n1"), "node/n1 uncordoned\n")
	equal(t, c.ok("uncordon", "n1"), "node/n1 already uncordoned\n")
	c.fails([]string{"cordon", "n2"}, `Error from server (NotFound): nodes "n2" not found`)
	c.fails([]string{"cordon", "pod/n1"}, "pod/n1: only nodes can be cordoned")
	c.fails([]string{"cordon"}, "name at least one: dhow cordon NODE...")
}
