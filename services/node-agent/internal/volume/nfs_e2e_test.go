//go:build e2e

package volume_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"dhow.dev/services/node-agent/internal/podtest"
)

// shareMount mounts shares of the server "store" and of the same by its address, which are folders; the rest is the machine's.
const shareMount = `
[ "$1 $2" = "-t nfs" ] || exec $REAL "$@"
shift 2
options=
[ "$1" = -o ] && { options=$2; shift 2; }
case "$1" in
  store:*|\[fd00::1\]:*) ;;
  *) echo "mount.nfs: Connection refused" >&2; exit 32;;
esac
case ",$options," in
  *,ro,*) exec $REAL -o bind,ro "$DIR/exports${1##*:}" "$2";;
esac
exec $REAL -o bind "$DIR/exports${1##*:}" "$2"
`

// shareUnmount hangs while the server is gone, unless the mount is only to be taken out of sight.
const shareUnmount = `
[ -e $DIR/gone ] && [ "$1" != -l ] && exec sleep 1000
exec $REAL "$@"
`

func TestSharesOfNFSServers(t *testing.T) {
	p := newPrograms(t, map[string]string{"mount": shareMount, "umount": shareUnmount})
	writeFile(t, filepath.Join(p.dir, "exports/data/file"), "kept")
	n := newNode(t)
	n.persistent("share", "Filesystem", `, mountOptions: [nfsvers=4.1, hard, hard], nfs: {server: "fd00::1", path: /data}`)
	pod := podtest.Pod(t, `{metadata: {name: p, uid: uid-of-p}, spec: {securityContext: {fsGroup: 4000}, volumes: [{name: own, nfs: {server: store, path: /data}}, {name: reads, nfs: {server: store, path: /data, readOnly: true}},
  {name: claimed, persistentVolumeClaim: {claimName: share, readOnly: true}}]}}`)
	paths, err := n.volumes.Setup(n.ctx, pod, n.sources())
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(n.data, "pods/uid-of-p/volumes/kubernetes.io~nfs")
	p.expect(p.calls("mount"), "mount -t nfs store:/data "+dir+"/own", "mount -t nfs -o ro store:/data "+dir+"/reads", "mount -t nfs -o hard,nfsvers=4.1,ro [fd00::1]:/data "+dir+"/pv-share")
	if got := read(t, filepath.Join(paths["claimed"], "file")); got != "kept" {
		t.Errorf("the claim's share has %q", got)
	}
	if err := os.WriteFile(filepath.Join(paths["own"], "new"), []byte("here"), 0o600); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(filepath.Join(paths["reads"], "new"), nil, 0o600); err == nil {
		t.Error("a share that is to be read was written to")
	}
	for volume, want := range map[string]bool{"own": false, "reads": true, "claimed": true} {
		if got := n.volumes.ReadOnly("uid-of-p", volume); got != want {
			t.Errorf("%s is read-only to containers: %v", volume, got)
		}
	}
	if got := read(t, filepath.Join(p.dir, "exports/data/new")); got != "here" {
		t.Errorf("the server has %q", got)
	}
	if s := n.volumes.Stats(n.ctx); len(s) != 1 || s[0].Claim != "share" || s[0].Capacity <= 0 {
		t.Errorf("measured %+v", s)
	}
	// Another agent finds what is mounted, and mounts again what somebody has unmounted.
	n.stop()
	n.start()
	p.forget()
	if _, err := n.volumes.Setup(n.ctx, pod, n.sources()); err != nil {
		t.Fatal(err)
	}
	p.expect(p.calls("mount"))
	unmounted(t, paths["own"])
	if _, err := n.volumes.Setup(n.ctx, pod, n.sources()); err != nil {
		t.Fatal(err)
	}
	p.expect(p.calls("mount"), "mount -t nfs store:/data "+dir+"/own")
	n.stop()
	n.start()
	if err := n.volumes.Remove(n.ctx, "uid-of-p"); err != nil {
		t.Fatal(err)
	}
	n.nothingMounted()
	if got := read(t, filepath.Join(p.dir, "exports/data/file")); got != "kept" {
		t.Errorf("after the pod the server has %q", got)
	}
}

// TestAPodEndsWithoutItsServer: a share whose server does not answer any more is taken out of sight.
func TestAPodEndsWithoutItsServer(t *testing.T) {
	p := newPrograms(t, map[string]string{"mount": shareMount, "umount": shareUnmount})
	writeFile(t, filepath.Join(p.dir, "exports/data/file"), "kept")
	n := newNode(t)
	n.volumes.SetPatience(3*time.Second, time.Minute)
	pod := podtest.Pod(t, `{metadata: {name: p, uid: uid-of-p}, spec: {volumes: [{name: own, nfs: {server: store, path: /data}}]}}`)
	paths, err := n.volumes.Setup(n.ctx, pod, n.sources())
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(p.dir, "gone"), "")
	if err := n.volumes.Remove(n.ctx, "uid-of-p"); err != nil {
		t.Fatal(err)
	}
	p.expect(p.calls("umount"), "umount "+paths["own"], "umount -f "+paths["own"], "umount -l "+paths["own"])
	n.nothingMounted()
}

func TestAShareThatCannotBeMounted(t *testing.T) {
	newPrograms(t, map[string]string{"mount": shareMount, "umount": shareUnmount})
	n := newNode(t)
	pod := podtest.Pod(t, `{metadata: {name: p, uid: uid-of-p}, spec: {volumes: [{name: own, nfs: {server: other, path: /data}}]}}`)
	helpers := t.TempDir()
	n.volumes.SetHelpers(helpers)
	_, err := n.volumes.Setup(n.ctx, pod, n.sources())
	if err == nil || !strings.Contains(err.Error(), "Connection refused") || !strings.Contains(err.Error(), "has no mount.nfs: install the package nfs-common") {
		t.Errorf("without a helper: %v", err)
	}
	writeFile(t, filepath.Join(helpers, "mount.nfs"), "")
	_, err = n.volumes.Setup(n.ctx, pod, n.sources())
	if err == nil || !strings.Contains(err.Error(), "Connection refused") || strings.Contains(err.Error(), "install") {
		t.Errorf("with a helper: %v", err)
	}
	n.persistent("raw", "Block", `, nfs: {server: store, path: /data}`)
	wrong := podtest.Pod(t, `{metadata: {name: q, uid: uid-of-q}, spec: {volumes: [{name: v, persistentVolumeClaim: {claimName: raw}}]}}`)
	if _, err := n.volumes.Setup(n.ctx, wrong, n.sources()); err == nil || !strings.Contains(err.Error(), "volumeMode Block") {
		t.Errorf("a share as a device: %v", err)
	}
	for _, uid := range []string{"uid-of-p", "uid-of-q"} {
		if err := n.volumes.Remove(n.ctx, uid); err != nil {
			t.Error(err)
		}
	}
	n.nothingMounted()
}
