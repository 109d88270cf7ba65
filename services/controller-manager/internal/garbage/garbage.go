// Package garbage deletes objects whose owners are all gone, lets owners that are deleted in the foreground wait for their dependents, and frees the
// dependents of owners that are deleted without them.
package garbage

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	kmetav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/lru"

	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/informer"
	"dhow.dev/pkg/object"
	"dhow.dev/pkg/resource"
	"dhow.dev/pkg/telemetry/logkey"
	"dhow.dev/services/controller-manager/internal/metadata"
	"dhow.dev/services/controller-manager/internal/reconcile"
)

// absentOwners is how many owners found missing are remembered, so that a thousand dependents of one owner ask for it once. A UID never comes back.
const absentOwners = 1000

// Config is what the collector is made of.
type Config struct {
	Conn    grpc.ClientConnInterface
	Watcher *metadata.Watcher
	Logger  *slog.Logger
	Workers int
}

// Collector collects garbage. Its keys are UIDs.
type Collector struct {
	*reconcile.Runner[string]
	conn   grpc.ClientConnInterface
	logger *slog.Logger
	graph  *graph
	absent *lru.Cache
}

// New returns the collector, listening to the watcher.
func New(cfg Config) *Collector {
	c := &Collector{conn: cfg.Conn, logger: cfg.Logger, graph: newGraph(), absent: lru.New(absentOwners)}
	c.Runner = reconcile.New(reconcile.Config[string]{
		Name: "garbage", Source: cfg.Watcher, Workers: cfg.Workers, Reconcile: c.reconcile, Logger: cfg.Logger,
	})
	cfg.Watcher.OnChange(func(o *metadata.Object, gone bool, cause *informer.Trace) {
		look := c.graph.put
		if gone {
			look = c.graph.drop
		}
		for _, uid := range look(o) {
			c.Add(uid, cause)
		}
	})
	return c
}

func (c *Collector) reconcile(ctx context.Context, turn *reconcile.Turn[string]) error {
	o := c.graph.get(turn.Key)
	switch {
	case o == nil:
		return nil
	case orphaning(o):
		return c.orphan(ctx, turn, o)
	case foreground(o):
		return c.foreground(ctx, turn, o)
	case o.Deleted:
		return nil // waits for others' finalizers, or its node
	}
	return c.judge(ctx, turn, o)
}

// judge deletes an object that has lost all its owners, and takes lost owners off one that still has others.
func (c *Collector) judge(ctx context.Context, turn *reconcile.Turn[string], o *metadata.Object) error {
	var solid, lost, waiting []string
	for _, reference := range o.Owners {
		owner := c.graph.get(reference.UID)
		switch {
		case owner != nil && matches(reference, o, owner):
			if foreground(owner) && reference.Blocks {
				waiting = append(waiting, reference.UID)
			} else {
				solid = append(solid, reference.UID)
			}
		default:
			absent, err := c.isAbsent(ctx, o, reference)
			if err != nil {
				return err
			}
			if absent {
				lost = append(lost, reference.UID)
			} else {
				solid = append(solid, reference.UID)
			}
		}
	}
	switch {
	case len(o.Owners) == 0 || len(lost)+len(waiting) == 0:
		return nil
	case len(solid) > 0:
		return c.removeOwners(ctx, turn, o, append(lost, waiting...))
	case len(waiting) > 0 && len(c.graph.dependents(o.UID)) > 0:
		// What its own dependents are to an owner that waits, this object's are to it. In a circle of waiting objects nobody would go first:
		// then its own dependents, which wait already, no longer hold it up.
		if slices.ContainsFunc(c.graph.dependents(o.UID), foreground) {
			if err := c.unblock(ctx, turn, o); err != nil {
				return err
			}
		}
		return c.delete(ctx, turn, o, metav1.PropagationPolicy_PROPAGATION_POLICY_FOREGROUND)
	}
	policy := metav1.PropagationPolicy_PROPAGATION_POLICY_BACKGROUND
	switch {
	case slices.Contains(o.Finalizers, finalizerOrphan):
		policy = metav1.PropagationPolicy_PROPAGATION_POLICY_ORPHAN
	case slices.Contains(o.Finalizers, finalizerForeground):
		policy = metav1.PropagationPolicy_PROPAGATION_POLICY_FOREGROUND
	}
	return c.delete(ctx, turn, o, policy)
}

