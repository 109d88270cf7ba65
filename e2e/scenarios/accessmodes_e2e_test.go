//go:build e2e

package scenarios

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dhow.dev/e2e/cluster"
)

// A claim of each access mode: those for one node, and for one pod, have volumes of the built-in class; those for many nodes a folder of the machine, which all nodes of this cluster see.
const modesManifest = `
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: once, namespace: modes}
spec: {accessModes: [ReadWriteOnce], storageClassName: local-path, resources: {requests: {storage: 1Mi}}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: alone, namespace: modes}
spec: {accessModes: [ReadWriteOncePod], storageClassName: local-path, resources: {requests: {storage: 1Mi}}}
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: modes-many}
spec: {accessModes: [ReadWriteMany], storageClassName: "", capacity: {storage: 1Mi}, hostPath: {path: FOLDER, type: Directory}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: many, namespace: modes}
spec: {accessModes: [ReadWriteMany], storageClassName: "", volumeName: modes-many, resources: {requests: {storage: 1Mi}}}
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: modes-readers}
spec: {accessModes: [ReadOnlyMany], storageClassName: "", capacity: {storage: 1Mi}, hostPath: {path: FOLDER, type: Directory}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: readers, namespace: modes}
spec: {accessModes: [ReadOnlyMany], storageClassName: "", volumeName: modes-readers, resources: {requests: {storage: 1Mi}}}
`

// accessModes: pods of one node share a claim that is for one node, pods of several nodes those that are for many, which some of them can only read; of the pods of a claim that is for one
// pod all but one wait, whether the scheduler places them or they name their node.
func accessModes(t *testing.T, c *cluster.Cluster) {
	t.Cleanup(func() {
		if out, problems, err := c.Try("", "delete", "pv/modes-many", "pv/modes-readers"); err != nil {
			t.Errorf("delete the volumes: %v: %s%s", err, out, problems)
		}
	})
	ns := c.Namespace(t, "modes")
	folder := t.TempDir()
	pod := func(name, claim, more string) string {
		return `
apiVersion: v1
kind: Pod
metadata: {name: ` + name + `, namespace: modes}
spec:
  terminationGracePeriodSeconds: 0
  ` + more + `
  containers:
  - {name: main, image: "registry.dhow:5000/tools:v1", args: ["-c", "exec sleep 3600"], volumeMounts: [{name: data, mountPath: /data}]}
  volumes:
  - {name: data, persistentVolumeClaim: {` + claim + `}}
---`
	}
	on := func(node int) string { return "nodeSelector: {kubernetes.io/hostname: " + c.Nodes[node].Name + "}" }
	c.Apply(t, strings.ReplaceAll(modesManifest, "FOLDER", folder)+"---"+
		pod("once-1", "claimName: once", "")+pod("once-2", "claimName: once", "")+pod("alone-1", "claimName: alone", "")+
		pod("many-1", "claimName: many", on(0))+pod("many-2", "claimName: many", on(1))+
		pod("reader-1", "claimName: readers, readOnly: true", on(0))+pod("reader-2", "claimName: readers, readOnly: true", on(1)))
	k := newKubectl(t, &c.Any, ns)
	ready := func(names ...string) {
		t.Helper()
		for _, name := range names {
			c.Dhow(t, "wait", "--for=condition=Ready", "pod/"+name, "-n", ns, "--timeout=2m")
		}
	}
	in := func(pod, command string) string {
		t.Helper()
		return strings.TrimSpace(k.does(t, "exec", pod, "--", "sh", "-c", command))
	}
	ready("once-1", "once-2", "alone-1", "many-1", "many-2", "reader-1", "reader-2")
	nodeOf := func(pod string) string { return k.does(t, "get", "pod/"+pod, "-o", "jsonpath={.spec.nodeName}") }

	in("once-1", "echo one > /data/1")
	if a, b, got := nodeOf("once-1"), nodeOf("once-2"), in("once-2", "cat /data/1"); a != b || got != "one" {
		t.Errorf("ReadWriteOnce: on %s and %s, the second reads %q", a, b, got)
	}

	in("many-1", "echo one > /data/1")
	in("many-2", "echo two > /data/2")
	if got := in("many-1", "cat /data/2") + " " + in("many-2", "cat /data/1"); got != "two one" {
		t.Errorf("ReadWriteMany: they read %q", got)
	}
	for _, name := range []string{"reader-1", "reader-2"} {
		if got := in(name, "cat /data/1; touch /data/3 2>&1 || true"); got != "one\ntouch: /data/3: Read-only file system" {
			t.Errorf("ReadOnlyMany: %s says %q", name, got)
		}
	}
	if _, err := os.Stat(filepath.Join(folder, "3")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what readers wrote: %v", err)
	}

	in("alone-1", "echo mine > /data/file")
	node := nodeOf("alone-1")
	c.Apply(t, pod("alone-2", "claimName: alone", "nodeName: "+node)+pod("alone-3", "claimName: alone", ""))
	told := func(pod, text string) {
		t.Helper()
		cluster.Eventually(t, func(context.Context) error {
			events, err := k.try("get", "events", "--field-selector=involvedObject.name="+pod, "-o", `jsonpath={range .items[*]}{.reason}: {.message}{"\n"}{end}`)
			if err == nil && !strings.Contains(events, text) {
				err = fmt.Errorf("of %s it is told:\n%s", pod, events)
			}
			return err
		})
	}
	told("alone-2", `FailedMount: MountVolume.SetUp failed for volume "data" : volume uses the ReadWriteOncePod access mode and is already in use by another pod`)
	told("alone-3", "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode")
	if ps, err := c.Containers(t.Context(), ns); err != nil || len(ps) != 7 {
		t.Errorf("while others wait there run %v, %v", ps, err)
	}
	c.Dhow(t, "delete", "pod/alone-1", "-n", ns)
	ready("alone-2")
	c.Dhow(t, "delete", "pod/alone-2", "-n", ns)
	ready("alone-3")
	if got := in("alone-3", "cat /data/file"); got != "mine" || nodeOf("alone-3") != node {
		t.Errorf("ReadWriteOncePod: the third pod, on %s, reads %q", nodeOf("alone-3"), got)
	}
}
