package filter_test

import (
	"fmt"

	"dhow.dev/pkg/object"
	"dhow.dev/services/scheduler/internal/cluster"
	"dhow.dev/services/scheduler/internal/fixture"
)

const (
	unusable  = "node(s) didn't match PersistentVolume's node affinity"
	noVolume  = "node(s) didn't find available persistent volumes to bind"
	noSpace   = "node(s) did not have enough free storage"
	lost      = "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)"
	inUse     = "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode"
	tooMany   = "node(s) exceed max volume count"
	elsewhere = "node(s) had no available volume zone"
	unbound   = "pod has unbound immediate PersistentVolumeClaims"
)

// using is a pod with claims.
func using(claims ...string) string {
	list := ""
	for i, name := range claims {
		if i > 0 {
			list += ","
		}
		list += fmt.Sprintf(`{"name":"v%d","persistentVolumeClaim":{"claimName":%q}}`, i, name)
	}
	return fmt.Sprintf(`{"spec":{"containers":[],"volumes":[%s]}}`, list)
}

// claim takes in a claim of 1Gi that one node may use; rest goes into its spec.
func claim(name, annotations, rest string) func(*cluster.Cluster) {
	return func(c *cluster.Cluster) {
		c.SetClaim(fixture.Claim(fmt.Sprintf(`{"metadata":{"namespace":"default","name":%q,"uid":"uid-%s","annotations":{%s}},"spec":{"accessModes":["ReadWriteOnce"],
			"resources":{"requests":{"storage":"1Gi"}}%s}}`, name, name, annotations, rest)))
	}
}

func bound(name, volume string) func(*cluster.Cluster) {
	return claim(name, `"pv.kubernetes.io/bind-completed":"yes"`, fmt.Sprintf(`,"volumeName":%q`, volume))
}

func waiting(name string) func(*cluster.Cluster) {
	return claim(name, "", `,"storageClassName":"waits"`)
}

func class(provisioner, mode, rest string) func(*cluster.Cluster) {
	return func(c *cluster.Cluster) {
		c.SetStorageClass("waits", fixture.StorageClass(fmt.Sprintf(`{"metadata":{"name":"waits"},"provisioner":%q,"volumeBindingMode":%q%s}`, provisioner, mode, rest)))
	}
}

// volume takes in a free volume of the class; rest goes into its spec.
func volume(name, size, rest string) func(*cluster.Cluster) {
	return func(c *cluster.Cluster) {
		c.SetVolume(fixture.Volume(fmt.Sprintf(`{"metadata":{"name":%q},"spec":{"storageClassName":"waits","accessModes":["ReadWriteOnce"],"capacity":{"storage":%q}%s},"status":{"phase":"Available"}}`,
			name, size, rest)))
	}
}

func inZone(z string) string {
	return fmt.Sprintf(`,"nodeAffinity":{"required":{"nodeSelectorTerms":[{"matchExpressions":[{"key":"topology.kubernetes.io/zone","operator":"In","values":[%q]}]}]}}`, z)
}

func storage(parts ...func(*cluster.Cluster)) func(*cluster.Cluster) {
	return func(c *cluster.Cluster) {
		for _, take := range parts {
			take(c)
		}
	}
}

func csi(driver, handle string) string {
	return fmt.Sprintf(`,"csi":{"driver":%q,"volumeHandle":%q}`, driver, handle)
}

