// Package localpath is the built-in provisioner: it makes volumes of folders on the nodes, and the storage class for them when a cluster has none.
//
// A volume is a PersistentVolume of kind local, whose folder is below Root on the node that the scheduler chose. The node's agent makes the folder
// when the volume is first mounted. When the claim is gone and the policy is Delete, the controller writes the volume's name as an annotation on the
// Node; the agent deletes the folder and takes the annotation away; then the volume goes. A node that is gone has taken its folders along.
package localpath

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	storagev1 "dhow.dev/gen/go/dhow/storage/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/event"
	"dhow.dev/pkg/informer"
	"dhow.dev/pkg/object"
	"dhow.dev/services/controller-manager/internal/inventory"
	"dhow.dev/services/controller-manager/internal/reconcile"
)

const (
	// Provisioner is the name in storage classes, Class the name of the one that is made.
	Provisioner = "dhow.dev/local-path"
	Class       = "local-path"
	// Root is the folder of all volumes as nodes name it: each agent has it in its own data folder.
	Root = "/var/lib/kubelet/local-path"
	// RemovalPrefix and a volume's name are the annotation on a Node that has the agent delete the volume's folder.
	RemovalPrefix = "local-path.dhow.dev/"

	finalizer = "dhow.dev/local-path"
	// removal is on volumes whose node was told to delete the folder.
	removal            = "dhow.dev/local-path-removal"
	provisionedBy      = "pv.kubernetes.io/provisioned-by"
	storageProvisioner = "volume.kubernetes.io/storage-provisioner"
	selectedNode       = "volume.kubernetes.io/selected-node"
	hostname           = "kubernetes.io/hostname"
)

// Config is what the controller is made of.
type Config struct {
	Conn    grpc.ClientConnInterface
	Stores  *inventory.Stores
	Events  *event.Recorder
	Logger  *slog.Logger
	Workers int
}

// Controller makes and deletes volumes. A key without namespace is a volume's, others are claims'.
type Controller struct {
	*reconcile.Runner[object.Key]
	stores  *inventory.Stores
	events  event.Source
	logger  *slog.Logger
	claims  *client.Client[*corev1.PersistentVolumeClaim]
	volumes *client.Client[*corev1.PersistentVolume]
	nodes   *client.Client[*corev1.Node]
	classes *client.Client[*storagev1.StorageClass]
}

// New returns the controller, listening to the stores.
func New(cfg Config) *Controller {
	c := &Controller{
		stores: cfg.Stores, events: cfg.Events.Source(Provisioner), logger: cfg.Logger, claims: client.For[*corev1.PersistentVolumeClaim](cfg.Conn),
		volumes: client.For[*corev1.PersistentVolume](cfg.Conn), nodes: client.For[*corev1.Node](cfg.Conn), classes: client.For[*storagev1.StorageClass](cfg.Conn),
	}
	c.Runner = reconcile.New(reconcile.Config[object.Key]{
		Name: "localpath", Source: cfg.Stores, Workers: cfg.Workers, Reconcile: c.reconcile, Logger: cfg.Logger,
	})
	cfg.Stores.PersistentVolumeClaims.OnChangeTraced(func(_, claim *corev1.PersistentVolumeClaim, cause *informer.Trace) {
		if claim != nil && claim.GetMetadata().GetAnnotations()[storageProvisioner] == Provisioner {
			c.Add(object.KeyOf(claim), cause)
		}
	})
	cfg.Stores.PersistentVolumes.OnChangeTraced(func(_, v *corev1.PersistentVolume, cause *informer.Trace) {
		if v != nil && isOurs(v) {
			c.Add(object.KeyOf(v), cause)
		}
	})
	cfg.Stores.Nodes.OnChangeTraced(func(old, node *corev1.Node, cause *informer.Trace) {
		if old == nil {
			return
		}
		now := node.GetMetadata().GetAnnotations()
		for key := range old.GetMetadata().GetAnnotations() {
			if name, ok := strings.CutPrefix(key, RemovalPrefix); ok && now[key] == "" {
				c.Add(object.Key{Name: name}, cause)
			}
		}
		if node != nil {
			return
		}
		for _, v := range c.stores.PersistentVolumes.List() {
			if isOurs(v) && v.GetStatus().GetPhase() != "Bound" {
				c.Add(object.KeyOf(v), cause)
			}
		}
		for _, claim := range c.stores.PersistentVolumeClaims.List() {
			if claim.GetMetadata().GetAnnotations()[selectedNode] == old.GetMetadata().GetName() {
				c.Add(object.KeyOf(claim), cause)
			}
		}
	})
	return c
}

