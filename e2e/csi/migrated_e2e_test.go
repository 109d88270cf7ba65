//go:build e2e

package csi

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"dhow.dev/e2e/cluster"
)

var volumeName = regexp.MustCompile(`volumeName: (\S+)`)

// standIn is a driver under the name of one that serves volumes of a plugin which Kubernetes had built in, with its authors' sidecars, unchanged.
func standIn(name, pod, node, topology string) string {
	return `
apiVersion: storage.k8s.io/v1
kind: CSIDriver
metadata: {name: ` + name + `}
spec: {attachRequired: true, podInfoOnMount: true, fsGroupPolicy: File}
---
apiVersion: v1
kind: Pod
metadata: {name: ` + pod + `, namespace: kube-system}
spec:
  serviceAccountName: folders
  terminationGracePeriodSeconds: 5
  containers:
  - name: driver
    image: registry.dhow:5000/csi:v1
    command: [/foldersdriver, -name=` + name + `, -socket=/var/lib/kubelet/plugins/` + name + `/csi.sock, -register=/var/lib/kubelet/plugins_registry/` + name + `-reg.sock,
      -root=/var/lib/kubelet/plugins/` + name + `/root, -node=` + node + `, -topology=` + topology + `]
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
  - {name: socket, hostPath: {path: /var/lib/kubelet/plugins/` + name + `, type: DirectoryOrCreate}}
---`
}

