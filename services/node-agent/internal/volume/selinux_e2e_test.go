//go:build e2e

package volume_test

import (
	"path/filepath"
	"strings"
	"testing"

	k8sstoragev1 "k8s.io/api/storage/v1"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	storagev1 "dhow.dev/gen/go/dhow/storage/v1"
	"dhow.dev/services/node-agent/internal/apitest"
	"dhow.dev/services/node-agent/internal/podtest"
)

// contextMount takes from the options what a kernel without SELinux does not know.
const contextMount = `
for argument; do
  shift
  set -- "$@" "$(printf '%s' "$argument" | sed 's/context="[^"]*",\?//')"
done
exec $REAL "$@"
`

// enforcing has a node believe that its machine has SELinux.
func (p *programs) enforcing(n *node) {
	p.write("sys/fs/selinux/enforce", "1", 0o644)
	p.write("etc/selinux/config", "# comment\nSELINUX=enforcing\nSELINUXTYPE=targeted\n", 0o644)
	p.write("etc/selinux/targeted/contexts/lxc_contexts", "process = \"system_u:system_r:container_t:s0\"\nfile = \"system_u:object_r:container_file_t:s0\"\n", 0o644)
	p.machine(n)
	n.machine.Etc = filepath.Join(p.dir, "etc")
}

// modes sets the access modes of a claim's volume.
func (n *node) modes(claim string, modes ...string) {
	n.t.Helper()
	v, ok := apitest.Get[*corev1.PersistentVolume](n.api, "", "pv-"+claim)
	if !ok {
		n.t.Fatal("no volume of " + claim)
	}
	v.GetSpec().SetAccessModes(modes)
	n.api.Put(v)
}

// labelledPod uses a claim with a security context of the pod's, in flow style.
func labelledPod(t *testing.T, name, security, container string) *corev1.Pod {
	t.Helper()
	return podtest.Pod(t, `{metadata: {name: `+name+`, uid: uid-of-`+name+`}, spec: {securityContext: {`+security+`}, volumes: [{name: v, persistentVolumeClaim: {claimName: disk}}],
  containers: [{name: a, volumeMounts: [{name: v, mountPath: /v}]}, {name: b, volumeMounts: [{name: v, mountPath: /v}], securityContext: {`+container+`}}, {name: c, securityContext: {seLinuxOptions: {level: "s0:c9"}}}]}}`)
}

