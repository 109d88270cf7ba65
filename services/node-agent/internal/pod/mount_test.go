package pod

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"testing"

	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/services/node-agent/internal/cri"
	"dhow.dev/services/node-agent/internal/env"
	"dhow.dev/services/node-agent/internal/podtest"
	"dhow.dev/services/node-agent/internal/volume"
)

func TestPartsOfVolumesByVariables(t *testing.T) {
	variables := []env.Variable{{Name: "POD", Value: "web-0"}, {Name: "A", Value: "b"}}
	for expression, want := range map[string]string{"$(POD)": "web-0", "logs/$(POD)/$(A)": "logs/web-0/b", "$$(POD)": "$(POD)", "plain": "plain", "$(POD": "$(POD"} {
		m := &corev1.VolumeMount{}
		m.SetSubPathExpr(expression)
		if got, err := subPath(m, variables); err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", expression, got, err, want)
		}
	}
	missing := &corev1.VolumeMount{}
	missing.SetSubPathExpr("$(POD)/$(NOWHERE)")
	if _, err := subPath(missing, variables); err == nil {
		t.Error("a variable that is not there was taken for a name")
	}
}

// capable is a runtime that only says what it can do.
type capable struct {
	cri.Runtime
	handlers []cri.Handler
}

func (c capable) Status(context.Context) (cri.Status, error) {
	return cri.Status{Handlers: c.handlers}, nil
}

func TestReadOnlyAllTheWayDown(t *testing.T) {
	p := podtest.Pod(t, `{metadata: {name: p}, spec: {volumes: [{name: v, emptyDir: {}}, {name: claim, persistentVolumeClaim: {claimName: c, readOnly: true}}], containers: [{name: c, volumeMounts: [
  {name: v, mountPath: /a}, {name: v, mountPath: /b, readOnly: true, recursiveReadOnly: Enabled}, {name: v, mountPath: /c, readOnly: true, recursiveReadOnly: IfPossible},
  {name: claim, mountPath: /d}]}]}}`)
	for _, can := range []bool{true, false} {
		c := &Config{Runtime: capable{handlers: []cri.Handler{{Name: "other", RecursiveReadOnlyMounts: !can}, {Name: "", RecursiveReadOnlyMounts: can}}}}
		recursion, err := c.mountsRecursively(t.Context(), p)
		if err != nil || recursion != can {
			t.Errorf("recursion %v, %v; want %v", recursion, err, can)
		}
		var got []string
		for _, m := range p.GetSpec().GetContainers()[0].GetVolumeMounts() {
			mount := &runtimev1.Mount{}
			err := setReadOnly(mount, m, p, recursion)
			switch {
			case err != nil:
				got = append(got, "error")
			case mount.RecursiveReadOnly:
				got = append(got, "all")
			case mount.Readonly:
				got = append(got, "top")
			default:
				got = append(got, "no")
			}
		}
		want := []string{"no", "all", "all", "top"}
		if !can {
			want = []string{"no", "error", "top", "top"}
		}
		if !slices.Equal(got, want) {
			t.Errorf("with recursion %v: %v, want %v", can, got, want)
		}
	}
	writable := p.GetSpec().GetContainers()[0].GetVolumeMounts()[0]
	if mount := (&runtimev1.Mount{Readonly: true}); setReadOnly(mount, writable, p, true) != nil || !mount.Readonly {
		t.Error("a volume that may only be read was made writable")
	}
	if !asksForRecursion(p.GetSpec().GetContainers()[0]) {
		t.Error("the runtime would not be asked")
	}
}

func TestBlockDevicesOfContainers(t *testing.T) {
	p := podtest.Pod(t, `{metadata: {name: p}, spec: {volumes: [{name: raw, persistentVolumeClaim: {claimName: c}}, {name: fixed, persistentVolumeClaim: {claimName: c, readOnly: true}}, {name: v, emptyDir: {}}],
  containers: [{name: c, volumeDevices: [{name: raw, devicePath: /dev/raw}, {name: fixed, devicePath: /dev/fixed}]}, {name: wrong, volumeDevices: [{name: v, devicePath: /dev/v}]}]}}`)
	paths := map[string]string{"raw": "/host/raw", "fixed": "/host/fixed", "v": "/host/v"}
	got, err := devices(run{pod: p, container: p.GetSpec().GetContainers()[0], volumes: paths})
	if err != nil || len(got) != 2 || got[0].GetHostPath() != "/host/raw" || got[0].GetContainerPath() != "/dev/raw" || got[0].GetPermissions() != "mrw" || got[1].GetPermissions() != "r" {
		t.Errorf("devices %v, %v", got, err)
	}
	if _, err := devices(run{pod: p, container: p.GetSpec().GetContainers()[1], volumes: paths}); err == nil {
		t.Error("an emptyDir was taken for a block device")
	}
}

// TestWhatIsToBeLabelled: the runtime is asked to label what the agent has made for the pod, on nodes with SELinux.
func TestWhatIsToBeLabelled(t *testing.T) {
	for _, enforcing := range []bool{true, false} {
		sys := t.TempDir()
		if enforcing {
			if err := os.MkdirAll(filepath.Join(sys, "fs/selinux"), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(sys, "fs/selinux/enforce"), []byte("1"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		volumes, err := volume.NewNode(volume.Config{DataDir: t.TempDir(), Machine: volume.Machine{Sys: sys}})
		if err != nil {
			t.Fatal(err)
		}
		p := podtest.Pod(t, `{metadata: {name: p}, spec: {volumes: [{name: v, emptyDir: {}}, {name: host, hostPath: {path: /}}], containers: [{name: c, volumeMounts: [
  {name: v, mountPath: /v}, {name: host, mountPath: /host}]}]}}`)
		paths, err := volumes.Setup(t.Context(), p, volume.Sources{})
		if err != nil {
			t.Fatal(err)
		}
		c := &Config{Volumes: volumes}
		r := run{pod: p, container: p.GetSpec().GetContainers()[0], volumes: paths}
		mounts, err := c.mounts(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, message, err := c.messageFile(r)
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]bool{}
		for _, m := range append(mounts, message) {
			got[m.GetContainerPath()] = m.GetSelinuxRelabel()
		}
		for path, want := range map[string]bool{"/v": true, "/host": false, "/etc/hosts": true, defaultMessagePath: true} {
			if relabel, there := got[path]; !there || relabel != (want && enforcing) {
				t.Errorf("SELinux %v: %s is to be labelled: %v", enforcing, path, relabel)
			}
		}
	}
}
