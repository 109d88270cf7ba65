//go:build e2e

package volume_test

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	k8scorev1 "k8s.io/api/core/v1"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/services/node-agent/internal/apitest"
	"dhow.dev/services/node-agent/internal/podtest"
)

// growingDriver brings a block device that it can make larger, and says that it makes the file system larger if GROWS is not empty.
const growingDriver = `#!/bin/sh
DIR=%DIR%
printf '%s' "$1" >> $DIR/calls; command=$1; shift
for argument in "$@"; do printf ' %s' "$argument" >> $DIR/calls; done
echo >> $DIR/calls
case "$command" in
  init) echo '{"status": "Success", "capabilities": %CAPABILITIES%}';;
  attach|waitforattach) echo '{"status": "Success", "device": "%DEVICE%"}';;
  detach) echo '{"status": "Success"}';;
  expandvolume)
    [ -e $DIR/full ] && { echo '{"status": "Failure", "message": "no room"}'; exit 1; }
    truncate -s "$3" "$(cat /sys/block/$(basename %DEVICE%)/loop/backing_file)" && losetup -c %DEVICE% && echo '{"status": "Success"}';;
  expandfs) if [ -n "%GROWS%" ]; then echo '{"status": "Success"}'; else echo '{"status": "Not supported"}'; exit 1; fi;;
  *) echo '{"status": "Not supported"}'; exit 1;;
esac
`

// resize notes how large the device is: of a file system that is mounted only a process with CAP_SYS_RESOURCE may change the size, which root in a container does not always have.
const resize = `blockdev --getsize64 "$1" >> $DIR/sizes`

func TestFlexVolumesGrow(t *testing.T) {
	const before, after = "67108864", "134217728"
	for name, c := range map[string]struct {
		capabilities, grows string
		driver, agent       bool
	}{
		"the agent makes the file system larger":  {capabilities: `{"attach": true}`, driver: true, agent: true},
		"the driver makes the file system larger": {capabilities: `{"attach": true}`, grows: "yes", driver: true},
		"the file system is nobody's business":    {capabilities: `{"attach": true, "requiresFSResize": false}`},
	} {
		t.Run(name, func(t *testing.T) {
			device, tools := loopDevice(t), newPrograms(t, map[string]string{"resize2fs": resize})
			p, dir := newFlexDriver(t, strings.NewReplacer("%DEVICE%", device, "%CAPABILITIES%", c.capabilities, "%GROWS%", c.grows).Replace(growingDriver))
			n := newNode(t, withFlex(dir))
			sized := func(size, status string) {
				put[*corev1.PersistentVolume](n, &k8scorev1.PersistentVolume{}, `{metadata: {name: pv}, spec: {capacity: {storage: "`+size+`"}, accessModes: [ReadWriteOnce],
  claimRef: {namespace: default, name: disk, uid: uid-of-disk}, flexVolume: {driver: example.com/folders, fsType: ext4, options: {id: seven}}}}`)
				put[*corev1.PersistentVolumeClaim](n, &k8scorev1.PersistentVolumeClaim{}, `{metadata: {name: disk, namespace: default, uid: uid-of-disk},
  spec: {volumeName: pv}, status: {phase: Bound, capacity: {storage: "`+before+`"}`+status+`}}`)
			}
			n.volumes.SetExpandAgain(10 * time.Millisecond)
			sized(before, "")
			pod := func(name, more string) *corev1.Pod {
				return podtest.Pod(t, `{metadata: {name: `+name+`, uid: uid-of-`+name+`}, spec: {volumes: [{name: v, persistentVolumeClaim: {claimName: disk`+more+`}}]}}`)
			}
			if _, err := n.volumes.Setup(n.ctx, pod("one", ""), n.sources()); err != nil {
				t.Fatal(err)
			}
			if _, err := n.volumes.Setup(n.ctx, pod("reader", ", readOnly: true"), n.sources()); err != nil {
				t.Fatal(err)
			}
			p.expect(p.calls("expand"))

			// What the controller does: the volume is to be larger, and the claim waits for the node. The agent sees it by itself.
			p.write("full", "", 0o644)
			sized(after, `, allocatedResourceStatuses: {storage: NodeResizePending}, conditions: [{type: FileSystemResizePending, status: "True"}]`)
			looked := func(times int) {
				t.Helper()
				n.await("the pod's volumes are looked at again", func() bool {
					n.mu.Lock()
					defer n.mu.Unlock()
					return len(slices.DeleteFunc(slices.Clone(n.changed), func(uid string) bool { return uid != "uid-of-one" })) >= times
				})
			}
			looked(1)
			var events []string
			s := n.sources()
			s.Event = func(_ bool, reason, message string) { events = append(events, reason+": "+message) }
			claimed := func() *corev1.PersistentVolumeClaimStatus {
				claim, _ := apitest.Get[*corev1.PersistentVolumeClaim](n.api, "default", "disk")
				return claim.GetStatus()
			}
			update := func(p *corev1.Pod) {
				t.Helper()
				if _, err := n.volumes.Update(n.ctx, p, s); err != nil {
					t.Fatal(err)
				}
			}
			update(pod("reader", ", readOnly: true")) // is not to change anything
			p.expect(p.calls("expand"))
			update(pod("one", ""))
			if len(events) != 1 || !strings.HasPrefix(events[0], "VolumeResizeFailed: ") || !strings.HasSuffix(events[0], "expandvolume command failed, status: Failure, reason: no room") {
				t.Errorf("events %q", events)
			}
			if st := claimed(); st.GetCapacity()["storage"].GetString() != before || len(st.GetConditions()) != 1 {
				t.Errorf("what did not grow: %v", st)
			}
			// It is tried again.
			p.remove("full")
			p.forget()
			looked(2)
			update(pod("one", ""))
			const told = `{"id":"seven","kubernetes.io/fsType":"ext4","kubernetes.io/pvOrVolumeName":"pv","kubernetes.io/readwrite":"rw"}`
			staging := filepath.Join(n.data, "plugins/kubernetes.io/flexvolume/example.com/folders/mounts/pv")
			want := []string{"expandvolume " + told + " " + staging + " " + after + " " + before}
			if c.driver {
				want = append(want, "expandfs "+told+" "+device+" "+staging+" "+after+" "+before)
			}
			p.expect(p.calls("expand"), want...)
			if c.agent {
				tools.expect(tools.calls(), "resize2fs "+device)
				if size := read(t, filepath.Join(tools.dir, "sizes")); size != after+"\n" {
					t.Errorf("the file system was made larger when the device had %s", size)
				}
			} else {
				tools.expect(tools.calls())
			}
			if st := claimed(); st.GetCapacity()["storage"].GetString() != after || len(st.GetConditions()) != 0 || len(st.GetAllocatedResourceStatuses()) != 0 {
				t.Errorf("claim %v", st)
			}
			if !slices.ContainsFunc(events, func(e string) bool { return strings.HasPrefix(e, "FileSystemResizeSuccessful: ") }) {
				t.Errorf("events %q", events)
			}
			// It is done once.
			update(pod("one", ""))
			p.expect(p.calls("expand"), want...)
			for _, uid := range []string{"uid-of-one", "uid-of-reader"} {
				if err := n.volumes.Remove(n.ctx, uid); err != nil {
					t.Fatal(err)
				}
			}
			n.nothingMounted()
		})
	}
}
