package cluster

import (
	"maps"
	"reflect"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	storagev1 "dhow.dev/gen/go/dhow/storage/v1"
	"dhow.dev/pkg/object"
	"dhow.dev/services/scheduler/internal/filter"
	"dhow.dev/services/scheduler/internal/snapshot"
)

// storage is what is known beside the snapshot: the objects, and what was decided about them and is not seen yet.
type storage struct {
	claims  map[string]*corev1.PersistentVolumeClaim
	volumes map[string]*corev1.PersistentVolume
	// nodes are those that claims were promised to, taken the claims that volumes were.
	nodes map[string]string
	taken map[string]snapshot.VolumeBinding
}

func newStorage() storage {
	return storage{
		claims: map[string]*corev1.PersistentVolumeClaim{}, volumes: map[string]*corev1.PersistentVolume{},
		nodes: map[string]string{}, taken: map[string]snapshot.VolumeBinding{},
	}
}

// SetClaim takes in a new or changed claim and returns what that may help.
func (c *Cluster) SetClaim(o *corev1.PersistentVolumeClaim) filter.Event {
	key := object.KeyOf(o).String()
	c.storage.claims[key] = o
	return c.refreshClaim(key)
}

// refreshClaim brings the picture of a claim up to date: what was decided holds until it is seen.
func (c *Cluster) refreshClaim(key string) filter.Event {
	var next *snapshot.Claim
	if o := c.storage.claims[key]; o != nil {
		next = snapshot.CompileClaim(o)
		if node := c.storage.nodes[key]; node != "" && next.SelectedNode == "" && !next.Bound {
			next.SelectedNode = node
		}
	}
	return change(next, c.snapshot.Claim(key), func() { c.snapshot.SetClaim(key, next) })
}

// DeleteClaim takes in that a claim is gone.
func (c *Cluster) DeleteClaim(key object.Key) filter.Event {
	delete(c.storage.claims, key.String())
	delete(c.storage.nodes, key.String())
	return c.refreshClaim(key.String())
}

// SetVolume takes in a new or changed volume and returns what that may help.
func (c *Cluster) SetVolume(o *corev1.PersistentVolume) filter.Event {
	name := o.GetMetadata().GetName()
	c.storage.volumes[name] = o
	return c.refreshVolume(name)
}

func (c *Cluster) refreshVolume(name string) filter.Event {
	var next *snapshot.Volume
	if o := c.storage.volumes[name]; o != nil {
		next = snapshot.CompileVolume(o)
		if taken, ok := c.storage.taken[name]; ok && next.Claim == "" {
			next.Claim = taken.Claim
			if claim := c.storage.claims[taken.Claim]; claim != nil {
				next.ClaimUID = claim.GetMetadata().GetUid()
			}
		}
	}
	return change(next, c.snapshot.Volume(name), func() { c.snapshot.SetVolume(name, next) })
}

// DeleteVolume takes in that a volume is gone.
func (c *Cluster) DeleteVolume(name string) filter.Event {
	delete(c.storage.volumes, name)
	delete(c.storage.taken, name)
	return c.refreshVolume(name)
}

// change sets what differs: many changes of objects are none of the picture.
func change[T any](next, before *T, set func()) filter.Event {
	if reflect.DeepEqual(next, before) {
		return 0
	}
	set()
	return filter.StorageChanged
}

// SetStorageClass takes in a class; nil when it is gone.
func (c *Cluster) SetStorageClass(name string, o *storagev1.StorageClass) filter.Event {
	var next *snapshot.StorageClass
	if o != nil {
		next = snapshot.CompileStorageClass(o)
	}
	return change(next, c.snapshot.StorageClass(name), func() { c.snapshot.SetStorageClass(name, next) })
}

// SetCapacity takes in a CSIStorageCapacity; nil when it is gone.
func (c *Cluster) SetCapacity(key object.Key, o *storagev1.CSIStorageCapacity) filter.Event {
	var next *snapshot.Capacity
	if o != nil {
		next = snapshot.CompileCapacity(o)
	}
	c.snapshot.SetCapacity(key.String(), next)
	return filter.StorageChanged
}

// SetDriver takes in a CSIDriver; nil when it is gone.
func (c *Cluster) SetDriver(name string, o *storagev1.CSIDriver) filter.Event {
	c.snapshot.SetTracked(name, o.GetSpec().GetStorageCapacity())
	return filter.StorageChanged
}

// SetCSINode takes in how many volumes a node may have; nil when it says nothing any more.
func (c *Cluster) SetCSINode(name string, o *storagev1.CSINode) filter.Event {
	limits := map[string]int32{}
	for _, d := range o.GetSpec().GetDrivers() {
		if d.GetAllocatable().HasCount() {
			limits[d.GetName()] = d.GetAllocatable().GetCount()
		}
	}
	if maps.Equal(limits, c.snapshot.VolumeLimits(name)) {
		return 0
	}
	c.snapshot.SetVolumeLimits(name, limits)
	return filter.StorageChanged
}

// Reserve makes a decision about claims hold before it is seen. False: a claim or volume has changed since.
func (c *Cluster) Reserve(bindings []snapshot.VolumeBinding, node string) bool {
	for _, b := range bindings {
		claim := c.snapshot.Claim(b.Claim)
		if claim == nil || claim.Bound || claim.Volume != "" || b.Volume == "" && claim.SelectedNode != "" && claim.SelectedNode != node {
			return false
		}
		if v := c.snapshot.Volume(b.Volume); b.Volume != "" && (v == nil || v.Deleting || v.Claim != "" && !v.ReservedFor(claim)) {
			return false
		}
	}
	for _, b := range bindings {
		if b.Volume == "" {
			c.storage.nodes[b.Claim] = node
			c.refreshClaim(b.Claim)
		} else {
			c.storage.taken[b.Volume] = b
			c.refreshVolume(b.Volume)
		}
	}
	return true
}

// Release ends what Reserve began: the decision is seen by now, or was given up.
func (c *Cluster) Release(bindings []snapshot.VolumeBinding) filter.Event {
	var helps filter.Event
	for _, b := range bindings {
		if b.Volume == "" {
			delete(c.storage.nodes, b.Claim)
			helps |= c.refreshClaim(b.Claim)
		} else {
			delete(c.storage.taken, b.Volume)
			helps |= c.refreshVolume(b.Volume)
		}
	}
	return helps
}

// Usable says whether pods on a node can use a volume, and whether both are known.
func (c *Cluster) Usable(volume, node string) (usable, known bool) {
	v := c.snapshot.Volume(volume)
	slot, known := c.slots[node]
	if v == nil || !known {
		return false, false
	}
	return v.UsableOn(c.snapshot.Node(slot)), true
}

// Claim returns a claim as the picture has it, or nil.
func (c *Cluster) Claim(key string) *snapshot.Claim { return c.snapshot.Claim(key) }

// ClaimObject returns a claim's newest object, or nil; VolumeObject is the same for volumes.
func (c *Cluster) ClaimObject(key string) *corev1.PersistentVolumeClaim { return c.storage.claims[key] }

// VolumeObject returns a volume's newest object, or nil.
func (c *Cluster) VolumeObject(name string) *corev1.PersistentVolume { return c.storage.volumes[name] }
