package attachdetach

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/pkg/object"
	"dhow.dev/services/controller-manager/internal/inventory"
	"dhow.dev/services/controller-manager/internal/podstate"
	"dhow.dev/services/controller-manager/internal/reconcile"
)

// Disks that nodes reach by themselves have no attacher and no VolumeAttachment: the node's status says which of them it may use, and that is all.

// driverless are the kinds of such volumes: what their names in nodes' statuses begin with, and how those go on, in pods' own specs and in PersistentVolumes (empty:
// it is of another kind). The names are Kubernetes' and those that the node agent waits for (services/node-agent/internal/volume/attached.go).
var driverless = []struct {
	prefix string
	inPod  func(*corev1.VolumeSource) string
	in     func(*corev1.PersistentVolumeSource) string
}{
	{
		prefix: "kubernetes.io/iscsi/",
		inPod:  func(s *corev1.VolumeSource) string { return iscsiName(s.HasIscsi(), s.GetIscsi()) },
		in:     func(s *corev1.PersistentVolumeSource) string { return iscsiName(s.HasIscsi(), s.GetIscsi()) },
	},
	{
		prefix: "kubernetes.io/fc/",
		inPod:  func(s *corev1.VolumeSource) string { return fcName(s.GetFc()) },
		in:     func(s *corev1.PersistentVolumeSource) string { return fcName(s.GetFc()) },
	},
}

func iscsiName(is bool, s interface {
	GetTargetPortal() string
	GetIqn() string
	GetLun() int32
}) string {
	if !is {
		return ""
	}
	return fmt.Sprintf("%s:%s:%d", s.GetTargetPortal(), s.GetIqn(), s.GetLun())
}

func fcName(s *corev1.FCVolumeSource) string {
	switch {
	case len(s.GetTargetWwns()) > 0 && s.HasLun():
		return fmt.Sprintf("%v:%d", s.GetTargetWwns(), s.GetLun())
	case len(s.GetWwids()) > 0:
		return fmt.Sprint(s.GetWwids())
	}
	return ""
}

// driverlessInPod is the name of a volume of a pod's own spec in nodes' statuses; empty: it is of no such kind.
func driverlessInPod(s *corev1.VolumeSource) string {
	for _, kind := range driverless {
		if name := kind.inPod(s); name != "" {
			return kind.prefix + name
		}
	}
	return ""
}

func driverlessIn(s *corev1.PersistentVolumeSource) string {
	for _, kind := range driverless {
		if name := kind.in(s); name != "" {
			return kind.prefix + name
		}
	}
	return ""
}

// isDriverless says whether a name in a node's status is that of such a volume.
func isDriverless(unique string) bool {
	for _, kind := range driverless {
		if strings.HasPrefix(unique, kind.prefix) {
			return true
		}
	}
	return false
}

// direct is a volume without a driver that pods of a node use.
type direct struct {
	// name is what users know it by: the PersistentVolume's, or the volume's in the pod.
	name string
	// shared says that several nodes may have it. As in Kubernetes nothing is known of a volume that only pods' specs have, and it is left to who wrote them.
	shared bool
	pods   []*corev1.Pod
}

// wantedDirect returns those volumes of a node, by their names in its status.
func (c *Controller) wantedDirect(node string) map[string]*direct {
	all := map[string]*direct{}
	for _, p := range c.stores.Pods.ByIndex(inventory.ByNode, node) {
		if podstate.IsFinished(p) {
			continue
		}
		add := func(unique, name string, shared bool) {
			if unique == "" {
				return
			}
			if all[unique] == nil {
				all[unique] = &direct{name: name, shared: true}
			}
			// One that may not share it is enough.
			all[unique].shared = all[unique].shared && shared
			all[unique].pods = append(all[unique].pods, p)
		}
		for _, v := range c.claimed(p) {
			add(driverlessIn(v.GetSpec().GetPersistentVolumeSource()), v.GetMetadata().GetName(), shared(v))
		}
		for _, v := range p.GetSpec().GetVolumes() {
			add(driverlessInPod(v.GetVolumeSource()), v.GetName(), true)
		}
	}
	return all
}

