//go:build e2e

package volume_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	k8scorev1 "k8s.io/api/core/v1"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/services/node-agent/internal/podtest"
)

// withFlex gives a node a folder of FlexVolume drivers.
func withFlex(dir string) func(*node) { return func(n *node) { n.flex = dir } }

// flexDriver is a driver that mounts folders of its own.
const flexDriver = `#!/bin/sh
DIR=%DIR%
printf '%s' "$1" >> $DIR/calls; command=$1; shift
for argument in "$@"; do printf ' %s' "$argument" >> $DIR/calls; done
echo >> $DIR/calls
case "$command" in
  init) echo '{"status": "Success", "capabilities": {"attach": false, "supportsMetrics": true}}';;
  mount)
    [ -e $DIR/broken ] && { echo '{"status": "Failure", "message": "out of order"}'; exit 1; }
    [ -e $DIR/hangs ] && { sleep 1000 & wait; }
    mkdir -p $DIR/data
    mount --bind $DIR/data "$1" && echo '{"status": "Success"}';;
  unmount) umount "$1" && echo '{"status": "Success"}';;
  *) echo '{"status": "Not supported"}'; exit 1;;
esac
`

func newFlexDriver(t *testing.T, script string) (*programs, string) {
	t.Helper()
	p := &programs{t: t, dir: t.TempDir()}
	p.write("exec/example.com~folders/folders", strings.ReplaceAll(script, "%DIR%", p.dir), 0o755)
	return p, filepath.Join(p.dir, "exec")
}

// options returns the options that a call ends with.
func options(t *testing.T, call string) map[string]string {
	t.Helper()
	all := map[string]string{}
	if err := json.Unmarshal([]byte(call[strings.Index(call, "{"):]), &all); err != nil {
		t.Fatalf("%v: %s", err, call)
	}
	return all
}

func expectOptions(t *testing.T, call string, want map[string]string) {
	t.Helper()
	got := options(t, call)
	for key, value := range want {
		if got[key] != value {
			t.Errorf("option %s is %q, want %q", key, got[key], value)
		}
	}
	if len(got) != len(want) {
		t.Errorf("options %v, want %v", got, want)
	}
}

