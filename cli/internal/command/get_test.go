package command

import (
	"context"
	"encoding/json"
	"regexp"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/pkg/client"
)

const twoPods = `apiVersion: v1
kind: Pod
metadata:
  name: web-0
  labels: {app: web, tier: front}
spec:
  containers:
  - {name: web, image: "web:v1"}
---
apiVersion: v1
kind: Pod
metadata:
  name: db-0
  labels: {app: db}
spec:
  containers:
  - {name: db, image: "db:v1"}
`

// twoPods makes the pods web-0 and db-0, which are pending.
func (c *cluster) twoPods() {
	c.t.Helper()
	c.applied(twoPods)
	for _, name := range []string{"web-0", "db-0"} {
		c.podStatus(name, `{"phase":"Pending"}`)
	}
}

// podStatus sets a pod's status from JSON.
func (c *cluster) podStatus(name, statusJSON string) {
	c.t.Helper()
	pods := client.For[*corev1.Pod](c.admin)
	pod, err := pods.Get(context.Background(), "default", name)
	if err != nil {
		c.t.Fatal(err)
	}
	var status corev1.PodStatus
	if err := protojson.Unmarshal([]byte(statusJSON), &status); err != nil {
		c.t.Fatal(err)
	}
	pod.SetStatus(&status)
	if _, err := pods.UpdateStatus(context.Background(), pod); err != nil {
		c.t.Fatal(err)
	}
}

// aged makes ages alike, and the columns as narrow as the ages then are.
func aged(text string) string {
	text = regexp.MustCompile(`(?m) (?:\d+[smhd])+( |$)`).ReplaceAllString(text, " AGE$1")
	return regexp.MustCompile(` {2,}`).ReplaceAllString(text, "  ")
}

func TestGet(t *testing.T) {
	c := newCluster(t)
	r := c.dhow("get", "pods")
	if r.code != 0 || r.out != "" || r.err != "No resources found in default namespace.\n" {
		t.Errorf("nothing found: %+v", r)
	}
	if r := c.dhow("get", "po", "-A"); r.code != 0 || r.err != "No resources found\n" {
		t.Errorf("nothing found anywhere: %+v", r)
	}
	if r := c.dhow("get", "nodes"); r.code != 0 || r.err != "No resources found\n" {
		t.Errorf("no nodes: %+v", r)
	}
	c.twoPods()
	equal(t, aged(c.ok("get", "pods")), "NAME  READY  STATUS  RESTARTS  AGE\ndb-0  0/1  Pending  0  AGE\nweb-0  0/1  Pending  0  AGE\n")
	equal(t, aged(c.ok("get", "po", "web-0")), "NAME  READY  STATUS  RESTARTS  AGE\nweb-0  0/1  Pending  0  AGE\n")
	equal(t, aged(c.ok("get", "pod/web-0", "pod/db-0", "--no-headers")), "web-0  0/1  Pending  0  AGE\ndb-0  0/1  Pending  0  AGE\n")
	equal(t, aged(c.ok("get", "pods", "-l", "app=web", "--show-labels")), "NAME  READY  STATUS  RESTARTS  AGE  LABELS\nweb-0  0/1  Pending  0  AGE  app=web,tier=front\n")
	equal(t, c.ok("get", "pods", "-l", "app!=web", "-o", "name"), "pod/db-0\n")
	equal(t, c.ok("get", "pods", "--field-selector", "metadata.name=web-0", "-o", "name"), "pod/web-0\n")
	equal(t, aged(c.ok("get", "pods", "-A", "-o", "wide", "-l", "app=db")), "NAMESPACE  NAME  READY  STATUS  RESTARTS  AGE  IP  NODE  NOMINATED NODE  READINESS GATES\ndefault  db-0  0/1  Pending  0  AGE  <none>  <none>  <none>  <none>\n")
	equal(t, aged(c.ok("get", "ns", "default", "kube-system")), "NAME  STATUS  AGE\ndefault  Active  AGE\nkube-system  Active  AGE\n")

	c.applied(shop)
	equal(t, c.ok("get", "deploy,svc", "-n", "shop", "-o", "name"), "deployment.apps/web\nservice/web\n")
	several := aged(c.ok("get", "deploy,svc", "-n", "shop"))
	if !strings.HasPrefix(several, "NAME  READY  UP-TO-DATE  AVAILABLE  AGE\ndeployment.apps/web  0/2  0  0  AGE\n\nNAME  TYPE  CLUSTER-IP  EXTERNAL-IP  PORT(S)  AGE\nservice/web  ") {
		t.Errorf("two kinds:\n%s", several)
	}
	all := c.ok("get", "all", "-A", "-o", "name")
	for _, name := range []string{"pod/web-0", "service/web", "deployment.apps/web"} {
		if !strings.Contains(all, name+"\n") {
			t.Errorf("%s is not in all:\n%s", name, all)
		}
	}
}