func isOurs(v *corev1.PersistentVolume) bool {
	return v.GetMetadata().GetAnnotations()[provisionedBy] == Provisioner
}

// Run works until ctx ends. A cluster without any storage class gets one first.
func (c *Controller) Run(ctx context.Context) error {
	tasks, running := errgroup.WithContext(ctx)
	tasks.Go(func() error { return c.Runner.Run(running) })
	tasks.Go(func() error {
		if c.stores.WaitForSync(running) != nil || c.stores.StorageClasses.Len() > 0 {
			return nil
		}
		class := storagev1.StorageClass_builder{
			Metadata:    metav1.ObjectMeta_builder{Name: proto.String(Class), Annotations: map[string]string{"storageclass.kubernetes.io/is-default-class": "true"}}.Build(),
			Provisioner: proto.String(Provisioner), ReclaimPolicy: proto.String("Delete"), VolumeBindingMode: proto.String("WaitForFirstConsumer"),
			AllowVolumeExpansion: proto.Bool(true),
		}.Build()
		if _, err := c.classes.Create(running, class, nil); err != nil && !apierrors.IsAlreadyExists(err) && running.Err() == nil {
			c.logger.WarnContext(running, "no default storage class made", "error", err)
		}
		return nil
	})
	return tasks.Wait()
}

func (c *Controller) reconcile(ctx context.Context, turn *reconcile.Turn[object.Key]) error {
	if turn.Key.Namespace == "" {
		if v, ok := c.stores.PersistentVolumes.Get("", turn.Key.Name); ok && isOurs(v) {
			return c.volume(ctx, turn, v)
		}
		return nil
	}
	claim, ok := c.stores.PersistentVolumeClaims.Get(turn.Key.Namespace, turn.Key.Name)
	switch {
	case !ok || claim.GetMetadata().GetAnnotations()[storageProvisioner] != Provisioner:
		return nil
	case claim.GetSpec().GetVolumeName() != "":
		return c.grow(ctx, turn, claim)
	case object.IsDeleted(claim):
		return nil
	}
	return c.provision(ctx, turn, claim)
}

// provision makes the volume of a claim.
func (c *Controller) provision(ctx context.Context, turn *reconcile.Turn[object.Key], claim *corev1.PersistentVolumeClaim) error {
	class, ok := c.stores.StorageClasses.Get("", inventory.ClassOf(claim))
	if !ok || class.GetProvisioner() != Provisioner {
		return nil
	}
	if err := impossible(class, claim); err != nil {
		c.events.Report(claim, "Warning", "ProvisioningFailed", "failed to provision volume with StorageClass %q: %v", class.GetMetadata().GetName(), err)
		return nil
	}
	where := claim.GetMetadata().GetAnnotations()[selectedNode]
	if where == "" {
		c.events.Report(claim, "Warning", "ProvisioningFailed", "failed to provision volume with StorageClass %q: the class needs volumeBindingMode WaitForFirstConsumer: only then is known on which node the volume has to be", class.GetMetadata().GetName())
		return nil
	}
	node, ok := c.stores.Nodes.Get("", where)
	if !ok {
		// The scheduler chooses again.
		next := proto.Clone(claim).(*corev1.PersistentVolumeClaim)
		next.GetMetadata().SetAnnotations(without(claim.GetMetadata().GetAnnotations(), selectedNode))
		written, err := c.claims.Update(ctx, next, nil)
		if err != nil {
			return fmt.Errorf("claim %s: %w", turn.Key, err)
		}
		turn.Wrote(written)
		c.events.Report(claim, "Warning", "ProvisioningFailed", "failed to get target node: node %q not found", where)
		return nil
	}
	v := volumeFor(class, claim, node)
	written, err := c.volumes.Create(ctx, v, nil)
	if apierrors.IsAlreadyExists(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("volume for claim %s: %w", turn.Key, err)
	}
	turn.Wrote(written)
	c.events.Report(claim, "Normal", "ProvisioningSucceeded", "Successfully provisioned volume %s", v.GetMetadata().GetName())
	return nil
}

