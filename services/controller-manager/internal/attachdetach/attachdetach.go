// Package attachdetach decides which volumes of CSI drivers are attached to which nodes: it writes VolumeAttachments, which the drivers' own attachers carry out,
// and notes in the nodes' statuses what is attached, which is what their agents wait for.
//
// A volume is attached while a pod on the node uses it. It is detached when no pod does and the node says (volumesInUse) that it has let go of it, when
// the node is gone, when it is declared out of service, or when it has not been ready for six minutes, as in Kubernetes. Volumes of plugins that Kubernetes had
// built in are attached by the drivers that serve them now; for those that only pods' specs describe, the attachment says what they are. Disks that nodes reach by
// themselves (iSCSI, Fibre Channel) are attached by saying so in the node's status.
package attachdetach

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	storagev1 "dhow.dev/gen/go/dhow/storage/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/csimigration"
	"dhow.dev/pkg/event"
	"dhow.dev/pkg/informer"
	"dhow.dev/pkg/object"
	"dhow.dev/services/controller-manager/internal/apitime"
	"dhow.dev/services/controller-manager/internal/inventory"
	"dhow.dev/services/controller-manager/internal/podstate"
	"dhow.dev/services/controller-manager/internal/reconcile"
)

const (
	// uniquePrefix, a driver, "^" and a handle are the name of a volume in nodes' statuses.
	uniquePrefix = "kubernetes.io/csi/"
	outOfService = "node.kubernetes.io/out-of-service"
	// forceAfter is how long a node must not be ready before its volumes are detached although it may still use them; Kubernetes' time.
	forceAfter = 6 * time.Minute
)

// Config is what the controller is made of.
type Config struct {
	Conn    grpc.ClientConnInterface
	Stores  *inventory.Stores
	Events  *event.Recorder
	Logger  *slog.Logger
	Now     func() time.Time
	Workers int
}

// Controller reconciles the attachments of nodes, by the nodes' names.
type Controller struct {
	*reconcile.Runner[string]
	stores      *inventory.Stores
	events      event.Source
	now         func() time.Time
	nodes       *client.Client[*corev1.Node]
	attachments *client.Client[*storagev1.VolumeAttachment]

	// begun are the attachments of volumes for one node only that the stores may not show yet, by volume: nodes' turns run beside each other.
	mu    sync.Mutex
	begun map[string]beginning

	// waiting are the nodes that wait for another to let go of a volume, by volume. It has a lock of its own: who tells of changes must not wait for an API call.
	waitMu  sync.Mutex
	waiting map[string]map[string]bool
}

type beginning struct {
	node     string
	revision int64
}

// New returns the controller, listening to the stores.
func New(cfg Config) *Controller {
	c := &Controller{
		stores: cfg.Stores, events: cfg.Events.Source("attachdetach-controller"), now: cfg.Now,
		nodes: client.For[*corev1.Node](cfg.Conn), attachments: client.For[*storagev1.VolumeAttachment](cfg.Conn), begun: map[string]beginning{},
		waiting: map[string]map[string]bool{},
	}
	c.Runner = reconcile.New(reconcile.Config[string]{
		Name: "attachdetach", Source: cfg.Stores, Workers: cfg.Workers, Reconcile: c.reconcile, Logger: cfg.Logger,
	})
	cfg.Stores.Pods.OnChangeTraced(func(old, pod *corev1.Pod, cause *informer.Trace) {
		for _, p := range []*corev1.Pod{old, pod} {
			// What matters of a pod is where it is, and whether it is there.
			if node := p.GetSpec().GetNodeName(); node != "" && usesVolumes(p) &&
				(old.GetSpec().GetNodeName() != pod.GetSpec().GetNodeName() || podstate.IsFinished(old) != podstate.IsFinished(pod)) {
				c.Add(node, cause)
			}
		}
	})
	cfg.Stores.PersistentVolumeClaims.OnChangeTraced(func(old, claim *corev1.PersistentVolumeClaim, cause *informer.Trace) {
		if old.GetSpec().GetVolumeName() != claim.GetSpec().GetVolumeName() {
			c.users(object.KeyOf(claim), cause)
		}
	})
	cfg.Stores.VolumeAttachments.OnChangeTraced(func(old, a *storagev1.VolumeAttachment, cause *informer.Trace) {
		if a == nil {
			a = old
		}
		c.Add(a.GetSpec().GetNodeName(), cause)
		// Another node may wait for this one to let go.
		if v, err := c.attachedBy(a); err == nil {
			c.letGo(uniqueName(v), cause)
		}
	})
	cfg.Stores.Nodes.OnChangeTraced(func(old, node *corev1.Node, cause *informer.Trace) {
		gone := node == nil
		if gone {
			node = old
		}
		c.Add(node.GetMetadata().GetName(), cause)
		for _, a := range old.GetStatus().GetVolumesAttached() {
			if unique := a.GetName(); isDriverless(unique) && (gone || !hasAttached(node, unique)) {
				c.letGo(unique, cause)
			}
		}
	})
	cfg.Stores.CSIDrivers.OnChangeTraced(func(_, _ *storagev1.CSIDriver, cause *informer.Trace) {
		for _, n := range c.stores.Nodes.List() {
			c.Add(n.GetMetadata().GetName(), cause)
		}
	})
	return c
}

