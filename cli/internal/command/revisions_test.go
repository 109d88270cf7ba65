package command

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	appsv1 "dhow.dev/gen/go/dhow/apps/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/object"
)

const (
	stateful = `apiVersion: apps/v1
kind: StatefulSet
metadata:
  name: db
spec:
  replicas: 3
  serviceName: peers
  updateStrategy: {rollingUpdate: {partition: PARTITION}}
  selector:
    matchLabels: {app: db}
  template:
    metadata:
      labels: {app: db}
    spec:
      containers:
      - {name: main, image: "db:v3"}
  volumeClaimTemplates:
  - metadata: {name: data}
    spec: {accessModes: [ReadWriteOnce], storageClassName: fast, resources: {requests: {storage: 2Gi}}}
`
	daemon = `apiVersion: apps/v1
kind: DaemonSet
metadata:
  name: agent
spec:
  selector:
    matchLabels: {app: agent}
  template:
    metadata:
      labels: {app: agent}
    spec:
      containers:
      - {name: main, image: "agent:v3"}
`
)

// setStatus sets the status of an object, as its controller would; %d in it is the object's generation.
func setStatus[T object.Object](c *cluster, name, text string, status proto.Message, set func(T)) {
	c.t.Helper()
	objects := client.For[T](c.admin)
	o, err := objects.Get(context.Background(), "default", name)
	if err != nil {
		c.t.Fatal(err)
	}
	if err := protojson.Unmarshal([]byte(fmt.Sprintf(text, o.GetMetadata().GetGeneration())), status); err != nil {
		c.t.Fatal(err)
	}
	set(o)
	if _, err := objects.UpdateStatus(context.Background(), o); err != nil {
		c.t.Fatal(err)
	}
}

func TestRolloutStatusOfSets(t *testing.T) {
	c := newCluster(t)
	statefulStatus := func(text string) {
		t.Helper()
		status := &appsv1.StatefulSetStatus{}
		setStatus(c, "db", text, status, func(s *appsv1.StatefulSet) { s.SetStatus(status) })
	}
	c.applied(strings.Replace(stateful, "PARTITION", "0", 1))
	r := c.start(nil, "rollout", "status", "sts/db")
	r.out.await(t, "Waiting for statefulset spec update to be observed...\n")
	statefulStatus(`{"observedGeneration": %d, "replicas":3,"readyReplicas":1}`)
	r.out.await(t, "Waiting for 2 pods to be ready...\n")
	statefulStatus(`{"observedGeneration": %d, "replicas":3,"readyReplicas":3,"updatedReplicas":1,"currentRevision":"db-a","updateRevision":"db-b"}`)
	r.out.await(t, "waiting for statefulset rolling update to complete 1 pods at revision db-b...\n")
	statefulStatus(`{"observedGeneration": %d, "replicas":3,"readyReplicas":3,"updatedReplicas":3,"currentReplicas":3,"currentRevision":"db-b","updateRevision":"db-b"}`)
	if got := r.end(); got.code != 0 || !strings.HasSuffix(got.out, "statefulset rolling update complete 3 pods at revision db-b...\n") {
		t.Errorf("%+v", got)
	}
	if got := c.ok("describe", "sts/db"); !strings.Contains(got, "3 desired | 3 total | 3 ready") || !strings.Contains(got, "data (2Gi of fast)") || !strings.Contains(got, "db-b") {
		t.Errorf("%s", got)
	}
	c.applied(strings.Replace(stateful, "PARTITION", "2", 1))
	statefulStatus(`{"observedGeneration": %d, "replicas":3,"readyReplicas":3,"currentRevision":"db-a","updateRevision":"db-b"}`)
	equal(t, c.ok("rollout", "status", "sts/db", "--watch=false"), "Waiting for partitioned roll out to finish: 0 out of 1 new pods have been updated...\n")
	statefulStatus(`{"observedGeneration": %d, "replicas":3,"readyReplicas":3,"updatedReplicas":1,"currentRevision":"db-a","updateRevision":"db-b"}`)
	equal(t, c.ok("rollout", "status", "sts/db"), "partitioned roll out complete: 1 new pods have been updated...\n")

	daemonStatus := func(text string) {
		t.Helper()
		status := &appsv1.DaemonSetStatus{}
		setStatus(c, "agent", text, status, func(s *appsv1.DaemonSet) { s.SetStatus(status) })
	}
	c.applied(daemon)
	r = c.start(nil, "rollout", "status", "ds/agent")
	r.out.await(t, "Waiting for daemon set spec update to be observed...\n")
	daemonStatus(`{"observedGeneration": %d, "desiredNumberScheduled":2,"updatedNumberScheduled":1}`)
	r.out.await(t, "Waiting for daemon set \"agent\" rollout to finish: 1 out of 2 new pods have been updated...\n")
	daemonStatus(`{"observedGeneration": %d, "desiredNumberScheduled":2,"updatedNumberScheduled":2,"numberAvailable":1}`)
	r.out.await(t, "Waiting for daemon set \"agent\" rollout to finish: 1 of 2 updated pods are available...\n")
	daemonStatus(`{"observedGeneration": %d, "desiredNumberScheduled":2,"updatedNumberScheduled":2,"numberAvailable":2}`)
	if got := r.end(); got.code != 0 || !strings.HasSuffix(got.out, "daemon set \"agent\" successfully rolled out\n") {
		t.Errorf("%+v", got)
	}
	if got := c.ok("describe", "ds/agent"); !strings.Contains(got, "Desired Number of Nodes Scheduled:") {
		t.Errorf("%s", got)
	}
	c.applied(strings.Replace(daemon, "spec:\n", "spec:\n  updateStrategy: {type: OnDelete}\n", 1), "--force-conflicts")
	c.fails([]string{"rollout", "status", "ds/agent"}, "rollout status is only available for RollingUpdate strategy type")
}

