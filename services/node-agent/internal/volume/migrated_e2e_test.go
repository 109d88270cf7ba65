//go:build e2e

package volume_test

import (
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"

	k8scorev1 "k8s.io/api/core/v1"
	k8sstoragev1 "k8s.io/api/storage/v1"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	storagev1 "dhow.dev/gen/go/dhow/storage/v1"
	"dhow.dev/services/node-agent/internal/apitest"
	"dhow.dev/services/node-agent/internal/podtest"
)

// driveAs starts a driver process under another driver's name.
func (n *node) driveAs(name, root string) {
	n.t.Helper()
	command := exec.Command(n.program, "-name="+name, "-socket="+filepath.Join(n.data, "plugins", name, "csi.sock"),
		"-register="+filepath.Join(n.data, "plugins_registry", name+"-reg.sock"), "-root="+root, "-node=n1")
	command.Stdout, command.Stderr = n.t.Output(), n.t.Output()
	if err := command.Start(); err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(sync.OnceFunc(func() {
		if err := command.Process.Signal(syscall.SIGTERM); err != nil {
			n.t.Error(err)
		}
		if err := command.Wait(); err != nil {
			n.t.Error(err)
		}
	}))
	n.await("the driver "+name+" is registered", func() bool {
		_, err := n.registry.Driver(name)
		return err == nil
	})
}

// Volumes of plugins that Kubernetes had built in are mounted by the drivers that serve them now: one that only a pod's spec describes is attached, staged
// and published like one of a claim.
func TestMigratedVolumes(t *testing.T) {
	n := newNode(t)
	ebs, gce := filepath.Join(n.root, "ebs"), filepath.Join(n.root, "gce")
	n.driveAs("ebs.csi.aws.com", ebs)
	n.driveAs("pd.csi.storage.gke.io", gce)
	const handle = "projects/UNSPECIFIED/zones/UNSPECIFIED/disks/d1"
	for _, dir := range []string{filepath.Join(ebs, "volumes", "vol-1"), filepath.Join(gce, "volumes", "projects~UNSPECIFIED~zones~UNSPECIFIED~disks~d1")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	put[*storagev1.CSIDriver](n, &k8sstoragev1.CSIDriver{}, `{metadata: {name: ebs.csi.aws.com}, spec: {attachRequired: true, podInfoOnMount: true}}`)
	put[*storagev1.CSIDriver](n, &k8sstoragev1.CSIDriver{}, `{metadata: {name: pd.csi.storage.gke.io}, spec: {attachRequired: false}}`)
	n.persistent("data", "Filesystem", `, gcePersistentDisk: {pdName: d1, fsType: ext4}`)
	pod := podtest.Pod(t, `{metadata: {name: p, uid: uid-of-p}, spec: {volumes: [{name: inline, awsElasticBlockStore: {volumeID: "aws://us-east-1a/vol-1", fsType: ext4}},
  {name: claimed, persistentVolumeClaim: {claimName: data}}]}}`)
	const unique = "kubernetes.io/csi/ebs.csi.aws.com^vol-1"
	put[*storagev1.VolumeAttachment](n, &k8sstoragev1.VolumeAttachment{}, `{metadata: {name: csi-`+fmt.Sprintf("%x", sha256.Sum256([]byte("vol-1"+"ebs.csi.aws.com"+"n1")))+`},
  status: {attached: true, attachmentMetadata: {attached-to: n1}}}`)
	n.volumes.Node(put[*corev1.Node](n, &k8scorev1.Node{}, `{metadata: {name: n1}, status: {volumesAttached: [{name: "`+unique+`", devicePath: ""}]}}`))
	if c, _ := apitest.Get[*storagev1.CSINode](n.api, "", "n1"); c.GetMetadata().GetAnnotations()["storage.alpha.kubernetes.io/migrated-plugins"] !=
		"kubernetes.io/aws-ebs,kubernetes.io/azure-disk,kubernetes.io/azure-file,kubernetes.io/cinder,kubernetes.io/gce-pd,kubernetes.io/portworx-volume,kubernetes.io/vsphere-volume" {
		t.Errorf("CSINode %v", c.GetMetadata())
	}
	paths, err := n.volumes.Setup(n.ctx, pod, n.sources())
	if err != nil {
		t.Fatal(err)
	}
	if want := filepath.Join(n.data, "pods/uid-of-p/volumes/kubernetes.io~csi/ebs.csi.aws.com-vol-1/mount"); paths["inline"] != want {
		t.Errorf("path %s, want %s", paths["inline"], want)
	}
	for name, at := range map[string]string{"inline": filepath.Join(ebs, "volumes/vol-1/file"), "claimed": filepath.Join(gce, "volumes/projects~UNSPECIFIED~zones~UNSPECIFIED~disks~d1/file")} {
		if err := os.WriteFile(filepath.Join(paths[name], "file"), []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := read(t, at); got != name {
			t.Errorf("the driver has %q", got)
		}
	}
	n.root = ebs
	calls := n.calls("vol-1")
	if len(calls) != 2 || calls[0].Call != "NodeStageVolume" || calls[1].Call != "NodePublishVolume" || calls[1].Request.PublishContext["attached-to"] != "n1" ||
		calls[1].Request.VolumeContext["csi.storage.k8s.io/ephemeral"] != "false" {
		t.Errorf("calls %+v", calls)
	}
	n.root = gce
	if got := n.callNames(handle); !slices.Equal(got, []string{"NodeStageVolume", "NodePublishVolume"}) {
		t.Errorf("calls %v", got)
	}
	if got := n.volumes.InUse(); !slices.Equal(got, []string{unique}) {
		t.Errorf("in use: %v", got)
	}
	// Another agent takes it all down.
	n.stop()
	n.start()
	n.await("the drivers are registered", func() bool {
		c, ok := apitest.Get[*storagev1.CSINode](n.api, "", "n1")
		_, one := n.registry.Driver("ebs.csi.aws.com")
		_, two := n.registry.Driver("pd.csi.storage.gke.io")
		return ok && one == nil && two == nil && len(c.GetSpec().GetDrivers()) == 2
	})
	if err := n.volumes.Remove(n.ctx, "uid-of-p"); err != nil {
		t.Fatal(err)
	}
	if got := n.callNames(handle); !slices.Contains(got, "NodeUnstageVolume") || len(n.volumes.InUse()) != 0 {
		t.Errorf("calls %v, in use %v", got, n.volumes.InUse())
	}
	n.nothingMounted()
}

// A claim whose volume is of a removed plugin keeps its pod waiting.
func TestPersistentVolumeOfARemovedPlugin(t *testing.T) {
	n := newNode(t)
	n.persistent("data", "Filesystem", `, cephfs: {monitors: [m]}`)
	_, err := n.volumes.Setup(n.ctx, podtest.Pod(t, `{metadata: {name: p, uid: uid-of-p}, spec: {volumes: [{name: v, persistentVolumeClaim: {claimName: data}}]}}`), n.sources())
	if want := `Unable to attach or mount volumes: unmounted volumes=[v], unattached volumes=[], failed to process volumes=[v]: failed to get Plugin from volumeSpec for volume "pv-data" err=no volume plugin matched`; err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
}
