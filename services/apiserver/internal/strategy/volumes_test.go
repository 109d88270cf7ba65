package strategy_test

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/yaml"

	"dhow.dev/services/apiserver/internal/strategy/validation"
)

func TestMessagesOfVolumes(t *testing.T) {
	s := newServer(t)
	claim := func(spec string) string {
		return `spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}, ` + spec + `}`
	}
	volume := func(spec string) string {
		return `spec: {accessModes: [ReadWriteOnce], capacity: {storage: 1Gi}, ` + spec + `}`
	}
	for name, c := range map[string]struct{ kind, document, want string }{
		"copy":               {"pvc", claim(`dataSource: {kind: PersistentVolumeClaim, name: a}`), ``},
		"snapshot":           {"pvc", claim(`dataSourceRef: {apiGroup: snapshot.storage.k8s.io, kind: VolumeSnapshot, name: a}`), ``},
		"source of no group": {"pvc", claim(`dataSource: {kind: Pod, name: a}`), `spec.dataSource: Invalid value: "Pod": must be 'PersistentVolumeClaim' when referencing the default apiGroup`},
		"two sources":        {"pvc", claim(`dataSource: {kind: PersistentVolumeClaim, name: a}, dataSourceRef: {kind: PersistentVolumeClaim, name: b}`), `spec: Invalid value: "spec.dataSource": must match dataSourceRef`},
		"source elsewhere":   {"pvc", claim(`dataSource: {kind: PersistentVolumeClaim, name: a}, dataSourceRef: {kind: PersistentVolumeClaim, name: a, namespace: lab}`), `spec: Invalid value: "spec.dataSource": may not be specified when dataSourceRef.namespace is specified`},
		"attributes":         {"pvc", claim(`volumeAttributesClassName: A_B`), `spec.volumeAttributesClassName: Invalid value: "A_B": a lowercase RFC 1123 subdomain…`},

		"volume":             {"pv", volume(`hostPath: {path: /x}`), ``},
		"of nothing":         {"pv", `spec: {}`, "spec.accessModes: Required value\nspec.capacity: Required value\nspec.capacity: Unsupported value: null: supported values: \"storage\"\nspec: Required value: must specify a volume type"},
		"of two kinds":       {"pv", volume(`hostPath: {path: /x}, nfs: {server: s, path: /x}`), `spec.nfs: Forbidden: may not specify more than 1 volume type`},
		"no size":            {"pv", `spec: {accessModes: [ReadWriteOnce], capacity: {storage: 0}, hostPath: {path: /x}}`, `spec.capacity[storage]: Invalid value: "0": must be greater than zero`},
		"local, where":       {"pv", volume(`local: {path: /x}`), `spec.nodeAffinity: Required value: Local volume requires node affinity`},
		"climbing":           {"pv", volume(`hostPath: {path: /x/../y}`), `spec.hostPath.path: Invalid value: "/x/../y": must not contain '..'`},
		"disk":               {"pv", volume(`iscsi: {targetPortal: p, iqn: "iqn.2026-11.test:x", lun: 1, chapAuthSession: true, secretRef: {name: s}}`), ``},
		"disk of nobody":     {"pv", volume(`iscsi: {lun: 256, chapAuthDiscovery: true}`), "spec.iscsi.targetPortal: Required value\nspec.iscsi.iqn: Required value\nspec.iscsi.lun: Invalid value: 256: must be between 0 and 255, inclusive\nspec.iscsi.secretRef: Required value"},
		"disk misnamed":      {"pv", volume(`iscsi: {targetPortal: p, iqn: "iqn.x", initiatorName: me, secretRef: {}}`), "spec.iscsi.iqn: Invalid value: \"iqn.x\": must be valid format\nspec.iscsi.secretRef.name: Required value\nspec.iscsi.initiatorname: Invalid value: \"me\": must be valid format starting with iqn, eui, or naa"},
		"disk far away":      {"pv", volume(`iscsi: {targetPortal: "a-portal-with-a-rather-long-name.in-a-domain-that-is-long-too.example.com", iqn: "iqn.2026-11.test:x", initiatorName: "iqn.2026-11.test:me"}`), `spec.iscsi.targetportal: Invalid value: "a-portal-with-a-rather-long-name.in-a-domain-that-is-long-too.example.com": Total length of <volume name>…`},
		"fabric":             {"pv", volume(`fc: {wwids: [a]}`), ``},
		"fabric of nothing":  {"pv", volume(`fc: {}`), `spec.fc.targetWWNs: Required value: must specify either targetWWNs or wwids, but not both`},
		"fabric of both":     {"pv", volume(`fc: {targetWWNs: [a], wwids: [b]}`), "spec.fc.targetWWNs: Invalid value: [\"a\"]: targetWWNs and wwids can not be specified simultaneously\nspec.fc.lun: Required value: lun is required if targetWWNs is specified"},
		"fabric's number":    {"pv", volume(`fc: {targetWWNs: [a], lun: -1}`), `spec.fc.lun: Invalid value: -1: must be between 0 and 255, inclusive`},
		"flexible":           {"pv", volume(`flexVolume: {driver: a/b, options: {size: big, example.com/kubernetes.io: x}}`), ``},
		"flexible too far":   {"pv", volume(`flexVolume: {options: {kubernetes.io/readwrite: rw, My.K8s.io/x: z}}`), "spec.flexVolume.driver: Required value\nspec.flexVolume.options[My.K8s.io/x]: Invalid value: \"My.K8s.io/x\": kubernetes.io and k8s.io namespaces are reserved\nspec.flexVolume.options[kubernetes.io/readwrite]: Invalid value: \"kubernetes.io/readwrite\": kubernetes.io and k8s.io namespaces are reserved"},
		"disk of a pod":      {"pod", `spec: {containers: [{name: c, image: "web:1"}], volumes: [{name: v, iscsi: {targetPortal: p, iqn: x}}, {name: w, fc: {}}, {name: x, flexVolume: {}}]}`, "spec.volumes[0].iscsi.iqn: Invalid value: \"x\": must be valid format starting with iqn, eui, or naa\nspec.volumes[1].fc.targetWWNs: Required value: must specify either targetWWNs or wwids, but not both\nspec.volumes[2].flexVolume.driver: Required value"},
		"driver":             {"pv", volume(`csi: {driver: d.example.com, nodePublishSecretRef: {name: s}}`), "spec.csi.volumeHandle: Required value\nspec.csi.nodePublishSecretRef.namespace: Required value"},
		"recycled machine":   {"pv", volume(`hostPath: {path: /}, persistentVolumeReclaimPolicy: Recycle`), `spec.persistentVolumeReclaimPolicy: Forbidden: may not be 'recycle' for a hostPath mount of '/'`},
		"policy":             {"pv", volume(`hostPath: {path: /x}, persistentVolumeReclaimPolicy: Burn`), `spec.persistentVolumeReclaimPolicy: Unsupported value: "Burn": supported values: "Delete", "Recycle", "Retain"`},
		"attachment":         {"volumeattachment", `spec: {attacher: d, nodeName: n1, source: {persistentVolumeName: pv}}`, ``},
		"attached inline":    {"volumeattachment", `spec: {attacher: d, nodeName: n1, source: {inlineVolumeSpec: {accessModes: [ReadWriteOnce], csi: {driver: d, volumeHandle: h}}}}`, ``},
		"attached nothing":   {"volumeattachment", `spec: {source: {}}`, "spec.attacher: Required value\nspec.source: Required value: must specify exactly one of inlineVolumeSpec and persistentVolumeName\nspec.nodeName: Invalid value: \"\": a lowercase RFC 1123 subdomain…"},
		"attached two":       {"volumeattachment", `spec: {attacher: d, nodeName: n1, source: {persistentVolumeName: pv, inlineVolumeSpec: {}}}`, `spec.source: Forbidden: must specify exactly one of inlineVolumeSpec and persistentVolumeName`},
		"attached elsewise":  {"volumeattachment", `spec: {attacher: d, nodeName: n1, source: {inlineVolumeSpec: {accessModes: [ReadWriteOnce], capacity: {storage: 1Gi}, hostPath: {path: /x}}}}`, "spec.source.inlineVolumeSpec.capacity: Forbidden: may not be specified in the context of inline volumes\nspec.source.inlineVolumeSpec.csi: Required value: has to be specified in the context of inline volumes"},
		"Google's disk":      {"pv", volume(`gcePersistentDisk: {partition: 300}`), "spec.gcePersistentDisk.pdName: Required value\nspec.gcePersistentDisk.partition: Invalid value: 300: must be between 0 and 255, inclusive"},
		"Amazon's disk":      {"pv", volume(`awsElasticBlockStore: {volumeID: vol-1}`), ``},
		"Azure's disk":       {"pv", volume(`azureDisk: {diskName: d, diskURI: x, kind: Managed}`), `spec.azureDisk.diskURI: Unsupported value: "x": supported values: "/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}"`},
		"Azure's share":      {"pv", volume(`azureFile: {shareName: s, secretNamespace: ""}`), "spec.azureFile.secretName: Required value\nspec.azureFile.secretNamespace: Required value"},
		"Cinder's secret":    {"pv", volume(`cinder: {volumeID: v, secretRef: {name: s}}`), `spec.cinder.secretRef.namespace: Required value`},
		"VMware's disk":      {"pod", `spec: {containers: [{name: c, image: i}], volumes: [{name: v, vsphereVolume: {}}]}`, `spec.volumes[0].vsphereVolume.volumePath: Required value`},
		"Portworx":           {"pod", `spec: {containers: [{name: c, image: i}], volumes: [{name: v, portworxVolume: {fsType: ext4}}]}`, `spec.volumes[0].portworxVolume.volumeID: Required value`},
		"a pod's share":      {"pod", `spec: {containers: [{name: c, image: i}], volumes: [{name: v, azureFile: {secretName: s}}]}`, `spec.volumes[0].azureFile.shareName: Required value`},
		"attributes of none": {"pv", volume(`hostPath: {path: /x}, volumeAttributesClassName: fast`), `spec.csi: Required value: has to be specified when using volumeAttributesClassName`},
	} {
		t.Run(name, func(t *testing.T) {
			_, errs, err := s.in(t).create(c.kind, c.document)
			if err != nil {
				t.Fatal(err)
			}
			want(t, errs, c.want)
		})
	}
}

