//go:build e2e

package volume_test

import (
	"context"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/services/node-agent/internal/podtest"
	"dhow.dev/services/node-agent/internal/volume"
)

// attaching does what the controller does with disks that no driver attaches: the node gets those that it says it uses.
func (n *node) attaching(volumes *volume.Manager, inUse <-chan struct{}) func(context.Context) error {
	return func(ctx context.Context) error {
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-inUse:
			}
			names := slices.DeleteFunc(slices.Clone(volumes.InUse()), func(name string) bool { return strings.HasPrefix(name, "kubernetes.io/csi/") })
			if !n.held.Load() && len(names) > 0 {
				volumes.Node(nodeWith(names, names))
			}
		}
	}
}

// nodeWith is a node with volumes that are attached to it and that it is said to use.
func nodeWith(attached, inUse []string) *corev1.Node {
	status := corev1.NodeStatus_builder{VolumesInUse: inUse}.Build()
	for _, name := range attached {
		status.SetVolumesAttached(append(status.GetVolumesAttached(), corev1.AttachedVolume_builder{Name: proto.String(name), DevicePath: proto.String("")}.Build()))
	}
	return corev1.Node_builder{Status: status}.Build()
}

func TestADiskIsNotTouchedBeforeTheNodeHasIt(t *testing.T) {
	n, p := newTarget(t, loopDevice(t))
	n.held.Store(true)
	n.persistent("disk", "Filesystem", `, iscsi: {targetPortal: 192.0.2.1, iqn: "`+targetName+`", lun: 1}`)
	const unique = "kubernetes.io/iscsi/192.0.2.1:" + targetName + ":1"
	inUse := func(want ...string) func() bool {
		return func() bool { return slices.Equal(n.volumes.InUse(), want) }
	}
	setup := func(pod *corev1.Pod) <-chan error {
		done := make(chan error, 1)
		go func() {
			_, err := n.volumes.Setup(n.ctx, pod, n.sources())
			done <- err
		}()
		return done
	}
	one := setup(claimPod(t, "one", "disk"))
	n.await("the disk is said to be in use", inUse(unique))
	untouched := func(when string) {
		t.Helper()
		select {
		case err := <-one:
			t.Fatalf("%s: set up: %v", when, err)
		default:
		}
		p.expect(p.calls("iscsiadm"))
	}
	untouched("not attached")
	// Attached in a version of the Node in which it is not in use yet: the controller may just be taking it away.
	n.volumes.Node(nodeWith([]string{unique}, nil))
	untouched("not reported")
	n.volumes.Node(nodeWith(nil, []string{unique}))
	untouched("reported, not attached")
	n.volumes.Node(nodeWith([]string{unique}, []string{unique}))
	if err := <-one; err != nil {
		t.Fatal(err)
	}
	target := filepath.Join(n.data, "pods/uid-of-one/volumes/kubernetes.io~iscsi/pv-disk")
	if len(mountsAt(t, target)) != 1 {
		t.Error("not mounted")
	}

	// It is in use until its last pod is down, also for an agent that knows nothing but the disk. What stands needs no leave again.
	n.stop()
	n.start()
	n.await("the disk is still in use", inUse(unique))
	if _, err := n.volumes.Setup(n.ctx, claimPod(t, "one", "disk"), n.sources()); err != nil {
		t.Fatal(err)
	}
	own := podtest.Pod(t, `{metadata: {name: two, uid: uid-of-two}, spec: {volumes: [{name: v, iscsi: {targetPortal: 192.0.2.1, iqn: "`+targetName+`", lun: 1}}]}}`)
	n.volumes.Node(nodeWith([]string{unique}, []string{unique}))
	if err := <-setup(own); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		uid  string
		left []string
	}{{"uid-of-one", []string{unique}}, {"uid-of-two", nil}} {
		if err := n.volumes.Remove(n.ctx, step.uid); err != nil {
			t.Fatal(err)
		}
		if got := n.volumes.InUse(); !slices.Equal(got, step.left) {
			t.Errorf("in use after %s: %v, want %v", step.uid, got, step.left)
		}
	}
	n.nothingMounted()

	// The Node as the agent last saw it said so of the use before: for the next one it has to say so again.
	one = setup(claimPod(t, "three", "disk"))
	n.await("the disk is said to be in use again", inUse(unique))
	p.forget()
	untouched("used again")
	n.volumes.Node(nodeWith([]string{unique}, []string{unique}))
	if err := <-one; err != nil {
		t.Fatal(err)
	}
	if err := n.volumes.Remove(n.ctx, "uid-of-three"); err != nil {
		t.Fatal(err)
	}
}

// A pod that ends while it waits has used nothing.
func TestADiskThatIsNeverAttached(t *testing.T) {
	n, p := newFabric(t, loopDevice(t), "by-id/scsi-3600_disk")
	n.held.Store(true)
	for _, c := range []struct{ source, unique string }{
		{`{wwids: ["3600 disk", "3601"]}`, "kubernetes.io/fc/[3600 disk 3601]"},
		{`{targetWWNs: [500a0982991b8dc5, 500a0981891b8dc5], lun: 2, wwids: [x]}`, "kubernetes.io/fc/[500a0982991b8dc5 500a0981891b8dc5]:2"},
	} {
		pod := podtest.Pod(t, `{metadata: {name: one, uid: uid-of-one}, spec: {volumes: [{name: v, fc: `+c.source+`}]}}`)
		ctx, cancel := context.WithCancel(n.ctx)
		done := make(chan error, 1)
		go func() {
			_, err := n.volumes.Setup(ctx, pod, n.sources())
			done <- err
		}()
		n.await("the disk is said to be in use", func() bool { return slices.Equal(n.volumes.InUse(), []string{c.unique}) })
		cancel()
		if err := <-done; err == nil || !strings.Contains(err.Error(), "volume is not attached to the node yet") {
			t.Errorf("ended with %v", err)
		}
		if err := n.volumes.Remove(n.ctx, "uid-of-one"); err != nil {
			t.Fatal(err)
		}
		if got := n.volumes.InUse(); len(got) != 0 {
			t.Errorf("in use: %v", got)
		}
	}
	p.expect(p.calls())
	if got := p.told("class/scsi_host/host0/scan"); got != "" {
		t.Errorf("looked for disks: %q", got)
	}
}
