package snapshot

import (
	"maps"
	"slices"
	"strings"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	storagev1 "dhow.dev/gen/go/dhow/storage/v1"
	"dhow.dev/pkg/csimigration"
	"dhow.dev/pkg/demand"
	"dhow.dev/pkg/object"
)

// Annotations of the protocol between scheduler and volume controllers, as in Kubernetes.
const (
	// AnnotationBindCompleted is on claims that are bound for good.
	AnnotationBindCompleted = "pv.kubernetes.io/bind-completed"
	// AnnotationBoundByController is on volumes whose claim was not chosen by a user.
	AnnotationBoundByController = "pv.kubernetes.io/bound-by-controller"
	// AnnotationSelectedNode asks for a volume that the node can use.
	AnnotationSelectedNode = "volume.kubernetes.io/selected-node"
	// annotationBetaClass is the older way to name a class.
	annotationBetaClass = "volume.beta.kubernetes.io/storage-class"
)

// NoProvisioner is what classes say of which nobody makes volumes.
const NoProvisioner = "kubernetes.io/no-provisioner"

// OncePod is the access mode of a claim that one pod may use at a time.
const OncePod = "ReadWriteOncePod"

// Storage is what placement asks of claims, volumes and their classes. What it holds is immutable, so that snapshots share it.
type Storage struct {
	claims     shelf[*Claim]
	volumes    shelf[*Volume]
	classes    shelf[*StorageClass]
	capacities shelf[*Capacity]
	// tracked are the drivers that tell their capacity.
	tracked shelf[bool]
	// limits are, by node, how many volumes it may have of each driver.
	limits shelf[map[string]int32]
}

// shelf is a map that is copied before the first write after it was shared.
type shelf[T any] struct {
	items  map[string]T
	shared bool
}

func (s *shelf[T]) share() shelf[T] {
	if !s.shared {
		s.shared = true
	}
	return *s
}

func (s *shelf[T]) write() map[string]T {
	if s.shared || s.items == nil {
		items := make(map[string]T, len(s.items)+1)
		maps.Copy(items, s.items)
		s.items, s.shared = items, false
	}
	return s.items
}

func (s *shelf[T]) set(key string, value T) { s.write()[key] = value }

func (s *shelf[T]) remove(key string) {
	if _, ok := s.items[key]; ok {
		delete(s.write(), key)
	}
}

func (s *Storage) share() Storage {
	return Storage{
		claims: s.claims.share(), volumes: s.volumes.share(), classes: s.classes.share(), capacities: s.capacities.share(),
		tracked: s.tracked.share(), limits: s.limits.share(),
	}
}

// Claim is a PersistentVolumeClaim.
type Claim struct {
	Key, Name, UID string
	// Class is the name of its storage class, empty for none.
	Class           string
	AttributesClass string
	Size            int64
	Modes           []string
	Block           bool
	// Selector is nil when any volume will do.
	Selector []Requirement
	// Volume is the one that it is bound to, or is to be bound to.
	Volume string
	// Bound says that both sides know it.
	Bound, Lost, Deleting bool
	SelectedNode          string
	// Owner is the UID of its controller: the pod whose ephemeral volume it is.
	Owner string
}

// Volume is a PersistentVolume.
type Volume struct {
	Name, Class     string
	AttributesClass string
	Size            int64
	Modes           []string
	Block           bool
	Labels          map[string]string
	// Claim is the key of the claim that it is reserved for, and ClaimUID that claim's, empty where a user named it.
	Claim, ClaimUID     string
	Available, Deleting bool
	// Nodes are alternatives; nil: it can be used everywhere.
	Nodes          []Term
	Driver, Handle string
}

// StorageClass is one, and who makes its volumes.
type StorageClass struct {
	Provisioner string
	// Driver is whose the volumes will be: the provisioner's, or the driver's that serves the plugin of this name.
	Driver string
	// Waits says that a claim's volume is chosen together with its first pod's node.
	Waits bool
	// Topologies are alternatives; none: everywhere.
	Topologies []Term
}

// Capacity is how much a driver can still make for a class on some nodes.
type Capacity struct {
	Class string
	// Nodes selects them; Nothing: none.
	Nodes   []Requirement
	Nothing bool
	// Largest is how large a volume may be.
	Largest int64
	Unknown bool
}

// VolumeBinding is what is decided for a claim: a volume, or that one is to be made for the node.
type VolumeBinding struct {
	Claim  string
	Volume string
}

