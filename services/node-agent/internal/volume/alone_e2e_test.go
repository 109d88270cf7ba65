//go:build e2e

package volume_test

import (
	"path/filepath"
	"strings"
	"testing"

	k8scorev1 "k8s.io/api/core/v1"
	k8sstoragev1 "k8s.io/api/storage/v1"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	storagev1 "dhow.dev/gen/go/dhow/storage/v1"
	"dhow.dev/services/node-agent/internal/podtest"
)

// TestAVolumeForOnePod has pods that came to the node without the scheduler, and one volume that one of them may use at a time.
func TestAVolumeForOnePod(t *testing.T) {
	p := newPrograms(t, map[string]string{"mount": shareMount, "umount": shareUnmount})
	writeFile(t, filepath.Join(p.dir, "exports/data/file"), "kept")
	for kind, source := range map[string]string{
		"hostPath": "hostPath: {path: " + t.TempDir() + "}", "local": "local: {path: " + t.TempDir() + "}", "nfs": "nfs: {server: store, path: /data}",
		"csi": "csi: {driver: folders.dhow.test, volumeHandle: v1}",
	} {
		t.Run(kind, func(t *testing.T) { takeTurns(t, source, kind == "csi") })
	}
}

func takeTurns(t *testing.T, source string, driven bool) {
	n := newNode(t)
	start := func() {
		n.start()
		if driven {
			n.registered()
		}
	}
	if driven {
		n.drive()
		put[*storagev1.CSIDriver](n, &k8sstoragev1.CSIDriver{}, `{metadata: {name: folders.dhow.test}, spec: {attachRequired: false}}`)
		writeFile(t, filepath.Join(n.root, "volumes/v1/file"), "kept")
	}
	share := func(modes string) {
		put[*corev1.PersistentVolumeClaim](n, &k8scorev1.PersistentVolumeClaim{}, `{metadata: {name: c, namespace: default, uid: uid-of-c}, spec: {volumeName: pv}, status: {phase: Bound}}`)
		put[*corev1.PersistentVolume](n, &k8scorev1.PersistentVolume{}, `{metadata: {name: pv}, spec: {capacity: {storage: 1Gi}, accessModes: [`+modes+`], `+source+`,
  claimRef: {namespace: default, name: c, uid: uid-of-c}}}`)
	}
	setup := func(name string) error {
		t.Helper()
		_, err := n.volumes.Setup(n.ctx, podtest.Pod(t, `{metadata: {name: `+name+`, uid: uid-of-`+name+`}, spec: {volumes: [{name: v, persistentVolumeClaim: {claimName: c}}]}}`), n.sources())
		return err
	}
	const refusal = `MountVolume.SetUp failed for volume "v" : volume uses the ReadWriteOncePod access mode and is already in use by another pod`
	refused := func(name string) {
		t.Helper()
		if err := setup(name); err == nil || !strings.Contains(err.Error(), refusal) {
			t.Errorf("%s: %v", name, err)
		}
	}
	works := func(name string) {
		t.Helper()
		if err := setup(name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	share("ReadWriteOncePod")
	works("first")
	refused("second")
	n.stop()
	start()
	refused("second")
	works("first")
	// Who was refused holds nothing, and its end takes nothing from the first one.
	if err := n.volumes.Remove(n.ctx, "uid-of-second"); err != nil {
		t.Fatal(err)
	}
	refused("third")
	if err := n.volumes.Teardown(n.ctx, "uid-of-first"); err != nil {
		t.Fatal(err)
	}
	works("third")
	refused("first")
	if err := n.volumes.Remove(n.ctx, "uid-of-third"); err != nil {
		t.Fatal(err)
	}
	// With another mode beside it nobody knows which the pods want.
	share("ReadWriteOncePod, ReadWriteMany")
	works("first")
	works("second")
	for _, uid := range []string{"uid-of-first", "uid-of-second"} {
		if err := n.volumes.Remove(n.ctx, uid); err != nil {
			t.Error(err)
		}
	}
	n.nothingMounted()
}