func TestGetYAMLAndJSON(t *testing.T) {
	c := newCluster(t)
	c.applied(settings)
	got := c.ok("get", "cm", "settings", "-o", "yaml")
	got = regexp.MustCompile(`(creationTimestamp|resourceVersion|uid): .*`).ReplaceAllString(got, "$1: X")
	equal(t, got, `apiVersion: v1
data:
  color: blue
kind: ConfigMap
metadata:
  creationTimestamp: X
  name: settings
  namespace: default
  resourceVersion: X
  uid: X
`)
	got = c.ok("get", "cm/settings", "-o", "json")
	got = regexp.MustCompile(`"(creationTimestamp|resourceVersion|uid)": ".*"`).ReplaceAllString(got, `"$1": "X"`)
	equal(t, got, `{
    "apiVersion": "v1",
    "data": {
        "color": "blue"
    },
    "kind": "ConfigMap",
    "metadata": {
        "creationTimestamp": "X",
        "name": "settings",
        "namespace": "default",
        "resourceVersion": "X",
        "uid": "X"
    }
}
`)
	var list struct {
		APIVersion, Kind string
		Items            []struct{ Metadata struct{ Name string } }
	}
	if err := json.Unmarshal([]byte(c.ok("get", "cm", "-o", "json")), &list); err != nil || list.Kind != "List" || list.APIVersion != "v1" || len(list.Items) != 1 || list.Items[0].Metadata.Name != "settings" {
		t.Errorf("%+v, %v", list, err)
	}
	equal(t, c.ok("get", "secrets", "-o", "yaml"), "apiVersion: v1\nitems: []\nkind: List\nmetadata:\n  resourceVersion: \"\"\n")
	// What get shows, apply takes.
	c.file("again.yaml", c.ok("get", "cm", "settings", "-o", "yaml"))
}

func TestGetErrors(t *testing.T) {
	c := newCluster(t)
	c.twoPods()
	c.fails([]string{"get"}, "error: you must specify the type of resource")
	c.fails([]string{"get", "pots"}, `error: the server doesn't have a resource type "pots"`)
	c.fails([]string{"get", "pods,pots"}, `"pots"`)
	c.fails([]string{"get", "pods", "-o", "xml"}, `error: unknown output format "xml": use wide, yaml, json or name`)
	c.fails([]string{"get", "pods", "-l", "a=b=c"}, "Error from server (BadRequest): ")
	c.fails([]string{"get", "pods", "--field-selector", "spec.color=blue"}, "Error from server (BadRequest): ", "spec.color")
	c.fails([]string{"get", "pod/web-0", "db-0"}, `"db-0": arguments of the form KIND/NAME may not be mixed with others`)
	c.fails([]string{"get", "pods", "pod/web-0"}, `"pod/web-0": arguments of the form KIND/NAME may not be mixed with others`)
	c.fails([]string{"get", "pods", "web-0", "-l", "app=web"}, "pod/web-0: a resource cannot be retrieved by name together with a selector")
	c.fails([]string{"get", "pods", "web-0", "-A"}, "across all namespaces")
	c.fails([]string{"get", "pods,svc", "-w"}, "watch is only supported on one kind or one object, 2 were named")
	c.fails([]string{"get", "pods", "--colour"}, "error: unknown flag: --colour", "See 'dhow get --help' for usage")
	c.fails([]string{"git", "pods"}, `error: unknown command "git" for "dhow"`, "See 'dhow --help' for the commands")
	r := c.fails([]string{"get", "pods", "nosuch", "web-0", "neither"})
	equal(t, r.err, "Error from server (NotFound): pods \"nosuch\" not found\nError from server (NotFound): pods \"neither\" not found\n")
	equal(t, aged(r.out), "NAME  READY  STATUS  RESTARTS  AGE\nweb-0  0/1  Pending  0  AGE\n")
	r = c.fails([]string{"get", "pod/nosuch", "-n", "nowhere"})
	equal(t, r.err, "Error from server (NotFound): pods \"nosuch\" not found\n")
}