func TestChangesOfVolumes(t *testing.T) {
	s := newServer(t)
	const volume = `spec: {accessModes: [ReadWriteOnce], capacity: {storage: 1Gi}, csi: {driver: d, volumeHandle: h}}`
	for name, c := range map[string]struct{ from, to, want string }{
		"another volume":   {volume, `spec: {accessModes: [ReadWriteOnce], capacity: {storage: 1Gi}, csi: {driver: d, volumeHandle: i}}`, "spec.persistentvolumesource: Forbidden: spec.persistentvolumesource is immutable after creation…"},
		"larger":           {volume, `spec: {accessModes: [ReadWriteOnce, ReadOnlyMany], capacity: {storage: 2Gi}, persistentVolumeReclaimPolicy: Delete, csi: {driver: d, volumeHandle: h}}`, ""},
		"growing's secret": {volume, `spec: {accessModes: [ReadWriteOnce], capacity: {storage: 1Gi}, csi: {driver: d, volumeHandle: h, controllerExpandSecretRef: {name: s, namespace: lab}}}`, ""},
		"mode":             {volume, `spec: {accessModes: [ReadWriteOnce], capacity: {storage: 1Gi}, volumeMode: Block, csi: {driver: d, volumeHandle: h}}`, `volumeMode: Invalid value: "Block": field is immutable`},
		"place":            {volume, `spec: {accessModes: [ReadWriteOnce], capacity: {storage: 1Gi}, csi: {driver: d, volumeHandle: h}, nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: zone, operator: In, values: [a]}]}]}}}`, ""},
		"another place":    {`spec: {accessModes: [ReadWriteOnce], capacity: {storage: 1Gi}, csi: {driver: d, volumeHandle: h}, nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: zone, operator: In, values: [a]}]}]}}}`, volume, `nodeAffinity: Invalid value: null: field is immutable`},
		"attributes gone":  {`spec: {accessModes: [ReadWriteOnce], capacity: {storage: 1Gi}, volumeAttributesClassName: a, csi: {driver: d, volumeHandle: h}}`, volume, `spec.volumeAttributesClassName: Forbidden: update from non-nil value to nil is forbidden`},
	} {
		t.Run(name, func(t *testing.T) {
			_, errs := s.in(t).update("pv", c.from, c.to)
			want(t, errs, c.want)
		})
	}
}

