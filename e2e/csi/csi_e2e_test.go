//go:build e2e

// Package csi runs a CSI driver in a pod with Kubernetes' own provisioner and attacher beside it, unchanged, and volumes of it in other pods.
package csi

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dhow.dev/e2e/cluster"
	"dhow.dev/e2e/images"
)

// driver is what a driver's authors ship: roles, the driver with its sidecars, a storage class.
const driver = `
apiVersion: v1
kind: ServiceAccount
metadata: {name: folders, namespace: kube-system}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: folders}
rules:
- {apiGroups: [""], resources: [persistentvolumes], verbs: [get, list, watch, create, patch, update, delete]}
- {apiGroups: [""], resources: [persistentvolumeclaims], verbs: [get, list, watch, update]}
- {apiGroups: [""], resources: [nodes, pods, secrets], verbs: [get, list, watch]}
- {apiGroups: [""], resources: [events], verbs: [list, watch, create, update, patch]}
- {apiGroups: [storage.k8s.io], resources: [storageclasses, csinodes, volumeattributesclasses], verbs: [get, list, watch]}
- {apiGroups: [storage.k8s.io], resources: [volumeattachments], verbs: [get, list, watch, patch]}
- {apiGroups: [storage.k8s.io], resources: [volumeattachments/status], verbs: [patch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: folders}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: folders}
subjects: [{kind: ServiceAccount, name: folders, namespace: kube-system}]
---
apiVersion: storage.k8s.io/v1
kind: CSIDriver
metadata: {name: folders.dhow.test}
spec: {attachRequired: true, podInfoOnMount: true, fsGroupPolicy: File, volumeLifecycleModes: [Persistent, Ephemeral]}
---
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: folders}
provisioner: folders.dhow.test
volumeBindingMode: WaitForFirstConsumer
---
apiVersion: v1
kind: Pod
metadata: {name: folders, namespace: kube-system}
spec:
  serviceAccountName: folders
  terminationGracePeriodSeconds: 5
  containers:
  - name: driver
    image: registry.dhow:5000/csi:v1
    command: [/foldersdriver, -socket=/var/lib/kubelet/plugins/folders.dhow.test/csi.sock, -register=/var/lib/kubelet/plugins_registry/folders.dhow.test-reg.sock,
      -root=/var/lib/kubelet/plugins/folders.dhow.test/root, -node=$(NODE)]
    env: [{name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}]
    securityContext: {privileged: true}
    volumeMounts: [{name: kubelet, mountPath: /var/lib/kubelet, mountPropagation: Bidirectional}]
  - name: provisioner
    image: registry.dhow:5000/csi:v1
    command: [/csi-provisioner, --csi-address=/csi/csi.sock, --extra-create-metadata]
    volumeMounts: [{name: socket, mountPath: /csi}]
  - name: attacher
    image: registry.dhow:5000/csi:v1
    command: [/csi-attacher, --csi-address=/csi/csi.sock]
    volumeMounts: [{name: socket, mountPath: /csi}]
  volumes:
  - {name: kubelet, hostPath: {path: /var/lib/kubelet, type: Directory}}
  - {name: socket, hostPath: {path: /var/lib/kubelet/plugins/folders.dhow.test, type: DirectoryOrCreate}}
`