// usesVolumes says whether a pod has volumes that may have to be attached.
func usesVolumes(p *corev1.Pod) bool {
	return len(inventory.ClaimsOf(p)) > 0 || slices.ContainsFunc(p.GetSpec().GetVolumes(), func(v *corev1.Volume) bool {
		return csimigration.IsInline(v.GetVolumeSource()) || driverlessInPod(v.GetVolumeSource()) != ""
	})
}

// letGo asks for a turn of the nodes that wait for a volume.
func (c *Controller) letGo(volume string, cause *informer.Trace) {
	c.waitMu.Lock()
	nodes := c.waiting[volume]
	delete(c.waiting, volume)
	c.waitMu.Unlock()
	for node := range nodes {
		c.Add(node, cause)
	}
}

func (c *Controller) wait(volume, node string) {
	c.waitMu.Lock()
	defer c.waitMu.Unlock()
	if c.waiting[volume] == nil {
		c.waiting[volume] = map[string]bool{}
	}
	c.waiting[volume][node] = true
}

func (c *Controller) waitNoMore(volume, node string) {
	c.waitMu.Lock()
	defer c.waitMu.Unlock()
	delete(c.waiting[volume], node)
	if len(c.waiting[volume]) == 0 {
		delete(c.waiting, volume)
	}
}

// users asks for a turn of the nodes of pods that use a claim.
func (c *Controller) users(claim object.Key, cause *informer.Trace) {
	for _, p := range c.stores.Pods.ByIndex(inventory.ByClaim, claim.String()) {
		if node := p.GetSpec().GetNodeName(); node != "" {
			c.Add(node, cause)
		}
	}
}

// Name is the name of the attachment of a volume to a node, which Kubernetes' agents compute too.
func Name(handle, driver, node string) string {
	return fmt.Sprintf("csi-%x", sha256.Sum256([]byte(handle+driver+node)))
}

// uniqueName is a volume's name in nodes' statuses.
func uniqueName(v *corev1.PersistentVolume) string {
	csi := v.GetSpec().GetPersistentVolumeSource().GetCsi()
	return uniquePrefix + csi.GetDriver() + "^" + csi.GetVolumeHandle()
}

// needed is a volume that pods of a node use, as its driver knows it.
type needed struct {
	volume *corev1.PersistentVolume
	// inline says that there is no such PersistentVolume: it stands for a volume in the pods' own specs.
	inline bool
	pods   []*corev1.Pod
}

// claimed returns the volumes that the claims of a pod are bound to.
func (c *Controller) claimed(p *corev1.Pod) []*corev1.PersistentVolume {
	var all []*corev1.PersistentVolume
	for _, name := range inventory.ClaimsOf(p) {
		claim, _ := c.stores.PersistentVolumeClaims.Get(p.GetMetadata().GetNamespace(), name)
		if v, ok := c.stores.PersistentVolumes.Get("", claim.GetSpec().GetVolumeName()); ok && v.GetSpec().GetClaimRef().GetUid() == claim.GetMetadata().GetUid() {
			all = append(all, v)
		}
	}
	return all
}

// wanted returns the volumes of drivers that pods of a node use and that have to be attached, by the names of their attachments.
func (c *Controller) wanted(node string) map[string]*needed {
	all := map[string]*needed{}
	for _, p := range c.stores.Pods.ByIndex(inventory.ByNode, node) {
		if podstate.IsFinished(p) {
			continue
		}
		add := func(v *corev1.PersistentVolume, inline bool) {
			csi := v.GetSpec().GetPersistentVolumeSource().GetCsi()
			if csi == nil {
				return
			}
			if driver, ok := c.stores.CSIDrivers.Get("", csi.GetDriver()); ok && driver.GetSpec().HasAttachRequired() && !driver.GetSpec().GetAttachRequired() {
				return
			}
			key := Name(csi.GetVolumeHandle(), csi.GetDriver(), node)
			if all[key] == nil {
				all[key] = &needed{volume: v, inline: inline}
			}
			all[key].pods = append(all[key].pods, p)
		}
		for _, v := range c.claimed(p) {
			// What cannot be translated is told by the node, which cannot mount it either.
			if v, err := csimigration.Persistent(v); err == nil {
				add(v, false)
			}
		}
		for _, v := range p.GetSpec().GetVolumes() {
			if !csimigration.IsInline(v.GetVolumeSource()) {
				continue
			}
			if v, err := csimigration.Inline(v, p.GetMetadata().GetNamespace()); err == nil {
				add(v, true)
			}
		}
	}
	return all
}