// isAbsent asks the API server whether an owner that the graph does not know, or that the reference cannot mean, exists. Deleting is final, so no cache
// decides it.
func (c *Collector) isAbsent(ctx context.Context, o *metadata.Object, reference metadata.Owner) (bool, error) {
	type absentee struct{ uid, namespace string }
	memo := absentee{reference.UID, o.Key.Namespace}
	if _, ok := c.absent.Get(memo); ok {
		return true, nil
	}
	gv, err := schema.ParseGroupVersion(reference.APIVersion)
	if err != nil {
		return false, nil // nothing that exists can be meant, and nothing is deleted for a typing error
	}
	r := resource.ByKind(gv.Group, reference.Kind)
	if r == nil {
		return false, nil // a kind that is not served here: its owners cannot be looked for
	}
	key := object.Key{Name: reference.Name}
	if r.Namespaced {
		if o.Key.Namespace == "" {
			c.logger.WarnContext(ctx, "object of the whole cluster names an owner in a namespace, which is ignored",
				logkey.Resource(o.Resource.String()), logkey.Name(o.Key.Name), logkey.Kind(reference.Kind))
			return false, nil
		}
		key.Namespace = o.Key.Namespace
	}
	owner, err := client.Dynamic(c.conn, r).Get(ctx, key.Namespace, key.Name)
	switch {
	case apierrors.IsNotFound(err):
	case err != nil:
		return false, fmt.Errorf("look for owner %s %s: %w", reference.Kind, key, err)
	case owner.GetMetadata().GetUid() == reference.UID:
		return false, nil
	}
	c.absent.Add(memo, nil)
	return true, nil
}

