// Package volume says, for one class of pods, what its persistent volume claims let it do: whether it can be placed at all, on which nodes the volumes of
// its claims can be used, and which volumes its unbound claims would get on a node. It follows Kubernetes' plugins VolumeBinding, VolumeRestrictions,
// NodeVolumeLimits and VolumeZone.
package volume

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"dhow.dev/services/scheduler/internal/snapshot"
)

// Words of Kubernetes' scheduler.
const (
	ReasonUnusable = "node(s) didn't match PersistentVolume's node affinity"
	ReasonNoVolume = "node(s) didn't find available persistent volumes to bind"
	ReasonNoSpace  = "node(s) did not have enough free storage"
	ReasonLost     = "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)"
	ReasonInUse    = "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode"
	ReasonNoDisk   = "node(s) had no available disk"
	ReasonTooMany  = "node(s) exceed max volume count"
	ReasonZone     = "node(s) had no available volume zone"
	messageUnbound = "pod has unbound immediate PersistentVolumeClaims"
	zoneSeparator  = "__"
)

// zoneLabels are those of volumes whose values name the zones or regions that a node must be in.
var zoneLabels = []string{"topology.kubernetes.io/zone", "topology.kubernetes.io/region", "failure-domain.beta.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/region"}

// Needs are the claims of a class as the snapshot has them, and the volumes of its own spec that drivers serve. It is nil for classes without any; the methods allow that.
type Needs struct {
	snapshot *snapshot.Snapshot
	class    *snapshot.Class
	broken   string
	// bound are the volumes of bound claims, lost that one of them is not there.
	bound []*snapshot.Volume
	lost  bool
	// asked are the claims that no volume was chosen for, the smallest first.
	asked []asked
	// exclusive are the claims that one pod may use at a time, used by how many others they are.
	exclusive []string
	used      int
}

// asked is a claim that waits for its first pod's node.
type asked struct {
	claim *snapshot.Claim
	class *snapshot.StorageClass
	// fitting are the volumes that it could get: one that is reserved for it, or the smallest first.
	fitting []*snapshot.Volume
}

// New looks at the claims of a class.
func New(s *snapshot.Snapshot, c *snapshot.Class) *Needs {
	if len(c.Claims) == 0 && len(c.Served) == 0 {
		return nil
	}
	n := &Needs{snapshot: s, class: c}
	immediate := false
	for _, ref := range c.Claims {
		claim := s.Claim(ref.Key)
		if n.broken = problem(ref, claim); n.broken != "" {
			return n
		}
		if slices.Contains(claim.Modes, snapshot.OncePod) {
			n.exclusive = append(n.exclusive, ref.Key)
		}
		class := s.StorageClass(claim.Class)
		switch {
		case claim.Bound:
			if v := s.Volume(claim.Volume); v != nil {
				n.bound = append(n.bound, v)
			} else {
				n.lost = true
			}
		case class != nil && class.Waits && claim.Volume == "":
			n.asked = append(n.asked, asked{claim: claim, class: class, fitting: fitting(s, claim)})
		default:
			immediate = true
		}
	}
	if immediate {
		n.broken = messageUnbound
		return n
	}
	slices.SortStableFunc(n.asked, func(a, b asked) int { return cmp.Compare(a.claim.Size, b.claim.Size) })
	for slot := range s.Slots() {
		for _, use := range s.Uses(slot) {
			if slices.Contains(n.exclusive, use.Claim) {
				n.used++
			}
		}
	}
	return n
}

