//go:build e2e

package volume_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dhow.dev/services/node-agent/internal/podtest"
)

// newFabric makes a node whose Fibre Channel network has a disk under a name.
func newFabric(t *testing.T, device, link string) (*node, *programs) {
	t.Helper()
	p := newPrograms(t, map[string]string{"multipath": "exit 0\n", "blockdev": "exit 0\n"})
	p.write("sys/class/scsi_host/host0/scan", "", 0o644)
	p.write("sys/block/"+filepath.Base(device)+"/device/delete", "", 0o644)
	link = filepath.Join(p.dir, "dev/disk", link)
	if err := os.MkdirAll(filepath.Dir(link), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(device, link); err != nil {
		t.Fatal(err)
	}
	return newNode(t, p.machine), p
}

func TestFibreChannelDisks(t *testing.T) {
	device := loopDevice(t)
	n, p := newFabric(t, device, "by-path/pci-0000:41:00.0-fc-0x500a0981891b8dc5-lun-2")
	n.persistent("disk", "Filesystem", `, mountOptions: [noatime], fc: {targetWWNs: [500a0982991b8dc5, 500a0981891b8dc5], lun: 2}`)
	paths, err := n.volumes.Setup(n.ctx, claimPod(t, "one", "disk"), n.sources())
	if err != nil {
		t.Fatal(err)
	}
	target := filepath.Join(n.data, "pods/uid-of-one/volumes/kubernetes.io~fc/pv-disk")
	if paths["v"] != target {
		t.Errorf("it is at %s, want %s", paths["v"], target)
	}
	staging := filepath.Join(n.data, "plugins/kubernetes.io/fc/500a0982991b8dc5-500a0981891b8dc5-lun-2")
	for _, path := range []string{target, staging} {
		if lines := mountsAt(t, path); len(lines) != 1 || !strings.Contains(lines[0], " - ext4 "+device+" ") || !strings.Contains(lines[0], "noatime") {
			t.Errorf("mounted at %s: %q", path, lines)
		}
	}
	if got := p.told("class/scsi_host/host0/scan"); got != "- - -" {
		t.Errorf("new paths were not looked for: %q", got)
	}
	if err := os.WriteFile(filepath.Join(target, "file"), []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
	own := podtest.Pod(t, `{metadata: {name: two, uid: uid-of-two}, spec: {volumes: [{name: v, fc: {targetWWNs: [500a0982991b8dc5, 500a0981891b8dc5], lun: 2, readOnly: true}}]}}`)
	if paths, err = n.volumes.Setup(n.ctx, own, n.sources()); err != nil {
		t.Fatal(err)
	}
	if got := read(t, filepath.Join(paths["v"], "file")); got != "kept" {
		t.Errorf("the second pod finds %q", got)
	}
	if err := os.WriteFile(filepath.Join(paths["v"], "other"), nil, 0o600); err == nil {
		t.Error("a disk that is to be read was written to")
	}
	n.stop()
	n.start()
	if err := n.volumes.Remove(n.ctx, "uid-of-one"); err != nil {
		t.Fatal(err)
	}
	removed := "block/" + filepath.Base(device) + "/device/delete"
	if got := p.told(removed); got != "" {
		t.Error("the disk was removed while a pod has it")
	}
	if err := n.volumes.Remove(n.ctx, "uid-of-two"); err != nil {
		t.Fatal(err)
	}
	if got := p.told(removed); got != "1" {
		t.Errorf("the disk was not removed after its last pod: %q", got)
	}
	p.expect(p.calls(), "blockdev --flushbufs "+filepath.Join(p.dir, "dev", filepath.Base(device)))
	n.nothingMounted()
	if _, err := os.Stat(staging); !os.IsNotExist(err) {
		t.Errorf("left: %v", err)
	}
}

func TestFibreChannelDisksByTheirNames(t *testing.T) {
	device := loopDevice(t)
	n, p := newFabric(t, device, "by-id/scsi-3600_VENDOR_disk")
	joint := filepath.Join(p.dir, "dev/dm-3")
	if err := os.Symlink(device, joint); err != nil {
		t.Fatal(err)
	}
	p.write("sys/block/dm-3/slaves/"+filepath.Base(device), "", 0o644)
	n.persistent("raw", "Block", `, fc: {wwids: ["3600 VENDOR disk"]}`)
	block := podtest.Pod(t, `{metadata: {name: raw, uid: uid-of-raw}, spec: {containers: [{name: c, volumeDevices: [{name: v, devicePath: /dev/raw}]}], volumes: [{name: v, persistentVolumeClaim: {claimName: raw}}]}}`)
	paths, err := n.volumes.Setup(n.ctx, block, n.sources())
	if err != nil {
		t.Fatal(err)
	}
	if paths["v"] != joint {
		t.Errorf("the device is %s, want %s", paths["v"], joint)
	}
	n.stop()
	n.start()
	if err := n.volumes.Remove(n.ctx, "uid-of-raw"); err != nil {
		t.Fatal(err)
	}
	p.expect(p.calls(), "multipath -f "+joint, "blockdev --flushbufs "+filepath.Join(p.dir, "dev", filepath.Base(device)))
	if got := p.told("block/" + filepath.Base(device) + "/device/delete"); got != "1" {
		t.Errorf("the device was not removed: %q", got)
	}
	n.nothingMounted()
	// A machine that was started again may have given the name to another disk.
	if _, err := n.volumes.Setup(n.ctx, block, n.sources()); err != nil {
		t.Fatal(err)
	}
	record := filepath.Join(n.data, "pods/uid-of-raw/volume-records/fc~pv-raw.json")
	text := read(t, record)
	at := strings.Index(text, `"boot":"`) + len(`"boot":"`)
	writeFile(t, record, text[:at]+"another"+text[at:])
	p.forget()
	if err := n.volumes.Remove(n.ctx, "uid-of-raw"); err != nil {
		t.Fatal(err)
	}
	p.expect(p.calls())
}
