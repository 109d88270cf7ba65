//go:build e2e

package volume_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	k8scorev1 "k8s.io/api/core/v1"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/services/node-agent/internal/podtest"
)

// initiator stands in for iscsiadm and the kernel: a session is a folder of the kernel's, in which the target's disks (devices, by their numbers in $DIR/luns) appear
// with their names. Portals that are named in $DIR/down do not answer.
const initiator = `
for last; do :; done
while [ $# -gt 0 ]; do
  case "$1" in
    -m) mode=$2; shift;; -p) portal=$2; shift;; -T) iqn=$2; shift;; -o) operation=$2; shift;; -I) iface=$2; shift;; -n) key=$2; shift;; -v|-t) shift;; *) operation=$1;;
  esac
  shift
done
number() { echo "$1" | cksum | cut -d' ' -f1; }
case "$mode $operation" in
  "iface show") printf '# BEGIN RECORD\niface.iscsi_ifacename = %s\niface.net_ifacename = <empty>\niface.hwaddress = 52:54:00:12:34:56\niface.transport_name = %s\niface.initiatorname = <empty>\n' "$iface" "${TRANSPORT:-tcp}";;
  "discoverydb --discover") grep -qxF "$portal" $DIR/down 2>/dev/null && { echo "iscsiadm: cannot make connection to $portal" >&2; exit 21; }; exit 0;;
  "node --login")
    host=$(number "$portal")
    session=$DIR/sys/devices/host$host/session$host
    mkdir -p $session/iscsi_session/session$host $session/connection$host:0/iscsi_connection/connection$host:0 $DIR/sys/class/iscsi_host/host$host $DIR/sys/class/scsi_host/host$host
    echo "$iqn" > $session/iscsi_session/session$host/targetname
    connection=$session/connection$host:0/iscsi_connection/connection$host:0
    port=${portal##*:}; address=${portal%:*}; address=${address#[}; address=${address%]}
    for prefix in "" persistent_; do echo "$address" > $connection/${prefix}address; echo "$port" > $connection/${prefix}port; done
    ln -s $DIR/sys/devices/host$host $DIR/sys/class/iscsi_host/host$host/device
    : > $DIR/sys/class/scsi_host/host$host/scan
    mkdir -p $DIR/dev/disk/by-path
    while read lun device; do
      mkdir -p $session/target$host:0:0/$host:0:0:$lun/block/$(basename $device)
      ln -sf $device "$DIR/dev/disk/by-path/${PREFIX}ip-$address:$port-iscsi-$iqn-lun-$lun"
    done < $DIR/luns;;
  "node --logout")
    host=$(number "$portal")
    [ -d $DIR/sys/class/iscsi_host/host$host ] || exit 21
    port=${portal##*:}; address=${portal%:*}; address=${address#[}; address=${address%]}
    rm -r $DIR/sys/class/iscsi_host/host$host $DIR/sys/devices/host$host
    rm -f $DIR/dev/disk/by-path/*ip-$address:$port-iscsi-$iqn-lun-*;;
esac
exit 0
`

const (
	targetName = "iqn.2026-11.test.dhow:store"
	targetPath = "plugins/kubernetes.io/iscsi"
)

// newTarget makes a node that finds the disks of a target.
func newTarget(t *testing.T, devices ...string) (*node, *programs) {
	t.Helper()
	p := newPrograms(t, map[string]string{"iscsiadm": initiator, "multipath": "exit 0\n"})
	var luns strings.Builder
	for i, device := range devices {
		fmt.Fprintln(&luns, i+1, device)
		p.write(filepath.Join("sys/block", filepath.Base(device), "device/delete"), "", 0o644)
	}
	p.write("luns", luns.String(), 0o644)
	return newNode(t, p.machine), p
}

// machine has a node find its devices among those of the programs.
func (p *programs) machine(n *node) {
	n.machine.Dev, n.machine.Sys = filepath.Join(p.dir, "dev"), filepath.Join(p.dir, "sys")
}

// told returns what was written to a file of the kernel's.
func (p *programs) told(pattern string) string {
	p.t.Helper()
	files, err := filepath.Glob(filepath.Join(p.dir, "sys", pattern))
	if err != nil || len(files) != 1 {
		p.t.Fatalf("files %v of %s: %v", files, pattern, err)
	}
	return read(p.t, files[0])
}

func claimPod(t *testing.T, name, claim string) *corev1.Pod {
	t.Helper()
	return podtest.Pod(t, `{metadata: {name: `+name+`, uid: uid-of-`+name+`}, spec: {securityContext: {fsGroup: 4000}, volumes: [{name: v, persistentVolumeClaim: {claimName: `+claim+`}}]}}`)
}

