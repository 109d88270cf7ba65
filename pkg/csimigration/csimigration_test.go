package csimigration_test

import (
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"
	k8scorev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/pkg/csimigration"
)

// read reads an object that is written as users write it.
func read(t *testing.T, text string, from interface{ Marshal() ([]byte, error) }, to proto.Message) {
	t.Helper()
	if err := yaml.UnmarshalStrict([]byte(text), from); err != nil {
		t.Fatal(err)
	}
	data, err := from.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if err := proto.Unmarshal(data, to); err != nil {
		t.Fatal(err)
	}
}

// Every plugin that Kubernetes migrates is translated, in a pod and as a PersistentVolume.
func TestEveryPlugin(t *testing.T) {
	for source, want := range map[string]struct{ plugin, driver, handle string }{
		`awsElasticBlockStore: {volumeID: "aws://us-east-1a/vol-1", fsType: xfs}`: {"kubernetes.io/aws-ebs", "ebs.csi.aws.com", "vol-1"},
		`gcePersistentDisk: {pdName: d}`:                                          {"kubernetes.io/gce-pd", "pd.csi.storage.gke.io", "projects/UNSPECIFIED/zones/UNSPECIFIED/disks/d"},
		`azureDisk: {diskName: d, diskURI: /subscriptions/x, kind: Managed}`:      {"kubernetes.io/azure-disk", "disk.csi.azure.com", "/subscriptions/x"},
		`azureFile: {secretName: azure-storage-account-a-secret, shareName: s}`:   {"kubernetes.io/azure-file", "file.csi.azure.com", "#a#s#"},
		`cinder: {volumeID: v}`:                      {"kubernetes.io/cinder", "cinder.csi.openstack.org", "v"},
		`vsphereVolume: {volumePath: "[ds] a.vmdk"}`: {"kubernetes.io/vsphere-volume", "csi.vsphere.vmware.com", "[ds] a.vmdk"},
		`portworxVolume: {volumeID: p}`:              {"kubernetes.io/portworx-volume", "pxd.portworx.com", "p"},
	} {
		v := &corev1.Volume{}
		read(t, `{name: v, `+source+`}`, &k8scorev1.Volume{}, v)
		if !csimigration.IsInline(v.GetVolumeSource()) {
			t.Errorf("%s is not known", source)
		}
		pv, err := csimigration.Inline(v, "default")
		if csi := pv.GetSpec().GetPersistentVolumeSource().GetCsi(); err != nil || csi.GetDriver() != want.driver || !within(csi.GetVolumeHandle(), want.handle) || pv.GetMetadata().GetName() == "" {
			t.Errorf("%s: %v, %v", source, pv, err)
		}
		pv = &corev1.PersistentVolume{}
		read(t, `{metadata: {name: pv}, spec: {accessModes: [ReadWriteOnce], claimRef: {name: c, namespace: default}, `+source+`}}`, &k8scorev1.PersistentVolume{}, pv)
		plugin, err := csimigration.Plugin(pv)
		if err != nil || plugin != want.plugin || !csimigration.IsPersistent(pv) {
			t.Errorf("%s: %q, %v", source, plugin, err)
		}
		if !slices.Contains(csimigration.Plugins(), plugin) {
			t.Errorf("%s is not among the plugins", plugin)
		}
		if driver, ok := csimigration.Driver(plugin); !ok || driver != want.driver {
			t.Errorf("%s is served by %s", plugin, driver)
		}
		to, err := csimigration.Persistent(pv)
		if csi := to.GetSpec().GetPersistentVolumeSource().GetCsi(); err != nil || csi.GetDriver() != want.driver || csimigration.IsPersistent(to) || to.GetMetadata().GetName() != "pv" {
			t.Errorf("%s: %v, %v", source, to, err)
		}
	}
	if all := csimigration.Plugins(); !slices.IsSorted(all) || len(all) != 7 {
		t.Errorf("plugins %q", all)
	}
	for _, plugin := range []string{"kubernetes.io/no-provisioner", "kubernetes.io/glusterfs", "ebs.csi.aws.com", ""} {
		if driver, ok := csimigration.Driver(plugin); ok {
			t.Errorf("%q is served by %s", plugin, driver)
		}
	}
}

// within compares handles; Azure file adds the volume's name and namespace.
func within(have, want string) bool {
	return have == want || len(have) > len(want) && have[:len(want)] == want
}

// The zones of a volume become the driver's topology.
func TestTopology(t *testing.T) {
	pv := &corev1.PersistentVolume{}
	read(t, `{metadata: {name: pv, labels: {topology.kubernetes.io/zone: us-central1-a}}, spec: {accessModes: [ReadWriteOnce], gcePersistentDisk: {pdName: d}}}`, &k8scorev1.PersistentVolume{}, pv)
	to, err := csimigration.Persistent(pv)
	if err != nil {
		t.Fatal(err)
	}
	e := to.GetSpec().GetNodeAffinity().GetRequired().GetNodeSelectorTerms()[0].GetMatchExpressions()[0]
	if e.GetKey() != "topology.gke.io/zone" || e.GetValues()[0] != "us-central1-a" || to.GetSpec().GetPersistentVolumeSource().GetCsi().GetVolumeHandle() != "projects/UNSPECIFIED/zones/us-central1-a/disks/d" {
		t.Errorf("%v", to)
	}
	if pv.GetSpec().HasNodeAffinity() {
		t.Error("the original was changed")
	}
	csi := &corev1.PersistentVolume{}
	read(t, `{metadata: {name: pv}, spec: {csi: {driver: d, volumeHandle: h}}}`, &k8scorev1.PersistentVolume{}, csi)
	if same, err := csimigration.Persistent(csi); err != nil || same != csi {
		t.Errorf("%v, %v", same, err)
	}
}