func TestSidecarsWorkUnchanged(t *testing.T) {
	repository := filepath.Join("..", "..")
	dir := t.TempDir()
	registry, err := images.Build(t.Context(), repository, dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := registry.AddCSI(t.Context(), repository, dir); err != nil {
		t.Fatal(err)
	}
	c := cluster.Start(t, cluster.Options{Nodes: 1})
	stop, err := registry.Start(c.Gateway)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
	c.Apply(t, driver)
	t.Cleanup(func() {
		if t.Failed() {
			for _, container := range []string{"driver", "provisioner", "attacher"} {
				log, problems, _ := c.Try("", "logs", "folders", "-n", "kube-system", "-c", container)
				t.Logf("%s says:\n%s%s", container, log[max(0, len(log)-4000):], problems)
			}
		}
	})
	c.Dhow(t, "wait", "--for=condition=Ready", "pod/folders", "-n", "kube-system", "--timeout=2m")
	ns := c.Namespace(t, "volumes")
	pod := func(name, command string) string {
		return `
apiVersion: v1
kind: Pod
metadata: {name: ` + name + `, namespace: volumes}
spec:
  terminationGracePeriodSeconds: 0
  securityContext: {runAsUser: 1000, fsGroup: 3000}
  containers:
  - name: main
    image: registry.dhow:5000/tools:v1
    args: ["-c", "` + command + `; exec sleep 3600"]
    volumeMounts: [{name: data, mountPath: /data}, {name: inline, mountPath: /inline}]
  volumes:
  - {name: data, persistentVolumeClaim: {claimName: data}}
  - {name: inline, csi: {driver: folders.dhow.test, volumeAttributes: {greeting: hello}}}
`
	}
	c.Apply(t, `
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data, namespace: volumes}
spec: {accessModes: [ReadWriteOnce], storageClassName: folders, resources: {requests: {storage: 10Mi}}}
`+"---"+pod("first", "echo kept > /data/file; cat /inline/greeting; echo"))
	c.Dhow(t, "wait", "--for=condition=Ready", "pod/first", "-n", ns, "--timeout=2m")
	says := func(pod, word string) {
		t.Helper()
		cluster.Eventually(t, func(context.Context) error {
			log, _, err := c.Try("", "logs", pod, "-n", ns)
			if err == nil && !strings.Contains(log, word) {
				err = fmt.Errorf("the log of %s is %q, want %s", pod, log, word)
			}
			return err
		})
	}
	says("first", "hello")
	// What the driver has is on the disk; what it was attached to as well.
	data := func() string {
		found, err := filepath.Glob(filepath.Join(c.DataDir, "nodes", "*", "data", "plugins", "folders.dhow.test", "root", "volumes", "pvc-*", "file"))
		if err != nil || len(found) != 1 {
			return ""
		}
		text, err := os.ReadFile(found[0])
		if err != nil {
			return ""
		}
		return string(text)
	}
	if got := data(); got != "kept\n" {
		t.Errorf("the driver has %q", got)
	}
	if out := c.Dhow(t, "get", "volumeattachments", "-o", "yaml"); !strings.Contains(out, "attached: true") {
		t.Errorf("attachments:\n%s", out)
	}
	c.Dhow(t, "delete", "pod/first", "-n", ns)
	detached := func(context.Context) error {
		if out, problems, err := c.Try("", "get", "volumeattachments", "-o", "yaml"); err != nil || strings.Contains(out, "attacher:") {
			return fmt.Errorf("attachments: %s%s, %v", out, problems, err)
		}
		return nil
	}
	cluster.Eventually(t, detached)
	c.Apply(t, pod("second", "cat /data/file"))
	c.Dhow(t, "wait", "--for=condition=Ready", "pod/second", "-n", ns, "--timeout=2m")
	says("second", "kept")
	c.Dhow(t, "delete", "pod/second", "-n", ns)
	c.Dhow(t, "delete", "pvc/data", "-n", ns)
	cluster.Eventually(t, detached)
	cluster.Eventually(t, func(context.Context) error {
		if out, problems, err := c.Try("", "get", "pv"); err != nil || strings.Contains(out, "pvc-") || data() != "" {
			return fmt.Errorf("volumes: %s%s, %v, data %q", out, problems, err, data())
		}
		return nil
	})
	// Nothing of the volumes is left mounted on the node.
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(table)) {
		if strings.Contains(line, "kubernetes.io~csi") || strings.Contains(line, "globalmount") {
			t.Errorf("still mounted: %s", line)
		}
	}
	c.Dhow(t, "delete", "pod/folders", "-n", "kube-system")
	migrated(t, c, ns)
}