func TestISCSIDisks(t *testing.T) {
	one, two := loopDevice(t), loopDevice(t)
	n, p := newTarget(t, one, two)
	n.persistent("disk", "Filesystem", `, mountOptions: [noatime], iscsi: {targetPortal: 192.0.2.1, iqn: "`+targetName+`", lun: 1, fsType: ext3}`)
	n.persistent("raw", "Block", `, iscsi: {targetPortal: "192.0.2.1:3260", iqn: "`+targetName+`", lun: 2, iscsiInterface: default}`)
	paths, err := n.volumes.Setup(n.ctx, claimPod(t, "one", "disk"), n.sources())
	if err != nil {
		t.Fatal(err)
	}
	target := filepath.Join(n.data, "pods/uid-of-one/volumes/kubernetes.io~iscsi/pv-disk")
	if paths["v"] != target {
		t.Errorf("it is at %s, want %s", paths["v"], target)
	}
	if lines := mountsAt(t, target); len(lines) != 1 || !strings.Contains(lines[0], " - ext3 "+one+" ") || !strings.Contains(lines[0], "noatime") {
		t.Errorf("mounted: %q", lines)
	}
	staging := filepath.Join(n.data, targetPath, "iface-default/192.0.2.1:3260-"+targetName+"-lun-1")
	if lines := mountsAt(t, staging); len(lines) != 1 {
		t.Errorf("staged: %q", lines)
	}
	if info, err := os.Stat(target); err != nil || info.Sys().(*syscall.Stat_t).Gid != 4000 {
		t.Errorf("it is not the fsGroup's: %v, %v", info, err)
	}
	const (
		discovery = "iscsiadm -m discoverydb -t sendtargets -p 192.0.2.1:3260 -I default "
		session   = "iscsiadm -m node -p 192.0.2.1:3260 -T " + targetName
	)
	p.expect(p.calls("iscsiadm"), "iscsiadm -m iface -I default -o show", discovery+"-o new", discovery+"--discover", session+" -I default -o update -n node.session.scan -v manual",
		session+" -I default --login", session+" -o update -n node.startup -v manual")
	if got := p.told("class/scsi_host/host*/scan"); got != "0 0 1" {
		t.Errorf("looked for %q", got)
	}
	if err := os.WriteFile(filepath.Join(target, "file"), []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
	// Another disk of the target is used beside it, as a device, without another session.
	p.forget()
	block := podtest.Pod(t, `{metadata: {name: raw, uid: uid-of-raw}, spec: {containers: [{name: c, volumeDevices: [{name: v, devicePath: /dev/raw}]}], volumes: [{name: v, persistentVolumeClaim: {claimName: raw}}]}}`)
	if paths, err = n.volumes.Setup(n.ctx, block, n.sources()); err != nil {
		t.Fatal(err)
	}
	if paths["v"] != two {
		t.Errorf("the device is %s, want %s", paths["v"], two)
	}
	p.expect(p.calls("iscsiadm"), "iscsiadm -m iface -I default -o show")
	// And the first by another pod.
	if paths, err = n.volumes.Setup(n.ctx, claimPod(t, "two", "disk"), n.sources()); err != nil {
		t.Fatal(err)
	}
	if got := read(t, filepath.Join(paths["v"], "file")); got != "kept" {
		t.Errorf("the second pod finds %q", got)
	}
	// Another agent takes it all down: the disk with its last pod, the session with the last disk.
	n.stop()
	n.start()
	p.forget()
	if _, err := n.volumes.Setup(n.ctx, claimPod(t, "two", "disk"), n.sources()); err != nil {
		t.Fatal(err)
	}
	if _, err := n.volumes.Setup(n.ctx, block, n.sources()); err != nil {
		t.Fatal(err)
	}
	if err := n.volumes.Remove(n.ctx, "uid-of-one"); err != nil {
		t.Fatal(err)
	}
	if got := p.told("block/" + filepath.Base(one) + "/device/delete"); got != "" {
		t.Errorf("the disk was removed while a pod has it")
	}
	if err := n.volumes.Remove(n.ctx, "uid-of-two"); err != nil {
		t.Fatal(err)
	}
	if got := p.told("block/" + filepath.Base(one) + "/device/delete"); got != "1" {
		t.Errorf("the disk was not removed after its last pod: %q", got)
	}
	p.expect(p.calls("iscsiadm"))
	if err := n.volumes.Remove(n.ctx, "uid-of-raw"); err != nil {
		t.Fatal(err)
	}
	p.expect(p.calls("iscsiadm"), session+" --logout -I default", session+" -o delete -I default")
	if got := p.told("block/" + filepath.Base(two) + "/device/delete"); got != "1" {
		t.Errorf("the device was not removed: %q", got)
	}
	n.nothingMounted()
	if _, err := os.Stat(staging); !os.IsNotExist(err) {
		t.Errorf("left: %v", err)
	}
	// The next pod finds what the first has written: it is not formatted again.
	if paths, err = n.volumes.Setup(n.ctx, claimPod(t, "three", "disk"), n.sources()); err != nil {
		t.Fatal(err)
	}
	if got := read(t, filepath.Join(paths["v"], "file")); got != "kept" {
		t.Errorf("the next pod finds %q", got)
	}
	if err := n.volumes.Remove(n.ctx, "uid-of-three"); err != nil {
		t.Fatal(err)
	}
	n.nothingMounted()
}

func TestISCSIWithCredentialsAndANameOfItsOwn(t *testing.T) {
	n, p := newTarget(t, loopDevice(t))
	put[*corev1.Secret](n, &k8scorev1.Secret{}, `{metadata: {name: chap, namespace: default}, type: kubernetes.io/iscsi-chap, data: {discovery.sendtargets.auth.username: Zmlu, discovery.sendtargets.auth.password: ZmluZHM=,
  node.session.auth.username: bG9n, node.session.auth.password: bG9ncw==, node.session.auth.username_in: dGFy, node.session.auth.password_in: c2VlZHM=}}`)
	pod := podtest.Pod(t, `{metadata: {name: p, uid: uid-of-p, namespace: default}, spec: {volumes: [{name: v, iscsi: {targetPortal: "fd00::1", iqn: "`+targetName+`", lun: 1, chapAuthDiscovery: true, chapAuthSession: true,
  initiatorName: "iqn.2026-11.test.dhow:me", secretRef: {name: chap}}}]}}`)
	paths, err := n.volumes.Setup(n.ctx, pod, n.sources())
	if err != nil {
		t.Fatal(err)
	}
	if lines := mountsAt(t, paths["v"]); len(lines) != 1 || !strings.Contains(lines[0], " - ext4 ") {
		t.Errorf("mounted: %q", lines)
	}
	const (
		portal    = "[fd00::1]:3260"
		iface     = "iscsiadm -m iface -I " + portal + ":v -o "
		discovery = "iscsiadm -m discoverydb -t sendtargets -p " + portal + " -I " + portal + ":v "
		session   = "iscsiadm -m node -p " + portal + " -T " + targetName
		through   = session + " -I " + portal + ":v "
	)
	p.expect(p.calls("iscsiadm"), "iscsiadm -m iface -I default -o show", iface+"new", iface+"update -n iface.hwaddress -v 52:54:00:12:34:56", iface+"update -n iface.initiatorname -v iqn.2026-11.test.dhow:me",
		iface+"update -n iface.transport_name -v tcp",
		discovery+"-o new", discovery+"-o update -n discovery.sendtargets.auth.authmethod -v CHAP", discovery+"-o update -n discovery.sendtargets.auth.username -v fin",
		discovery+"-o update -n discovery.sendtargets.auth.password -v finds", discovery+"--discover", through+"-o update -n node.session.scan -v manual",
		through+"-o update -n node.session.auth.authmethod -v CHAP", through+"-o update -n node.session.auth.username -v log", through+"-o update -n node.session.auth.password -v logs",
		through+"-o update -n node.session.auth.username_in -v tar", through+"-o update -n node.session.auth.password_in -v seeds", through+"--login",
		session+" -o update -n node.startup -v manual")
	// Credentials are not kept.
	for _, word := range []string{"finds", "logs", "seeds"} {
		if text := read(t, filepath.Join(n.data, "pods/uid-of-p/volume-records/iscsi~v.json")); strings.Contains(text, word) {
			t.Errorf("the record has %s: %s", word, text)
		}
	}
	p.forget()
	if err := n.volumes.Remove(n.ctx, "uid-of-p"); err != nil {
		t.Fatal(err)
	}
	p.expect(p.calls("iscsiadm"), session+" --logout -I "+portal+":v", session+" -o delete -I "+portal+":v", iface+"delete")
	n.nothingMounted()
}

func TestISCSIOverSeveralPaths(t *testing.T) {
	device := loopDevice(t)
	n, p := newTarget(t, device)
	// The kernel joins the paths of the disk; the third portal is down.
	joint := filepath.Join(p.dir, "dev/dm-7")
	if err := os.MkdirAll(filepath.Dir(joint), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(device, joint); err != nil {
		t.Fatal(err)
	}
	p.write("sys/block/dm-7/slaves/"+filepath.Base(device), "", 0o644)
	p.write("down", "192.0.2.3:3261\n", 0o644)
	n.persistent("disk", "Filesystem", `, iscsi: {targetPortal: 192.0.2.1, portals: [192.0.2.2, "192.0.2.3:3261"], iqn: "`+targetName+`", lun: 1}`)
	paths, err := n.volumes.Setup(n.ctx, claimPod(t, "one", "disk"), n.sources())
	if err != nil {
		t.Fatal(err)
	}
	if lines := mountsAt(t, paths["v"]); len(lines) != 1 || !strings.Contains(lines[0], " - ext4 ") {
		t.Errorf("mounted: %q", lines)
	}
	if text := read(t, filepath.Join(n.data, "pods/uid-of-one/volume-records/iscsi~pv-disk.json")); !strings.Contains(text, `"device":"`+joint+`"`) {
		t.Errorf("not mounted through all paths: %s", text)
	}
	// Two paths are enough after the third was tried twice.
	if calls := p.calls("iscsiadm -m discoverydb -t sendtargets -p 192.0.2.3:3261 -I default --discover"); len(calls) != 2 {
		t.Errorf("calls %q", calls)
	}
	p.forget()
	if err := n.volumes.Remove(n.ctx, "uid-of-one"); err != nil {
		t.Fatal(err)
	}
	session := func(portal, what string) string {
		return "iscsiadm -m node -p " + portal + " -T " + targetName + " " + what + " -I default"
	}
	p.expect(p.calls("multipath", "iscsiadm"), "multipath -f "+joint, session("192.0.2.1:3260", "--logout"), session("192.0.2.1:3260", "-o delete"),
		session("192.0.2.2:3260", "--logout"), session("192.0.2.2:3260", "-o delete"), session("192.0.2.3:3261", "--logout"), session("192.0.2.3:3261", "-o delete"))
	n.nothingMounted()
}

// TestISCSIByAnAdapter: an adapter with a transport of its own, whose address is part of the device's name.
func TestISCSIByAnAdapter(t *testing.T) {
	t.Setenv("TRANSPORT", "bnx2i")
	t.Setenv("PREFIX", "pci-0000:04:00.0-")
	device := loopDevice(t)
	n, p := newTarget(t, device)
	pod := podtest.Pod(t, `{metadata: {name: p, uid: uid-of-p}, spec: {volumes: [{name: v, iscsi: {targetPortal: "store.test:3261", iqn: "`+targetName+`", lun: 1, iscsiInterface: bnx2i.00, readOnly: false}}]}}`)
	paths, err := n.volumes.Setup(n.ctx, pod, n.sources())
	if err != nil {
		t.Fatal(err)
	}
	if lines := mountsAt(t, paths["v"]); len(lines) != 1 || !strings.Contains(lines[0], " - ext4 "+device+" ") {
		t.Errorf("mounted: %q", lines)
	}
	if calls := p.calls("iscsiadm -m node -p store.test:3261 -T " + targetName + " -I bnx2i.00 --login"); len(calls) != 1 {
		t.Errorf("called: %q", p.calls())
	}
	if err := n.volumes.Remove(n.ctx, "uid-of-p"); err != nil {
		t.Fatal(err)
	}
	n.nothingMounted()
}

func TestVolumesStayInTheirFolders(t *testing.T) {
	n, p := newTarget(t, loopDevice(t))
	for source, want := range map[string]string{
		`iscsi: {targetPortal: 192.0.2.1, iqn: "` + targetName + `", lun: 1, iscsiInterface: "../../../../outside"}`: "cannot be a path",
		`fc: {wwids: ["../../../../outside"]}`:    "cannot be a path",
		`nfs: {server: "-oremount", path: /data}`: "is no server",
	} {
		pod := podtest.Pod(t, `{metadata: {name: p, uid: uid-of-p}, spec: {volumes: [{name: v, `+source+`}]}}`)
		if _, err := n.volumes.Setup(n.ctx, pod, n.sources()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", source, err)
		}
	}
	p.expect(p.calls())
	if err := n.volumes.Remove(n.ctx, "uid-of-p"); err != nil {
		t.Fatal(err)
	}
}

func TestISCSIThatFails(t *testing.T) {
	n, p := newTarget(t)
	p.write("down", "192.0.2.9:3260\n", 0o644)
	pod := podtest.Pod(t, `{metadata: {name: p, uid: uid-of-p}, spec: {volumes: [{name: v, iscsi: {targetPortal: 192.0.2.9, iqn: "`+targetName+`", lun: 1, initiatorName: "iqn.2026-11.test.dhow:me"}}]}}`)
	_, err := n.volumes.Setup(n.ctx, pod, n.sources())
	if err == nil || !strings.Contains(err.Error(), "failed to get any path for iscsi disk") || !strings.Contains(err.Error(), "cannot make connection to 192.0.2.9:3260") {
		t.Errorf("a portal that is down: %v", err)
	}
	if calls := p.calls("iscsiadm"); calls[len(calls)-1] != "iscsiadm -m iface -I 192.0.2.9:3260:v -o delete" {
		t.Errorf("the interface was left: %q", calls)
	}
	if err := n.volumes.Remove(n.ctx, "uid-of-p"); err != nil {
		t.Fatal(err)
	}
	n.nothingMounted()
}