// problem says what is wrong with a claim, whatever the node.
func problem(ref snapshot.ClaimRef, claim *snapshot.Claim) string {
	switch {
	case claim == nil && ref.Owner != "":
		return fmt.Sprintf("waiting for ephemeral volume controller to create the persistentvolumeclaim %q", ref.Name)
	case claim == nil:
		return fmt.Sprintf("persistentvolumeclaim %q not found", ref.Name)
	case claim.Lost:
		return fmt.Sprintf("persistentvolumeclaim %q bound to non-existent persistentvolume %q", ref.Name, claim.Volume)
	case claim.Deleting:
		return fmt.Sprintf("persistentvolumeclaim %q is being deleted", ref.Name)
	case ref.Owner != "" && claim.Owner != ref.Owner:
		return fmt.Sprintf("PVC %s was not created for pod (pod is not owner)", ref.Key)
	}
	return ""
}

// fitting returns the volumes that a claim could be bound to, but for the node.
func fitting(s *snapshot.Snapshot, c *snapshot.Claim) []*snapshot.Volume {
	var out []*snapshot.Volume
	for _, v := range s.Volumes() {
		if v.Deleting || v.Block != c.Block || v.Class != c.Class || v.AttributesClass != c.AttributesClass || v.Size < c.Size || !covers(v.Modes, c.Modes) {
			continue
		}
		reserved := v.ReservedFor(c)
		if !reserved && (v.Claim != "" || !v.Available || !c.Selects(v)) {
			continue
		}
		if reserved {
			// Nothing else is looked at: this one was chosen, by a user or by an earlier attempt.
			return []*snapshot.Volume{v}
		}
		out = append(out, v)
	}
	slices.SortFunc(out, func(a, b *snapshot.Volume) int {
		return cmp.Or(cmp.Compare(a.Size, b.Size), strings.Compare(a.Name, b.Name))
	})
	return out
}

func covers(has, wants []string) bool {
	return !slices.ContainsFunc(wants, func(mode string) bool { return !slices.Contains(has, mode) })
}

// Broken says what keeps the class from every node, or nothing.
func (n *Needs) Broken() string {
	if n == nil {
		return ""
	}
	return n.broken
}

// Undecided says that a placement chooses volumes, so that what was found out before other volumes were chosen may no longer hold.
func (n *Needs) Undecided() bool { return n != nil && len(n.asked) > 0 }

// InUse says that another pod uses a claim that only one may use.
func (n *Needs) InUse() bool { return n != nil && n.used > 0 }

// Add takes in that pods of some class were placed, or were taken away (negative).
func (n *Needs) Add(placed *snapshot.Class, pods int32) {
	if n == nil || len(n.exclusive) == 0 {
		return
	}
	for _, ref := range placed.Claims {
		if slices.Contains(n.exclusive, ref.Key) {
			n.used += int(pods)
		}
	}
}

// Find returns what would be decided for the class's unbound claims on a node, or the reasons why the node's pods cannot use its volumes.
func (n *Needs) Find(slot int, reasons []string) ([]snapshot.VolumeBinding, []string) {
	if n == nil {
		return nil, reasons
	}
	if n.broken != "" {
		return nil, append(reasons, n.broken)
	}
	node := n.snapshot.Node(slot)
	if slices.ContainsFunc(n.bound, func(v *snapshot.Volume) bool { return !v.UsableOn(node) }) {
		reasons = append(reasons, ReasonUnusable)
	}
	bindings, reason := n.choose(node)
	if reason != "" {
		reasons = append(reasons, reason)
	}
	if n.lost {
		reasons = append(reasons, ReasonLost)
	}
	return bindings, reasons
}

// choose finds volumes for the unbound claims, or that they can be made.
func (n *Needs) choose(node *snapshot.Node) ([]snapshot.VolumeBinding, string) {
	for i := range n.asked {
		if chosen := n.asked[i].claim.SelectedNode; chosen != "" && chosen != node.Name {
			return nil, ReasonNoVolume
		}
	}
	var bindings []snapshot.VolumeBinding
	taken := map[string]bool{}
	for i := range n.asked {
		a := &n.asked[i]
		at := -1
		if a.claim.SelectedNode == "" {
			at = slices.IndexFunc(a.fitting, func(v *snapshot.Volume) bool { return !taken[v.Name] && v.UsableOn(node) })
		}
		if at >= 0 {
			taken[a.fitting[at].Name] = true
			bindings = append(bindings, snapshot.VolumeBinding{Claim: a.claim.Key, Volume: a.fitting[at].Name})
			continue
		}
		if reason := a.makeable(n.snapshot, node); reason != "" {
			return nil, reason
		}
		bindings = append(bindings, snapshot.VolumeBinding{Claim: a.claim.Key})
	}
	return bindings, ""
}