func (c *Controller) reconcile(ctx context.Context, turn *reconcile.Turn[string]) error {
	name := turn.Key
	node, exists := c.stores.Nodes.Get("", name)
	wanted := map[string]*needed{}
	if exists {
		wanted = c.wanted(name)
	}
	var failed error
	var detach []*storagev1.VolumeAttachment
	attached := map[string]bool{}
	for _, a := range c.stores.VolumeAttachments.ByIndex(inventory.ByNode, name) {
		v, ok := c.ours(a)
		if !ok {
			continue
		}
		need := wanted[a.GetMetadata().GetName()]
		delete(wanted, a.GetMetadata().GetName())
		switch {
		case object.IsDeleted(a):
			if need != nil && exists {
				// It is let go of, and wanted again: it has to be gone first.
				continue
			}
		case need != nil:
			c.tell(need, a)
			if a.GetStatus().GetAttached() {
				attached[uniqueName(v)] = true
			}
		case c.mayDetach(turn, node, exists, uniqueName(v)):
			detach = append(detach, a)
		case a.GetStatus().GetAttached():
			attached[uniqueName(v)] = true
		}
	}
	if exists {
		// What is to be detached is taken from the status first, so that the agent does not begin to use it again.
		if err := c.reportAll(ctx, turn, node, attached); err != nil {
			return err
		}
	}
	for _, a := range detach {
		failed = errors.Join(failed, c.detach(ctx, turn, a))
	}
	for _, key := range slices.Sorted(maps.Keys(wanted)) {
		failed = errors.Join(failed, c.attach(ctx, turn, key, wanted[key]))
	}
	return failed
}

// attachedBy returns the volume of an attachment as its driver knows it.
func (c *Controller) attachedBy(a *storagev1.VolumeAttachment) (*corev1.PersistentVolume, error) {
	source := a.GetSpec().GetSource()
	if source.HasInlineVolumeSpec() {
		return corev1.PersistentVolume_builder{Spec: source.GetInlineVolumeSpec()}.Build(), nil
	}
	v, ok := c.stores.PersistentVolumes.Get("", source.GetPersistentVolumeName())
	if !ok {
		return nil, fmt.Errorf("volume %s of attachment %s: not there", source.GetPersistentVolumeName(), a.GetMetadata().GetName())
	}
	return csimigration.Persistent(v)
}

// ours returns the volume of an attachment that this controller has made or would make; attachments that others made are theirs.
func (c *Controller) ours(a *storagev1.VolumeAttachment) (*corev1.PersistentVolume, bool) {
	v, err := c.attachedBy(a)
	csi := v.GetSpec().GetPersistentVolumeSource().GetCsi()
	return v, err == nil && csi != nil && a.GetMetadata().GetName() == Name(csi.GetVolumeHandle(), csi.GetDriver(), a.GetSpec().GetNodeName())
}

// elsewhere says whether a volume is attached to another node, or about to be.
func (c *Controller) elsewhere(node string, need *needed) bool {
	unique := uniqueName(need.volume)
	var candidates []*storagev1.VolumeAttachment
	if need.inline {
		candidates = c.stores.VolumeAttachments.List()
	} else {
		// Those of volumes in pods' specs name none, and stand under no name.
		candidates = slices.Concat(c.stores.VolumeAttachments.ByIndex(inventory.ByVolume, need.volume.GetMetadata().GetName()), c.stores.VolumeAttachments.ByIndex(inventory.ByVolume, ""))
	}
	return slices.ContainsFunc(candidates, func(a *storagev1.VolumeAttachment) bool {
		if a.GetSpec().GetNodeName() == node {
			return false
		}
		v, err := c.attachedBy(a)
		return err == nil && uniqueName(v) == unique
	})
}

// mayDetach says whether a volume that no pod wants can be taken from the node.
func (c *Controller) mayDetach(turn *reconcile.Turn[string], node *corev1.Node, exists bool, unique string) bool {
	if !exists || !slices.Contains(node.GetStatus().GetVolumesInUse(), unique) {
		return true
	}
	if slices.ContainsFunc(node.GetSpec().GetTaints(), func(t *corev1.Taint) bool { return t.GetKey() == outOfService }) {
		return true
	}
	for _, condition := range node.GetStatus().GetConditions() {
		if condition.GetType() != "Ready" || condition.GetStatus() == "True" {
			continue
		}
		left := forceAfter - c.now().Sub(apitime.Go(condition.GetLastTransitionTime()))
		if left <= 0 {
			return true
		}
		turn.Again(left)
	}
	return false
}

