package scenarios

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"dhow.dev/e2e/cluster"
	"dhow.dev/e2e/evidence"
)

// A class that keeps what it made and lets nothing grow; a claim of the default class and one of this.
const claimsManifest = `
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: fixed}
provisioner: dhow.dev/local-path
reclaimPolicy: Retain
volumeBindingMode: WaitForFirstConsumer
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data, namespace: volumes}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 10Mi}}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: kept, namespace: volumes}
spec: {storageClassName: fixed, accessModes: [ReadWriteOnce], resources: {requests: {storage: 10Mi}}}
`

// Each run of the set's member writes a line; the claims go with the set.
const memberManifest = `
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: diary, namespace: volumes}
spec:
  replicas: 1
  serviceName: diary
  selector: {matchLabels: {app: diary}}
  persistentVolumeClaimRetentionPolicy: {whenDeleted: Delete}
  template:
    metadata: {labels: {app: diary}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: main
        image: registry.dhow:5000/tools:v1
        args: ["-c", "echo run >> /data/runs; cat /data/runs; exec sleep 3600"]
        volumeMounts: [{name: data, mountPath: /data}]
  volumeClaimTemplates:
  - metadata: {name: data}
    spec: {storageClassName: local-path, accessModes: [ReadWriteOnce], resources: {requests: {storage: 10Mi}}}
`