// migrated runs a pod with volumes of plugins that Kubernetes had built in, by the drivers that serve them now: an awsElasticBlockStore volume of its own spec, a
// claim of a class of kubernetes.io/aws-ebs, and a claim that is bound to a PersistentVolume with gcePersistentDisk.
func migrated(t *testing.T, c *cluster.Cluster, ns string) {
	t.Helper()
	const ebs, gce = "ebs.csi.aws.com", "pd.csi.storage.gke.io"
	t.Cleanup(func() {
		if t.Failed() {
			for _, pod := range []string{"ebs", "gce"} {
				for _, container := range []string{"driver", "provisioner", "attacher"} {
					log, problems, _ := c.Try("", "logs", pod, "-n", "kube-system", "-c", container)
					t.Logf("%s of %s says:\n%s%s", container, pod, log[max(0, len(log)-4000):], problems)
				}
			}
			for _, kind := range []string{"volumeattachments", "pv", "pvc", "events"} {
				out, _, _ := c.Try("", "get", kind, "-n", ns, "-o", "yaml")
				t.Logf("%s:\n%s", kind, out)
			}
		}
	})
	// What cloud providers put on their nodes. A volume of the class is of this zone and region.
	_, node, _ := strings.Cut(strings.TrimSpace(c.Dhow(t, "get", "nodes", "-o", "name")), "/")
	c.Apply(t, `
apiVersion: v1
kind: Node
metadata: {name: `+node+`, labels: {topology.kubernetes.io/zone: us-east-1a, topology.kubernetes.io/region: us-east-1}}
`)
	c.Apply(t, standIn(ebs, "ebs", node, "topology.ebs.csi.aws.com/zone=us-east-1a")+standIn(gce, "gce", "projects/p/zones/z/instances/"+node, "topology.gke.io/zone=us-east-1a")+`
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: ebs}
provisioner: kubernetes.io/aws-ebs
parameters: {fsType: ext4}
volumeBindingMode: WaitForFirstConsumer
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: disk, labels: {topology.kubernetes.io/zone: us-east-1a}}
spec:
  capacity: {storage: 1Gi}
  accessModes: [ReadWriteOnce]
  storageClassName: ""
  claimRef: {namespace: `+ns+`, name: disk}
  gcePersistentDisk: {pdName: d1}
`)
	for _, pod := range []string{"pod/ebs", "pod/gce"} {
		c.Dhow(t, "wait", "--for=condition=Ready", pod, "-n", "kube-system", "--timeout=2m")
	}
	// The disks that are there already. The attacher asks for the second by the project that the node is in, and the node without, as in Kubernetes.
	root := func(driver string) string {
		t.Helper()
		found, err := filepath.Glob(filepath.Join(c.DataDir, "nodes", "*", "data", "plugins", driver, "root", "volumes"))
		if err != nil || len(found) != 1 {
			t.Fatalf("folders of %s: %v, %v", driver, found, err)
		}
		return found[0]
	}
	disk := filepath.Join(root(gce), "projects~UNSPECIFIED~zones~us-east-1a~disks~d1")
	for _, dir := range []string{filepath.Join(root(ebs), "vol-1"), disk, filepath.Join(root(gce), "projects~p~zones~us-east-1a~disks~d1")} {
		if err := os.MkdirAll(dir, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	c.Apply(t, `
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: disk, namespace: `+ns+`}
spec: {accessModes: [ReadWriteOnce], storageClassName: "", volumeName: disk, resources: {requests: {storage: 1Gi}}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: made, namespace: `+ns+`}
spec: {accessModes: [ReadWriteOnce], storageClassName: ebs, resources: {requests: {storage: 10Mi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: cloud, namespace: `+ns+`}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: registry.dhow:5000/tools:v1
    args: ["-c", "for v in inline disk made; do echo $v > /$v/file; done; exec sleep 3600"]
    volumeMounts: [{name: inline, mountPath: /inline}, {name: disk, mountPath: /disk}, {name: made, mountPath: /made}]
  volumes:
  - {name: inline, awsElasticBlockStore: {volumeID: "aws://us-east-1a/vol-1", fsType: ext4}}
  - {name: disk, persistentVolumeClaim: {claimName: disk}}
  - {name: made, persistentVolumeClaim: {claimName: made}}
`)
	c.Dhow(t, "wait", "--for=condition=Ready", "pod/cloud", "-n", ns, "--timeout=2m")
	made := volumeName.FindStringSubmatch(c.Dhow(t, "get", "pvc/made", "-n", ns, "-o", "yaml"))[1]
	for want, dir := range map[string]string{"inline": filepath.Join(root(ebs), "vol-1"), "disk": disk, "made": filepath.Join(root(ebs), made)} {
		cluster.Eventually(t, func(context.Context) error {
			text, err := os.ReadFile(filepath.Join(dir, "file"))
			if err == nil && string(text) != want+"\n" {
				err = fmt.Errorf("%s has %q, want %s", dir, text, want)
			}
			return err
		})
	}
	// Its driver made the volume in the plugin's form, as in Kubernetes.
	cluster.Eventually(t, func(context.Context) error {
		out, problems, err := c.Try("", "get", "pv/"+made, "-o", "yaml")
		if err != nil || !strings.Contains(out, "awsElasticBlockStore:") || !strings.Contains(out, "pv.kubernetes.io/migrated-to: "+ebs) {
			return fmt.Errorf("the volume that was made: %s%s, %v", out, problems, err)
		}
		return nil
	})
	out := c.Dhow(t, "get", "volumeattachments", "-o", "yaml")
	if strings.Count(out, "attached: true") != 3 || strings.Count(out, "inlineVolumeSpec:") != 1 {
		t.Errorf("attachments:\n%s", out)
	}
	c.Dhow(t, "delete", "pod/cloud", "-n", ns)
	c.Dhow(t, "delete", "pvc/made", "-n", ns)
	c.Dhow(t, "delete", "pvc/disk", "-n", ns)
	cluster.Eventually(t, func(context.Context) error {
		attachments, problems, err := c.Try("", "get", "volumeattachments", "-o", "name")
		if err != nil || strings.Contains(attachments, "csi-") {
			return fmt.Errorf("attachments: %s%s, %v", attachments, problems, err)
		}
		volumes, problems, err := c.Try("", "get", "pv", "-o", "name")
		if err != nil || strings.Contains(volumes, "pvc-") {
			return fmt.Errorf("volumes: %s%s, %v", volumes, problems, err)
		}
		return nil
	})
	c.Dhow(t, "delete", "pod/ebs", "-n", "kube-system")
	c.Dhow(t, "delete", "pod/gce", "-n", "kube-system")
}