// tell tells the pods of a volume how its attachment went; repeated events are counted, not multiplied.
func (c *Controller) tell(need *needed, a *storagev1.VolumeAttachment) {
	for _, p := range need.pods {
		if podstate.IsTerminating(p) || p.GetStatus().GetPhase() == "Running" {
			continue
		}
		name := need.volume.GetMetadata().GetName()
		switch s := a.GetStatus(); {
		case s.GetAttached():
			c.events.Report(p, "Normal", "SuccessfulAttachVolume", "AttachVolume.Attach succeeded for volume %q ", name)
		case s.HasAttachError():
			c.events.Report(p, "Warning", "FailedAttachVolume", "AttachVolume.Attach failed for volume %q : %s", name, s.GetAttachError().GetMessage())
		}
	}
}

// report writes which volumes are attached into the node's status; nil: it said so already.
func (c *Controller) report(ctx context.Context, turn *reconcile.Turn[string], node *corev1.Node, attached map[string]bool) (*corev1.Node, error) {
	var list []*corev1.AttachedVolume
	same := 0
	for _, v := range node.GetStatus().GetVolumesAttached() {
		switch {
		case !strings.HasPrefix(v.GetName(), uniquePrefix) && !isDriverless(v.GetName()):
			list = append(list, v)
		case attached[v.GetName()]:
			same++
		default:
			same = -1 << 20
		}
	}
	if same == len(attached) {
		return nil, nil
	}
	for name := range attached {
		list = append(list, corev1.AttachedVolume_builder{Name: proto.String(name), DevicePath: proto.String("")}.Build())
	}
	slices.SortFunc(list, func(a, b *corev1.AttachedVolume) int { return cmp.Compare(a.GetName(), b.GetName()) })
	next := proto.Clone(node).(*corev1.Node)
	if !next.HasStatus() {
		next.SetStatus(&corev1.NodeStatus{})
	}
	next.GetStatus().SetVolumesAttached(list)
	written, err := c.nodes.UpdateStatus(ctx, next)
	if err != nil {
		return nil, fmt.Errorf("attached volumes of node %s: %w", turn.Key, err)
	}
	turn.Wrote(written)
	return written, nil
}

// attach asks for an attachment, unless another node has a volume that only one may have.
func (c *Controller) attach(ctx context.Context, turn *reconcile.Turn[string], key string, need *needed) error {
	v := need.volume
	name, unique := v.GetMetadata().GetName(), uniqueName(v)
	if !shared(v) {
		c.mu.Lock()
		defer c.mu.Unlock()
		if free, err := c.free(turn.Key, unique, name, need.pods, func() bool { return c.elsewhere(turn.Key, need) }); err != nil || !free {
			return err
		}
	}
	source := storagev1.VolumeAttachmentSource_builder{PersistentVolumeName: proto.String(name)}.Build()
	if need.inline {
		source = storagev1.VolumeAttachmentSource_builder{InlineVolumeSpec: v.GetSpec()}.Build()
	}
	a := storagev1.VolumeAttachment_builder{
		Metadata: metav1.ObjectMeta_builder{Name: proto.String(key)}.Build(),
		Spec: storagev1.VolumeAttachmentSpec_builder{
			Attacher: proto.String(v.GetSpec().GetPersistentVolumeSource().GetCsi().GetDriver()), NodeName: proto.String(turn.Key), Source: source,
		}.Build(),
	}.Build()
	written, err := c.attachments.Create(ctx, a, nil)
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("attach volume %s to node %s: %w", name, turn.Key, err)
	}
	if err == nil {
		turn.Wrote(written)
		if !shared(v) {
			c.begun[unique] = beginning{turn.Key, object.Revision(written)}
		}
	}
	return nil
}

// shared says whether several nodes may have a volume, as far as its access modes tell.
func shared(v *corev1.PersistentVolume) bool {
	return len(v.GetSpec().GetAccessModes()) == 0 || slices.ContainsFunc(v.GetSpec().GetAccessModes(), func(m string) bool { return m == "ReadWriteMany" || m == "ReadOnlyMany" })
}

func (c *Controller) detach(ctx context.Context, turn *reconcile.Turn[string], a *storagev1.VolumeAttachment) error {
	written, err := c.attachments.Delete(ctx, "", a.GetMetadata().GetName(), metav1.DeletionOptions_builder{Uid: a.GetMetadata().GetUid()}.Build())
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("detach volume (%s) from node %s: %w", a.GetMetadata().GetName(), turn.Key, err)
	}
	if err == nil {
		turn.Wrote(written)
	}
	return nil
}