func TestFlexVolumesOfADriverThatMounts(t *testing.T) {
	p, dir := newFlexDriver(t, flexDriver)
	n := newNode(t, withFlex(dir))
	put[*corev1.Secret](n, &k8scorev1.Secret{}, `{metadata: {name: key, namespace: default}, type: example.com/folders, data: {word: c2VzYW1l}}`)
	pod := podtest.Pod(t, `{metadata: {name: p, uid: uid-of-p, namespace: default}, spec: {serviceAccountName: sa, securityContext: {fsGroup: 4000}, volumes: [{name: v, flexVolume: {driver: example.com/folders, fsType: ext4,
  secretRef: {name: key}, options: {size: big}}}]}}`)
	paths, err := n.volumes.Setup(n.ctx, pod, n.sources())
	if err != nil {
		t.Fatal(err)
	}
	target := filepath.Join(n.data, "pods/uid-of-p/volumes/example.com~folders/v")
	if paths["v"] != target {
		t.Errorf("it is at %s, want %s", paths["v"], target)
	}
	calls := p.calls()
	if len(calls) != 2 || calls[0] != "init" || !strings.HasPrefix(calls[1], "mount "+target+" {") {
		t.Fatalf("calls %v", calls)
	}
	expectOptions(t, calls[1], map[string]string{
		"kubernetes.io/fsType": "ext4", "kubernetes.io/readwrite": "rw", "kubernetes.io/pvOrVolumeName": "v", "kubernetes.io/secret/word": "c2VzYW1l", "size": "big",
		"kubernetes.io/pod.name": "p", "kubernetes.io/pod.namespace": "default", "kubernetes.io/pod.uid": "uid-of-p", "kubernetes.io/serviceAccount.name": "sa",
		"kubernetes.io/mounterArgs.FsGroup": "4000",
	})
	if info, err := os.Stat(filepath.Join(p.dir, "data")); err != nil || info.Sys().(*syscall.Stat_t).Gid != 4000 || info.Mode()&os.ModeSetgid == 0 {
		t.Errorf("the volume is not the fsGroup's: %v, %v", info, err)
	}
	if err := os.WriteFile(filepath.Join(target, "file"), []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
	n.stop()
	n.start()
	if _, err := n.volumes.Setup(n.ctx, pod, n.sources()); err != nil {
		t.Fatal(err)
	}
	if err := n.volumes.Remove(n.ctx, "uid-of-p"); err != nil {
		t.Fatal(err)
	}
	p.expect(p.calls("mount", "unmount"), calls[1], "unmount "+target)
	if got := read(t, filepath.Join(p.dir, "data/file")); got != "kept" {
		t.Errorf("the driver has %q", got)
	}
	n.nothingMounted()
	// Neither a Secret of another type nor its values are given to a driver.
	put[*corev1.Secret](n, &k8scorev1.Secret{}, `{metadata: {name: key, namespace: default}, type: Opaque, data: {word: c2VzYW1l}}`)
	if _, err := n.volumes.Setup(n.ctx, pod, n.sources()); err == nil || !strings.Contains(err.Error(), `of type "example.com/folders"`) {
		t.Errorf("a Secret of another type: %v", err)
	}
}

func TestFlexVolumesThatFail(t *testing.T) {
	p, dir := newFlexDriver(t, flexDriver)
	n := newNode(t, withFlex(dir))
	volume := func(driver string) *corev1.Pod {
		return podtest.Pod(t, `{metadata: {name: p, uid: uid-of-p}, spec: {volumes: [{name: v, flexVolume: {driver: `+driver+`}}]}}`)
	}
	for driver, want := range map[string]string{
		"example.com/other": `flexVolume driver "example.com/other" is not installed on this node`, "..": "is no name of a driver", "a/..": "is no name of a driver",
	} {
		if _, err := n.volumes.Setup(n.ctx, volume(driver), n.sources()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", driver, err)
		}
	}
	p.write("broken", "", 0o644)
	if _, err := n.volumes.Setup(n.ctx, volume("example.com/folders"), n.sources()); err == nil || !strings.Contains(err.Error(), "mount command failed, status: Failure, reason: out of order") {
		t.Errorf("a driver that fails: %v", err)
	}
	if err := os.Rename(filepath.Join(p.dir, "broken"), filepath.Join(p.dir, "hangs")); err != nil {
		t.Fatal(err)
	}
	// A driver is known anew to another agent, with that one's patience.
	n.stop()
	n.start()
	n.volumes.SetPatience(time.Minute, 3*time.Second)
	if _, err := n.volumes.Setup(n.ctx, volume("example.com/folders"), n.sources()); err == nil || !strings.Contains(err.Error(), "mount: no answer of") {
		t.Errorf("a driver that does not answer: %v", err)
	}
	p.write("exec/example.com~folders/folders", "#!/bin/sh\necho nonsense\n", 0o755)
	if err := os.Chtimes(filepath.Join(p.dir, "exec/example.com~folders/folders"), time.Time{}, time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if _, err := n.volumes.Setup(n.ctx, volume("example.com/folders"), n.sources()); err == nil || !strings.Contains(err.Error(), `init: `) || !strings.Contains(err.Error(), `answered "nonsense"`) {
		t.Errorf("another program of the same name: %v", err)
	}
}

// attachingDriver brings a block device and leaves the rest to the agent, if MOUNTS is empty.
const attachingDriver = `#!/bin/sh
DIR=%DIR%
printf '%s' "$1" >> $DIR/calls; command=$1; shift
for argument in "$@"; do printf ' %s' "$argument" >> $DIR/calls; done
echo >> $DIR/calls
case "$command" in
  init) echo '{"status": "Success"}';;
  attach|waitforattach) echo '{"status": "Success", "device": "%DEVICE%"}';;
  detach) echo '{"status": "Success"}';;
  mountdevice) if [ -n "%MOUNTS%" ]; then mount -t tmpfs tmpfs "$1" && echo '{"status": "Success"}'; else echo '{"status": "Not supported"}'; exit 1; fi;;
  unmountdevice) if [ -n "%MOUNTS%" ]; then umount "$1" && echo '{"status": "Success"}'; else echo '{"status": "Not supported"}'; exit 1; fi;;
  *) echo '{"status": "Not supported"}'; exit 1;;
esac
`

func TestFlexVolumesOfADriverThatAttaches(t *testing.T) {
	device := loopDevice(t)
	for name, mounts := range map[string]string{"the agent mounts": "", "the driver mounts": "yes"} {
		t.Run(name, func(t *testing.T) {
			p, dir := newFlexDriver(t, strings.NewReplacer("%DEVICE%", device, "%MOUNTS%", mounts).Replace(attachingDriver))
			n := newNode(t, withFlex(dir))
			n.persistent("disk", "Filesystem", `, flexVolume: {driver: example.com/folders, fsType: ext4, options: {id: seven}}`)
			pod := func(name, more string) *corev1.Pod {
				return podtest.Pod(t, `{metadata: {name: `+name+`, uid: uid-of-`+name+`}, spec: {volumes: [{name: v, persistentVolumeClaim: {claimName: disk`+more+`}}]}}`)
			}
			paths, err := n.volumes.Setup(n.ctx, pod("one", ""), n.sources())
			if err != nil {
				t.Fatal(err)
			}
			kind := " - ext4 " + device + " "
			if mounts != "" {
				kind = " - tmpfs tmpfs "
			}
			if lines := mountsAt(t, paths["v"]); len(lines) != 1 || !strings.Contains(lines[0], kind) {
				t.Errorf("mounted: %q", lines)
			}
			if err := os.WriteFile(filepath.Join(paths["v"], "file"), []byte("kept"), 0o600); err != nil {
				t.Fatal(err)
			}
			staging := filepath.Join(n.data, "plugins/kubernetes.io/flexvolume/example.com/folders/mounts/pv-disk")
			const told = `{"id":"seven","kubernetes.io/fsType":"ext4","kubernetes.io/pvOrVolumeName":"pv-disk","kubernetes.io/readwrite":"rw"}`
			p.expect(p.calls("attach", "waitforattach", "mountdevice"), "attach "+told+" n1", "waitforattach "+device+" "+told, "mountdevice "+staging+" "+device+" "+told)
			p.forget()
			two, err := n.volumes.Setup(n.ctx, pod("two", ", readOnly: true"), n.sources())
			if err != nil {
				t.Fatal(err)
			}
			if got := read(t, filepath.Join(two["v"], "file")); got != "kept" {
				t.Errorf("the second pod finds %q", got)
			}
			if err := os.WriteFile(filepath.Join(two["v"], "other"), nil, 0o600); err == nil {
				t.Error("a volume that is to be read was written to")
			}
			p.expect(p.calls("mountdevice"))
			n.stop()
			n.start()
			if err := n.volumes.Remove(n.ctx, "uid-of-one"); err != nil {
				t.Fatal(err)
			}
			p.expect(p.calls("unmountdevice", "detach"))
			if err := n.volumes.Remove(n.ctx, "uid-of-two"); err != nil {
				t.Fatal(err)
			}
			p.expect(p.calls("unmountdevice", "detach"), "unmountdevice "+staging, "detach pv-disk n1")
			n.nothingMounted()
			if _, err := os.Stat(staging); !os.IsNotExist(err) {
				t.Errorf("left: %v", err)
			}
		})
	}
}