// CompileClaim reads a claim.
func CompileClaim(o *corev1.PersistentVolumeClaim) *Claim {
	m, spec := o.GetMetadata(), o.GetSpec()
	c := &Claim{
		Key: object.KeyOf(o).String(), Name: m.GetName(), UID: m.GetUid(), Class: spec.GetStorageClassName(), AttributesClass: spec.GetVolumeAttributesClassName(),
		Size: demand.Of("storage", spec.GetResources().GetRequests()["storage"]), Modes: spec.GetAccessModes(), Block: spec.GetVolumeMode() == "Block",
		Volume: spec.GetVolumeName(), Lost: o.GetStatus().GetPhase() == "Lost", Deleting: object.IsDeleted(o),
		SelectedNode: m.GetAnnotations()[AnnotationSelectedNode], Owner: object.ControllerOf(o).GetUid(),
	}
	if class, ok := m.GetAnnotations()[annotationBetaClass]; ok {
		c.Class = class
	}
	if spec.HasSelector() {
		c.Selector, _ = labelRequirements(spec.GetSelector())
	}
	_, completed := m.GetAnnotations()[AnnotationBindCompleted]
	c.Bound = c.Volume != "" && completed
	return c
}

// CompileVolume reads a volume. One of a plugin that Kubernetes had built in is its driver's, and where it can be used is said in the driver's labels; what cannot
// be translated is told by the node that is to mount it.
func CompileVolume(o *corev1.PersistentVolume) *Volume {
	m, spec := o.GetMetadata(), o.GetSpec()
	if served, err := csimigration.Persistent(o); err == nil {
		spec = served.GetSpec()
	}
	v := &Volume{
		Name: m.GetName(), Class: spec.GetStorageClassName(), AttributesClass: spec.GetVolumeAttributesClassName(),
		Size: demand.Of("storage", spec.GetCapacity()["storage"]), Modes: spec.GetAccessModes(), Block: spec.GetVolumeMode() == "Block", Labels: m.GetLabels(),
		Available: o.GetStatus().GetPhase() == "Available", Deleting: object.IsDeleted(o),
		Driver: spec.GetPersistentVolumeSource().GetCsi().GetDriver(), Handle: spec.GetPersistentVolumeSource().GetCsi().GetVolumeHandle(),
	}
	if class, ok := m.GetAnnotations()[annotationBetaClass]; ok {
		v.Class = class
	}
	if spec.HasClaimRef() {
		ref := spec.GetClaimRef()
		v.Claim, v.ClaimUID = (object.Key{Namespace: ref.GetNamespace(), Name: ref.GetName()}).String(), ref.GetUid()
	}
	if spec.GetNodeAffinity().HasRequired() {
		v.Nodes = []Term{}
		for _, t := range spec.GetNodeAffinity().GetRequired().GetNodeSelectorTerms() {
			v.Nodes = append(v.Nodes, compileTerm(t))
		}
	}
	return v
}

// UsableOn says whether pods on a node can use the volume.
func (v *Volume) UsableOn(n *Node) bool {
	return v.Nodes == nil || slices.ContainsFunc(v.Nodes, func(t Term) bool { return t.Matches(n) })
}

// ReservedFor says whether the volume is reserved for a claim.
func (v *Volume) ReservedFor(c *Claim) bool {
	return v.Claim == c.Key && (v.ClaimUID == "" || v.ClaimUID == c.UID)
}

// CompileStorageClass reads a class.
func CompileStorageClass(o *storagev1.StorageClass) *StorageClass {
	c := &StorageClass{Provisioner: o.GetProvisioner(), Waits: o.GetVolumeBindingMode() == "WaitForFirstConsumer"}
	c.Driver = c.Provisioner
	if driver, ok := csimigration.Driver(c.Provisioner); ok {
		c.Driver = driver
	}
	for _, t := range o.GetAllowedTopologies() {
		var term Term
		for _, e := range t.GetMatchLabelExpressions() {
			term.Labels = append(term.Labels, Requirement{Key: e.GetKey(), Operator: "In", Values: e.GetValues()})
		}
		c.Topologies = append(c.Topologies, term)
	}
	return c
}

// CompileCapacity reads a CSIStorageCapacity.
func CompileCapacity(o *storagev1.CSIStorageCapacity) *Capacity {
	c := &Capacity{Class: o.GetStorageClassName()}
	c.Nodes, c.Nothing = labelRequirements(o.GetNodeTopology())
	switch {
	case o.HasMaximumVolumeSize():
		c.Largest = demand.Of("storage", o.GetMaximumVolumeSize())
	case o.HasCapacity():
		c.Largest = demand.Of("storage", o.GetCapacity())
	default:
		c.Unknown = true
	}
	return c
}

// HasRoom says whether a volume of a size can be made for a node.
func (c *Capacity) HasRoom(n *Node, size int64) bool {
	return !c.Nothing && !c.Unknown && c.Largest >= size && matchAll(c.Nodes, n.Labels)
}

// Selects says whether the claim's selector selects a volume.
func (c *Claim) Selects(v *Volume) bool { return c.Selector == nil || matchAll(c.Selector, v.Labels) }

// Claim returns a claim by key, or nil.
func (s *Snapshot) Claim(key string) *Claim { return s.storage.claims.items[key] }

// Volume returns a volume, or nil.
func (s *Snapshot) Volume(name string) *Volume { return s.storage.volumes.items[name] }

// Volumes returns all volumes by name. The map is not to be changed.
func (s *Snapshot) Volumes() map[string]*Volume { return s.storage.volumes.items }