// TestChangesOfClaims has claims as the API server keeps them, with the state that controllers have given them.
func TestChangesOfClaims(t *testing.T) {
	const rest = `accessModes: [ReadWriteOnce], volumeMode: Filesystem`
	claim := func(size, more, metadata, status string) string {
		return `{metadata: {name: c` + metadata + `}, spec: {` + rest + `, resources: {requests: {storage: ` + size + `}}` + more + `}, status: {` + status + `}}`
	}
	const bound = `phase: Bound, capacity: {storage: 1Gi}`
	const other = "spec: Forbidden: spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims…"
	for name, c := range map[string]struct{ from, to, want string }{
		"is given its volume":         {claim("1Gi", "", "", "phase: Pending"), claim("1Gi", ", volumeName: v", "", "phase: Pending"), ""},
		"another volume":              {claim("1Gi", ", volumeName: v", "", bound), claim("1Gi", ", volumeName: w", "", bound), other},
		"grows":                       {claim("1Gi", ", volumeName: v", "", bound), claim("2Gi", ", volumeName: v", "", bound), ""},
		"grows before it is bound":    {claim("1Gi", "", "", "phase: Pending"), claim("2Gi", "", "", "phase: Pending"), other},
		"back from a failed growth":   {claim("3Gi", ", volumeName: v", "", bound), claim("2Gi", ", volumeName: v", "", bound), ""},
		"shrinks":                     {claim("3Gi", ", volumeName: v", "", bound), claim("1Gi", ", volumeName: v", "", bound), "spec.resources.requests.storage: Forbidden: field can not be less than status.capacity"},
		"class, late":                 {claim("1Gi", "", "", "phase: Pending"), claim("1Gi", ", storageClassName: s", "", "phase: Pending"), ""},
		"another class":               {claim("1Gi", ", storageClassName: s", "", "phase: Pending"), claim("1Gi", ", storageClassName: t", "", "phase: Pending"), other},
		"class from the annotation":   {claim("1Gi", "", `, annotations: {volume.beta.kubernetes.io/storage-class: s}`, "phase: Pending"), claim("1Gi", ", storageClassName: s", "", "phase: Pending"), ""},
		"class beside the annotation": {claim("1Gi", "", `, annotations: {volume.beta.kubernetes.io/storage-class: s}`, "phase: Pending"), claim("1Gi", ", storageClassName: t", `, annotations: {volume.beta.kubernetes.io/storage-class: s}`, "phase: Pending"), other},
		"the annotation":              {claim("1Gi", "", `, annotations: {volume.beta.kubernetes.io/storage-class: s}`, "phase: Pending"), claim("1Gi", "", `, annotations: {volume.beta.kubernetes.io/storage-class: t}`, "phase: Pending"), `metadata[volume.beta.kubernetes.io/storage-class]: Invalid value: "t": field is immutable`},
		"mode":                        {claim("1Gi", "", "", bound), `{metadata: {name: c}, spec: {accessModes: [ReadWriteOnce], volumeMode: Block, resources: {requests: {storage: 1Gi}}}, status: {phase: Bound}}`, other + "\n" + `volumeMode: Invalid value: "Block": field is immutable`},
		"attributes":                  {claim("1Gi", ", volumeAttributesClassName: a", "", bound), claim("1Gi", ", volumeAttributesClassName: b", "", bound), ""},
		"attributes emptied":          {claim("1Gi", ", volumeAttributesClassName: a", "", bound), claim("1Gi", `, volumeAttributesClassName: ""`, "", bound), "spec.volumeAttributesClassName: Forbidden: update from non-nil value to an empty string is forbidden"},
	} {
		t.Run(name, func(t *testing.T) {
			want(t, changed(t, c.from, c.to, validation.PersistentVolumeClaimUpdate), c.want)
		})
	}
	for name, c := range map[string]struct{ status, want string }{
		"status":           {`capacity: {storage: 1Gi}, allocatedResources: {storage: 2Gi, example.com/iops: 5}, allocatedResourceStatuses: {storage: NodeResizePending}`, ""},
		"another resource": {`allocatedResources: {cpu: 1}`, `status.allocatedResources: Unsupported value: "cpu": supported values: "storage"`},
		"another state":    {`allocatedResourceStatuses: {storage: Wondering}`, `status.allocatedResourceStatus: Unsupported value: "Wondering": supported values: "ControllerResizeInProgress"…`},
		"less than none":   {`capacity: {storage: -1}`, `status.capacity[storage]: Invalid value: "-1": must be greater than or equal to 0`},
	} {
		t.Run(name, func(t *testing.T) {
			want(t, changed(t, claim("1Gi", "", "", ""), claim("1Gi", "", "", c.status), validation.PersistentVolumeClaimStatusUpdate), c.want)
		})
	}
}

func changed(t *testing.T, from, to string, look func(c, old *corev1.PersistentVolumeClaim) field.ErrorList) field.ErrorList {
	t.Helper()
	var old, c corev1.PersistentVolumeClaim
	for text, into := range map[string]*corev1.PersistentVolumeClaim{from: &old, to: &c} {
		if err := yaml.UnmarshalStrict([]byte(text), into); err != nil {
			t.Fatal(err)
		}
	}
	return look(&c, &old)
}