// volumeTests follow https://kubernetes.io/docs/concepts/storage/storage-classes/#volume-binding-mode, .../storage-capacity, .../storage-limits and
// .../persistent-volumes/#access-modes.
func volumeTests() []verdictTest {
	zones := []string{zone("a", "h1"), zone("b", "h2")}
	capacity := func(largest string) func(*cluster.Cluster) {
		return storage(func(c *cluster.Cluster) {
			c.SetDriver("csi.example.com", fixture.Driver(`{"metadata":{"name":"csi.example.com"},"spec":{"storageCapacity":true}}`))
			c.SetCapacity(object.Key{Namespace: "csi", Name: "a"}, fixture.Capacity(fmt.Sprintf(`{"metadata":{"namespace":"csi","name":"a"},"storageClassName":"waits","capacity":%q,
				"nodeTopology":{"matchLabels":{"topology.kubernetes.io/zone":"a"}}}`, largest)))
		})
	}
	limit := func(c *cluster.Cluster) {
		for _, name := range []string{"n1", "n2"} {
			c.SetCSINode(name, fixture.CSINode(`{"spec":{"drivers":[{"name":"csi.example.com","nodeID":"x","allocatable":{"count":1}}]}}`))
		}
	}
	ebsLimit := func(c *cluster.Cluster) {
		for _, name := range []string{"n1", "n2"} {
			c.SetCSINode(name, fixture.CSINode(`{"spec":{"drivers":[{"name":"ebs.csi.aws.com","nodeID":"x","allocatable":{"count":1}}]}}`))
		}
	}
	ebsZones := []string{node(`"metadata":{"labels":{"topology.ebs.csi.aws.com/zone":"a"}}`), node(`"metadata":{"labels":{"topology.ebs.csi.aws.com/zone":"b"}}`)}
	once := claim("data", `"pv.kubernetes.io/bind-completed":"yes"`, `,"volumeName":"pv","accessModes":["ReadWriteOncePod"]`)
	disk := func(source string) string { return pod(`"containers":[],"volumes":[{"name":"v",` + source + `}]`) }
	const noDisk = "node(s) had no available disk"
	target := disk(`"iscsi":{"targetPortal":"a","iqn":"iqn.2026-11.test:x","lun":1}`)
	image := func(monitors, rest string) string {
		return disk(`"rbd":{"monitors":[` + monitors + `],"image":"i","pool":"p"` + rest + `}`)
	}
	return []verdictTest{
		{"an iSCSI target that another pod writes to", world{nodes: zones, pods: []string{on("n1", target)}, pod: disk(`"iscsi":{"targetPortal":"b","iqn":"iqn.2026-11.test:x","lun":2,"readOnly":true}`)},
			[][]string{{noDisk}, nil}},
		{"an iSCSI target that all read", world{nodes: zones[:1], pods: []string{on("n1", disk(`"iscsi":{"iqn":"iqn.2026-11.test:x","readOnly":true}`))}, pod: disk(`"iscsi":{"iqn":"iqn.2026-11.test:x","readOnly":true}`)},
			[][]string{nil}},
		{"another iSCSI target", world{nodes: zones[:1], pods: []string{on("n1", target)}, pod: disk(`"iscsi":{"iqn":"iqn.2026-11.test:y"}`)}, [][]string{nil}},
		{"an iSCSI target that a pod which is done had", world{nodes: zones[:1], pods: []string{on("n1", target)[:len(on("n1", target))-1] + `,"status":{"phase":"Succeeded"}}`}, pod: target}, [][]string{nil}},
		{"a disk of Google's that another pod writes to", world{nodes: zones, pods: []string{on("n1", disk(`"gcePersistentDisk":{"pdName":"d"}`)), on("n2", disk(`"gcePersistentDisk":{"pdName":"d","readOnly":true}`))},
			pod: disk(`"gcePersistentDisk":{"pdName":"d","readOnly":true}`)}, [][]string{{noDisk}, nil}},
		{"a disk of Amazon's is one pod's even to read", world{nodes: zones, pods: []string{on("n1", disk(`"awsElasticBlockStore":{"volumeID":"d","readOnly":true}`))},
			pod: disk(`"awsElasticBlockStore":{"volumeID":"d","readOnly":true}`)}, [][]string{{noDisk}, nil}},
		{"an image of one of the same monitors", world{nodes: zones, pods: []string{on("n1", image(`"a","b"`, "")), on("n2", image(`"c"`, ""))}, pod: image(`"b"`, "")}, [][]string{{noDisk}, nil}},
		{"an image that all read", world{nodes: zones[:1], pods: []string{on("n1", image(`"a"`, `,"readOnly":true`))}, pod: image(`"a"`, `,"readOnly":true`)}, [][]string{nil}},

		{"a claim that is not there", world{nodes: zones, pod: using("data")}, [][]string{{`persistentvolumeclaim "data" not found`}, {`persistentvolumeclaim "data" not found`}}},
		{"a claim that nobody has bound", world{nodes: zones, pod: using("data"), storage: storage(class("csi.example.com", "Immediate", ""), waiting("data"))}, [][]string{{unbound}, {unbound}}},
		{"a bound volume of one zone", world{nodes: zones, pod: using("data"), storage: storage(bound("data", "pv"), volume("pv", "1Gi", inZone("b")))}, [][]string{{unusable}, nil}},
		{"a bound volume that is not there", world{nodes: zones, pod: using("data"), storage: bound("data", "pv")}, [][]string{{lost}, {lost}}},
		{"an older volume's zone label", world{nodes: append(zones, node("")), pod: using("data"), storage: storage(bound("data", "pv"), func(c *cluster.Cluster) {
			c.SetVolume(fixture.Volume(`{"metadata":{"name":"pv","labels":{"topology.kubernetes.io/zone":"b__c"}},"spec":{"capacity":{"storage":"1Gi"}}}`))
		})}, [][]string{{elsewhere}, nil, nil}},
		{"a lost claim", world{nodes: zones, pod: using("data"), storage: func(c *cluster.Cluster) {
			c.SetClaim(fixture.Claim(`{"metadata":{"namespace":"default","name":"data"},"spec":{"volumeName":"pv"},"status":{"phase":"Lost"}}`))
		}}, [][]string{{`persistentvolumeclaim "data" bound to non-existent persistentvolume "pv"`}, {`persistentvolumeclaim "data" bound to non-existent persistentvolume "pv"`}}},
		{"a claim that is being deleted", world{nodes: zones[:1], pod: using("data"), storage: func(c *cluster.Cluster) {
			c.SetClaim(fixture.Claim(`{"metadata":{"namespace":"default","name":"data","deletionTimestamp":"2020-01-01T00:00:00Z"}}`))
		}}, [][]string{{`persistentvolumeclaim "data" is being deleted`}}},
		{"an ephemeral volume's claim is still to come", world{nodes: zones[:1], pod: `{"metadata":{"uid":"me"},"spec":{"containers":[],"volumes":[{"name":"v","ephemeral":{"volumeClaimTemplate":{"spec":{}}}}]}}`},
			[][]string{{`waiting for ephemeral volume controller to create the persistentvolumeclaim "p0-v"`}}},
		{"an ephemeral volume's claim is somebody else's", world{nodes: zones[:1], pod: `{"metadata":{"uid":"me"},"spec":{"containers":[],"volumes":[{"name":"v","ephemeral":{"volumeClaimTemplate":{"spec":{}}}}]}}`,
			storage: waiting("p0-v")}, [][]string{{"PVC default/p0-v was not created for pod (pod is not owner)"}}},

		{"a free volume of one zone", world{nodes: zones, pod: using("data"), storage: storage(class("kubernetes.io/no-provisioner", "WaitForFirstConsumer", ""), waiting("data"), volume("pv", "1Gi", inZone("b")))},
			[][]string{{noVolume}, nil}},
		{"a volume that is too small", world{nodes: zones[:1], pod: using("data"), storage: storage(class("kubernetes.io/no-provisioner", "WaitForFirstConsumer", ""), waiting("data"), volume("pv", "512Mi", ""))},
			[][]string{{noVolume}}},
		{"a volume of another mode", world{nodes: zones[:1], pod: using("data"), storage: storage(class("kubernetes.io/no-provisioner", "WaitForFirstConsumer", ""), waiting("data"), volume("pv", "1Gi", `,"volumeMode":"Block"`))},
			[][]string{{noVolume}}},
		{"a volume that somebody reserved", world{nodes: zones[:1], pod: using("data"), storage: storage(class("kubernetes.io/no-provisioner", "WaitForFirstConsumer", ""), waiting("data"),
			volume("pv", "1Gi", `,"claimRef":{"namespace":"default","name":"other"}`))}, [][]string{{noVolume}}},
		{"a volume that is reserved for the claim comes before others", world{nodes: zones, pod: using("data"), storage: storage(class("kubernetes.io/no-provisioner", "WaitForFirstConsumer", ""), waiting("data"),
			volume("small", "1Gi", ""), volume("pv", "2Gi", inZone("b")+`,"claimRef":{"namespace":"default","name":"data"}`))}, [][]string{{noVolume}, nil}},
		{"two claims do not share a volume", world{nodes: zones, pod: using("data", "more"), storage: storage(class("kubernetes.io/no-provisioner", "WaitForFirstConsumer", ""), waiting("data"), waiting("more"),
			volume("pv", "1Gi", ""), volume("second", "1Gi", inZone("b")))}, [][]string{{noVolume}, nil}},
		{"what can be made anywhere", world{nodes: zones, pod: using("data"), storage: storage(class("csi.example.com", "WaitForFirstConsumer", ""), waiting("data"))}, [][]string{nil, nil}},
		{"what can be made in one zone", world{nodes: zones, pod: using("data"), storage: storage(class("csi.example.com", "WaitForFirstConsumer",
			`,"allowedTopologies":[{"matchLabelExpressions":[{"key":"topology.kubernetes.io/zone","values":["b","c"]}]}]`), waiting("data"))}, [][]string{{noVolume}, nil}},
		{"a node that was selected already", world{nodes: zones, pod: using("data"), storage: storage(class("csi.example.com", "WaitForFirstConsumer", ""),
			claim("data", `"volume.kubernetes.io/selected-node":"n2"`, `,"storageClassName":"waits"`))}, [][]string{{noVolume}, nil}},
		{"room in one zone", world{nodes: zones, pod: using("data"), storage: storage(class("csi.example.com", "WaitForFirstConsumer", ""), waiting("data"), capacity("1Gi"))}, [][]string{nil, {noSpace}}},
		{"too little room", world{nodes: zones, pod: using("data"), storage: storage(class("csi.example.com", "WaitForFirstConsumer", ""), waiting("data"), capacity("1023Mi"))}, [][]string{{noSpace}, {noSpace}}},

		{"one pod at a time", world{nodes: zones, pods: []string{on("n1", using("data"))}, pod: using("data"), storage: storage(once, volume("pv", "1Gi", ""))}, [][]string{{inUse}, {inUse}}},
		{"one pod at a time, and nobody has it", world{nodes: zones, pod: using("data"), storage: storage(once, volume("pv", "1Gi", ""))}, [][]string{nil, nil}},
		{"as many volumes as a node may have", world{nodes: zones, pods: []string{on("n1", using("first"))}, pod: using("data"), storage: storage(limit,
			bound("first", "pv1"), bound("data", "pv2"), volume("pv1", "1Gi", csi("csi.example.com", "1")), volume("pv2", "1Gi", csi("csi.example.com", "2")))}, [][]string{{tooMany}, nil}},
		{"a volume that the node has already", world{nodes: zones, pods: []string{on("n1", using("data"))}, pod: using("data"), storage: storage(limit, bound("data", "pv1"), volume("pv1", "1Gi", csi("csi.example.com", "1")))},
			[][]string{nil, nil}},
		{"other drivers' volumes do not count", world{nodes: zones, pods: []string{on("n1", using("first"))}, pod: using("data"), storage: storage(limit,
			bound("first", "pv1"), bound("data", "pv2"), volume("pv1", "1Gi", csi("other.example.com", "1")), volume("pv2", "1Gi", csi("csi.example.com", "2")))}, [][]string{nil, nil}},
		{"a volume that will be made counts", world{nodes: zones, pods: []string{on("n1", using("first"))}, pod: using("data"), storage: storage(limit, class("csi.example.com", "WaitForFirstConsumer", ""),
			bound("first", "pv1"), waiting("data"), volume("pv1", "1Gi", csi("csi.example.com", "1")))}, [][]string{{tooMany}, nil}},

		// Volumes of plugins that Kubernetes had built in are the drivers' that serve them.
		{"Amazon's disk in a claim, in its driver's zone", world{nodes: ebsZones, pod: using("data"), storage: storage(bound("data", "pv"), volume("pv", "1Gi", inZone("b")+`,"awsElasticBlockStore":{"volumeID":"vol-1"}`))},
			[][]string{{unusable}, nil}},
		{"Amazon's disk in a pod counts", world{nodes: zones, pods: []string{on("n1", disk(`"awsElasticBlockStore":{"volumeID":"vol-1"}`))}, pod: using("data"), storage: storage(ebsLimit,
			bound("data", "pv"), volume("pv", "1Gi", csi("ebs.csi.aws.com", "vol-2")))}, [][]string{{tooMany}, nil}},
		{"Amazon's disk in a pod is one too many", world{nodes: zones, pods: []string{on("n1", using("data"))}, pod: disk(`"awsElasticBlockStore":{"volumeID":"aws://a/vol-2"}`), storage: storage(ebsLimit,
			bound("data", "pv"), volume("pv", "1Gi", `,"awsElasticBlockStore":{"volumeID":"aws://a/vol-1"}`))}, [][]string{{tooMany}, nil}},
		{"Amazon's disk that the node has already", world{nodes: zones, pods: []string{on("n1", using("data"))}, pod: disk(`"awsElasticBlockStore":{"volumeID":"aws://a/vol-1"}`), storage: storage(ebsLimit,
			bound("data", "pv"), volume("pv", "1Gi", csi("ebs.csi.aws.com", "vol-1")))}, [][]string{nil, nil}},
		{"Amazon's disk that will be made counts", world{nodes: zones, pods: []string{on("n1", disk(`"awsElasticBlockStore":{"volumeID":"vol-1"}`))}, pod: using("data"), storage: storage(ebsLimit,
			class("kubernetes.io/aws-ebs", "WaitForFirstConsumer", ""), waiting("data"))}, [][]string{{tooMany}, nil}},
		{"Amazon's zones by the volume's labels", world{nodes: zones, pod: using("data"), storage: storage(bound("data", "pv"), func(c *cluster.Cluster) {
			c.SetVolume(fixture.Volume(`{"metadata":{"name":"pv","labels":{"topology.kubernetes.io/zone":"b"}},"spec":{"vsphereVolume":{"volumePath":"p"}}}`))
		})}, [][]string{{unusable, elsewhere}, {unusable}}},
	}
}