func TestGetWatch(t *testing.T) {
	c := newCluster(t)
	c.twoPods()
	r := c.start(nil, "get", "pods", "-l", "app=web", "-w")
	r.out.await(t, "web-0")
	c.podStatus("web-0", `{"phase":"Running","containerStatuses":[{"name":"web","ready":true,"restartCount":0,"image":"web:v1","imageID":"","state":{"running":{}}}]}`)
	r.out.await(t, "1/1")
	c.ok("delete", "pod/web-0", "--grace-period=0", "--force")
	named := c.start(nil, "get", "pod", "db-0", "-w", "-o", "name")
	named.out.await(t, "pod/db-0\n")
	r.cancel()
	named.cancel()
	if got := r.end(); got.code != exitInterrupted || got.err != "" || strings.Contains(got.out, "db-0") || strings.Count(got.out, "NAME") != 1 {
		t.Errorf("%+v", got)
	}
	if got := named.end(); got.code != exitInterrupted || got.out != "pod/db-0\n" {
		t.Errorf("%+v", got)
	}
	yaml := c.start(nil, "get", "cm", "-w", "-o", "yaml")
	c.applied(settings)
	yaml.out.await(t, "color: blue")
	c.applied(strings.Replace(settings, "blue", "red", 1))
	yaml.out.await(t, "color: red")
	yaml.cancel()
	if got := yaml.end(); strings.HasPrefix(got.out, "---") || strings.Count(got.out, "---\n") != strings.Count(got.out, "kind: ConfigMap")-1 {
		t.Errorf("documents are not separated:\n%s", got.out)
	}
	c.fails([]string{"get", "pod", "web-0", "-w"}, `Error from server (NotFound): pods "web-0" not found`)
}

// TestWatchIsTakenUp cuts watches off, as an API server that goes away does, or one whose history is too short.
func TestWatchIsTakenUp(t *testing.T) {
	c := newCluster(t)
	c.twoPods()
	f := &fakeContainers{watches: make(chan context.CancelCauseFunc, 10)}
	c.withContainers(f)
	gone := status.Error(codes.Unavailable, "the server goes away")
	r := c.start(nil, "get", "pods", "-w", "--no-headers")
	r.out.await(t, "web-0")
	(<-f.watches)(gone)
	c.podStatus("web-0", `{"phase":"Failed"}`)
	r.out.await(t, "Failed")
	if rows := strings.Count(r.out.String(), "db-0"); rows != 1 {
		t.Errorf("the state was shown %d times:\n%s", rows, r.out)
	}
	(<-f.watches)(status.Error(codes.OutOfRange, "too old"))
	<-f.watches
	c.podStatus("web-0", `{"phase":"Succeeded"}`)
	r.out.await(t, "Succeeded")
	r.cancel()
	r.end()

	wait := c.start(nil, "wait", "--for=jsonpath={.status.phase}=Running", "pod/db-0")
	(<-f.watches)(gone)
	c.podStatus("db-0", `{"phase":"Running"}`)
	if got := wait.end(); got.code != 0 {
		t.Errorf("%+v", got)
	}
	<-f.watches
	refused := c.start(nil, "wait", "--for=delete", "pod/db-0")
	(<-f.watches)(status.Error(codes.PermissionDenied, "no more"))
	if got := refused.end(); got.code != 1 || got.err != "Error from server (Forbidden): no more\n" {
		t.Errorf("%+v", got)
	}
}

func TestDescribe(t *testing.T) {
	c := newCluster(t)
	c.twoPods()
	pod, err := client.For[*corev1.Pod](c.admin).Get(context.Background(), "default", "web-0")
	if err != nil {
		t.Fatal(err)
	}
	event := &corev1.Event{}
	if err := protojson.Unmarshal([]byte(`{"metadata":{"name":"web-0.1","namespace":"default"},"type":"Warning","reason":"FailedScheduling","message":"no nodes","source":{"component":"scheduler"},
		"involvedObject":{"kind":"Pod","namespace":"default","name":"web-0","uid":"`+pod.GetMetadata().GetUid()+`"}}`), event); err != nil {
		t.Fatal(err)
	}
	if _, err := client.For[*corev1.Event](c.admin).Create(context.Background(), event, nil); err != nil {
		t.Fatal(err)
	}
	out := c.ok("describe", "pod", "web-0")
	for _, text := range []string{"Name:             web-0\n", "Namespace:        default\n", "app=web", "Image:        web:v1", "FailedScheduling", "no nodes"} {
		if !strings.Contains(out, text) {
			t.Errorf("%q is not in:\n%s", text, out)
		}
	}
	if out := c.ok("describe", "pods", "-l", "app"); !strings.Contains(out, "web-0") || !strings.Contains(out, "\n\n\nName:") {
		t.Errorf("two pods:\n%s", out)
	}
	if r := c.dhow("describe", "pods", "-l", "app=none"); r.code != 0 || r.err != "No resources found in default namespace.\n" {
		t.Errorf("%+v", r)
	}
	c.fails([]string{"describe", "pod", "nosuch"}, `Error from server (NotFound): pods "nosuch" not found`)
	c.fails([]string{"describe"}, "error: you must specify the type of resource")
	if out := c.ok("get", "events"); !strings.HasPrefix(out, "LAST SEEN   TYPE ") || !strings.Contains(out, "pod/web-0") {
		t.Errorf("events:\n%s", out)
	}
}