// makeable says why no volume can be made for a node.
func (a *asked) makeable(s *snapshot.Snapshot, node *snapshot.Node) string {
	if a.class.Provisioner == "" || a.class.Provisioner == snapshot.NoProvisioner {
		return ReasonNoVolume
	}
	allowed := func(t snapshot.Term) bool { return t.Matches(node) }
	if len(a.class.Topologies) > 0 && !slices.ContainsFunc(a.class.Topologies, allowed) {
		return ReasonNoVolume
	}
	capacities, tracked := s.Capacities(a.class.Provisioner)
	if !tracked {
		return ""
	}
	for _, c := range capacities {
		if c.Class == a.claim.Class && c.HasRoom(node, a.claim.Size) {
			return ""
		}
	}
	return ReasonNoSpace
}

// TooMany says that the node would have more volumes of a driver than it may.
func (n *Needs) TooMany(slot int) bool {
	if n == nil || n.broken != "" {
		return false
	}
	limits := n.snapshot.VolumeLimits(n.snapshot.Node(slot).Name)
	if len(limits) == 0 {
		return false
	}
	added, there := map[snapshot.Served]bool{}, map[snapshot.Served]bool{}
	note := func(in map[snapshot.Served]bool, v snapshot.Served) {
		if _, limited := limits[v.Driver]; limited {
			in[v] = true
		}
	}
	for _, ref := range n.class.Claims {
		note(added, n.attached(ref.Key))
	}
	for _, v := range n.class.Served {
		note(added, v)
	}
	if len(added) == 0 {
		return false
	}
	for _, use := range n.snapshot.Uses(slot) {
		if use.Claim == "" {
			note(there, use.Served)
		} else {
			note(there, n.attached(use.Claim))
		}
	}
	counts := map[string]int32{}
	for v := range there {
		counts[v.Driver]++
		delete(added, v)
	}
	grown := map[string]bool{}
	for v := range added {
		counts[v.Driver]++
		grown[v.Driver] = true
	}
	for driver := range grown {
		if counts[driver] > limits[driver] {
			return true
		}
	}
	return false
}

// attached returns a claim's volume as its driver knows it. That of one that will be made is told from others by the claim.
func (n *Needs) attached(key string) snapshot.Served {
	claim := n.snapshot.Claim(key)
	if claim == nil {
		return snapshot.Served{}
	}
	if v := n.snapshot.Volume(claim.Volume); v != nil {
		return snapshot.Served{Driver: v.Driver, Handle: v.Handle}
	}
	if class := n.snapshot.StorageClass(claim.Class); class != nil {
		return snapshot.Served{Driver: class.Driver, Handle: key}
	}
	return snapshot.Served{}
}

// ElsewhereByLabel says that a bound volume's labels name zones or regions that the node is not in. Nodes that say nothing of theirs are let in.
func (n *Needs) ElsewhereByLabel(slot int) bool {
	if n == nil || n.broken != "" {
		return false
	}
	labels := n.snapshot.Node(slot).Labels
	if !slices.ContainsFunc(zoneLabels, func(key string) bool { return labels[key] != "" }) {
		return false
	}
	for _, v := range n.bound {
		for _, key := range zoneLabels {
			if zones, ok := v.Labels[key]; ok && !slices.Contains(strings.Split(zones, zoneSeparator), labels[key]) {
				return true
			}
		}
	}
	return false
}