// impossible says why a folder cannot be what a claim asks for; nil when it can.
func impossible(class *storagev1.StorageClass, claim *corev1.PersistentVolumeClaim) error {
	spec := claim.GetSpec()
	for _, m := range spec.GetAccessModes() {
		if m != "ReadWriteOnce" && m != "ReadWriteOncePod" {
			return fmt.Errorf("access mode %s: a folder of one node serves ReadWriteOnce and ReadWriteOncePod only", m)
		}
	}
	switch {
	case spec.GetVolumeMode() == "Block":
		return fmt.Errorf("volumeMode Block: folders serve Filesystem only")
	case spec.HasDataSource() || spec.HasDataSourceRef():
		return fmt.Errorf("dataSource: folders are made empty")
	case spec.HasSelector():
		return fmt.Errorf("claim Selector is not supported")
	case spec.GetVolumeAttributesClassName() != "":
		return fmt.Errorf("volumeAttributesClassName: folders have no attributes")
	case len(class.GetMountOptions()) > 0:
		return fmt.Errorf("mountOptions: folders are not mounted from a device")
	}
	return nil
}

func volumeFor(class *storagev1.StorageClass, claim *corev1.PersistentVolumeClaim, node *corev1.Node) *corev1.PersistentVolume {
	m, spec := claim.GetMetadata(), claim.GetSpec()
	name := "pvc-" + m.GetUid()
	host := node.GetMetadata().GetLabels()[hostname]
	if host == "" {
		host = node.GetMetadata().GetName()
	}
	meta := metav1.ObjectMeta_builder{Name: proto.String(name), Annotations: map[string]string{provisionedBy: Provisioner}}.Build()
	if class.GetReclaimPolicy() != "Retain" {
		meta.SetFinalizers([]string{finalizer})
	}
	return corev1.PersistentVolume_builder{
		Metadata: meta,
		Spec: corev1.PersistentVolumeSpec_builder{
			Capacity:               map[string]*metav1.Quantity{"storage": spec.GetResources().GetRequests()["storage"]},
			AccessModes:            spec.GetAccessModes(),
			StorageClassName:       proto.String(class.GetMetadata().GetName()),
			VolumeMode:             proto.String("Filesystem"),
			PersistentVolumeSource: corev1.PersistentVolumeSource_builder{Local: corev1.LocalVolumeSource_builder{Path: proto.String(Root + "/" + name)}.Build()}.Build(),
			ClaimRef: corev1.ObjectReference_builder{
				Kind: proto.String("PersistentVolumeClaim"), ApiVersion: proto.String("v1"), Namespace: proto.String(m.GetNamespace()), Name: proto.String(m.GetName()),
				Uid: proto.String(m.GetUid()), ResourceVersion: proto.String(m.GetResourceVersion()),
			}.Build(),
			PersistentVolumeReclaimPolicy: proto.String(class.GetReclaimPolicy()),
			NodeAffinity: corev1.VolumeNodeAffinity_builder{Required: corev1.NodeSelector_builder{NodeSelectorTerms: []*corev1.NodeSelectorTerm{
				corev1.NodeSelectorTerm_builder{MatchExpressions: []*corev1.NodeSelectorRequirement{corev1.NodeSelectorRequirement_builder{
					Key: proto.String(hostname), Operator: proto.String("In"), Values: []string{host},
				}.Build()}}.Build(),
			}}.Build()}.Build(),
		}.Build(),
	}.Build()
}

// grow makes a bound volume as large as its claim asks for: a folder has no bound of its own, so that it is done by saying so.
func (c *Controller) grow(ctx context.Context, turn *reconcile.Turn[object.Key], claim *corev1.PersistentVolumeClaim) error {
	v, ok := c.stores.PersistentVolumes.Get("", claim.GetSpec().GetVolumeName())
	want := claim.GetSpec().GetResources().GetRequests()["storage"]
	if !ok || !isOurs(v) || claim.GetStatus().GetPhase() != "Bound" || !larger(want, claim.GetStatus().GetCapacity()["storage"]) {
		return nil
	}
	if larger(want, v.GetSpec().GetCapacity()["storage"]) {
		next := proto.Clone(v).(*corev1.PersistentVolume)
		capacity := maps.Clone(next.GetSpec().GetCapacity())
		capacity["storage"] = want
		next.GetSpec().SetCapacity(capacity)
		written, err := c.volumes.Update(ctx, next, nil)
		if err != nil {
			return fmt.Errorf("grow volume %s: %w", v.GetMetadata().GetName(), err)
		}
		turn.Wrote(written)
	}
	next := proto.Clone(claim).(*corev1.PersistentVolumeClaim)
	capacity := maps.Clone(next.GetStatus().GetCapacity())
	capacity["storage"] = want
	next.GetStatus().SetCapacity(capacity)
	written, err := c.claims.UpdateStatus(ctx, next)
	if err != nil {
		return fmt.Errorf("grow claim %s: %w", turn.Key, err)
	}
	turn.Wrote(written)
	c.events.Report(claim, "Normal", "VolumeResizeSuccessful", "Resize volume succeeded")
	return nil
}