// orphan takes the object off its dependents' owners, then lets it go.
func (c *Collector) orphan(ctx context.Context, turn *reconcile.Turn[string], o *metadata.Object) error {
	var errs []error
	for _, d := range c.graph.dependents(o.UID) {
		if err := c.removeOwners(ctx, turn, d, []string{o.UID}); err != nil {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return c.removeFinalizer(ctx, turn, o, finalizerOrphan)
}

// foreground lets the object go when nothing that it waits for is left; until then it sends its dependents ahead.
func (c *Collector) foreground(ctx context.Context, turn *reconcile.Turn[string], o *metadata.Object) error {
	blocked := false
	for _, d := range c.graph.dependents(o.UID) {
		i := slices.IndexFunc(d.Owners, func(r metadata.Owner) bool { return r.UID == o.UID })
		if i < 0 || !d.Owners[i].Blocks {
			continue
		}
		blocked = true
		if !d.Deleted {
			c.Add(d.UID, nil)
		}
	}
	if blocked {
		return nil // its dependents wake it as they go
	}
	return c.removeFinalizer(ctx, turn, o, finalizerForeground)
}

func (c *Collector) delete(ctx context.Context, turn *reconcile.Turn[string], o *metadata.Object, policy metav1.PropagationPolicy) error {
	// The resourceVersion makes the deletion void when the object got another owner meanwhile.
	gone, err := client.Dynamic(c.conn, o.Resource).Delete(ctx, o.Key.Namespace, o.Key.Name, metav1.DeletionOptions_builder{
		PropagationPolicy: policy, Uid: o.UID, ResourceVersion: fmt.Sprint(o.Revision),
	}.Build())
	switch {
	case apierrors.IsNotFound(err):
		return nil
	case err != nil:
		return fmt.Errorf("delete %s %s, whose owners are gone: %w", o.Resource, o.Key, err)
	}
	turn.Wrote(gone)
	return nil
}

// unblock makes the dependents of an object no obstacle to its deletion.
func (c *Collector) unblock(ctx context.Context, turn *reconcile.Turn[string], o *metadata.Object) error {
	var errs []error
	for _, d := range c.graph.dependents(o.UID) {
		errs = append(errs, c.change(ctx, turn, d, func(m *metav1.ObjectMeta) bool {
			changed := false
			for _, r := range m.GetOwnerReferences() {
				if r.GetUid() == o.UID && r.GetBlockOwnerDeletion() {
					r.SetBlockOwnerDeletion(false)
					changed = true
				}
			}
			return changed
		}))
	}
	return errors.Join(errs...)
}

func (c *Collector) removeOwners(ctx context.Context, turn *reconcile.Turn[string], o *metadata.Object, uids []string) error {
	return c.change(ctx, turn, o, func(m *metav1.ObjectMeta) bool {
		owners := m.GetOwnerReferences()
		kept := slices.DeleteFunc(slices.Clone(owners), func(r *metav1.OwnerReference) bool { return slices.Contains(uids, r.GetUid()) })
		m.SetOwnerReferences(kept)
		return len(kept) != len(owners)
	})
}

func (c *Collector) removeFinalizer(ctx context.Context, turn *reconcile.Turn[string], o *metadata.Object, finalizer string) error {
	return c.change(ctx, turn, o, func(m *metav1.ObjectMeta) bool {
		finalizers := m.GetFinalizers()
		kept := slices.DeleteFunc(slices.Clone(finalizers), func(f string) bool { return f == finalizer })
		m.SetFinalizers(kept)
		return len(kept) != len(finalizers)
	})
}

// change reads an object, edits its metadata and writes what the collector edits (owners, finalizers), if it is still the same object and edit says
// that anything changed. It patches because that is all it may do to Secrets and roles.
func (c *Collector) change(ctx context.Context, turn *reconcile.Turn[string], o *metadata.Object, edit func(*metav1.ObjectMeta) bool) error {
	objects := client.Dynamic(c.conn, o.Resource)
	current, err := objects.Get(ctx, o.Key.Namespace, o.Key.Name)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read %s %s: %w", o.Resource, o.Key, err)
	}
	if current.GetMetadata().GetUid() != o.UID {
		return nil
	}
	m := current.GetMetadata()
	if !edit(m) {
		return nil
	}
	patch, err := encodePatch(m)
	if err != nil {
		return fmt.Errorf("patch %s %s: %w", o.Resource, o.Key, err)
	}
	updated, err := objects.Patch(ctx, metav1.PatchRequest_builder{
		Namespace: o.Key.Namespace, Name: o.Key.Name, Type: metav1.PatchType_PATCH_TYPE_MERGE, Patch: patch,
	}.Build())
	switch {
	case apierrors.IsNotFound(err):
		return nil
	case err != nil:
		return fmt.Errorf("patch %s %s: %w", o.Resource, o.Key, err)
	}
	turn.Wrote(updated)
	return nil
}

// encodePatch returns the merge patch that sets owners and finalizers, on the condition that the object has not changed since it was read.
func encodePatch(m *metav1.ObjectMeta) ([]byte, error) {
	type patch struct {
		UID             string                   `json:"uid"`
		ResourceVersion string                   `json:"resourceVersion"`
		OwnerReferences []kmetav1.OwnerReference `json:"ownerReferences"`
		Finalizers      []string                 `json:"finalizers"`
	}
	p := patch{UID: m.GetUid(), ResourceVersion: m.GetResourceVersion(), Finalizers: m.GetFinalizers()}
	for _, r := range m.GetOwnerReferences() {
		k := kmetav1.OwnerReference{APIVersion: r.GetApiVersion(), Kind: r.GetKind(), Name: r.GetName(), UID: types.UID(r.GetUid())}
		if r.HasController() {
			k.Controller = proto.Bool(r.GetController())
		}
		if r.HasBlockOwnerDeletion() {
			k.BlockOwnerDeletion = proto.Bool(r.GetBlockOwnerDeletion())
		}
		p.OwnerReferences = append(p.OwnerReferences, k)
	}
	// An empty list is null, which removes the field.
	return json.Marshal(map[string]patch{"metadata": p})
}