// StorageClass returns a class, or nil.
func (s *Snapshot) StorageClass(name string) *StorageClass { return s.storage.classes.items[name] }

// Capacities returns what drivers say they can make, or false for a driver that says nothing. The map is not to be changed.
func (s *Snapshot) Capacities(driver string) (map[string]*Capacity, bool) {
	return s.storage.capacities.items, s.storage.tracked.items[driver]
}

// VolumeLimits returns how many volumes a node may have of each driver; a driver that is not there sets no limit.
func (s *Snapshot) VolumeLimits(node string) map[string]int32 { return s.storage.limits.items[node] }

// SetClaim takes in a claim; nil takes it away.
func (s *Snapshot) SetClaim(key string, c *Claim) { put(&s.storage.claims, key, c) }

// SetVolume takes in a volume; nil takes it away.
func (s *Snapshot) SetVolume(name string, v *Volume) { put(&s.storage.volumes, name, v) }

// SetStorageClass takes in a class; nil takes it away.
func (s *Snapshot) SetStorageClass(name string, c *StorageClass) { put(&s.storage.classes, name, c) }

// SetCapacity takes in a capacity; nil takes it away.
func (s *Snapshot) SetCapacity(key string, c *Capacity) { put(&s.storage.capacities, key, c) }

// SetTracked says whether a driver tells its capacity.
func (s *Snapshot) SetTracked(driver string, tracked bool) {
	if tracked {
		s.storage.tracked.set(driver, true)
	} else {
		s.storage.tracked.remove(driver)
	}
}

// SetVolumeLimits takes in a node's limits; none takes them away.
func (s *Snapshot) SetVolumeLimits(node string, limits map[string]int32) {
	if len(limits) > 0 {
		s.storage.limits.set(node, limits)
	} else {
		s.storage.limits.remove(node)
	}
}

func put[T any](s *shelf[*T], key string, value *T) {
	if value == nil {
		s.remove(key)
	} else {
		s.set(key, value)
	}
}

// Reserve makes bindings come true in the picture, for a pod on a node.
func (s *Snapshot) Reserve(bindings []VolumeBinding, node string) {
	for _, b := range bindings {
		claim := *s.Claim(b.Claim)
		if b.Volume == "" {
			claim.SelectedNode = node
			s.SetClaim(b.Claim, &claim)
			continue
		}
		volume := *s.Volume(b.Volume)
		volume.Claim, volume.ClaimUID = claim.Key, claim.UID
		s.SetVolume(b.Volume, &volume)
	}
}

// ClaimRef is a claim that a pod uses.
type ClaimRef struct {
	Key, Name string
	// Owner is the UID of the pod, for the claim of an ephemeral volume, which must belong to it.
	Owner string
}

// claimRefs are the claims of a pod.
func claimRefs(m *metav1.ObjectMeta, spec *corev1.PodSpec) []ClaimRef {
	var out []ClaimRef
	for _, v := range spec.GetVolumes() {
		ref := ClaimRef{}
		source := v.GetVolumeSource()
		switch {
		case source.HasPersistentVolumeClaim():
			ref.Name = source.GetPersistentVolumeClaim().GetClaimName()
		case source.HasEphemeral():
			ref.Name, ref.Owner = m.GetName()+"-"+v.GetName(), m.GetUid()
		default:
			continue
		}
		ref.Key = (object.Key{Namespace: m.GetNamespace(), Name: ref.Name}).String()
		if !slices.Contains(out, ref) {
			out = append(out, ref)
		}
	}
	slices.SortFunc(out, func(a, b ClaimRef) int { return strings.Compare(a.Key, b.Key) })
	return out
}

// Served is a volume of a pod's own spec that a CSI driver serves in place of a plugin which Kubernetes had built in.
type Served struct{ Driver, Handle string }

// servedOf returns those of a pod.
func servedOf(m *metav1.ObjectMeta, spec *corev1.PodSpec) []Served {
	var out []Served
	for _, v := range spec.GetVolumes() {
		if !csimigration.IsInline(v.GetVolumeSource()) {
			continue
		}
		// The node says what is wrong with one that cannot be translated.
		if pv, err := csimigration.Inline(v, m.GetNamespace()); err == nil {
			source := pv.GetSpec().GetPersistentVolumeSource().GetCsi()
			out = append(out, Served{Driver: source.GetDriver(), Handle: source.GetVolumeHandle()})
		}
	}
	return out
}

// appendServed names what servedOf reads, without translating it: keys are made of every pod.
func appendServed(b []byte, spec *corev1.PodSpec) []byte {
	for _, v := range spec.GetVolumes() {
		if csimigration.IsInline(v.GetVolumeSource()) {
			b = appendString(b, v.GetName())
			b = appendMessage(b, v.GetVolumeSource())
		}
	}
	return append(b, ';')
}

// Use is a claim in use on a node, or a volume of a pod's own spec.
type Use struct {
	Claim, Holder string
	Served        Served
}

// Uses returns the claims in use on a node.
func (s *Snapshot) Uses(slot int) []Use { return s.uses.items[slot] }