func TestDisksAreMountedWithLabels(t *testing.T) {
	p := newPrograms(t, map[string]string{"iscsiadm": initiator, "multipath": "exit 0\n", "mount": contextMount})
	p.write("luns", "1 "+loopDevice(t)+"\n", 0o644)
	n := newNode(t, p.enforcing)
	n.persistent("disk", "Filesystem", `, mountOptions: [noatime], iscsi: {targetPortal: 192.0.2.1, iqn: "`+targetName+`", lun: 1}`)
	const (
		one = `seLinuxOptions: {level: "s0:c1,c2"}`
		two = `seLinuxOptions: {level: "s0:c3", user: admin_u, type: container_t}`
	)
	for _, c := range []struct {
		what, security, container string
		modes                     []string
		// context is what it is mounted with; relabels what the runtime is asked.
		context  string
		relabels bool
		failure  string
	}{
		{what: "a volume of one pod", security: one, modes: []string{"ReadWriteOncePod"}, context: "system_u:object_r:container_file_t:s0:c1,c2"},
		{what: "a user of its own", security: two, modes: []string{"ReadWriteOncePod"}, context: "admin_u:object_r:container_file_t:s0:c3"},
		{what: "the policy MountOption", security: one + ", seLinuxChangePolicy: MountOption", modes: []string{"ReadWriteOncePod"}, context: "system_u:object_r:container_file_t:s0:c1,c2"},
		{what: "the policy Recursive", security: one + ", seLinuxChangePolicy: Recursive", modes: []string{"ReadWriteOncePod"}, relabels: true},
		{what: "a volume of several pods", security: one, modes: []string{"ReadWriteOnce"}, relabels: true},
		{what: "a volume of one or several pods", security: one, modes: []string{"ReadWriteOnce", "ReadWriteOncePod"}, relabels: true},
		{what: "no label", modes: []string{"ReadWriteOncePod"}, relabels: true},
		{what: "no level", security: "seLinuxOptions: {type: spc_t}", modes: []string{"ReadWriteOncePod"}, relabels: true},
		{what: "labels of containers", security: one, container: `seLinuxOptions: {level: "s0:c4"}`, modes: []string{"ReadWriteOncePod"},
			failure: "multiple SELinux labels found: system_u:object_r:container_file_t:s0:c1,c2,system_u:object_r:container_file_t:s0:c4"},
	} {
		n.modes("disk", c.modes...)
		p.forget()
		_, err := n.volumes.Setup(n.ctx, labelledPod(t, "p", c.security, c.container), n.sources())
		if c.failure != "" {
			if err == nil || !strings.Contains(err.Error(), c.failure) {
				t.Errorf("%s: %v", c.what, err)
			}
			continue
		}
		if err != nil {
			t.Fatalf("%s: %v", c.what, err)
		}
		options := "noatime,defaults"
		if c.context != "" {
			options = `context="` + c.context + `",` + options
		}
		if calls := p.calls("mount -t ext4"); len(calls) != 1 || !strings.HasPrefix(calls[0], "mount -t ext4 -o "+options+" ") {
			t.Errorf("%s: %q, want options %s", c.what, calls, options)
		}
		if got := n.volumes.Relabels("uid-of-p", "v"); got != c.relabels {
			t.Errorf("%s: relabelled: %v", c.what, got)
		}
		if err := n.volumes.Remove(n.ctx, "uid-of-p"); err != nil {
			t.Fatal(err)
		}
	}
	// A pod with another label waits for the first to end, over a restart of the agent, too.
	n.modes("disk", "ReadWriteOncePod")
	if _, err := n.volumes.Setup(n.ctx, labelledPod(t, "one", one, ""), n.sources()); err != nil {
		t.Fatal(err)
	}
	n.stop()
	n.start()
	const conflict = `conflicting SELinux labels of volume pv-disk: "system_u:object_r:container_file_t:s0:c1,c2" and "admin_u:object_r:container_file_t:s0:c3": waiting for unmount`
	if _, err := n.volumes.Setup(n.ctx, labelledPod(t, "two", two, ""), n.sources()); err == nil || !strings.Contains(err.Error(), conflict) {
		t.Errorf("another label beside the first: %v", err)
	}
	if _, err := n.volumes.Setup(n.ctx, labelledPod(t, "three", one, ""), n.sources()); err == nil || !strings.Contains(err.Error(), "already in use by another pod") {
		t.Errorf("the same label beside the first: %v", err)
	}
	for _, uid := range []string{"uid-of-one", "uid-of-three"} {
		if err := n.volumes.Remove(n.ctx, uid); err != nil {
			t.Fatal(err)
		}
	}
	p.forget()
	if _, err := n.volumes.Setup(n.ctx, labelledPod(t, "two", two, ""), n.sources()); err != nil {
		t.Fatal(err)
	}
	if calls := p.calls("mount -t ext4"); len(calls) != 1 || !strings.Contains(calls[0], "admin_u:") {
		t.Errorf("after the first: %q", calls)
	}
	if err := n.volumes.Remove(n.ctx, "uid-of-two"); err != nil {
		t.Fatal(err)
	}
	n.nothingMounted()
}