// revision makes a revision of an object, as its controller would.
func revision(c *cluster, owner object.Object, kind, name string, number int64, image string) {
	c.t.Helper()
	data := &metav1.RawExtension{}
	app := owner.GetMetadata().GetName()
	data.SetRaw([]byte(`{"spec":{"template":{"$patch":"replace","metadata":{"labels":{"app":"` + app + `"}},"spec":{"containers":[{"image":"` + image + `","name":"main"}]}}}}`))
	_, err := client.For[*appsv1.ControllerRevision](c.admin).Create(context.Background(), appsv1.ControllerRevision_builder{
		Metadata: metav1.ObjectMeta_builder{
			Namespace: proto.String("default"), Name: proto.String(name), OwnerReferences: []*metav1.OwnerReference{metav1.OwnerReference_builder{
				ApiVersion: proto.String("apps/v1"), Kind: proto.String(kind), Name: proto.String(app), Uid: proto.String(owner.GetMetadata().GetUid()), Controller: proto.Bool(true),
			}.Build()},
		}.Build(),
		Data: data, Revision: proto.Int64(number),
	}.Build(), nil)
	if err != nil {
		c.t.Fatal(err)
	}
}

func TestRolloutUndoOfSets(t *testing.T) {
	c := newCluster(t)
	c.applied(strings.Replace(stateful, "PARTITION", "0", 1))
	c.applied(daemon)
	set, err := client.For[*appsv1.StatefulSet](c.admin).Get(context.Background(), "default", "db")
	if err != nil {
		t.Fatal(err)
	}
	ds, err := client.For[*appsv1.DaemonSet](c.admin).Get(context.Background(), "default", "agent")
	if err != nil {
		t.Fatal(err)
	}
	for kind, owner := range map[string]object.Object{"StatefulSet": set, "DaemonSet": ds} {
		name := strings.ToLower(kind) + "/" + owner.GetMetadata().GetName()
		full := strings.Replace(name, "/", ".apps/", 1)
		app := owner.GetMetadata().GetName()
		c.fails([]string{"rollout", "undo", name}, "no last revision to roll back to")
		for n := range int64(3) {
			revision(c, owner, kind, fmt.Sprintf("%s-%d", app, n+1), n+1, fmt.Sprintf("%s:v%d", app, n+1))
		}
		equal(t, c.ok("rollout", "undo", name), full+" rolled back\n")
		if got := c.ok("get", name, "-o", "yaml"); !strings.Contains(got, "image: "+app+":v2\n") {
			t.Errorf("it is not back at 2:\n%s", got)
		}
		equal(t, c.ok("rollout", "undo", name, "--to-revision=1"), full+" rolled back\n")
		if got := c.ok("get", name, "-o", "yaml"); !strings.Contains(got, "image: "+app+":v1\n") {
			t.Errorf("it is not back at 1:\n%s", got)
		}
		equal(t, c.ok("rollout", "undo", name, "--to-revision=1"), full+" skipped rollback (current template already matches revision 1)\n")
		c.fails([]string{"rollout", "undo", name, "--to-revision=9"}, "unable to find specified revision 9 in history: there are 3, 2, 1")
	}
}