// volumes: a claim of the default class gets a folder on the pod's node; its data outlives the pod, is found again by the next one, and goes with the claim, or stays if the class says
// so; claims grow where their class lets them, and never shrink.
func volumes(t *testing.T, c *cluster.Any) {
	ns := c.Namespace(t, "volumes")
	t.Cleanup(func() {
		if out, problems, err := c.Try("", "delete", "sc/fixed"); err != nil {
			t.Errorf("delete the class: %v: %s%s", err, out, problems)
		}
	})
	pod := func(name, command string) string {
		return `
apiVersion: v1
kind: Pod
metadata: {name: ` + name + `, namespace: volumes}
spec:
  terminationGracePeriodSeconds: 0
  securityContext: {fsGroup: 3000}
  containers:
  - name: main
    image: registry.dhow:5000/tools:v1
    args: ["-c", "` + command + `; exec sleep 3600"]
    env: [{name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]
    securityContext: {runAsUser: 1000}
    volumeMounts:
    - {name: data, mountPath: /data}
    - {name: data, mountPath: /mine, subPathExpr: $(POD)}
    - {name: data, mountPath: /fixed, readOnly: true, recursiveReadOnly: Enabled}
    - {name: scratch, mountPath: /scratch}
    - {name: kept, mountPath: /kept}
    - {name: image, mountPath: /image, subPath: bin}
  volumes:
  - {name: data, persistentVolumeClaim: {claimName: data}}
  - {name: kept, persistentVolumeClaim: {claimName: kept}}
  - {name: scratch, ephemeral: {volumeClaimTemplate: {spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}}}}
  - {name: image, image: {reference: "registry.dhow:5000/tools:v1"}}
`
	}
	const look = "stat -c %g /data/file; cat /data/file /kept/file; ls /mine; touch /fixed/x || echo fixed; touch /scratch/own && echo scratch; test -e /image/fetch && echo image"
	c.Apply(t, claimsManifest+"---"+pod("first", "echo kept > /data/file; echo stays > /kept/file; touch /mine/first; "+look)+"---"+memberManifest)
	c.Dhow(t, "wait", "--for=condition=Ready", "pod/first", "-n", ns, "--timeout=2m")
	c.Dhow(t, "rollout", "status", "sts/diary", "-n", ns, "--timeout=2m")
	says := func(name string, lines ...string) {
		t.Helper()
		cluster.Eventually(t, func(context.Context) error {
			log, _, err := c.Try("", "logs", name, "-n", ns)
			for _, line := range lines {
				if err == nil && !strings.Contains("\n"+log, "\n"+line+"\n") {
					err = fmt.Errorf("the log of %s lacks %q:\n%s", name, line, log)
				}
			}
			return err
		})
	}
	says("first", "3000", "kept", "stays", "first", "fixed", "scratch", "image")
	c.Dhow(t, "delete", "pod/first", "-n", ns)
	// The next pod is placed where the data is.
	c.Apply(t, pod("second", look))
	c.Dhow(t, "wait", "--for=condition=Ready", "pod/second", "-n", ns, "--timeout=2m")
	says("second", "kept", "stays", "fixed", "scratch", "image")

	c.Dhow(t, "delete", "pod/diary-0", "-n", ns)
	c.Dhow(t, "rollout", "status", "sts/diary", "-n", ns, "--timeout=2m")
	says("diary-0", "run\nrun")
	k := newKubectl(t, c, ns)
	grow := func(claim, size string) error {
		_, err := k.try("patch", "pvc/"+claim, "-p", `{"spec":{"resources":{"requests":{"storage":"`+size+`"}}}}`)
		return err
	}
	if err := grow("data-diary-0", "20Mi"); err != nil {
		t.Errorf("a claim of the built-in class does not grow: %v", err)
	}
	k.soon(t, "pvc/data-diary-0", "{.status.capacity.storage}", "20Mi")
	for _, refused := range []struct{ claim, size, words string }{
		{"data-diary-0", "15Mi", "field can not be less than status.capacity"},
		{"kept", "20Mi", "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize"},
	} {
		if err := grow(refused.claim, refused.size); err == nil || !strings.Contains(err.Error(), refused.words) {
			t.Errorf("%s to %s: %v", refused.claim, refused.size, err)
		}
	}

	// What is on the nodes' disks.
	folders := func(name string) []folder {
		t.Helper()
		var all []folder
		for _, n := range c.Nodes {
			out, err := n.Shell(t.Context(), "for f in "+n.Data+"/local-path/"+name+"; do test -d $f && echo $f; done; true")
			if err != nil {
				t.Fatal(err)
			}
			for f := range strings.FieldsSeq(out) {
				all = append(all, folder{n, f})
			}
		}
		return all
	}
	// Those of data, kept, the second pod's scratch and the set's member; the first pod's scratch is gone with it.
	cluster.Eventually(t, func(context.Context) error {
		if found := folders("pvc-*"); len(found) != 4 {
			return fmt.Errorf("folders on the nodes: %v", found)
		}
		return nil
	})
	volume := strings.TrimSpace(k.does(t, "get", "pvc/kept", "-o", "jsonpath={.spec.volumeName}"))
	c.Dhow(t, "delete", "pod/second", "-n", ns)
	c.Dhow(t, "delete", "pvc/data", "pvc/kept", "sts/diary", "-n", ns)
	cluster.Eventually(t, func(context.Context) error {
		left, err := k.try("get", "pv", "-o", `jsonpath={range .items[*]}{.metadata.name} {.status.phase}{"\n"}{end}`)
		if err != nil {
			return err
		}
		if found := folders("pvc-*"); len(found) != 1 || strings.TrimSpace(left) != volume+" Released" {
			return fmt.Errorf("left: folders %v, volumes:\n%s", found, left)
		}
		return nil
	})
	// What is kept is the administrator's.
	c.Dhow(t, "delete", "pv", volume)
	left := folders(volume)
	if len(left) != 1 {
		t.Fatalf("what is kept is in %v", left)
	}
	if text, err := left[0].node.Shell(t.Context(), "cat "+left[0].path+"/file && rm -r "+left[0].path); err != nil || text != "stays\n" {
		t.Errorf("what was to stay is %q, %v", text, err)
	}
}

// folder is a volume's on a node.
type folder struct {
	node evidence.Node
	path string
}

func (f folder) String() string { return f.node.Name + ":" + f.path }
