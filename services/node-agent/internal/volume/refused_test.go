package volume_test

import (
	"testing"

	"dhow.dev/services/node-agent/internal/podtest"
	"dhow.dev/services/node-agent/internal/volume"
)

// Volumes that Kubernetes' nodes refuse are refused in the same words.
func TestRefusedKinds(t *testing.T) {
	removed := `Unable to attach or mount volumes: unmounted volumes=[v], unattached volumes=[], failed to process volumes=[v]: failed to get Plugin from volumeSpec for volume "v" err=no volume plugin matched`
	for source, want := range map[string]string{
		"gitRepo: {repository: https://example.com/r.git}": `MountVolume.SetUp failed for volume "v" : git-repo volume plugin has been disabled, as in Kubernetes v1.36; clone in an init container into an emptyDir`,
		"glusterfs: {endpoints: e, path: /x}":              removed,
		"rbd: {monitors: [m], image: i}":                   removed,
		"cephfs: {monitors: [m]}":                          removed,
		"flocker: {datasetName: d}":                        removed,
		"quobyte: {registry: r, volume: v}":                removed,
		"photonPersistentDisk: {pdID: p}":                  removed,
		"scaleIO: {gateway: g, system: s, secretRef: {}}":  removed,
		"storageos: {volumeName: v}":                       removed,
	} {
		_, err := volume.New(t.TempDir()).Setup(t.Context(), podtest.Pod(t, `{metadata: {name: p, uid: u}, spec: {volumes: [{name: v, `+source+`}]}}`), sources(nil))
		if err == nil || err.Error() != want {
			t.Errorf("%s:\ngot  %v\nwant %s", source, err, want)
		}
	}
}

// A projected volume may have a source that says nothing: the API server takes away what is off.
func TestEmptySource(t *testing.T) {
	paths, err := volume.New(t.TempDir()).Setup(t.Context(),
		podtest.Pod(t, `{metadata: {name: p, uid: u}, spec: {volumes: [{name: v, projected: {sources: [{}, {configMap: {name: config}}]}}]}}`), sources(map[string]string{"one": "1"}))
	if err != nil || read(t, paths["v"]+"/one") != "1" {
		t.Errorf("%v, %v", paths, err)
	}
}