// admit adds to what is attached to a node the volumes without a driver that are to be: those that it has and uses or has not let go of, and those that it wants and
// may have. It returns the latter; until settle no other node gets them.
func (c *Controller) admit(turn *reconcile.Turn[string], node *corev1.Node, attached map[string]bool) (map[string]*direct, error) {
	wanted := c.wantedDirect(turn.Key)
	for _, a := range node.GetStatus().GetVolumesAttached() {
		unique := a.GetName()
		if !isDriverless(unique) {
			continue
		}
		if wanted[unique] != nil || !c.mayDetach(turn, node, true, unique) {
			attached[unique] = true
		}
		delete(wanted, unique)
	}
	var failed error
	for _, unique := range slices.Sorted(maps.Keys(wanted)) {
		need := wanted[unique]
		if !need.shared {
			c.mu.Lock()
			free, err := c.free(turn.Key, unique, need.name, need.pods, func() bool { return c.directElsewhere(turn.Key, unique) })
			if free {
				c.begun[unique] = beginning{turn.Key, math.MaxInt64}
			}
			c.mu.Unlock()
			failed = errors.Join(failed, err)
			if !free {
				delete(wanted, unique)
				continue
			}
		}
		attached[unique] = true
	}
	return wanted, failed
}

// settle notes which version of the node's status has the volumes that it was admitted to; nil: none has.
func (c *Controller) settle(admitted map[string]*direct, written *corev1.Node) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for unique, need := range admitted {
		switch {
		case need.shared:
		case written == nil:
			delete(c.begun, unique)
		default:
			c.begun[unique] = beginning{written.GetMetadata().GetName(), object.Revision(written)}
		}
	}
}

// directElsewhere says whether another node has a volume without a driver.
func (c *Controller) directElsewhere(node, unique string) bool {
	return slices.ContainsFunc(c.stores.Nodes.List(), func(n *corev1.Node) bool {
		return n.GetMetadata().GetName() != node && hasAttached(n, unique)
	})
}

func hasAttached(n *corev1.Node, unique string) bool {
	return slices.ContainsFunc(n.GetStatus().GetVolumesAttached(), func(a *corev1.AttachedVolume) bool { return a.GetName() == unique })
}

// free says whether a node may have a volume that only one may have, and tells the pods when it may not; the node has its turn when the other one lets go. The
// caller holds c.mu, until c.begun says that the node has it.
func (c *Controller) free(node, unique, name string, pods []*corev1.Pod, elsewhere func() bool) (bool, error) {
	if b, ok := c.begun[unique]; ok {
		if c.stores.Revision() < b.revision && b.node != node {
			return false, apierrors.NewConflict(schema.GroupResource{Resource: "nodes"}, node, fmt.Errorf("volume %s was just attached to node %s", name, b.node))
		}
		delete(c.begun, unique)
	}
	// Noted before the look, so that no change after it is missed: it brings this node back here.
	c.wait(unique, node)
	if elsewhere() {
		for _, p := range pods {
			c.events.Report(p, "Warning", "FailedAttachVolume", "Multi-Attach error for volume %q Volume is already exclusively attached to one node and can't be attached to another", name)
		}
		return false, nil
	}
	c.waitNoMore(unique, node)
	return true, nil
}

// reportAll writes what is attached to a node into its status, with the volumes without a driver that it gets by that.
func (c *Controller) reportAll(ctx context.Context, turn *reconcile.Turn[string], node *corev1.Node, attached map[string]bool) error {
	admitted, failed := c.admit(turn, node, attached)
	written, err := c.report(ctx, turn, node, attached)
	c.settle(admitted, written)
	if err != nil {
		return errors.Join(failed, err)
	}
	for _, need := range admitted {
		for _, p := range need.pods {
			c.events.Report(p, "Normal", "SuccessfulAttachVolume", "AttachVolume.Attach succeeded for volume %q ", need.name)
		}
	}
	return failed
}