// larger compares quantities; one that is absent is nothing.
func larger(a, b *metav1.Quantity) bool {
	x, errX := resource.ParseQuantity(a.GetString())
	y, errY := resource.ParseQuantity(b.GetString())
	return errX == nil && (errY != nil || x.Cmp(y) > 0)
}

// volume deletes a volume whose claim is gone, data first, if its policy is Delete.
func (c *Controller) volume(ctx context.Context, turn *reconcile.Turn[object.Key], v *corev1.PersistentVolume) error {
	m := v.GetMetadata()
	abandoned := v.GetStatus().GetPhase() == "Released" || v.GetStatus().GetPhase() == "Failed"
	switch {
	case abandoned && v.GetSpec().GetPersistentVolumeReclaimPolicy() == "Delete":
		gone, err := c.dataGone(ctx, turn, v)
		if err != nil || !gone {
			return err
		}
		if !object.IsDeleted(v) {
			deleted, err := c.volumes.Delete(ctx, "", m.GetName(), metav1.DeletionOptions_builder{Uid: m.GetUid()}.Build())
			if err != nil && !apierrors.IsNotFound(err) {
				return fmt.Errorf("delete volume %s: %w", m.GetName(), err)
			}
			if err == nil {
				turn.Wrote(deleted)
			}
			return nil
		}
	case !object.IsDeleted(v), v.GetStatus().GetPhase() == "Bound":
		return nil
	}
	// Deleted by us after its data, or by a user who keeps the data.
	if !slices.Contains(m.GetFinalizers(), finalizer) {
		return nil
	}
	next := proto.Clone(v).(*corev1.PersistentVolume)
	next.GetMetadata().SetFinalizers(slices.DeleteFunc(slices.Clone(m.GetFinalizers()), func(f string) bool { return f == finalizer }))
	written, err := c.volumes.Update(ctx, next, nil)
	if err != nil {
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("let volume %s go: %w", m.GetName(), err)
	}
	turn.Wrote(written)
	return nil
}

// dataGone has the volume's node delete the folder and says whether it has. The node is told first and the volume remembers it afterwards: a node that
// is told twice deletes nothing more.
func (c *Controller) dataGone(ctx context.Context, turn *reconcile.Turn[object.Key], v *corev1.PersistentVolume) (bool, error) {
	name := v.GetMetadata().GetName()
	node := c.nodeOf(v)
	if node == nil {
		return true, nil
	}
	key := RemovalPrefix + name
	if node.GetMetadata().GetAnnotations()[key] == "" {
		if v.GetMetadata().GetAnnotations()[removal] != "" {
			return true, nil
		}
		next := proto.Clone(node).(*corev1.Node)
		next.GetMetadata().SetAnnotations(with(node.GetMetadata().GetAnnotations(), key, "delete"))
		written, err := c.nodes.Update(ctx, next, nil)
		if err != nil {
			return false, fmt.Errorf("tell node %s to delete the data of volume %s: %w", node.GetMetadata().GetName(), name, err)
		}
		turn.Wrote(written)
	}
	if v.GetMetadata().GetAnnotations()[removal] != "" {
		return false, nil // the node's change brings the volume back here
	}
	next := proto.Clone(v).(*corev1.PersistentVolume)
	next.GetMetadata().SetAnnotations(with(v.GetMetadata().GetAnnotations(), removal, node.GetMetadata().GetName()))
	written, err := c.volumes.Update(ctx, next, nil)
	if err != nil {
		return false, fmt.Errorf("volume %s: %w", name, err)
	}
	turn.Wrote(written)
	return false, nil
}

// nodeOf returns the node that has a volume's folder, nil when it is gone.
func (c *Controller) nodeOf(v *corev1.PersistentVolume) *corev1.Node {
	for _, term := range v.GetSpec().GetNodeAffinity().GetRequired().GetNodeSelectorTerms() {
		for _, e := range term.GetMatchExpressions() {
			if e.GetKey() != hostname || len(e.GetValues()) != 1 {
				continue
			}
			for _, n := range c.stores.Nodes.List() {
				if m := n.GetMetadata(); m.GetLabels()[hostname] == e.GetValues()[0] || m.GetLabels()[hostname] == "" && m.GetName() == e.GetValues()[0] {
					return n
				}
			}
		}
	}
	return nil
}

func with(annotations map[string]string, key, value string) map[string]string {
	all := maps.Clone(annotations)
	if all == nil {
		all = map[string]string{}
	}
	all[key] = value
	return all
}

func without(annotations map[string]string, key string) map[string]string {
	all := maps.Clone(annotations)
	delete(all, key)
	return all
}