func TestDriversMountWithLabels(t *testing.T) {
	p := &programs{t: t, dir: t.TempDir()}
	n := newNode(t, p.enforcing)
	n.drive()
	n.persistent("disk", "Filesystem", `, mountOptions: [noatime], csi: {driver: folders.dhow.test, volumeHandle: v1}`)
	n.modes("disk", "ReadWriteOncePod")
	for _, name := range []string{"v1"} {
		writeFile(t, filepath.Join(n.root, "volumes", name, "file"), "kept")
	}
	flags := func() []string {
		var all []string
		for line := range strings.Lines(read(t, filepath.Join(n.root, "calls"))) {
			if strings.Contains(line, "NodeStageVolume") || strings.Contains(line, "NodePublishVolume") {
				all = append(all, line)
			}
		}
		return all
	}
	const context = `"noatime","context=\"system_u:object_r:container_file_t:s0:c1,c2\""`
	for _, mounts := range []string{"false", "true"} {
		put[*storagev1.CSIDriver](n, &k8sstoragev1.CSIDriver{}, `{metadata: {name: folders.dhow.test}, spec: {attachRequired: false, seLinuxMount: `+mounts+`}}`)
		before := len(flags())
		if _, err := n.volumes.Setup(n.ctx, labelledPod(t, "one", `seLinuxOptions: {level: "s0:c1,c2"}`, ""), n.sources()); err != nil {
			t.Fatal(err)
		}
		calls := flags()[before:]
		if len(calls) != 2 {
			t.Fatalf("calls %q", calls)
		}
		for _, call := range calls {
			if got := strings.Contains(call, context); got != (mounts == "true") {
				t.Errorf("seLinuxMount %s: %s", mounts, call)
			}
		}
		// A kernel without SELinux has no file system with labels for the runtime to set.
		if n.volumes.Relabels("uid-of-one", "v") {
			t.Error("a mount without labels is to be labelled")
		}
		if mounts == "true" {
			if text := read(t, filepath.Join(n.data, "pods/uid-of-one/volumes/kubernetes.io~csi/pv-disk/vol_data.json")); !strings.Contains(text, `"seLinuxMountContext":"system_u:object_r:container_file_t:s0:c1,c2"`) {
				t.Errorf("the record is %s", text)
			}
			if _, err := n.volumes.Setup(n.ctx, labelledPod(t, "two", `seLinuxOptions: {level: "s0:c3"}`, ""), n.sources()); err == nil || !strings.Contains(err.Error(), "conflicting SELinux labels of volume pv-disk") {
				t.Errorf("another label beside the first: %v", err)
			}
			if err := n.volumes.Remove(n.ctx, "uid-of-two"); err != nil {
				t.Fatal(err)
			}
		}
		if err := n.volumes.Remove(n.ctx, "uid-of-one"); err != nil {
			t.Fatal(err)
		}
	}
	n.nothingMounted()
}

// TestWhatTheRuntimeLabels: what the agent makes for a pod, and not what is the machine's or a server's.
func TestWhatTheRuntimeLabels(t *testing.T) {
	p := newPrograms(t, map[string]string{"mount": shareMount, "umount": shareUnmount})
	writeFile(t, filepath.Join(p.dir, "exports/data/file"), "kept")
	for _, enforcing := range []bool{true, false} {
		n := newNode(t, func(n *node) {
			if enforcing {
				p.enforcing(n)
			}
		})
		n.persistent("folder", "Filesystem", `, local: {path: `+n.data+`}`)
		pod := podtest.Pod(t, `{metadata: {name: p, uid: uid-of-p}, spec: {volumes: [{name: empty, emptyDir: {}}, {name: config, configMap: {name: none, optional: true}}, {name: host, hostPath: {path: /}},
  {name: share, nfs: {server: store, path: /data}}, {name: local, persistentVolumeClaim: {claimName: folder}}, {name: reads, persistentVolumeClaim: {claimName: folder, readOnly: true}}]}}`)
		if _, err := n.volumes.Setup(n.ctx, pod, n.sources()); err != nil {
			t.Fatal(err)
		}
		for volume, want := range map[string]bool{"empty": true, "config": true, "local": true, "host": false, "share": false, "reads": false} {
			if got := n.volumes.Relabels("uid-of-p", volume); got != (want && enforcing) {
				t.Errorf("SELinux %v, volume %s: %v", enforcing, volume, got)
			}
		}
		if err := n.volumes.Remove(n.ctx, "uid-of-p"); err != nil {
			t.Fatal(err)
		}
		n.nothingMounted()
	}
}
